//! Who uses a snapshot, and its end when no one does.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::errno::Errno;

use super::record::{RECORD, Record, open_record, read};
use crate::error::{Error, Result};
use crate::owner::Owner;
use crate::remove::{Remains, entries, remove_later};
use crate::root::Layer;
use crate::state::State;

/// A snapshot that can't be removed for as long as this is there. A process has one of each at most.
#[derive(Debug)]
pub(crate) struct Held {
    name: String,
    /// The state directory.
    state: PathBuf,
    /// The snapshot's own directory.
    path: PathBuf,
    record: Record,
    /// Its record's file, locked together with others.
    file: File,
    /// Who drops it as the last one removes a snapshot without a name.
    owner: Option<Owner>,
}

/// Those that there are in this process, by the paths of their directories.
static HELD: Mutex<BTreeMap<PathBuf, Weak<Held>>> = Mutex::new(BTreeMap::new());

impl Held {
    pub(super) fn open(state: &State, name: &str) -> Result<Arc<Self>> {
        let shelf = state.snapshots()?;
        let path = shelf.path(name);
        let mut all = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(&path).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| known.owner.is_some_and(Owner::is_this_process)) {
            return Ok(known);
        }
        let none = || Error::NoSnapshot { name: name.to_owned() };
        let file = match open_record(&shelf, name) {
            Ok(file) => file,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(none()),
            Err(errno) => return Err(Error::at("open", &path.join(RECORD))(errno)),
        };
        match file.try_lock_shared() {
            Ok(()) => {}
            // It is being removed.
            Err(TryLockError::WouldBlock) => return Err(none()),
            Err(TryLockError::Error(error)) => return Err(Error::at("flock", &path)(error)),
        }
        // Since it was opened it may have been removed, or moved aside to be.
        let is_there = || {
            let own = file.metadata()?;
            let there = open_record(&shelf, name)?.metadata()?;
            Ok::<_, io::Error>((own.dev(), own.ino()) == (there.dev(), there.ino()))
        };
        if !is_there().unwrap_or(false) {
            return Err(none());
        }
        let record = read(&file).map_err(Error::at("read", &path.join(RECORD)))?;
        let this = Self::new(state, name, &path, record, file);
        all.insert(path, Arc::downgrade(&this));
        Ok(this)
    }

    /// Of a snapshot that was just made.
    pub(super) fn publish(
        state: &State,
        name: &str,
        path: &Path,
        record: Record,
        file: File,
    ) -> Arc<Self> {
        let this = Self::new(state, name, path, record, file);
        let mut all = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, held| held.strong_count() != 0);
        all.insert(path.to_owned(), Arc::downgrade(&this));
        this
    }

    /// Has it be removed, which the caller sees to, without a thought of who else uses it.
    pub(super) fn into_name(mut self) -> String {
        self.owner = None;
        std::mem::take(&mut self.name)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn new(state: &State, name: &str, path: &Path, record: Record, file: File) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            state: state.path().to_owned(),
            path: path.to_owned(),
            record,
            file,
            owner: Some(Owner::this_process()),
        })
    }

    /// The state directory.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Holds all that it lies on.
    pub(super) fn hold_below(&self, state: &State) -> Result<Vec<Arc<Self>>> {
        self.record.below(&self.name).map(|name| Self::open(state, name)).collect()
    }

    /// A part of it, as a layer.
    pub(crate) fn layer(&self, part: String) -> Layer {
        Layer::Snapshot { path: self.path.join(&part), snapshot: self.name.clone(), part }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A lock belongs to the open file, which a fork's copy shares.
        if !is_own_name(&self.name) || !self.owner.is_some_and(Owner::is_this_process) {
            return;
        }
        if self.file.unlock().is_ok()
            && let Ok(state) = State::open(Some(&self.state))
        {
            // Where it can't be removed, someone uses it, or the collector will say why.
            let _ = remove(&state, &self.name);
        }
    }
}

pub(super) fn is_own_name(name: &str) -> bool {
    name.starts_with(OWN)
}

/// What names begin with that a snapshot has of its own, and that a caller can't give.
pub(super) const OWN: &str = ".unnamed-";

/// The names of all snapshots.
pub(super) fn names(state: &State) -> Result<Vec<String>> {
    let shelf = state.snapshots()?;
    let entries = entries(shelf.as_fd()).map_err(Error::at("read", &shelf.path("")))?;
    let names = entries.into_iter().filter_map(|name| name.into_string().ok());
    // What has no record is not one yet, or is being removed.
    let is_one = |name: &String| shelf.path(name).join(RECORD).exists();
    Ok(names.filter(|name| !name.starts_with('.') || is_own_name(name)).filter(is_one).collect())
}

/// Removes a snapshot that nothing lies on.
pub(super) fn remove(state: &State, name: &str) -> Result<()> {
    let shelf = state.snapshots()?;
    let busy = |by: String| Error::Busy { what: format!("the snapshot {name:?}"), by };
    let record = match open_record(&shelf, name) {
        Ok(record) => record,
        Err(Errno::ENOENT | Errno::ENOTDIR) => {
            return Err(Error::NoSnapshot { name: name.to_owned() });
        }
        Err(errno) => return Err(Error::at("open", &shelf.path(name).join(RECORD))(errno)),
    };
    match record.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy("a sandbox".to_owned())),
        Err(TryLockError::Error(error)) => {
            return Err(Error::at("flock", &shelf.path(name))(error));
        }
    }
    for other in names(state)?.iter().filter(|other| *other != name) {
        // One that can't be read is one that may lie on it.
        let lies_on_it = match open_record(&shelf, other) {
            Ok(file) => {
                read(&file).map_or(true, |record| record.below(other).any(|below| below == name))
            }
            Err(errno) => errno != Errno::ENOENT,
        };
        // What a process that has died left without a name is no reason.
        if lies_on_it && !collect_one(state, other)? {
            return Err(busy(format!("the snapshot {other:?}")));
        }
    }
    match shelf.take(name)? {
        Some(directory) => remove_later(Remains::new(None, Some(directory)))?,
        None => return Err(busy("another process, which removes it".to_owned())),
    }
    // What it lay on may have been there for it alone. One that can't be read says nothing of that.
    if let Ok(own) = read(&record) {
        for below in own.below(name) {
            collect_one(state, below)?;
        }
    }
    Ok(())
}

/// Removes a snapshot without a name, unless something lies on it, and a name that someone has
/// reserved who has died since.
pub(crate) fn collect_one(state: &State, name: &str) -> Result<bool> {
    if !is_own_name(name) {
        let shelf = state.snapshots()?;
        if shelf.path(name).join(RECORD).exists() || shelf.reserve(name)?.is_none() {
            return Ok(false);
        }
        shelf.give_up(name);
        return Ok(true);
    }
    match remove(state, name) {
        Ok(()) => Ok(true),
        Err(Error::Busy { .. } | Error::NoSnapshot { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
