//! Removal of what sandboxes leave on disk, by a thread beside the callers.
//!
//! How long it takes is up to the guest: it may have made a million files. So it is no part of
//! the time of a delete. The thread starts with the first removal of a process and is bounded: a
//! caller that is too far ahead of it removes for itself.

mod contents;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::Result;
use crate::owner::Owner;
use crate::state::SandboxDirectory;
use crate::sys;

pub(crate) use contents::{entries, remove_contents, remove_empty, remove_entry};

/// How many removals may wait before callers do their own: what a burst of deletes leaves, and no
/// more disk than that.
const BACKLOG: usize = 64;

/// What is left of a sandbox whose processes have ended.
pub(crate) struct Remains {
    /// Let go of before the directory is removed: what the kernel still knows of the files is
    /// forgotten with it.
    mounts: Option<OwnedFd>,
    /// `None` where that has become a snapshot.
    directory: Option<SandboxDirectory>,
}

impl Remains {
    pub(crate) fn new(mounts: Option<OwnedFd>, directory: Option<SandboxDirectory>) -> Self {
        WAITING.fetch_add(1, Ordering::Relaxed);
        Self { mounts, directory }
    }

    fn remove(&mut self) -> Result<()> {
        self.mounts = None;
        self.directory.as_ref().map_or(Ok(()), SandboxDirectory::remove)
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many [`Remains`] there are.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// The number of sandboxes that this process has deleted or reset and whose files are not all
/// removed yet: by a thread, which has at most 64 waiting. Where it does not go down, what is left
/// can't be removed; `adl gc` tells why.
pub fn pending_removals() -> usize {
    WAITING.load(Ordering::Relaxed)
}

enum Job {
    Remove(Remains),
    /// Say when all before it is done.
    Tell(SyncSender<()>),
}

/// The way to the thread, and the process that it belongs to: a fork has no threads.
static REMOVER: Mutex<Option<(Owner, SyncSender<Job>)>> = Mutex::new(None);

/// Removes what a sandbox has left soon, and gives its name free now.
pub(crate) fn remove_later(mut remains: Remains) -> Result<()> {
    if let Some(directory) = &mut remains.directory
        && directory.move_aside().is_err()
    {
        // As on a full disk of btrfs, where only what is removed makes room. So that comes first.
        return remains.remove();
    }
    let Some(sender) = sender() else { return remains.remove() };
    match sender.try_send(Job::Remove(remains)) {
        Ok(()) => Ok(()),
        Err(
            TrySendError::Full(Job::Remove(mut remains))
            | TrySendError::Disconnected(Job::Remove(mut remains)),
        ) => remains.remove(),
        Err(_) => Ok(()),
    }
}

/// Waits until the files of all sandboxes that this process has deleted are gone.
///
/// Deleting a sandbox gives back at once all but the disk space of what it has written, which a
/// thread of this library removes. A process that ends normally waits for that, for
/// at most ten seconds; after any other end, [`crate::collect_garbage`] of another does the rest.
pub fn finish_removals() {
    finish(None);
}

/// The same, but no longer than so.
pub(crate) fn finish_within(limit: Duration) {
    finish(Some(limit));
}

/// How long the end of the process may be held up.
const AT_EXIT: Duration = Duration::from_secs(10);

extern "C" fn finish_at_exit() {
    finish(Some(AT_EXIT));
}

fn finish(limit: Option<Duration>) {
    let remover = REMOVER.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some((owner, sender)) = remover
        && owner.is_this_process()
    {
        let (tell, told) = sync_channel(1);
        if sender.send(Job::Tell(tell)).is_ok() {
            // An error: the time is up, or the thread has ended and will remove nothing more.
            let _ = match limit {
                Some(limit) => told.recv_timeout(limit).ok(),
                None => told.recv().ok(),
            };
        }
    }
}

/// The way to the thread, which is started if need be; `None` if it can't be.
fn sender() -> Option<SyncSender<Job>> {
    let mut remover = REMOVER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((owner, sender)) = &*remover
        && owner.is_this_process()
    {
        return Some(sender.clone());
    }
    let (sender, receiver) = sync_channel(BACKLOG);
    std::thread::Builder::new()
        .name("adl-remover".to_owned())
        .spawn(move || work(&receiver))
        .ok()?;
    if remover.is_none() {
        // In a fork, it is registered already.
        sys::at_exit(finish_at_exit);
    }
    *remover = Some((Owner::this_process(), sender.clone()));
    Some(sender)
}

fn work(jobs: &Receiver<Job>) {
    // It is nothing that anyone waits for.
    sys::lower_priority();
    // What could not be removed, as when the process had no descriptors left: tried again with
    // each next one. In the end it stays, without a lock, for `adl gc`, which tells why.
    let mut failed: Vec<Remains> = Vec::new();
    for job in jobs {
        failed.retain_mut(|remains| remains.remove().is_err());
        match job {
            Job::Remove(mut remains) => {
                if remains.remove().is_err() && failed.len() < BACKLOG {
                    failed.push(remains);
                }
            }
            Job::Tell(done) => drop(done.send(())),
        }
    }
}
