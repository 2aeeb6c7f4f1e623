//! Images as they lie in a place: an OCI image layout, or what `docker save` writes.
//!
//! Each document is read within its bounds and checked by its digest before anything in it counts.
//! Blobs are named by checked digests alone; where an old archive names files, names lead nowhere
//! but down.

use std::collections::HashMap;
use std::io::{self, Read};

use serde::Deserialize;
use serde_json::json;

use crate::error::{Error, Result};
use crate::image::compression::Compression;
use crate::image::digest::Digest;
use crate::image::manifest::{self, Configuration, Descriptor, Document, LONGEST};
use crate::image::place::Place;

/// What names an image in an index: the whole name, and the tag or whatever its maker likes.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// How deep indexes may lie in one another.
const DEEPEST: usize = 4;
/// How many descriptors of indexes are tried, of all that are in one another together.
const MOST_TRIED: usize = 64;
/// The most names in an error.
const MOST_TOLD: usize = 20;

/// An image in a place, not read so far.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// As its maker named it.
    pub(crate) names: Vec<String>,
    by: By,
}

#[derive(Debug, Clone)]
enum By {
    Index(Descriptor),
    /// One image, for each of several platforms.
    Platforms(Vec<Descriptor>),
    Saved(Saved),
}

/// An image as the list in an archive of `docker save` has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// An image whose documents were read and checked.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) digest: Digest,
    pub(crate) manifest: Vec<u8>,
    pub(crate) config_digest: Digest,
    pub(crate) config: Vec<u8>,
    pub(crate) configuration: Configuration,
    /// The lowest first.
    pub(crate) layers: Vec<LayerSource>,
    /// The digests of the documents that have led to it, each of which was checked: its manifest,
    /// and the indexes around that. An old archive has none.
    pub(crate) seen: Vec<Digest>,
}

/// Where the bytes of a layer are.
#[derive(Debug)]
pub(crate) struct LayerSource {
    pub(crate) file: String,
    /// Of the bytes as they come.
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Of the plain archive.
    pub(crate) diff_id: Digest,
}

/// All images in a place.
pub(crate) fn images(place: &Place) -> Result<Vec<Found>> {
    all(place).map_err(|error| match error {
        Error::Invalid { what, why } => Error::invalid(what, format!("{:?}: {why}", place.shown())),
        error => error,
    })
}

fn all(place: &Place) -> Result<Vec<Found>> {
    // The newer `docker save` writes both, and the index has what the list has not.
    if let Some(index) = place.read("index.json", LONGEST)? {
        let Document::Index(entries) = Document::parse(&index, "")? else {
            return Err(Error::invalid("image", "index.json is no index"));
        };
        let found = entries.into_iter().map(|descriptor| {
            let names = NAMES.iter().filter_map(|name| descriptor.annotations.get(*name)?.clone());
            Found { names: names.collect(), by: By::Index(descriptor) }
        });
        return Ok(found.collect());
    }
    if let Some(list) = place.read("manifest.json", LONGEST)? {
        let saved: Vec<Saved> = manifest::parse(&list, "list")?;
        let found = saved.into_iter().map(|saved| Found {
            names: saved.repo_tags.clone().unwrap_or_default(),
            by: By::Saved(saved),
        });
        return Ok(found.collect());
    }
    let why = "it holds neither an OCI image layout nor what `docker save` writes";
    Err(Error::invalid("image", why))
}

/// The one that is meant: of a name, or the only one that there is.
///
/// # Errors
/// [`Error::Invalid`] that lists them.
pub(crate) fn choose(place: &Place, all: Vec<Found>, which: Option<&str>) -> Result<Found> {
    let count = all.len();
    let list = |found: &[Found]| {
        let names = found.iter().flat_map(|found| found.names.first());
        // Without what a terminal obeys.
        let names = names.take(MOST_TOLD).map(|name| name.escape_debug().to_string());
        let names: Vec<String> = names.collect();
        if names.is_empty() { "none has a name".to_owned() } else { names.join(", ") }
    };
    let told = list(&all);
    let mut chosen: Vec<Found> = match which {
        None => all,
        Some(which) => {
            let is_it = |found: &Found| found.names.iter().any(|name| is_named(name, which));
            all.into_iter().filter(is_it).collect()
        }
    };
    if let Some(descriptors) = platforms(&chosen) {
        let names = chosen.pop().map_or(Vec::new(), |found| found.names);
        return Ok(Found { names, by: By::Platforms(descriptors) });
    }
    let shown = place.shown();
    let why = match (chosen.len(), which) {
        (1, _) => return chosen.pop().ok_or_else(|| Error::invalid("image", "none")),
        (_, None) if chosen.iter().all(|found| found.names.is_empty()) && count > 1 => {
            format!("{shown:?} holds {count} images without a name: make an archive of one")
        }
        (0, None) => format!("{shown:?} holds no image"),
        (_, None) => {
            format!("{shown:?} holds {count} images, of which one has to be named: {told}")
        }
        (0, Some(which)) => format!("{shown:?} holds no image {which:?}, but: {told}"),
        (_, Some(which)) => format!("{shown:?} holds several images {which:?}"),
    };
    Err(Error::invalid("image", why))
}

/// The entries of an index that are one image: each is for a platform, and none has another name.
/// Which one is taken, is decided as in any index.
fn platforms(all: &[Found]) -> Option<Vec<Descriptor>> {
    let first = all.first().filter(|_| all.len() > 1)?;
    let one = |found: &Found| match &found.by {
        By::Index(descriptor) if descriptor.has_platform() && found.names == first.names => {
            Some(descriptor.clone())
        }
        _ => None,
    };
    all.iter().map(one).collect()
}

/// Whether an image that has a name may be called so: as it is, or by docker's rules.
fn is_named(name: &str, called: &str) -> bool {
    use crate::image::reference::Reference;
    let is_one = |name: &str| Reference::parse(name).ok().map(|name| name.to_string());
    name == called || is_one(name).is_some_and(|name| Some(name) == is_one(called))
}

/// Reads what an image is made of, for this machine; `name` is for errors.
pub(crate) fn read(place: &Place, found: &Found, name: &str) -> Result<Whole> {
    match &found.by {
        By::Index(descriptor) => of_index(place, descriptor, name, DEEPEST, &mut { MOST_TRIED }),
        By::Platforms(all) => of_first(place, all.clone(), name, DEEPEST, &mut { MOST_TRIED }),
        By::Saved(saved) => of_saved(place, saved, name),
    }
}

/// Reads the image of a manifest that was fetched; blobs lie in the place by their digests.
pub(crate) fn of_manifest(place: &Place, bytes: Vec<u8>, name: &str) -> Result<Whole> {
    match Document::parse(&bytes, "")? {
        Document::Manifest(manifest) => whole(place, bytes, manifest, name),
        Document::Index(_) => Err(Error::invalid("image", format!("{name}: no manifest"))),
    }
}

/// Where a blob lies.
pub(crate) fn blob(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replacen(':', "/", 1))
}

/// Reads a document and checks that it is the one that was named; `None` if it is not there.
fn document(place: &Place, descriptor: &Descriptor) -> Result<Option<Vec<u8>>> {
    let Descriptor { digest, size, .. } = descriptor;
    if *size > LONGEST {
        return Err(Error::TooLarge { what: "a document of an image, in bytes", limit: LONGEST });
    }
    let Some(bytes) = place.read(&blob(digest), LONGEST)? else { return Ok(None) };
    if bytes.len() as u64 != *size || !digest.is_of(&bytes) {
        let why = format!("{:?}: what is named {digest} has other bytes", place.shown());
        return Err(Error::invalid("image", why));
    }
    Ok(Some(bytes))
}

fn missing(place: &Place, digest: &Digest) -> Error {
    Error::invalid(
        "image",
        format!("{:?} lacks {digest}, of which the image is made", place.shown()),
    )
}

/// `tries` are those that are left.
fn of_index(
    place: &Place,
    descriptor: &Descriptor,
    name: &str,
    depth: usize,
    tries: &mut usize,
) -> Result<Whole> {
    let Some(left) = tries.checked_sub(1) else {
        let why = format!("{name}: more than {MOST_TRIED} documents, and none is it");
        return Err(Error::invalid("image", why));
    };
    *tries = left;
    let Some(bytes) = document(place, descriptor)? else {
        return Err(missing(place, &descriptor.digest));
    };
    let index = match Document::parse(&bytes, &descriptor.media_type)? {
        Document::Manifest(manifest) => {
            let mut whole = whole(place, bytes, manifest, name)?;
            whole.seen.push(descriptor.digest.clone());
            return Ok(whole);
        }
        Document::Index(index) => index,
    };
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Error::invalid("image", format!("{name}: indexes in one another too deep")));
    };
    let mut found = of_first(place, index, name, depth, tries)?;
    found.seen.push(descriptor.digest.clone());
    Ok(found)
}

/// Reads the first image of an index that is for this machine and is there.
fn of_first(
    place: &Place,
    index: Vec<Descriptor>,
    name: &str,
    depth: usize,
    tries: &mut usize,
) -> Result<Whole> {
    let mut first_error = None;
    for descriptor in &manifest::for_this_machine(index, name)? {
        match of_index(place, descriptor, name, depth, tries) {
            // One for another platform that its descriptor does not tell, or one that was not
            // saved: the next may be it.
            Err(error) if *tries == 0 || matches!(error, Error::TimedOut { .. }) => {
                return Err(error);
            }
            Err(error) => _ = first_error.get_or_insert(error),
            Ok(found) => return Ok(found),
        }
    }
    Err(first_error.unwrap_or_else(|| Error::invalid("image", format!("{name}: an empty index"))))
}

fn whole(place: &Place, bytes: Vec<u8>, manifest: manifest::Manifest, name: &str) -> Result<Whole> {
    let Some(config) = document(place, &manifest.config)? else {
        return Err(missing(place, &manifest.config.digest));
    };
    let configuration = Configuration::parse(&config, name)?;
    check_count(manifest.layers.len(), &configuration, name)?;
    let layers = manifest.layers.iter().zip(&configuration.diff_ids);
    let layers = layers.map(|(layer, diff_id)| LayerSource {
        file: blob(&layer.digest),
        digest: layer.digest.clone(),
        size: layer.size,
        diff_id: diff_id.clone(),
    });
    let layers = layers.collect();
    let digest = Digest::of(&bytes);
    let config_digest = manifest.config.digest;
    Ok(Whole {
        digest,
        manifest: bytes,
        config_digest,
        config,
        configuration,
        layers,
        seen: Vec::new(),
    })
}

fn check_count(layers: usize, configuration: &Configuration, name: &str) -> Result<()> {
    let said = configuration.diff_ids.len();
    if layers == said {
        return Ok(());
    }
    let why = format!("{name}: it has {layers} layers, and its configuration knows {said}");
    Err(Error::invalid("image", why))
}

/// Reads an image of an old archive. It has no manifest, so one is made of what is there.
fn of_saved(place: &Place, saved: &Saved, name: &str) -> Result<Whole> {
    let lacks = |file: &str| {
        let why = format!("{:?} lacks {file:?}, of which the image is made", place.shown());
        Error::invalid("image", why)
    };
    let config = place.read(&saved.config, LONGEST)?.ok_or_else(|| lacks(&saved.config))?;
    let config_digest = Digest::of(&config);
    let stem = saved.config.trim_end_matches(".json");
    let hex = stem.rsplit('/').next().unwrap_or_default();
    if Digest::parse(&format!("sha256:{hex}")).is_ok_and(|named| named != config_digest) {
        let why =
            format!("{:?}: {:?} has other bytes than it is named by", place.shown(), saved.config);
        return Err(Error::invalid("image", why));
    }
    let configuration = Configuration::parse(&config, name)?;
    check_count(saved.layers.len(), &configuration, name)?;
    let mut layers = Vec::new();
    // One that comes again is read once.
    let mut digests: HashMap<&String, Option<Digest>> = HashMap::new();
    for (file, diff_id) in saved.layers.iter().zip(&configuration.diff_ids) {
        let content = place.file(file)?.ok_or_else(|| lacks(file))?;
        let size = content.size;
        // A plain one is known by what the configuration says of it, and is checked by that when
        // it is unpacked. Of others no one says the digest.
        let digest = match digests.get(file) {
            Some(digest) => digest.clone(),
            None => {
                let digest = digest_if_compressed(content.bytes);
                let digest = digest.map_err(|error| place.failed(file, error))?;
                digests.insert(file, digest.clone());
                digest
            }
        };
        let digest = digest.unwrap_or_else(|| diff_id.clone());
        layers.push(LayerSource { file: file.clone(), digest, size, diff_id: diff_id.clone() });
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest.to_string(),
            "size": config.len(),
        },
        "layers": layers.iter().map(|layer| json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer.digest.to_string(),
            "size": layer.size,
        })).collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string().into_bytes();
    let digest = Digest::of(&manifest);
    let seen = Vec::new();
    Ok(Whole { digest, manifest, config_digest, config, configuration, layers, seen })
}

/// The digest of what is compressed.
fn digest_if_compressed(mut bytes: impl Read) -> io::Result<Option<Digest>> {
    let mut beginning = Vec::new();
    bytes.by_ref().take(4).read_to_end(&mut beginning)?;
    if Compression::of(&beginning) == Compression::None {
        return Ok(None);
    }
    Digest::of_all(beginning.as_slice().chain(bytes)).map(Some)
}
