//! The system calls of the command line that nix lacks.
#![expect(unsafe_code, reason = "system calls")]

use std::os::fd::{AsFd, AsRawFd};

/// The size of a terminal: rows and columns (`TIOCGWINSZ`, `ioctl_tty(2)`).
pub(crate) fn window_size(terminal: impl AsFd) -> nix::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = terminal.as_fd().as_raw_fd();
    // SAFETY: TIOCGWINSZ writes a struct winsize, which `size` is for the length of the call.
    let result = unsafe { libc::ioctl(terminal, libc::TIOCGWINSZ, &raw mut size) };
    nix::errno::Errno::result(result).map(|_| (size.ws_row, size.ws_col))
}
