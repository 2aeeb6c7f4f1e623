//! The hold of a process on a snapshot: while it is there, no one can remove that.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant, SystemTime};

use super::record::{self, Record, open_record, read};
use super::removal::remove_unused;
use crate::config::image::ImageSays;
use crate::error::{Error, Result};
use crate::root::stack::{Layer, Stack};
use crate::store::State;
use crate::store::directories::Directories;
use crate::store::name::{PartName, SnapshotName};
use crate::sys;
use crate::sys::lock::lock;
use crate::sys::owner::{Owner, PerProcess};

/// A snapshot that can't be removed for as long as this is there, nor can what it lies on. A
/// process has one of each at most.
#[derive(Debug)]
pub(crate) struct Lease {
    name: SnapshotName,
    /// The state directory.
    state: PathBuf,
    /// Where it is.
    directories: Arc<Directories>,
    record: Record,
    /// Its record's file, locked together with others.
    file: File,
    /// Who drops it as the last one removes a snapshot without a name.
    owner: Option<Owner>,
}

/// Those that there are in this process, by the paths of their directories.
static LEASES: PerProcess<Mutex<All>> = PerProcess::new();

type All = BTreeMap<PathBuf, Weak<Lease>>;

fn all() -> MutexGuard<'static, All> {
    lock(LEASES.get())
}

fn known(path: &Path) -> Option<Arc<Lease>> {
    known_of(&all(), path)
}

fn known_of(all: &All, path: &Path) -> Option<Arc<Lease>> {
    all.get(path).and_then(Weak::upgrade)
}

/// How long someone may take who looks whether a snapshot can be removed.
const PATIENCE: Duration = Duration::from_secs(2);

impl Lease {
    pub(super) fn open(state: &State, name: &SnapshotName) -> Result<Arc<Self>> {
        let directories = state.snapshots()?;
        let path = directories.path(name.as_str());
        if let Some(known) = known(&path) {
            return Ok(known);
        }
        let none = || Error::NoSnapshot { name: name.to_string() };
        let file = open_record(&directories, name)?.ok_or_else(none)?;
        let end = Instant::now() + PATIENCE;
        loop {
            let locked = file.try_lock_shared();
            // Since it was opened it may have been removed, or moved aside to be; then another may
            // have the name.
            if !record::is_there(&directories, name, &file) {
                return Self::open(state, name);
            }
            match locked {
                Ok(()) => break,
                // Someone looks whether it can be removed.
                Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::yield_now(),
                Err(TryLockError::WouldBlock) => return Err(none()),
                Err(TryLockError::Error(error)) => return Err(Error::at("flock", &path)(error)),
            }
        }
        let record =
            read(&file, name).map_err(Error::at("read", &record::path(&directories, name)))?;
        let this = Self::new(state.path(), directories, name.clone(), record, file);
        let mut all = all();
        if let Some(known) = known_of(&all, &path) {
            // Another thread came first. No lock is held where what this has locked is let go of.
            drop(all);
            sys::unlock(&this.file);
            return Ok(known);
        }
        all.insert(path, Arc::downgrade(&this));
        Ok(this)
    }

    /// Of a snapshot that was just made.
    pub(super) fn publish(
        state: &Path,
        directories: Arc<Directories>,
        name: SnapshotName,
        record: Record,
        file: File,
    ) -> Arc<Self> {
        let path = directories.path(name.as_str());
        let this = Self::new(state, directories, name, record, file);
        let mut all = all();
        all.retain(|_, held| held.strong_count() != 0);
        all.insert(path, Arc::downgrade(&this));
        this
    }

    /// Lets go of it, for the caller to remove it.
    pub(super) fn into_name(mut self) -> (Arc<Directories>, SnapshotName) {
        sys::unlock(&self.file);
        self.owner = None;
        (Arc::clone(&self.directories), self.name.clone())
    }

    /// The lock that it has, for who takes it to parts.
    pub(super) fn lock_again(&self) -> Result<File> {
        let path = || record::path(&self.directories, &self.name);
        self.file.try_clone().map_err(|error| Error::at("dup", &path())(error))
    }

    /// What it is made of. It is locked for as long as what [`Self::lock_again`] returned is open.
    pub(super) fn into_parts(mut self) -> (Arc<Directories>, SnapshotName, Record) {
        self.owner = None;
        (Arc::clone(&self.directories), self.name.clone(), self.record.clone())
    }

    /// When it was made.
    pub(super) fn made_at(&self) -> Option<SystemTime> {
        self.file.metadata().and_then(|metadata| metadata.modified()).ok()
    }

    pub(super) fn name(&self) -> &SnapshotName {
        &self.name
    }

    fn new(
        state: &Path,
        directories: Arc<Directories>,
        name: SnapshotName,
        record: Record,
        file: File,
    ) -> Arc<Self> {
        let owner = Some(Owner::this_process());
        Arc::new(Self { name, state: state.to_owned(), directories, record, file, owner })
    }

    /// Refuses a fork of the process that holds it.
    pub(super) fn check_own(&self) -> Result<()> {
        self.owner.map_or(Ok(()), |owner| owner.check("the snapshot"))
    }

    /// The state directory.
    pub(super) fn directories(&self) -> &Directories {
        &self.directories
    }

    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// What the image that it lies on says of commands in it.
    pub(crate) fn says(&self) -> Option<&ImageSays> {
        self.record.says.as_ref()
    }

    /// Opens its stacks, but the sources of volumes and the parts of snapshots.
    pub(crate) fn stacks(&self) -> Result<Vec<Stack>> {
        self.record.open(&self.state, &self.directories)
    }

    /// A part of it, as a layer.
    pub(crate) fn layer(&self, part: PartName) -> Layer {
        Layer::Snapshot {
            directories: Arc::clone(&self.directories),
            snapshot: self.name.clone(),
            part,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.owner.is_some_and(Owner::is_this_process) {
            return;
        }
        // By itself it would go when the last copy of the descriptor does: of a fork, or of a child
        // that is on its way to its program.
        sys::unlock(&self.file);
        if self.name.is_own() {
            // Where it can't be removed, someone uses it, or the collector will say why.
            let _ = remove_unused(&self.directories, &self.name, &mut Vec::new());
        }
    }
}
