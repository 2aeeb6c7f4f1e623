//! A file or a tree, from the sandbox to the host.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::CStr;

use adl_protocol::{Attributes, Chunk, Entry, FileKind, MAX_CHUNK, Stage, Strings};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, OFlags, SeekFrom, Stat, fgetxattr, flistxattr};
use rustix::io::Errno;

use super::content::is_of_proc;
use super::directory::{LISTED, Walk, each_entry, open_entry};
use super::stream::{LONGEST_ENTRY, Output};
use super::table::Table;
use super::{kind, kind_of, mode_of, modified, size_of, stat_entry};
use crate::failure::{Failure, InStage};
use crate::path::open_in_root;

/// To open what is expected to be a regular file, without waiting for anything.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// The name of the top.
const TOP: &CStr = c"";

/// Writes a file, or a directory with all that is in it.
pub(super) fn run(path: &CStr, stdout: BorrowedFd<'_>) -> Result<(), Failure> {
    // Not yet opened to be read: it may be anything.
    let stat = super::stat(path, true).stage(Stage::File)?;
    let mut export = Export { output: Output::new(stdout), links: Links::default() };
    let sent = match kind_of(&stat) {
        FileKind::Directory => {
            let directory = open_in_root(path, LISTED).stage(Stage::File)?;
            export.tree(directory).stage(Stage::Copy)
        }
        FileKind::File => {
            let file = open_in_root(path, READ).stage(Stage::File)?;
            if is_of_proc(&file).stage(Stage::File)? {
                return Err(Failure(Stage::Kind, Errno::INVAL));
            }
            export.file(TOP, file, &[]).stage(Stage::Copy)
        }
        kind => export.skipped(TOP, kind).stage(Stage::Copy),
    };
    // What went wrong is told behind what went well.
    export.output.flush().stage(Stage::Copy)?;
    sent
}

struct Export<'a> {
    output: Output<'a>,
    links: Links,
}

/// A directory to go down into.
struct Below {
    directory: OwnedFd,
    name: CString,
    /// Where the names of the one above go on.
    resume: u64,
}

impl Export<'_> {
    fn tree(&mut self, top: OwnedFd) -> rustix::io::Result<()> {
        self.directory(TOP, &top)?;
        let mut walk = Walk::new(top);
        let mut from = 0;
        loop {
            rustix::fs::seek(&walk.directory, SeekFrom::Start(from))?;
            let mut below = None;
            each_entry(walk.directory.as_fd(), |name, file_type, resume| {
                let opened = self.entry(&walk, name, file_type);
                let opened = opened.inspect_err(|errno| self.failed(name, *errno))?;
                let Some(directory) = opened else { return Ok(true) };
                below = Some(Below { directory, name: name.to_owned(), resume });
                Ok(false)
            })?;
            if let Some(Below { directory, name, resume }) = below {
                self.directory(&name, &directory)?;
                walk.down(directory, &name, resume)?;
                from = 0;
                continue;
            }
            self.output.entry(&Entry::Leave)?;
            match walk.up()? {
                Some((_, _, resume)) => from = resume,
                None => return Ok(()),
            }
        }
    }

    /// Writes an entry, or returns the directory that it is. What has just been removed is left
    /// out.
    fn entry(
        &mut self,
        walk: &Walk<u64>,
        name: &CStr,
        file_type: FileType,
    ) -> rustix::io::Result<Option<OwnedFd>> {
        let directory = walk.directory.as_fd();
        let expected = match file_type {
            FileType::Unknown => match stat_entry(directory, name) {
                Err(Errno::NOENT) => return Ok(None),
                stat => kind_of(&stat?),
            },
            known => kind(known),
        };
        let done = match expected {
            FileKind::Directory => match open_entry(directory, name, LISTED) {
                Ok(opened) => return Ok(Some(opened)),
                Err(errno) => Err(errno),
            },
            FileKind::File => open_entry(directory, name, READ)
                .and_then(|file| self.file(name, file, &walk.names)),
            FileKind::SymbolicLink => self.symbolic_link(directory, name),
            kind => self.skipped(name, kind),
        };
        match done {
            Ok(()) => Ok(None),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::XDEV) => self.skipped(name, FileKind::Mount).map(|()| None),
            // It has become something else since its name was read.
            Err(Errno::NXIO | Errno::LOOP | Errno::NOTDIR | Errno::INVAL) => {
                let kind = stat_entry(directory, name).map_or(FileKind::Unknown, |s| kind_of(&s));
                self.skipped(name, kind).map(|()| None)
            }
            Err(errno) => Err(errno),
        }
    }

    fn directory(&mut self, name: &CStr, directory: &OwnedFd) -> rustix::io::Result<()> {
        let attributes = Some(attributes(&rustix::fs::fstat(directory)?));
        self.extended(directory.as_fd())?;
        self.output.entry(&Entry::Directory { name: string(name)?, attributes })
    }

    /// Writes the extended attributes of what comes next; the host takes those that it wants.
    fn extended(&mut self, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let mut names = [0; 4096];
        let length = match flistxattr(file, &mut names[..]) {
            // None, or more than are ever set.
            Ok(0) | Err(Errno::OPNOTSUPP | Errno::RANGE) => return Ok(()),
            length => length?,
        };
        let mut value = vec![0; 64 << 10];
        let names = names.get(..length).unwrap_or_default();
        for name in names.split_inclusive(|byte| *byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            // Gone, or not for everyone to read.
            let Ok(length) = fgetxattr(file, name, &mut value[..]) else { continue };
            let value = value.get(..length).unwrap_or_default();
            self.output.entry(&Entry::Attribute { name: string(name)?, value })?;
        }
        Ok(())
    }

    fn symbolic_link(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        let attributes = attributes(&stat_entry(directory, name)?);
        let target = rustix::fs::readlinkat(directory, name, Vec::new())?;
        let (name, target) = (string(name)?, string(&target)?);
        self.output.entry(&Entry::SymbolicLink { name, target, attributes })
    }

    fn skipped(&mut self, name: &CStr, kind: FileKind) -> rustix::io::Result<()> {
        self.output.entry(&Entry::Skipped { name: string(name)?, kind })
    }

    /// There is no more to tell if this can't be told.
    fn failed(&mut self, name: &CStr, errno: Errno) {
        if let Ok(name) = string(name) {
            let _ = self.output.entry(&Entry::Failed { name, errno: errno.raw_os_error() });
        }
    }

    /// Writes a regular file; `above` names the directories from the top down to it.
    fn file(&mut self, name: &CStr, file: OwnedFd, above: &[u8]) -> rustix::io::Result<()> {
        let stat = rustix::fs::fstat(&file)?;
        let kind = kind_of(&stat);
        if kind != FileKind::File {
            return self.skipped(name, kind);
        }
        if stat.st_nlink > 1
            && let Some(target) = self.links.first_name(&stat, above, name)
        {
            let target = Strings::new(target).map_err(|_| Errno::INVAL)?;
            return self.output.entry(&Entry::HardLink { name: string(name)?, target });
        }
        let (attributes, size) = (attributes(&stat), size_of(&stat));
        self.extended(file.as_fd())?;
        self.output.entry(&Entry::File { name: string(name)?, attributes, size })?;
        self.content(file.as_fd(), &stat).map_err(|errno| match errno {
            // Of a file that was announced there is no leaving out.
            Errno::NOENT | Errno::XDEV | Errno::NXIO | Errno::INVAL => Errno::IO,
            errno => errno,
        })
    }

    fn content(&mut self, file: BorrowedFd<'_>, stat: &Stat) -> rustix::io::Result<()> {
        let size = size_of(stat);
        let has_holes = stat.st_blocks.unsigned_abs().saturating_mul(512) < size;
        let mut at = 0;
        while at < size {
            let (data, end) = if has_holes { next_data(file, at, size)? } else { (at, size) };
            if data > at {
                self.output.chunk(Chunk::Hole(data - at))?;
            }
            at = data;
            while at < end {
                let count = MAX_CHUNK.min(end - at);
                self.output.chunk(Chunk::Data(count))?;
                let missing = self.output.move_from_file(file, at, count)?;
                if missing != 0 {
                    self.output.zeros(missing)?;
                    return self.output.chunk(Chunk::CutOff);
                }
                at += count;
            }
        }
        self.output.chunk(Chunk::End)
    }
}

/// Where the next data is, from `at` on, and its end.
fn next_data(file: BorrowedFd<'_>, at: u64, size: u64) -> rustix::io::Result<(u64, u64)> {
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        // There is none.
        Err(Errno::NXIO) => return Ok((size, size)),
        // The file system does not tell.
        Err(Errno::INVAL) => return Ok((at, size)),
        data => data?.min(size),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Hole(data)) {
        // It was cut off in between.
        Err(Errno::NXIO) => size,
        end => end?.min(size),
    };
    Ok((data, end.max(data)))
}

fn string(name: &CStr) -> rustix::io::Result<Strings<'_>> {
    Strings::new(name.to_bytes_with_nul()).map_err(|_| Errno::INVAL)
}

fn attributes(stat: &Stat) -> Attributes {
    let (uid, gid) = (stat.st_uid, stat.st_gid);
    Attributes { mode: mode_of(stat), uid, gid, modified: modified(stat) }
}

/// The first names of files that have several.
#[derive(Default)]
struct Links {
    /// Where they are in `names`.
    table: Table<(usize, usize)>,
    /// The names, one after the other.
    names: Vec<u8>,
}

impl Links {
    /// The most that is remembered, in bytes of names. What is beyond it is copied once for each of
    /// its names.
    const MOST: usize = 4 << 20;
    /// The longest that is remembered, in bytes: it has to fit into an entry.
    const LONGEST: usize = LONGEST_ENTRY / 2;

    /// The name under which a file was met before; now it is met under this.
    fn first_name(&mut self, stat: &Stat, above: &[u8], name: &CStr) -> Option<&[u8]> {
        let file = (stat.st_dev, stat.st_ino);
        if let Some((start, end)) = self.table.get(file) {
            return self.names.get(start..end);
        }
        let start = self.names.len();
        let length = above.len() + name.count_bytes() + 1;
        let end = start + length;
        if length <= Self::LONGEST && end <= Self::MOST && self.table.insert(file, (start, end)) {
            self.names.extend_from_slice(above);
            self.names.extend_from_slice(name.to_bytes_with_nul());
        }
        None
    }
}
