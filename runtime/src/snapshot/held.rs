//! Who uses a snapshot, and its end when no one does.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::record::{RECORD, Record, lies_on, open_record, read};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::owner::{Owner, PerProcess};
use crate::remove::{Remains, entries, remove_later};
use crate::root::Layer;
use crate::state::{Shelf, State};
use crate::sys;

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
static HELD: PerProcess<Mutex<All>> = PerProcess::new();

type All = BTreeMap<PathBuf, Weak<Held>>;

fn all() -> MutexGuard<'static, All> {
    lock(HELD.get())
}

fn known(path: &Path) -> Option<Arc<Held>> {
    known_of(&all(), path)
}

fn known_of(all: &All, path: &Path) -> Option<Arc<Held>> {
    all.get(path).and_then(Weak::upgrade)
}

/// How long someone may take who looks whether a snapshot can be removed.
const PATIENCE: Duration = Duration::from_secs(2);

impl Held {
    pub(super) fn open(state: &State, name: &str) -> Result<Arc<Self>> {
        let shelf = state.snapshots()?;
        let path = shelf.path(name);
        if let Some(known) = known(&path) {
            return Ok(known);
        }
        let none = || Error::NoSnapshot { name: name.to_owned() };
        let file = match open_record(&shelf, name) {
            Ok(file) => file,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(none()),
            Err(errno) => return Err(Error::at("open", &path.join(RECORD))(errno)),
        };
        // Since it was opened it may have been removed, or moved aside to be.
        let is_there = || {
            let own = file.metadata()?;
            let there = open_record(&shelf, name)?.metadata()?;
            Ok::<_, io::Error>((own.dev(), own.ino()) == (there.dev(), there.ino()))
        };
        let end = Instant::now() + PATIENCE;
        loop {
            let locked = file.try_lock_shared();
            if !is_there().unwrap_or(false) {
                return Err(none());
            }
            match locked {
                Ok(()) => break,
                // Someone looks whether it can be removed.
                Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::yield_now(),
                Err(TryLockError::WouldBlock) => return Err(none()),
                Err(TryLockError::Error(error)) => return Err(Error::at("flock", &path)(error)),
            }
        }
        let record = read(&file).map_err(Error::at("read", &path.join(RECORD)))?;
        let this = Self::new(state.path(), name, &path, record, file);
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
        name: &str,
        path: &Path,
        record: Record,
        file: File,
    ) -> Arc<Self> {
        let this = Self::new(state, name, path, record, file);
        let mut all = all();
        all.retain(|_, held| held.strong_count() != 0);
        all.insert(path.to_owned(), Arc::downgrade(&this));
        this
    }

    /// Lets go of it, for the caller to remove it.
    pub(super) fn into_name(mut self) -> String {
        sys::unlock(&self.file);
        self.owner = None;
        std::mem::take(&mut self.name)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn new(state: &Path, name: &str, path: &Path, record: Record, file: File) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            state: state.to_owned(),
            path: path.to_owned(),
            record,
            file,
            owner: Some(Owner::this_process()),
        })
    }

    /// Refuses a fork of the process that holds it.
    pub(super) fn check_own(&self) -> Result<()> {
        self.owner.map_or(Ok(()), |owner| owner.check("the snapshot"))
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
        self.record.below(&self.name).iter().map(|name| Self::open(state, name)).collect()
    }

    /// A part of it, as a layer.
    pub(crate) fn layer(&self, part: String) -> Layer {
        Layer::Snapshot { path: self.path.join(&part), snapshot: self.name.clone(), part }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.owner.is_some_and(Owner::is_this_process) {
            return;
        }
        // By itself it would go when the last copy of the descriptor does: of a fork, or of a child
        // that is on its way to its program.
        sys::unlock(&self.file);
        if is_own_name(&self.name)
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
    let _one_at_a_time = one_at_a_time();
    let below = match remove_one(state, name) {
        // What a process that has died left without a name is no reason.
        Err(Error::Busy { .. }) if !collect_unnamed(state)?.is_empty() => remove_one(state, name)?,
        removed => removed?,
    };
    // What it lay on may have been there for it alone; the topmost first.
    for below in below.iter().filter(|below| is_own_name(below)) {
        match remove_one(state, below) {
            Ok(_) | Err(Error::Busy { .. } | Error::NoSnapshot { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes snapshots without a name that nothing lies on, and names that someone has reserved who
/// has died since; returns both.
pub(crate) fn collect(state: &State) -> Result<Vec<String>> {
    let _one_at_a_time = one_at_a_time();
    let mut removed = collect_unnamed(state)?;
    let shelf = state.snapshots()?;
    for name in entries(shelf.as_fd()).map_err(Error::at("read", &shelf.path("")))? {
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        if !shelf.path(name).join(RECORD).exists() && shelf.reserve(name)?.is_some() {
            shelf.give_up(name);
            removed.push(name.to_owned());
        }
    }
    Ok(removed)
}

/// Threads that look at one another's snapshots would find each in use.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: PerProcess<Mutex<()>> = PerProcess::new();
    lock(ONE_AT_A_TIME.get())
}

fn collect_unnamed(state: &State) -> Result<Vec<String>> {
    let shelf = state.snapshots()?;
    let depth = |name: &String| {
        let record = open_record(&shelf, name).ok().and_then(|file| read(&file).ok());
        record.map_or(0, |record| record.below(name).len())
    };
    let unnamed = names(state)?.into_iter().filter(|name| is_own_name(name));
    let mut unnamed: Vec<_> = unnamed.map(|name| (depth(&name), name)).collect();
    // What lies on others goes before them.
    unnamed.sort_by(|one, other| other.cmp(one));
    let mut removed = Vec::new();
    for (_, name) in unnamed {
        match remove_one(state, &name) {
            Ok(_) => removed.push(name),
            Err(Error::Busy { .. } | Error::NoSnapshot { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// Removes one snapshot, and returns what it lay on, the topmost first.
fn remove_one(state: &State, name: &str) -> Result<Vec<String>> {
    let shelf = state.snapshots()?;
    let record = match open_record(&shelf, name) {
        Ok(record) => record,
        Err(Errno::ENOENT | Errno::ENOTDIR) => {
            return Err(Error::NoSnapshot { name: name.to_owned() });
        }
        Err(errno) => return Err(Error::at("open", &shelf.path(name).join(RECORD))(errno)),
    };
    let busy = |by: String| Error::Busy { what: format!("the snapshot {name:?}"), by };
    // First without the lock, which whoever opens it would have to wait for.
    if let Some(other) = what_lies_on(state, &shelf, name)? {
        return Err(busy(format!("the snapshot {other:?}")));
    }
    let record = Alone(record);
    match record.0.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy("a sandbox".to_owned())),
        Err(TryLockError::Error(error)) => {
            return Err(Error::at("flock", &shelf.path(name))(error));
        }
    }
    // Now nothing more can come to lie on it.
    if let Some(other) = what_lies_on(state, &shelf, name)? {
        return Err(busy(format!("the snapshot {other:?}")));
    }
    // What can't be read tells of none.
    let below = read(&record.0).map(|record| record.below(name)).unwrap_or_default();
    match shelf.take(name)? {
        Some(directory) => remove_later(Remains::new(None, Some(directory)))?,
        None => return Err(busy("another process, which removes it".to_owned())),
    }
    Ok(below)
}

/// A record that is locked alone, until this is dropped, whoever else has a copy.
struct Alone(File);

impl Drop for Alone {
    fn drop(&mut self) {
        sys::unlock(&self.0);
    }
}

/// The name of a snapshot that lies on another.
fn what_lies_on(state: &State, shelf: &Shelf, name: &str) -> Result<Option<String>> {
    let mut others = names(state)?.into_iter().filter(|other| other != name);
    Ok(others.find(|other| {
        // One that is gone lies on nothing.
        open_record(shelf, other).is_ok_and(|file| lies_on(&file, other, name))
    }))
}
