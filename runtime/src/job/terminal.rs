//! The host's side of a command's terminal.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

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
pub struct Terminal {
    fd: OwnedFd,
    /// Whether the open file does not block although whoever has it never said so: the library
    /// reads it. Those who have a copy wait for it themselves then.
    is_read: Arc<AtomicBool>,
}

impl Terminal {
    /// Takes what came from inside, if it is what it should be.
    ///
    /// # Errors
    /// [`Error::Protocol`](crate::Error::Protocol).
    pub(crate) fn take(messages: &Messages) -> Result<Self> {
        messages
            .take_descriptor(
                |fd| Ok(socket::is_terminal_master(fd)),
                "a descriptor that is not a terminal",
            )
            .map(|fd| Self { fd, is_read: Arc::default() })
    }

    /// Another one of the same terminal, for another thread: to type while
    /// [`Child::wait_with_output`](crate::Child::wait_with_output) reads, it may be. Both share the
    /// open file, and so `O_NONBLOCK`, which that sets: a descriptor that either is converted into
    /// meets `EAGAIN` then.
    ///
    /// # Errors
    /// [`Error::Io`] if there can be no descriptor.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(Error::io("dup"))?;
        Ok(Self { fd, is_read: Arc::clone(&self.is_read) })
    }

    /// For the library, whose reads don't block. Copies of it do as before.
    pub(crate) fn into_read(self) -> Result<OwnedFd> {
        let flags = fcntl(&self.fd, FcntlArg::F_GETFL).map_err(Error::io("fcntl"))?;
        if !OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK) {
            self.is_read.store(true, Ordering::Release);
            sys::set_blocking(&self.fd, false).map_err(Error::io("fcntl"))?;
        }
        Ok(self.fd)
    }

    /// Does something, as soon as it can be done where it was not said that this is not waited for.
    fn when_ready(
        &self,
        events: PollFlags,
        mut act: impl FnMut(&OwnedFd) -> nix::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match act(&self.fd) {
                Err(Errno::EAGAIN) if self.is_read.load(Ordering::Acquire) => {
                    poll(&mut [PollFd::new(self.fd.as_fd(), events)], PollTimeout::NONE)?;
                }
                done => return done.map_err(io::Error::from),
            }
        }
    }

    /// Sets its size, in characters. The command's foreground processes get SIGWINCH.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        sys::set_window_size(&self.fd, rows, columns).map_err(Error::io("TIOCSWINSZ"))
    }
}

impl From<Terminal> for OwnedFd {
    fn from(terminal: Terminal) -> Self {
        terminal.fd
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Read for Terminal {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Read for &Terminal {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.when_ready(PollFlags::POLLIN, |fd| match nix::unistd::read(fd, buffer) {
            // The other side is closed.
            Err(Errno::EIO) => Ok(0),
            read => read,
        })
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
        self.when_ready(PollFlags::POLLOUT, |fd| nix::unistd::write(fd, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
