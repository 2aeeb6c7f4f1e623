//! Giving a snapshot the name that another has.
//!
//! The two exchange their directories' names at once, so that at any moment one of them has the
//! name that was given. What was written on top of another is, also after that: the record says so
//! by names, and is written anew before.

use std::fs::{File, TryLockError};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat2};

use super::lease::Lease;
use super::record::{Record, open_record, path, read, rewrite};
use super::removal::{Alone, one_at_a_time, remove_unused};
use super::users::{self, Entry};
use super::{ReplaceError, Snapshot, used_here};
use crate::error::{Error, Result};
use crate::store::directories::Directories;
use crate::store::name::SnapshotName;

/// Gives a snapshot that has none a name. What has it is removed, or, where this one lies on it,
/// has none from then on.
pub(super) fn replace(
    this: Arc<Lease>,
    name: &SnapshotName,
) -> std::result::Result<Arc<Lease>, ReplaceError> {
    let as_it_was = |error, lease| ReplaceError { error, snapshot: Some(Snapshot(lease)) };
    // Threads that look at one another's snapshots would find each in use.
    let one_at_a_time = one_at_a_time();
    let old = match find_old(&this, name) {
        Ok(old) => old,
        Err(error) => return Err(as_it_was(error, this)),
    };
    // Locked with others as before, so that no collector takes it for one that no one uses.
    let file = match this.lock_again() {
        Ok(file) => file,
        Err(error) => return Err(as_it_was(error, this)),
    };
    let this = match Arc::try_unwrap(this) {
        Ok(this) => this,
        Err(this) => return Err(as_it_was(used_here(), this)),
    };
    let state = this.state().to_owned();
    let (directories, own, mut record) = this.into_parts();
    let replaced = take_name(&directories, [&own, name], &mut record, &file, old);
    drop(one_at_a_time);
    match replaced {
        Ok(is_over) => {
            let directories_of_all = Arc::clone(&directories);
            let lease = Lease::publish(&state, directories, name.clone(), record, file);
            if is_over {
                // Where it can't be removed now, the collector will.
                let _ = remove_unused(&directories_of_all, &own, &mut Vec::new());
            }
            Ok(lease)
        }
        Err(error) => {
            drop(file);
            let _ = remove_unused(&directories, &own, &mut Vec::new());
            Err(ReplaceError { error, snapshot: None })
        }
    }
}

/// The one that has the name, if there is one, for no one else to use.
fn find_old(this: &Lease, name: &SnapshotName) -> Result<Option<Alone>> {
    let directories = this.directories();
    let Some(record) = open_record(directories, name)? else { return Ok(None) };
    take_alone(directories, name, this.name(), record).map(Some)
}

/// Renames the snapshot; whether the old one has its name now and is of no more use.
fn take_name(
    directories: &Directories,
    [own, name]: [&SnapshotName; 2],
    record: &mut Record,
    file: &File,
    old: Option<Alone>,
) -> Result<bool> {
    let from_own = |flags| {
        renameat2(directories.as_fd(), own.as_str(), directories.as_fd(), name.as_str(), flags)
    };
    let at = |errno| Error::at("rename", &directories.path(own.as_str()))(errno);
    let entry = |name: &SnapshotName, record: &File| {
        Entry::of(name, record).map_err(Error::at("stat", &path(directories, name)))
    };
    let Some(old) = old else {
        record.own_parts_are_of(name);
        if let Some(below) = record.below() {
            entry(name, file)?.add(directories, below)?;
        }
        match from_own(RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Err(Error::NameInUse { name: name.to_string() }),
            Err(errno) => return Err(at(errno)),
        }
        if let Some(below) = record.below() {
            entry(own, file)?.remove(directories, below);
        }
        return Ok(false);
    };
    // Of one that can't be read nothing is known to lie below.
    let old_record = read(&old.0, name).ok();
    let below_old = old_record.as_ref().and_then(Record::below);
    let lies_on_it = record.lies_on(name);
    // Who dies before the exchange leaves the old one as it was, and the new one to the collector.
    if lies_on_it {
        record.exchange(own, name);
        rewrite(file, record).map_err(Error::at("write", &path(directories, own)))?;
    } else {
        record.own_parts_are_of(name);
    }
    let below = record.below().map(|below| if below == own { name } else { below });
    if let Some(below) = below {
        entry(name, file)?.add(directories, below)?;
    }
    if let Some(below) = below_old {
        entry(own, &old.0)?.add(directories, below)?;
    }
    from_own(RenameFlags::RENAME_EXCHANGE).map_err(at)?;
    if let Some(below) = record.below() {
        entry(own, file)?.remove(directories, below);
    }
    if let Some(below) = below_old {
        entry(name, &old.0)?.remove(directories, below);
    }
    Ok(!lies_on_it)
}

/// Locks the one that has the name, on which nothing lies but `above`, and which no one uses.
fn take_alone(
    directories: &Directories,
    name: &SnapshotName,
    above: &SnapshotName,
    record: File,
) -> Result<Alone> {
    let busy = |by: String| Error::Busy { what: format!("the snapshot {:?}", name.as_str()), by };
    let record = Alone(record);
    match record.0.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy("a sandbox".to_owned())),
        Err(TryLockError::Error(error)) => {
            return Err(Error::at("flock", &path(directories, name))(error));
        }
    }
    match users::find_other(directories, name, above)? {
        Some(user) => Err(busy(format!("the snapshot {:?}", user.as_str()))),
        None => Ok(record),
    }
}
