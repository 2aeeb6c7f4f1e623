//! Bytes on their way between a stream of the caller's and a pipe of a command.
//!
//! So the command holds nothing of the caller's: no file to lock or to move the position of, no
//! terminal, no flag that others share. What the caller has open is left as it is, too: no flag is
//! set on it. A pipe or a terminal is opened once more where that is allowed, for an open file that
//! does not wait; of another a read or write does not wait where the kernel can say so, and else
//! is no more than what is ready.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::PollFlags;
use nix::unistd::{Whence, getpgrp, lseek, tcgetpgrp};

use crate::error::{Error, Result};
use crate::sys;
use crate::sys::socket::is_terminal_master;
use crate::wait::Deadline;

/// Which of the three a stream is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which {
    Stdin,
    Stdout,
    Stderr,
}

impl Which {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    /// What is done with one of the caller's, for an error.
    pub(crate) fn operation(self) -> &'static str {
        match self {
            Self::Stdin => "read stdin",
            Self::Stdout => "write to stdout",
            Self::Stderr => "write to stderr",
        }
    }
}

/// The most that is on its way at once, in bytes: what a pipe holds.
const CHUNK: usize = 64 << 10;
/// The most that is written at once where a write may wait, in bytes: what a pipe that is ready
/// takes.
const WAITING_CHUNK: usize = 4096;
/// As much of a terminal, in bytes, where that is a part that the kernel does not take apart: it
/// is ready when it has room for 256, and may have none any more after the first part.
const TERMINAL_CHUNK: usize = 128;
/// How much room a pipe has, in bytes, where one of its pages is free.
const PAGE: usize = 4096;

/// How often a terminal that another job of the caller's shell has is looked at.
const AWAY: Duration = Duration::from_millis(200);

/// A stream of the caller's that bytes come from or go to.
#[derive(Debug)]
pub(crate) struct Relay {
    which: Which,
    /// What is waited for.
    fd: OwnedFd,
    /// An open file of its own, for what is read and written: one that does not wait.
    own: Option<OwnedFd>,
    is_file: bool,
    /// A terminal by which a shell has jobs: its slave side.
    is_terminal: bool,
    is_null: bool,
    /// The device and the inode.
    place: (u64, u64),
    /// Of a file that is read from: the command's end of the pipe, by which what it has left in
    /// there is counted.
    command_end: Option<OwnedFd>,
}

impl Relay {
    /// # Errors
    /// [`Error::Invalid`] for a directory.
    pub(crate) fn of(fd: BorrowedFd<'_>, which: Which) -> Result<Self> {
        const NULL: u64 = libc::makedev(1, 3);
        let stat = nix::sys::stat::fstat(fd).map_err(Error::io("fstat"))?;
        let mode = stat.st_mode & libc::S_IFMT;
        if mode == libc::S_IFDIR {
            return Err(Error::invalid(which.name(), "it is a directory"));
        }
        let is_terminal = mode == libc::S_IFCHR
            && nix::unistd::isatty(fd).unwrap_or_else(|errno| errno == Errno::EIO)
            && !is_terminal_master(fd);
        let own = (is_terminal || mode == libc::S_IFIFO).then(|| open_once_more(fd, which));
        Ok(Self {
            which,
            fd: fd.try_clone_to_owned().map_err(Error::io("dup"))?,
            own: own.flatten(),
            is_file: matches!(mode, libc::S_IFREG | libc::S_IFBLK),
            is_terminal,
            is_null: mode == libc::S_IFCHR && stat.st_rdev == NULL,
            place: (stat.st_dev, stat.st_ino),
            command_end: None,
        })
    }

    /// Whether it leads where another does.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.place == other.place
    }

    /// Whether it is `/dev/null`, of which a sandbox has its own.
    pub(crate) fn is_null(&self) -> bool {
        self.is_null
    }

    /// Has what the command does not read of a file be left in that file.
    pub(crate) fn count_by(&mut self, command_end: &OwnedFd) -> Result<()> {
        if self.is_file {
            self.command_end = Some(command_end.try_clone().map_err(Error::io("dup"))?);
        }
        Ok(())
    }

    /// What is read from and written to, and whether that only waits for a disk, if at all.
    fn used(&self) -> (&OwnedFd, bool) {
        self.own.as_ref().map_or((&self.fd, self.is_file), |own| (own, true))
    }

    /// Whether it is a terminal that another job of the caller's shell has now.
    fn is_away(&self) -> bool {
        self.is_terminal && tcgetpgrp(&self.fd).is_ok_and(|group| group != getpgrp())
    }

    /// Reads what there is.
    fn read(&self, buffer: &mut [u8]) -> nix::Result<Taken> {
        let (fd, never_waits) = self.used();
        let mut read = || sys::read_now(fd, buffer, never_waits);
        // One that another job has would stop the calling program else.
        match if self.is_terminal { sys::without_sigttin(read) } else { read() } {
            Ok(0) => Ok(Taken::End),
            Ok(count) => Ok(Taken::Some(count)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Taken::Nothing),
            Err(Errno::EIO) if self.is_away() => Ok(Taken::Away),
            // A terminal that has hung up.
            Err(Errno::EIO) if !self.is_file => Ok(Taken::End),
            Err(errno) => Err(errno),
        }
    }

    fn write(&self, bytes: &[u8]) -> nix::Result<usize> {
        let (fd, never_waits) = self.used();
        let some = match (never_waits, self.is_terminal) {
            (true, _) => CHUNK,
            (false, true) => part_for_terminal(bytes),
            (false, false) => WAITING_CHUNK,
        };
        let bytes = bytes.get(..some).unwrap_or(bytes);
        match sys::without_sigpipe(|| sys::write_now(fd, bytes, never_waits)) {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            written => written,
        }
    }
}

/// The length of what a terminal takes at once: ends of lines and tabs, which it may make several
/// of, are each a part of their own.
fn part_for_terminal(bytes: &[u8]) -> usize {
    let mut first = bytes.iter().take(TERMINAL_CHUNK);
    first.position(u8::is_ascii_control).map_or(TERMINAL_CHUNK, |ordinary| ordinary.max(1))
}

/// What has come of a read.
enum Taken {
    Some(usize),
    /// Nothing was there after all.
    Nothing,
    /// Another job of the caller's shell has the terminal.
    Away,
    End,
}

/// Opens what a descriptor is of, for reads or writes that don't wait: the flag is one of the open
/// file, which the caller shares with others. Where it is not allowed, as after `su`, there is
/// none.
fn open_once_more(fd: BorrowedFd<'_>, which: Which) -> Option<OwnedFd> {
    let is_input = matches!(which, Which::Stdin);
    let mut how = std::fs::File::options();
    how.read(is_input).write(!is_input).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    how.open(sys::path_of(fd)).ok().map(OwnedFd::from)
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
    /// Whether room in the pipe is waited for, before more is read.
    is_full: bool,
    /// Whether another job of the caller's shell has the terminal that it comes from.
    is_away: bool,
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
        let pipe = Some(pipe);
        Ok(Self { pipe, bytes, written: 0, source, moved: 0, is_full: false, is_away: false })
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
            Some(source) if self.rest().is_empty() && !self.is_full => {
                let unread = Some((pipe.as_fd(), PollFlags::empty()));
                let comes = (!self.is_away).then(|| (source.fd.as_fd(), PollFlags::POLLIN));
                [comes, unread]
            }
            _ => [Some((pipe.as_fd(), PollFlags::POLLOUT)), None],
        }
    }

    /// When it is to be looked at, whatever happens.
    pub(crate) fn next_at(&self) -> Deadline {
        if self.is_away { Deadline::after(AWAY) } else { Deadline::NEVER }
    }

    /// Looks whether what was away is back.
    pub(crate) fn look(&mut self) {
        self.is_away = self.is_away && self.source.as_ref().is_some_and(Relay::is_away);
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
        let Some(pipe) = &self.pipe else { return Ok(false) };
        if let (true, Some(source)) = (self.rest().is_empty(), &self.source) {
            // There is room again: what comes is waited for next.
            if std::mem::take(&mut self.is_full) {
                return Ok(true);
            }
            // What the command does not read stays where it is, but for what fits into the pipe.
            let room = room_in(pipe);
            if room < PAGE {
                self.is_full = true;
                return Ok(true);
            }
            self.written = 0;
            self.bytes.resize(room.min(CHUNK), 0);
            let taken = source.read(&mut self.bytes);
            let count = if let Ok(Taken::Some(count)) = taken { count } else { 0 };
            self.bytes.truncate(count);
            match taken.map_err(Error::io(source.which.operation()))? {
                Taken::Some(_) => {}
                Taken::Nothing => return Ok(true),
                Taken::Away => {
                    self.is_away = true;
                    return Ok(true);
                }
                Taken::End => return Ok(false),
            }
        }
        let Some(pipe) = &self.pipe else { return Ok(false) };
        let rest = self.rest();
        if rest.is_empty() {
            return Ok(false);
        }
        match sys::without_sigpipe(|| nix::unistd::write(pipe, rest)) {
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

/// How many bytes a pipe holds beyond those that are in it.
fn room_in(pipe: &OwnedFd) -> usize {
    let size = fcntl(pipe, FcntlArg::F_GETPIPE_SZ).map(|size| usize::try_from(size).unwrap_or(0));
    let used = sys::bytes_available(pipe).unwrap_or(0);
    size.unwrap_or(CHUNK).saturating_sub(used)
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

    /// Makes the error of what it did not take.
    pub(crate) fn failed(&self, errno: Errno) -> Error {
        Error::io(self.to.which.operation())(errno)
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

#[cfg(test)]
mod tests {
    use nix::sys::signal::{SigSet, Signal};

    use super::{Input, TERMINAL_CHUNK, part_for_terminal};

    #[test]
    fn a_command_that_reads_nothing_is_no_signal_for_the_caller() {
        let (read, write) = nix::unistd::pipe().unwrap();
        drop(read);
        // What is blocked stays to be seen, whatever is done about it.
        let old_mask = SigSet::thread_get_mask().unwrap();
        SigSet::from(Signal::SIGPIPE).thread_block().unwrap();
        let pending = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let set = status.lines().find_map(|line| line.strip_prefix("SigPnd:")).unwrap();
            u64::from_str_radix(set.trim(), 16).unwrap()
        };
        let mut input = Input::of_bytes(write, b"not wanted".to_vec()).unwrap();
        input.go_on().unwrap();
        let left = pending();
        old_mask.thread_set_mask().unwrap();
        assert!(!input.is_open());
        assert_eq!(left, 0);
    }

    #[test]
    fn a_terminal_is_given_what_it_does_not_take_apart() {
        for (bytes, length) in [("text\n", 4), ("\ntext", 1), ("\t\n", 1), ("\u{1b}[0m", 1)] {
            assert_eq!(part_for_terminal(bytes.as_bytes()), length, "{bytes:?}");
        }
        assert_eq!(part_for_terminal(&[b'x'; 1000]), TERMINAL_CHUNK);
    }
}
