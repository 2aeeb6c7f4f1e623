//! What tells that a file has changed, without waiting for whoever has it.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::check;
use super::open::{Mounts, Purpose, entry};

/// What tells that a file has changed. The time is that of its inode: its mode and its owner count,
/// too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    device: (u32, u32),
    inode: u64,
    size: u64,
    changed: (i64, u32),
    mode: u16,
    /// Whether something is mounted there.
    pub(crate) is_mount: bool,
}

impl Stamp {
    /// Of what is at a path, itself where that is a link; `None` if nothing can be seen. A file
    /// system that is mounted there is asked for what it remembers, and no other machine or program
    /// for what is so now.
    ///
    /// # Errors
    /// If it could not be looked at: what is there may be anything.
    pub(crate) fn of(directory: impl AsFd, name: &Path) -> io::Result<Option<Self>> {
        let Ok(name) = CString::new(name.as_os_str().as_bytes()) else { return Ok(None) };
        seen(look(directory, &name))
    }

    /// Of what is below a directory, through no link, and in no file system that is mounted there.
    ///
    /// # Errors
    /// As for [`Stamp::of`].
    pub(crate) fn beneath(directory: impl AsFd, path: &Path) -> io::Result<Option<Self>> {
        let name = path.file_name().map_or(path, Path::new);
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        match parent {
            None => Self::of(directory, name),
            Some(parent) => match seen(entry(directory, parent, Purpose::Pass, Mounts::Refused))? {
                Some(parent) => Self::of(parent, name),
                None => Ok(None),
            },
        }
    }

    /// Whether it is a directory, and nothing is mounted there.
    pub(crate) fn is_own_directory(&self) -> bool {
        u32::from(self.mode) & libc::S_IFMT == libc::S_IFDIR && !self.is_mount
    }

    /// Whether its mode has these bits.
    pub(crate) fn may(&self, bits: u16) -> bool {
        self.mode & bits == bits
    }
}

/// What was seen; `None` if there is nothing that the caller can see. Where the machine has too
/// little of something to look, that tells nothing of what is there.
pub(crate) fn seen<T>(looked: Result<T, impl Into<io::Error>>) -> io::Result<Option<T>> {
    use libc::{EAGAIN, EINTR, EIO, EMFILE, ENFILE, ENOMEM};
    match looked.map_err(Into::into) {
        Ok(seen) => Ok(Some(seen)),
        Err(error) => match error.raw_os_error() {
            Some(EAGAIN | EINTR | EIO | EMFILE | ENFILE | ENOMEM) => Err(error),
            _ => Ok(None),
        },
    }
}

fn look(directory: impl AsFd, name: &CString) -> io::Result<Stamp> {
    const FLAGS: i32 = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
    const IS_MOUNT: u64 = libc::STATX_ATTR_MOUNT_ROOT as u64;
    let fd = directory.as_fd().as_raw_fd();
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an open descriptor, a NUL-ended name, and room for a struct statx.
    check(unsafe {
        libc::statx(fd, name.as_ptr(), FLAGS, libc::STATX_BASIC_STATS, found.as_mut_ptr()).into()
    })?;
    // SAFETY: any bytes are one, and the kernel has filled it.
    let found = unsafe { found.assume_init() };
    Ok(Stamp {
        device: (found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        size: found.stx_size,
        changed: (found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec),
        mode: found.stx_mode,
        is_mount: found.stx_attributes & IS_MOUNT != 0,
    })
}
