//! What a caller does with the images in layers of a state directory.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::config::host_path::HostPath;
use crate::config::image::ImageConfig;
use crate::error::{Error, Result};
use crate::image::cache::add;
use crate::image::catalog::{self, All, Catalog, Unread};
use crate::image::digest::Digest;
use crate::image::layer::without_ids;
use crate::image::layout;
use crate::image::lock::{Lease, Lock};
use crate::image::name::Name;
use crate::image::options::PullOptions;
use crate::image::place::Place;
use crate::image::pull::{self, Known};
use crate::image::record::Record;
use crate::image::reference::Reference;
use crate::snapshot;
use crate::store::State;
use crate::store::collected::Collected;
use crate::store::name::SnapshotName;
use crate::store::once;
use crate::store::subordinate::Subordinate;
use crate::wait::Deadline;

/// The fewest digits that stand for a digest.
const FEWEST_DIGITS: usize = 6;

/// The images in layers of a state directory: fetched, imported, listed and removed.
///
/// ```no_run
/// use adl_runtime::{Config, Image, Images, Progress, PullOptions, Sandbox};
///
/// let images = Images::open(None)?;
/// let tell = |progress: &Progress| eprintln!("{progress}");
/// images.pull("debian:12", &PullOptions { progress: Some(&tell), ..PullOptions::default() })?;
/// let image = Image::reference("debian:12");
/// let sandbox = Sandbox::create(Config { image, ..Config::default() })?;
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Debug)]
pub struct Images {
    state: State,
}

/// What is known of an image in layers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// The whole names that lead to it, sorted, as `docker.io/library/debian:12`. There is none
    /// where it was made of a file or a directory for a sandbox, or its name leads to a newer one.
    pub names: Vec<String>,
    /// The digest of its manifest.
    pub digest: String,
    /// The digests of its layers, the lowest first.
    pub layers: Vec<String>,
    /// How many bytes its layers have, as they came.
    pub size: u64,
    /// When a sandbox was last made of it, to a minute.
    pub last_used: Option<SystemTime>,
    /// What it says of commands.
    pub config: ImageConfig,
}

/// A directory that was made for sandboxes, of the host's files, an archive or a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MadeImage {
    /// Its name: `host-`, `private-` and `own-` are of the host, `tar-` of an archive, `copy-` and
    /// `flat-` of what a btrfs upper lies on.
    pub name: String,
    /// How many bytes it takes on disk.
    pub size: u64,
    /// When a sandbox was last made of it, to a minute.
    pub last_used: Option<SystemTime>,
}

impl Images {
    /// Opens those of a state directory, as [`Config::state_directory`] names it.
    ///
    /// [`Config::state_directory`]: crate::Config::state_directory
    ///
    /// # Errors
    /// [`Error::Io`] if it can't be opened, and as [`Sandbox::create`](crate::Sandbox::create).
    pub fn open(state_directory: Option<&Path>) -> Result<Self> {
        Ok(Self { state: State::open(state_directory)? })
    }

    /// Fetches an image from its registry and unpacks it, also where it is there: what the name
    /// stands for may be another by now. What is there of it is not fetched again.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no name, [`Error::Pull`] where it can't be fetched,
    /// [`Error::TimedOut`], [`Error::Unsupported`] where nothing is installed that can fetch it, or
    /// it is for other machines; what unpacking layers may say, when nothing of them is left.
    pub fn pull(&self, name: &str, options: &PullOptions<'_>) -> Result<ImageInfo> {
        let reference = Reference::parse(name)?;
        let lease = pull::pull(&self.state, &reference, options, Known::IsOld)?;
        Ok(self.info(&Catalog::open(&self.state)?.names()?.read, &lease))
    }

    /// Whether an image is there, for sandboxes with so many ids ([`PullOptions::ids`]).
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no name; [`Error::Io`] if it can't be read.
    pub fn is_there(&self, name: &str, ids: Option<u32>) -> Result<bool> {
        let reference = Reference::parse(name)?;
        let ids = Subordinate::asked_for(ids)?;
        let Some(catalog) = Catalog::open_if_any(&self.state)? else { return Ok(false) };
        match catalog.named(&reference.to_string())? {
            Some(lease) => Ok(lease.record().open_layers(&self.state, ids)?.is_some()),
            None => Ok(false),
        }
    }

    /// Fetches an image, unless it is there.
    ///
    /// # Errors
    /// As [`Images::pull`].
    pub fn pull_if_missing(&self, name: &str, options: &PullOptions<'_>) -> Result<()> {
        if self.is_there(name, options.ids)? {
            return Ok(());
        }
        let reference = Reference::parse(name)?;
        pull::pull(&self.state, &reference, options, Known::Suffices).map(drop)
    }

    /// Unpacks an image of a file or a directory, as [`Image::layers`](crate::Image::layers) takes
    /// them, and gives it a name; without one, its own.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no image, and where it has no name; as [`Images::pull`].
    pub fn import(
        &self,
        path: impl Into<HostPath>,
        which: Option<&str>,
        name: Option<&str>,
        options: &PullOptions<'_>,
    ) -> Result<ImageInfo> {
        let path = path.into();
        let name = name.map(Name::given).transpose()?;
        let deadline = Deadline::after(options.timeout);
        let place = Place::open(&path, self.state.path(), options.caps, deadline)?;
        let chosen = layout::choose(&place, layout::images(&place)?, which)?;
        let names: Vec<Name> = match name {
            Some(name) => vec![name],
            None => {
                let said = chosen.names.iter().filter_map(|name| Name::said(name));
                said.collect::<BTreeSet<Name>>().into_iter().collect()
            }
        };
        let shown = path.full_path();
        if names.is_empty() {
            return Err(Error::invalid("image", format!("{shown:?} says no name: give it one")));
        }
        let whole = layout::read(&place, &chosen, &shown.display().to_string())?;
        let catalog = Catalog::open(&self.state)?;
        let lease = add(&self.state, &catalog, &place, &whole, &names, options, deadline)?;
        Ok(self.info(&catalog.names()?.read, &lease))
    }

    /// All that there are, by their names; at the end, of each that can't be read, why.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory can't be read.
    pub fn list(&self) -> Result<Vec<Result<ImageInfo>>> {
        let Some(catalog) = Catalog::open_if_any(&self.state)? else { return Ok(Vec::new()) };
        let (names, images) = (catalog.names()?, catalog.images()?);
        let mut all: Vec<_> = images.read.iter().map(|known| info(&names.read, known)).collect();
        all.sort_by(|one, other| (&one.names, &one.digest).cmp(&(&other.names, &other.digest)));
        let unread = images.unread.into_iter().chain(names.unread);
        Ok(all.into_iter().map(Ok).chain(unread.map(|unread| Err(unread.error))).collect())
    }

    /// What was made of the host, of archives and of copies for sandboxes, by its names.
    ///
    /// # Errors
    /// [`Error::Io`] if it can't be read.
    pub fn made(&self) -> Result<Vec<MadeImage>> {
        let made = |(name, last_used): (String, _)| {
            let size = once::size(&self.state, &name)?;
            Ok(MadeImage { name, size, last_used })
        };
        once::kept(&self.state)?.into_iter().map(made).collect()
    }

    fn info(&self, names: &[(String, Digest)], lease: &Lease) -> ImageInfo {
        let (record, last_used) = (lease.record().clone(), lease.last_used().ok());
        info(names, &catalog::Known { record, last_used })
    }

    /// What is known of an image, by a name, a digest, or at least six digits that one begins with.
    ///
    /// # Errors
    /// [`Error::NoImage`]
    pub fn get(&self, name: &str) -> Result<ImageInfo> {
        let none = || Error::NoImage { name: name.to_owned() };
        let catalog = Catalog::open_if_any(&self.state)?.ok_or_else(none)?;
        let lease = self.find(&catalog, name)?.lease;
        Ok(self.info(&catalog.names()?.read, &lease))
    }

    /// The manifest and the configuration of an image, as they came: JSON.
    ///
    /// # Errors
    /// As [`Images::get`].
    pub fn documents(&self, name: &str) -> Result<[Vec<u8>; 2]> {
        let none = || Error::NoImage { name: name.to_owned() };
        let catalog = Catalog::open_if_any(&self.state)?.ok_or_else(none)?;
        let lease = self.find(&catalog, name)?.lease;
        let read = |digest| catalog.blob(digest)?.ok_or_else(none);
        let Record { digest, config_digest, .. } = lease.record();
        Ok([read(digest)?, read(config_digest)?])
    }

    fn find(&self, catalog: &Catalog, name: &str) -> Result<Meant> {
        if let Ok(reference) = Reference::parse(name) {
            let whole = reference.to_string();
            if let Some(lease) = catalog.named(&whole)? {
                return Ok(Meant { lease, name: Some(whole) });
            }
        }
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let mut found = Vec::new();
        if digits.len() >= FEWEST_DIGITS && digits.bytes().all(is_digit) {
            let digests = catalog.images()?.read.into_iter().map(|known| known.record.digest);
            found.extend(digests.filter(|it| it.to_string().contains(&format!(":{digits}"))));
        }
        let lease = match (found.pop(), found.is_empty()) {
            (Some(digest), true) => Some(catalog.image(&digest)?),
            (Some(_), false) => {
                let why = format!("several digests begin with {name:?}");
                return Err(Error::invalid("image", why));
            }
            (None, _) => None,
        };
        let none = || Error::NoImage { name: name.to_owned() };
        Ok(Meant { lease: lease.flatten().ok_or_else(none)?, name: None })
    }

    /// Removes an image, or of one with several names that name, and returns what was removed. By
    /// its digest, it is removed with all its names; [`Images::made`] has names of its own.
    ///
    /// # Errors
    /// [`Error::NoImage`]; [`Error::Busy`] where a sandbox or a snapshot lies on it; it stays then.
    pub fn remove(&self, name: &str) -> Result<Vec<String>> {
        if once::kept(&self.state)?.iter().any(|(kept, _)| kept == name) {
            let busy = |by: String| Error::Busy { what: format!("the image {name}"), by };
            if let Some((snapshot, _)) = self.snapshots_on(name)?.first() {
                return Err(busy(format!("the snapshot {:?}", snapshot.as_str())));
            }
            return match once::remove_kept(&self.state, name, None)? {
                true => Ok(vec![name.to_owned()]),
                false => Err(busy("a sandbox".to_owned())),
            };
        }
        let none = || Error::NoImage { name: name.to_owned() };
        let catalog = Catalog::open_if_any(&self.state)?.ok_or_else(none)?;
        let lock = catalog.lock_alone()?;
        let Meant { lease, name } = self.find(&catalog, name)?;
        let all = catalog.names()?.read;
        let names: Vec<&String> = all
            .iter()
            .filter(|(_, digest)| *digest == lease.record().digest)
            .map(|(name, _)| name)
            .collect();
        if let Some(name) = &name
            && names.iter().any(|other| *other != name && !other.starts_with("file:"))
        {
            catalog.remove_name(name)?;
            return Ok(vec![name.clone()]);
        }
        let names = names.into_iter().cloned().collect();
        let mut others = catalog.images()?;
        others.read.retain(|other| other.record.digest != lease.record().digest);
        self.remove_image(&catalog, &lock, lease, names, &others)
    }

    /// Removes what no one has used for so long: images, and what was made of the host, of archives
    /// and of copies; also layers that are no image's. What is in use stays. Returns what was
    /// removed.
    ///
    /// # Errors
    /// [`Error::Uncollected`] with all that could not be removed or read, and with what was removed;
    /// [`Error::Busy`] while someone adds an image.
    pub fn prune(&self, unused_for: Duration) -> Result<Vec<String>> {
        let mut collected = Collected::default();
        if let Some(catalog) = Catalog::open_if_any(&self.state)? {
            let lock = catalog.lock_alone()?;
            self.prune_catalog(&catalog, &lock, unused_for, &mut collected)?;
        }
        let since = SystemTime::now().checked_sub(unused_for).unwrap_or(SystemTime::UNIX_EPOCH);
        for (name, _) in once::kept(&self.state)? {
            let remove = || match self.snapshots_on(&name)?.is_empty() {
                true => once::remove_kept(&self.state, &name, Some(since)),
                false => Ok(false),
            };
            collected.one(&name, remove());
        }
        collected.done()
    }

    fn prune_catalog(
        &self,
        catalog: &Catalog,
        lock: &Lock,
        unused_for: Duration,
        collected: &mut Collected,
    ) -> Result<()> {
        let names = catalog.names()?;
        let images = catalog.images()?;
        for unread in images.unread.into_iter().chain(names.unread) {
            match catalog.remove_unread(&unread, unused_for) {
                Ok(true) => collected.removed(unread.name()),
                Ok(false) => collected.failed(unread.error),
                Err(error) => collected.failed(error),
            }
        }
        let is_old = |known: &catalog::Known| {
            let unused = known.last_used.and_then(|last| last.elapsed().ok());
            unused.is_some_and(|unused| unused >= unused_for)
        };
        let old = images.read.iter().filter(|known| is_old(known));
        let old: Vec<Digest> = old.map(|known| known.record.digest.clone()).collect();
        // What is known of the others is read once: no one adds one meanwhile.
        let mut others = All { read: images.read, unread: catalog.images()?.unread };
        for digest in old {
            let own = names.read.iter().filter(|(_, of)| *of == digest);
            let own = own.map(|(name, _)| name.clone()).collect();
            let Some(at) = others.read.iter().position(|other| other.record.digest == digest)
            else {
                continue;
            };
            let this = others.read.swap_remove(at);
            let removed = match catalog.image(&digest) {
                Ok(Some(lease)) => self.remove_image(catalog, lock, lease, own, &others),
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            if removed.is_err() {
                others.read.push(this);
            }
            match removed {
                Ok(names) => names.iter().for_each(|name| collected.removed(name)),
                Err(Error::Busy { .. }) => {}
                Err(error) => collected.failed(error),
            }
        }
        // Names that lead nowhere.
        for (name, digest) in names.read {
            if matches!(catalog.image(&digest), Ok(None)) {
                catalog.remove_name(&name)?;
            }
        }
        match self.remove_orphans(catalog, lock) {
            Ok(removed) => removed.iter().for_each(|name| collected.removed(name)),
            Err(error) => collected.failed(error),
        }
        Ok(())
    }

    /// The snapshots that lie on a directory of images.
    fn snapshots_on(&self, name: &str) -> Result<Vec<(SnapshotName, OsString)>> {
        let mut all = snapshot::images_in_use(&self.state)?;
        all.retain(|(_, image)| image == name);
        Ok(all)
    }

    /// Removes an image, its names, and the layers that are no other's.
    fn remove_image(
        &self,
        catalog: &Catalog,
        lock: &Lock,
        lease: Arc<Lease>,
        names: Vec<String>,
        others: &All<catalog::Known>,
    ) -> Result<Vec<String>> {
        let digest = lease.record().digest.clone();
        let shown = names.first().cloned().unwrap_or_else(|| digest.to_string());
        let busy = |by: String| Error::Busy { what: format!("the image {shown}"), by };
        let in_use = || busy("a sandbox, or by who fetches another with its layers".to_owned());
        let lease = Arc::into_inner(lease).ok_or_else(in_use)?.try_alone()?.ok_or_else(in_use)?;
        let mine = self.layers_of(lease.record());
        let theirs: BTreeSet<String> =
            others.read.iter().flat_map(|other| self.layers_of(&other.record)).collect();
        let mut unused: Vec<&String> = mine.iter().filter(|name| !theirs.contains(*name)).collect();
        if others.unread.iter().any(Unread::is_image) {
            // It is not known which layers it has. Those that are none's are removed later.
            unused.clear();
        }
        for (snapshot, layer) in snapshot::images_in_use(&self.state)? {
            let layer = layer.to_string_lossy();
            if unused.iter().any(|name| *name == without_ids(&layer)) {
                return Err(busy(format!("the snapshot {:?}", snapshot.as_str())));
            }
        }
        for name in &names {
            catalog.remove_name(name)?;
        }
        catalog.remove_image(lease.record(), others)?;
        for name in once::layers(&self.state)? {
            if unused.iter().any(|unused| *unused == without_ids(&name)) {
                once::remove(&self.state, &name)?;
            }
        }
        catalog.remove_unfinished(lock)?;
        Ok(if names.iter().all(|name| name.starts_with("file:")) {
            vec![digest.to_string()]
        } else {
            names.into_iter().filter(|name| !name.starts_with("file:")).collect()
        })
    }

    /// The names of the directories of an image's layers, whichever ids their owners are of.
    fn layers_of(&self, record: &Record) -> BTreeSet<String> {
        let names = record.diff_ids().into_iter().map(crate::image::layer::name);
        names.chain(record.above.clone()).collect()
    }

    /// Removes layers that no image and no snapshot lies on, as one leaves that was ended while it
    /// unpacked them.
    fn remove_orphans(&self, catalog: &Catalog, _lock: &Lock) -> Result<Vec<String>> {
        let images = catalog.images()?;
        if images.unread.iter().any(Unread::is_image) {
            // It is not known which layers it has.
            return Ok(Vec::new());
        }
        catalog.remove_blobs_but(&images.read)?;
        let mut used: BTreeSet<String> =
            images.read.iter().flat_map(|known| self.layers_of(&known.record)).collect();
        let by_snapshots = snapshot::images_in_use(&self.state)?;
        let by_snapshots = by_snapshots.iter().filter_map(|(_, layer)| layer.to_str());
        used.extend(by_snapshots.map(|layer| without_ids(layer).to_owned()));
        let mut removed = Vec::new();
        for name in once::layers(&self.state)? {
            if !used.contains(without_ids(&name)) {
                once::remove(&self.state, &name)?;
                removed.push(name);
            }
        }
        Ok(removed)
    }
}

/// What is known of an image, for callers.
fn info(names: &[(String, Digest)], known: &catalog::Known) -> ImageInfo {
    let record = &known.record;
    let names = names.iter().filter(|(name, digest)| {
        *digest == record.digest && Reference::parse(name).is_ok_and(|own| own.to_string() == *name)
    });
    ImageInfo {
        names: names.map(|(name, _)| name.clone()).collect(),
        digest: record.digest.to_string(),
        layers: record.layers.iter().map(|layer| layer.digest.to_string()).collect(),
        size: record.layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.size)),
        last_used: known.last_used,
        config: record.config().clone(),
    }
}

/// An image that was found, and the whole name by which it was.
struct Meant {
    lease: Arc<Lease>,
    name: Option<String>,
}

/// Removes what those have left who were ended while they fetched an image or removed one.
pub(crate) fn collect(state: &State, collected: &mut Collected) {
    let mut collect = || -> Result<Vec<String>> {
        let Some(catalog) = Catalog::open_if_any(state)? else { return Ok(Vec::new()) };
        let mut removed = catalog.collect()?;
        // While someone adds an image, it has layers and no record.
        if let Some(lock) = catalog.try_alone()? {
            catalog.remove_unfinished(&lock)?;
            let images = Images { state: state.clone() };
            removed.extend(images.remove_orphans(&catalog, &lock)?);
        }
        for unread in catalog.images()?.unread.into_iter().chain(catalog.names()?.unread) {
            collected.failed(unread.error);
        }
        Ok(removed)
    };
    match collect() {
        Ok(removed) => removed.iter().for_each(|name| collected.removed(name)),
        Err(error) => collected.failed(error),
    }
}
