//! Indexes, manifests and configurations of images, as OCI and docker write them: read as hostile.
//!
//! Nothing here opens anything. What a document may name is bounded by its size.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use adl_protocol::limits::MAX_PATH;
use serde::{Deserialize, Deserializer};

use crate::config::image::ImageConfig;
use crate::error::{Error, Result};
use crate::image::bounds;
use crate::image::digest::Digest;
use crate::image::json::or_default;
use crate::image::platform::{self, Platform};

/// The longest index, manifest or configuration, in bytes, as registries have it.
pub(crate) const LONGEST: u64 = 4 << 20;

/// What a document says of the bytes of another.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    #[serde(deserialize_with = "digest")]
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, deserialize_with = "or_default")]
    urls: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) annotations: BTreeMap<String, Option<String>>,
    platform: Option<Platform>,
}

/// Reads a digest.
fn digest<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Digest, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digest = Digest::parse(&text);
    digest.map_err(|_| serde::de::Error::custom(format!("{text:?} is no digest")))
}

/// What there is at a digest.
#[derive(Debug)]
pub(crate) enum Document {
    /// Several images, or one for each of several platforms.
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// What an image is made of.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// The lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

impl Document {
    /// Reads an index or a manifest; `media_type` is what leads to it says that it is.
    pub(crate) fn parse(bytes: &[u8], media_type: &str) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Either {
            schema_version: Option<u64>,
            #[serde(default, deserialize_with = "or_default")]
            media_type: String,
            #[serde(default, deserialize_with = "or_default")]
            artifact_type: String,
            manifests: Option<Vec<Descriptor>>,
            config: Option<Descriptor>,
            layers: Option<Vec<Descriptor>>,
        }
        let either: Either = parse(bytes, "manifest")?;
        if either.schema_version != Some(2) {
            return Err(Error::Unsupported {
                what: "an image with a manifest of version 1".to_owned(),
                why: "registries and programs have given it up".to_owned(),
                fix: "pull it with docker and push it again".to_owned(),
            });
        }
        // One that can be read as either is made to mean one thing here and another elsewhere.
        let said = [media_type, &either.media_type].map(Kind::of);
        let kind = match (&either.manifests, &either.config, &either.layers) {
            (Some(_), None, None) => Kind::Index,
            (None, Some(_), Some(_)) => Kind::Manifest,
            _ => return Err(invalid("a manifest", "it is neither an index nor a manifest")),
        };
        if said.iter().any(|said| *said != Kind::Unsaid && *said != kind) {
            let why = format!("it is not what it is said to be, {:?}", either.media_type);
            return Err(invalid("a manifest", &why));
        }
        match either {
            Either { manifests: Some(manifests), .. } => Ok(Self::Index(manifests)),
            Either { config: Some(config), layers: Some(layers), artifact_type, .. } => {
                check_config(&config, &artifact_type)?;
                bounds::check_count(layers.iter().map(|layer| &layer.digest))?;
                layers.iter().try_for_each(check_layer)?;
                Ok(Self::Manifest(Manifest { config, layers }))
            }
            _ => Err(invalid("a manifest", "it is neither an index nor a manifest")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unsaid,
    Index,
    Manifest,
    Other,
}

impl Kind {
    fn of(media_type: &str) -> Self {
        match media_type {
            "" => Self::Unsaid,
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => Self::Index,
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => Self::Manifest,
            _ => Self::Other,
        }
    }
}

/// Refuses what is kept as images are, and is none: charts, signatures, attestations.
fn check_config(config: &Descriptor, artifact_type: &str) -> Result<()> {
    let is_image = matches!(
        config.media_type.as_str(),
        "" | "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
    );
    if is_image && artifact_type.is_empty() {
        return Ok(());
    }
    let kind = if artifact_type.is_empty() { &config.media_type } else { artifact_type };
    Err(invalid("a manifest", &format!("it is of a {kind:?}, which is no image of a root")))
}

/// Refuses layers that are not a tar archive in the image's own place.
fn check_layer(layer: &Descriptor) -> Result<()> {
    let media_type = &layer.media_type;
    let unsupported = |why: &str, fix: &str| {
        Err(Error::Unsupported {
            what: format!("a layer {media_type:?}"),
            why: why.to_owned(),
            fix: fix.to_owned(),
        })
    };
    if media_type.contains("encrypted") {
        let fix = "decrypt it first: `skopeo copy --decryption-key`";
        return unsupported("it is encrypted", fix);
    }
    let is_foreign = media_type.contains("foreign") || media_type.contains("nondistributable");
    if is_foreign || !layer.urls.is_empty() {
        let fix = "make an image that has all of its layers";
        return unsupported("it is not kept with the image, but at addresses of its own", fix);
    }
    let is_archive = matches!(
        media_type.as_str(),
        "" | "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.container.image.rootfs.diff+x-gtar"
    );
    if is_archive {
        return Ok(());
    }
    unsupported("it is no tar archive, nor one in gzip or zstd", "make the image with such layers")
}

/// The descriptors of an index that may lead to an image for this machine, the best first.
///
/// # Errors
/// [`Error::Unsupported`] that lists the platforms that there are.
pub(crate) fn for_this_machine(index: Vec<Descriptor>, name: &str) -> Result<Vec<Descriptor>> {
    let images = index.into_iter().filter(|descriptor| !descriptor.is_beside());
    platform::best(images.map(|descriptor| (descriptor.platform.clone(), descriptor)), name)
}

impl Descriptor {
    /// Whether it says for which machines it is.
    pub(crate) fn has_platform(&self) -> bool {
        self.platform.is_some()
    }

    /// Whether it tells of another image, and leads to none.
    fn is_beside(&self) -> bool {
        self.platform.as_ref().is_some_and(Platform::is_unknown)
            || self.annotations.contains_key("vnd.docker.reference.type")
    }
}

/// The part of an image's configuration that adl looks at.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) run: ImageConfig,
    /// The lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

impl Configuration {
    /// Reads it, for an image of a name with so many layers.
    pub(crate) fn parse(bytes: &[u8], name: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(flatten)]
            platform: Platform,
            created: Option<String>,
            #[serde(default, deserialize_with = "or_default")]
            config: Run,
            rootfs: RootFs,
        }
        #[derive(Deserialize)]
        struct RootFs {
            #[serde(default, deserialize_with = "or_default")]
            diff_ids: Vec<String>,
        }
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Run {
            #[serde(default, deserialize_with = "or_default")]
            env: Vec<String>,
            #[serde(default, deserialize_with = "or_default")]
            working_dir: String,
            #[serde(default, deserialize_with = "or_default")]
            user: String,
            #[serde(default, deserialize_with = "or_default")]
            entrypoint: Words,
            #[serde(default, deserialize_with = "or_default")]
            cmd: Words,
            #[serde(default, deserialize_with = "or_default")]
            stop_signal: String,
            #[serde(default, deserialize_with = "or_default")]
            labels: BTreeMap<String, Option<String>>,
            #[serde(default, deserialize_with = "or_default")]
            exposed_ports: BTreeMap<String, serde_json::Value>,
        }
        let Whole { platform, created, config: run, rootfs } = parse(bytes, "configuration")?;
        platform::check(&platform, name)?;
        let read = |text: &String| {
            let why = |_| invalid("a configuration", &format!("{text:?} is no digest"));
            Digest::parse(text).map_err(why)
        };
        let diff_ids = rootfs.diff_ids.iter().map(read).collect::<Result<Vec<_>>>()?;
        bounds::check_count(diff_ids.iter())?;
        // What has no `=` is none, as an empty one that some builder left.
        let env = run.env.iter().filter_map(|variable| variable.split_once('='));
        let env = env.filter(|(name, _)| !name.is_empty());
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        if run.working_dir.len() > MAX_PATH {
            return Err(invalid("a configuration", "its WorkingDir is longer than any path"));
        }
        let run = ImageConfig {
            env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            working_dir: some(run.working_dir).map(|path| plain(&path)),
            user: some(run.user),
            // One empty word is how a builder takes an entrypoint away.
            entrypoint: Some(run.entrypoint.into()).filter(|all| *all != [""]).unwrap_or_default(),
            cmd: run.cmd.into(),
            stop_signal: some(run.stop_signal),
            labels: run
                .labels
                .into_iter()
                .map(|(name, value)| (name, value.unwrap_or_default()))
                .collect(),
            exposed_ports: run.exposed_ports.into_keys().collect(),
            created,
        };
        Ok(Self { run, diff_ids })
    }
}

/// Words of a command: several, or one as it is.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Several(Vec<String>),
    One(String),
}

impl Default for Words {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl From<Words> for Vec<String> {
    fn from(words: Words) -> Self {
        match words {
            Words::Several(words) => words,
            Words::One(word) => vec![word],
        }
    }
}

/// A path without what says nothing: `..` is what its text says, as docker has it.
fn plain(path: &str) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => _ = plain.pop(),
            part => plain.push(part),
        }
    }
    plain
}

/// Reads a document of a kind.
pub(crate) fn parse<'de, T: Deserialize<'de>>(bytes: &'de [u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| invalid(&format!("a {what}"), &error.to_string()))
}

fn invalid(what: &str, why: &str) -> Error {
    Error::invalid("image", format!("{what} in it can't be used: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Configuration, Document, Error, for_this_machine};

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn index(entries: &str) -> String {
        format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#)
    }

    #[test]
    fn what_tells_of_another_image_is_none_of_an_index() {
        let entry = |number: u8, more: &str| {
            format!(r#"{{"digest":"sha256:{number:064}","size":{number},{more}}}"#)
        };
        let platform = |os: &str, architecture: &str| {
            format!(r#""platform":{{"os":"{os}","architecture":"{architecture}","variant":null}}"#)
        };
        let entries = [
            entry(1, r#""annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#),
            entry(2, &platform("unknown", "unknown")),
            entry(3, &platform("linux", "arm64")),
            entry(4, r#""annotations":null"#),
            entry(5, &platform("linux", "amd64")),
        ];
        let text = index(&entries.join(","));
        let Document::Index(index) = Document::parse(text.as_bytes(), "").unwrap() else {
            panic!("no index")
        };
        let found = for_this_machine(index, "x").unwrap();
        assert_eq!(found.iter().map(|found| found.size).collect::<Vec<_>>(), [5, 4]);
    }

    fn manifest(layer: &str) -> String {
        let config = format!(
            r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{HEX}","size":2}}"#
        );
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#)
    }

    fn layer(media_type: &str, more: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{HEX}","size":2{more}}}"#)
    }

    #[test]
    fn layers_that_are_kept_elsewhere_or_encrypted_are_told() {
        const OCI: &str = "application/vnd.oci.image.layer.v1.tar";
        const DOCKER: &str = "application/vnd.docker.image.rootfs";
        for good in [
            OCI,
            &format!("{OCI}+gzip"),
            &format!("{OCI}+zstd"),
            &format!("{DOCKER}.diff.tar.gzip"),
        ] {
            let chunked = r#","annotations":{"io.github.containers.zstd-chunked.manifest-checksum":"x"},"urls":null"#;
            let read = Document::parse(manifest(&layer(good, chunked)).as_bytes(), "").unwrap();
            assert!(matches!(read, Document::Manifest(manifest) if manifest.layers.len() == 1));
        }
        for (wrong, more, why) in [
            (format!("{OCI}+gzip+encrypted"), "", "encrypted"),
            (format!("{DOCKER}.foreign.diff.tar.gzip"), "", "addresses"),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar".to_owned(), "", "addresses"),
            (OCI.to_owned(), r#","urls":["http://localhost/x"]"#, "addresses"),
            (format!("{OCI}+xz"), "", "gzip or zstd"),
            ("application/vnd.cncf.helm.chart.content.v1.tar+gzip".to_owned(), "", "no tar"),
        ] {
            let error = Document::parse(manifest(&layer(&wrong, more)).as_bytes(), "").unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{wrong}: {error}");
            assert!(error.to_string().contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_can_be_read_as_two_things_is_neither() {
        const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
        const INDEX: &str = "application/vnd.oci.image.index.v1+json";
        let both = manifest("").replace("\"layers\"", "\"manifests\":[],\"layers\"");
        let named =
            manifest("").replace("\"config\":", &format!("\"mediaType\":\"{INDEX}\",\"config\":"));
        let chart = manifest("").replace("vnd.oci.image.config", "vnd.cncf.helm.config");
        let artifact = manifest("").replace("\"config\":", "\"artifactType\":\"a/b\",\"config\":");
        let old = manifest("").replace(":2,\"config\"", ":1,\"config\"");
        let digest = manifest("").replace("sha256:0", "sha256:/");
        for (text, media_type, why) in [
            (both.as_str(), MANIFEST, "neither"),
            (&manifest(""), INDEX, "not what it is said to be"),
            (&index(""), MANIFEST, "not what it is said to be"),
            (&manifest(""), "text/html", "not what it is said to be"),
            (&named, "", "not what it is said to be"),
            (&chart, "", "helm"),
            (&artifact, "", "a/b"),
            (&old, "", "version 1"),
            ("{}", "", "version 1"),
            (r#"{"schemaVersion":2}"#, "", "neither"),
            (&digest, "", "no digest"),
            ("[]", "", "can't be used"),
            ("", "", "can't be used"),
            (&"[".repeat(100_000), "", "can't be used"),
        ] {
            let error = Document::parse(text.as_bytes(), media_type).unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
        assert!(Document::parse(manifest("").as_bytes(), MANIFEST).is_ok());
        let many = vec![layer("", ""); 1001].join(",");
        let error = Document::parse(manifest(&many).as_bytes(), "").unwrap_err();
        assert!(error.to_string().contains("more than 1000 layers"), "{error}");
    }

    #[test]
    fn a_configuration_is_read_as_docker_reads_it() {
        let text = format!(
            r#"{{"os":"linux","architecture":"amd64","created":"2024-01-01T00:00:00Z","config":{{
            "Env":["A=1","B=x=y","bare","=z","C="],"WorkingDir":"/srv","User":"app:staff",
            "Entrypoint":["/bin/x"],"Cmd":["a","b"],"StopSignal":"SIGQUIT","Labels":{{"l":"m"}},
            "ExposedPorts":{{"80/tcp":{{}}}}}},"rootfs":{{"type":"layers","diff_ids":["sha256:{HEX}"]}}}}"#
        );
        let Configuration { run, diff_ids } = Configuration::parse(text.as_bytes(), "x").unwrap();
        let env = [("A", "1"), ("B", "x=y"), ("C", "")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(run.env, env);
        assert_eq!(run.working_dir.as_deref(), Some("/srv".as_ref()));
        assert_eq!(run.user.as_deref(), Some("app:staff"));
        assert_eq!(
            (run.entrypoint, run.cmd),
            (vec!["/bin/x".to_owned()], vec!["a".to_owned(), "b".to_owned()])
        );
        assert_eq!(
            (run.stop_signal.as_deref(), run.exposed_ports),
            (Some("SIGQUIT"), vec!["80/tcp".to_owned()])
        );
        assert_eq!(diff_ids.len(), 1);
        // What docker leaves empty.
        let bare = r#"{"config":{"Env":null,"Cmd":null,"User":"","WorkingDir":"","Labels":null},"rootfs":{"diff_ids":null}}"#;
        let bare = Configuration::parse(bare.as_bytes(), "x").unwrap();
        assert_eq!((bare.run, bare.diff_ids.len()), (super::ImageConfig::default(), 0));
        assert!(Configuration::parse(br#"{"config":null,"rootfs":{}}"#, "x").is_ok());
        for (text, why) in [
            (r#"{"os":"windows","rootfs":{}}"#, "it is for windows/"),
            (r#"{"architecture":"arm64","rootfs":{}}"#, "this machine is linux/amd64"),
            (r#"{"architecture":"amd64","variant":"v9","rootfs":{}}"#, "for /amd64/v9, and"),
            (r#"{"rootfs":{"diff_ids":["sha256:../../x"]}}"#, "no digest"),
            (r#"{"config":{}}"#, "rootfs"),
        ] {
            let error = Configuration::parse(text.as_bytes(), "x").unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let _ = Document::parse(&bytes, "");
            let _ = Configuration::parse(&bytes, "x");
            let mut text = manifest(&layer("", "")).into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            let _ = Document::parse(&text, "");
        }
    }
}
