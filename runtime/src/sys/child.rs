//! Work by a process that shares the caller's memory and descriptors.
//!
//! It is a child of `clone(2)` that is all a thread is but that: with CLONE_VM and CLONE_FILES, and
//! with the thread-local memory of the thread that made it, which does nothing meanwhile. To the
//! standard and the C library it is that thread: their locks are in the shared memory, and what it
//! allocates, opens and returns is the caller's. Its namespaces, its directory and its umask are
//! its own.

use std::ffi::{c_int, c_void};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::thread;
use std::time::Duration;

use super::{filled_mask, raw, unblocked_mask};

/// What the work may have of a stack, in bytes: half of what a thread has. Nothing of the library
/// goes deeper because of what a guest has made.
const STACK: usize = 1 << 20;

/// What a child and the thread that waits for it share.
struct Shared<B, F, T> {
    /// The child's parent.
    parent: usize,
    begin: Option<B>,
    work: Option<F>,
    done: Option<thread::Result<T>>,
    /// Why it has not come to its work; 0 where it has.
    errno: i32,
}

/// Has work done by a child that is cloned with `flags`, such as those of new namespaces, once
/// `begin` has prepared it, which is told the id of the calling process.
///
/// # Errors
/// What `clone(2)` says, or `begin`.
pub(super) fn in_child<T, B, F>(flags: c_int, begin: B, work: F) -> io::Result<T>
where
    B: FnOnce(usize) -> Result<(), i32>,
    F: FnOnce() -> T,
{
    // Not filled: to do so would take longer than the rest.
    let mut stack = Vec::<u128>::with_capacity(STACK / size_of::<u128>());
    // SAFETY: takes no pointer, and can't fail.
    let parent = unsafe { raw(libc::SYS_getpid, [0; 5]) }.unwrap_or_default();
    let mut shared = Shared { parent, begin: Some(begin), work: Some(work), done: None, errno: 0 };
    let flags = flags | libc::CLONE_VM | libc::CLONE_FILES;
    let top = stack.spare_capacity_mut().as_mut_ptr_range().end;
    let mut old_mask = unblocked_mask();
    let all = filled_mask();
    // SAFETY: `all` and `old_mask` are initialised sets. The child uses `stack` and `shared`, which
    // outlive it: this thread waits for its end. Until then this thread makes no call but one that
    // touches no memory of the C library's, so that its thread-local memory is the child's alone;
    // and no handler of the caller's runs in either, with all signals blocked.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old_mask);
        let shared = (&raw mut shared).cast::<c_void>();
        let pid = libc::clone(do_work::<T, B, F>, top.cast(), flags, shared);
        let cloned = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        if cloned.is_ok() {
            wait(pid);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old_mask, ptr::null_mut());
        cloned?;
    }
    match shared.done {
        Some(Ok(done)) => Ok(done),
        Some(Err(panic)) => resume_unwind(panic),
        None if shared.errno != 0 => Err(io::Error::from_raw_os_error(shared.errno)),
        None => Err(io::Error::other("the process that did the work was killed")),
    }
}

/// Waits for the end of a child, whatever signal that sends.
pub(super) fn wait(pid: i32) {
    let all_kinds = libc::__WALL as usize;
    // ECHILD where the calling program has reaped it, which is when it has ended, too.
    // SAFETY: no pointer is given.
    while unsafe { raw(libc::SYS_wait4, [pid as usize, 0, all_kinds, 0, 0]) } == Err(libc::EINTR) {}
}

extern "C" fn do_work<T, B, F>(shared: *mut c_void) -> c_int
where
    B: FnOnce(usize) -> Result<(), i32>,
    F: FnOnce() -> T,
{
    // SAFETY: the parent's, which looks at it when this process has ended.
    let shared = unsafe { &mut *shared.cast::<Shared<B, F, T>>() };
    match shared.begin.take().map_or(Ok(()), |begin| begin(shared.parent)) {
        Ok(()) => shared.done = shared.work.take().map(|work| catch_unwind(AssertUnwindSafe(work))),
        Err(errno) => shared.errno = errno,
    }
    // SAFETY: takes no pointer.
    let _ = unsafe { raw(libc::SYS_exit, [0; 5]) };
    0
}

/// Has the calling process be killed when the thread that has made it ends.
pub(super) fn end_with(parent: usize) -> Result<(), i32> {
    let (option, signal) = (libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize);
    // SAFETY: take no pointer.
    let now = unsafe {
        raw(libc::SYS_prctl, [option, signal, 0, 0, 0])?;
        raw(libc::SYS_getppid, [0; 5])?
    };
    // 0: the caller's children are in another PID namespace than itself.
    if now == parent || now == 0 { Ok(()) } else { Err(libc::ESRCH) }
}

/// Does what may wait for a file system that does not answer: where that takes longer than `limit`,
/// the calling process, a child, is killed. So it must not allocate, nor take another lock, which
/// would be kept for ever.
///
/// # Errors
/// Where there can be no timer.
pub(super) fn in_time<T>(limit: Duration, work: impl FnOnce() -> T) -> io::Result<T> {
    let seconds = limit.as_secs().cast_signed();
    let mut timer: c_int = 0;
    // SAFETY: plain C structs, for which zero is a value; all that is pointed to outlives the
    // calls. The timer is this process's, and ends with it.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut when: libc::itimerspec = std::mem::zeroed();
        when.it_value.tv_sec = seconds;
        let (event, at) = ((&raw const event) as usize, (&raw mut timer) as usize);
        let clock = libc::CLOCK_MONOTONIC as usize;
        let set = raw(libc::SYS_timer_create, [clock, event, at, 0, 0]).and_then(|_| {
            let when = (&raw const when) as usize;
            raw(libc::SYS_timer_settime, [timer as usize, 0, when, 0, 0])
        });
        set.map_err(io::Error::from_raw_os_error)?;
    }
    let done = work();
    // SAFETY: takes no pointer.
    let _ = unsafe { raw(libc::SYS_timer_delete, [timer as usize, 0, 0, 0, 0]) };
    Ok(done)
}
