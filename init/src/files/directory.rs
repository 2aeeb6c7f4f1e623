//! Lists, makes and removes directories, and walks down trees with one descriptor.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use adl_protocol::{FileKind, Listing, MAX_DEPTH, MAX_NAME, Stage, Strings};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom};
use rustix::io::Errno;

use super::{PathBuffer, kind, kind_of, place, stat_entry, stream, tell_where};
use crate::failure::{Failure, InStage};
use crate::path::{DIRECTORY, open_in_root, patiently};

/// How much of a directory is read at once, in bytes.
const CHUNK: usize = 32 << 10;
/// The most of a directory that one answer tells, in bytes of its names.
const ANSWER: usize = 4 << 20;

/// By how much the room for the names of a deep tree grows, in bytes.
const NAMES_MORE: usize = 1 << 20;

/// Opens a directory to read its names.
pub(super) const LISTED: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NONBLOCK);

/// Tells the names in a directory.
pub(super) fn list(path: &CStr, start: u64, most: u32, to: BorrowedFd<'_>) -> Result<(), Failure> {
    let directory = open_in_root(path, LISTED).stage(Stage::File)?;
    rustix::fs::seek(&directory, SeekFrom::Start(start)).stage(Stage::File)?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let (mut names, mut kinds) = (Vec::new(), Vec::new());
    let mut at = start;
    let mut next = None;
    each_entry(directory.as_fd(), |name, file_type, cookie| {
        if kinds.len() >= most || names.len() >= ANSWER {
            next = Some(at);
            return Ok(false);
        }
        let kind = match file_type {
            FileType::Unknown => {
                stat_entry(&directory, name).map_or(FileKind::Unknown, |stat| kind_of(&stat))
            }
            known => kind(known),
        };
        names.extend_from_slice(name.to_bytes_with_nul());
        kinds.push(FileKind::ALL.iter().position(|k| *k == kind).unwrap_or(0) as u8);
        at = cookie;
        Ok(true)
    })
    .stage(Stage::Copy)?;
    let names = Strings::new(&names).map_err(|_| Failure(Stage::Copy, Errno::OVERFLOW))?;
    stream::long_answer(&Listing { names, kinds: &kinds, next }, to)
}

/// Calls `look` with the name of each entry from where the directory stands, what it is, and where
/// the next one is, until it returns `false`.
pub(super) fn each_entry(
    directory: BorrowedFd<'_>,
    mut look: impl FnMut(&CStr, FileType, u64) -> rustix::io::Result<bool>,
) -> rustix::io::Result<()> {
    let mut buffer = Vec::with_capacity(CHUNK);
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        let is_itself = name == c"." || name == c"..";
        if !is_itself && !look(name, entry.file_type(), entry.next_entry_cookie())? {
            break;
        }
    }
    Ok(())
}

/// Makes a directory, and those above it that are missing.
pub(super) fn create_all(path: &CStr, mode: u32) -> rustix::io::Result<()> {
    // Not in one: what lies above a missing one may be a symbolic link that leads elsewhere.
    let mut at = rustix::fs::open(c"/", DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    if path.is_empty() {
        return Err(Errno::NOENT);
    }
    let mut buffer = PathBuffer::new();
    for name in path.to_bytes().split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        let name = buffer.terminated(name)?;
        // This process's root is that of the guest: no `..` and no link leads out of it.
        let flags = DIRECTORY | OFlags::CLOEXEC;
        let open =
            || rustix::fs::openat2(&at, name, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
        at = match patiently(open) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(mode)) {
                    // Someone else was faster.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                patiently(open)?
            }
            opened => opened?,
        };
    }
    Ok(())
}

/// A way down a tree. It holds a bounded number of descriptors, however deep it goes, since a
/// guest chooses the depth: from further down, the way back up is `..`, where it has to meet the
/// directory that it came from.
pub(super) struct Walk<T> {
    pub(super) directory: OwnedFd,
    /// Those above it, each with what is kept for it.
    above: Vec<Level<T>>,
    /// The names from the top down, each with its NUL.
    pub(super) names: Vec<u8>,
}

struct Level<T> {
    directory: Above,
    /// How long the names are up to there.
    names: usize,
    kept: T,
}

/// How to come back to a directory.
enum Above {
    Held(OwnedFd),
    /// By its device and inode.
    Known(u64, u64),
}

impl<T> Walk<T> {
    /// How many directories are held open above the one that it is in.
    const HELD: usize = 64;

    pub(super) fn new(directory: OwnedFd) -> Self {
        Self { directory, above: Vec::new(), names: Vec::new() }
    }

    /// How far below the top it is.
    pub(super) fn depth(&self) -> usize {
        self.above.len()
    }

    /// The names from the top down to an entry of the directory that it is in.
    pub(super) fn names_of(&self, name: &CStr) -> Vec<u8> {
        let mut names = self.names.clone();
        names.extend_from_slice(name.to_bytes_with_nul());
        names
    }

    /// Goes down into a directory that is open.
    pub(super) fn down(&mut self, into: OwnedFd, name: &CStr, kept: T) -> rustix::io::Result<()> {
        if self.above.len() >= MAX_DEPTH {
            return Err(Errno::LOOP);
        }
        if let Some(far) = self.above.len().checked_sub(Self::HELD)
            && let Some(level) = self.above.get_mut(far)
            && let Above::Held(directory) = &level.directory
        {
            let stat = rustix::fs::fstat(directory)?;
            level.directory = Above::Known(stat.st_dev, stat.st_ino);
        }
        let above = Above::Held(core::mem::replace(&mut self.directory, into));
        self.above.push(Level { directory: above, names: self.names.len(), kept });
        if self.names.capacity() - self.names.len() <= MAX_NAME {
            // Not doubled: of the deepest tree there are 16 MiB.
            self.names.reserve_exact(NAMES_MORE);
        }
        self.names.extend_from_slice(name.to_bytes_with_nul());
        Ok(())
    }

    /// Goes back up. Returns the directory that it was in, its name, and what was kept; `None` at
    /// the top.
    pub(super) fn up(&mut self) -> rustix::io::Result<Option<(OwnedFd, CString, T)>> {
        let Some(level) = self.above.pop() else { return Ok(None) };
        let above = match level.directory {
            Above::Held(directory) => directory,
            Above::Known(device, inode) => {
                let flags = LISTED | OFlags::CLOEXEC;
                let above = rustix::fs::openat(&self.directory, c"..", flags, Mode::empty())?;
                let stat = rustix::fs::fstat(&above)?;
                if (stat.st_dev, stat.st_ino) != (device, inode) {
                    // Someone has moved it meanwhile.
                    return Err(Errno::STALE);
                }
                above
            }
        };
        let name = self.names.split_off(level.names);
        let name = CString::from_vec_with_nul(name).map_err(|_| Errno::INVAL)?;
        Ok(Some((core::mem::replace(&mut self.directory, above), name, level.kept)))
    }
}

/// Opens an entry of a directory: itself, if it is a symbolic link, and nothing that is mounted
/// there, which is EXDEV.
pub(super) fn open_entry(
    directory: impl AsFd,
    name: &CStr,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    patiently(|| rustix::fs::openat2(&directory, name, flags, Mode::empty(), resolve))
}

/// Removes a directory and all that is in it.
pub(super) fn remove_tree(path: &CStr, stdout: BorrowedFd<'_>) -> Result<(), Failure> {
    let (directory, name) = place(path)?;
    let name = without_slashes(name)?;
    // Before it is emptied, and then can't be removed by this name.
    match name.to_bytes() {
        b"" => return Err(Failure(Stage::File, Errno::BUSY)),
        b"." | b".." => return Err(Failure(Stage::File, Errno::INVAL)),
        _ => {}
    }
    let mut walk = Walk::new(directory);
    let mut at = Vec::new();
    remove_from(&mut walk, &name, &mut at).map_err(|errno| {
        let names = if at.is_empty() { &walk.names } else { &at };
        tell_where(below_top(names), stdout);
        Failure(Stage::File, errno)
    })
}

/// For a directory on the way up: where its parent's names go on, and how often it was gone
/// through.
struct Removal {
    resume: u64,
    passes: u32,
}

/// `at` is to name an entry that could not be removed.
fn remove_from(walk: &mut Walk<Removal>, top: &CStr, at: &mut Vec<u8>) -> rustix::io::Result<()> {
    /// How often a directory is gone through in which there is something new each time.
    const PASSES: u32 = 64;
    let directory = open_entry(&walk.directory, top, LISTED)?;
    walk.down(directory, top, Removal { resume: 0, passes: 1 })?;
    let mut from = 0;
    loop {
        rustix::fs::seek(&walk.directory, SeekFrom::Start(from))?;
        let mut into = None;
        each_entry(walk.directory.as_fd(), |name, _, cookie| {
            let is_gone = remove_entry(walk.directory.as_fd(), name);
            match is_gone {
                Ok(false) => into = Some((name.to_owned(), cookie)),
                Ok(true) => {}
                Err(_) => *at = walk.names_of(name),
            }
            is_gone
        })?;
        if let Some((name, cookie)) = into {
            from = match open_entry(&walk.directory, &name, LISTED) {
                Err(Errno::NOENT) => cookie,
                opened => {
                    let opened = opened.inspect_err(|_| *at = walk.names_of(&name))?;
                    walk.down(opened, &name, Removal { resume: cookie, passes: 1 })?;
                    0
                }
            };
            continue;
        }
        let Some((directory, name, Removal { resume, passes })) = walk.up()? else {
            return Ok(());
        };
        match rustix::fs::unlinkat(&walk.directory, &*name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => from = resume,
            // Removal may have moved names to where they had been read, or someone adds to them.
            Err(Errno::NOTEMPTY | Errno::EXIST) if passes < PASSES => {
                walk.down(directory, &name, Removal { resume, passes: passes + 1 })?;
                from = 0;
                continue;
            }
            Err(errno) => {
                *at = walk.names_of(&name);
                return Err(errno);
            }
        }
        if walk.depth() == 0 {
            return Ok(());
        }
    }
}

/// Removes an entry; `false` if it is a directory with something in it.
fn remove_entry(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<bool> {
    let refused = match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(errno @ (Errno::ISDIR | Errno::PERM)) => errno,
        Err(errno) => return Err(errno),
    };
    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(Errno::NOTDIR) => Err(refused),
        Err(errno) => Err(errno),
    }
}

/// Names without the first one, which is that of what was asked for.
pub(super) fn below_top(names: &[u8]) -> &[u8] {
    let top = names.iter().position(|byte| *byte == 0).map_or(names.len(), |end| end + 1);
    names.get(top..).unwrap_or_default()
}

/// A name without what says that it is a directory's.
pub(super) fn without_slashes(name: &CStr) -> Result<CString, Failure> {
    let name = name.to_bytes().split(|byte| *byte == b'/').next().unwrap_or_default();
    CString::new(name).map_err(|_| Failure(Stage::Request, Errno::INVAL))
}
