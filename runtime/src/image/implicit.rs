//! Directories that an archive uses and does not name.
//!
//! A layer is unpacked by itself, so that such a directory of it is root's, with the mode 0755, and
//! in an overlay would hide what a lower layer says of it. Programs that unpack all layers into one
//! directory leave it as the lower one has it. So it has a mark, which overlays show to no one, and
//! a layer above all others gives it back what it had.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use crate::error::{Error, Result};
use crate::image::mark::{Like, MARK, SOME, SQUASHED, has, like};
use crate::image::view::{View, is_opaque};
use crate::store::contents::directories;
use crate::sys::open::DIRECTORY;
use crate::transfer::PathCursor;

/// The longest path of one that gets back what it had, in bytes (`PATH_MAX`): the layer above is
/// made by whole paths.
const LONGEST: usize = 4096 - 1;
/// The most of them, and the most that their paths and extended attributes take, in bytes: they are
/// all in memory at once.
const MOST: usize = if cfg!(test) { 100 } else { 100_000 };
const MOST_BYTES: usize = if cfg!(test) { 64 << 10 } else { 64 << 20 };

/// What is found.
#[derive(Default)]
struct Found {
    directories: BTreeMap<PathBuf, Like>,
    bytes: usize,
}

impl Found {
    fn add(&mut self, path: &Path, like: Like) -> Result<()> {
        let extended = like.1.iter().map(|(name, value)| name.count_bytes() + value.len());
        self.bytes += path.as_os_str().len() + extended.sum::<usize>();
        self.directories.insert(path.to_owned(), like);
        let most = |what, limit: usize| Error::TooLarge { what, limit: limit as u64 };
        if self.directories.len() > MOST {
            return Err(most("the number of directories that layers use and don't name", MOST));
        }
        if self.bytes > MOST_BYTES {
            let what = "what directories have that layers use and don't name, in bytes,";
            return Err(most(what, MOST_BYTES));
        }
        Ok(())
    }
}

/// The directories of layers that have to get back what lower layers say of them, and those on the
/// way there, each with what it is like. `layers` are the topmost first.
///
/// # Errors
/// [`Error::TooLarge`] where there are more than can be kept, [`Error::Refused`] of a path that is
/// longer than the kernel takes: what can't be given back is not left out.
pub(super) fn to_restore(layers: &[PathBuf], view: &View) -> Result<BTreeMap<PathBuf, Like>> {
    let mut found = Found::default();
    // Below the lowest there is nothing.
    for path in layers.iter().take(layers.len().saturating_sub(1)) {
        let top = nix::fcntl::open(path, DIRECTORY, Mode::empty());
        let walked = top.map_err(io::Error::from).and_then(|top| {
            if has(top.as_fd(), SOME) { walk(top, view, &mut found) } else { Ok(()) }
        });
        walked.map_err(|error| {
            // An error of adl's own says itself what it is about.
            error.downcast().unwrap_or_else(Error::at("look for directories in", path))
        })?;
    }
    Ok(found.directories)
}

fn walk(top: OwnedFd, view: &View, found: &mut Found) -> io::Result<()> {
    restore(top.as_fd(), Path::new(""), view, found)?;
    let mut left = vec![directories(top.as_fd())?];
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
        left.push(directories(directory.as_fd())?);
        place.enter(&CString::new(name.as_bytes())?, directory, &stat);
        let path = place.path(c"");
        restore(place.as_fd(), &path, view, found)?;
    }
    Ok(())
}

/// The directories of a name in several layers, as far down as it is one.
fn of_name(above: &[OwnedFd], name: &OsStr) -> io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for layer in above {
        match openat(layer, name, DIRECTORY, Mode::empty()) {
            Ok(directory) => found.push(directory),
            Err(Errno::ENOENT) => {}
            Err(Errno::ENOTDIR | Errno::ELOOP) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(found)
}

/// Notes a directory, if it is the topmost of its name and has hidden what is below it.
fn restore(
    directory: BorrowedFd<'_>,
    path: &Path,
    view: &View,
    found: &mut Found,
) -> io::Result<()> {
    if !has(directory, MARK) {
        return Ok(());
    }
    let identity = |stat: FileStat| (stat.st_dev, stat.st_ino);
    let own = identity(fstat(directory)?);
    let mut way = view.way(path)?;
    if let [.., (_, above), (name, last)] = way.as_mut_slice()
        && is_opaque(directory)
    {
        // Its content is hidden, and what it is like is not.
        *last = Arc::new(of_name(above, name)?);
    }
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
        // For other ids the owner may be another, and the image has one record for all.
        && !last.iter().any(|layer| has(layer.as_fd(), SQUASHED))
    {
        return Ok(());
    }
    if path.as_os_str().len() > LONGEST {
        let why = format!(
            "a layer uses a directory and does not name it, and its path is above {LONGEST} bytes"
        );
        return Err(io::Error::other(Error::refused(why)));
    }
    let mut at = PathBuf::new();
    for (name, layers) in &way {
        at.push(OsStr::new(name));
        if !found.directories.contains_key(&at)
            && let Some(like) = like(layers)?
        {
            found.add(&at, like).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{MOST, View, to_restore};
    use crate::error::{Error, Result};
    use crate::image::options::Caps;
    use crate::image::tests::{Head, Scratch, Tar, unpack_as};
    use crate::image::unpack::Form;

    /// What there is to restore of a layer that uses directories upon one that names them.
    fn of(named: Tar, used: Tar) -> Result<Vec<PathBuf>> {
        let scratch = Scratch::new();
        let layers = [("upper", used), ("lower", named)].map(|(name, tar)| {
            let place = scratch.path(name);
            let caps = Caps { depth: 100, ..Caps::default() };
            unpack_as(&tar.end(), &place, Form::Layer, caps).unwrap();
            place
        });
        let found = to_restore(&layers, &View::open(&layers)?)?;
        Ok(found.into_keys().collect())
    }

    fn named(tar: Tar, path: &str) -> Tar {
        tar.add(&Head::new(b'5', path).mode("700"), "")
    }

    #[test]
    fn as_many_are_restored_as_can_be_kept_and_more_are_an_error() {
        let many = |count: usize| {
            let lower = (0..count).fold(Tar::new(), |tar, number| named(tar, &number.to_string()));
            let upper = (0..count).fold(Tar::new(), |tar, at| tar.file(format!("{at}/x"), ""));
            of(lower, upper)
        };
        // With the top.
        assert_eq!(many(MOST - 1).unwrap().len(), MOST);
        let refused = many(MOST);
        assert!(matches!(refused, Err(Error::TooLarge { limit: 100, .. })), "{refused:?}");
        // By what they have.
        let heavy = (0..40).fold(Tar::new(), |tar, number| {
            named(tar.pax(&[("SCHILY.xattr.user.note", "n".repeat(2000))]), &number.to_string())
        });
        let upper = (0..40).fold(Tar::new(), |tar, number| tar.file(format!("{number}/x"), ""));
        let refused = of(heavy, upper);
        assert!(matches!(refused, Err(Error::TooLarge { limit: 65_536, .. })), "{refused:?}");
    }

    #[test]
    fn a_path_that_is_too_long_to_be_restored_is_refused() {
        let deep = |depth: usize| vec!["n".repeat(250); depth].join("/");
        let long = |tar: Tar, path: &str| tar.pax(&[("path", path)]);
        // 16 names take 4015 bytes.
        for (depth, fits) in [(16, true), (17, false)] {
            let lower =
                (1..=depth).fold(Tar::new(), |tar, depth| named(long(tar, &deep(depth)), "d"));
            let file = format!("{}/x", deep(depth));
            let found = of(lower, long(Tar::new(), &file).file("x", ""));
            match found {
                Ok(paths) if fits => assert_eq!(paths.last().unwrap(), Path::new(&deep(depth))),
                Err(Error::Refused { why }) if !fits => assert!(why.contains("4095"), "{why}"),
                other => panic!("{depth}: {other:?}"),
            }
        }
    }
}
