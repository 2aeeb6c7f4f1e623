//! One call: a job that does something with a file, under a deadline.
//!
//! The deadline is kept on both sides. Init ends the job when it is over; and whatever a guest does
//! to the job, as stopping it, or to init, the caller waits no longer than that and a moment.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use adl_protocol::{FileTask, Identity, JobStdio, Request, Spawn, StdioSource, Task};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::unistd::pipe2;

use crate::error::{Error, Result, Stage};
use crate::exit::EndReason;
use crate::job::child::builtin;
use crate::job::life::Life;
use crate::job::running::Running;
use crate::job::watch::Watch;
use crate::sys;
use crate::wait::wait_beside_job;
use crate::wait::{Deadline, Maker, Woken};

/// How much later than the job is to end its end may be told.
const TELLING: Duration = Duration::from_millis(30);
/// How much longer a job has that is to clear up when its input ends.
const CLEARING_UP: Duration = Duration::from_secs(1);
/// How much is read at once, in bytes: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// What is to be done, for the words of an error, and the bounds of it.
#[derive(Debug, Clone)]
pub(crate) struct Purpose {
    pub(crate) operation: &'static str,
    /// As it was named.
    pub(crate) path: PathBuf,
    pub(crate) timeout: Duration,
    pub(crate) span: Span,
    /// What is too much to read or to tell, in bytes or names.
    pub(crate) limit: u64,
}

/// What the timeout is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    /// The call, from its beginning to its end.
    Call,
    /// Each time that something is waited for: the job itself has no deadline.
    EachWait,
}

/// Which streams the job has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    None,
    /// It is written to: it is to see an end of that, and clear up, before it is killed.
    Input,
    Output,
    Both,
}

impl Purpose {
    /// When a call that begins now is over.
    pub(crate) fn deadline(&self) -> Deadline {
        match self.span {
            Span::Call => Deadline::after(self.timeout),
            Span::EachWait => Deadline::NEVER,
        }
    }

    pub(crate) fn timed_out(&self) -> Error {
        Error::TimedOut { what: "a file call to end", after: self.timeout }
    }
}

/// Who does it.
pub(crate) struct Actor {
    pub(crate) identity: Identity,
    pub(crate) umask: u32,
}

/// A job under way.
#[derive(Debug)]
pub(crate) struct Call {
    running: Arc<Running>,
    purpose: Purpose,
    pub(crate) deadline: Deadline,
    /// Whether it only tells something: then what is too large is that.
    only_tells: bool,
}

/// The ends of its streams.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) input: Option<OwnedFd>,
    pub(crate) output: Option<OwnedFd>,
}

impl Call {
    /// Starts it, by its deadline. `prepare` is given the input before the job exists: what it
    /// writes must fit into the pipe.
    pub(crate) fn start(
        life: &Life,
        deadline: Deadline,
        actor: Actor,
        purpose: Purpose,
        (task, span): (FileTask<'_>, &tracing::Span),
        streams: Streams,
        prepare: impl FnOnce(OwnedFd) -> Result<Option<OwnedFd>>,
    ) -> Result<(Self, Ends)> {
        let control = &life.control;
        let (channel, channel_theirs) = control.take_channel()?;
        let mut stdio = [StdioSource::Null; 3];
        let [stdin, stdout, _] = &mut stdio;
        let mut descriptors = vec![channel_theirs.as_raw_fd()];
        let (mut theirs_in, mut theirs_out) = (None, None);
        let mut ends = Ends { input: None, output: None };
        if matches!(streams, Streams::Input | Streams::Both) {
            let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::io("pipe"))?;
            ends.input = prepare(write)?;
            *stdin = StdioSource::Descriptor;
            descriptors.push(theirs_in.insert(read).as_raw_fd());
        }
        if matches!(streams, Streams::Output | Streams::Both) {
            let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::io("pipe"))?;
            ends.output = Some(read);
            *stdout = StdioSource::Descriptor;
            descriptors.push(theirs_out.insert(write).as_raw_fd());
        }
        // For init, a little later than for whoever closes its input then.
        let clearing_up = if theirs_in.is_some() { CLEARING_UP } else { Duration::ZERO };
        let timeout = deadline.left().map(|left| left.saturating_add(clearing_up));
        let join_files = control.join_files_of_builtins()?;
        descriptors.extend(join_files.descriptors());
        let spawn = Spawn {
            stdio: JobStdio::Streams(stdio),
            cgroups: join_files.count(),
            timeout_us: timeout.and_then(|timeout| u64::try_from(timeout.as_micros()).ok()),
            umask: actor.umask,
            ..builtin(Task::File(task), actor.identity)
        };
        let running = Running::new(purpose.path.clone(), channel, control.init(), None);
        control.add_waited_for(running.messages());
        control.request_by(deadline.later(TELLING), &Request::Spawn(spawn), &descriptors)?;
        running.watch(Watch::file(span.clone()));
        control.prepare_next();
        let only_tells = streams == Streams::Output;
        let running = Arc::new(running);
        Ok((Self { running, purpose, deadline, only_tells }, ends))
    }

    /// Takes down that it has written something: a process of it was there.
    pub(crate) fn mark_started(&self) {
        self.running.mark_started();
    }

    /// Refuses a fork of the process that had it started.
    pub(crate) fn check_own(&self) -> Result<()> {
        self.running.check_own()
    }

    /// Waits until it has ended, and says whether it has done what it was to do.
    pub(crate) fn finish(&self) -> Result<()> {
        self.finish_by(self.wait())
    }

    /// Waits by the deadline of a wait that has begun before.
    pub(crate) fn finish_by(&self, deadline: Deadline) -> Result<()> {
        let status = match self.running.wait_until(deadline.later(TELLING)) {
            Ok(Some(status)) => status,
            Ok(None) => return Err(self.give_up()),
            Err(Error::Start { stage, source, .. }) => return Err(self.failed(stage, source)),
            Err(error) => return Err(error),
        };
        match status.reason() {
            EndReason::Exited if status.success() => Ok(()),
            EndReason::SandboxDied => Err(Error::SandboxDied),
            EndReason::TimedOut => Err(self.timed_out()),
            // Something inside has killed it.
            _ => Err(self.error(io::Error::other(status.to_string()))),
        }
    }

    fn failed(&self, stage: Stage, source: io::Error) -> Error {
        match (stage, source.raw_os_error()) {
            (Stage::Kind, _) => Error::NotRegular { path: self.purpose.path.clone() },
            (Stage::Copy, Some(libc::EFBIG)) if self.only_tells => self.too_large(),
            _ => self.error(source),
        }
    }

    /// An error of what it was to do.
    pub(crate) fn error(&self, source: io::Error) -> Error {
        self.error_at(Path::new(""), source)
    }

    /// Makes the error of something below the path.
    pub(crate) fn error_at(&self, below: &Path, source: io::Error) -> Error {
        let path = &self.purpose.path;
        let path = if below.as_os_str().is_empty() { path.clone() } else { path.join(below) };
        Error::File { operation: self.purpose.operation, path, source }
    }

    pub(crate) fn too_large(&self) -> Error {
        Error::TooLarge {
            what: "what is to be read, in bytes or names,",
            limit: self.purpose.limit,
        }
    }

    pub(crate) fn timed_out(&self) -> Error {
        self.purpose.timed_out()
    }

    /// How long something may be waited for from now on.
    pub(crate) fn wait(&self) -> Deadline {
        match self.purpose.span {
            Span::Call => self.deadline,
            Span::EachWait => Deadline::after(self.purpose.timeout),
        }
    }

    /// Ends it, and does not wait for that.
    pub(crate) fn give_up(&self) -> Error {
        // Whether init reads that or not, the caller has waited for long enough.
        let _ = self.running.end(EndReason::TimedOut);
        let late = self.timed_out();
        self.running.tell_error(&late);
        late
    }

    /// What it tells, at most so many bytes, if it does what it was to do.
    pub(crate) fn answer(&self, ends: Ends, most: u64) -> Result<Vec<u8>> {
        let told = self.read(ends, most)?;
        self.finish()?;
        Ok(told)
    }

    /// [`Self::finish`], for a job that tells with what it has failed, below its path.
    pub(crate) fn finish_telling_where(&self, ends: Ends, most: u64) -> Result<()> {
        let told = OsString::from_vec(self.read(ends, most)?);
        match self.finish() {
            Err(Error::File { source, .. }) => Err(self.error_at(Path::new(&told), source)),
            other => other,
        }
    }

    /// Reads to the end what it tells.
    fn read(&self, ends: Ends, most: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let Some(output) = ends.output else { return Ok(bytes) };
        sys::set_blocking(&output, false).map_err(Error::io("fcntl"))?;
        let mut chunk = [0; CHUNK];
        loop {
            match nix::unistd::read(&output, &mut chunk) {
                Ok(0) => break,
                Ok(count) => {
                    bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
                    if bytes.len() as u64 > most {
                        let _ = self.running.end(EndReason::OutputLimit);
                        let what = "an answer of the sandbox, in bytes,";
                        let error = Error::TooLarge { what, limit: most };
                        self.running.tell_error(&error);
                        return Err(error);
                    }
                    if self.deadline.passed() {
                        return Err(self.give_up());
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if self.wait_for_output(output.as_fd(), self.deadline)? => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(Error::io("read from a pipe")(errno)),
            }
        }
        Ok(bytes)
    }

    /// Waits until there is something to read of what it writes; `false` if it has done what it
    /// was to do, and nothing more comes.
    pub(crate) fn wait_for_output(&self, pipe: BorrowedFd<'_>, deadline: Deadline) -> Result<bool> {
        match wait_beside_job(pipe, PollFlags::POLLIN, &*self.running, deadline)? {
            Woken::Ready => Ok(true),
            // Whoever has the other end now, it is not the job.
            Woken::InitDied => self.finish_by(deadline).map(|()| false),
            Woken::Late => Err(self.give_up()),
        }
    }

    /// The job, for who waits for something of it.
    pub(crate) fn job(&self) -> Arc<dyn Maker> {
        Arc::<Running>::clone(&self.running)
    }

    /// Lets it clear up, now that its input has ended, and sees to it that it does. Waits for
    /// nothing.
    pub(crate) fn let_clear_up(&self) {
        // As in `abandon`.
        let _ = self.running.end_after(CLEARING_UP);
    }

    /// Ends it, as one of which nothing more is wanted.
    pub(crate) fn abandon(&self) {
        // There is no one to tell that the sandbox is beyond being told.
        let _ = self.running.end(EndReason::Signaled);
    }
}
