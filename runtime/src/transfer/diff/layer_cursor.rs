//! Layers that lie on one another, and what they have under a name.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Component;

use adl_protocol::FileKind;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstat, fstatat};

use super::super::cursor::DirCursor;
use super::super::sender::kind_of;
use super::{ChangeForm, ChangeKind, OpenedStack};
use crate::sys;
use crate::sys::open::{Purpose, beneath};

/// What a tree is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Against {
    /// The image: the walk goes through what may have been changed.
    Image,
    /// Nothing: the walk goes through all there is.
    Nothing,
}

/// What layers that lie on one another have under a name.
pub(super) enum Found {
    Nothing,
    /// A mark that hides what lower layers have.
    Whiteout,
    /// One that hides what lower layers have if it is closed, or is one with their directories.
    Directory {
        merged: Merged,
        is_closed: bool,
    },
    Other {
        layer: usize,
        stat: FileStat,
    },
}

/// A directory of each of some layers, the topmost first.
pub(super) type Merged = Vec<Opened>;

pub(super) struct Opened {
    layer: usize,
    directory: OwnedFd,
    pub(super) stat: FileStat,
}

/// A system call that failed, and how.
pub(super) type Failure = (&'static str, Errno);

/// A stack, as far as the walk has come in each of its layers.
pub(super) struct LayerCursor {
    pub(super) at: Vec<CString>,
    /// First the layers of how it is now, then those of how it was.
    pub(super) layers: Vec<DirCursor>,
    /// How many of them are of how it is now.
    pub(super) now: usize,
    pub(super) kind: ChangeForm,
    has_owners: bool,
}

impl LayerCursor {
    pub(super) fn new(stack: &OpenedStack<'_>, against: Against) -> io::Result<Self> {
        let mut now = stack.changed.clone();
        let mut before = stack.image.clone();
        match (against, stack.kind) {
            (Against::Image, _) => {}
            (Against::Nothing, ChangeForm::Whiteouts) => now.append(&mut before),
            (Against::Nothing, ChangeForm::WholeCopy) => before.clear(),
        }
        let layers = now.iter().chain(&before).map(|layer| {
            let directory = beneath(layer, c".", Purpose::List)?;
            DirCursor::new(directory)
        });
        let layers = layers.collect::<io::Result<Vec<_>>>();
        let names = stack.at.components().filter_map(|component| match component {
            Component::Normal(name) => CString::new(name.as_bytes()).ok(),
            _ => None,
        });
        let (kind, has_owners) = (stack.kind, stack.has_owners);
        Ok(Self { at: names.collect(), layers: layers?, now: now.len(), kind, has_owners })
    }

    /// What some layers of the directory that the walk is in have under a name.
    pub(super) fn find(&self, layers: &[usize], name: &CStr) -> Result<Found, Failure> {
        let mut merged = Merged::new();
        for &layer in layers {
            let Some(spot) = self.layers.get(layer) else { continue };
            let stat = match fstatat(spot, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(("stat", errno)),
            };
            if kind_of(&stat) == FileKind::Directory {
                let Some((directory, stat)) = open(spot, name)? else { continue };
                let is_opaque = self.kind == ChangeForm::Whiteouts
                    && is_opaque(directory.as_fd()).map_err(|errno| ("getxattr", errno))?;
                merged.push(Opened { layer, directory, stat });
                if is_opaque {
                    return Ok(Found::Directory { merged, is_closed: true });
                }
            } else if !merged.is_empty() {
                return Ok(Found::Directory { merged, is_closed: true });
            } else if is_whiteout(self.kind, &stat) {
                return Ok(Found::Whiteout);
            } else {
                return Ok(Found::Other { layer, stat });
            }
        }
        let is_closed = false;
        Ok(if merged.is_empty() { Found::Nothing } else { Found::Directory { merged, is_closed } })
    }

    /// Goes down in layers; returns which.
    pub(super) fn enter(&mut self, merged: Merged) -> Vec<usize> {
        let mut layers = Vec::with_capacity(merged.len());
        for Opened { layer, directory, stat } in merged {
            if let Some(spot) = self.layers.get_mut(layer) {
                spot.enter(directory, &stat);
                layers.push(layer);
            }
        }
        layers
    }

    /// What has become of something.
    pub(super) fn compare(
        &self,
        now: &Found,
        before: &Found,
        is_hidden: bool,
    ) -> Option<ChangeKind> {
        match (now, before) {
            (Found::Nothing | Found::Whiteout, Found::Nothing | Found::Whiteout) => None,
            (Found::Nothing, _) => is_hidden.then_some(ChangeKind::Deleted),
            (Found::Whiteout, _) => Some(ChangeKind::Deleted),
            (_, Found::Nothing | Found::Whiteout) => Some(ChangeKind::Added),
            (Found::Directory { merged: now, .. }, Found::Directory { merged: before, .. }) => {
                let is_other = match (now.first(), before.first()) {
                    (Some(now), Some(before)) => self.is_other_directory(&now.stat, &before.stat),
                    _ => true,
                };
                is_other.then_some(ChangeKind::Modified)
            }
            (Found::Other { stat: now, .. }, Found::Other { stat: before, .. })
                if self.kind == ChangeForm::WholeCopy && is_untouched(now, before) =>
            {
                None
            }
            _ => Some(ChangeKind::Modified),
        }
    }

    pub(super) fn is_other_directory(&self, now: &FileStat, before: &FileStat) -> bool {
        let owners = |stat: &FileStat| self.has_owners.then_some((stat.st_uid, stat.st_gid));
        (now.st_mode, owners(now)) != (before.st_mode, owners(before))
    }
}

/// Opens a directory, unless it is gone, or something else has come in its place.
fn open(spot: &DirCursor, name: &CStr) -> Result<Option<(OwnedFd, FileStat)>, Failure> {
    let opened = beneath(spot, name, Purpose::List)
        .and_then(|directory| Ok((fstat(&directory)?, directory)));
    match opened {
        Ok((stat, directory)) => Ok(Some((directory, stat))),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        Err(errno) => Err(("open", errno)),
    }
}

/// Whether a file of a btrfs snapshot is as it was: no one can set the time of its last change.
fn is_untouched(now: &FileStat, before: &FileStat) -> bool {
    let times = |stat: &FileStat| (stat.st_ctime, stat.st_ctime_nsec);
    now.st_ino == before.st_ino && times(now) == times(before)
}

fn is_whiteout(kind: ChangeForm, stat: &FileStat) -> bool {
    kind == ChangeForm::Whiteouts && kind_of(stat) == FileKind::CharacterDevice && stat.st_rdev == 0
}

/// Whether overlayfs shows nothing of lower layers in a directory.
fn is_opaque(directory: BorrowedFd<'_>) -> nix::Result<bool> {
    let mut value = [0; 1];
    match sys::extended_attribute(directory, c"user.overlay.opaque", &mut value) {
        Ok(value) => Ok(value == Some(b"y")),
        // Something longer.
        Err(Errno::ERANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}
