//! Reads and writes single files.

use core::ffi::CStr;

use adl_protocol::{Chunk, FileKind, Stage, WriteHow};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, SeekFrom, Stat, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::stream::Input;
use super::{NEW, PERMISSIONS, kind_of, owner, place, rename_with, size_of, stat_entry};
use crate::failure::{Failure, InStage};
use crate::path::open_or_make_in_root;
use crate::sys;

/// What is held of what comes for a file, in bytes: all of a small one.
const SMALL: usize = 4 << 10;
/// The most that is asked for at once, in bytes.
const AT_ONCE: u64 = 1 << 20;
/// `f_type` of procfs (`statfs(2)`), whose files are none: they may wait, or never end.
const PROC: i64 = 0x9fa0;

/// Opens a regular file, without waiting for whoever has it locked or leased, or for the other end
/// of what turns out to be a FIFO.
fn open_regular(path: &CStr, flags: OFlags, new: Mode) -> Result<(OwnedFd, Stat), Failure> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open_or_make_in_root(path, flags, new) {
        // Of a socket, and of a FIFO or a device with no one at its other end.
        Err(errno @ (Errno::NXIO | Errno::NODEV)) => return Err(Failure(Stage::Kind, errno)),
        opened => opened.stage(Stage::File)?,
    };
    let stat = rustix::fs::fstat(&file).stage(Stage::File)?;
    match kind_of(&stat) {
        FileKind::File => {}
        FileKind::Directory => return Err(Failure(Stage::File, Errno::ISDIR)),
        _ => return Err(Failure(Stage::Kind, Errno::INVAL)),
    }
    if is_of_proc(&file).stage(Stage::File)? || is_mask(&file, &stat).stage(Stage::File)? {
        return Err(Failure(Stage::Kind, Errno::INVAL));
    }
    Ok((file, stat))
}

/// Whether it is on procfs.
pub(super) fn is_of_proc(file: impl AsFd) -> rustix::io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type == PROC)
}

/// Whether it is what lies over a file of `/proc` that is hidden: an empty one that no one may
/// open, mounted by itself.
fn is_mask(file: &OwnedFd, stat: &Stat) -> rustix::io::Result<bool> {
    if stat.st_size != 0 || stat.st_mode & PERMISSIONS != 0 {
        return Ok(false);
    }
    let known = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(known.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Copies a regular file, or a part of it.
pub(super) fn read(
    path: &CStr,
    offset: u64,
    limit: u64,
    whole: bool,
    to: BorrowedFd<'_>,
) -> Result<(), Failure> {
    const TOO_LARGE: Failure = Failure(Stage::Copy, Errno::FBIG);
    let (file, stat) = open_regular(path, OFlags::RDONLY, Mode::empty())?;
    if whole && size_of(&stat).saturating_sub(offset) > limit {
        return Err(TOO_LARGE);
    }
    let (mut at, mut left) = (offset, limit);
    loop {
        // One byte more than there may be, to learn of it.
        let most = if whole { left.saturating_add(1) } else { left };
        let count = usize::try_from(most.min(AT_ONCE)).unwrap_or(0);
        if count == 0 {
            return Ok(());
        }
        let copied = rustix::fs::sendfile(to, &file, Some(&mut at), count).stage(Stage::Copy)?;
        if copied == 0 {
            return Ok(());
        }
        left = left.checked_sub(copied as u64).ok_or(TOO_LARGE)?;
    }
}

/// Makes or changes a regular file.
pub(super) fn write(
    path: &CStr,
    how: WriteHow,
    mode: Option<u32>,
    owner: Option<(u32, u32)>,
    from: BorrowedFd<'_>,
) -> Result<(), Failure> {
    let mut room = [0; SMALL];
    let mut input = Input::within(from, &mut room);
    let as_new = match how {
        WriteHow::Replace => RenameFlags::empty(),
        WriteHow::CreateNew => RenameFlags::NOREPLACE,
        WriteHow::Truncate | WriteHow::Append => {
            let extra = if how == WriteHow::Append { OFlags::APPEND } else { OFlags::empty() };
            // A caller that goes away before it has said anything changes nothing.
            input.hold(Chunk::HEADER).stage(Stage::Copy)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | extra;
            let (file, _) = open_regular(path, flags, first_mode(mode))?;
            if how == WriteHow::Truncate {
                rustix::fs::ftruncate(&file, 0).stage(Stage::File)?;
            }
            set_owner_and_mode(&file, owner, mode).stage(Stage::File)?;
            return fill(&mut input, file.as_fd()).stage(Stage::Copy);
        }
    };
    let (directory, name) = place(path)?;
    let there = match stat_entry(&directory, name) {
        Err(Errno::NOENT) => None,
        there => Some(there.stage(Stage::File)?),
    };
    match there.as_ref().map(kind_of) {
        None => {}
        Some(_) if how == WriteHow::CreateNew => return Err(Failure(Stage::File, Errno::EXIST)),
        Some(FileKind::File | FileKind::SymbolicLink) => {}
        Some(FileKind::Directory) => return Err(Failure(Stage::File, Errno::ISDIR)),
        Some(_) => return Err(Failure(Stage::Kind, Errno::INVAL)),
    }
    // What it replaces stays the owner's, and as open or closed to others as it was.
    let replaced = there.filter(|stat| kind_of(stat) == FileKind::File);
    let kept_mode = replaced.as_ref().map(|stat| stat.st_mode & PERMISSIONS);

    // Of small files, all is here before anything is made.
    input.hold(Chunk::HEADER).stage(Stage::Copy)?;
    let mode = mode.or(kept_mode);
    let (file, temporary) = make_temporary(&directory, first_mode(mode)).stage(Stage::File)?;
    let made = fill(&mut input, file.as_fd()).stage(Stage::Copy).and_then(|()| {
        if let (None, Some(stat)) = (owner, &replaced)
            && is_another_owner(&file, stat)
        {
            // As far as this user may: root may, others may give a file to groups of theirs.
            let _ = set_owner_and_mode(&file, Some((stat.st_uid, stat.st_gid)), None);
        }
        set_owner_and_mode(&file, owner, mode).stage(Stage::File)?;
        match &there {
            Some(stat) => exchange(&directory, temporary.as_c_str(), name, size_of(stat)),
            None => rename_with(&directory, temporary.as_c_str(), &directory, name, as_new),
        }
        .stage(Stage::File)
    });
    if made.is_err() {
        let _ = rustix::fs::unlinkat(&directory, temporary.as_c_str(), AtFlags::empty());
    }
    made
}

/// The mode to make a file with that gets `mode` when it has its content and its owner: until then
/// it is open to no one else.
fn first_mode(mode: Option<u32>) -> Mode {
    mode.map_or(NEW, |mode| Mode::from_raw_mode(mode & 0o600))
}

/// Puts a new file in the place of one of so many bytes, and removes that.
///
/// First they change places, because where a rename replaces a file, ext4 brings the new one to
/// disk, which may take milliseconds (`auto_da_alloc`, `ext4(5)`). Of a large file of a layer
/// below, overlayfs would make a copy for that.
fn exchange(directory: &OwnedFd, new: &CStr, name: &CStr, old_size: u64) -> rustix::io::Result<()> {
    const SMALL_FILE: u64 = 64 << 10;
    if old_size <= SMALL_FILE {
        match rename_with(directory, new, directory, name, RenameFlags::EXCHANGE) {
            Ok(()) => {
                let removed = rustix::fs::unlinkat(directory, new, AtFlags::empty());
                return removed.inspect_err(|_| {
                    // Someone has just put a directory there: it gets its place back.
                    let _ = rename_with(directory, new, directory, name, RenameFlags::EXCHANGE);
                });
            }
            // The file system can't, or someone has just removed it.
            Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    rename_with(directory, new, directory, name, RenameFlags::empty())
}

/// To make a file that is not there yet.
const NEW_FILE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Makes a file that is to get another name.
pub(super) fn make_temporary(
    directory: &OwnedFd,
    mode: Mode,
) -> rustix::io::Result<(OwnedFd, TemporaryName)> {
    const ATTEMPTS: u32 = 16;
    for attempt in 0..ATTEMPTS {
        let name = TemporaryName::new(attempt);
        match rustix::fs::openat(directory, name.as_c_str(), NEW_FILE, mode) {
            Err(Errno::EXIST) => {}
            made => return Ok((made?, name)),
        }
    }
    Err(Errno::EXIST)
}

/// A name that no guest has reason to use; if one does, another is tried.
pub(super) struct TemporaryName([u8; 32]);

impl TemporaryName {
    fn new(attempt: u32) -> Self {
        let time = i32::try_from(sys::now() % 1_000_000_000).unwrap_or(0);
        let (mut pid, mut number) = ([0; 12], [0; 12]);
        let pid = sys::decimal(sys::own_pid(), &mut pid);
        let number = sys::decimal(time ^ i32::try_from(attempt).unwrap_or(0), &mut number);
        let mut name = [0; 32];
        let parts = [b".adl-", pid, b"-", number];
        for (to, from) in name.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        Self(name)
    }

    pub(super) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

fn is_another_owner(file: &OwnedFd, than: &Stat) -> bool {
    rustix::fs::fstat(file)
        .is_ok_and(|stat| (stat.st_uid, stat.st_gid) != (than.st_uid, than.st_gid))
}

/// In this order, since a change of the owner takes bits of the mode away.
fn set_owner_and_mode(
    file: &OwnedFd,
    to: Option<(u32, u32)>,
    mode: Option<u32>,
) -> rustix::io::Result<()> {
    if let Some((uid, gid)) = to {
        let (uid, gid) = owner(uid, gid);
        rustix::fs::fchown(file, uid, gid)?;
    }
    if let Some(mode) = mode {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

/// Writes what comes to where the file stands, to its end.
pub(super) fn fill(input: &mut Input<'_>, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let (mut length, mut ends_in_hole) = (0_u64, false);
    loop {
        match input.chunk()? {
            Chunk::Data(count) => {
                input.move_to_file(file, count)?;
                length = length.saturating_add(count);
                ends_in_hole = false;
            }
            Chunk::Hole(count) => {
                length = length.saturating_add(count);
                rustix::fs::seek(file, SeekFrom::Start(length))?;
                ends_in_hole = true;
            }
            Chunk::End | Chunk::CutOff if ends_in_hole => {
                return rustix::fs::ftruncate(file, length);
            }
            Chunk::End | Chunk::CutOff => return Ok(()),
        }
    }
}
