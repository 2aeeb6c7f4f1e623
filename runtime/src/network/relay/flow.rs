//! Bytes on their way from one socket to another.
//!
//! A little is copied: it is looked at, sent, and what has gone is taken, so that nothing is ever
//! held here. Where there is much, the kernel moves it through a pipe (`splice(2)`), of which there
//! are few for all connections: one is held only while something is in it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use nix::unistd::pipe2;

/// What is copied at once, in bytes. A socket that has more is read by way of a pipe.
pub(super) const CHUNK: usize = 16 << 10;

/// What a pipe holds, in bytes: each page of what is moved takes a page's place, however little of
/// it is used.
const PIPE: i32 = 256 << 10;

/// How many pipes there are at most.
pub(super) const PIPES: usize = 32;

/// A socket of a connection, and what the kernel has told of it since it last said no.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) socket: OwnedFd,
    pub(super) is_readable: bool,
    pub(super) is_writable: bool,
    /// Whether it has ended by an error: what is read of it after that is no end, whoever has taken
    /// the error from the kernel.
    pub(super) has_failed: bool,
}

impl Side {
    /// One that may be ready.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, is_readable: true, is_writable: true, has_failed: false }
    }
}

/// A pipe without its name.
#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// How many bytes are in it.
    held: usize,
}

/// The pipes that no one holds.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    free: Vec<Pipe>,
    made: usize,
}

impl Pipes {
    fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.free.pop() {
            return Some(pipe);
        }
        if self.made == PIPES {
            return None;
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        // One as it is will do where the user has no more pages for pipes (pipe(7)).
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE));
        self.made += 1;
        Some(Pipe { read, write, held: 0 })
    }

    fn give_back(&mut self, pipe: Pipe) {
        match pipe.held {
            0 => self.free.push(pipe),
            // What is in it is no one's any more.
            _ => self.made -= 1,
        }
    }
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// What was moved, in bytes.
    pub(super) bytes: u64,
    /// What was read and not yet written.
    pipe: Option<Pipe>,
    /// Whether more came than is copied at once.
    is_bulk: bool,
    /// Whether nothing more comes.
    has_ended: bool,
    /// Whether the other side was told so.
    pub(super) is_closed: bool,
}

/// What has come of an attempt to move something.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// There may be more at once.
    More,
    /// There is nothing to do until the kernel tells of one of the two, or more may be moved.
    Waits,
}

/// The end of a connection: which side failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Broken {
    From(Errno),
    To(Errno),
}

impl Flow {
    /// Moves at most so many bytes. An end is passed on only where `may_close` says so: not where
    /// the other direction has failed.
    pub(super) fn run(
        &mut self,
        from: &mut Side,
        to: &mut Side,
        most: u64,
        may_close: bool,
        (pipes, buffer): (&mut Pipes, &mut [u8]),
    ) -> Result<Moved, Broken> {
        let before = self.taken();
        loop {
            self.empty_pipe(to, pipes)?;
            if self.has_ended && may_close && self.pipe.is_none() && !self.is_closed {
                // ENOTCONN: that side has gone, as will be told.
                shutdown(to.socket.as_raw_fd(), Shutdown::Write).map_err(Broken::To)?;
                self.is_closed = true;
            }
            if self.pipe.is_some() || self.has_ended || !from.is_readable || !to.is_writable {
                return Ok(Moved::Waits);
            }
            let left = most.saturating_sub(self.taken() - before);
            let Ok(left @ 1..) = usize::try_from(left) else { return Ok(Moved::More) };
            if !self.is_bulk || !self.splice(from, left, pipes)? {
                self.copy(from, to, left, buffer)?;
            }
        }
    }

    /// How many bytes were read: what was moved, and what is on its way.
    pub(super) fn taken(&self) -> u64 {
        self.bytes + self.pipe.as_ref().map_or(0, |pipe| pipe.held as u64)
    }

    /// Writes what is in the pipe, and lets go of it where that was all.
    fn empty_pipe(&mut self, to: &mut Side, pipes: &mut Pipes) -> Result<(), Broken> {
        while let Some(pipe) = self.pipe.as_mut().filter(|_| to.is_writable) {
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
            match splice(&pipe.read, None, &to.socket, None, pipe.held, flags) {
                Ok(count) => {
                    pipe.held -= count;
                    self.bytes += count as u64;
                    if pipe.held == 0
                        && let Some(pipe) = self.pipe.take()
                    {
                        pipes.give_back(pipe);
                    }
                }
                Err(Errno::EAGAIN) => to.is_writable = false,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Broken::To(errno)),
            }
        }
        Ok(())
    }

    /// Reads into a pipe; `false` where that gives nothing, so that it is to be copied.
    fn splice(&mut self, from: &mut Side, most: usize, pipes: &mut Pipes) -> Result<bool, Broken> {
        let Some(mut pipe) = pipes.take() else { return Ok(false) };
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        let read = splice(&from.socket, None, &pipe.write, None, most, flags);
        let count = match read {
            Ok(count) => count,
            Err(Errno::EAGAIN | Errno::EINTR | Errno::EINVAL | Errno::ENOMEM) => 0,
            // The kernel tells of it once.
            Err(errno) => {
                pipes.give_back(pipe);
                return Err(Broken::From(errno));
            }
        };
        self.is_bulk = count >= CHUNK;
        match count {
            // The end, nothing for now, a byte out of band or an error: the copy tells which.
            0 => pipes.give_back(pipe),
            _ => {
                pipe.held = count;
                self.pipe = Some(pipe);
            }
        }
        Ok(count > 0)
    }

    fn copy(
        &mut self,
        from: &mut Side,
        to: &mut Side,
        most: usize,
        buffer: &mut [u8],
    ) -> Result<(), Broken> {
        let length = most.min(buffer.len());
        let buffer = buffer.get_mut(..length).unwrap_or_default();
        let (from_fd, to_fd) = (from.socket.as_raw_fd(), to.socket.as_raw_fd());
        let now = MsgFlags::MSG_DONTWAIT;
        let count = match recv(from_fd, buffer, MsgFlags::MSG_PEEK | now) {
            Ok(0) if from.has_failed => return Err(Broken::From(Errno::ECONNRESET)),
            Ok(0) => {
                self.has_ended = true;
                return Ok(());
            }
            Ok(count) => count,
            Err(Errno::EAGAIN) => {
                from.is_readable = false;
                return Ok(());
            }
            Err(Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(Broken::From(errno)),
        };
        let looked_at = buffer.get(..count).unwrap_or_default();
        let sent = match send(to_fd, looked_at, MsgFlags::MSG_NOSIGNAL | now) {
            Ok(sent) => sent,
            Err(Errno::EAGAIN) => {
                to.is_writable = false;
                return Ok(());
            }
            Err(Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(Broken::To(errno)),
        };
        // With MSG_TRUNC it is dropped, and not copied again (tcp(7)).
        let gone = buffer.get_mut(..sent).unwrap_or_default();
        match recv(from_fd, gone, MsgFlags::MSG_TRUNC | now) {
            Ok(taken) if taken == sent => {}
            Ok(_) => return Err(Broken::From(Errno::EIO)),
            Err(errno) => return Err(Broken::From(errno)),
        }
        self.bytes += sent as u64;
        self.is_bulk = count == CHUNK;
        // One that took a part has no room for more.
        to.is_writable = sent == count;
        Ok(())
    }

    /// Whether something is in a pipe that it holds.
    pub(super) fn holds_something(&self) -> bool {
        self.pipe.is_some()
    }

    /// Lets go of the pipe that it may hold.
    pub(super) fn end(&mut self, pipes: &mut Pipes) {
        if let Some(pipe) = self.pipe.take() {
            pipes.give_back(pipe);
        }
    }
}

impl AsFd for Side {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
