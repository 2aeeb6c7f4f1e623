//! Directories of an archive: the way to each, and what it gets when it is left.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::metadata::Attributes;
use super::{Form, Unpacker, is_directory, is_whiteout};
use crate::error::{Error, Result};
use crate::image::mark;
use crate::sys;
use crate::sys::open::{Purpose, beneath};
use crate::transfer::attributes;
use crate::transfer::tar::Member;

/// The most that is kept of extended attributes, in bytes, for all directories from the top to
/// where something is made.
const MOST_KEPT: usize = 8 << 20;

/// What a directory gets when it is left: what is made in it changes its time, and what may not be
/// written to is written to before.
pub(super) enum Leaving {
    /// What the archive says.
    As(Attributes),
    /// What it had when it was entered again.
    Restored(Mode, TimeSpec),
}

impl Leaving {
    /// How many bytes are kept for it, beside itself.
    pub(super) fn kept(&self) -> usize {
        let Self::As(attributes) = self else { return 0 };
        attributes.extended.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

impl Unpacker<'_> {
    /// Remembers what the directory gets that is entered now.
    fn keep(&mut self, leaving: Leaving) -> Result<()> {
        self.kept += leaving.kept();
        self.left.push(leaving);
        self.check_kept()
    }

    pub(super) fn check_kept(&self) -> Result<()> {
        if self.kept > MOST_KEPT {
            let what = "the extended attributes of directories in one another, in bytes,";
            return Err(Error::TooLarge { what, limit: MOST_KEPT as u64 });
        }
        Ok(())
    }

    /// Goes up and down until the directory of `names` is the current one.
    pub(super) fn go_to(&mut self, names: &[&CStr], of: &Member) -> Result<()> {
        let common = self.place.common(names);
        while self.place.depth() > common + 1 {
            self.leave()?;
        }
        for name in names.iter().skip(common) {
            self.pass(name, of)?;
        }
        Ok(())
    }

    /// Enters a directory on the way to something, which is made if there is none.
    fn pass(&mut self, name: &CStr, of: &Member) -> Result<()> {
        match self.stat(name) {
            Ok(stat) if is_directory(&stat) => self.enter_again(name, None),
            Ok(stat) if !is_whiteout(&stat) => {
                Err(Error::refused("a path through what is no directory"))
            }
            Ok(_) | Err(Errno::ENOENT) => {
                self.count()?;
                let modified = Some(of.modified);
                self.enter(name, Leaving::As(Attributes { modified, ..Attributes::default() }))?;
                self.mark(self.here(), name)?;
                self.has_implicit = true;
                Ok(())
            }
            Err(errno) => Err(self.failed("stat", name, errno)),
        }
    }

    /// Marks a directory that the archive has not named so far.
    pub(super) fn mark(&self, directory: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        if self.form == Form::Root {
            return Ok(());
        }
        mark::mark(directory).map_err(self.not_set(directory, name))
    }

    /// Makes a directory, or takes the one that is there, and enters it.
    pub(super) fn enter(&mut self, name: &CStr, leaving: Leaving) -> Result<()> {
        let make = || mkdirat(self.here(), name, Mode::S_IRWXU);
        let mut replaces = false;
        match make() {
            Err(Errno::EEXIST) => {
                let stat = self.stat(name).map_err(|errno| self.failed("stat", name, errno))?;
                if is_directory(&stat) {
                    return self.enter_again(name, Some(leaving));
                }
                replaces = true;
                unlinkat(self.here(), name, UnlinkatFlags::NoRemoveDir).and_then(|()| make())
            }
            made => made,
        }
        .map_err(|errno| self.failed("mkdir", name, errno))?;
        let (directory, stat) = self.open_directory(name)?;
        if replaces && self.form == Form::Layer {
            // What it replaces has hidden what the layers below have of this name.
            self.set_opaque(directory.as_fd(), name)?;
        }
        self.place.enter(name, directory, &stat);
        self.keep(leaving)
    }

    /// Enters a directory that this has made, which stays as it is or gets what the archive says
    /// now.
    fn enter_again(&mut self, name: &CStr, leaving: Option<Leaving>) -> Result<()> {
        let (directory, stat) = self.open_directory(name)?;
        let leaving = if let Some(leaving) = leaving {
            attributes::clear(directory.as_fd())
                .and_then(|()| mark::unmark(directory.as_fd()))
                .map_err(|errno| self.failed("removexattr", name, errno))?;
            leaving
        } else {
            let mode = Mode::from_bits_truncate(stat.st_mode);
            Leaving::Restored(mode, TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec))
        };
        self.place.enter(name, directory, &stat);
        self.keep(leaving)
    }

    /// Opens a directory that this has made, so that something can be made in it. What it was
    /// before is returned.
    pub(super) fn open_directory(&self, name: &CStr) -> Result<(OwnedFd, FileStat)> {
        let opened = match beneath(self.here(), name, Purpose::List) {
            Err(Errno::EACCES) => self.open_closed(name),
            opened => opened.and_then(|directory| {
                let stat = fstat(&directory)?;
                let mode = Mode::from_bits_truncate(stat.st_mode);
                if !mode.contains(Mode::S_IRWXU) {
                    fchmod(&directory, mode | Mode::S_IRWXU)?;
                }
                Ok((directory, stat))
            }),
        };
        opened.map_err(|errno| self.failed("open", name, errno))
    }

    /// As an ordinary user, one that its owner may not list.
    fn open_closed(&self, name: &CStr) -> nix::Result<(OwnedFd, FileStat)> {
        let looked = beneath(self.here(), name, Purpose::Pass)?;
        let stat = fstat(&looked)?;
        sys::change_mode(&looked, Mode::from_bits_truncate(stat.st_mode) | Mode::S_IRWXU)?;
        Ok((beneath(&looked, c".", Purpose::List)?, stat))
    }

    /// Goes up; `false` if that was the top.
    pub(super) fn leave(&mut self) -> Result<bool> {
        let Some(leaving) = self.left.pop() else { return Ok(false) };
        self.kept = self.kept.saturating_sub(leaving.kept());
        let left = self.place.leave();
        let left = left.map_err(Error::at("open the directory above", &self.path(c"")))?;
        if let Some((directory, name)) = left {
            self.finish(directory.as_fd(), &name, leaving)?;
            return Ok(true);
        }
        let top = self.top.try_clone().map_err(Error::at("dup", self.target))?;
        self.finish(top.as_fd(), c"", leaving)?;
        Ok(false)
    }

    fn finish(&mut self, directory: BorrowedFd<'_>, name: &CStr, leaving: Leaving) -> Result<()> {
        let (mode, modified) = match leaving {
            Leaving::As(attributes) => return self.set_attributes(directory, name, &attributes),
            Leaving::Restored(mode, modified) => (mode, modified),
        };
        if !mode.contains(Mode::S_IRWXU) {
            fchmod(directory, mode).map_err(|errno| self.failed("chmod", name, errno))?;
        }
        futimens(directory, &TimeSpec::UTIME_OMIT, &modified)
            .map_err(|errno| self.failed("set the time of", name, errno))
    }
}
