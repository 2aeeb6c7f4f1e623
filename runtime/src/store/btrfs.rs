//! Subvolumes of btrfs, by ioctl and on descriptors.
//!
//! Any user may make subvolumes and snapshots of their own files. To destroy one takes
//! `CAP_SYS_ADMIN`, or the mount option `user_subvol_rm_allowed`; to remove an empty one by
//! rmdir(2), no more than for a directory (Linux 4.18).

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};

use crate::sys::ioctl;

/// The number of the top directory of each subvolume (`BTRFS_FIRST_FREE_OBJECTID`), which on other
/// file systems any file may have.
pub(crate) const TOP_INODE: u64 = 256;

/// Whether it is on a btrfs.
pub(crate) fn is_btrfs(fd: impl AsFd) -> bool {
    fstatfs(fd).is_ok_and(|stat| stat.filesystem_type() == BTRFS_SUPER_MAGIC)
}

/// Whether it is the top of a subvolume.
pub(crate) fn is_subvolume(fd: impl AsFd) -> bool {
    fstat(fd.as_fd()).is_ok_and(|stat| stat.st_ino == TOP_INODE) && is_btrfs(fd)
}

/// Whether two files are on the same btrfs, though in different subvolumes.
pub(crate) fn is_same_file_system(one: impl AsFd, other: impl AsFd) -> bool {
    match (ioctl::file_system_id(one), ioctl::file_system_id(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// Makes an empty subvolume, by the rights of the umask, as mkdir(2) of mode 0777 would.
///
/// # Errors
/// EINVAL for what is no name, ENAMETOOLONG, ENOTTY where there is no btrfs; those of mkdir(2).
pub(crate) fn create(parent: impl AsFd, name: impl AsRef<OsStr>) -> io::Result<()> {
    ioctl::create_subvolume(parent, name.as_ref())
}

/// Makes a writable snapshot of a subvolume. What is nested in it is not taken along: in its place
/// is an empty directory.
///
/// # Errors
/// As [`create`]; EINVAL where the source is no subvolume, EXDEV where it is on another file
/// system, EPERM where it is someone else's.
pub(crate) fn snapshot(
    source: impl AsFd,
    parent: impl AsFd,
    name: impl AsRef<OsStr>,
) -> io::Result<()> {
    // Older kernels take any file, and make a snapshot of the subvolume that it is in.
    if !is_subvolume(source.as_fd()) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    ioctl::create_snapshot(source, parent, name.as_ref())
}

/// Whether others are nested in a subvolume.
pub(crate) fn has_nested(subvolume: impl AsFd) -> io::Result<bool> {
    ioctl::has_nested(subvolume)
}

/// Has a btrfs give back the room of what was removed, and of destroyed subvolumes soon.
pub(crate) fn sync(file: impl AsFd) -> io::Result<()> {
    ioctl::sync(file)
}

/// Destroys a subvolume with all that is in it, read-only or not.
///
/// # Errors
/// ENOTEMPTY where others are nested in it, EPERM for a user who may not, EINVAL for a directory.
pub(crate) fn destroy(parent: impl AsFd, name: impl AsRef<OsStr>) -> io::Result<()> {
    ioctl::destroy_subvolume(parent, name.as_ref())
}

/// Lets files of a subvolume be changed, if it was read-only.
///
/// # Errors
/// EINVAL where it is the top of none.
pub(crate) fn make_writable(subvolume: impl AsFd) -> io::Result<()> {
    let flags = ioctl::subvolume_flags(subvolume.as_fd())?;
    if flags & ioctl::READ_ONLY == 0 {
        return Ok(());
    }
    ioctl::set_subvolume_flags(subvolume, flags & !ioctl::READ_ONLY)
}

/// Limits the bytes that a subvolume shares with no other: of a snapshot, what was written since.
///
/// It does not count what is in subvolumes nested in it, nor what they share with it. Who may make
/// snapshots in it may have more.
///
/// # Errors
/// Such that [`are_quotas_off`]; EPERM without `CAP_SYS_ADMIN`.
pub(crate) fn limit(subvolume: impl AsFd, bytes: u64) -> io::Result<()> {
    ioctl::limit_exclusive(subvolume, bytes)
}

/// Whether [`limit`] failed because no one has enabled quotas on the file system, which
/// `btrfs quota enable` does.
pub(crate) fn are_quotas_off(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOTCONN)
}

#[cfg(test)]
mod tests;
