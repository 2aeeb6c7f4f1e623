//! A tree of the host, on its way to a job.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use adl_protocol::{Attributes, Chunk, Entry, FileKind, MAX_CHUNK, Strings, Time};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, stat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC};
use nix::unistd::{Whence, lseek};

use super::pipe::MAX_ENTRY;
use super::place::{DIRECTORY, Identity, Place};
use super::{CopyOptions, CopyReport, Outgoing, Tally, at_file};
use crate::error::{Error, Result};

/// How a file is opened: one that turns into something else just then must do no harm.
const FILE: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);

/// Sends what is at `source`, a symbolic link there followed, and all below it, where none is.
///
/// What is removed while the copy goes on is not in it. Content is that of the length which a file
/// had when it was opened.
///
/// # Errors
/// [`Error::Io`] of a file that can't be read, ESTALE for a directory that was moved meanwhile,
/// [`Error::TooLarge`], and what [`Outgoing`] says.
pub(crate) fn send(
    source: &Path,
    to: &mut Outgoing,
    options: &CopyOptions,
    report: &mut CopyReport,
) -> Result<()> {
    let tally = Tally::new(options, report);
    let mut sender = Sender { source, to, tally, links: HashMap::new(), place: None };
    sender.run()?;
    to.flush()
}

struct Sender<'a> {
    source: &'a Path,
    to: &'a mut Outgoing,
    tally: Tally<'a>,
    /// Files with further names, and the names that lead to the first from the top.
    links: HashMap<Identity, Vec<u8>>,
    /// `None` at the top.
    place: Option<Place>,
}

impl Sender<'_> {
    fn run(&mut self) -> Result<()> {
        let stat = stat(self.source).map_err(Error::at("stat", self.source))?;
        let file_system = nix::sys::statfs::statfs(self.source)
            .map_err(Error::at("statfs", self.source))?
            .filesystem_type();
        if matches!(file_system, PROC_SUPER_MAGIC | SYSFS_MAGIC) {
            // Their files say that they are empty, or of one page, whatever is in them.
            return Err(Error::invalid("source", "on procfs or sysfs, whose files tell no size"));
        }
        let Some((directory, _)) = self.one(c"", &stat)? else { return Ok(()) };
        let place = Place::new(directory).map_err(Error::at("fstat", self.source))?;
        let mut levels = vec![self.list(place.as_fd())?];
        self.place = Some(place);
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.pop() else {
                levels.pop();
                self.to.entry(&Entry::Leave)?;
                self.leave()?;
                continue;
            };
            let Some(stat) = self.present(&name)? else { continue };
            let Some((directory, stat)) = self.one(&name, &stat)? else { continue };
            if let Some(place) = &mut self.place {
                place.enter(&name, directory, &stat);
                levels.push(self.list(self.here())?);
            }
        }
        Ok(())
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.place.as_ref().map_or(AT_FDCWD, Place::as_fd)
    }

    fn leave(&mut self) -> Result<()> {
        let result = self.place.as_mut().map_or(Ok(None), Place::leave);
        result
            .map(drop)
            .map_err(|error| Error::at("open the directory above", &self.path(c""))(error))
    }

    /// Relative to the top.
    fn relative(&self, name: &CStr) -> PathBuf {
        self.place.as_ref().map(|place| place.path(name)).unwrap_or_default()
    }

    fn path(&self, name: &CStr) -> PathBuf {
        let relative = self.relative(name);
        if relative.as_os_str().is_empty() {
            self.source.into()
        } else {
            self.source.join(relative)
        }
    }

    fn failed(&self, operation: &'static str, name: &CStr, errno: Errno) -> Error {
        Error::at(operation, &self.path(name))(errno)
    }

    /// What something here is, unless it is gone.
    fn present(&self, name: &CStr) -> Result<Option<FileStat>> {
        match fstatat(self.here(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.failed("stat", name, errno)),
        }
    }

    fn open(&self, name: &CStr, flags: OFlag) -> Result<Option<OwnedFd>> {
        let result = if self.place.is_some() {
            openat(self.here(), name, flags, Mode::empty())
        } else {
            openat(AT_FDCWD, self.source, flags.difference(OFlag::O_NOFOLLOW), Mode::empty())
        };
        match result {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT) if self.place.is_some() => Ok(None),
            Err(errno) => Err(self.failed("open", name, errno)),
        }
    }

    /// Sends one file, directory or link; returns the directory, which is not left yet.
    fn one(&mut self, name: &CStr, stat: &FileStat) -> Result<Option<(OwnedFd, FileStat)>> {
        match kind_of(stat) {
            FileKind::Directory => {
                Tally::depth(self.place.as_ref().map_or(0, Place::depth))?;
                let Some(directory) = self.open(name, DIRECTORY)? else { return Ok(None) };
                let stat = fstat(&directory).map_err(|errno| self.failed("fstat", name, errno))?;
                self.tally.entry()?;
                let attributes = self.attributes(&stat);
                self.to.entry(&Entry::Directory {
                    name: string(name)?,
                    attributes: Some(attributes),
                })?;
                self.tally.report.directories += 1;
                return Ok(Some((directory, stat)));
            }
            FileKind::File => self.file(name, stat)?,
            FileKind::SymbolicLink => self.symbolic_link(name, stat)?,
            kind => self.skip(name, kind)?,
        }
        Ok(None)
    }

    fn skip(&mut self, name: &CStr, kind: FileKind) -> Result<()> {
        self.tally.entry()?;
        self.to.entry(&Entry::Skipped { name: string(name)?, kind })?;
        let place = &self.place;
        let path = || place.as_ref().map(|place| place.path(name)).unwrap_or_default();
        self.tally.report.skip(path, kind);
        Ok(())
    }

    fn symbolic_link(&mut self, name: &CStr, stat: &FileStat) -> Result<()> {
        let target = match readlinkat(self.here(), name) {
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

    fn file(&mut self, name: &CStr, stat: &FileStat) -> Result<()> {
        if let Some(names) = self.links.get(&Identity::of(stat)) {
            self.tally.entry()?;
            let target = Strings::new(names).map_err(|_| too_deep())?;
            self.to.entry(&Entry::HardLink { name: string(name)?, target })?;
            self.tally.report.hard_links += 1;
            return Ok(());
        }
        let Some(file) = self.open(name, FILE)? else { return Ok(()) };
        let stat = fstat(&file).map_err(|errno| self.failed("fstat", name, errno))?;
        let kind = kind_of(&stat);
        if kind != FileKind::File {
            return self.skip(name, kind);
        }
        self.tally.entry()?;
        let attributes = self.attributes(&stat);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.to.entry(&Entry::File { name: string(name)?, attributes, size })?;
        let is_whole = self
            .content(file.as_fd(), &stat, size)
            .map_err(|error| at_file(error, || self.path(name)))?;
        if is_whole {
            self.to.chunk(Chunk::End)?;
        } else {
            self.to.chunk(Chunk::CutOff)?;
            let place = &self.place;
            let path = || place.as_ref().map(|place| place.path(name)).unwrap_or_default();
            self.tally.report.cut_off(path);
        }
        self.tally.report.files += 1;
        if stat.st_nlink > 1
            && let Some(place) = &self.place
        {
            // So deep down that an entry could not name it, each name is sent as a file.
            let names = [place.names(), name.to_bytes_with_nul()].concat();
            if names.len() < MAX_ENTRY / 2 {
                self.links.insert(Identity::of(&stat), names);
            }
        }
        Ok(())
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

    /// The names in a directory, the first one last.
    ///
    /// All at once: what is sent does not depend on the order in which a file system keeps them.
    fn list(&self, directory: BorrowedFd<'_>) -> Result<Vec<CString>> {
        let list = || -> nix::Result<Vec<CString>> {
            let mut names = Vec::new();
            for entry in Dir::openat(directory, c".", DIRECTORY, Mode::empty())? {
                let entry = entry?;
                let name = entry.file_name();
                if name != c"." && name != c".." {
                    names.push(name.to_owned());
                }
            }
            names.sort_unstable_by(|one, other| other.cmp(one));
            Ok(names)
        };
        list().map_err(|errno| self.failed("list", c"", errno))
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

fn kind_of(stat: &FileStat) -> FileKind {
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
