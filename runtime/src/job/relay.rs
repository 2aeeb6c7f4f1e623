//! Bytes on their way between a descriptor of the caller's and a pipe of a command.
//!
//! So the command holds nothing of the caller's: no file to lock or to move the position of, no
//! terminal, no flag that others share. What the caller has open is left as it is, too: no flag is
//! set on it, and a read or write does not wait where the kernel can say so.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::unistd::{Whence, lseek};

use crate::error::{Error, Result};
use crate::sys;

/// The most that is on its way at once, in bytes: what a pipe holds.
const CHUNK: usize = 64 << 10;
/// The most that is written at once where a write may wait, in bytes: what a pipe that is ready
/// takes.
const WAITING_CHUNK: usize = 4096;

/// A descriptor of the caller's that bytes come from or go to.
#[derive(Debug)]
pub(crate) struct Relay {
    fd: OwnedFd,
    is_file: bool,
    /// The device and the inode.
    place: (u64, u64),
    /// Of a file that is read from: the command's end of the pipe, by which what it has left in
    /// there is counted.
    command_end: Option<OwnedFd>,
}

impl Relay {
    /// # Errors
    /// [`Error::Invalid`] for a directory.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Result<Self> {
        let stat = nix::sys::stat::fstat(fd).map_err(Error::io("fstat"))?;
        let mode = stat.st_mode & libc::S_IFMT;
        if mode == libc::S_IFDIR {
            return Err(Error::invalid("stdio", "a directory of the host"));
        }
        let is_file = matches!(mode, libc::S_IFREG | libc::S_IFBLK);
        let fd = fd.try_clone_to_owned().map_err(Error::io("dup"))?;
        Ok(Self { fd, is_file, place: (stat.st_dev, stat.st_ino), command_end: None })
    }

    /// Whether it leads where another does.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.place == other.place
    }

    /// Has what the command does not read of a file be left in that file.
    pub(crate) fn count_by(&mut self, command_end: &OwnedFd) -> Result<()> {
        if self.is_file {
            self.command_end = Some(command_end.try_clone().map_err(Error::io("dup"))?);
        }
        Ok(())
    }

    /// Reads what there is; `None` if that is nothing now, 0 at the end.
    fn read(&self, buffer: &mut [u8]) -> nix::Result<Option<usize>> {
        match sys::read_now(&self.fd, buffer, self.is_file) {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            // A terminal that has hung up.
            Err(Errno::EIO) if !self.is_file => Ok(Some(0)),
            read => read.map(Some),
        }
    }

    fn write(&self, bytes: &[u8]) -> nix::Result<usize> {
        let some = if self.is_file { CHUNK } else { WAITING_CHUNK };
        let bytes = bytes.get(..some).unwrap_or(bytes);
        match sys::without_sigpipe(|| sys::write_now(&self.fd, bytes, self.is_file)) {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            written => written,
        }
    }
}

/// Bytes for a command's stdin.
#[derive(Debug)]
pub(crate) struct Input {
    /// Until there is nothing more to do.
    pipe: Option<OwnedFd>,
    bytes: Vec<u8>,
    written: usize,
    source: Option<Relay>,
    /// How much has gone into the pipe.
    moved: usize,
}

impl Input {
    pub(crate) fn of_bytes(pipe: OwnedFd, bytes: Vec<u8>) -> Result<Self> {
        Self::new(pipe, bytes, None)
    }

    pub(crate) fn of_relay(pipe: OwnedFd, source: Relay) -> Result<Self> {
        Self::new(pipe, Vec::new(), Some(source))
    }

    fn new(pipe: OwnedFd, bytes: Vec<u8>, source: Option<Relay>) -> Result<Self> {
        sys::set_blocking(&pipe, false).map_err(Error::io("fcntl"))?;
        Ok(Self { pipe: Some(pipe), bytes, written: 0, source, moved: 0 })
    }

    pub(crate) fn is_relayed(&self) -> bool {
        self.source.is_some()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    /// What is waited for: that there is something to do, and that no one reads any more.
    pub(crate) fn places(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; 2] {
        let Some(pipe) = &self.pipe else { return [None, None] };
        match &self.source {
            Some(source) if self.rest().is_empty() => {
                let unread = Some((pipe.as_fd(), PollFlags::empty()));
                [Some((source.fd.as_fd(), PollFlags::POLLIN)), unread]
            }
            _ => [Some((pipe.as_fd(), PollFlags::POLLOUT)), None],
        }
    }

    /// Does what was waited for. After an error there is nothing more to do.
    pub(crate) fn go_on(&mut self) -> Result<()> {
        let done = self.move_some();
        if !matches!(done, Ok(true)) {
            self.close();
        }
        done.map(drop)
    }

    /// There is nothing more to do: the stream ends.
    pub(crate) fn close(&mut self) {
        self.pipe = None;
    }

    /// Whether there may be more.
    fn move_some(&mut self) -> Result<bool> {
        if let (true, Some(source)) = (self.rest().is_empty(), &self.source) {
            self.written = 0;
            self.bytes.resize(CHUNK, 0);
            let read = source.read(&mut self.bytes);
            self.bytes.truncate(read.ok().flatten().unwrap_or(0));
            match read.map_err(Error::io("read the caller's stream"))? {
                None => return Ok(true),
                Some(0) => return Ok(false),
                Some(_) => {}
            }
        }
        let Some(pipe) = &self.pipe else { return Ok(false) };
        let rest = self.rest();
        if rest.is_empty() {
            return Ok(false);
        }
        match nix::unistd::write(pipe, rest) {
            Ok(count) => {
                self.written += count;
                self.moved += count;
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // It does not want it.
            Err(Errno::EPIPE) => return Ok(false),
            Err(errno) => return Err(Error::io("write to a pipe")(errno)),
        }
        Ok(self.source.is_some() || !self.rest().is_empty())
    }

    /// The command has ended: what it has not read of a file is left there.
    pub(crate) fn give_back(self) {
        let Some(Relay { fd, command_end: Some(end), .. }) = &self.source else { return };
        // A guest can write to the pipe, too: no more is given back than came.
        let left = sys::bytes_available(end).unwrap_or(0).min(self.moved);
        let unread = left + self.rest().len();
        if let (1.., Ok(unread)) = (unread, i64::try_from(unread)) {
            // A file that can't be moved in has no position that anyone shares.
            let _ = lseek(fd, -unread, Whence::SeekCur);
        }
    }
}

/// Where a stream of a command goes on to, and what is still to be written there.
#[derive(Debug)]
pub(crate) struct Sink {
    to: Relay,
    bytes: Vec<u8>,
    written: usize,
}

impl Sink {
    pub(crate) fn new(to: Relay) -> Self {
        Self { to, bytes: Vec::new(), written: 0 }
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    /// What is waited for where not all was taken yet.
    pub(crate) fn place(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        (!self.rest().is_empty()).then(|| (self.to.fd.as_fd(), PollFlags::POLLOUT))
    }

    /// Takes bytes, when it has none.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.written = 0;
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes what can be.
    pub(crate) fn go_on(&mut self) -> nix::Result<()> {
        if !self.rest().is_empty() {
            self.written += self.to.write(self.rest())?;
        }
        Ok(())
    }
}
