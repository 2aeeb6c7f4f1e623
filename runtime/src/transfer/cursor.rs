//! Places in a tree that is walked: one open directory, and the checked way back up.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};

use super::Trail;
use crate::sys::listing::Listing;
use crate::sys::open;

/// What tells a file from all others that exist: its file system and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(stat: &FileStat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// A directory and the ones that were gone through to it. Only it is open, whatever the depth: the
/// way back is `..`, which has to be what the way there went through.
#[derive(Debug)]
pub(super) struct DirCursor {
    directory: OwnedFd,
    identity: Identity,
    above: Vec<Identity>,
}

impl DirCursor {
    /// The top of a tree.
    pub(crate) fn new(directory: OwnedFd) -> io::Result<Self> {
        let identity = Identity::of(&fstat(&directory)?);
        Ok(Self { directory, identity, above: Vec::new() })
    }

    /// Goes down into a directory that was opened here.
    pub(super) fn enter(&mut self, directory: OwnedFd, stat: &FileStat) {
        self.directory = directory;
        self.above.push(std::mem::replace(&mut self.identity, Identity::of(stat)));
    }

    /// The number of directories from the top to here.
    pub(super) fn depth(&self) -> usize {
        self.above.len() + 1
    }

    /// Goes up; returns the directory that was left, or `None` at the top.
    ///
    /// # Errors
    /// ESTALE if the directory has been moved since it was entered.
    pub(super) fn leave(&mut self) -> io::Result<Option<OwnedFd>> {
        let Some(identity) = self.above.last().copied() else { return Ok(None) };
        let parent = open::above(&self.directory)?;
        if Identity::of(&fstat(&parent)?) != identity {
            return Err(Errno::ESTALE.into());
        }
        self.above.pop();
        self.identity = identity;
        Ok(Some(std::mem::replace(&mut self.directory, parent)))
    }
}

impl AsFd for DirCursor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// A [`DirCursor`] and the names that lead to it.
#[derive(Debug)]
pub(crate) struct PathCursor {
    spot: DirCursor,
    trail: Trail,
}

impl PathCursor {
    /// The top of a tree.
    pub(crate) fn new(directory: OwnedFd) -> io::Result<Self> {
        Ok(Self { spot: DirCursor::new(directory)?, trail: Trail::default() })
    }

    /// Goes down into a directory that was opened here.
    pub(crate) fn enter(&mut self, name: &CStr, directory: OwnedFd, stat: &FileStat) {
        self.spot.enter(directory, stat);
        self.trail.push(name);
    }

    /// The number of directories from the top to here.
    pub(crate) fn depth(&self) -> usize {
        self.spot.depth()
    }

    /// How many of `names` lead from the top to here or above.
    pub(crate) fn common(&self, names: &[&CStr]) -> usize {
        self.trail.common(names)
    }

    /// Goes up; returns the directory that was left and its name, or `None` at the top.
    ///
    /// # Errors
    /// ESTALE if the directory has been moved since it was entered.
    pub(crate) fn leave(&mut self) -> io::Result<Option<(OwnedFd, CString)>> {
        let Some(directory) = self.spot.leave()? else { return Ok(None) };
        Ok(Some((directory, self.trail.pop().unwrap_or_default())))
    }

    /// The path of something here, relative to the top.
    pub(crate) fn path(&self, name: &CStr) -> PathBuf {
        self.trail.path(name)
    }
}

impl AsFd for PathCursor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.spot.as_fd()
    }
}

/// Appends the names in a directory, and no more of them than one above a limit: a guest may make
/// them as fast as they are read.
pub(super) fn list(
    directory: BorrowedFd<'_>,
    names: &mut Vec<CString>,
    limit: usize,
) -> nix::Result<()> {
    let mut listing = Listing::of(directory)?;
    while let Some((name, _)) = listing.next()? {
        names.push(name.to_owned());
        if names.len() > limit {
            break;
        }
    }
    Ok(())
}

/// Sorts names, each once and the first one last: what is sent does not depend on the order in
/// which a file system keeps them.
pub(super) fn sort(names: &mut Vec<CString>) {
    names.sort_unstable_by(|one, other| other.cmp(one));
    names.dedup();
}
