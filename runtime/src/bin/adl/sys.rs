//! The system calls of the command line that nix lacks.
#![expect(unsafe_code, reason = "system calls")]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// The size of a terminal: rows and columns (`TIOCGWINSZ`, `ioctl_tty(2)`).
pub(crate) fn window_size(terminal: impl AsFd) -> nix::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCGWINSZ writes a struct winsize, which `size` is for the length of the call.
    let result = unsafe { libc::ioctl(terminal, libc::TIOCGWINSZ, &raw mut size) };
    Errno::result(result).map(|_| (size.ws_row, size.ws_col))
}

/// A copy of a descriptor that the caller of this program has left open for writing, by its number.
pub(crate) fn duplicate(number: i32) -> nix::Result<OwnedFd> {
    // SAFETY: F_GETFL takes any number, and changes nothing.
    let flags = Errno::result(unsafe { libc::fcntl(number, libc::F_GETFL) })?;
    if flags & libc::O_ACCMODE == libc::O_RDONLY || flags & libc::O_PATH != 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: F_DUPFD_CLOEXEC takes any number, and makes a descriptor that is no one's yet.
    let copy = Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: it was just made, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
