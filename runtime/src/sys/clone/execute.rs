//! The child that becomes init: its clone, and what it does until its `execve`.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::Ordering;

use super::shared::Shared;
use crate::sys::{inheritance, raw};

/// Clones init; returns its pid, or a number below 0 with `errno` set.
///
/// # Safety
/// `shared` is kept until the kernel has cleared `in_use`.
pub(super) unsafe fn clone_init(shared: *mut Shared, more: c_int) -> c_int {
    // SAFETY: the top of the stack is its end, aligned to 16; CLONE_PIDFD writes a descriptor to
    // `pidfd` before this returns.
    unsafe {
        libc::clone(
            become_init,
            (&raw mut (*shared).stack).add(1).cast(),
            (*shared).flags | more,
            shared.cast(),
            (*shared).pidfd.as_ptr(),
            ptr::null_mut::<c_void>(),
            (*shared).in_use.as_ptr(),
        )
    }
}

/// The child. It shares memory with a program whose threads run on.
extern "C" fn become_init(shared: *mut c_void) -> c_int {
    // SAFETY: the caller of clone passes a `Shared`, and keeps it until this has ended; what it
    // changes meanwhile is atomic.
    let shared = unsafe { &*shared.cast::<Shared>() };
    let Err(errno) = execute_init(shared);
    shared.errno.store(errno, Ordering::Release);
    // SAFETY: takes no pointer.
    let _ = unsafe { raw(libc::SYS_exit, [127, 0, 0, 0, 0]) };
    127
}

fn execute_init(shared: &Shared) -> Result<std::convert::Infallible, i32> {
    const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    const RAISE: usize = libc::PR_CAP_AMBIENT_RAISE as usize;
    const AMBIENT: usize = libc::PR_CAP_AMBIENT as usize;
    // 0. What the caller lends without meaning to.
    inheritance::give_up(shared.keyring)?;
    // SAFETY: system calls with valid pointers, to memory of this function or constants. dup2 and
    // close_range change the child's own table, which clone has copied.
    unsafe {
        // 1. An exec by a user whose ids are not mapped yet drops all capabilities but ambient
        //    ones, and ambient ones must be inheritable.
        let header = [CAPABILITY_VERSION_3, 0];
        let mut sets = [0_u32; 6];
        let (header, data) = (header.as_ptr() as usize, sets.as_mut_ptr() as usize);
        raw(libc::SYS_capget, [header, data, 0, 0, 0])?;
        let [_, permitted_low, inheritable_low, _, permitted_high, inheritable_high] = &mut sets;
        *inheritable_low = *permitted_low;
        *inheritable_high = *permitted_high;
        raw(libc::SYS_capset, [header, data, 0, 0, 0])?;
        let mut rest = shared.capabilities;
        while rest != 0 {
            let capability = rest.trailing_zeros() as usize;
            match raw(libc::SYS_prctl, [AMBIENT, RAISE, capability, 0, 0]) {
                // One that this kernel does not know is no loss.
                Ok(_) | Err(libc::EINVAL) => {}
                // Without it init would fail later, at what is not to blame.
                Err(errno) => return Err(errno),
            }
            rest &= rest - 1;
        }
        // 2. The control socket is descriptor 0; all else is closed by the exec, also what the
        //    calling program left inheritable.
        raw(libc::SYS_dup2, [shared.control as usize, 0, 0, 0, 0])?;
        let (last, close) = (u32::MAX as usize, libc::CLOSE_RANGE_CLOEXEC as usize);
        raw(libc::SYS_close_range, [1, last, close, 0, 0])?;
        // 3. init. No id is mapped yet, so that it belongs to the namespace of the caller's ids.
        let nothing: [usize; 1] = [0];
        let nothing = nothing.as_ptr() as usize;
        let (empty, flags) = (c"".as_ptr() as usize, libc::AT_EMPTY_PATH as usize);
        let executable = shared.executable as usize;
        Err(raw(libc::SYS_execveat, [executable, empty, nothing, nothing, flags])
            .err()
            .unwrap_or(libc::EINVAL))
    }
}
