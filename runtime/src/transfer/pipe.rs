//! The pipe between a copy on the host and the job that does the other half of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use adl_protocol::{Chunk, Entry, codec};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice};
use nix::poll::{PollFd, PollFlags};
use nix::sys::uio::{pread, pwrite};

use crate::error::{Error, Result};
use crate::sys;
use crate::wait::{Deadline, Maker, Woken};
use crate::wait::{wait_beside_job, wait_ready};

/// How much is written and read at once, in bytes, where it goes through memory.
const BUFFER: usize = 64 << 10;
/// What a pipe holds, in bytes, where the kernel allows it (`/proc/sys/fs/pipe-max-size`).
const CAPACITY: i32 = 1 << 20;
/// Up to where a copy through memory costs less than a system call of its own, in bytes.
const SMALL: u64 = 16 << 10;
const ZEROS: &[u8] = &[0; 4096];
/// The longest frame that an entry has a reason for, in bytes.
pub(super) const MAX_ENTRY: usize = 1 << 20;

/// The operations of errors of a file, as told from those of the pipe; see [`super::at_file`].
pub(super) const READ: &str = "read";
pub(super) const WRITE: &str = "write";

/// Our end.
#[derive(Debug)]
struct Pipe {
    fd: OwnedFd,
    /// What the other side belongs to, if that is a job.
    job: Option<Arc<dyn Maker>>,
    deadline: Deadline,
    since: Instant,
}

impl Pipe {
    fn new(fd: OwnedFd, deadline: Deadline) -> Result<Self> {
        sys::set_blocking(&fd, false).map_err(Error::io("fcntl"))?;
        // One that holds less is slower, but does.
        let _ = fcntl(&fd, FcntlArg::F_SETPIPE_SZ(CAPACITY));
        Ok(Self { fd, job: None, deadline, since: Instant::now() })
    }

    fn timed_out(&self) -> Error {
        Error::TimedOut { what: "the files to be copied", after: self.since.elapsed() }
    }

    /// Looked at before each call, since the other side may see to it that none has to wait.
    fn check_time(&self) -> Result<()> {
        if self.deadline.passed() { Err(self.timed_out()) } else { Ok(()) }
    }

    fn wait(&self, events: PollFlags) -> Result<()> {
        let fd = self.fd.as_fd();
        let woken = match &self.job {
            Some(job) => wait_beside_job(fd, events, &**job, self.deadline)?,
            None if wait_ready(&mut [PollFd::new(fd, events)], self.deadline)? => Woken::Ready,
            None => Woken::Late,
        };
        match woken {
            Woken::Ready => Ok(()),
            Woken::InitDied => Err(Error::SandboxDied),
            Woken::Late => Err(self.timed_out()),
        }
    }

    fn write(&self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            self.check_time()?;
            match sys::without_sigpipe(|| nix::unistd::write(&self.fd, bytes)) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT)?,
                Err(Errno::EPIPE) => return Err(unread()),
                Err(errno) => return Err(Error::io("write to a pipe")(errno)),
            }
        }
        Ok(())
    }
}

fn unread() -> Error {
    Error::Protocol { why: "a copy that is not read to its end" }
}

fn ended() -> Error {
    Error::Protocol { why: "a copy that ends in the middle" }
}

/// A place in a file as the kernel wants it.
fn file_offset(offset: u64) -> nix::Result<i64> {
    i64::try_from(offset).map_err(|_| Errno::EFBIG)
}

/// What goes to the job.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pipe: Pipe,
    buffer: Vec<u8>,
}

impl Outgoing {
    /// The write end. Nothing else may write to it.
    pub(crate) fn new(pipe: OwnedFd, deadline: Deadline) -> Result<Self> {
        Ok(Self { pipe: Pipe::new(pipe, deadline)?, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Has it wait no longer than there is a job.
    pub(crate) fn beside(mut self, job: Arc<dyn Maker>) -> Self {
        self.pipe.job = Some(job);
        self
    }

    /// Sets until when what follows may take.
    pub(crate) fn set_deadline(&mut self, deadline: Deadline) {
        self.pipe.deadline = deadline;
        self.pipe.since = Instant::now();
    }

    /// An error if the time is over: for what takes long and sends nothing.
    pub(crate) fn check_time(&self) -> Result<()> {
        self.pipe.check_time()
    }

    pub(crate) fn entry(&mut self, entry: &Entry<'_>) -> Result<()> {
        let start = self.buffer.len();
        let limit = MAX_ENTRY as u64;
        let too_large = Error::TooLarge { what: "a path to copy", limit };
        if codec::encode(entry, &mut self.buffer).is_err() {
            return Err(too_large);
        }
        if self.buffer.len() - start > MAX_ENTRY {
            self.buffer.truncate(start);
            return Err(too_large);
        }
        self.flush_if_full()
    }

    pub(crate) fn chunk(&mut self, chunk: Chunk) -> Result<()> {
        self.buffer.extend_from_slice(&chunk.encode());
        self.flush_if_full()
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() >= BUFFER {
            self.flush()?;
            return self.pipe.write(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        self.flush_if_full()
    }

    pub(crate) fn zeros(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            let count = usize::try_from(length).unwrap_or(usize::MAX).min(ZEROS.len());
            self.bytes(ZEROS.get(..count).unwrap_or_default())?;
            length -= count as u64;
        }
        Ok(())
    }

    /// Moves bytes of a file; returns how many there were, fewer only at its end.
    pub(crate) fn move_from(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        length: u64,
    ) -> Result<u64> {
        if length <= SMALL {
            return self.copy_from(file, offset, length);
        }
        self.flush()?;
        let mut moved = 0;
        while moved < length {
            self.pipe.check_time()?;
            let mut at = file_offset(offset.saturating_add(moved)).map_err(Error::io(READ))?;
            let want = usize::try_from(length - moved).unwrap_or(usize::MAX);
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
            match sys::without_sigpipe(|| {
                splice(file, Some(&mut at), &self.pipe.fd, None, want, flags)
            }) {
                Ok(0) => break,
                Ok(count) => moved += count as u64,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.pipe.wait(PollFlags::POLLOUT)?,
                Err(Errno::EPIPE) => return Err(unread()),
                // A file system that can't.
                Err(Errno::EINVAL) => {
                    return Ok(moved + self.copy_from(file, offset + moved, length - moved)?);
                }
                Err(errno) => return Err(Error::io(READ)(errno)),
            }
        }
        Ok(moved)
    }

    fn copy_from(&mut self, file: BorrowedFd<'_>, offset: u64, length: u64) -> Result<u64> {
        let mut moved = 0;
        while moved < length {
            let at = file_offset(offset.saturating_add(moved)).map_err(Error::io(READ))?;
            let old = self.buffer.len();
            let room = BUFFER.saturating_sub(old).max(1);
            let want = usize::try_from(length - moved).unwrap_or(usize::MAX).min(room);
            self.buffer.resize(old + want, 0);
            let result = pread(file, self.buffer.get_mut(old..).unwrap_or_default(), at);
            self.buffer.truncate(old + result.unwrap_or(0));
            match result {
                Ok(0) => break,
                Ok(count) => moved += count as u64,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::io(READ)(errno)),
            }
            self.flush_if_full()?;
        }
        Ok(moved)
    }

    fn flush_if_full(&mut self) -> Result<()> {
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        let result = self.pipe.write(&self.buffer);
        self.buffer.clear();
        result
    }
}

/// What comes from the job. It may be anything.
#[derive(Debug)]
pub(crate) struct Incoming {
    pipe: Pipe,
    buffer: Vec<u8>,
    /// How much of the buffer has been used.
    start: usize,
    has_ended: bool,
}

impl Incoming {
    /// The read end. Nothing else may read from it.
    pub(crate) fn new(pipe: OwnedFd, deadline: Deadline) -> Result<Self> {
        Ok(Self {
            pipe: Pipe::new(pipe, deadline)?,
            buffer: Vec::new(),
            start: 0,
            has_ended: false,
        })
    }

    /// Has it wait no longer than there is a job.
    pub(crate) fn beside(mut self, job: Arc<dyn Maker>) -> Self {
        self.pipe.job = Some(job);
        self
    }

    fn buffered(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// Reads what is there, or waits for it; `false` at the end.
    fn fill(&mut self) -> Result<bool> {
        self.buffer.drain(..self.start);
        self.start = 0;
        loop {
            self.pipe.check_time()?;
            let old = self.buffer.len();
            self.buffer.resize(old + BUFFER, 0);
            let room = self.buffer.get_mut(old..).unwrap_or_default();
            let result = nix::unistd::read(&self.pipe.fd, room);
            self.buffer.truncate(old + result.unwrap_or(0));
            match result {
                Ok(count) => {
                    self.has_ended = count == 0;
                    return Ok(count != 0);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.pipe.wait(PollFlags::POLLIN)?,
                Err(errno) => return Err(Error::io("read from a pipe")(errno)),
            }
        }
    }

    /// Has so many bytes in the buffer. It grows only with what comes.
    fn need(&mut self, length: usize) -> Result<()> {
        while self.buffered().len() < length {
            if !self.fill()? {
                return Err(ended());
            }
        }
        Ok(())
    }

    fn header<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH]> {
        self.need(LENGTH)?;
        let header = *self.buffered().first_chunk().ok_or_else(ended)?;
        self.start += LENGTH;
        Ok(header)
    }

    /// As [`Outgoing::check_time`].
    pub(crate) fn check_time(&self) -> Result<()> {
        self.pipe.check_time()
    }

    /// Whether the job has ended, or at least what comes from it.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    pub(crate) fn entry(&mut self) -> Result<Entry<'_>> {
        self.pipe.check_time()?;
        let length = codec::body_length(self.header()?).unwrap_or(usize::MAX);
        if length > MAX_ENTRY {
            return Err(Error::Protocol { why: "an entry of impossible length" });
        }
        self.need(length)?;
        let start = self.start;
        self.start += length;
        let body = self.buffer.get(start..self.start).unwrap_or_default();
        codec::decode(body).map_err(|_| Error::Protocol { why: "an entry that does not decode" })
    }

    pub(crate) fn chunk(&mut self) -> Result<Chunk> {
        self.pipe.check_time()?;
        let why = "a piece of a file that does not decode";
        Chunk::decode(self.header()?).ok_or(Error::Protocol { why })
    }

    /// Fills all of `into`.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<()> {
        let mut rest = into;
        while !rest.is_empty() {
            self.need(1)?;
            let count = rest.len().min(self.buffered().len());
            let (now, later) = rest.split_at_mut_checked(count).unwrap_or_default();
            now.copy_from_slice(self.buffered().get(..count).unwrap_or_default());
            self.start += count;
            rest = later;
        }
        Ok(())
    }

    /// Moves bytes to a file.
    pub(crate) fn move_to(
        &mut self,
        file: BorrowedFd<'_>,
        mut offset: u64,
        mut length: u64,
    ) -> Result<()> {
        let buffered = length.min(self.buffered().len() as u64);
        self.copy_to(file, offset, buffered)?;
        offset = offset.saturating_add(buffered);
        length -= buffered;
        while length > SMALL {
            self.pipe.check_time()?;
            let mut at = file_offset(offset).map_err(Error::io(WRITE))?;
            let want = usize::try_from(length).unwrap_or(usize::MAX);
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
            match splice(&self.pipe.fd, None, file, Some(&mut at), want, flags) {
                Ok(0) => {
                    self.has_ended = true;
                    return Err(ended());
                }
                Ok(count) => {
                    offset = offset.saturating_add(count as u64);
                    length = length.saturating_sub(count as u64);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.pipe.wait(PollFlags::POLLIN)?,
                // A file system that can't.
                Err(Errno::EINVAL) => break,
                Err(errno) => return Err(Error::io(WRITE)(errno)),
            }
        }
        self.copy_to(file, offset, length)
    }

    fn copy_to(&mut self, file: BorrowedFd<'_>, mut offset: u64, mut length: u64) -> Result<()> {
        while length > 0 {
            self.need(1)?;
            let at = file_offset(offset).map_err(Error::io(WRITE))?;
            let count = usize::try_from(length).unwrap_or(usize::MAX).min(self.buffered().len());
            match pwrite(file, self.buffered().get(..count).unwrap_or_default(), at) {
                Ok(0) => return Err(Error::io(WRITE)(Errno::EIO)),
                Ok(count) => {
                    self.start += count;
                    offset = offset.saturating_add(count as u64);
                    length = length.saturating_sub(count as u64);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::io(WRITE)(errno)),
            }
        }
        Ok(())
    }

    pub(crate) fn skip(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            self.need(1)?;
            let count = usize::try_from(length).unwrap_or(usize::MAX).min(self.buffered().len());
            self.start += count;
            length -= count as u64;
        }
        Ok(())
    }

    /// Whether all was read. Waits until that is known.
    pub(crate) fn is_at_end(&mut self) -> Result<bool> {
        Ok(self.buffered().is_empty() && !self.fill()?)
    }
}
