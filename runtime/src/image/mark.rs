//! Marks of directories that an archive uses and does not name, which overlays show to no one, and
//! what such a directory is like.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};

use crate::sys;

/// The mark of one, and the mark of a layer's top that says that there is one in it.
pub(super) const MARK: &std::ffi::CStr = c"user.overlay.adl-implicit";
pub(super) const SOME: &std::ffi::CStr = c"user.overlay.adl-some-implicit";

/// The mark of a layer's top that is another's by its archive than it is here.
pub(super) const SQUASHED: &std::ffi::CStr = c"user.overlay.adl-squashed";

/// What a directory is like, and its extended attributes.
pub(super) type Like = (FileStat, Vec<(CString, Vec<u8>)>);

/// Marks a directory that was not named so far.
pub(super) fn mark(directory: BorrowedFd<'_>) -> nix::Result<()> {
    set(directory, MARK)
}

/// It was named now.
pub(super) fn unmark(directory: BorrowedFd<'_>) -> nix::Result<()> {
    match sys::remove_extended_attribute(directory, MARK) {
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(()),
        removed => removed,
    }
}

/// Marks a layer that has such directories.
pub(super) fn mark_layer(top: BorrowedFd<'_>) -> nix::Result<()> {
    set(top, SOME)
}

/// Marks a layer whose top is another's by its archive.
pub(super) fn mark_squashed(top: BorrowedFd<'_>) -> nix::Result<()> {
    set(top, SQUASHED)
}

fn set(directory: BorrowedFd<'_>, name: &std::ffi::CStr) -> nix::Result<()> {
    match sys::set_extended_attribute(directory, name, b"y") {
        // Where there are none, it stays as it was made.
        Err(Errno::EOPNOTSUPP) => Ok(()),
        set => set,
    }
}

pub(super) fn has(directory: BorrowedFd<'_>, name: &std::ffi::CStr) -> bool {
    matches!(sys::extended_attribute(directory, name, &mut [0; 8]), Ok(Some(_)))
}

/// What a directory of several layers is like: as the topmost says that names it.
pub(super) fn like(layers: &[OwnedFd]) -> nix::Result<Option<Like>> {
    let named = layers.iter().find(|layer| !has(layer.as_fd(), MARK)).or(layers.first());
    let Some(named) = named else { return Ok(None) };
    let mut extended = Vec::new();
    for name in sys::extended_attributes(named.as_fd())? {
        let mut buffer = vec![0; 64 << 10];
        if let Some(value) = sys::extended_attribute(named.as_fd(), &name, &mut buffer)? {
            extended.push((name, value.to_owned()));
        }
    }
    Ok(Some((fstat(named)?, extended)))
}
