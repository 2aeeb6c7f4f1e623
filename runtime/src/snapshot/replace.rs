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
use crate::error::{Error, Result};
use crate::store::directories::Directories;
use crate::store::name::SnapshotName;

/// Gives a snapshot that has none a name. What has it is removed, or, where this one lies on it,
/// has none from then on.
pub(super) fn replace(this: Lease, name: &SnapshotName) -> Result<Arc<Lease>> {
    let state = this.state().to_owned();
    // Locked with others as before, so that no collector takes it for one that no one uses.
    let (directories, own, mut record, file) = this.into_parts()?;
    let from_own = |flags| {
        renameat2(directories.as_fd(), own.as_str(), directories.as_fd(), name.as_str(), flags)
    };
    let at = |errno| Error::at("rename", &directories.path(own.as_str()))(errno);
    let one_at_a_time = one_at_a_time();
    let Some(old) = open_record(&directories, name)? else {
        match from_own(RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Err(Error::NameInUse { name: name.to_string() }),
            Err(errno) => return Err(at(errno)),
        }
        exchange_entries(&directories, record.below(), &file, [&own, name])?;
        record.own_parts_are_of(name);
        drop(one_at_a_time);
        return Ok(Lease::publish(&state, directories, name.clone(), record, file));
    };
    let old = take_alone(&directories, name, &own, old)?;
    let lies_on_it = record.lies_on(name);
    let old_record = read(&old.0, name).ok();
    let below_old = old_record.as_ref().and_then(Record::below);
    // From here to the exchange, what fails leaves the old one as it was; the new one is no one's.
    if lies_on_it {
        record.exchange(&own, name);
        rewrite(&file, &record).map_err(Error::at("write", &path(&directories, &own)))?;
    } else {
        record.own_parts_are_of(name);
    }
    let entries = [Entry::of(name, &file), Entry::of(&own, &old.0)];
    let [of_this, of_old] =
        entries.map(|entry| entry.map_err(Error::at("stat", &path(&directories, name))));
    // What this one lies on, and the old one, by the names of before.
    let below = if record.below() == Some(&own) { Some(name) } else { record.below() };
    if let Some(below) = below {
        of_this?.add(&directories, below)?;
    }
    if let Some(below) = below_old {
        of_old?.add(&directories, below)?;
    }
    from_own(RenameFlags::RENAME_EXCHANGE).map_err(at)?;
    if let Some(below) = record.below() {
        Entry::of(&own, &file).map(|entry| entry.remove(&directories, below)).ok();
    }
    if let Some(below) = below_old {
        Entry::of(name, &old.0).map(|entry| entry.remove(&directories, below)).ok();
    }
    drop((old, one_at_a_time));
    let lease = Lease::publish(&state, Arc::clone(&directories), name.clone(), record, file);
    if !lies_on_it {
        // Where it can't be removed now, the collector will.
        let _ = remove_unused(&directories, &own, &mut Vec::new());
    }
    Ok(lease)
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

/// Writes down where a snapshot lies, under the second name, and no longer under the first.
fn exchange_entries(
    directories: &Directories,
    below: Option<&SnapshotName>,
    record: &File,
    [before, after]: [&SnapshotName; 2],
) -> Result<()> {
    let Some(below) = below else { return Ok(()) };
    let of = |name| Entry::of(name, record).map_err(Error::at("stat", &path(directories, after)));
    of(after)?.add(directories, below)?;
    of(before)?.remove(directories, below);
    Ok(())
}
