//! A command that was started: its handle `Child`, its `Output`, and drains of its pipes.

use std::fmt;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use adl_protocol::{
    Identity, JobEvent, JobStdio, Leftovers, Request, Spawn, StdioSource, Strings, Task,
};
use nix::poll::PollFlags;

use crate::error::{Error, Result};
use crate::exit::{EndReason, ExitStatus};
use crate::job::captures::{Caps, Captures, OutputStream, TakeOutput};
use crate::job::collect::{Bounds, Collector, Ended, Written};
use crate::job::outcome::{Outcome, relay, whatever_becomes_of};
use crate::job::relay::Input;
use crate::job::running::{Handle, Running, Scope};
use crate::job::terminal::Terminal;
use crate::wait::wait_beside_job;
use crate::wait::{Deadline, Woken};
use crate::wire::control::Control;
use crate::{sys, wire};

/// How long a program may take from the request to its `execve`, or its failure.
const START: Duration = Duration::from_secs(10);
/// How long init may take to read that what others write is to be dropped.
const DRAIN: Duration = Duration::from_secs(1);

/// What a command that has ended left.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout, if that was collected, or to its terminal: as much as
    /// [`Command::keep_output`](crate::Command::keep_output) says.
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
}

impl Output {
    pub(crate) fn new(status: ExitStatus, captures: Captures, stdio_open: bool) -> Self {
        let [(stdout, stdout_dropped), (stderr, stderr_dropped)] = captures.finish();
        Self { status, stdout, stderr, stdout_dropped, stderr_dropped, stdio_open }
    }
}

/// A started command whose output is to be collected.
#[derive(Debug)]
pub(crate) struct Collection {
    pub(crate) collector: Collector,
    pub(crate) control: Arc<Control>,
    /// Who it runs as.
    pub(crate) identity: Identity,
    pub(crate) caps: Caps,
}

impl Collection {
    /// Collects until the command has ended.
    pub(crate) fn output(self) -> Result<Output> {
        let captures = Captures::new(self.caps);
        let (status, stdio_open) = self.run(&mut &captures)?;
        Ok(Output::new(status, captures, stdio_open))
    }

    /// Passes on what the command writes until it has ended. Where `each` panics, it is ended.
    pub(crate) fn pass_on(
        self,
        mut each: impl FnMut(OutputStream, &[u8]) -> ControlFlow<()>,
    ) -> Result<ExitStatus> {
        // While its pipes are still there: without them it could end by itself, and what it has
        // started would go on.
        let mut panicked = None;
        let mut guarded = |stream: OutputStream, bytes: &[u8]| {
            catch_unwind(AssertUnwindSafe(|| each(stream, bytes))).unwrap_or_else(|panic| {
                panicked = Some(panic);
                ControlFlow::Break(())
            })
        };
        let ended = self.run(&mut guarded);
        match panicked {
            Some(panic) => resume_unwind(panic),
            None => Ok(ended?.0),
        }
    }

    /// Gives what the command writes to `to`, which may be what others look at meanwhile. Returns
    /// how it ended, and whether another process still has a stream open: that goes on, and what it
    /// writes is dropped.
    pub(crate) fn run(self, to: &mut dyn TakeOutput) -> Result<(ExitStatus, bool)> {
        let Self { collector, control, identity, .. } = self;
        let is_terminal = collector.is_terminal;
        let ended = collector.run(to)?;
        Ok(leave(&control, &identity, ended, is_terminal))
    }

    /// Takes what there is after the end, like [`Collection::run`].
    pub(crate) fn finish(
        self,
        status: ExitStatus,
        to: &mut dyn TakeOutput,
    ) -> Result<(ExitStatus, bool)> {
        let Self { collector, control, identity, .. } = self;
        let is_terminal = collector.is_terminal;
        let ended = collector.finish(status, to)?;
        Ok(leave(&control, &identity, ended, is_terminal))
    }
}

/// Leaves what a command that has ended has left: whether another process has a stream open.
fn leave(
    control: &Control,
    identity: &Identity,
    (status, open): Ended,
    is_terminal: bool,
) -> (ExitStatus, bool) {
    let mut stdio_open = false;
    for pipe in open.into_iter().flatten() {
        stdio_open = true;
        if !is_terminal && status.reason() != EndReason::SandboxDied {
            // What it has written until now is worth more than what may come.
            let _ = drain(control, identity, &pipe);
        }
    }
    (status, stdio_open)
}

impl Collection {
    /// Whether anything goes to or comes from streams of the caller's.
    pub(crate) fn is_relayed(&self) -> bool {
        let Collector { input, sinks, .. } = &self.collector;
        input.as_ref().is_some_and(Input::is_relayed) || sinks.iter().any(Option::is_some)
    }

    /// Takes out what goes between the command and streams of the caller's.
    fn take_relayed(&mut self) -> Option<Self> {
        if !self.is_relayed() {
            return None;
        }
        let collector = &mut self.collector;
        let collector = Collector {
            running: Arc::clone(&collector.running),
            input: collector.input.take(),
            pipes: std::mem::take(&mut collector.pipes),
            sinks: std::mem::take(&mut collector.sinks),
            is_stopped: false,
            failed: None,
            written: Written::default(),
            bounds: Bounds::default(),
            is_terminal: false,
        };
        let (control, identity) = (Arc::clone(&self.control), self.identity.clone());
        Some(Self { collector, control, identity, caps: self.caps })
    }
}

/// Has a process inside read from a pipe for as long as anyone can write to it, so that whoever
/// does neither stops nor dies.
fn drain(control: &Control, identity: &Identity, pipe: &OwnedFd) -> Result<()> {
    sys::set_blocking(pipe, true).map_err(Error::io("fcntl"))?;
    let (_ours, theirs) = control.take_channel()?;
    let stdio = JobStdio::Streams([StdioSource::Descriptor, StdioSource::Null, StdioSource::Null]);
    let mut descriptors = vec![theirs.as_raw_fd(), pipe.as_raw_fd()];
    let join_files = control.join_files_of_builtins()?;
    descriptors.extend(join_files.descriptors());
    let spawn =
        Spawn { stdio, cgroups: join_files.count(), ..builtin(Task::Drain, identity.clone()) };
    match control.request_by(Deadline::after(DRAIN), &Request::Spawn(spawn), &descriptors) {
        // Then there is no one who could write.
        Err(Error::SandboxDied) => Ok(()),
        sent => sent,
    }
}

/// A job that is no program, as far as it is like the others.
pub(crate) fn builtin(task: Task<'_>, identity: Identity) -> Spawn<'_> {
    Spawn {
        task,
        directory: Strings::ROOT,
        identity,
        umask: 0o022,
        rlimits: Vec::new(),
        nice: 0,
        oom_score_adj: 0,
        stdio: JobStdio::Streams([StdioSource::Null; 3]),
        cgroups: 0,
        cgroup_namespace: false,
        start_notice: false,
        timeout_us: None,
        cpu_limit: None,
        leftovers: Leftovers::Keep,
    }
}

/// A running command.
///
/// Dropping it does not end the command, unless
/// [`Command::kill_on_drop`](crate::Command::kill_on_drop) says so: nobody will learn how it
/// ended, but the sandbox's init reaps it. If a pipe is dropped with it, the command gets SIGPIPE
/// when it writes.
#[derive(Debug)]
pub struct Child {
    /// The write end of its stdin, if that was piped.
    pub stdin: Option<ChildStdin>,
    /// The read end of its stdout, if that was piped.
    pub stdout: Option<ChildStdout>,
    /// The read end of its stderr, if that was piped.
    pub stderr: Option<ChildStderr>,
    /// The host's side of its terminal, if it was given one.
    pub terminal: Option<Terminal>,
    /// Without the pipes above. `None` when it is given away, in the end.
    collection: Option<Collection>,
    handle: Handle,
    pid: GuestPid,
    kill_on_drop: bool,
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
    pub(crate) fn started(
        stdin: Option<OwnedFd>,
        mut collection: Collection,
        notice: OwnedFd,
        kill_on_drop: bool,
    ) -> Result<Self> {
        let running = Arc::clone(&collection.collector.running);
        running.mark_shared();
        let deadline = Deadline::after(START).min(running.overdue());
        let started = (|| {
            // What was said before its end, or that of init, is on the channel.
            let fd = notice.as_fd();
            if let Woken::Late = wait_beside_job(fd, PollFlags::POLLIN, &*running, deadline)? {
                let after = deadline.length();
                return Err(Error::TimedOut { what: "the program to start", after });
            }
            first_events(&running, collection.collector.is_terminal, deadline)
        })();
        let (pid, terminal) = match started {
            Ok(started) => started,
            Err(error) => {
                running.tell_error(&error);
                // It may have started after all: it is no one's. What did not is no error.
                let _ = running.end(EndReason::Signaled);
                return Err(error);
            }
        };
        running.mark_started();
        running.tell_pid(pid.as_raw());
        let [stdout, stderr] = collection.collector.take_piped();
        Ok(Self {
            stdin: stdin.map(ChildStdin),
            stdout: stdout.map(ChildStdout),
            stderr: stderr.map(ChildStderr),
            terminal,
            collection: Some(collection),
            handle: Handle(running),
            pid,
            kill_on_drop,
        })
    }

    /// Its process id inside the sandbox.
    pub fn id(&self) -> GuestPid {
        self.pid
    }

    /// What any thread can wait for it with, signal and end it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until it has ended, or its sandbox has, after closing its stdin; see [`Handle::wait`].
    ///
    /// # Errors
    /// [`Error::Invalid`] with an output limit or an idle timeout, which only
    /// [`Child::wait_with_output`] keeps; otherwise as [`Handle::wait`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.check_bounds()?;
        drop(self.stdin.take());
        self.handle.wait()
    }

    /// Waits until it has ended, but no longer than `timeout`, after closing its stdin; `None` if
    /// it goes on then.
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        self.check_bounds()?;
        drop(self.stdin.take());
        self.handle.wait_timeout(timeout)
    }

    /// Looks whether it has ended; see [`Handle::try_wait`].
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.check_bounds()?;
        self.handle.try_wait()
    }

    /// Bounds of what it writes are kept by whoever reads that.
    fn check_bounds(&self) -> Result<()> {
        let bounds = self.collection.as_ref().map(|collection| collection.collector.bounds);
        match bounds.and_then(Bounds::name) {
            Some(name) => Err(Error::invalid(name, "only `wait_with_output` keeps it")),
            None => Ok(()),
        }
    }

    /// Closes its stdin, waits until it has ended, and collects what is piped, or what it writes
    /// to its terminal.
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub fn wait_with_output(mut self) -> Result<Output> {
        drop(self.stdin.take());
        let output = self.take_collection()?.output()?;
        self.handle.0.wait_delivered(Deadline::NEVER)?;
        Ok(output)
    }

    /// What is to be collected of it, with the pipes.
    pub(crate) fn take_collection(&mut self) -> Result<Collection> {
        let gone = || Error::invalid("child", "its output was collected before");
        let mut collection = self.collection.take().ok_or_else(gone)?;
        let terminal = self.terminal.take().map(Terminal::into_read).transpose()?;
        let stdout = self.stdout.take().map(OwnedFd::from).or(terminal);
        let piped = [stdout, self.stderr.take().map(OwnedFd::from)];
        for (place, pipe) in collection.collector.pipes.iter_mut().zip(piped) {
            *place = pipe.or(place.take());
        }
        Ok(collection)
    }

    /// Has a thread move what goes between the command and streams of the caller's, if any does.
    pub(crate) fn start_relay(&mut self) -> Result<()> {
        let Some(relayed) = self.collection.as_mut().and_then(Collection::take_relayed) else {
            return Ok(());
        };
        let delivery = Arc::new(Outcome::new()?);
        self.handle.0.deliver_by(Arc::clone(&delivery));
        let captures = Captures::new(relayed.caps);
        let started = relay(move || {
            delivery.end(whatever_becomes_of(|| relayed.run(&mut &captures)));
        });
        if started.is_err() {
            let _ = self.handle.kill();
        }
        started
    }

    /// Sends SIGKILL to all that it ever started, and itself; see [`Handle::kill`].
    ///
    /// # Errors
    /// As [`Handle::kill`].
    pub fn kill(&mut self) -> Result<()> {
        self.handle.kill()
    }

    /// Sends a signal; see [`Handle::signal`].
    ///
    /// # Errors
    /// As [`Handle::signal`].
    pub fn signal(&mut self, signal: u8, scope: Scope) -> Result<()> {
        self.handle.signal(signal, scope)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // What has ended has left behind what may go on.
        if self.kill_on_drop && !matches!(self.handle.try_wait(), Ok(Some(_))) {
            // There is no one to tell that the sandbox is beyond being told.
            let _ = self.handle.kill();
        }
    }
}

/// What comes before a program runs, or instead: a failure was reported before the notice was
/// closed, and is on the channel by now. The pid comes from init, which may be a moment behind its
/// child, and the terminal from the child.
fn first_events(
    running: &Running,
    has_terminal: bool,
    deadline: Deadline,
) -> Result<(GuestPid, Option<Terminal>)> {
    let (mut pid, mut terminal) = (None, None);
    loop {
        match pid {
            Some(pid) if !has_terminal || terminal.is_some() => {
                // Both may have come: that it was made, and that it then failed.
                running.try_exit()?;
                return Ok((pid, terminal));
            }
            _ => {}
        }
        let body =
            running.messages().next("the program to start", running.init().as_fd(), deadline)?;
        match wire::decode(&body)? {
            // What is no process's would mean many to kill(2).
            JobEvent::Started { pid: number } if pid.is_none() && number > 0 => {
                pid = Some(GuestPid(number));
            }
            JobEvent::Terminal if has_terminal && terminal.is_none() => {
                terminal = Some(Terminal::take(running.messages())?);
            }
            JobEvent::Failed { stage, errno } => return Err(running.start_error(stage, errno)),
            JobEvent::Started { .. }
            | JobEvent::Terminal
            | JobEvent::Socket
            | JobEvent::Exited(_) => {
                return Err(Error::Protocol { why: "a start out of order" });
            }
        }
    }
}

/// Readable when the command has ended, or its sandbox was reset, deleted or made into a snapshot,
/// and from then on: [`Child::try_wait`] tells. For `poll(2)` and event loops, which may have to
/// watch more: see [`Handle`].
impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
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
