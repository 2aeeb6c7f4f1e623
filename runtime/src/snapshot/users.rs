//! Which snapshots lie directly on a snapshot: one file for each, in `users/`.
//!
//! Each has a directory for that. A snapshot that lies directly on it has an empty file there,
//! which is made before that snapshot is one and removed when it is none any more. So all that lie
//! on it are found there, whoever dies when. What else is found has gone, or has never come about,
//! and counts for nothing: it is removed by who has the snapshot for itself, so that no one can be
//! about to make what it stands for.
//!
//! A snapshot of an earlier adl has no such directory. What lies on it is found in the records of
//! all others.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::record::{lies_on, names, open_record};
use crate::error::{Error, Result};
use crate::store::contents::entries;
use crate::store::directories::Directories;
use crate::store::name::SnapshotName;
use crate::store::quota;
use crate::sys::open::{DIRECTORY, Purpose, beneath};

/// Where in a snapshot's directory those are named that lie on it.
const USERS: &str = "users";

/// What becomes of entries for what is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stale {
    Keep,
    /// For who has the snapshot locked alone.
    Remove,
}

/// Makes the directory, in that of a sandbox that is to become a snapshot.
pub(super) fn make(directory: BorrowedFd<'_>) -> io::Result<()> {
    match mkdirat(directory, USERS, Mode::S_IRWXU) {
        // An attempt that failed has left it.
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    // What a guest has filled is full for good, and more may come to lie on it.
    quota::exempt(openat(directory, USERS, DIRECTORY, Mode::empty())?.as_fd())
}

/// The entry of a snapshot, whose record this is: its name and, since another may come to have
/// that, the number of its record's inode, which none can have while the record is open.
#[derive(Debug)]
pub(super) struct Entry {
    inode: u64,
    name: SnapshotName,
}

impl Entry {
    pub(super) fn of(name: &SnapshotName, record: &File) -> io::Result<Self> {
        Ok(Self { inode: fstat(record)?.st_ino, name: name.clone() })
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let (inode, name) = std::str::from_utf8(text).ok()?.split_once('.')?;
        Some(Self { inode: inode.parse().ok()?, name: SnapshotName::parse(name).ok()? })
    }

    fn file_name(&self) -> String {
        let Self { inode, name } = self;
        format!("{inode}.{name}")
    }

    /// Writes down that it lies on a snapshot, which has to be held.
    pub(super) fn add(&self, directories: &Directories, below: &SnapshotName) -> Result<()> {
        let path = path(directories, below);
        let Some(directory) = open(directories, below)? else { return Ok(()) };
        let flags = OFlag::O_WRONLY
            | OFlag::O_CREAT
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_CLOEXEC;
        openat(&directory, self.file_name().as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map(drop)
            .map_err(Error::at("create a file in", &path))
    }

    /// Undoes that. What can't be is not there any more for whoever looks.
    pub(super) fn remove(&self, directories: &Directories, below: &SnapshotName) {
        if let Ok(Some(directory)) = open(directories, below) {
            let name = self.file_name();
            let _ = unlinkat(directory, name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }

    /// Whether it stands for a snapshot that lies on another.
    fn is_there(&self, directories: &Directories, below: &SnapshotName) -> bool {
        match open_record(directories, &self.name) {
            // A name of its own never becomes another's; one that was given may. The number tells
            // nothing here: in a copy of the state directory it is another.
            Ok(Some(record)) => self.name.is_own() || lies_on(&record, &self.name, below),
            Ok(None) => false,
            // What can't be looked at may be one.
            Err(_) => true,
        }
    }
}

fn path(directories: &Directories, name: &SnapshotName) -> PathBuf {
    directories.path(Path::new(name.as_str()).join(USERS))
}

/// Opens the directory; `None` if there is none.
fn open(directories: &Directories, name: &SnapshotName) -> Result<Option<OwnedFd>> {
    let relative = Path::new(name.as_str()).join(USERS);
    match beneath(directories.as_fd(), &relative, Purpose::List) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(Error::at("open", &path(directories, name))(errno)),
    }
}

/// A snapshot that lies on another, if there is one.
pub(super) fn find(
    directories: &Directories,
    name: &SnapshotName,
    stale: Stale,
) -> Result<Option<SnapshotName>> {
    find_but(directories, name, stale, None)
}

/// A snapshot other than `known` that lies on another, if there is one.
pub(super) fn find_other(
    directories: &Directories,
    name: &SnapshotName,
    known: &SnapshotName,
) -> Result<Option<SnapshotName>> {
    find_but(directories, name, Stale::Keep, Some(known))
}

fn find_but(
    directories: &Directories,
    name: &SnapshotName,
    stale: Stale,
    known: Option<&SnapshotName>,
) -> Result<Option<SnapshotName>> {
    let Some(directory) = open(directories, name)? else {
        return search(directories, name, known);
    };
    let found = entries(directory.as_fd()).map_err(Error::at("read", &path(directories, name)))?;
    for file_name in found {
        // Nothing that adl has made.
        let Some(entry) = Entry::parse(file_name.as_bytes()) else { continue };
        if known == Some(&entry.name) {
            continue;
        }
        // None lies on itself: it is what had this name before.
        if entry.name != *name && entry.is_there(directories, name) {
            return Ok(Some(entry.name));
        }
        if stale == Stale::Remove {
            let _ = unlinkat(&directory, file_name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
    Ok(None)
}

/// Finds that out by what all others say.
fn search(
    directories: &Directories,
    name: &SnapshotName,
    known: Option<&SnapshotName>,
) -> Result<Option<SnapshotName>> {
    let mut others =
        names(directories)?.into_iter().filter(|other| other != name && known != Some(other));
    Ok(others.find(|other| match open_record(directories, other) {
        Ok(record) => record.is_some_and(|record| lies_on(&record, other, name)),
        Err(_) => true,
    }))
}
