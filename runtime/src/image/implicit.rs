//! Directories that an archive uses and does not name.
//!
//! A layer is unpacked by itself, so that such a directory of it is root's, with the mode 0755, and
//! in an overlay would hide what a lower layer says of it. Programs that unpack all layers into one
//! directory leave it as the lower one has it. So it has a mark, which overlays show to no one, and
//! a layer above all others gives it back what it had.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use crate::error::{Error, Result};
use crate::image::mark::{Like, MARK, SOME, has, like};
use crate::image::view::View;
use crate::store::contents::entries;
use crate::sys::open::DIRECTORY;
use crate::transfer::PathCursor;

/// The longest path of one that gets back what it had, in bytes (`PATH_MAX`).
const LONGEST: usize = 4096 - 1;
/// The most of them.
const MOST: usize = 100_000;

/// The directories of layers that have to get back what lower layers say of them, and those on the
/// way there, each with what it is like. `layers` are the topmost first.
pub(super) fn to_restore(layers: &[PathBuf], view: &View) -> Result<BTreeMap<PathBuf, Like>> {
    let mut found = BTreeMap::new();
    // Below the lowest there is nothing.
    for path in layers.iter().take(layers.len().saturating_sub(1)) {
        let at = Error::at("look for directories in", path);
        let top = nix::fcntl::open(path, DIRECTORY, Mode::empty());
        let walk = top.map_err(std::io::Error::from).and_then(|top| {
            if has(top.as_fd(), SOME) { walk(top, view, &mut found) } else { Ok(()) }
        });
        walk.map_err(at)?;
    }
    Ok(found)
}

fn walk(top: OwnedFd, view: &View, found: &mut BTreeMap<PathBuf, Like>) -> std::io::Result<()> {
    restore(top.as_fd(), Path::new(""), view, found)?;
    let mut left = vec![entries(top.as_fd())?];
    let mut place = PathCursor::new(top)?;
    while let Some(names) = left.last_mut() {
        let Some(name) = names.pop() else {
            left.pop();
            place.leave()?;
            continue;
        };
        let stat = fstatat(place.as_fd(), name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
            continue;
        }
        let directory = openat(place.as_fd(), name.as_os_str(), DIRECTORY, Mode::empty())?;
        left.push(entries(directory.as_fd())?);
        place.enter(&CString::new(name.as_bytes())?, directory, &stat);
        let path = place.path(c"");
        restore(place.as_fd(), &path, view, found)?;
    }
    Ok(())
}

/// Notes a directory, if it is the topmost of its name and has hidden what is below it.
fn restore(
    directory: BorrowedFd<'_>,
    path: &Path,
    view: &View,
    found: &mut BTreeMap<PathBuf, Like>,
) -> std::io::Result<()> {
    if !has(directory, MARK) || path.as_os_str().len() > LONGEST || found.len() >= MOST {
        return Ok(());
    }
    let identity = |stat: FileStat| (stat.st_dev, stat.st_ino);
    let own = identity(fstat(directory)?);
    let way = view.way(path)?;
    let Some((_, last)) = way.last() else { return Ok(()) };
    let is_topmost =
        last.first().is_some_and(|top| fstat(top).is_ok_and(|top| identity(top) == own));
    let hides = last.iter().any(|layer| !has(layer.as_fd(), MARK));
    if way.len() != path.components().count() + 1 || !is_topmost || !hides {
        return Ok(());
    }
    // Most layers don't name their top. One more for its time alone would be one too many.
    let of = |stat: &FileStat| (stat.st_mode, stat.st_uid, stat.st_gid);
    if path.as_os_str().is_empty()
        && let Some((stat, extended)) = like(last)?
        && extended.is_empty()
        && of(&stat) == of(&fstat(directory)?)
    {
        return Ok(());
    }
    let mut at = PathBuf::new();
    for (name, layers) in &way {
        at.push(OsStr::new(name));
        if !found.contains_key(&at)
            && let Some(like) = like(layers)?
        {
            found.insert(at.clone(), like);
        }
    }
    Ok(())
}
