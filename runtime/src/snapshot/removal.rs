//! The end of snapshots: of those that are removed, and of those without a name that no one uses.

use std::fs::{File, TryLockError};
use std::sync::{Mutex, MutexGuard};

use super::record::{open_record, path, read};
use super::users::{self, Entry, Stale};
use crate::error::{Error, Result};
use crate::store::State;
use crate::store::collected::{Collected, no_place};
use crate::store::contents::entries;
use crate::store::directories::Directories;
use crate::store::directory::{SandboxDirectory, is_aside};
use crate::store::name::SnapshotName;
use crate::store::remover::{Removal, remove_later};
use crate::sys;
use crate::sys::lock::lock;
use crate::sys::owner::PerProcess;

/// Threads that look at one another's snapshots would find each in use.
pub(super) fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: PerProcess<Mutex<()>> = PerProcess::new();
    lock(ONE_AT_A_TIME.get())
}

/// What came of an attempt to remove a snapshot.
pub(super) enum Attempt {
    Removed,
    /// There is none.
    Absent,
    /// This one lies on it.
    Under(SnapshotName),
    /// In use, by what is said.
    InUse(&'static str),
}

/// Removes a snapshot that nothing lies on, but what a process that has died has left there without
/// a name; and then what it lay on, where that was there for it alone.
pub(super) fn remove(directories: &Directories, name: &SnapshotName) -> Result<()> {
    // Each but the first lies on the one before it.
    let mut above = vec![name.clone()];
    while let Some(current) = above.last() {
        let attempt = match above.len() {
            1 => remove_unused(directories, current, &mut Vec::new())?,
            _ => remove_alone(directories, current)?,
        };
        let by = match attempt {
            Attempt::Absent if above.len() == 1 => {
                return Err(Error::NoSnapshot { name: name.to_string() });
            }
            Attempt::Removed | Attempt::Absent => {
                above.pop();
                continue;
            }
            Attempt::Under(user) if user.is_own() && !above.contains(&user) => {
                above.push(user);
                continue;
            }
            Attempt::Under(user) => above.get(1).unwrap_or(&user).to_string(),
            Attempt::InUse(by) => match above.get(1) {
                Some(user) => user.to_string(),
                None => return Err(busy(name, by.to_owned())),
            },
        };
        return Err(busy(name, format!("the snapshot {by:?}")));
    }
    Ok(())
}

fn busy(name: &SnapshotName, by: String) -> Error {
    Error::Busy { what: format!("the snapshot {:?}", name.as_str()), by }
}

/// Removes a snapshot that no one uses and nothing lies on, and then those without a name that it
/// lay on, the topmost first, until one is in use. It takes as long whatever other snapshots there
/// are.
pub(super) fn remove_unused(
    directories: &Directories,
    name: &SnapshotName,
    removed: &mut Vec<SnapshotName>,
) -> Result<Attempt> {
    let taken = match Taken::take(directories, name)? {
        Ok(taken) => taken,
        Err(attempt) => return Ok(attempt),
    };
    // What can't be read tells of none.
    let below = read(&taken.record.0, name).map(|record| record.all_below()).unwrap_or_default();
    removed.push(name.clone());
    taken.remove(directories, below.first())?;
    let mut below = below.iter().peekable();
    while let Some(name) = below.next_if(|name| name.is_own()) {
        let Ok(taken) = Taken::take(directories, name)? else { break };
        removed.push(name.clone());
        taken.remove(directories, below.peek().copied())?;
    }
    Ok(Attempt::Removed)
}

/// Removes a snapshot, and leaves what it lay on.
fn remove_alone(directories: &Directories, name: &SnapshotName) -> Result<Attempt> {
    let taken = match Taken::take(directories, name)? {
        Ok(taken) => taken,
        Err(attempt) => return Ok(attempt),
    };
    let below = read(&taken.record.0, name).ok().and_then(|record| record.below().cloned());
    taken.remove(directories, below.as_ref())?;
    Ok(Attempt::Removed)
}

/// A snapshot, or why it can't be had.
type Take = std::result::Result<Taken, Attempt>;

/// A snapshot that no one uses and nothing lies on. For as long as this is there, nothing more can
/// come to.
struct Taken {
    name: SnapshotName,
    record: Alone,
    directory: SandboxDirectory,
    one_at_a_time: MutexGuard<'static, ()>,
}

impl Taken {
    /// Takes a snapshot, or says why it can't be had.
    fn take(directories: &Directories, name: &SnapshotName) -> Result<Take> {
        let Some(record) = open_record(directories, name)? else { return Ok(Err(Attempt::Absent)) };
        // First without the lock, which whoever opens it would have to wait for.
        if let Some(user) = users::find(directories, name, Stale::Keep)? {
            return Ok(Err(Attempt::Under(user)));
        }
        let one_at_a_time = one_at_a_time();
        let record = Alone(record);
        match record.0.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Err(Attempt::InUse("a sandbox"))),
            Err(TryLockError::Error(error)) => {
                return Err(Error::at("flock", &path(directories, name))(error));
            }
        }
        if let Some(user) = users::find(directories, name, Stale::Remove)? {
            return Ok(Err(Attempt::Under(user)));
        }
        Ok(match directories.take(name.as_str())? {
            Some(directory) => Ok(Self { name: name.clone(), record, directory, one_at_a_time }),
            None => Err(Attempt::InUse("another process, which removes it")),
        })
    }

    /// From here on it is no snapshot, and does not lie on `below` any more; what is on disk of it
    /// is removed later.
    fn remove(self, directories: &Directories, below: Option<&SnapshotName>) -> Result<()> {
        let Self { name, record, mut directory, one_at_a_time } = self;
        // Where there is no room to rename it, it is one until it is removed, and what it lies on
        // is not told.
        if directory.move_aside().is_ok()
            && let Some(below) = below
            && let Ok(entry) = Entry::of(&name, &record.0)
        {
            entry.remove(directories, below);
        }
        drop((record, one_at_a_time));
        remove_later(Removal::new(None, Some(directory)))
    }
}

/// A record that is locked alone, until this is dropped, whoever else has a copy.
pub(super) struct Alone(pub(super) File);

impl Drop for Alone {
    fn drop(&mut self) {
        sys::unlock(&self.0);
    }
}

/// Removes what is left where snapshots are: those without a name that no one uses, names that
/// someone has reserved who has died since, and what was being removed.
pub(crate) fn collect(state: &State, collected: &mut Collected) {
    let directories = match state.snapshots_if_any() {
        Ok(Some(directories)) => directories,
        Ok(None) => return,
        Err(error) => return collected.failed(error),
    };
    let found = match directories.entries() {
        Ok(found) => found,
        Err(error) => return collected.failed(error),
    };
    for entry in found {
        let is_ours = |name: &&str| is_aside(name) || SnapshotName::parse(name).is_ok();
        match entry.to_str().filter(is_ours) {
            Some(name) => collect_one(&directories, name, collected),
            None => collected.failed(no_place(&directories.path(&entry))),
        }
    }
}

fn collect_one(directories: &Directories, name: &str, collected: &mut Collected) {
    if !collected.is_directory(directories, name.as_ref()) {
        return;
    }
    let Ok(name) = SnapshotName::parse(name) else {
        return collected.directory(directories, name);
    };
    match open_record(directories, &name) {
        // One whose removal was interrupted.
        Ok(None) if name.is_own() => collected.directory(directories, name.as_str()),
        Ok(None) => collected.one(name.as_str(), collect_without_record(directories, &name)),
        Ok(Some(_)) if !name.is_own() => {}
        Err(error) => collected.failed(error),
        Ok(Some(_)) => {
            let mut removed = Vec::new();
            if let Err(error) = remove_unused(directories, &name, &mut removed) {
                collected.failed(error);
            }
            removed.iter().for_each(|name| collected.removed(name.as_str()));
        }
    }
}

/// Removes what is no snapshot; whether it was there and no one's.
fn collect_without_record(directories: &Directories, name: &SnapshotName) -> Result<bool> {
    let Some(directory) = directories.take(name.as_str())? else { return Ok(false) };
    let path = directories.path(name.as_str());
    if entries(directory.as_fd()).map_err(Error::at("read", &path))?.is_empty() {
        directories.give_up(name.as_str());
        return Ok(true);
    }
    // Since it was looked at, it may have become one.
    match open_record(directories, name)? {
        Some(_) => Ok(false),
        None => Err(no_place(&path)),
    }
}
