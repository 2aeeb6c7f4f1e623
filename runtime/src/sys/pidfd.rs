//! Processes by descriptors, which can't come to mean another (pidfd_open(2), Linux 5.3).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::poll::{PollFd, PollFlags};

use super::{check, poll_now};

/// A descriptor of a process, readable when that has ended.
pub(crate) fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel made it, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a process has ended.
pub(crate) fn has_ended(process: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(poll_now(&mut [PollFd::new(process, PollFlags::POLLIN)])? > 0)
}

/// Sends SIGKILL; a process that has ended already is no error.
pub(crate) fn kill(process: impl AsFd) -> io::Result<()> {
    // SAFETY: a valid descriptor, and no siginfo.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_fd().as_raw_fd(),
            libc::SIGKILL,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}

/// Waits for the end of a child and reaps it. One that the calling program has reaped, because it
/// waits for all children or ignores SIGCHLD, is no error.
pub(crate) fn reap(process: impl AsFd) -> io::Result<()> {
    loop {
        // SAFETY: waitid fills `info`, which is large enough; P_PIDFD takes the descriptor's
        // number.
        let result = unsafe {
            let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
            libc::waitid(
                libc::P_PIDFD,
                process.as_fd().as_raw_fd().unsigned_abs(),
                info.as_mut_ptr(),
                libc::WEXITED | libc::__WALL,
            )
        };
        match check(result.into()) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::{has_ended, open};

    static HANDLED: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn handle(_: libc::c_int) {
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }

    #[test]
    fn a_signal_that_comes_meanwhile_is_no_error() {
        let handler = handle as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: the handler does one thing, which it may.
        unsafe { libc::signal(libc::SIGURG, handler) };
        let process = open(std::process::id().cast_signed()).unwrap();
        // SAFETY: takes no pointer.
        let this = unsafe { libc::pthread_self() };
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    // SAFETY: that thread waits for this one.
                    unsafe { libc::pthread_kill(this, libc::SIGURG) };
                }
            });
            let looked = (0..).map(|_| has_ended(process.as_fd()));
            let failed = looked
                .take_while(|_| HANDLED.load(Ordering::Relaxed) < 20_000)
                .find(|ended| !matches!(ended, Ok(false)));
            is_done.store(true, Ordering::Relaxed);
            assert!(failed.is_none(), "{failed:?}");
        });
    }
}
