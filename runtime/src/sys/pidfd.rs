//! Processes by descriptors, which can't come to mean another (pidfd_open(2), Linux 5.3).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::check;

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
    Ok(poll(&mut [PollFd::new(process, PollFlags::POLLIN)], PollTimeout::ZERO)? > 0)
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
