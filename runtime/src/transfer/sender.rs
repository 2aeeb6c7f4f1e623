//! Writes files, directories and links as entries of the stream.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use adl_protocol::{Attributes, Chunk, Entry, FileKind, MAX_CHUNK, Strings, Time};
use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{Whence, lseek};

use super::attributes::{self, Extended};
use super::cursor::Identity;
use super::pipe::MAX_ENTRY;
use super::{CopyOptions, CopyReport, Outgoing, Tally, Trail, at_file};
use crate::error::{Error, Result};
use crate::sys::open::{Purpose, beneath};

/// The most that the ways to files with further names may take, in bytes. Names of files beyond
/// that are each sent as a file.
const MOST_LINKS: usize = 256 << 20;

/// Sends what a walk meets, and knows where in the tree that is.
pub(super) struct Sender<'a> {
    /// What paths of errors begin with.
    source: &'a Path,
    to: &'a mut Outgoing,
    tally: Tally<'a>,
    /// Files with further names, and the names that lead to the first from the top.
    links: HashMap<Identity, Vec<u8>>,
    /// What those names take, in bytes.
    links_size: usize,
    /// From the top to the directory that what comes next is in.
    trail: Trail,
    /// The number of directories that have been sent and not left.
    depth: usize,
}

impl<'a> Sender<'a> {
    pub(super) fn new(
        source: &'a Path,
        to: &'a mut Outgoing,
        options: &'a CopyOptions,
        report: &'a mut CopyReport,
    ) -> Self {
        let tally = Tally::new(options, report);
        let (links, trail) = (HashMap::new(), Trail::default());
        Self { source, to, tally, links, links_size: 0, trail, depth: 0 }
    }

    /// The number of directories that what comes next is in.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// The path of something here, for errors.
    pub(super) fn path(&self, name: &CStr) -> PathBuf {
        let relative = self.trail.path(name);
        if relative.as_os_str().is_empty() {
            self.source.into()
        } else {
            self.source.join(relative)
        }
    }

    pub(super) fn failed(&self, operation: &'static str, name: &CStr, errno: Errno) -> Error {
        Error::at(operation, &self.path(name))(errno)
    }

    /// As [`Outgoing::check_time`].
    pub(super) fn check_time(&self) -> Result<()> {
        self.to.check_time()
    }

    /// To be called at the end.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.to.flush()
    }

    /// Sends a directory; what follows is in it. The top has an empty name.
    pub(super) fn directory(
        &mut self,
        name: &CStr,
        stat: &FileStat,
        extended: &Extended,
    ) -> Result<()> {
        self.tally.entry()?;
        self.extended(extended)?;
        let attributes = Some(self.attributes(stat));
        self.to.entry(&Entry::Directory { name: string(name)?, attributes })?;
        self.tally.report.directories += 1;
        if self.depth > 0 {
            self.trail.push(name);
        }
        self.depth += 1;
        Ok(())
    }

    /// The extended attributes of something that is open here.
    pub(super) fn extended_of(&self, file: BorrowedFd<'_>, name: &CStr) -> Result<Extended> {
        if !self.tally.options.extended {
            return Ok(Extended::new());
        }
        attributes::read(file, self.tally.options)
            .map_err(|errno| self.failed("list attributes of", name, errno))
    }

    /// Sends those of what comes next.
    fn extended(&mut self, extended: &Extended) -> Result<()> {
        for (name, value) in extended {
            self.tally.charge(value.len() as u64)?;
            self.to.entry(&Entry::Attribute { name: string(name)?, value })?;
        }
        Ok(())
    }

    /// Ends the directory that was sent last and has not been left.
    pub(super) fn leave(&mut self) -> Result<()> {
        self.depth = self.depth.saturating_sub(1);
        self.trail.pop();
        self.to.entry(&Entry::Leave)
    }

    /// Sends what is no directory and has this name in a directory; nothing if it is gone.
    pub(super) fn other(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        stat: &FileStat,
    ) -> Result<()> {
        match kind_of(stat) {
            FileKind::File => self.file(directory, name, stat),
            FileKind::SymbolicLink => self.symbolic_link(directory, name, stat),
            kind => self.skip(name, kind),
        }
    }

    /// Sends an empty file that no directory holds.
    pub(super) fn empty_file(&mut self, name: &CStr) -> Result<()> {
        self.tally.entry()?;
        let attributes = Attributes { mode: 0o644, ..Attributes::default() };
        self.to.entry(&Entry::File { name: string(name)?, attributes, size: 0 })?;
        self.to.chunk(Chunk::End)?;
        self.tally.report.files += 1;
        Ok(())
    }

    pub(super) fn skip(&mut self, name: &CStr, kind: FileKind) -> Result<()> {
        self.tally.entry()?;
        self.to.entry(&Entry::Skipped { name: string(name)?, kind })?;
        let trail = &self.trail;
        self.tally.report.skip(|| trail.path(name), kind);
        Ok(())
    }

    fn symbolic_link(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        stat: &FileStat,
    ) -> Result<()> {
        let target = match readlinkat(directory, name) {
            Ok(target) => target,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(self.failed("readlink", name, errno)),
        };
        let target = CString::new(target.into_vec()).unwrap_or_default();
        self.tally.entry()?;
        let attributes = self.attributes(stat);
        let (name, target) = (string(name)?, string(&target)?);
        self.to.entry(&Entry::SymbolicLink { name, target, attributes })?;
        self.tally.report.symbolic_links += 1;
        Ok(())
    }

    fn file(&mut self, directory: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> Result<()> {
        if let Some(names) = self.links.get(&Identity::of(stat)) {
            self.tally.entry()?;
            let target = Strings::new(names).map_err(|_| too_deep())?;
            self.to.entry(&Entry::HardLink { name: string(name)?, target })?;
            self.tally.report.hard_links += 1;
            return Ok(());
        }
        match beneath(directory, name, Purpose::Read) {
            Ok(file) => self.opened(name, &file),
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.failed("open", name, errno)),
        }
    }

    /// Sends a file that was opened with [`Purpose::Read`], if it is a regular one: it may have
    /// turned into something else just then.
    pub(super) fn opened(&mut self, name: &CStr, file: &OwnedFd) -> Result<()> {
        let stat = fstat(file).map_err(|errno| self.failed("fstat", name, errno))?;
        let kind = kind_of(&stat);
        if kind != FileKind::File {
            return self.skip(name, kind);
        }
        self.tally.entry()?;
        let attributes = self.attributes(&stat);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let extended = self.extended_of(file.as_fd(), name)?;
        self.extended(&extended)?;
        self.to.entry(&Entry::File { name: string(name)?, attributes, size })?;
        let is_whole = self
            .content(file.as_fd(), &stat, size)
            .map_err(|error| at_file(error, || self.path(name)))?;
        if is_whole {
            self.to.chunk(Chunk::End)?;
        } else {
            self.to.chunk(Chunk::CutOff)?;
            let trail = &self.trail;
            self.tally.report.cut_off(|| trail.path(name));
        }
        self.tally.report.files += 1;
        if stat.st_nlink > 1 && self.depth > 0 {
            self.remember(name, &stat);
        }
        Ok(())
    }

    fn remember(&mut self, name: &CStr, stat: &FileStat) {
        let size = self.trail.bytes.len() + name.to_bytes_with_nul().len();
        // So deep down that an entry could not name it, each name is sent as a file.
        if size < MAX_ENTRY / 2 && self.links_size + size <= MOST_LINKS {
            self.links_size += size;
            let names = [&self.trail.bytes, name.to_bytes_with_nul()].concat();
            self.links.insert(Identity::of(stat), names);
        }
    }

    /// Sends a file's content; `false` if there was less of it than its length had told.
    fn content(&mut self, file: BorrowedFd<'_>, stat: &FileStat, size: u64) -> Result<bool> {
        let on_disk = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let mut at = 0;
        while at < size {
            let (start, end) = if on_disk < size { data(file, at, size)? } else { (at, size) };
            if start > at {
                self.to.chunk(Chunk::Hole(start - at))?;
            }
            at = start;
            while at < end {
                let length = MAX_CHUNK.min(end - at);
                self.tally.bytes(length)?;
                self.to.chunk(Chunk::Data(length))?;
                let moved = self.to.move_from(file, at, length)?;
                if moved < length {
                    self.to.zeros(length - moved)?;
                    return Ok(false);
                }
                at += length;
            }
        }
        Ok(true)
    }

    fn attributes(&self, stat: &FileStat) -> Attributes {
        let options = self.tally.options;
        let (uid, gid) = if options.owners { (stat.st_uid, stat.st_gid) } else { (0, 0) };
        let mask = if options.set_ids { 0o7777 } else { 0o1777 };
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        let modified = Time { seconds: stat.st_mtime, nanoseconds };
        Attributes { mode: stat.st_mode & mask, uid, gid, modified }
    }
}

fn string(name: &CStr) -> Result<Strings<'_>> {
    Strings::new(name.to_bytes_with_nul()).map_err(|_| too_deep())
}

fn too_deep() -> Error {
    Error::TooLarge { what: "a path to copy", limit: MAX_ENTRY as u64 }
}

/// Where the next content is, and where it ends.
fn data(file: BorrowedFd<'_>, at: u64, size: u64) -> Result<(u64, u64)> {
    let seek = |offset: u64, whence| {
        let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
        lseek(file, offset, whence).map(|place| u64::try_from(place).unwrap_or(0))
    };
    let start = match seek(at, Whence::SeekData) {
        Ok(start) => start.clamp(at, size),
        // There is none.
        Err(Errno::ENXIO) => size,
        // A file system that does not know.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok((at, size)),
        Err(errno) => return Err(Error::io(super::pipe::READ)(errno)),
    };
    match seek(start, Whence::SeekHole) {
        Ok(end) if end > start => Ok((start, end.min(size))),
        _ => Ok((start, size)),
    }
}

/// What something is.
pub(super) fn kind_of(stat: &FileStat) -> FileKind {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => FileKind::File,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::SymbolicLink,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharacterDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => FileKind::Unknown,
    }
}
