//! What is done with files, each by a child that has become the guest's user.
//!
//! A command of that user could do the same, and no more than that: paths are resolved in the
//! sandbox's root, by a process that is in it and has no descriptor of anything else. What a guest
//! can put in the way is a file that is none: it is opened so that nothing is waited for, and
//! looked at before it is read or written.
//!
//! * [`content`]: reads and writes single files; [`directory`]: lists and removes, and walks down
//!   trees
//! * [`export`] and [`import`]: whole trees, out and in; [`stream`]: the pipes that they use;
//!   [`table`]: what they remember of files

mod content;
mod directory;
mod export;
mod import;
mod stream;
mod table;

use alloc::vec::Vec;
use core::ffi::CStr;
use core::mem::MaybeUninit;

use adl_protocol::{FileAction, FileKind, FileTask, Metadata, Stage, Strings, Time, limits};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::thread::{Gid, Uid};

use crate::failure::{Failure, InStage};
use crate::path::DIRECTORY;
use crate::path::open_in_root;
use crate::socket;
use crate::sys;

/// What a new file has, without the bits of the umask.
const NEW: Mode = Mode::from_raw_mode(0o666);

/// Does one task, and tells on `stdout` what it is to tell.
pub(crate) fn run(
    task: &FileTask<'_>,
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
    channel: BorrowedFd<'_>,
) -> Result<(), Failure> {
    let path = single(&task.path)?;
    match &task.action {
        FileAction::Read { offset, limit, whole } => {
            content::read(path, *offset, *limit, *whole, stdout)
        }
        FileAction::Write { how, mode, owner } => content::write(path, *how, *mode, *owner, stdin),
        FileAction::Metadata { follow } => {
            let stat = stat(path, *follow).stage(Stage::File)?;
            stream::answer(&metadata(&stat), stdout)
        }
        FileAction::List { start, most } => directory::list(path, *start, *most, stdout),
        FileAction::CreateDirectories { mode } => {
            directory::create_all(path, *mode).stage(Stage::File)
        }
        FileAction::RemoveFile => {
            let (directory, name) = place(path)?;
            rustix::fs::unlinkat(directory, name, AtFlags::empty()).stage(Stage::File)
        }
        FileAction::RemoveTree => directory::remove_tree(path, stdout),
        FileAction::Rename { to } => {
            let (from_directory, from) = place(path)?;
            let (to_directory, to) = place(single(to)?)?;
            rename(&from_directory, from, &to_directory, to).stage(Stage::File)
        }
        FileAction::SymbolicLink { target } => {
            let (directory, name) = place(path)?;
            rustix::fs::symlinkat(single(target)?, directory, name).stage(Stage::File)
        }
        FileAction::ReadLink => {
            let (directory, name) = place(path)?;
            let mut buffer = [MaybeUninit::uninit(); limits::MAX_PATH + 1];
            let (target, _) =
                rustix::fs::readlinkat_raw(directory, name, &mut buffer[..]).stage(Stage::File)?;
            stream::write_all(stdout, target).stage(Stage::Copy)
        }
        FileAction::SetMode { mode } => {
            let file = open_in_root(path, OFlags::PATH).stage(Stage::File)?;
            change_mode(&file, *mode).stage(Stage::File)
        }
        FileAction::SetOwner { uid, gid, follow } => {
            let file = open_in_root(path, path_flags(*follow)).stage(Stage::File)?;
            let (uid, gid) = owner(*uid, *gid);
            rustix::fs::chownat(file, c"", uid, gid, AtFlags::EMPTY_PATH).stage(Stage::File)
        }
        FileAction::Export => export::run(path, stdout),
        FileAction::Import { owners } => import::run(path, *owners, stdin, stdout),
        FileAction::Connect => {
            let file = open_in_root(path, OFlags::PATH).stage(Stage::File)?;
            // struct sockaddr_un: AF_UNIX, a path. Its permissions are asked of what that leads to.
            let mut address = [1; 2 + OPENED_PATH];
            let [_, family, of_path @ ..] = &mut address;
            *family = 0;
            write_opened_path(&file, of_path);
            socket::hand_over(sys::connect(&address), channel)
        }
    }
}

/// Whether a task takes more memory than a stack, and so a process with memory of its own. The
/// others must not allocate.
pub(crate) fn allocates(task: &FileTask<'_>) -> bool {
    match task.action {
        FileAction::List { .. }
        | FileAction::RemoveTree
        | FileAction::Export
        | FileAction::Import { .. } => true,
        FileAction::Read { .. }
        | FileAction::Write { .. }
        | FileAction::Metadata { .. }
        | FileAction::CreateDirectories { .. }
        | FileAction::RemoveFile
        | FileAction::Rename { .. }
        | FileAction::SymbolicLink { .. }
        | FileAction::ReadLink
        | FileAction::SetMode { .. }
        | FileAction::SetOwner { .. }
        | FileAction::Connect => false,
    }
}

fn single<'a>(path: &Strings<'a>) -> Result<&'a CStr, Failure> {
    path.single().ok_or(Failure(Stage::Request, Errno::INVAL))
}

/// The directory that a path's last name is in, and that name, with the slashes behind it: they say
/// that it is a directory's, and the kernel understands them.
#[inline(never)]
fn place(path: &CStr) -> Result<(OwnedFd, &CStr), Failure> {
    let bytes = path.to_bytes();
    let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let before = bytes.get(..end).unwrap_or_default();
    let start = before.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    // A suffix of a string that ends with its NUL does so, too.
    let name = path.to_bytes_with_nul().get(start..).unwrap_or_default();
    let name =
        CStr::from_bytes_with_nul(name).map_err(|_| Failure(Stage::Request, Errno::INVAL))?;
    if name.is_empty() {
        return Err(Failure(Stage::File, Errno::NOENT));
    }
    let mut buffer = PathBuffer::new();
    let directory = match bytes.get(..start) {
        None | Some(b"") => c"/",
        Some(directory) => buffer.terminated(directory).stage(Stage::File)?,
    };
    Ok((open_in_root(directory, DIRECTORY).stage(Stage::File)?, name))
}

/// A path that is put together where nothing may be allocated.
struct PathBuffer([u8; limits::MAX_PATH + 1]);

impl PathBuffer {
    fn new() -> Self {
        Self([0; limits::MAX_PATH + 1])
    }

    fn terminated(&mut self, path: &[u8]) -> rustix::io::Result<&CStr> {
        let with_nul = self.0.get_mut(..=path.len()).ok_or(Errno::NAMETOOLONG)?;
        let (last, rest) = with_nul.split_last_mut().ok_or(Errno::NAMETOOLONG)?;
        rest.copy_from_slice(path);
        *last = 0;
        CStr::from_bytes_with_nul(with_nul).map_err(|_| Errno::INVAL)
    }
}

fn path_flags(follow: bool) -> OFlags {
    if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW }
}

fn stat(path: &CStr, follow: bool) -> rustix::io::Result<Stat> {
    rustix::fs::fstat(open_in_root(path, path_flags(follow))?)
}

/// What an entry of a directory is, itself.
fn stat_entry(directory: impl AsFd, name: &CStr) -> rustix::io::Result<Stat> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// The longest path of [`write_opened_path`] with its NUL, in bytes.
const OPENED_PATH: usize = 26;

/// Writes a path to what was opened with `O_PATH`: the one magic link that is known to lead to it.
fn write_opened_path(file: &OwnedFd, into: &mut [u8; OPENED_PATH]) {
    into.copy_from_slice(b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0\0");
    let mut digits = [0; 12];
    let digits = sys::decimal(file.as_raw_fd(), &mut digits);
    into.iter_mut().skip(14).zip(digits).for_each(|(to, digit)| *to = *digit);
}

/// Sets the mode of what was opened with `O_PATH`, of which fchmod(2) takes none.
fn change_mode(file: &OwnedFd, mode: u32) -> rustix::io::Result<()> {
    let mut path = [0; OPENED_PATH];
    write_opened_path(file, &mut path);
    let path = CStr::from_bytes_until_nul(&path).map_err(|_| Errno::INVAL)?;
    let mode = Mode::from_raw_mode(mode);
    rustix::fs::chmodat(rustix::fs::CWD, path, mode, AtFlags::empty())
}

fn rename(
    from_directory: &OwnedFd,
    from: &CStr,
    to_directory: &OwnedFd,
    to: &CStr,
) -> rustix::io::Result<()> {
    rename_with(from_directory, from, to_directory, to, RenameFlags::empty())
}

fn rename_with(
    from_directory: &OwnedFd,
    from: &CStr,
    to_directory: &OwnedFd,
    to: &CStr,
    flags: RenameFlags,
) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(from_directory, from, to_directory, to, flags)
}

/// `u32::MAX` leaves one as it is, to the kernel as well as here.
fn owner(uid: u32, gid: u32) -> (Option<Uid>, Option<Gid>) {
    let uid = (uid != u32::MAX).then(|| Uid::from_raw(uid));
    (uid, (gid != u32::MAX).then(|| Gid::from_raw(gid)))
}

/// Permissions alone: without what set-user-id and set-group-id bits would give to a new content.
const PERMISSIONS: u32 = 0o777;

fn kind(kind: FileType) -> FileKind {
    match kind {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::SymbolicLink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharacterDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Unknown => FileKind::Unknown,
    }
}

fn kind_of(stat: &Stat) -> FileKind {
    kind(FileType::from_raw_mode(stat.st_mode))
}

/// Permissions, with the three bits above them.
fn mode_of(stat: &Stat) -> u32 {
    stat.st_mode & 0o7777
}

fn size_of(stat: &Stat) -> u64 {
    stat.st_size.unsigned_abs()
}

fn modified(stat: &Stat) -> Time {
    time(stat.st_mtime, stat.st_mtime_nsec)
}

fn time(seconds: i64, nanoseconds: u64) -> Time {
    Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) }
}

/// For `utimensat(2)`: both times, since what was copied was not read yet.
fn timestamps(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

fn metadata(stat: &Stat) -> Metadata {
    Metadata {
        kind: kind_of(stat),
        mode: mode_of(stat),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: size_of(stat),
        blocks: stat.st_blocks.unsigned_abs(),
        links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        inode: stat.st_ino,
        accessed: time(stat.st_atime, stat.st_atime_nsec),
        modified: modified(stat),
        changed: time(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// Tells which file it was, below the one that was asked for, that something could not be done
/// with: its names, from the top down.
fn tell_where(names: &[u8], stdout: BorrowedFd<'_>) {
    /// Less than any pipe holds: no one may read it.
    const LONGEST: usize = 4 << 10;
    let path: Vec<u8> = names
        .strip_suffix(b"\0")
        .unwrap_or(names)
        .iter()
        .map(|byte| if *byte == 0 { b'/' } else { *byte })
        .take(LONGEST)
        .collect();
    let _ = stream::write_all(stdout, &path);
}
