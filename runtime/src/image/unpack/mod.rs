//! Makes files of an archive, in a directory that becomes a layer of an overlay or a root.
//!
//! The archive may be hostile. A path of it is split into single names, and each is used in the one
//! directory that is open, after a look at what is there; no link is followed. Neither the number
//! of open descriptors nor the memory that this takes grows with what is in the archive.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use adl_protocol::limits::MAX_PATH;
use adl_protocol::{FileKind, Time};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, fstatat, futimens, makedev, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{
    Gid, Uid, UnlinkatFlags, fchown, fchownat, ftruncate, geteuid, linkat, symlinkat, unlinkat,
};

use crate::error::{Error, Result};
use crate::image::mark;
use crate::image::options::Caps;
use crate::store::contents::remove_entry;
use crate::sys;
use crate::sys::open::{Purpose, beneath, create_beneath};
use crate::transfer::PathCursor;
use crate::transfer::attributes::{self, is_default_acl};
use crate::transfer::tar::reader::{End, Entry, Kind, Reader, each, names_of};
use crate::transfer::tar::{Map, Member};

/// What content takes on disk is a multiple of this, in bytes, on most file systems.
const BLOCK: u64 = 4096;

/// The most that is kept of extended attributes, in bytes, for all directories from the top to
/// where something is made.
const MOST_KEPT: usize = 8 << 20;

/// What the name of a mark begins with that hides a file of the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// What names begin with that aufs has for itself.
const OF_AUFS: &[u8] = b".wh..wh.";
/// The name of a mark that hides all that the layers below have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

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

/// What something gets beside its content.
#[derive(Debug, Clone)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    modified: Option<Time>,
    /// Extended ones.
    extended: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Default for Attributes {
    fn default() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, modified: None, extended: Vec::new() }
    }
}

impl Attributes {
    fn of(member: &Member) -> Result<Self> {
        let Member { mode, uid, gid, modified, .. } = *member;
        // To the kernel, the highest number means none.
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Error::refused("an owner that no file can have"));
        }
        let extended = member.attributes.clone();
        Ok(Self { mode, uid, gid, modified: Some(modified), extended })
    }

    fn time(&self) -> Option<TimeSpec> {
        // Some higher numbers mean "now" or "as it is" to the kernel.
        let nanoseconds = |time: &Time| time.nanoseconds.min(999_999_999).into();
        self.modified.as_ref().map(|time| TimeSpec::new(time.seconds, nanoseconds(time)))
    }
}

/// What a directory gets when it is left: what is made in it changes its time, and what may not be
/// written to is written to before.
enum Leaving {
    /// What the archive says.
    As(Attributes),
    /// What it had when it was entered again.
    Restored(Mode, TimeSpec),
}

impl Leaving {
    /// How many bytes are kept for it, beside itself.
    fn kept(&self) -> usize {
        let Self::As(attributes) = self else { return 0 };
        attributes.extended.iter().map(|(name, value)| name.len() + value.len()).sum()
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
        if self.form == Form::Layer {
            if names.iter().any(|name| name.to_bytes().starts_with(OF_AUFS))
                && name.to_bytes() != OPAQUE
            {
                return Ok(());
            }
            if parents.iter().any(|name| name.to_bytes().starts_with(WHITEOUT)) {
                return Err(Error::refused("something below a mark that hides a file"));
            }
            if let Some(hidden) = name.to_bytes().strip_prefix(WHITEOUT) {
                match self.go_to(parents, member) {
                    // A file or a link in place of a directory hides by itself what was in that;
                    // `umoci repack` says so again.
                    Err(Error::Refused { .. }) => return Ok(()),
                    gone => gone?,
                }
                return if name.to_bytes() == OPAQUE {
                    self.set_opaque(self.here(), name)
                } else {
                    self.whiteout(hidden)
                };
            }
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

    /// Remembers what the directory gets that is entered now.
    fn keep(&mut self, leaving: Leaving) -> Result<()> {
        self.kept += leaving.kept();
        self.left.push(leaving);
        self.check_kept()
    }

    fn check_kept(&self) -> Result<()> {
        if self.kept > MOST_KEPT {
            let what = "the extended attributes of directories in one another, in bytes,";
            return Err(Error::TooLarge { what, limit: MOST_KEPT as u64 });
        }
        Ok(())
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

    fn not_set<'b>(
        &'b self,
        file: BorrowedFd<'b>,
        name: &'b CStr,
    ) -> impl FnOnce(Errno) -> Error + 'b {
        move |errno| attributes::not_set(file, &self.path(name))(errno)
    }

    fn no_owner(&self, name: &CStr, attributes: &Attributes, errno: Errno) -> Error {
        Error::at_chown(&self.path(name), [attributes.uid, attributes.gid])(errno)
    }

    /// Goes up and down until the directory of `names` is the current one.
    fn go_to(&mut self, names: &[&CStr], of: &Member) -> Result<()> {
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
    fn mark(&self, directory: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        if self.form == Form::Root {
            return Ok(());
        }
        mark::mark(directory).map_err(self.not_set(directory, name))
    }

    fn stat(&self, name: &CStr) -> nix::Result<FileStat> {
        fstatat(self.here(), name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// Makes a directory, or takes the one that is there, and enters it.
    fn enter(&mut self, name: &CStr, leaving: Leaving) -> Result<()> {
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
    fn open_directory(&self, name: &CStr) -> Result<(OwnedFd, FileStat)> {
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
    fn leave(&mut self) -> Result<bool> {
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

    /// Removes what has the name of something new.
    fn make_way(&self, name: &CStr) -> Result<()> {
        let name = OsStr::from_bytes(name.to_bytes());
        remove_entry(self.here(), name)
            .map_err(|error| Error::at("remove", &self.target.join(name))(error))
    }

    /// Makes something new, also in the place of something else.
    fn make<T>(
        &self,
        operation: &'static str,
        name: &CStr,
        make: impl Fn() -> nix::Result<T>,
    ) -> Result<T> {
        match make() {
            Err(Errno::EEXIST) => {
                self.make_way(name)?;
                make()
            }
            made => made,
        }
        .map_err(|errno| self.failed(operation, name, errno))
    }

    fn file(
        &mut self,
        name: &CStr,
        attributes: Attributes,
        map: &Map,
        archive: &mut Reader<impl Read>,
    ) -> Result<()> {
        if map.size > self.caps.size {
            // With its holes, so that it is no way to make a few bytes look like a whole disk.
            let what = "a file of the image, in bytes,";
            return Err(Error::TooLarge { what, limit: self.caps.size });
        }
        if map.size > self.longest {
            return Err(self.failed("write", name, Errno::EFBIG));
        }
        let file = self.make("create", name, || create_beneath(self.here(), name))?;
        let file = File::from(file);
        let mut end = 0;
        for (offset, length) in &map.pieces {
            self.take_room(*length)?;
            let mut at = *offset;
            end = offset.saturating_add(*length);
            while at < end {
                let bytes = archive.content(end - at)?;
                file.write_all_at(bytes, at)
                    .map_err(|error| Error::at("write", &self.path(name))(error))?;
                at += bytes.len() as u64;
            }
        }
        if end < map.size {
            ftruncate(&file, i64::try_from(map.size).unwrap_or(i64::MAX))
                .map_err(|errno| self.failed("ftruncate", name, errno))?;
        }
        self.set_attributes(file.as_fd(), name, &attributes)
    }

    /// Counts what a piece of content takes on disk.
    fn take_room(&mut self, length: u64) -> Result<()> {
        self.size = self.size.saturating_add(length.next_multiple_of(BLOCK));
        // The end of each file takes a part of a block more than the archive has.
        let limit = self.caps.size;
        if self.size > limit.saturating_add(self.unpacked.entries.saturating_mul(BLOCK)) {
            return Err(Error::TooLarge { what: "the content of the image, in bytes,", limit });
        }
        Ok(())
    }

    fn symbolic_link(&mut self, name: &CStr, attributes: &Attributes, to: &[u8]) -> Result<()> {
        let is_target = !to.is_empty() && to.len() <= MAX_PATH;
        let to = CString::new(to).ok().filter(|_| is_target);
        let to = to.ok_or_else(|| Error::refused("a symbolic link that no directory can have"))?;
        self.make("symlink", name, || symlinkat(&*to, self.here(), name))?;
        self.set_owner_of_name(name, attributes)?;
        self.unpacked.attributes_left_out += attributes.extended.len() as u64;
        self.set_time_of_name(name, attributes)
    }

    fn set_owner_of_name(&mut self, name: &CStr, attributes: &Attributes) -> Result<()> {
        let Some((uid, gid)) = self.owner(attributes) else { return Ok(()) };
        fchownat(self.here(), name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| self.no_owner(name, attributes, errno))
    }

    fn set_time_of_name(&self, name: &CStr, attributes: &Attributes) -> Result<()> {
        let Some(time) = attributes.time() else { return Ok(()) };
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(self.here(), name, &TimeSpec::UTIME_OMIT, &time, flags)
            .map_err(|errno| self.failed("set the time of", name, errno))
    }

    fn hard_link(&mut self, name: &CStr, to: &[u8]) -> Result<()> {
        let names = names_of(to)?;
        let (last, way) = match names.strip_suffix(b"\0") {
            Some(names) => match names.iter().rposition(|byte| *byte == 0) {
                Some(end) => (names.get(end + 1..), names.get(..end)),
                None => (Some(names), None),
            },
            None => (None, None),
        };
        let last = CString::new(last.unwrap_or_default())
            .ok()
            .filter(|last| !last.is_empty())
            .ok_or_else(|| Error::refused("a hard link to the top"))?;
        let way: Vec<u8> =
            way.unwrap_or(b".").iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect();
        let directory = match beneath(&self.top, way.as_slice(), Purpose::Pass) {
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                return Err(Error::refused("a hard link through what is no directory"));
            }
            Err(Errno::ENOENT | Errno::ENAMETOOLONG) => return Err(not_there()),
            opened => opened.map_err(|errno| self.failed("open for a link", name, errno))?,
        };
        let stat = match fstatat(&directory, &*last, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if is_directory(&stat) => {
                return Err(Error::refused("a hard link to a directory"));
            }
            Ok(stat) if !is_whiteout(&stat) => stat,
            Ok(_) | Err(Errno::ENOENT) => return Err(not_there()),
            Err(errno) => return Err(self.failed("stat for a link", name, errno)),
        };
        let is_it = |other: FileStat| (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino);
        if self.stat(name).is_ok_and(is_it) {
            return Ok(());
        }
        self.make("link", name, || {
            // Not what a symbolic link leads to: a further name of the link.
            match linkat(&directory, &*last, self.here(), name, AtFlags::empty()) {
                // It was in a directory that has made way.
                Err(Errno::ENOENT) => Err(Errno::ESTALE),
                made => made,
            }
        })
        .map_err(|error| match error {
            Error::Io { source, .. } if source.raw_os_error() == Some(libc::ESTALE) => not_there(),
            other => other,
        })
    }

    fn special(
        &mut self,
        name: &CStr,
        attributes: Attributes,
        kind: FileKind,
        (major, minor): (u32, u32),
    ) -> Result<()> {
        let device = makedev(major.into(), minor.into());
        let (kind, device) = match kind {
            FileKind::CharacterDevice => (SFlag::S_IFCHR, device),
            FileKind::BlockDevice => (SFlag::S_IFBLK, device),
            _ => (SFlag::S_IFIFO, 0),
        };
        // To an overlay, the first is a mark that hides a file.
        if kind == SFlag::S_IFCHR && device == 0 || self.squashes && kind != SFlag::S_IFIFO {
            self.unpacked.left_out += 1;
            return self.make_way(name);
        }
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let made = self.make("mknod", name, || {
            match mknodat(self.here(), name, kind, mode, device) {
                // Root of a container, who may make none.
                Err(Errno::EPERM) if kind != SFlag::S_IFIFO => Ok(false),
                made => made.map(|()| true),
            }
        })?;
        if !made {
            self.unpacked.left_out += 1;
            return Ok(());
        }
        self.set_owner_of_name(name, &attributes)?;
        let node = beneath(self.here(), name, Purpose::Look)
            .map_err(|errno| self.failed("open", name, errno))?;
        sys::change_mode(&node, self.mode(&attributes))
            .map_err(|errno| self.failed("chmod", name, errno))?;
        self.unpacked.attributes_left_out += attributes.extended.len() as u64;
        self.set_time_of_name(name, &attributes)
    }

    /// Hides what the layers below have of a name. What this layer has of it stays.
    fn whiteout(&mut self, hidden: &[u8]) -> Result<()> {
        let name = CString::new(hidden).ok().filter(|name| {
            let name = name.to_bytes();
            !matches!(name, b"" | b"." | b"..")
        });
        let name = name.ok_or_else(|| Error::refused("a mark that hides no file"))?;
        match self.stat(&name) {
            Ok(stat) if is_directory(&stat) => {
                let (directory, stat) = self.open_directory(&name)?;
                self.set_opaque(directory.as_fd(), &name)?;
                let mode = Mode::from_bits_truncate(stat.st_mode);
                fchmod(&directory, mode).map_err(|errno| self.failed("chmod", &name, errno))
            }
            // It hides what is below, or is such a mark.
            Ok(_) => Ok(()),
            Err(Errno::ENOENT) => mknodat(self.here(), &*name, SFlag::S_IFCHR, Mode::empty(), 0)
                .map_err(|errno| self.failed("mknod", &name, errno)),
            Err(errno) => Err(self.failed("stat", &name, errno)),
        }
    }

    fn set_opaque(&self, directory: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        attributes::set_opaque(directory).map_err(self.not_set(directory, name))
    }

    /// Who a file is to belong to, if it is not the calling user's anyway.
    fn owner(&mut self, attributes: &Attributes) -> Option<(Uid, Gid)> {
        let Attributes { uid, gid, .. } = *attributes;
        if self.squashes {
            self.unpacked.squashed += u64::from((uid, gid) != (0, 0));
            return None;
        }
        Some((Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    /// A bit by which a program gets the rights of another stays only where that other stays who it
    /// was.
    fn mode(&self, attributes: &Attributes) -> Mode {
        let mut mode = Mode::from_bits_truncate(attributes.mode);
        if self.squashes && attributes.uid != 0 {
            mode.remove(Mode::S_ISUID);
        }
        if self.squashes && attributes.gid != 0 {
            mode.remove(Mode::S_ISGID);
        }
        mode
    }

    fn set_attributes(
        &mut self,
        file: BorrowedFd<'_>,
        name: &CStr,
        attributes: &Attributes,
    ) -> Result<()> {
        if let Some((uid, gid)) = self.owner(attributes) {
            fchown(file, Some(uid), Some(gid))
                .map_err(|errno| self.no_owner(name, attributes, errno))?;
        }
        if self.inherits {
            attributes::clear_acls(file)
                .map_err(|errno| self.failed("removexattr", name, errno))?;
        }
        // After the owner, with whom the kernel takes away the bits that set ids.
        fchmod(file, self.mode(attributes)).map_err(|errno| self.failed("chmod", name, errno))?;
        for (key, value) in &attributes.extended {
            if is_default_acl(key) {
                self.inherits = true;
            }
            let is_set = attributes::set(file, key, value, self.squashes)
                .map_err(self.not_set(file, name))?;
            self.unpacked.attributes_left_out += u64::from(!is_set);
        }
        // Last: the others change no time of content, but what wrote it did.
        let Some(time) = attributes.time() else { return Ok(()) };
        futimens(file, &TimeSpec::UTIME_OMIT, &time)
            .map_err(|errno| self.failed("set the time of", name, errno))
    }
}

fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// Whether it is what hides a file of the layers below.
fn is_whiteout(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0
}

fn not_there() -> Error {
    Error::refused("a hard link to what was not before it in the archive")
}
