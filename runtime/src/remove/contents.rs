//! The removal of a tree that a guest has made, whatever it has made it of.
//!
//! Three things stop unlink(2) and rmdir(2) beside what is in a directory: the flags of chattr(1),
//! and subvolumes of btrfs, read-only or with others in them. They are looked for only where the
//! kernel refuses something, so a tree without them costs no call more.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::btrfs;
use crate::state::DIRECTORY;
use crate::sys::ioctl::{self, APPEND_ONLY, IMMUTABLE};

/// How many names of a directory are held at once.
const AT_ONCE: usize = 512;

/// Removes all below `root`, which no one else changes any more. Where it is interrupted, the next
/// call goes on.
///
/// Neither recursive nor with a descriptor for each level, since a guest chooses the depth: a
/// directory that is not empty is moved up to `root` first, under a number, and its turn comes.
pub(crate) fn remove_contents(root: BorrowedFd<'_>) -> io::Result<()> {
    Top::new(root).empty(None)
}

/// Removes an entry with all that is in it: a file, a directory or a btrfs subvolume. It is no
/// error if there is none.
pub(crate) fn remove_entry(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let removed = insist(&[], parent, name, || {
        let removed = remove_one(parent, name)?;
        if removed == Removed::No {
            make_accessible(parent, name)?;
        }
        Ok(removed)
    })?;
    if removed == Removed::Yes {
        return Ok(());
    }
    let directory = openat(parent, name, DIRECTORY, Mode::empty())?;
    if btrfs::is_subvolume(&directory) && btrfs::destroy(parent, name).is_ok() {
        return Ok(());
    }
    remove_contents(directory.as_fd())?;
    remove_empty(parent, name)
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

/// A directory that is to become empty, and those that were moved up to it. Of a subvolume it must
/// be the top: a directory can't be moved out of one.
struct Top<'a> {
    fd: BorrowedFd<'a>,
    /// The number of the next one. The names of those that an earlier call has moved, or of a guest
    /// who has thought of it, are passed over: they are entries like any others.
    next: u64,
    /// The numbers of those whose turn is to come, the smallest first.
    waiting: Vec<u64>,
}

#[derive(PartialEq, Eq)]
enum Emptied {
    Yes,
    /// It is the top of a subvolume, and as it was.
    Subvolume,
}

#[derive(PartialEq, Eq)]
enum Removed {
    Yes,
    /// It is a directory with something in it.
    No,
}

impl<'a> Top<'a> {
    fn new(fd: BorrowedFd<'a>) -> Self {
        Self { fd, next: 0, waiting: Vec::new() }
    }

    /// Removes all that is in it. `outer` is where a subvolume in which there are others is moved
    /// for its turn: this is one itself, and they may be nested to any depth.
    fn empty(mut self, mut outer: Option<&mut Top<'_>>) -> io::Result<()> {
        self.remove_entries(self.fd)?;
        while let Some(number) = self.waiting.pop() {
            let name = moved_name(number);
            let name = OsStr::new(&name);
            let directory = openat(self.fd, name, DIRECTORY, Mode::empty())?;
            if self.remove_entries(directory.as_fd())? == Emptied::Subvolume {
                // Not where others are in it, nor for a user who may not.
                if btrfs::destroy(self.fd, name).is_ok() {
                    continue;
                }
                match &mut outer {
                    Some(outer) => {
                        outer.take(self.fd, name)?;
                        continue;
                    }
                    None => Top::new(directory.as_fd()).empty(Some(&mut self))?,
                }
            }
            remove_empty(self.fd, name)?;
        }
        Ok(())
    }

    fn remove_entries(&mut self, directory: BorrowedFd<'_>) -> io::Result<Emptied> {
        let in_top = directory.as_raw_fd() == self.fd.as_raw_fd();
        // Again until a pass finds nothing to do, since removal may change the order of what
        // follows.
        loop {
            let mut names = Dir::openat(directory, ".", DIRECTORY, Mode::empty())?.into_iter();
            let mut has_removed = false;
            loop {
                // Some at a time: a guest may have made millions.
                let mut some = Vec::new();
                let mut count = 0;
                let mut may_be_subvolume = false;
                for entry in names.by_ref().take(AT_ONCE) {
                    let entry = entry?;
                    count += 1;
                    match entry.file_name().to_bytes() {
                        b"." => may_be_subvolume = !in_top && entry.ino() == btrfs::TOP_INODE,
                        b".." => {}
                        name => some.push(OsStr::from_bytes(name).to_owned()),
                    }
                }
                if count == 0 {
                    break;
                }
                // Of btrfs, "." is the first name, so nothing has been removed yet.
                if may_be_subvolume && btrfs::is_subvolume(directory) {
                    return Ok(Emptied::Subvolume);
                }
                for name in some {
                    if !(in_top && self.is_waiting(&name)) {
                        self.remove_or_take(directory, &name)?;
                        has_removed = true;
                    }
                }
            }
            if !has_removed {
                return Ok(Emptied::Yes);
            }
        }
    }

    /// Removes one entry, or, if it is a directory with something in it, moves it up here.
    fn remove_or_take(&mut self, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        insist(&[self.fd, directory], directory, name, || match remove_one(directory, name)? {
            Removed::Yes => Ok(()),
            Removed::No => self.take(directory, name),
        })?;
        Ok(())
    }

    /// Moves a directory up here.
    fn take(&mut self, from: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
        make_accessible(from, name)?;
        let mut number = self.next;
        loop {
            let to = moved_name(number);
            match renameat2(from, name, self.fd, to.as_str(), RenameFlags::RENAME_NOREPLACE) {
                Err(Errno::EEXIST) => number += 1,
                moved => break moved?,
            }
        }
        self.waiting.push(number);
        self.next = number + 1;
        Ok(())
    }

    fn is_waiting(&self, name: &OsStr) -> bool {
        number_of(name).is_some_and(|number| self.waiting.binary_search(&number).is_ok())
    }
}

/// Removes one entry, unless it is a directory with something in it.
fn remove_one(directory: BorrowedFd<'_>, name: &OsStr) -> nix::Result<Removed> {
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

/// To move a directory is to write its "..", and to empty it is to read it; a guest, or overlayfs,
/// may have left it without those rights.
fn make_accessible(directory: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    fchmodat(directory, name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink)
}

/// Attempts something with an entry of a directory, and where the kernel refuses it, once more
/// without what else may stand in the way: flags, and the read-only state of subvolumes, of the
/// entry and of the directories `around` it.
fn insist<T>(
    around: &[BorrowedFd<'_>],
    directory: BorrowedFd<'_>,
    name: &OsStr,
    mut attempt: impl FnMut() -> nix::Result<T>,
) -> nix::Result<T> {
    match attempt() {
        Err(Errno::EPERM | Errno::EACCES | Errno::EROFS) => {}
        done => return done,
    }
    for directory in around {
        unlock(directory);
    }
    // To open anything else could wait, or wake a driver up. O_NONBLOCK: for a lease.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let can_be_opened = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR));
    if can_be_opened && let Ok(entry) = openat(directory, name, flags, Mode::empty()) {
        unlock(entry);
    }
    attempt()
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

/// Not the name of anything that adl makes in a sandbox's directory.
fn moved_name(number: u64) -> String {
    format!("removing-{number}")
}

/// Of a name as [`moved_name`] makes it.
fn number_of(name: &OsStr) -> Option<u64> {
    let number = name.to_str()?.strip_prefix("removing-")?.parse().ok()?;
    (name == moved_name(number).as_str()).then_some(number)
}

#[cfg(test)]
mod tests;
