//! The memory that a start shares: the caller, the process between, and the child, which becomes
//! init.

use std::ffi::c_int;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU32};

use crate::sys::inheritance::SessionKeyring;
use crate::sys::raw;

/// What a child of [`super::spawn_in_namespaces`] uses of the caller's memory until its `execve`.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) executable: RawFd,
    pub(super) control: RawFd,
    pub(super) capabilities: u64,
    pub(super) keyring: SessionKeyring,
    /// Of clone(2).
    pub(super) flags: c_int,
    /// What the process between enters, in this order, and of which kinds they are: -1 where it
    /// stays in the caller's. What it could not enter, by its kind, or 0; and why.
    pub(super) namespaces: [(RawFd, c_int); 3],
    pub(super) refused: AtomicI32,
    pub(super) refusal: AtomicI32,
    /// The numbers of the calling user and group in the user namespace that it clones from.
    pub(super) ids: [AtomicU32; 2],
    /// The calling process, where the child is to have a table of descriptors that is not a copy of
    /// the caller's, or 0; and why it could not, or 0.
    pub(super) caller: i32,
    pub(super) own_table: AtomicI32,
    /// The child, or an error number below 0 where there is none, or [`UNTOLD`].
    pub(super) child: AtomicI32,
    pub(super) pidfd: AtomicI32,
    /// Why it could not execute its program; 0 until then.
    pub(super) errno: AtomicI32,
    /// Not 0 for as long as the child uses this memory, or may come to: [`UNBORN`] until the child
    /// runs (CLONE_CHILD_SETTID). The kernel clears it when that executes a program or ends
    /// (CLONE_CHILD_CLEARTID).
    pub(super) in_use: AtomicI32,
    /// u128: aligned as a stack must be.
    pub(super) stack: [u128; 1024],
    /// That of the process between the caller and the child, if there is one.
    pub(super) stack_between: [u128; 512],
}

/// Whoever was to tell of the child has been killed.
pub(super) const UNTOLD: i32 = 0;

/// No child has run.
pub(super) const UNBORN: i32 = -1;

impl Shared {
    pub(super) fn unused() -> Self {
        Self {
            executable: -1,
            control: -1,
            capabilities: 0,
            keyring: SessionKeyring::Own,
            flags: 0,
            namespaces: [
                (-1, libc::CLONE_NEWUSER),
                (-1, libc::CLONE_NEWNET),
                (-1, libc::CLONE_NEWNS),
            ],
            refused: AtomicI32::new(0),
            refusal: AtomicI32::new(0),
            ids: ids_of_thread().map(AtomicU32::new),
            caller: 0,
            own_table: AtomicI32::new(0),
            child: AtomicI32::new(-libc::EAGAIN),
            pidfd: AtomicI32::new(-1),
            errno: AtomicI32::new(0),
            in_use: AtomicI32::new(0),
            stack: [0; 1024],
            stack_between: [0; 512],
        }
    }
}

/// The effective user and group of the calling thread, as numbers of its user namespace.
pub(super) fn ids_of_thread() -> [u32; 2] {
    [libc::SYS_geteuid, libc::SYS_getegid].map(|call| {
        // SAFETY: takes no pointer, and can't fail.
        let id = unsafe { raw(call, [0; 5]) }.unwrap_or_default();
        u32::try_from(id).unwrap_or_default()
    })
}
