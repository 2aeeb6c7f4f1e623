//! A limit for what is in a directory, as a project of its own (ext4 and xfs).
//!
//! A project is a number that a directory hands on to all that is made in it. The kernel lets no
//! one in a user namespace change it, and moves nothing from one project into another.

mod format;

use std::io;
use std::os::fd::BorrowedFd;

use nix::sys::stat::fstat;
use nix::sys::statfs::{EXT4_SUPER_MAGIC, FsType, fstatfs};

use self::format::Format;
use crate::error::{Error, Result};
use crate::sys::ioctl::{self, INHERIT_PROJECT};
use crate::sys::quotactl::{self, Projects};

/// Projects are in the upper half, away from those that administrators number from one.
const FIRST: u32 = 0x8000_0000;

/// Not a project: -1, which the kernel takes for none.
const NONE: u32 = u32::MAX;

/// One inode for each so many bytes of the limit, as mkfs.ext4 makes at most for small disks.
const BYTES_PER_INODE: u64 = 4096;

/// And so many for what has no bytes: a small limit is not to forbid a tree of directories.
const INODES: u64 = 1024;

/// What the kernel can keep in its records, and more than any disk has.
const MOST_BYTES: u64 = 1 << 62;

/// What a limit may be rounded up to.
const LARGEST_BLOCK: u64 = 65536;

/// How many numbers a directory may have. The first is of its inode number, of which another
/// directory may have the same 31 bits where there are more: in large file systems of xfs.
const CANDIDATES: u64 = 8;

/// Limits what may be in a directory that is still empty: its bytes on disk, and its files, of
/// which there may be one for each 4096 bytes and 1024 beside.
///
/// A guest that tries more gets EDQUOT (ext4) or ENOSPC (xfs). Who has `CAP_SYS_RESOURCE` outside
/// of any user namespace is not limited by ext4. Again on the same directory, it changes the limit.
///
/// # Errors
/// [`Error::Unsupported`] where the file system or the user can't; the directory is as before.
pub(crate) fn limit(directory: BorrowedFd<'_>, bytes: u64) -> Result<()> {
    check_enforced(directory)?;
    let before = ioctl::attributes(directory).map_err(|error| cannot(directory, error))?;
    let set = set_project(directory, before, bytes.min(MOST_BYTES));
    if set.is_err() {
        // The error that is told is the first one.
        let _ = release(directory);
        let _ = ioctl::set_attributes(directory, &before);
    }
    set
}

fn set_project(
    directory: BorrowedFd<'_>,
    mut attributes: ioctl::Attributes,
    bytes: u64,
) -> Result<()> {
    let inodes = bytes / BYTES_PER_INODE + INODES;
    attributes.flags |= INHERIT_PROJECT;
    for project in candidates(directory)? {
        attributes.project = project;
        ioctl::set_attributes(directory, &attributes).map_err(|error| cannot(directory, error))?;
        let has =
            quotactl::project(directory, project).map_err(|error| cannot(directory, error))?;
        // More than the directory: it is another's.
        if has.inodes > 1 {
            continue;
        }
        // No limit is written as 0.
        let bytes = bytes.max(1);
        quotactl::set_limits(directory, project, bytes, inodes)
            .map_err(|error| cannot(directory, error))?;
        let has =
            quotactl::project(directory, project).map_err(|error| cannot(directory, error))?;
        if has.byte_limit < bytes
            || has.byte_limit - bytes > LARGEST_BLOCK
            || has.inode_limit != inodes
        {
            return Err(unsupported("the file system has not kept the limit", OTHER_PLACE));
        }
        return Ok(());
    }
    Err(unsupported("no number for a project is free", OTHER_PLACE))
}

/// Takes the limit of a directory that is about to be removed away, so that the file system keeps
/// no record of it when its last file is gone. One that [`limit`] was not used on is left alone.
///
/// # Errors
/// EPERM without `CAP_SYS_ADMIN`.
pub(crate) fn release(directory: BorrowedFd<'_>) -> io::Result<()> {
    // An error: a file system without projects.
    let Ok(attributes) = ioctl::attributes(directory) else { return Ok(()) };
    let project = attributes.project;
    // Its parent may be of a project of an administrator's, and so is this, then.
    if project < FIRST || !candidates(directory).is_ok_and(|mut own| own.any(|id| id == project)) {
        return Ok(());
    }
    match quotactl::set_limits(directory, project, 0, 0) {
        // Mounted without quotas since.
        Err(error) if is_without_quotas(&error) => Ok(()),
        result => result,
    }
}

/// Takes an empty directory out of the project that [`limit`] has given to the one that it is in:
/// what comes into it is not the guest's, and there must be room for it.
pub(crate) fn exempt(directory: BorrowedFd<'_>) -> io::Result<()> {
    // An error: a file system without projects.
    let Ok(mut attributes) = ioctl::attributes(directory) else { return Ok(()) };
    if attributes.project < FIRST {
        return Ok(());
    }
    attributes.project = 0;
    attributes.flags &= !INHERIT_PROJECT;
    ioctl::set_attributes(directory, &attributes)
}

/// The numbers that a directory's project may have, each time the same.
fn candidates(directory: BorrowedFd<'_>) -> Result<impl Iterator<Item = u32>> {
    let inode = fstat(directory).map_err(Error::io("stat"))?.st_ino;
    Ok((0..CANDIDATES).map(move |attempt| candidate(inode, attempt)))
}

/// The low 31 bits of the inode number, and then other bits in which all of it has a part.
fn candidate(inode: u64, attempt: u64) -> u32 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed =
        if attempt == 0 { inode } else { inode.wrapping_add(attempt).wrapping_mul(ODD) >> 33 };
    let project = FIRST | (mixed & u64::from(FIRST - 1)) as u32;
    if project == NONE { FIRST } else { project }
}

fn check_enforced(directory: BorrowedFd<'_>) -> Result<()> {
    match quotactl::projects(directory) {
        Ok(Projects::Enforced) => Ok(()),
        Ok(Projects::Counted) => Err(unsupported(
            "the file system counts project quotas but does not enforce them",
            "mount it with the option prjquota, or, for xfs, pquota",
        )),
        Ok(Projects::Ignored) => Err(cannot(directory, io::Error::from_raw_os_error(libc::ENOSYS))),
        Err(error) => Err(cannot(directory, error)),
    }
}

/// What helps where the file system has no projects.
const OTHER_PLACE: &str = "put the state directory on ext4 or xfs with project quotas, or on btrfs, \
    or have the upper in memory";

fn cannot(directory: BorrowedFd<'_>, error: io::Error) -> Error {
    match error.raw_os_error() {
        // EPERM, and a sandbox of this or another kind around this process.
        Some(libc::EPERM | libc::EACCES) => unsupported(
            "it takes CAP_SYS_ADMIN outside of any user namespace",
            "run as root, or have the upper in memory",
        ),
        _ if is_without_quotas(&error) => {
            let kind = fstatfs(directory).ok().map(|stat| stat.filesystem_type());
            let why = "the file system has no project quotas, or they are off";
            unsupported(
                why,
                match kind {
                    Some(EXT4_SUPER_MAGIC) => format::remedy(Format::of_this_kernel()),
                    Some(XFS) => {
                        "root has to unmount it, and to mount it by `mount -o prjquota DEVICE \
                         DIRECTORY` (`findmnt` lists both); or have the upper in memory"
                            .to_owned()
                    }
                    _ => OTHER_PLACE.to_owned(),
                },
            )
        }
        _ => Error::io("quotactl_fd or FS_IOC_FSSETXATTR")(error),
    }
}

/// nix has it only for some C libraries.
const XFS: FsType = FsType(0x5846_5342);

fn unsupported(why: &str, fix: impl Into<String>) -> Error {
    Error::Unsupported {
        what: "a limit of disk space".to_owned(),
        why: why.to_owned(),
        fix: fix.into(),
    }
}

/// What the kernel says of a file system that knows no quotas or projects, or has them off.
fn is_without_quotas(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::EINVAL | libc::ESRCH | libc::ENOTTY | libc::EOPNOTSUPP)
    )
}

#[cfg(test)]
mod tests;
