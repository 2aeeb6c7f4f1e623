//! The host's side of a command's terminal.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::sys::{self, socket};
use crate::wire::Messages;

/// The host's side of a terminal on which a command runs; see
/// [`Command::terminal`](crate::Command::terminal).
///
/// What is written is typed; what is read is what the command prints, and bytes from inside: to
/// show them on a real terminal is to let a guest send it escapes. Reading ends when no process has
/// the terminal open; of a descriptor that it was converted into, as `EIO`. To read and to write
/// from two threads, share it (`&Terminal` reads and writes, too) or see [`Terminal::try_clone`].
#[derive(Debug)]
pub struct Terminal(OwnedFd);

impl Terminal {
    /// Takes what came from inside, if it is what it should be.
    ///
    /// # Errors
    /// [`Error::Protocol`](crate::Error::Protocol).
    pub(crate) fn take(messages: &Messages) -> Result<Self> {
        messages
            .take_descriptor(socket::is_terminal_master, "a descriptor that is not a terminal")
            .map(Self)
    }

    /// Another one of the same terminal, for another thread. Both share the open file: while
    /// [`Child::wait_with_output`](crate::Child::wait_with_output) reads one, neither waits for
    /// anything, and what can't be done at once is an error of kind `WouldBlock`.
    ///
    /// # Errors
    /// [`Error::Io`] if there can be no descriptor.
    pub fn try_clone(&self) -> Result<Self> {
        self.0.try_clone().map(Self).map_err(Error::io("dup"))
    }

    /// Sets its size, in characters. The command's foreground processes get SIGWINCH.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        sys::set_window_size(&self.0, rows, columns).map_err(Error::io("TIOCSWINSZ"))
    }
}

impl From<Terminal> for OwnedFd {
    fn from(terminal: Terminal) -> Self {
        terminal.0
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for Terminal {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Read for &Terminal {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match nix::unistd::read(&self.0, buffer) {
            // The other side is closed.
            Err(Errno::EIO) => Ok(0),
            read => read.map_err(io::Error::from),
        }
    }
}

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for &Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        nix::unistd::write(&self.0, bytes).map_err(io::Error::from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
