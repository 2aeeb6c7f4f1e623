//! Makes files of an archive, in a directory that becomes a layer of an overlay or a root.
//!
//! The archive may be hostile. A path of it is split into single names, and each is used in the one
//! directory that is open, after a look at what is there; no link is followed. Neither the number
//! of open descriptors nor the memory that this takes grows with what is in the archive.

mod directories;
mod files;
mod metadata;
mod whiteouts;

use std::ffi::CStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use adl_protocol::FileKind;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::unistd::geteuid;

use self::directories::Leaving;
use self::metadata::Attributes;
use crate::error::{Error, Result};
use crate::image::mark;
use crate::image::options::Caps;
use crate::sys;
use crate::transfer::tar::Member;
use crate::transfer::tar::reader::{End, Entry, Kind, Reader, each, names_of};
use crate::transfer::{PathCursor, attributes};

/// What becomes of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A lower directory of an overlay: marks hide what is below.
    Layer,
    /// A root file system: names are names.
    Root,
}

/// What was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Files, directories, links and marks, also of what was replaced later.
    pub(crate) entries: u64,
    /// Those that are the calling user's now, since it may give files to no one else.
    pub(crate) squashed: u64,
    /// Devices that could not be made, and what is of an unknown kind.
    pub(crate) left_out: u64,
    /// Extended attributes that could not be set, or that only the host sets.
    pub(crate) attributes_left_out: u64,
}

/// Makes what an archive holds in a directory, which is empty, and of no one else.
///
/// Of what comes twice, the later one stays, and directories get what the last one says of them.
/// Directories that the archive does not describe are root's, with the mode 0755, and of the time
/// of what they were made for.
///
/// # Errors
/// [`Error::Refused`] of what leads out or through a link, [`Error::Invalid`] of what is no
/// archive, [`Error::TooLarge`], and [`Error::Io`] of what could not be made.
pub(crate) fn unpack(
    input: impl Read,
    end: End,
    target: &Path,
    form: Form,
    caps: Caps,
) -> Result<Unpacked> {
    let directory = nix::fcntl::open(target, sys::open::DIRECTORY, Mode::empty())
        .map_err(Error::at("open", target))?;
    let top = directory.try_clone().map_err(Error::at("dup", target))?;
    // What the directory has got from the one that it was made in is not the image's.
    attributes::clear_acls(directory.as_fd()).map_err(Error::at("removexattr", target))?;
    let mut unpacker = Unpacker {
        place: PathCursor::new(directory).map_err(Error::at("fstat", target))?,
        left: vec![Leaving::As(Attributes::default())],
        kept: 0,
        target,
        top,
        form,
        caps,
        squashes: !geteuid().is_root(),
        inherits: false,
        names_top: false,
        owns_top: true,
        has_implicit: false,
        longest: sys::longest_file(),
        size: 0,
        unpacked: Unpacked::default(),
    };
    let mut archive = Reader::new(input, end);
    while let Some(entry) = archive.next(|_| Ok(()))? {
        let made = unpacker.entry(&entry, &mut archive);
        made.map_err(|error| about(&entry.member.path, error))?;
    }
    while unpacker.leave()? {}
    unpacker.mark_layer()?;
    Ok(unpacker.unpacked)
}

/// Says of which path it is.
fn about(path: &[u8], error: Error) -> Error {
    const SHOWN: usize = 512;
    let path = String::from_utf8_lossy(path.get(..SHOWN).unwrap_or(path));
    match error {
        Error::Refused { why } => Error::refused(format!("{path:?}: {why}")),
        Error::Invalid { what, why } => Error::invalid(what, format!("{path:?}: {why}")),
        other => other,
    }
}

struct Unpacker<'a> {
    place: PathCursor,
    /// One for each directory from the top to where we are.
    left: Vec<Leaving>,
    /// How many bytes they keep, beside themselves.
    kept: usize,
    /// For errors.
    target: &'a Path,
    /// For hard links.
    top: OwnedFd,
    form: Form,
    caps: Caps,
    /// Whether all owners become the calling user.
    squashes: bool,
    /// Whether something may get an access control list from the directory it is made in.
    inherits: bool,
    /// Whether the archive has named its top.
    names_top: bool,
    /// Whether the top is root's, by the archive.
    owns_top: bool,
    /// Whether it has used directories that it had not named.
    has_implicit: bool,
    /// What the process may write, in bytes.
    longest: u64,
    /// What the content takes on disk, in bytes.
    size: u64,
    unpacked: Unpacked,
}

impl Unpacker<'_> {
    fn entry(&mut self, entry: &Entry, archive: &mut Reader<impl Read>) -> Result<()> {
        let Entry { member, kind } = entry;
        let names = names_of(&member.path)?;
        let names: Vec<&CStr> = each(&names).collect();
        if names.len() as u64 > self.caps.depth {
            let limit = self.caps.depth;
            return Err(Error::TooLarge { what: "the depth of the image", limit });
        }
        self.count()?;
        let Some((name, parents)) = names.split_last() else {
            return self.of_top(member, kind);
        };
        if self.form == Form::Layer && self.is_done_by_mark(parents, name, member)? {
            return Ok(());
        }
        if let Kind::Special(FileKind::Unknown) = kind {
            self.unpacked.left_out += 1;
            return Ok(());
        }
        self.go_to(parents, member)?;
        let attributes = Attributes::of(member)?;
        match kind {
            Kind::Directory => self.enter(name, Leaving::As(attributes)),
            Kind::File(map) => self.file(name, attributes, map, archive),
            Kind::SymbolicLink => self.symbolic_link(name, &attributes, &member.link),
            Kind::HardLink => self.hard_link(name, &member.link),
            Kind::Special(kind) => self.special(name, attributes, *kind, member.device),
        }
    }

    fn count(&mut self) -> Result<()> {
        self.unpacked.entries += 1;
        let limit = self.caps.entries;
        if self.unpacked.entries > limit {
            return Err(Error::TooLarge { what: "the number of files of the image", limit });
        }
        Ok(())
    }

    fn of_top(&mut self, member: &Member, kind: &Kind) -> Result<()> {
        let Kind::Directory = kind else {
            return Err(Error::invalid("archive", "a member without a name"));
        };
        let attributes = Attributes::of(member)?;
        self.names_top = true;
        self.owns_top = (attributes.uid, attributes.gid) == (0, 0);
        let leaving = Leaving::As(attributes);
        let kept = self.kept + leaving.kept();
        if let Some(top) = self.left.first_mut() {
            self.kept = kept.saturating_sub(std::mem::replace(top, leaving).kept());
        }
        self.check_kept()
    }

    /// At the end: says of the layer what it has not named.
    fn mark_layer(&self) -> Result<()> {
        if self.form == Form::Root {
            return Ok(());
        }
        let top = self.top.as_fd();
        if self.squashes && !self.owns_top {
            mark::mark_squashed(top).map_err(self.not_set(top, c""))?;
        }
        if self.names_top && !self.has_implicit {
            return Ok(());
        }
        if !self.names_top {
            self.mark(top, c"")?;
        }
        mark::mark_layer(top).map_err(self.not_set(top, c""))
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.place.as_fd()
    }

    fn path(&self, name: &CStr) -> PathBuf {
        self.target.join(self.place.path(name))
    }

    fn failed(&self, operation: &'static str, name: &CStr, errno: Errno) -> Error {
        Error::at(operation, &self.path(name))(errno)
    }

    fn stat(&self, name: &CStr) -> nix::Result<FileStat> {
        fstatat(self.here(), name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }
}

fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// Whether it is what hides a file of the layers below.
fn is_whiteout(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0
}
