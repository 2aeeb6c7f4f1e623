//! What a sandbox had written, kept on disk for others to begin with.
//!
//! A snapshot is the directory that a sandbox had, moved to where snapshots are in the state
//! directory, with a record of what it lies on. The record is also its lock: who uses the snapshot,
//! or one that lies on it, has locked it with others, and who removes it has locked it alone.

mod lease;
mod record;
mod removal;
mod replace;
mod users;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

pub(crate) use self::lease::Lease;
use self::record::{Record, names, write_record};
pub(crate) use self::removal::collect;
use self::removal::remove;
use self::users::Entry;
use crate::config::image::{Image, ImageSays};
use crate::config::{Config, Upper};
use crate::error::{Error, Result};
use crate::root::image::OpenedImage;
use crate::root::stack::Stack;
use crate::store::State;
use crate::store::directories::Directories;
use crate::store::directory::SandboxDirectory;
use crate::store::name::{PartName, SnapshotName};

/// How [`crate::Sandbox::snapshot_with`] makes a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// Its name, unique in the state directory, by the rules of [`Config::name`]. By default it has
    /// none, and is removed when neither a [`Snapshot`] nor a sandbox or snapshot on it is there
    /// any more.
    pub name: Option<String>,
    /// What becomes of the processes in the sandbox.
    pub running: IfRunning,
}

/// What becomes of processes that run in a sandbox of which a snapshot is made: they could be in
/// the middle of what they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IfRunning {
    /// There is no snapshot, but [`Error::Busy`].
    #[default]
    Refuse,
    /// They are killed first.
    End,
}

/// That a snapshot did not get the name of another, with the snapshot: what is in it is not lost.
#[derive(Debug)]
pub struct ReplaceError {
    /// Why.
    pub error: Error,
    /// The snapshot, as it was. `None` where it was renamed by half: then it is gone.
    pub snapshot: Option<Snapshot>,
}

impl fmt::Display for ReplaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for ReplaceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// What a sandbox had written at a moment, on disk, as the image of others.
///
/// It holds all that was changed of the root file system and of volumes that are copied on write,
/// and nothing that was in memory: no process, `/dev/shm` or tmpfs. It lies on the image, which
/// must stay as it is, and on earlier snapshots, which can't be deleted. As any file, it outlives a
/// crash of the machine when the kernel has written it back, after half a minute or sync(1).
///
/// ```no_run
/// use adl_runtime::{Config, Sandbox};
///
/// let sandbox = Sandbox::create(Config::default())?;
/// sandbox.shell("install-what-takes-long").status()?;
/// let snapshot = sandbox.snapshot()?;
/// let forks: Vec<Sandbox> =
///     (0..100).map(|_| Sandbox::create(snapshot.config())).collect::<Result<_, _>>()?;
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Debug)]
pub struct Snapshot(Arc<Lease>);

impl Snapshot {
    /// Opens the snapshot of a name; `state_directory` is as in [`Config`].
    ///
    /// # Errors
    /// [`Error::NoSnapshot`] if there is none, [`Error::Io`] if it can't be read.
    pub fn open(state_directory: Option<&Path>, name: &str) -> Result<Self> {
        let name = SnapshotName::given(name)?;
        Ok(Self(Lease::open(&State::open(state_directory)?, &name)?))
    }

    /// The names of all snapshots that have one, sorted.
    ///
    /// # Errors
    /// [`Error::Io`] if the state directory can't be read.
    pub fn list(state_directory: Option<&Path>) -> Result<Vec<String>> {
        let Some(directories) = State::open(state_directory)?.snapshots_if_any()? else {
            return Ok(Vec::new());
        };
        let mut names = names(&directories)?;
        names.retain(|name| !name.is_own());
        names.sort_unstable();
        Ok(names.iter().map(SnapshotName::to_string).collect())
    }

    /// Its name. One that begins with a dot was made up, since the caller gave none.
    pub fn name(&self) -> &str {
        self.0.name().as_str()
    }

    /// The configuration of the sandbox that it was made of, without its name and with the snapshot
    /// as its image: what [`crate::Sandbox::create`] makes a fork of.
    pub fn config(&self) -> Config {
        Config {
            image: self.image(),
            name: None,
            state_directory: Some(self.0.state().to_owned()),
            ..self.0.record().config.clone()
        }
    }

    /// This snapshot as an image.
    pub fn image(&self) -> Image {
        Image::snapshot(self.name())
    }

    /// Removes it: its name at once, what is on disk soon after, as with
    /// [`crate::Sandbox::delete`].
    ///
    /// # Errors
    /// [`Error::Busy`] if a sandbox or another snapshot lies on it; it stays then.
    pub fn delete(self) -> Result<()> {
        self.0.check_own()?;
        // What this handle holds is in no one's way; what a sandbox of this process does, is.
        let Some(this) = Arc::into_inner(self.0) else { return Err(used_here()) };
        let (directories, name) = this.into_name();
        remove(&directories, &name)
    }

    /// Removes the snapshot of a name, also one whose record can't be read any more.
    ///
    /// # Errors
    /// As [`Snapshot::open`] and [`Snapshot::delete`].
    pub fn remove(state_directory: Option<&Path>, name: &str) -> Result<()> {
        let name = SnapshotName::given(name)?;
        match State::open(state_directory)?.snapshots_if_any()? {
            Some(directories) => remove(&directories, &name),
            None => Err(Error::NoSnapshot { name: name.to_string() }),
        }
    }

    /// Gives this one, which has no name, one that another may have: that is removed, or, where
    /// this one lies on it, has none from now on, and is removed with this one. At any moment one
    /// of them has the name.
    ///
    /// # Errors
    /// [`Error::Busy`] if a sandbox or a snapshot but this one lies on the other, or a sandbox of
    /// this process on this one; [`Error::NameInUse`] if this one has a name. The error has the
    /// snapshot with it, as it was.
    pub fn replace(self, name: &str) -> std::result::Result<Self, ReplaceError> {
        let name = match self.0.check_own().and_then(|()| SnapshotName::given(name)) {
            Ok(name) if self.0.name().is_own() => name,
            Ok(_) => {
                let error = Error::NameInUse { name: self.name().to_owned() };
                return Err(ReplaceError { error, snapshot: Some(self) });
            }
            Err(error) => return Err(ReplaceError { error, snapshot: Some(self) }),
        };
        replace::replace(self.0, &name).map(Self)
    }

    /// When it was made; `None` if the file system does not tell.
    pub fn made_at(&self) -> Option<SystemTime> {
        self.0.made_at()
    }

    /// The snapshot that it lies on directly, if there is one. A name that begins with a dot was
    /// made up.
    pub fn lies_on(&self) -> Option<&str> {
        self.0.record().below().map(SnapshotName::as_str)
    }

    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.0
    }
}

/// That something of this process uses a snapshot.
fn used_here() -> Error {
    Error::Busy {
        what: "the snapshot".to_owned(),
        by: "a sandbox of this process, or another handle of it".to_owned(),
    }
}

/// Opens a snapshot as the image of a sandbox with such an upper.
pub(crate) fn open_image(
    state: &State,
    name: &str,
    upper: Upper,
) -> Result<(OpenedImage, Arc<Lease>)> {
    let name = SnapshotName::parse(name)?;
    let this = Lease::open(state, &name)?;
    let is_btrfs = this.record().is_on_btrfs();
    if is_btrfs != matches!(upper, Upper::Btrfs { .. }) {
        let why = "it was made of a sandbox with the upper `btrfs`, or this one is to have that; \
                   both must or neither";
        return Err(Error::invalid("snapshot", format!("{:?}: {why}", name.as_str())));
    }
    let mut opened = OpenedImage::default();
    for mut stack in this.stacks()? {
        // What changes from now on are changes to this snapshot.
        stack.changed = 0;
        if stack.is_volume { opened.volumes.push(stack) } else { opened.stacks.push(stack) }
    }
    Ok((opened, this))
}

/// The images in the state directory that snapshots lie on, by the names of their directories.
///
/// # Errors
/// [`Error::Io`] where it can't be read what one lies on.
pub(crate) fn images_in_use(state: &State) -> Result<Vec<(SnapshotName, OsString)>> {
    let Some(directories) = state.snapshots_if_any()? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for name in names(&directories)? {
        // One that was removed meanwhile lies on nothing.
        let Some(file) = record::open_record(&directories, &name)? else { continue };
        let record = record::read(&file, &name)
            .map_err(Error::at("read", &record::path(&directories, &name)))?;
        found.extend(record.images().map(|image| (name.clone(), image.to_owned())));
    }
    Ok(found)
}

/// A snapshot that is being made.
pub(crate) struct PendingSnapshot {
    /// The state directory.
    state: PathBuf,
    directories: Arc<Directories>,
    name: SnapshotName,
    /// Keeps the name; `None` where that is one of its own, and once it is a snapshot's.
    reserved: Option<OwnedFd>,
    /// The record, and its file, until they are the snapshot's.
    written: Option<(Record, File)>,
    /// The snapshot that it lies on, and what tells that of it until it is one.
    below: Option<(SnapshotName, Entry)>,
}

impl PendingSnapshot {
    /// Writes down what a sandbox's directory is to become, while it is that still.
    pub(crate) fn begin(
        state: &State,
        directory: &SandboxDirectory,
        config: &Config,
        says: Option<&ImageSays>,
        stacks: &[(&Stack, PartName)],
        name: Option<SnapshotName>,
    ) -> Result<Self> {
        let directories = state.snapshots()?;
        let (name, reserved) = match name {
            None => (SnapshotName::own(), None),
            Some(name) => match directories.reserve(name.as_str())? {
                None => return Err(Error::NameInUse { name: name.to_string() }),
                reserved => (name, reserved),
            },
        };
        let state_directory = state.path().to_owned();
        // From here on, dropping it undoes everything.
        let mut this = Self {
            state: state_directory,
            directories,
            name,
            reserved,
            written: None,
            below: None,
        };
        users::make(directory.as_fd())
            .map_err(Error::at("make a directory in", directory.path()))?;
        let (record, file) = write_record(state, directory, config, says, stacks, &this.name)?;
        if let Some(below) = record.below() {
            let entry = Entry::of(&this.name, &file)
                .map_err(Error::at("stat the record in", directory.path()))?;
            let (below, entry) = this.below.insert((below.clone(), entry));
            entry.add(&this.directories, below)?;
        }
        this.written = Some((record, file));
        Ok(this)
    }

    /// Makes a snapshot of the directory, of which nothing is used any more. Nothing here needs a
    /// descriptor that there might not be.
    pub(crate) fn publish(mut self, directory: &mut SandboxDirectory) -> Result<Snapshot> {
        let Some((record, file)) = self.written.take() else { return Err(Error::SandboxDied) };
        self.directories.take_in(directory, self.name.as_str())?;
        self.reserved = None;
        self.below = None;
        let (directories, name) = (Arc::clone(&self.directories), self.name.clone());
        Ok(Snapshot(Lease::publish(&self.state, directories, name, record, file)))
    }
}

impl Drop for PendingSnapshot {
    fn drop(&mut self) {
        // In this order: by then the name may be another's, which the entry is not for.
        if let Some((below, entry)) = &self.below {
            entry.remove(&self.directories, below);
        }
        if self.reserved.is_some() {
            self.directories.give_up(self.name.as_str());
        }
    }
}
