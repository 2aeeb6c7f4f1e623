//! Project quotas, by a descriptor on their file system (quotactl_fd, Linux 5.14).
//!
//! The structs and numbers are those of linux/quota.h and linux/dqblk_xfs.h. The kernel answers
//! both families of commands for ext4 and for xfs (fs/quota/quota.c).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::check;

const PROJECTS: u32 = 2;
const Q_GETQUOTA: u32 = 0x80_0007;
const Q_SETQUOTA: u32 = 0x80_0008;
const Q_XGETQSTATV: u32 = (b'X' as u32) << 8 | 8;

/// The unit of limits on blocks.
const BLOCK: u64 = 1024;

/// `struct fs_quota_statv`.
#[repr(C)]
#[derive(Default)]
struct State {
    version: i8,
    padding_1: u8,
    flags: u16,
    in_core: u32,
    files: [[u64; 3]; 3],
    time_limits: [i32; 3],
    warn_limits: [u16; 3],
    padding_3: u16,
    padding_4: u32,
    padding_2: [u64; 7],
}

const _: () = assert!(size_of::<State>() == 160);
const _: () = assert!(size_of::<libc::dqblk>() == 72);

/// What a file system does about projects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Projects {
    /// Nothing.
    Ignored,
    /// It knows how much each has, and lets it have more.
    Counted,
    /// Limits are kept.
    Enforced,
}

/// The limits of a project, 0 for none, and what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Project {
    /// A multiple of 1024.
    pub(crate) byte_limit: u64,
    pub(crate) inode_limit: u64,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// What the file system does about projects.
///
/// # Errors
/// ENOSYS where it knows no quotas or they are all off, EINVAL where it knows none of projects.
pub(crate) fn projects(on: impl AsFd) -> io::Result<Projects> {
    const COUNTED: u16 = 1 << 4;
    const ENFORCED: u16 = 1 << 5;
    let mut state = State { version: 1, ..State::default() };
    // SAFETY: the command reads the version and writes the struct of that version.
    unsafe { quotactl(on, Q_XGETQSTATV, 0, (&raw mut state).cast())? };
    Ok(if state.flags & ENFORCED != 0 {
        Projects::Enforced
    } else if state.flags & COUNTED != 0 {
        Projects::Counted
    } else {
        Projects::Ignored
    })
}

pub(crate) fn project(on: impl AsFd, id: u32) -> io::Result<Project> {
    let mut quota = nothing();
    // SAFETY: the command writes a struct if_dqblk, which is a struct dqblk.
    unsafe { quotactl(on, Q_GETQUOTA, id, (&raw mut quota).cast())? };
    Ok(Project {
        byte_limit: quota.dqb_bhardlimit.saturating_mul(BLOCK),
        inode_limit: quota.dqb_ihardlimit,
        bytes: quota.dqb_curspace,
        inodes: quota.dqb_curinodes,
    })
}

/// Sets the hard limits of a project, rounded up to 1024 bytes, and takes away the soft ones.
pub(crate) fn set_limits(on: impl AsFd, id: u32, bytes: u64, inodes: u64) -> io::Result<()> {
    let mut quota = nothing();
    quota.dqb_bhardlimit = bytes.div_ceil(BLOCK);
    quota.dqb_ihardlimit = inodes;
    quota.dqb_valid = libc::QIF_LIMITS;
    // SAFETY: the command reads a struct if_dqblk, which is a struct dqblk.
    unsafe { quotactl(on, Q_SETQUOTA, id, (&raw mut quota).cast()) }
}

/// The first project from `id` on that the file system keeps a record of.
#[cfg(test)]
pub(crate) fn next_project(on: impl AsFd, id: u32) -> io::Result<u32> {
    const Q_GETNEXTQUOTA: u32 = 0x80_0009;
    /// `struct if_nextdqblk`.
    #[repr(C)]
    #[derive(Default)]
    struct Next {
        quota: [u64; 8],
        valid: u32,
        id: u32,
    }
    let mut next = Next::default();
    // SAFETY: the command writes the struct.
    unsafe { quotactl(on, Q_GETNEXTQUOTA, id, (&raw mut next).cast())? };
    Ok(next.id)
}

fn nothing() -> libc::dqblk {
    // SAFETY: integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// # Safety
/// `address` is what the command takes.
unsafe fn quotactl(
    on: impl AsFd,
    command: u32,
    id: u32,
    address: *mut libc::c_void,
) -> io::Result<()> {
    let fd = on.as_fd().as_raw_fd();
    // SAFETY: a valid descriptor; the caller answers for the address.
    let result =
        unsafe { libc::syscall(libc::SYS_quotactl_fd, fd, command << 8 | PROJECTS, id, address) };
    check(result).map(drop)
}
