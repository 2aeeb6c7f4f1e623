//! The removal of a tree that a guest has made, whatever it has made it of.
//!
//! Three things stop unlink(2) and rmdir(2) beside what is in a directory: the flags of chattr(1),
//! and subvolumes of btrfs, read-only or with others in them. They are looked for only where the
//! kernel refuses something, so a tree without them costs no call more.
//!
//! A name is removed and opened, and nothing else is done by it, since who made it may still be
//! there to let it mean something else a moment later: what is changed is what was opened, without
//! following a link, and looked at.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open as open_path, openat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::Error;
use crate::store::btrfs;
use crate::sys::ioctl::{self, APPEND_ONLY, IMMUTABLE};
use crate::sys::listing::{Kind, Listing};
use crate::sys::open::DIRECTORY;
use crate::sys::{self};
use crate::transfer::PathCursor;

/// The most bytes of names that are kept of one directory.
const MOST_OF_NAMES: usize = 64 << 20;

/// Removes all below `root`, which no one else changes any more. Where it is interrupted, the next
/// call goes on.
///
/// Neither recursive nor with a descriptor for each level, since a guest chooses the depth. Nor is
/// anything moved for it: on a full disk, what is removed may be all that there is room for.
pub(crate) fn remove_contents(root: BorrowedFd<'_>) -> io::Result<()> {
    let mut place = PathCursor::new(openat(root, c".", DIRECTORY, Mode::empty())?)?;
    loop {
        if let Some(name) = remove_entries(place.as_fd())? {
            let (directory, stat) = open(place.as_fd(), &name)?;
            place.enter(&name, directory, &stat);
        } else {
            let Some((_, name)) = place.leave()? else { return Ok(()) };
            let here = place.as_fd();
            insist(&[here], here, &*name, || match remove_one(here, &*name)? {
                Removed::Yes => Ok(()),
                Removed::No => Err(Errno::ENOTEMPTY),
            })?;
        }
    }
}

/// Removes an entry with all that is in it: a file, a directory or a btrfs subvolume. It is no
/// error if there is none.
pub(crate) fn remove_entry(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let removed = insist(&[], parent, name, || remove_one(parent, name))?;
    if removed == Removed::Yes {
        return Ok(());
    }
    let directory = insist(&[], parent, name, || open_accessible(parent, name))?;
    if btrfs::is_subvolume(&directory) && btrfs::destroy(parent, name).is_ok() {
        return Ok(());
    }
    remove_contents(directory.as_fd())?;
    remove_empty(parent, name)
}

/// How many bytes all in a directory take on disk; a file with several names counts once.
///
/// Neither recursive nor with a descriptor for each level.
pub(crate) fn size_on_disk(top: OwnedFd) -> io::Result<u64> {
    const UNIT: u64 = 512;
    let stat = fstat(&top)?;
    let mut size = stat.st_blocks.unsigned_abs() * UNIT;
    let mut linked = HashSet::new();
    // Of what is in a directory, only the names of directories are kept.
    let mut add = |directory: BorrowedFd<'_>| -> io::Result<Vec<OsString>> {
        let mut directories = Vec::new();
        let mut listing = Listing::of(directory)?;
        while let Some((name, _)) = listing.next()? {
            let stat = match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                // Someone may be removing it.
                Err(Errno::ENOENT) => continue,
                stat => stat?,
            };
            let is_directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
            if is_directory || stat.st_nlink < 2 || linked.insert((stat.st_dev, stat.st_ino)) {
                size = size.saturating_add(stat.st_blocks.unsigned_abs() * UNIT);
            }
            if is_directory {
                directories.push(OsStr::from_bytes(name.to_bytes()).to_owned());
            }
        }
        Ok(directories)
    };
    let mut left = vec![add(top.as_fd())?];
    let mut place = PathCursor::new(top)?;
    while let Some(names) = left.last_mut() {
        let Some(name) = names.pop() else {
            left.pop();
            if place.leave()?.is_none() {
                break;
            }
            continue;
        };
        let directory = match openat(place.as_fd(), name.as_os_str(), DIRECTORY, Mode::empty()) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => continue,
            directory => directory?,
        };
        left.push(add(directory.as_fd())?);
        let name = CString::new(name.as_bytes())?;
        let stat = fstat(&directory)?;
        place.enter(&name, directory, &stat);
    }
    Ok(size)
}

pub(crate) fn remove_empty(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The names of the directories in one, as far as its file system says so at once; where it does
/// not, of all that is there. Of millions of files it keeps nothing.
pub(crate) fn directories(directory: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut listing = Listing::of(directory)?;
    let mut names = Vec::new();
    let mut bytes = 0;
    while let Some((name, kind)) = listing.next()? {
        if !matches!(kind, None | Some(Kind::Directory)) {
            continue;
        }
        let name = name.to_bytes();
        bytes += name.len();
        if bytes > MOST_OF_NAMES {
            return Err(io::Error::other(Error::TooLarge {
                what: "the names in a directory, in bytes,",
                limit: MOST_OF_NAMES as u64,
            }));
        }
        names.push(OsStr::from_bytes(name).to_owned());
    }
    Ok(names)
}

/// The names in a directory, read to the end before any is used, since removal changes the order.
pub(crate) fn entries(directory: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut listing = Listing::of(directory)?;
    let mut names = Vec::new();
    while let Some((name, _)) = listing.next()? {
        names.push(OsStr::from_bytes(name.to_bytes()).to_owned());
    }
    Ok(names)
}

#[derive(PartialEq, Eq)]
enum Removed {
    Yes,
    /// It is a directory with something in it.
    No,
}

/// Removes what can be of a directory, until one comes in it that has something in it.
fn remove_entries(directory: BorrowedFd<'_>) -> io::Result<Option<CString>> {
    // Again until a pass finds nothing to do, since removal may change the order of what follows.
    loop {
        let mut has_removed = false;
        let mut listing = Listing::of(directory)?;
        while let Some((name, _)) = listing.next()? {
            let removed = insist(&[directory], directory, name, || remove_one(directory, name))?;
            if removed == Removed::No && !destroy(directory, name) {
                return Ok(Some(name.to_owned()));
            }
            has_removed = true;
        }
        if !has_removed {
            return Ok(None);
        }
    }
}

/// Destroys what may be the top of a subvolume; whether it was, and could be. Not where others are
/// in it, nor by a user who may not.
fn destroy(directory: BorrowedFd<'_>, name: &CStr) -> bool {
    let may_be_one = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| stat.st_ino == btrfs::TOP_INODE);
    may_be_one
        && btrfs::is_btrfs(directory)
        && btrfs::destroy(directory, OsStr::from_bytes(name.to_bytes())).is_ok()
}

/// Opens a directory to be emptied.
fn open(at: BorrowedFd<'_>, name: &CStr) -> nix::Result<(OwnedFd, FileStat)> {
    let directory = insist(&[at], at, name, || open_accessible(at, name))?;
    let stat = fstat(&directory)?;
    Ok((directory, stat))
}

/// Removes one entry, unless it is a directory with something in it.
fn remove_one<P: ?Sized + NixPath>(directory: BorrowedFd<'_>, name: &P) -> nix::Result<Removed> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(Removed::Yes),
        // POSIX says EPERM for a directory, Linux EISDIR.
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(errno),
    }
    match unlinkat(directory, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(Removed::Yes),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(Removed::No),
        // It is none; so EPERM was the answer.
        Err(Errno::ENOTDIR) => Err(Errno::EPERM),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory so that it can be emptied, which is to read and to write it: a guest, or
/// overlayfs, may have left it without those rights.
fn open_accessible<P: ?Sized + NixPath>(at: BorrowedFd<'_>, name: &P) -> nix::Result<OwnedFd> {
    let directory = match openat(at, name, DIRECTORY, Mode::empty()) {
        Err(Errno::EACCES) => {
            let flags = DIRECTORY | OFlag::O_PATH;
            let directory = openat(at, name, flags, Mode::empty())?;
            // fchmod(2) takes no such descriptor.
            sys::change_mode(&directory, Mode::S_IRWXU)?;
            openat(&directory, ".", DIRECTORY, Mode::empty())?
        }
        opened => opened?,
    };
    if fstat(&directory)?.st_mode & libc::S_IRWXU != libc::S_IRWXU {
        // A full file system may have no room for that, nor need it.
        match fchmod(&directory, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::ENOSPC | Errno::EDQUOT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(directory)
}

/// Attempts something with an entry of a directory, and where the kernel refuses it, once more
/// without what else may stand in the way: flags, and the read-only state of subvolumes, of the
/// entry and of the directories `around` it.
fn insist<T, P: ?Sized + NixPath>(
    around: &[BorrowedFd<'_>],
    directory: BorrowedFd<'_>,
    name: &P,
    mut attempt: impl FnMut() -> nix::Result<T>,
) -> nix::Result<T> {
    match attempt() {
        Err(Errno::EPERM | Errno::EACCES | Errno::EROFS) => {}
        done => return done,
    }
    for directory in around {
        unlock(directory);
    }
    if let Ok(entry) = open_to_look(directory, name) {
        unlock(entry);
    }
    attempt()
}

/// Opens a regular file or a directory, without a link. To open anything else could wait, or wake a
/// driver up: so what is opened is what was looked at.
fn open_to_look<P: ?Sized + NixPath>(directory: BorrowedFd<'_>, name: &P) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let entry = openat(directory, name, flags, Mode::empty())?;
    match fstat(&entry)?.st_mode & libc::S_IFMT {
        libc::S_IFREG | libc::S_IFDIR => {}
        _ => return Err(Errno::EINVAL),
    }
    // O_NONBLOCK: for a lease.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open_path(sys::path_of(&entry).as_str(), flags, Mode::empty())
}

/// Takes away what forbids changes to a file. What can't be taken away shows when it is tried to
/// remove it again.
fn unlock(file: impl AsFd) {
    // First: in a read-only subvolume no flag can be changed.
    if btrfs::is_subvolume(file.as_fd()) {
        let _ = btrfs::make_writable(file.as_fd());
    }
    if let Ok(flags) = ioctl::inode_flags(file.as_fd())
        && flags & (IMMUTABLE | APPEND_ONLY) != 0
    {
        let _ = ioctl::set_inode_flags(file, flags & !(IMMUTABLE | APPEND_ONLY));
    }
}

#[cfg(test)]
mod tests;
