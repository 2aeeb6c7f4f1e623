//! Locks of the catalog: who uses an image, who adds one, who removes some.

use std::fs::{File, TryLockError};
use std::io;
use std::time::{Duration, SystemTime};

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use crate::error::{Error, Result};
use crate::image::record::Record;
use crate::sys;
use crate::sys::owner::Owner;
use crate::wait::Deadline;

/// How long someone may take who looks whether an image is in use.
pub(super) const LOOKING: Duration = Duration::from_secs(2);
/// How often it is looked at a lock: the kernel tells no one who waits for a while only.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
/// How much later a use has to be, to be written down.
const FRESH: Duration = Duration::from_secs(60);

/// An image that can't be removed for as long as this is there.
#[derive(Debug)]
pub(crate) struct Lease {
    record: Record,
    file: File,
    owner: Owner,
}

impl Lease {
    /// `file` is locked with others, and has the record in it.
    pub(super) fn new(record: Record, file: File) -> Self {
        Self { record, file, owner: Owner::this_process() }
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Writes down that it is used, unless that was done a moment ago.
    pub(crate) fn mark_used(&self) {
        let is_fresh =
            self.last_used().is_ok_and(|last| last.elapsed().is_ok_and(|elapsed| elapsed < FRESH));
        if !is_fresh {
            // It only decides when the image is taken for one that no one needs.
            let _ = futimens(&self.file, &TimeSpec::UTIME_OMIT, &TimeSpec::UTIME_NOW);
        }
    }

    pub(crate) fn last_used(&self) -> io::Result<SystemTime> {
        self.file.metadata()?.modified()
    }

    /// Has it locked alone; `None` if someone else has it, too.
    pub(crate) fn try_alone(self) -> Result<Option<Self>> {
        // What was locked with others is let go of on the way. Others may just be looking at it.
        let locked = lock_until(&self.file, Sharing::Alone, Deadline::after(LOOKING));
        Ok(locked.map_err(Error::io("flock"))?.then_some(self))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Forks share the lock; what they drop is none of theirs.
        if self.owner.is_this_process() {
            sys::unlock(&self.file);
        }
    }
}

/// A lock that is let go of when this is dropped, whoever else has a copy of the descriptor.
#[derive(Debug)]
pub(crate) struct Lock(pub(super) File);

impl Drop for Lock {
    fn drop(&mut self) {
        sys::unlock(&self.0);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    WithOthers,
    Alone,
}

/// Takes a lock, before a deadline; whether it could be had.
pub(super) fn lock_until(file: &File, sharing: Sharing, deadline: Deadline) -> io::Result<bool> {
    loop {
        let taken = match sharing {
            Sharing::WithOthers => file.try_lock_shared(),
            Sharing::Alone => file.try_lock(),
        };
        match taken {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if deadline.passed() => return Ok(false),
            Err(TryLockError::WouldBlock) => std::thread::sleep(BETWEEN_LOOKS),
        }
    }
}
