//! Mounts that are in no mount namespace yet, as descriptors.

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use super::{check, owned};

/// What is mounted below a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    /// Comes along.
    Included,
    /// Does not.
    LeftOut,
}

impl Below {
    fn flag(self) -> c_int {
        match self {
            Self::Included => libc::AT_RECURSIVE,
            Self::LeftOut => 0,
        }
    }
}

/// A detached mount of a directory or a file: it is in no mount namespace, and gone with its
/// descriptor.
pub(crate) fn detached_mount(what: BorrowedFd<'_>, below: Below) -> io::Result<OwnedFd> {
    let flags = (libc::AT_EMPTY_PATH | below.flag()).unsigned_abs()
        | libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: a valid descriptor and an empty, NUL-ended path.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, what.as_raw_fd(), c"".as_ptr(), flags) })
}

/// A detached mount of which the ids are mapped, as [`map_ids`] does, in one call (Linux 6.15).
///
/// # Errors
/// Those of the kernel, which does not tell whether that can't be mounted or can't be mapped.
pub(crate) fn detached_mapped_mount(
    what: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
    below: Below,
) -> io::Result<OwnedFd> {
    /// `open_tree_attr(2)`, which libc does not know.
    const SYS_OPEN_TREE_ATTR: libc::c_long = 467;
    let flags = (libc::AT_EMPTY_PATH | below.flag()).unsigned_abs()
        | libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC;
    let attributes = mapped_by(user_namespace);
    // SAFETY: a valid descriptor, an empty path, and a struct mount_attr of the size that is said.
    owned(unsafe {
        libc::syscall(
            SYS_OPEN_TREE_ATTR,
            what.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    })
}

/// Maps the ids of a detached mount by a user namespace (Linux 5.12): a file of id 0 appears as
/// owned by the id that 0 is mapped to. It is made private, too ([`make_private`]).
pub(crate) fn map_ids(
    mount: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
    below: Below,
) -> io::Result<()> {
    set_attributes(mount, below, &mapped_by(user_namespace))
}

fn set_attributes(
    mount: BorrowedFd<'_>,
    below: Below,
    attributes: &libc::mount_attr,
) -> io::Result<()> {
    // SAFETY: a valid descriptor, an empty path, and a struct mount_attr of the size that is said.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | below.flag(),
            std::ptr::from_ref(attributes),
            size_of_val(attributes),
        )
    })
    .map(drop)
}

/// Has nothing that is mounted elsewhere come to be mounted in a detached mount, nor the reverse.
pub(crate) fn make_private(mount: BorrowedFd<'_>, below: Below) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    set_attributes(mount, below, &attributes)
}

fn mapped_by(user_namespace: BorrowedFd<'_>) -> libc::mount_attr {
    libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: u64::from(user_namespace.as_raw_fd().unsigned_abs()),
    }
}

/// A new tmpfs, mounted nowhere, on which device nodes work (`fsopen(2)`, Linux 5.2). Nothing in it
/// sets ids, and, unless that is asked for, nothing is executed.
pub(crate) fn detached_tmpfs(options: &[(&CStr, &CStr)], can_execute: bool) -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: libc::c_uint = 1;
    const FSMOUNT_CLOEXEC: libc::c_uint = 1;
    const FSCONFIG_SET_STRING: libc::c_uint = 1;
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    let no_exec = if can_execute { 0 } else { libc::MOUNT_ATTR_NOEXEC };
    let attributes = libc::MOUNT_ATTR_NOSUID | no_exec;
    let null = ptr::null::<c_void>();
    // SAFETY: NUL-ended strings, which the kernel copies, and descriptors that are open.
    unsafe {
        let context = owned(libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC))?;
        let fd = context.as_raw_fd();
        for (key, value) in options {
            let (key, value) = (key.as_ptr(), value.as_ptr());
            check(libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_SET_STRING, key, value, 0))?;
        }
        check(libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, null, null, 0))?;
        owned(libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes))
    }
}
