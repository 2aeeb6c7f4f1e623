//! Removal of what sandboxes leave on disk, by a thread beside the callers.
//!
//! How long it takes is up to the guest: it may have made a million files. So it is no part of
//! the time of a delete. The thread starts with the first removal of a process and is bounded: a
//! caller that is too far ahead of it removes for itself.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::openat;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::Result;
use crate::owner::Owner;
use crate::state::{DIRECTORY, SandboxDirectory};
use crate::sys;

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
    if let Some(directory) = &mut remains.directory {
        directory.move_aside()?;
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

/// How many names of a directory are held at once.
const AT_ONCE: usize = 512;

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

/// Removes all below `root`, which no one else changes any more.
///
/// Neither recursive nor with a descriptor for each level, since a guest chooses the depth: a
/// directory that is not empty is moved up to `root` first, under a number, and its turn comes.
pub(crate) fn remove_contents(root: BorrowedFd<'_>) -> io::Result<()> {
    // What an earlier removal had moved when it was interrupted.
    let mut waiting: Vec<u64> = entries(root)?.iter().filter_map(|name| number_of(name)).collect();
    let mut next = waiting.iter().max().map_or(0, |last| last + 1);
    remove_entries(root, root, &mut waiting, &mut next)?;
    while let Some(number) = waiting.pop() {
        let name = moved_name(number);
        let directory = openat(root, name.as_str(), DIRECTORY, Mode::empty())?;
        remove_entries(directory.as_fd(), root, &mut waiting, &mut next)?;
        remove_empty(root, OsStr::new(&name))?;
    }
    Ok(())
}

fn remove_entries(
    directory: BorrowedFd<'_>,
    root: BorrowedFd<'_>,
    waiting: &mut Vec<u64>,
    next: &mut u64,
) -> io::Result<()> {
    let in_root = directory.as_raw_fd() == root.as_raw_fd();
    // Again until a pass finds nothing to do, since removal may change the order of what follows.
    loop {
        let mut names = Dir::openat(directory, ".", DIRECTORY, Mode::empty())?.into_iter();
        let mut has_removed = false;
        loop {
            // Some at a time: a guest may have made millions.
            let mut some = Vec::new();
            for entry in names.by_ref().take(AT_ONCE) {
                some.push(OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned());
            }
            if some.is_empty() {
                break;
            }
            for name in some {
                let is_waiting = in_root && number_of(&name).is_some();
                if name != "." && name != ".." && !is_waiting {
                    remove_or_move(directory, &name, root, waiting, next)?;
                    has_removed = true;
                }
            }
        }
        if !has_removed {
            return Ok(());
        }
    }
}

/// Removes one entry, or, if it is a directory with something in it, moves it up to `root`.
fn remove_or_move(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    root: BorrowedFd<'_>,
    waiting: &mut Vec<u64>,
    next: &mut u64,
) -> io::Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        // POSIX says EPERM for a directory, Linux EISDIR.
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    match unlinkat(directory, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    // To move a directory is to write its "..", and to empty it is to read it; a guest, or
    // overlayfs, may have left it without those rights.
    fchmodat(directory, name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink)?;
    nix::fcntl::renameat(directory, name, root, moved_name(*next).as_str())?;
    waiting.push(*next);
    *next += 1;
    Ok(())
}

/// Not the name of anything that adl makes in a sandbox's directory.
fn moved_name(number: u64) -> String {
    format!("removing-{number}")
}

fn number_of(name: &OsStr) -> Option<u64> {
    name.to_str()?.strip_prefix("removing-")?.parse().ok()
}

pub(crate) fn remove_empty(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The names in a directory, read to the end before any is used, since removal changes the order.
pub(crate) fn entries(directory: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut directory = Dir::openat(directory, ".", DIRECTORY, Mode::empty())?;
    let mut names = Vec::new();
    for entry in directory.iter() {
        let name = entry?.file_name().to_bytes().to_owned();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(&name).to_owned());
        }
    }
    Ok(names)
}
