//! Walks a tree of the host and sends it to a job.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use adl_protocol::FileKind;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstat, fstatat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};

use super::cursor::{DirCursor, list, sort};
use super::sender::{Sender, kind_of};
use super::{CopyOptions, CopyReport, Outgoing, Tally};
use crate::error::{Error, Result};
use crate::sys::open::{Location, Purpose, beneath};

/// Sends what is at `source` and all below it, where no symbolic link is followed.
///
/// What is removed while the copy goes on is not in it. Content is that of the length which a file
/// had when it was opened.
///
/// # Errors
/// [`Error::Io`] of a file that can't be read, ESTALE for a directory that was moved meanwhile,
/// [`Error::TooLarge`], and what [`Outgoing`] says.
pub(crate) fn send(
    source: &Location,
    to: &mut Outgoing,
    options: &CopyOptions,
    report: &mut CopyReport,
) -> Result<()> {
    let mut sender = Sender::new(source.shown(), to, options, report);
    top(source, &mut sender)?;
    sender.flush()
}

/// Sends the top and, if it is a directory, all in it.
fn top(source: &Location, sender: &mut Sender<'_>) -> Result<()> {
    let shown = source.shown();
    let there = source.open("open", Purpose::Look)?;
    let stat = fstat(&there).map_err(Error::at("stat", shown))?;
    let purpose = match kind_of(&stat) {
        FileKind::Directory => Purpose::List,
        FileKind::File => Purpose::Read,
        // Not opened: to a driver that may be an order already.
        kind => return sender.skip(c"", kind),
    };
    let opened = source.open("open", purpose)?;
    let file_system = fstatfs(&opened).map_err(Error::at("statfs", shown))?.filesystem_type();
    if matches!(file_system, PROC_SUPER_MAGIC | SYSFS_MAGIC) {
        // Their files say that they are empty, or of one page, whatever is in them.
        return Err(Error::invalid("source", "on procfs or sysfs, whose files tell no size"));
    }
    if purpose == Purpose::Read {
        return sender.opened(c"", &opened);
    }
    let stat = fstat(&opened).map_err(Error::at("fstat", shown))?;
    let extended = sender.extended_of(opened.as_fd(), c"")?;
    sender.directory(c"", &stat, &extended)?;
    let spot = DirCursor::new(opened).map_err(Error::at("fstat", shown))?;
    Walk { sender, spot }.run()
}

struct Walk<'a, 'b> {
    sender: &'a mut Sender<'b>,
    spot: DirCursor,
}

impl Walk<'_, '_> {
    fn run(&mut self) -> Result<()> {
        let mut levels = vec![self.names()?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.pop() else {
                levels.pop();
                let left = self.spot.leave().map_err(|error| {
                    Error::at("open the directory above", &self.sender.path(c""))(error)
                });
                self.sender.leave()?;
                left?;
                continue;
            };
            let Some(stat) = self.present(&name)? else { continue };
            if kind_of(&stat) != FileKind::Directory {
                self.sender.other(self.spot.as_fd(), &name, &stat)?;
                continue;
            }
            Tally::depth(self.sender.depth())?;
            let Some((directory, stat)) = self.open(&name)? else { continue };
            let extended = self.sender.extended_of(directory.as_fd(), &name)?;
            self.sender.directory(&name, &stat, &extended)?;
            self.spot.enter(directory, &stat);
            levels.push(self.names()?);
        }
        Ok(())
    }

    /// What something here is, unless it is gone.
    fn present(&self, name: &CStr) -> Result<Option<FileStat>> {
        match fstatat(&self.spot, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.sender.failed("stat", name, errno)),
        }
    }

    fn open(&self, name: &CStr) -> Result<Option<(OwnedFd, FileStat)>> {
        let opened = beneath(&self.spot, name, Purpose::List)
            .and_then(|directory| Ok((fstat(&directory)?, directory)));
        match opened {
            Ok((stat, directory)) => Ok(Some((directory, stat))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.sender.failed("open", name, errno)),
        }
    }

    fn names(&self) -> Result<Vec<CString>> {
        let mut names = Vec::new();
        list(self.spot.as_fd(), &mut names, usize::MAX)
            .map_err(|errno| self.sender.failed("list", c"", errno))?;
        sort(&mut names);
        Ok(names)
    }
}
