//! The ioctls of files, of projects and of btrfs, behind safe functions.
//!
//! The structs and numbers are those of linux/fs.h and linux/btrfs.h.

use std::ffi::{OsStr, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

use super::check;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolumeArguments {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`. The kernel checks that what is not used is zero.
#[repr(C)]
struct VolumeArgumentsV2 {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_fs_info_args`.
#[repr(C)]
struct FileSystem {
    largest_device: u64,
    devices: u64,
    id: [u8; 16],
    rest: [u8; 992],
}

/// `struct btrfs_ioctl_get_subvol_rootref_args`.
#[repr(C)]
struct Nested {
    least: u64,
    references: [[u64; 2]; 255],
    count: u8,
    padding: [u8; 7],
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct QgroupLimit {
    qgroup: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

/// `struct fsxattr`: what a file has beside its permissions.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) flags: u32,
    extent_size: u32,
    extents: u32,
    pub(crate) project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

// The numbers of the requests hold the sizes: a wrong one would be another request.
const _: () = assert!(size_of::<VolumeArguments>() == 4096);
const _: () = assert!(size_of::<VolumeArgumentsV2>() == 4096);
const _: () = assert!(std::mem::offset_of!(VolumeArgumentsV2, name) == 56);
const _: () = assert!(size_of::<FileSystem>() == 1024);
const _: () = assert!(size_of::<Nested>() == 4096);
const _: () = assert!(size_of::<QgroupLimit>() == 48);
const _: () = assert!(size_of::<Attributes>() == 28);

const BTRFS: u32 = 0x94;
const SYNC: libc::Ioctl = libc::_IO(BTRFS, 8);
const GET_SUBVOL_ROOTREF: libc::Ioctl = libc::_IOWR::<Nested>(BTRFS, 61);
const FS_INFO: libc::Ioctl = libc::_IOR::<FileSystem>(BTRFS, 31);
const SUBVOL_CREATE: libc::Ioctl = libc::_IOW::<VolumeArguments>(BTRFS, 14);
const SNAP_DESTROY: libc::Ioctl = libc::_IOW::<VolumeArguments>(BTRFS, 15);
const SNAP_CREATE_V2: libc::Ioctl = libc::_IOW::<VolumeArgumentsV2>(BTRFS, 23);
const SUBVOL_GETFLAGS: libc::Ioctl = libc::_IOR::<u64>(BTRFS, 25);
const SUBVOL_SETFLAGS: libc::Ioctl = libc::_IOW::<u64>(BTRFS, 26);
// "Read", though the kernel is what reads it.
const QGROUP_LIMIT: libc::Ioctl = libc::_IOR::<QgroupLimit>(BTRFS, 43);
const FSGETXATTR: libc::Ioctl = libc::_IOR::<Attributes>('X' as u32, 31);
const FSSETXATTR: libc::Ioctl = libc::_IOW::<Attributes>('X' as u32, 32);

const _: () = assert!(SUBVOL_CREATE == 0x5000_940e && SNAP_DESTROY == 0x5000_940f);
const _: () = assert!(SNAP_CREATE_V2 == 0x5000_9417 && QGROUP_LIMIT == 0x8030_942b);
const _: () = assert!(SUBVOL_GETFLAGS == 0x8008_9419 && SUBVOL_SETFLAGS == 0x4008_941a);
const _: () = assert!(FSGETXATTR == 0x801c_581f && FSSETXATTR == 0x401c_5820);

/// `FS_IMMUTABLE_FL`: no one may change, rename or remove the file.
pub(crate) const IMMUTABLE: c_int = 0x10;
/// `FS_APPEND_FL`: the file may only get longer; of a directory, nothing may leave it.
pub(crate) const APPEND_ONLY: c_int = 0x20;
/// `FS_XFLAG_PROJINHERIT`: what is made in the directory belongs to its project.
pub(crate) const INHERIT_PROJECT: u32 = 0x200;
/// `BTRFS_SUBVOL_RDONLY`.
pub(crate) const READ_ONLY: u64 = 2;

/// The longest name that the kernel takes (`BTRFS_VOL_NAME_MAX`); the fields are longer.
const LONGEST_NAME: usize = 255;

/// The flags of ioctl_iflags(2), those that chattr(1) sets.
pub(crate) fn inode_flags(fd: impl AsFd) -> io::Result<c_int> {
    let mut flags: c_int = 0;
    // SAFETY: writes an int, in spite of the long in the request's number.
    let result =
        unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) };
    check(result.into()).map(|_| flags)
}

pub(crate) fn set_inode_flags(fd: impl AsFd, flags: c_int) -> io::Result<()> {
    // SAFETY: reads an int.
    let result =
        unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) };
    check(result.into()).map(drop)
}

/// The project and the extended flags of a file (`FS_IOC_FSGETXATTR`).
pub(crate) fn attributes(fd: impl AsFd) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: writes a struct fsxattr.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FSGETXATTR, &raw mut attributes) };
    check(result.into()).map(|_| attributes)
}

pub(crate) fn set_attributes(fd: impl AsFd, attributes: &Attributes) -> io::Result<()> {
    // SAFETY: reads a struct fsxattr.
    let result =
        unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FSSETXATTR, std::ptr::from_ref(attributes)) };
    check(result.into()).map(drop)
}

pub(crate) fn create_subvolume(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    let arguments = VolumeArguments { fd: 0, name: name_field(name)? };
    // SAFETY: reads the struct, whose name ends with a NUL.
    let result =
        unsafe { libc::ioctl(parent.as_fd().as_raw_fd(), SUBVOL_CREATE, &raw const arguments) };
    check(result.into()).map(drop)
}

pub(crate) fn destroy_subvolume(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    let arguments = VolumeArguments { fd: 0, name: name_field(name)? };
    // SAFETY: reads the struct, whose name ends with a NUL.
    let result =
        unsafe { libc::ioctl(parent.as_fd().as_raw_fd(), SNAP_DESTROY, &raw const arguments) };
    check(result.into()).map(drop)
}

pub(crate) fn create_snapshot(
    source: impl AsFd,
    parent: impl AsFd,
    name: &OsStr,
) -> io::Result<()> {
    let arguments = VolumeArgumentsV2 {
        fd: source.as_fd().as_raw_fd().into(),
        transaction: 0,
        flags: 0,
        unused: [0; 4],
        name: name_field(name)?,
    };
    // SAFETY: reads the struct, whose name ends with a NUL and whose descriptor is open.
    let result =
        unsafe { libc::ioctl(parent.as_fd().as_raw_fd(), SNAP_CREATE_V2, &raw const arguments) };
    check(result.into()).map(drop)
}

/// Whether there are subvolumes in a subvolume, given its top.
pub(crate) fn has_nested(subvolume: impl AsFd) -> io::Result<bool> {
    let mut nested = Nested { least: 0, references: [[0; 2]; 255], count: 0, padding: [0; 7] };
    // SAFETY: reads and writes the struct.
    let result =
        unsafe { libc::ioctl(subvolume.as_fd().as_raw_fd(), GET_SUBVOL_ROOTREF, &raw mut nested) };
    match check(result.into()) {
        // More than 255.
        Err(error) if error.raw_os_error() == Some(libc::EOVERFLOW) => Ok(true),
        result => result.map(|_| nested.count != 0),
    }
}

/// Has a btrfs write all down, and begin to free what was in destroyed subvolumes, for which it
/// takes half a minute else.
pub(crate) fn sync(file: impl AsFd) -> io::Result<()> {
    // SAFETY: takes no argument.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), SYNC) };
    check(result.into()).map(drop)
}

/// What tells a btrfs from all others.
pub(crate) fn file_system_id(file: impl AsFd) -> io::Result<[u8; 16]> {
    let mut info = FileSystem { largest_device: 0, devices: 0, id: [0; 16], rest: [0; 992] };
    // SAFETY: writes the struct.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FS_INFO, &raw mut info) };
    check(result.into()).map(|_| info.id)
}

/// The flags of a subvolume, given its top.
pub(crate) fn subvolume_flags(subvolume: impl AsFd) -> io::Result<u64> {
    let mut flags: u64 = 0;
    // SAFETY: writes a u64.
    let result =
        unsafe { libc::ioctl(subvolume.as_fd().as_raw_fd(), SUBVOL_GETFLAGS, &raw mut flags) };
    check(result.into()).map(|_| flags)
}

pub(crate) fn set_subvolume_flags(subvolume: impl AsFd, flags: u64) -> io::Result<()> {
    // SAFETY: reads a u64.
    let result =
        unsafe { libc::ioctl(subvolume.as_fd().as_raw_fd(), SUBVOL_SETFLAGS, &raw const flags) };
    check(result.into()).map(drop)
}

/// Limits the bytes that a subvolume shares with no other.
pub(crate) fn limit_exclusive(subvolume: impl AsFd, bytes: u64) -> io::Result<()> {
    const MAX_EXCLUSIVE: u64 = 2;
    let limit = QgroupLimit {
        // That of the subvolume that the descriptor is in.
        qgroup: 0,
        flags: MAX_EXCLUSIVE,
        max_referenced: 0,
        max_exclusive: bytes,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    // SAFETY: reads the struct.
    let result =
        unsafe { libc::ioctl(subvolume.as_fd().as_raw_fd(), QGROUP_LIMIT, &raw const limit) };
    check(result.into()).map(drop)
}

/// One name, with zeros to the end of the field.
fn name_field<const SIZE: usize>(name: &OsStr) -> io::Result<[u8; SIZE]> {
    let name = name.as_bytes();
    if name.len() > LONGEST_NAME {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    // The kernel would take what is before a NUL for the name.
    if name.is_empty() || name.contains(&0) || name.contains(&b'/') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut field = [0; SIZE];
    for (to, from) in field.iter_mut().zip(name) {
        *to = *from;
    }
    Ok(field)
}
