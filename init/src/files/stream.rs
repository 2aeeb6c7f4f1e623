//! The two pipes of a file task: what comes from the host, and what goes to it.

use alloc::vec::Vec;

use adl_protocol::{Chunk, Entry, Stage, codec};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use serde::Serialize;

use crate::failure::{Failure, InStage};

/// How much is held of a stream, in bytes: what a pipe holds unless it is told to hold more.
const BUFFER: usize = 64 << 10;
/// The longest frame of an entry, in bytes.
pub(super) const LONGEST_ENTRY: usize = 1 << 20;
/// From so many bytes on, it costs less to hand pages on than to copy.
const WORTH_SPLICING: u64 = 16 << 10;

pub(super) fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        let count = rustix::io::write(to, bytes)?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// Sends an answer that is one small frame.
pub(super) fn answer<T: Serialize>(message: &T, to: BorrowedFd<'_>) -> Result<(), Failure> {
    let mut frame = [0; 256];
    let length = codec::encode_into(message, &mut frame)
        .map_err(|_| Failure(Stage::Copy, Errno::MSGSIZE))?;
    write_all(to, frame.get(..length).unwrap_or_default()).stage(Stage::Copy)
}

/// Answers with a message of any size.
pub(super) fn long_answer<T: Serialize>(message: &T, to: BorrowedFd<'_>) -> Result<(), Failure> {
    let mut frame = Vec::new();
    codec::encode(message, &mut frame).map_err(|_| Failure(Stage::Copy, Errno::MSGSIZE))?;
    write_all(to, &frame).stage(Stage::Copy)
}

/// What comes from the host.
pub(super) struct Input<'a> {
    pipe: BorrowedFd<'a>,
    buffer: Buffer<'a>,
    /// The part of the buffer that was read and not used yet.
    held: core::ops::Range<usize>,
}

enum Buffer<'a> {
    Fixed(&'a mut [u8]),
    Growing(Vec<u8>),
}

impl Buffer<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Fixed(bytes) => bytes,
            Self::Growing(bytes) => bytes,
        }
    }
}

impl<'a> Input<'a> {
    /// One that holds as much as it must.
    pub(super) fn new(pipe: BorrowedFd<'a>) -> Self {
        Self { pipe, buffer: Buffer::Growing(Vec::new()), held: 0..0 }
    }

    /// One for where nothing may be allocated, which holds no more than there is room for.
    pub(super) fn within(pipe: BorrowedFd<'a>, room: &'a mut [u8]) -> Self {
        Self { pipe, buffer: Buffer::Fixed(room), held: 0..0 }
    }

    /// Reads until so many bytes are held. The end of the stream is an error: a host that has all
    /// it wanted says so.
    pub(super) fn hold(&mut self, count: usize) -> rustix::io::Result<()> {
        if self.held.len() >= count {
            return Ok(());
        }
        self.buffer.bytes().copy_within(self.held.clone(), 0);
        self.held = 0..self.held.len();
        if let Buffer::Growing(bytes) = &mut self.buffer
            && bytes.len() < count.max(BUFFER)
        {
            bytes.resize(count.max(BUFFER), 0);
        }
        while self.held.len() < count {
            let free = self.buffer.bytes().get_mut(self.held.end..).unwrap_or_default();
            if free.is_empty() {
                return Err(Errno::MSGSIZE);
            }
            match rustix::io::read(self.pipe, free)? {
                0 => return Err(Errno::CANCELED),
                read => self.held.end += read,
            }
        }
        Ok(())
    }

    /// The most that is moved through the buffer at once.
    fn most_at_once(&self) -> usize {
        match &self.buffer {
            Buffer::Fixed(bytes) => bytes.len(),
            Buffer::Growing(_) => BUFFER,
        }
    }

    /// Takes bytes that are held.
    fn take(&mut self, count: usize) -> &[u8] {
        let start = self.held.start;
        self.held.start = (start + count).min(self.held.end);
        self.buffer.bytes().get(start..self.held.start).unwrap_or_default()
    }

    fn header<const N: usize>(&mut self) -> rustix::io::Result<[u8; N]> {
        self.hold(N)?;
        self.take(N).first_chunk().copied().ok_or(Errno::PROTO)
    }

    /// The next entry.
    pub(super) fn entry(&mut self) -> rustix::io::Result<Entry<'_>> {
        let length = codec::body_length(self.header()?).map_err(|_| Errno::PROTO)?;
        if length > LONGEST_ENTRY {
            return Err(Errno::PROTO);
        }
        self.hold(length)?;
        codec::decode(self.take(length)).map_err(|_| Errno::PROTO)
    }

    pub(super) fn chunk(&mut self) -> rustix::io::Result<Chunk> {
        Chunk::decode(self.header()?).ok_or(Errno::PROTO)
    }

    /// Moves so many bytes to where the file stands.
    pub(super) fn move_to_file(
        &mut self,
        file: BorrowedFd<'_>,
        count: u64,
    ) -> rustix::io::Result<()> {
        let mut left = count;
        while left != 0 {
            if self.held.is_empty() && left >= WORTH_SPLICING {
                let length = usize::try_from(left).unwrap_or(BUFFER);
                match splice(self.pipe, None, file, None, length, SpliceFlags::MOVE) {
                    Ok(0) => return Err(Errno::CANCELED),
                    Ok(moved) => {
                        left = left.saturating_sub(moved as u64);
                        continue;
                    }
                    // A file to the end of which is written takes no pages.
                    Err(Errno::INVAL) => {}
                    Err(errno) => return Err(errno),
                }
            }
            // What fits comes to the file at once, or not at all.
            let most = self.most_at_once();
            let whole = usize::try_from(left).unwrap_or(most).min(most);
            self.hold(whole)?;
            write_all(file, self.take(whole))?;
            left = left.saturating_sub(whole as u64);
        }
        Ok(())
    }
}

/// What goes to the host.
pub(super) struct Output<'a> {
    pipe: BorrowedFd<'a>,
    buffer: Vec<u8>,
}

impl<'a> Output<'a> {
    pub(super) fn new(pipe: BorrowedFd<'a>) -> Self {
        Self { pipe, buffer: Vec::with_capacity(2 * BUFFER) }
    }

    pub(super) fn entry(&mut self, entry: &Entry<'_>) -> rustix::io::Result<()> {
        codec::encode(entry, &mut self.buffer).map_err(|_| Errno::MSGSIZE)?;
        self.flush_if_full()
    }

    pub(super) fn chunk(&mut self, chunk: Chunk) -> rustix::io::Result<()> {
        self.buffer.extend_from_slice(&chunk.encode());
        self.flush_if_full()
    }

    /// Moves so many bytes of a file, which were announced; returns the number of those that were
    /// not there.
    pub(super) fn move_from_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        count: u64,
    ) -> rustix::io::Result<u64> {
        let (mut at, mut left) = (offset, count);
        if count >= WORTH_SPLICING {
            self.flush()?;
        }
        while left != 0 {
            let moved = if count >= WORTH_SPLICING {
                let length = usize::try_from(left).unwrap_or(BUFFER);
                rustix::fs::sendfile(self.pipe, file, Some(&mut at), length)?
            } else {
                let length = usize::try_from(left).unwrap_or(BUFFER);
                let start = self.buffer.len();
                self.buffer.resize(start + length, 0);
                let read =
                    rustix::io::pread(file, self.buffer.get_mut(start..).unwrap_or_default(), at);
                self.buffer.truncate(start + *read.as_ref().unwrap_or(&0));
                let read = read?;
                at += read as u64;
                read
            };
            if moved == 0 {
                break;
            }
            left = left.saturating_sub(moved as u64);
        }
        self.flush_if_full()?;
        Ok(left)
    }

    pub(super) fn zeros(&mut self, count: u64) -> rustix::io::Result<()> {
        let mut left = usize::try_from(count).unwrap_or(usize::MAX);
        while left != 0 {
            let some = left.min(BUFFER);
            self.buffer.resize(self.buffer.len() + some, 0);
            self.flush_if_full()?;
            left -= some;
        }
        Ok(())
    }

    fn flush_if_full(&mut self) -> rustix::io::Result<()> {
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> rustix::io::Result<()> {
        write_all(self.pipe, &self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}
