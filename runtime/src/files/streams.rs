//! Files read and written piece by piece.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use adl_protocol::{Chunk, MAX_CHUNK};
use nix::errno::Errno;

use super::call::{Call, Ends};
use crate::error::{Error, Result};
use crate::sys;
use crate::transfer::Outgoing;
use crate::wait::Deadline;

/// A file of the sandbox that is being read, made by [`Files::open_read`](crate::Files::open_read).
///
/// `read` returns 0 only after the whole file was read. Any other end is an error that holds an
/// [`Error`], and nothing can be read after it. Each read waits for no longer than the timeout of
/// the call.
#[derive(Debug)]
pub struct FileReader {
    call: Call,
    pipe: OwnedFd,
    left: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// All was read.
    Ended,
    Failed,
}

impl FileReader {
    pub(super) fn new(call: Call, ends: Ends, limit: u64) -> Result<Self> {
        let pipe = ends.output.ok_or(Error::Protocol { why: "a stream without a pipe" })?;
        sys::set_blocking(&pipe, false).map_err(Error::io("fcntl"))?;
        Ok(Self { call, pipe, left: limit, state: State::Open })
    }

    fn next(&self, buffer: &mut [u8]) -> Result<usize> {
        self.call.check_own()?;
        let deadline = self.call.wait();
        loop {
            match nix::unistd::read(&self.pipe, &mut *buffer) {
                Ok(0) => return self.call.finish_by(deadline).map(|()| 0),
                // Init has counted, too; it need not be believed.
                Ok(count) if count as u64 > self.left => return Err(self.call.too_large()),
                Ok(count) => {
                    self.call.mark_started();
                    return Ok(count);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.call.wait_for_output(self.pipe.as_fd(), deadline)?,
                Err(errno) => return Err(Error::io("read from a pipe")(errno)),
            }
        }
    }
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.state {
            State::Ended => return Ok(0),
            State::Failed => return Err(io::Error::other("an earlier read has failed")),
            State::Open if buffer.is_empty() => return Ok(0),
            State::Open => {}
        }
        match self.next(buffer) {
            Ok(count) => {
                self.left -= count as u64;
                if count == 0 {
                    self.state = State::Ended;
                }
                Ok(count)
            }
            Err(error) => {
                self.state = State::Failed;
                Err(io::Error::other(error))
            }
        }
    }
}

impl Drop for FileReader {
    fn drop(&mut self) {
        if self.state != State::Ended {
            self.call.abandon();
        }
    }
}

/// A file of the sandbox that is being written, made by
/// [`Files::open_write`](crate::Files::open_write).
///
/// Nothing is done before [`FileWriter::finish`]: dropped without it, or with the end of the
/// calling program, the file is as it was, except where it is written to itself
/// ([`WriteMode::Truncate`](crate::WriteMode), [`WriteMode::Append`](crate::WriteMode)). Each write
/// waits for no longer than the timeout of the call.
#[derive(Debug)]
pub struct FileWriter {
    call: Call,
    /// Until it is finished, or has failed.
    pipe: Option<Outgoing>,
    limit: u64,
    left: u64,
    /// Whether the job has told its end.
    ended: bool,
}

impl FileWriter {
    pub(super) fn new(call: Call, ends: Ends, limit: u64) -> Result<Self> {
        let pipe = ends.input.ok_or(Error::Protocol { why: "a stream without a pipe" })?;
        let pipe = Some(Outgoing::new(pipe, call.wait())?.beside(call.job()));
        Ok(Self { call, pipe, limit, left: limit, ended: false })
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`Error::File`] with what went wrong inside, as where the disk is full; nothing was changed
    /// then.
    pub fn finish(mut self) -> Result<()> {
        let deadline = self.call.wait();
        self.send(deadline, |pipe| {
            pipe.chunk(Chunk::End)?;
            pipe.flush()
        })?;
        self.pipe = None;
        let done = self.call.finish_by(deadline);
        self.ended = !matches!(done, Err(Error::TimedOut { .. }));
        done
    }

    /// Writes one piece; returns how much of it was written.
    pub(super) fn write_part(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = bytes.len().min(usize::try_from(MAX_CHUNK).unwrap_or(usize::MAX));
        let bytes = bytes.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(0);
        }
        let Some(left) = self.left.checked_sub(count as u64) else {
            // Nor can it be finished: a part is not what was to be written.
            self.pipe = None;
            return Err(Error::TooLarge {
                what: "what is to be written, in bytes,",
                limit: self.limit,
            });
        };
        self.left = left;
        self.send(self.call.wait(), |pipe| {
            pipe.chunk(Chunk::Data(count as u64))?;
            pipe.bytes(bytes)
        })?;
        Ok(count)
    }

    /// Sends something. What the job says of its end is more than what became of its pipe.
    fn send(
        &mut self,
        deadline: Deadline,
        send: impl FnOnce(&mut Outgoing) -> Result<()>,
    ) -> Result<()> {
        self.call.check_own()?;
        let failed = || Error::invalid("writer", "an earlier write to it has failed");
        let pipe = self.pipe.as_mut().ok_or_else(failed)?;
        pipe.set_deadline(deadline);
        let Err(error) = send(pipe) else { return Ok(()) };
        self.pipe = None;
        match error {
            Error::TimedOut { .. } => Err(self.call.timed_out()),
            error => {
                let done = self.call.finish_by(deadline);
                self.ended = !matches!(done, Err(Error::TimedOut { .. }));
                Err(done.err().unwrap_or(error))
            }
        }
    }
}

impl Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_part(bytes).map_err(io::Error::other)
    }

    /// Sends on what is held here, which does not put the file in its place.
    fn flush(&mut self) -> io::Result<()> {
        self.send(self.call.wait(), Outgoing::flush).map_err(io::Error::other)
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        // The end of its input, without what says that this is all.
        self.pipe = None;
        if !self.ended {
            self.call.let_clear_up();
        }
    }
}
