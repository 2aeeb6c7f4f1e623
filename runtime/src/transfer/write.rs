//! A tree that a job sends, made on the host.
//!
//! The job may be hostile, and may have made, by a copy before, what is there already. So a name
//! is only ever used in the one directory that is open, after a look at it, and no symbolic link
//! is followed. Neither the number of open descriptors nor the stack grows with the depth.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use adl_protocol::{Attributes, Chunk, Entry, Strings, is_plain_name};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{
    FileStat, Mode, UtimensatFlags, fchmod, fstat, fstatat, futimens, mkdirat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{
    Gid, Uid, UnlinkatFlags, fchown, fchownat, ftruncate, geteuid, linkat, symlinkat, unlinkat,
};

use super::attributes::{self, Extended, Pending};
use super::cursor::{Identity, PathCursor};
use super::{CopyOptions, CopyReport, Incoming, MAX_DEPTH, Tally, at_file, plain_name, top_name};
use crate::error::error_of;
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::open::{Location, Purpose, beneath};
use crate::sys::unique::unique_name;

/// How a file is made: where there is nothing, not even a symbolic link.
const NEW_FILE: OFlag = OFlag::O_WRONLY
    .union(OFlag::O_CREAT)
    .union(OFlag::O_EXCL)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);

/// What the least content between two holes takes on disk, in bytes, on most file systems.
const BLOCK: u64 = 4096;

/// How often something makes way that comes again, as in a directory that a guest shares.
const TRIES: usize = 16;

/// Makes the tree that comes at `target`, whose last component is not followed.
///
/// A directory there is added to, and stays as it is itself; files and links in it make way for
/// those that come, never a directory for something else or the other way round. What was made
/// before a failure stays, but no file that is not whole.
///
/// # Errors
/// [`Error::File`] of what the job could not read, [`Error::Refused`] and [`Error::Protocol`] of
/// what no honest job sends, [`Error::TooLarge`], [`Error::TimedOut`], and [`Error::Io`] of what
/// could not be made.
pub(crate) fn receive(
    from: &mut Incoming,
    target: &Location,
    options: &CopyOptions,
    report: &mut CopyReport,
) -> Result<()> {
    receive_as(from, target, options, report, Top::New)
}

/// Receives a tree into a directory that the caller has just made, which becomes the one that
/// comes.
pub(crate) fn receive_as_top(
    from: &mut Incoming,
    target: &Location,
    options: &CopyOptions,
    report: &mut CopyReport,
) -> Result<()> {
    receive_as(from, target, options, report, Top::Ours)
}

/// What is at the target.
#[derive(PartialEq, Eq)]
enum Top {
    /// What comes, if there is nothing else.
    New,
    /// A directory that we have made for it.
    Ours,
}

fn receive_as(
    from: &mut Incoming,
    target: &Location,
    options: &CopyOptions,
    report: &mut CopyReport,
    top: Top,
) -> Result<()> {
    let (parent, name) = target.parent()?;
    let mut made = HashSet::new();
    if top == Top::Ours {
        let stat = fstatat(&parent, &*name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(Error::at("stat", target.shown()))?;
        made.insert(Identity::of(&stat));
    }
    let mut receiver = Receiver {
        from,
        target: target.shown(),
        parent,
        name,
        tally: Tally::new(options, report),
        longest: sys::longest_file().min(i64::MAX.unsigned_abs()),
        top: None,
        place: None,
        left: Vec::new(),
        pending: Pending::default(),
        made,
    };
    let received = receiver.run();
    if received.is_err() {
        receiver.restore();
    }
    received
}

struct Receiver<'a> {
    from: &'a mut Incoming,
    target: &'a Path,
    /// Where the top goes, and its name there.
    parent: OwnedFd,
    name: CString,
    tally: Tally<'a>,
    /// What the process may write, in bytes.
    longest: u64,
    /// The top, for hard links.
    top: Option<OwnedFd>,
    /// `None` before the top.
    place: Option<PathCursor>,
    /// What directories get when they are left, so that one may be read-only in the end.
    left: Vec<Leaving>,
    /// The extended attributes of what comes next.
    pending: Pending,
    /// What was made: other files get no further names, other directories no other attributes.
    made: HashSet<Identity>,
}

/// The mode of a directory of which nothing is said.
const USUAL: Mode = Mode::S_IRWXU
    .union(Mode::S_IRGRP)
    .union(Mode::S_IXGRP)
    .union(Mode::S_IROTH)
    .union(Mode::S_IXOTH);

/// What becomes of a directory when it is left.
enum Leaving {
    /// It gets what was sent.
    As(Attributes, Extended),
    /// It gets the usual mode.
    Usual,
    /// It gets back this mode.
    Restored(Mode),
    /// It stays as it is.
    Kept,
}

impl Receiver<'_> {
    fn run(&mut self) -> Result<()> {
        loop {
            // Names are copied: they lie in the buffer that what follows is read into.
            let top = self.place.is_none().then_some(&*self.name);
            match self.from.entry()? {
                Entry::Directory { name, attributes } => {
                    let name = own(name, top)?;
                    self.directory(&name, attributes)?;
                }
                Entry::Leave => {
                    if self.leave()? {
                        return Ok(());
                    }
                }
                Entry::File { name, attributes, .. } => {
                    let name = own(name, top)?;
                    self.file(&name, &attributes)?;
                }
                Entry::SymbolicLink { name, target, attributes } => {
                    let name = own(name, top)?;
                    let target = target.single().filter(|target| !target.is_empty());
                    let why = "a symbolic link to nothing";
                    let target = target.ok_or(Error::Protocol { why })?.to_owned();
                    self.symbolic_link(&name, &target, &attributes)?;
                }
                Entry::HardLink { name, target } => {
                    let name = own(name, top)?;
                    let target: Vec<u8> = target.iter().flatten().copied().collect();
                    self.hard_link(&name, &target)?;
                }
                Entry::Attribute { name, value } => {
                    self.pending.add(name, value, self.tally.options)?;
                    continue;
                }
                Entry::Skipped { name, kind } => {
                    let name = own(name, top)?;
                    self.tally.entry()?;
                    let place = &self.place;
                    let path = || place.as_ref().map(|place| place.path(&name)).unwrap_or_default();
                    self.tally.report.skip(path, kind);
                }
                Entry::Failed { name, errno } => {
                    let is_here = name.single().is_some_and(|name| name.is_empty());
                    let name = if is_here { CString::default() } else { own(name, top)? };
                    return Err(Error::File {
                        operation: "read",
                        path: self.relative(&name),
                        source: error_of(errno),
                    });
                }
            }
            // Those of links are none's.
            drop(self.pending.take());
            if self.place.is_none() {
                return Ok(());
            }
        }
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.place.as_ref().map_or(self.parent.as_fd(), PathCursor::as_fd)
    }

    /// Relative to the top.
    fn relative(&self, name: &CStr) -> PathBuf {
        self.place.as_ref().map(|place| place.path(name)).unwrap_or_default()
    }

    fn path(&self, name: &CStr) -> PathBuf {
        let relative = self.relative(name);
        if relative.as_os_str().is_empty() {
            self.target.into()
        } else {
            self.target.join(relative)
        }
    }

    fn failed(&self, operation: &'static str, name: &CStr, errno: Errno) -> Error {
        Error::at(operation, &self.path(name))(errno)
    }

    fn no_owner(&self, name: &CStr, attributes: &Attributes, errno: Errno) -> Error {
        Error::at_chown(&self.path(name), [attributes.uid, attributes.gid])(errno)
    }

    fn stat(&self, name: &CStr) -> nix::Result<FileStat> {
        fstatat(self.here(), name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// Removes what has the name of something new.
    fn make_way(&self, name: &CStr) -> nix::Result<()> {
        let kind = match self.stat(name) {
            Ok(stat) => stat.st_mode & libc::S_IFMT,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        match kind {
            libc::S_IFDIR => Err(Errno::EISDIR),
            // Whoever named the target may mean what it leads to.
            libc::S_IFLNK if self.place.is_none() => Err(Errno::ELOOP),
            _ => match unlinkat(self.here(), name, UnlinkatFlags::NoRemoveDir) {
                Err(Errno::ENOENT) => Ok(()),
                other => other,
            },
        }
    }

    /// Makes something new, also in the place of something else.
    fn make<T>(&self, name: &CStr, make: impl Fn() -> nix::Result<T>) -> nix::Result<T> {
        for _ in 0..TRIES {
            match make() {
                Err(Errno::EEXIST) => self.make_way(name)?,
                other => return other,
            }
        }
        Err(Errno::EEXIST)
    }

    fn directory(&mut self, name: &CStr, attributes: Option<Attributes>) -> Result<()> {
        self.tally.entry()?;
        Tally::depth(self.place.as_ref().map_or(0, PathCursor::depth))?;
        let (directory, stat, leaving) = self.open_new(name, attributes)?;
        if let Some(place) = &mut self.place {
            place.enter(name, directory, &stat);
        } else {
            let top = directory.try_clone().map_err(Error::at("dup", self.target))?;
            let place = PathCursor::new(directory).map_err(Error::at("fstat", self.target))?;
            (self.top, self.place) = (Some(top), Some(place));
        }
        self.left.push(leaving);
        self.tally.report.directories += 1;
        Ok(())
    }

    /// Makes a directory, or opens the one that is there.
    fn open_new(
        &mut self,
        name: &CStr,
        attributes: Option<Attributes>,
    ) -> Result<(OwnedFd, FileStat, Leaving)> {
        let existed = match mkdirat(self.here(), name, Mode::S_IRWXU) {
            Ok(()) => false,
            Err(Errno::EEXIST) => true,
            Err(errno) => return Err(self.failed("mkdir", name, errno)),
        };
        let directory = beneath(self.here(), name, Purpose::List)
            .map_err(|errno| self.failed("open", name, errno))?;
        let stat = fstat(&directory).map_err(|errno| self.failed("fstat", name, errno))?;
        let mode = Mode::from_bits_truncate(stat.st_mode);
        let is_closed = !mode.contains(Mode::S_IRWXU) && stat.st_uid == geteuid().as_raw();
        if existed && is_closed {
            // As one that a copy before has made read-only.
            fchmod(&directory, mode | Mode::S_IRWXU)
                .map_err(|errno| self.failed("chmod", name, errno))?;
        }
        let extended = self.pending.take();
        // What was there before this copy stays as it is, and is not a guest's to change.
        let is_made = !existed || self.made.contains(&Identity::of(&stat));
        let leaving = match attributes.filter(|_| is_made) {
            Some(attributes) => Leaving::As(attributes, extended),
            None if !existed => Leaving::Usual,
            None if is_closed => Leaving::Restored(mode),
            None => Leaving::Kept,
        };
        if !existed {
            self.made.insert(Identity::of(&stat));
        }
        Ok((directory, stat, leaving))
    }

    /// Goes up; `true` if that was the top.
    fn leave(&mut self) -> Result<bool> {
        let why = "the end of a directory that has not begun";
        let leaving = self.left.pop().ok_or(Error::Protocol { why })?;
        let Some(place) = &mut self.place else { return Err(Error::Protocol { why }) };
        match place.leave() {
            Ok(Some((directory, name))) => {
                self.finish(directory.as_fd(), &name, &leaving)?;
                Ok(false)
            }
            Ok(None) => {
                self.finish(self.here(), c"", &leaving)?;
                Ok(true)
            }
            Err(error) => Err(Error::at("open the directory above", &self.path(c""))(error)),
        }
    }

    fn finish(&self, directory: BorrowedFd<'_>, name: &CStr, leaving: &Leaving) -> Result<()> {
        match leaving {
            Leaving::As(attributes, extended) => {
                self.set_attributes(directory, name, attributes, extended, true)
            }
            Leaving::Usual => {
                fchmod(directory, USUAL).map_err(|errno| self.failed("chmod", name, errno))
            }
            Leaving::Restored(mode) => {
                fchmod(directory, *mode).map_err(|errno| self.failed("chmod", name, errno))
            }
            Leaving::Kept => Ok(()),
        }
    }

    /// After a failure: gives directories that were there before their modes back, as far as that
    /// goes. The error that is told is the first one.
    fn restore(&mut self) {
        let Some(place) = &mut self.place else { return };
        let is_restored = |leaving: &Leaving| matches!(leaving, Leaving::Restored(_));
        while self.left.iter().any(is_restored) {
            let Some(leaving) = self.left.pop() else { return };
            let left = place.leave();
            if let Leaving::Restored(mode) = leaving {
                let _ = match &left {
                    Ok(Some((directory, _))) => fchmod(directory, mode),
                    _ => fchmod(&*place, mode),
                };
            }
            if !matches!(left, Ok(Some(_))) {
                return;
            }
        }
    }

    fn file(&mut self, name: &CStr, attributes: &Attributes) -> Result<()> {
        self.tally.entry()?;
        let extended = self.pending.take();
        let (file, temporary) =
            self.open_file(name).map_err(|errno| self.failed("create", name, errno))?;
        let result = self.fill(file.as_fd(), name).and_then(|is_whole| {
            self.set_attributes(file.as_fd(), name, attributes, &extended, false)?;
            renameat(self.here(), &*temporary, self.here(), name)
                .map_err(|errno| self.failed("rename", name, errno))?;
            let stat = fstat(&file).map_err(|errno| self.failed("fstat", name, errno))?;
            Ok((is_whole, Identity::of(&stat)))
        });
        match result {
            Ok((is_whole, identity)) => {
                self.made.insert(identity);
                self.tally.report.files += 1;
                if !is_whole {
                    let place = &self.place;
                    let path = || place.as_ref().map(|place| place.path(name)).unwrap_or_default();
                    self.tally.report.cut_off(path);
                }
                Ok(())
            }
            Err(error) => {
                let _ = unlinkat(self.here(), &*temporary, UnlinkatFlags::NoRemoveDir);
                Err(error)
            }
        }
    }

    /// Makes a file under another name, from where it takes its own when it is whole.
    fn open_file(&self, name: &CStr) -> nix::Result<(OwnedFd, CString)> {
        match self.stat(name).map(|stat| stat.st_mode & libc::S_IFMT) {
            Ok(libc::S_IFDIR) => return Err(Errno::EISDIR),
            // Whoever named the target may mean what it leads to.
            Ok(libc::S_IFLNK) if self.place.is_none() => return Err(Errno::ELOOP),
            _ => {}
        }
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        for _ in 0..TRIES {
            let other = CString::new(unique_name(".adl-")).map_err(|_| Errno::EINVAL)?;
            match openat(self.here(), &*other, NEW_FILE, mode) {
                Err(Errno::EEXIST) => {}
                made => return Ok((made?, other)),
            }
        }
        Err(Errno::EEXIST)
    }

    /// Writes a file's content; `false` if it was cut off while it was read.
    fn fill(&mut self, file: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
        let mut length = 0_u64;
        let mut ends_in_hole = false;
        loop {
            let chunk = self.from.chunk()?;
            let (Chunk::Data(more) | Chunk::Hole(more)) = chunk else {
                if ends_in_hole {
                    ftruncate(file, i64::try_from(length).unwrap_or(i64::MAX))
                        .map_err(|errno| self.failed("ftruncate", name, errno))?;
                }
                return Ok(chunk == Chunk::End);
            };
            let end = length
                .checked_add(more)
                .filter(|end| *end <= self.longest)
                .ok_or_else(|| self.failed("write", name, Errno::EFBIG))?;
            let is_after_hole =
                std::mem::replace(&mut ends_in_hole, matches!(chunk, Chunk::Hole(_)));
            if !ends_in_hole {
                if is_after_hole {
                    // A block of the disk, at least.
                    self.tally.charge(BLOCK.saturating_sub(more))?;
                }
                self.tally.bytes(more)?;
                self.from
                    .move_to(file, length, more)
                    .map_err(|error| at_file(error, || self.path(name)))?;
            }
            length = end;
        }
    }

    fn symbolic_link(&mut self, name: &CStr, target: &CStr, attributes: &Attributes) -> Result<()> {
        self.tally.entry()?;
        self.make(name, || symlinkat(target, self.here(), name))
            .map_err(|errno| self.failed("symlink", name, errno))?;
        if self.tally.options.owners {
            let (uid, gid) = owner(attributes)?;
            fchownat(self.here(), name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(|errno| self.no_owner(name, attributes, errno))?;
        }
        let modified = modified(attributes)?;
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(self.here(), name, &TimeSpec::UTIME_OMIT, &modified, flags)
            .map_err(|errno| self.failed("set the time of", name, errno))?;
        self.tally.report.symbolic_links += 1;
        Ok(())
    }

    fn hard_link(&mut self, name: &CStr, target: &[u8]) -> Result<()> {
        self.tally.entry()?;
        let why = "a hard link at the top";
        let top = self.top.as_ref().ok_or(Error::Protocol { why })?;
        let names: Vec<&CStr> = target
            .split_inclusive(|byte| *byte == 0)
            .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
            .collect();
        if names.len() > MAX_DEPTH || !names.iter().all(|name| is_plain_name(name.to_bytes())) {
            return Err(Error::refused("a hard link to what is not in the tree"));
        }
        let why = "a hard link to nothing";
        let (last, way) = names.split_last().ok_or(Error::Protocol { why })?;
        let mut directory: Option<OwnedFd> = None;
        for step in way {
            // A guest chooses how many there are.
            self.from.check_time()?;
            let from = directory.as_ref().unwrap_or(top);
            let next = beneath(from, *step, Purpose::Pass)
                .map_err(|errno| self.failed("link", name, errno))?;
            directory = Some(next);
        }
        let directory = directory.as_ref().unwrap_or(top);
        let stat = fstatat(directory, *last, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| self.failed("link", name, errno))?;
        let identity = Identity::of(&stat);
        // The number of a file that was replaced may have become a link's.
        let is_file = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        if !is_file || !self.made.contains(&identity) {
            return Err(Error::refused("a hard link to what is not of this copy"));
        }
        let is_there = self.stat(name).is_ok_and(|stat| Identity::of(&stat) == identity);
        if !is_there {
            self.make(name, || linkat(directory, *last, self.here(), name, AtFlags::empty()))
                .map_err(|errno| self.failed("link", name, errno))?;
        }
        self.tally.report.hard_links += 1;
        Ok(())
    }

    fn set_attributes(
        &self,
        file: BorrowedFd<'_>,
        name: &CStr,
        attributes: &Attributes,
        extended: &Extended,
        is_directory: bool,
    ) -> Result<()> {
        let options = self.tally.options;
        if options.owners {
            let (uid, gid) = owner(attributes)?;
            fchown(file, uid, gid).map_err(|errno| self.no_owner(name, attributes, errno))?;
        }
        // After the owner, with whom the kernel takes away the bits that set ids.
        let sticky = if is_directory { Mode::S_ISVTX } else { Mode::empty() };
        let set_ids = Mode::S_ISUID | Mode::S_ISGID;
        let set_ids = if options.set_ids { set_ids } else { Mode::empty() };
        let allowed = Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_IRWXO | sticky | set_ids;
        fchmod(file, Mode::from_bits_truncate(attributes.mode) & allowed)
            .map_err(|errno| self.failed("chmod", name, errno))?;
        for (key, value) in extended {
            // What can't be had here is left out.
            attributes::set(file, key.to_bytes(), value, !options.owners)
                .map_err(|errno| attributes::not_set(file, &self.path(name))(errno))?;
        }
        // Last: the others change no time of content, but what wrote it did.
        futimens(file, &TimeSpec::UTIME_OMIT, &modified(attributes)?)
            .map_err(|errno| self.failed("set the time of", name, errno))
    }
}

/// The name of what comes next, as it is to be made here.
fn own(name: Strings<'_>, top: Option<&CStr>) -> Result<CString> {
    let Some(top) = top else { return plain_name(name) };
    top_name(name)?;
    Ok(top.to_owned())
}

fn owner(attributes: &Attributes) -> Result<(Option<Uid>, Option<Gid>)> {
    let Attributes { uid, gid, .. } = *attributes;
    // To the kernel, the highest number means none.
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Error::Protocol { why: "an owner that no file can have" });
    }
    Ok((Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))))
}

fn modified(attributes: &Attributes) -> Result<TimeSpec> {
    let time = attributes.modified;
    // Some higher numbers mean "now" or "as it is" to the kernel.
    if time.nanoseconds >= 1_000_000_000 {
        return Err(Error::Protocol { why: "a bad time" });
    }
    Ok(TimeSpec::new(time.seconds, time.nanoseconds.into()))
}
