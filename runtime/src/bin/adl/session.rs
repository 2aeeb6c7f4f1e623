//! The caller's terminal and that of a command, joined.
//!
//! One loop, and no thread: what is typed goes in, what is printed comes out, and neither side can
//! block the loop. What the other side does not take yet is kept up to a limit, and beyond that
//! not read any more.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::time::Duration;

use adl_runtime::{Child, EndReason, ExitStatus, Sandbox, Scope, Terminal};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};
use nix::sys::signalfd::SignalFd;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::output::{say, wait_for_no_reader};
use crate::sys;
use crate::values::{CliResult, passed_on};

/// The most that is kept of what one side has sent and the other has not taken yet, in bytes. It
/// is more than the kernel keeps of what was printed, which is all that is read after the end.
const BUFFER: usize = 64 << 10;

/// The most that is read or written at once, in bytes: what a pipe that is ready takes.
const CHUNK: usize = 4096;

/// How long the command's terminal is silent until it has no more to say, in milliseconds. It
/// matters only where a process that outlives the command has it open.
const SILENCE: u16 = 50;

/// How long the caller's streams may take for the rest of what was written by a command that was
/// ended.
const LAST: Duration = Duration::from_secs(1);

/// What the signals that steer a session are, beyond those that are passed on.
pub(crate) const SIGNALS: [Signal; 3] = [Signal::SIGWINCH, Signal::SIGTSTP, Signal::SIGCONT];

/// Joins stdin and stdout to the terminal of a command until it has ended and all that it printed
/// is written. The caller's terminal is then as it was before.
/// It is looked at after each `pause` at the latest.
pub(crate) fn run(
    child: &mut Child,
    sandbox: &Sandbox,
    signals: &SignalFd,
    stop: u8,
    pause: PollTimeout,
) -> CliResult<ExitStatus> {
    let terminal = child.terminal.take().ok_or("the command has no terminal")?;
    let flags = OFlag::from_bits_retain(fcntl(&terminal, FcntlArg::F_GETFL)?);
    fcntl(&terminal, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let session = Session {
        child,
        init: sandbox.pidfd()?,
        signals,
        stop,
        pause,
        mode: RawMode::enter()?,
        terminal: Some(terminal),
        away: false,
        input: Some(own_input()?),
        output: own_output()?,
        typed: Buffer::default(),
        printed: Buffer::default(),
        ended: None,
        given_up: false,
    };
    session.run()
}

struct Session<'a> {
    child: &'a mut Child,
    /// Readable when the sandbox has died.
    init: OwnedFd,
    signals: &'a SignalFd,
    /// What SIGTERM is passed on as.
    stop: u8,
    pause: PollTimeout,
    mode: RawMode,
    /// `None` once nothing more is to be read from it.
    terminal: Option<Terminal>,
    /// No process inside has it open. One may open it again: it controls a session.
    away: bool,
    /// `None` after its end.
    input: Option<File>,
    output: File,
    typed: Buffer,
    printed: Buffer,
    /// How the command ended, and how much was read since.
    ended: Option<(ExitStatus, usize)>,
    /// A signal came after the end: what can't be written is left.
    given_up: bool,
}

/// What can be done without blocking.
#[derive(Debug, Clone, Copy)]
enum Ready {
    Child,
    Signals,
    Typing,
    TakeTyped,
    Printing,
    ShowPrinted,
}

impl Session<'_> {
    fn run(mut self) -> CliResult<ExitStatus> {
        loop {
            if self.ended.is_none() {
                self.ended = self.child.try_wait()?.map(|status| (status, 0));
                self.away &= self.ended.is_none();
            }
            if let Some((status, since)) = self.ended {
                if since >= BUFFER {
                    self.terminal = None;
                }
                if self.given_up || (self.terminal.is_none() && self.printed.is_empty()) {
                    return Ok(status);
                }
            }
            let ready = self.wait()?;
            if ready.is_empty() {
                self.away = false;
                if self.ended.is_some() {
                    self.give_up_if_unread();
                    self.terminal = None;
                }
            }
            for what in ready {
                match what {
                    Ready::Child => {}
                    Ready::Signals => self.take_signals()?,
                    Ready::Typing => self.read_input(),
                    Ready::TakeTyped => self.type_in()?,
                    Ready::Printing => self.read_terminal()?,
                    Ready::ShowPrinted => self.show(),
                }
            }
        }
    }

    /// Waits for what there is a use for. What there is none for is not polled: its end would wake
    /// us up again and again.
    fn wait(&self) -> CliResult<Vec<Ready>> {
        let runs = self.ended.is_none();
        let terminal = self.terminal.as_ref().filter(|_| !self.away).map(AsFd::as_fd);
        let input = self.input.as_ref().map(AsFd::as_fd);
        let reads = terminal.filter(|_| self.printed.has_room());
        let wanted: [(Ready, Option<BorrowedFd>, PollFlags); 7] = [
            (Ready::Child, runs.then(|| self.child.as_fd()), PollFlags::POLLIN),
            (Ready::Child, runs.then(|| self.init.as_fd()), PollFlags::POLLIN),
            (Ready::Signals, Some(self.signals.as_fd()), PollFlags::POLLIN),
            (Ready::Typing, input.filter(|_| runs && self.typed.has_room()), PollFlags::POLLIN),
            (
                Ready::TakeTyped,
                terminal.filter(|_| runs && !self.typed.is_empty()),
                PollFlags::POLLOUT,
            ),
            (Ready::Printing, reads, PollFlags::POLLIN),
            (
                Ready::ShowPrinted,
                Some(self.output.as_fd()).filter(|_| !self.printed.is_empty()),
                PollFlags::POLLOUT,
            ),
        ];
        let wanted = wanted.into_iter().filter_map(|(what, fd, flags)| Some((what, fd?, flags)));
        let (what, mut fds): (Vec<Ready>, Vec<PollFd>) =
            wanted.map(|(what, fd, flags)| (what, PollFd::new(fd, flags))).unzip();
        let timeout = match (runs, self.away, reads) {
            (true, true, _) | (false, _, Some(_)) => PollTimeout::from(SILENCE),
            (true, ..) => self.pause,
            _ if self.ended.is_some_and(|(status, _)| was_ended(status)) => {
                PollTimeout::try_from(LAST)?
            }
            _ => PollTimeout::NONE,
        };
        loop {
            match poll(&mut fds, timeout) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let ready = what.into_iter().zip(&fds).filter(|(_, fd)| fd.any() != Some(false));
        Ok(ready.map(|(what, _)| what).collect())
    }

    /// Nothing has happened: gives up what the caller's stream was waited for to take.
    fn give_up_if_unread(&mut self) {
        let only_waits = self.terminal.is_none() || !self.printed.has_room();
        if only_waits && !self.printed.is_empty() {
            leave_the_rest();
            self.given_up = true;
        }
    }

    fn take_signals(&mut self) -> CliResult<()> {
        while let Some(signal) = self.signals.read_signal()? {
            match Signal::try_from(i32::try_from(signal.ssi_signo)?)? {
                Signal::SIGWINCH => self.resize()?,
                Signal::SIGTSTP => {
                    self.mode.leave();
                    raise(Signal::SIGSTOP)?;
                }
                Signal::SIGCONT => {
                    // A terminal that has hung up has no mode.
                    let _ = self.mode.enter_again();
                    self.resize()?;
                }
                _ if self.ended.is_some() => self.given_up = true,
                other => {
                    let signal = passed_on(u8::try_from(other as i32)?, self.stop);
                    self.child.signal(signal, Scope::Group)?;
                }
            }
        }
        Ok(())
    }

    fn resize(&self) -> CliResult<()> {
        // A terminal that has hung up has no size.
        if let (Some(terminal), Ok((rows, columns))) =
            (&self.terminal, sys::window_size(io::stdin()))
        {
            terminal.resize(rows, columns)?;
        }
        Ok(())
    }

    fn read_input(&mut self) {
        let Some(input) = &mut self.input else { return };
        // An error is that the terminal has hung up. The command is told by SIGHUP, not by this.
        if matches!(self.typed.fill_from(input), Ok(Some(0)) | Err(_)) {
            self.input = None;
        }
    }

    fn type_in(&mut self) -> CliResult<()> {
        let Some(terminal) = &mut self.terminal else { return Ok(()) };
        match self.typed.empty_into(terminal) {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => self.away = true,
            result => result?,
        }
        Ok(())
    }

    fn read_terminal(&mut self) -> CliResult<()> {
        let Some(terminal) = &mut self.terminal else { return Ok(()) };
        match (self.printed.fill_from(terminal)?, &mut self.ended) {
            (Some(0), Some(_)) => self.terminal = None,
            (Some(0), None) => self.away = true,
            (Some(count), Some((_, since))) => *since += count,
            _ => {}
        }
        Ok(())
    }

    fn show(&mut self) {
        // With no one to see it any more, the command's terminal hangs up as the caller's did.
        if self.printed.empty_into(&mut self.output).is_err() {
            self.terminal = None;
            self.printed = Buffer::default();
        }
    }
}

/// Whether a command did not end by itself: the caller has wanted an end.
fn was_ended(status: ExitStatus) -> bool {
    let by_itself = [EndReason::Exited, EndReason::Signaled, EndReason::OutOfMemory];
    status.code().is_none() && !by_itself.contains(&status.reason())
}

/// Tells that the caller's streams did not take all that was written.
pub(crate) fn leave_the_rest() {
    wait_for_no_reader();
    say("what the command wrote last was not read");
}

/// Bytes on their way, [`BUFFER`] at most.
#[derive(Default)]
struct Buffer(VecDeque<u8>);

impl Buffer {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has_room(&self) -> bool {
        self.0.len() < BUFFER
    }

    /// Reads once, as much as there is room for. `None` if there was nothing after all; 0 at the
    /// end.
    fn fill_from(&mut self, from: &mut impl Read) -> io::Result<Option<usize>> {
        let mut chunk = [0; CHUNK];
        let room = CHUNK.min(BUFFER.saturating_sub(self.0.len()));
        match from.read(chunk.get_mut(..room).unwrap_or_default()) {
            Ok(count) => {
                self.0.extend(chunk.iter().take(count));
                Ok(Some(count))
            }
            Err(error) => is_momentary(error).map(|()| None),
        }
    }

    /// Writes once, as much as is taken.
    fn empty_into(&mut self, to: &mut impl Write) -> io::Result<()> {
        let (front, _) = self.0.as_slices();
        match to.write(front.get(..CHUNK).unwrap_or(front)) {
            Ok(count) => {
                self.0.drain(..count);
                Ok(())
            }
            Err(error) => is_momentary(error),
        }
    }
}

fn is_momentary(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

/// stdin, which is a terminal.
fn own_input() -> io::Result<File> {
    let mut read = File::options();
    read.read(true);
    reopen(read, "/proc/self/fd/0", io::stdin().as_fd())
}

/// stdout. A file that has a position is better left alone, and doesn't block.
fn own_output() -> io::Result<File> {
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let kind = stdout.metadata()?.file_type();
    if !kind.is_char_device() && !kind.is_fifo() {
        return Ok(stdout);
    }
    let mut write = File::options();
    write.write(true);
    reopen(write, "/proc/self/fd/1", io::stdout().as_fd())
}

/// Opens it once more, so that it can be made non-blocking for us alone: the flag belongs to what
/// the calling shell and others have open, too. Where that is denied, as after `su`, it is used as
/// it is, when `poll(2)` says that it is ready. So is a master side, which would be another's then.
fn reopen(mut how: std::fs::OpenOptions, path: &str, fd: BorrowedFd) -> io::Result<File> {
    const MASTER: u64 = libc::makedev(5, 2);
    let file = File::from(fd.try_clone_to_owned()?);
    if file.metadata()?.rdev() == MASTER {
        return Ok(file);
    }
    Ok(how.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).unwrap_or(file))
}

/// The raw mode of the caller's terminal, until it is dropped: whatever ends the session, an error
/// and a panic too.
struct RawMode {
    before: Termios,
}

impl RawMode {
    fn enter() -> nix::Result<Self> {
        let this = Self { before: tcgetattr(io::stdin())? };
        this.enter_again()?;
        Ok(this)
    }

    fn enter_again(&self) -> nix::Result<()> {
        let mut raw = self.before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)
    }

    fn leave(&self) {
        // A terminal that has hung up has no mode.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        self.leave();
    }
}
