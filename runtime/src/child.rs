//! Running commands, and how they ended.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use adl_protocol::{Exit, JobEvent, JobRequest, Stage, Status};
pub use adl_protocol::{Scope, Usage};
use nix::poll::{PollFd, PollFlags};

use crate::collect::Collected;
use crate::error::{Error, Result};
use crate::sys;
use crate::wire::{self, Deadline, Messages};

/// How long a program may take from the request to its `execve`, or its failure.
const START: Duration = Duration::from_secs(10);
/// How long init may take to read a request on a job's channel.
const REQUEST: Duration = Duration::from_secs(10);

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus(Status);

impl ExitStatus {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.0 == Status::Code(0)
    }

    /// What it exited with, unless a signal ended it.
    pub fn code(&self) -> Option<u8> {
        match self.0 {
            Status::Code(code) => Some(code),
            Status::Signal { .. } => None,
        }
    }

    /// The number of the signal that ended it, if one did.
    pub fn signal(&self) -> Option<u8> {
        match self.0 {
            Status::Code(_) => None,
            Status::Signal { signal, .. } => Some(signal),
        }
    }

    /// Whether a core was dumped.
    pub fn core_dumped(&self) -> bool {
        matches!(self.0, Status::Signal { core: true, .. })
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Status::Code(code) => write!(f, "exit status {code}"),
            Status::Signal { signal, core: false } => write!(f, "signal {signal}"),
            Status::Signal { signal, core: true } => write!(f, "signal {signal} (core dumped)"),
        }
    }
}

/// What a command that has ended left.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout, if that was collected. Of more than 16 MiB, the first 8 MiB and
    /// the last 8 MiB.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr, likewise.
    pub stderr: Vec<u8>,
    /// The number of bytes left out in the middle of `stdout`.
    pub stdout_dropped: u64,
    /// The number of bytes left out in the middle of `stderr`.
    pub stderr_dropped: u64,
    /// Whether another process still had stdout or stderr open when the command ended: it has
    /// left something running in the background.
    pub stdio_open: bool,
    /// What it and the children that it waited for used.
    pub usage: Usage,
}

/// A command that init was asked to start.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) program: PathBuf,
    pub(crate) messages: Messages,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// Its end, once that was told.
    pub(crate) exit: Option<Exit>,
}

impl Running {
    /// Looks whether its end was told.
    fn try_exit(&mut self) -> Result<Option<Exit>> {
        if self.exit.is_none()
            && let Some(body) = self.messages.try_next()?
        {
            self.exit = Some(self.exit_in(&body)?);
        }
        Ok(self.exit)
    }

    /// Waits for its end.
    fn wait_exit(&mut self) -> Result<Exit> {
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        let body = self.messages.next_blocking()?;
        let exit = self.exit_in(&body)?;
        self.exit = Some(exit);
        Ok(exit)
    }

    fn exit_in(&self, body: &[u8]) -> Result<Exit> {
        match wire::decode(body)? {
            JobEvent::Exited(exit) => Ok(exit),
            JobEvent::Failed { stage, errno } => Err(self.start_error(stage, errno)),
            JobEvent::Started { .. } => Err(Error::Protocol { why: "a program that starts twice" }),
        }
    }

    fn start_error(&self, stage: Stage, errno: i32) -> Error {
        Error::Start { program: self.program.clone(), stage, source: wire::error_of(errno) }
    }

    /// Collects until the command has ended.
    ///
    /// When init says so, the process was reaped, so all that it wrote is in the pipes: what is
    /// there at that moment is read, and no more, since a process left in the background may go
    /// on to write for ever.
    pub(crate) fn output(mut self) -> Result<Output> {
        drop(self.stdin.take());
        let mut streams = [self.stdout.take(), self.stderr.take()].map(Collecting::new);
        while self.exit.is_none() && streams.iter().any(|stream| stream.pipe.is_some()) {
            let mut fds = vec![PollFd::new(self.messages.as_fd(), PollFlags::POLLIN)];
            fds.extend(streams.iter().filter_map(Collecting::poll_fd));
            wire::wait_ready(&mut fds, Deadline::NEVER)?;
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            drop(fds);
            let mut ready = ready.into_iter();
            let said = ready.next().unwrap_or(false);
            for stream in streams.iter_mut().filter(|stream| stream.pipe.is_some()) {
                if ready.next().unwrap_or(false) {
                    stream.read_once()?;
                }
            }
            if said {
                self.try_exit()?;
            }
        }
        let exit = self.wait_exit()?;
        for stream in &mut streams {
            stream.read_rest()?;
        }
        let stdio_open = streams.iter().any(|stream| stream.pipe.is_some());
        let [(stdout, stdout_dropped), (stderr, stderr_dropped)] =
            streams.map(|stream| stream.collected.finish());
        Ok(Output {
            status: ExitStatus(exit.status),
            stdout,
            stderr,
            stdout_dropped,
            stderr_dropped,
            stdio_open,
            usage: exit.usage,
        })
    }
}

/// A stream that is being collected, until its end.
struct Collecting {
    pipe: Option<OwnedFd>,
    collected: Collected,
}

impl Collecting {
    fn new(pipe: Option<OwnedFd>) -> Self {
        Self { pipe, collected: Collected::default() }
    }

    fn poll_fd(&self) -> Option<PollFd<'_>> {
        self.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN))
    }

    /// Reads what is there once; it is known that something is.
    fn read_once(&mut self) -> Result<()> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        if self.collected.read_from(pipe.as_fd())? == 0 {
            self.pipe = None;
        }
        Ok(())
    }

    /// Reads what is there now, and finds out whether anyone could write more.
    fn read_rest(&mut self) -> Result<()> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        let mut left = sys::bytes_available(pipe).map_err(Error::io("FIONREAD"))?;
        while left != 0 {
            match self.collected.read_from(pipe.as_fd())? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        wire::wait_ready(&mut fds, Deadline::after(Duration::ZERO))?;
        let [fd] = fds;
        if fd.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)) {
            self.pipe = None;
        }
        Ok(())
    }
}

/// A running command.
///
/// Dropping it does not end the command: nobody will learn how it ended, but the sandbox's init
/// reaps it. If a pipe is dropped with it, the command gets SIGPIPE when it writes.
#[derive(Debug)]
pub struct Child {
    /// The write end of its stdin, if that was piped.
    pub stdin: Option<ChildStdin>,
    /// The read end of its stdout, if that was piped.
    pub stdout: Option<ChildStdout>,
    /// The read end of its stderr, if that was piped.
    pub stderr: Option<ChildStderr>,
    running: Running,
    pid: GuestPid,
}

/// A process id as it is inside a sandbox. Outside, the same number is another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPid(i32);

impl GuestPid {
    /// The number.
    pub fn as_raw(self) -> i32 {
        self.0
    }
}

impl fmt::Display for GuestPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Child {
    /// Waits until the program runs: `notice` is closed by its `execve`.
    pub(crate) fn started(mut running: Running, notice: OwnedFd) -> Result<Self> {
        let deadline = Deadline::after(START);
        let mut fds = [PollFd::new(notice.as_fd(), PollFlags::POLLIN)];
        if !wire::wait_ready(&mut fds, deadline)? {
            return Err(Error::TimedOut { what: "the program to start", after: START });
        }
        // A failure was reported before the notice was closed, and is on the channel by now. The
        // pid comes from init, which may be a moment behind its child.
        let body = running.messages.next("the program to start", deadline)?;
        let pid = match wire::decode(&body)? {
            JobEvent::Started { pid } => GuestPid(pid),
            JobEvent::Failed { stage, errno } => return Err(running.start_error(stage, errno)),
            JobEvent::Exited(_) => {
                return Err(Error::Protocol { why: "an end before the start" });
            }
        };
        // Both may have come: that it was made, and that it then failed.
        running.try_exit()?;
        Ok(Self {
            stdin: running.stdin.take().map(ChildStdin),
            stdout: running.stdout.take().map(ChildStdout),
            stderr: running.stderr.take().map(ChildStderr),
            running,
            pid,
        })
    }

    /// Its process id inside the sandbox.
    pub fn id(&self) -> GuestPid {
        self.pid
    }

    /// Waits until it has ended, after closing its stdin.
    ///
    /// # Errors
    /// [`Error::SandboxDied`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        drop(self.stdin.take());
        Ok(ExitStatus(self.running.wait_exit()?.status))
    }

    /// Looks whether it has ended.
    ///
    /// # Errors
    /// [`Error::SandboxDied`].
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.running.try_exit()?.map(|exit| ExitStatus(exit.status)))
    }

    /// Closes its stdin, waits until it has ended, and collects what is piped.
    ///
    /// # Errors
    /// [`Error::SandboxDied`].
    pub fn wait_with_output(mut self) -> Result<Output> {
        drop(self.stdin.take());
        self.running.stdout = self.stdout.take().map(OwnedFd::from);
        self.running.stderr = self.stderr.take().map(OwnedFd::from);
        self.running.output()
    }

    /// Sends SIGKILL to it and its process group.
    ///
    /// # Errors
    /// [`Error::SandboxDied`]. A command that has ended is no error.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(9, Scope::Group)
    }

    /// Sends a signal. It can't hit another process that has taken on the same id: init sends it
    /// only while the command has not been reaped.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that is no signal's; [`Error::SandboxDied`].
    pub fn signal(&mut self, signal: u8, scope: Scope) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(Error::invalid("signal", format!("{signal} is not from 1 to 64")));
        }
        if self.running.exit.is_some() {
            return Ok(());
        }
        let request = JobRequest::Signal { signal, scope };
        let deadline = Deadline::after(REQUEST);
        match wire::send(self.running.messages.as_fd(), &request, &[], deadline) {
            // Its end may be on the channel, which init closed after it.
            Err(Error::SandboxDied) => self.try_wait().map(drop),
            other => other,
        }
    }
}

/// Readable when the command has ended, or its sandbox has died: [`Child::try_wait`] tells then.
/// For `poll(2)` and event loops; reading from it would take the message away.
impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.running.messages.as_fd()
    }
}

macro_rules! stream {
    ($name:ident, $what:literal) => {
        #[doc = $what]
        ///
        /// It converts into an [`OwnedFd`], and so into whatever the standard library or another
        /// makes of one.
        #[derive(Debug)]
        pub struct $name(OwnedFd);

        impl From<$name> for OwnedFd {
            fn from(stream: $name) -> Self {
                stream.0
            }
        }

        impl AsFd for $name {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.0.as_fd()
            }
        }
    };
}

stream!(ChildStdin, "The write end of a command's stdin. Dropping it is the end of the stream.");
stream!(ChildStdout, "The read end of a command's stdout.");
stream!(ChildStderr, "The read end of a command's stderr.");

impl Write for ChildStdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        nix::unistd::write(&self.0, bytes).map_err(io::Error::from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for ChildStdout {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        nix::unistd::read(&self.0, buffer).map_err(io::Error::from)
    }
}

impl Read for ChildStderr {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        nix::unistd::read(&self.0, buffer).map_err(io::Error::from)
    }
}
