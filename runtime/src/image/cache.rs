//! From what a caller names to unpacked layers: found in the catalog, or added to it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::{Mode, mkdirat};
use nix::sys::time::TimeSpec;

use crate::config::host_path::HostPath;
use crate::config::image::ImageSays;
use crate::error::{Error, Result};
use crate::image::bounds;
use crate::image::catalog::Catalog;
use crate::image::digest::Digest;
use crate::image::implicit;
use crate::image::layer::{self, Blob, UnpackOptions};
use crate::image::layout::{self, Whole};
use crate::image::lock::Lease;
use crate::image::mark::Like;
use crate::image::name::Name;
use crate::image::options::{Progress, PullOptions};
use crate::image::place::Place;
use crate::image::record::{LayerRecord, OpenedLayer, Record, above_name};
use crate::image::unpack::Unpacked;
use crate::image::user;
use crate::image::view::{Reached, View, is_opaque};
use crate::store::State;
use crate::store::once::make_once;
use crate::store::subordinate::{Subordinate, with_ids};
use crate::sys::open::{DIRECTORY, Purpose, beneath};
use crate::transfer::attributes;
use crate::wait::Deadline;

/// An image, unpacked, that stays for as long as this is there.
#[derive(Debug)]
pub(crate) struct Cached {
    /// The topmost first.
    pub(crate) layers: Vec<OpenedLayer>,
    pub(crate) says: ImageSays,
    pub(crate) lease: Arc<Lease>,
}

/// An image in layers that lies in a file or a directory.
pub(crate) fn of_layers(
    state: &State,
    path: &HostPath,
    which: Option<&str>,
    ids: Option<u32>,
) -> Result<Cached> {
    let options = PullOptions { ids, ..PullOptions::default() };
    let ids = Subordinate::asked_for(ids)?;
    // It changes when what lies there does, as far as one can see at a glance.
    let name = Name::of_file(fingerprint(path, which)?);
    if let Some(found) = find(state, name.as_str(), ids)? {
        return Ok(found);
    }
    let deadline = Deadline::after(options.timeout);
    let place = Place::open(path, state.path(), options.caps, deadline)?;
    let chosen = layout::choose(&place, layout::images(&place)?, which)?;
    let shown = path.full_path().display().to_string();
    let whole = layout::read(&place, &chosen, &shown)?;
    let catalog = Catalog::open(state)?;
    let lease = add(state, &catalog, &place, &whole, &[name], &options, deadline)?;
    cached(state, lease, ids)?.ok_or_else(|| gone(&shown))
}

pub(super) fn gone(name: &str) -> Error {
    Error::Busy { what: format!("the image {name}"), by: "who removes it".to_owned() }
}

/// The image of a whole name, if it is there.
pub(super) fn find(state: &State, name: &str, ids: Option<Subordinate>) -> Result<Option<Cached>> {
    let Some(catalog) = Catalog::open_if_any(state)? else { return Ok(None) };
    match catalog.named(name)? {
        Some(lease) => cached(state, lease, ids),
        None => Ok(None),
    }
}

/// It, if all of its layers are there.
pub(super) fn cached(
    state: &State,
    lease: Arc<Lease>,
    ids: Option<Subordinate>,
) -> Result<Option<Cached>> {
    let Some(layers) = lease.record().open_layers(state, ids)? else { return Ok(None) };
    lease.mark_used();
    let says = lease.record().says.clone();
    Ok(Some(Cached { layers, says, lease }))
}

fn fingerprint(path: &HostPath, which: Option<&str>) -> Result<u64> {
    let location = path.locate()?;
    let shown = path.full_path();
    let look = |fd: OwnedFd| File::from(fd).metadata().map_err(Error::at("stat", &shown));
    let mut metadata = look(location.open("open image", Purpose::Look)?)?;
    if metadata.is_dir() {
        let directory = location.open("open image", Purpose::Pass)?;
        // What lies in it by digests does not change.
        for name in ["index.json", "manifest.json"] {
            if let Ok(file) = crate::sys::open::beneath(&directory, name, Purpose::Look) {
                metadata = look(file)?;
                break;
            }
        }
    }
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), metadata.dev(), metadata.ino(), metadata.size()).hash(&mut hasher);
    (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec())
        .hash(&mut hasher);
    (shown, which).hash(&mut hasher);
    Ok(hasher.finish())
}

/// Unpacks the layers of an image that are not there, and writes it down under some names.
pub(crate) fn add(
    state: &State,
    catalog: &Catalog,
    place: &Place,
    whole: &Whole,
    names: &[Name],
    options: &PullOptions<'_>,
    deadline: Deadline,
) -> Result<Arc<Lease>> {
    let ids = Subordinate::asked_for(options.ids)?;
    if whole.layers.is_empty() {
        return Err(Error::invalid("image", "it has no layers"));
    }
    bounds::check_sizes(whole.layers.iter().map(|layer| layer.size), options.caps.size)?;
    // Until the record names the layers, no one may take them for what no one needs.
    let _lock = catalog.lock_with_others(deadline)?;
    let known = catalog.image(&whole.digest);
    let is_known = match &known {
        Ok(Some(lease)) => lease.record().open_layers(state, ids)?.is_some(),
        _ => false,
    };
    // One record is for all ids, and says whether there is a layer above.
    let has_above = match &known {
        Ok(Some(lease)) => Some(lease.record().above.is_some()),
        _ => None,
    };
    if !is_known {
        let (places, hidden) = unpack(state, catalog, place, whole, options, ids, deadline)?;
        let config = whole.configuration.run.clone();
        let look = || {
            let view = View::open(&places)?;
            let user = user::user(&view, config.user.as_deref().unwrap_or_default())?;
            let mut directories = directories_above(&places, &view, whole)?;
            let is_needed = has_above.unwrap_or(!directories.is_empty());
            if is_needed && directories.is_empty() {
                directories.extend(top(&view)?);
            }
            let make = || make_above(state, &directories, whole, ids);
            Ok((user, is_needed.then(make).transpose()?))
        };
        let (user, above) = if ids.is_some() { with_ids(look) } else { look() }?;
        let layers = whole.layers.iter().map(|layer| LayerRecord {
            digest: layer.digest.clone(),
            size: layer.size,
            diff_id: layer.diff_id.clone(),
        });
        let digests = [&whole.digest, &whole.config_digest].map(Clone::clone);
        let ids = user.as_ref().map(|user| (user.uid, user.gid));
        let groups = user.map(|user| user.groups).unwrap_or_default();
        let says = ImageSays { config, ids, groups };
        catalog.put_blob(&whole.digest, &whole.manifest)?;
        catalog.put_blob(&whole.config_digest, &whole.config)?;
        // What can't be read is no one's.
        let record = Record::new(digests, (layers.collect(), hidden), above, says);
        catalog.put_image(&record, known.is_err())?;
    }
    for name in names {
        catalog.put_name(name, &whole.digest)?;
    }
    catalog.image(&whole.digest)?.ok_or_else(|| gone(&whole.digest.to_string()))
}

/// What is known of the layers of the images that are there: of which archive each is and of
/// which size, by the digest of its bytes.
fn seen_layers(catalog: &Catalog) -> Result<HashMap<Digest, (Digest, u64)>> {
    let known = catalog.images()?.read;
    let layers = known.into_iter().flat_map(|known| known.record.layers);
    Ok(layers.map(|layer| (layer.digest, (layer.diff_id, layer.size))).collect())
}

/// Unpacks the layers, and returns where those are that show, the topmost first, and how many are
/// below them.
///
/// One that is there is not read where it is known what its bytes become; else they are, since
/// others will believe the record of this image.
fn unpack(
    state: &State,
    catalog: &Catalog,
    place: &Place,
    whole: &Whole,
    options: &PullOptions<'_>,
    ids: Option<Subordinate>,
    deadline: Deadline,
) -> Result<(Vec<PathBuf>, usize)> {
    let mut places: Vec<PathBuf> = Vec::new();
    let mut hidden = 0;
    let count = whole.layers.len();
    let mut seen = seen_layers(catalog)?;
    for (number, source) in whole.layers.iter().enumerate() {
        let known = seen.get(&source.digest);
        if let Some((diff_id, size)) = known
            && (diff_id, size) != (&source.diff_id, &source.size)
        {
            let why = format!(
                "layer {}: its diff id is {diff_id} and its size {size}, and they were said to be \
                 {} and {}",
                source.digest, source.diff_id, source.size
            );
            return Err(Error::invalid("image", why));
        }
        let found = layer::find(state, &source.diff_id, ids);
        let path = match found {
            Some(path) if known.is_some() => path,
            found => {
                let lacks = || {
                    let why = format!("{:?} lacks the layer {}", place.shown(), source.digest);
                    Error::invalid("image", why)
                };
                let content = place.file(&source.file)?.ok_or_else(lacks)?;
                if content.size != source.size {
                    let why = format!(
                        "{:?}: the layer {} has {} bytes, not {}",
                        place.shown(),
                        source.digest,
                        content.size,
                        source.size
                    );
                    return Err(Error::invalid("image", why));
                }
                let tell = |done: u64| {
                    options.tell(&Progress::Unpacking {
                        layer: number + 1,
                        layers: count,
                        bytes: done,
                        of: source.size,
                    });
                };
                tell(0);
                let blob = Blob {
                    digest: source.digest.clone(),
                    size: Some(source.size),
                    diff_id: Some(source.diff_id.clone()),
                    bytes: content.bytes,
                };
                let report = |unpacked: &Unpacked| {
                    let Unpacked { squashed, left_out, attributes_left_out, .. } = *unpacked;
                    if (squashed, left_out, attributes_left_out) != (0, 0, 0) {
                        options.tell(&Progress::NotKept {
                            layer: number + 1,
                            layers: count,
                            owners: squashed,
                            nodes: left_out,
                            attributes: attributes_left_out,
                        });
                    }
                };
                let options = UnpackOptions {
                    caps: options.caps,
                    progress: Some(&tell),
                    report: Some(&report),
                    deadline,
                    ids,
                };
                match found {
                    Some(path) => layer::check(blob, &options).map(|()| path),
                    None => layer::layer(state, blob, &options),
                }?
            }
        };
        seen.insert(source.digest.clone(), (source.diff_id.clone(), source.size));
        // An overlay does not look at such a mark of a layer's top.
        let top = nix::fcntl::open(&path, DIRECTORY, Mode::empty());
        if is_opaque(top.map_err(Error::at("open", &path))?.as_fd()) {
            places.clear();
            hidden = number;
        }
        // Of one that comes again, what is below has nothing to add.
        places.retain(|other| *other != path);
        places.insert(0, path);
    }
    Ok((places, hidden))
}

/// How far the working directory of an image is there, if it is not.
fn missing_directory(view: &View, whole: &Whole) -> Result<Option<Reached>> {
    let Some(directory) = &whole.configuration.run.working_dir else { return Ok(None) };
    let reached = view.reach(directory).map_err(Error::at("look for", directory))?;
    Ok(reached.filter(|reached| !reached.missing.is_empty()))
}

/// The top, as it is.
fn top(view: &View) -> Result<Option<(PathBuf, Option<Like>)>> {
    let reached = view.reach(Path::new("")).map_err(Error::io("look at an image"))?;
    let like = reached.and_then(|reached| reached.attributes.into_iter().next());
    Ok(like.map(|like| (PathBuf::new(), Some(like))))
}

/// Makes a layer above those of an image, with the working directory that is missing, and with what
/// directories had that a layer has used without naming them; its name.
///
/// As docker does: who makes an image need not make the directory, and programs begin there.
fn make_above(
    state: &State,
    directories: &Directories,
    whole: &Whole,
    ids: Option<Subordinate>,
) -> Result<String> {
    let name = above_name(&whole.digest);
    let fill =
        |at: &Path| fill_above(at, directories).map_err(Error::at("make a directory in", at));
    make_once(state, &layer::of_ids(&name, ids), fill).map(|_| name)
}

/// Directories by their paths, those above before those in them, and what they are like. Of a new
/// one nothing is said.
type Directories = BTreeMap<PathBuf, Option<Like>>;

/// The directories of the layer above.
fn directories_above(layers: &[PathBuf], view: &View, whole: &Whole) -> Result<Directories> {
    let restored = implicit::to_restore(layers, view)?;
    let mut all: Directories =
        restored.into_iter().map(|(path, like)| (path, Some(like))).collect();
    if let Some(Reached { names, attributes, missing }) = missing_directory(view, whole)? {
        let mut at = PathBuf::new();
        let there = [OsString::new()].into_iter().chain(names).zip(attributes);
        for (name, like) in there {
            at.push(name);
            all.entry(at.clone()).or_insert(Some(like));
        }
        for name in missing {
            at.push(name);
            all.insert(at.clone(), None);
        }
    }
    Ok(all)
}

/// Makes directories in one that is empty and of no one else.
fn fill_above(at: &Path, directories: &Directories) -> io::Result<()> {
    let top = nix::fcntl::open(at, DIRECTORY, Mode::empty())?;
    let is_top = |path: &&PathBuf| path.as_os_str().is_empty();
    for path in directories.keys().filter(|path| !is_top(path)) {
        mkdirat(&top, path.as_path(), Mode::S_IRWXU)?;
    }
    // The deepest first: what is made in a directory changes its time, and one may end up closed.
    for (path, like) in directories.iter().rev() {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let directory = beneath(&top, path, Purpose::List)?;
        let file = File::from(directory);
        let Some((stat, extended)) = like else {
            file.set_permissions(Permissions::from_mode(0o755))?;
            continue;
        };
        if nix::unistd::geteuid().is_root() {
            fchown(&file, Some(stat.st_uid), Some(stat.st_gid))?;
        }
        file.set_permissions(Permissions::from_mode(stat.st_mode & 0o7777))?;
        for (name, value) in extended {
            // Those that are a layer's own are left out.
            attributes::set(file.as_fd(), name.to_bytes(), value, false)?;
        }
        let times = [
            TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
            TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
        ];
        let [accessed, modified] = &times;
        nix::sys::stat::futimens(&file, accessed, modified)?;
    }
    Ok(())
}
