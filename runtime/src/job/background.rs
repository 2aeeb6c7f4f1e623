//! Commands that run in the background, and what can be done with them from anywhere.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::job::child::{Collection, GuestPid, Output};
use crate::job::reader::{self, Collecting, Reader};
use crate::job::running::{Handle, Scope};
use crate::sys::lock::lock;
use crate::sys::unique::unique_number;
use crate::wait::Deadline;
use crate::wire::control::Control;

/// A command in the background, made by [`Command::background`](crate::Command::background).
///
/// Copies are of the same command. It runs on when all are dropped, and stays in
/// [`Sandbox::jobs`](crate::Sandbox::jobs) until someone has waited for its end.
#[derive(Debug, Clone)]
pub struct Job(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id: JobId,
    pid: GuestPid,
    handle: Handle,
    collecting: Arc<Collecting>,
    control: Arc<Control>,
    /// Where it is until someone has waited for its end.
    jobs: Weak<Jobs>,
}

/// The jobs in the background of one life of a sandbox, until someone has waited for their end.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    all: Mutex<Vec<Job>>,
    reader: Arc<Reader>,
}

impl Jobs {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<Job>> {
        lock(&self.all)
    }
}

/// The number of a job, that no other job of the process has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

impl JobId {
    /// The number, to be kept elsewhere; [`Sandbox::job`](crate::Sandbox::job) finds the job by it.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place in the output of a command in the background; the default is its beginning. See
/// [`Job::output_since`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutputCursor([u64; 2]);

/// What a command in the background has written so far, or since an [`OutputCursor`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartialOutput {
    /// To stdout, as far as it is kept.
    pub stdout: Vec<u8>,
    /// To stderr, likewise.
    pub stderr: Vec<u8>,
    /// The number of bytes left out in the middle of `stdout`.
    pub stdout_dropped: u64,
    /// The number of bytes left out in the middle of `stderr`.
    pub stderr_dropped: u64,
}

impl Job {
    pub(crate) fn start(
        jobs: &Arc<Jobs>,
        collection: Collection,
        handle: Handle,
        pid: GuestPid,
    ) -> Result<Self> {
        let collecting = Arc::new(Collecting::new(collection.caps)?);
        let job = Self(Arc::new(Shared {
            id: JobId(unique_number()),
            pid,
            handle,
            collecting: Arc::clone(&collecting),
            control: Arc::clone(&collection.control),
            jobs: Arc::downgrade(jobs),
        }));
        let started = if collection.is_relayed() {
            // It may have to wait for what is the caller's: beside no other.
            reader::read_alone(collecting, collection)
        } else {
            jobs.reader.read(collecting, collection)
        };
        if let Err(error) = started {
            job.kill()?;
            return Err(error);
        }
        jobs.lock().push(job.clone());
        Ok(job)
    }

    /// Its number.
    pub fn id(&self) -> JobId {
        self.0.id
    }

    /// Its process id inside the sandbox.
    pub fn pid(&self) -> GuestPid {
        self.0.pid
    }

    /// Its program.
    pub fn program(&self) -> &Path {
        self.0.handle.0.program()
    }

    /// What any thread can wait for it with, signal and end it, and see what it has used.
    pub fn handle(&self) -> Handle {
        self.0.handle.clone()
    }

    /// What it has written so far, a copy of all that is kept; in a fork of the process that started
    /// it, nothing.
    pub fn partial_output(&self) -> PartialOutput {
        self.output_since(OutputCursor::default()).0
    }

    /// What it has written since a cursor, and the cursor of where that ends: from one to the next,
    /// all that it writes comes once. What was dropped is counted from the cursor on. In a fork of
    /// the process that started it, nothing.
    ///
    /// ```no_run
    /// # use adl_runtime::{Config, OutputCursor, Sandbox};
    /// use std::time::Duration;
    ///
    /// let sandbox = Sandbox::create(Config::default())?;
    /// let job = sandbox.shell("make 2>&1").background()?;
    /// let mut cursor = OutputCursor::default();
    /// while job.wait_output(cursor, Duration::MAX)? {
    ///     let (output, next) = job.output_since(cursor);
    ///     print!("{}", String::from_utf8_lossy(&output.stdout));
    ///     cursor = next;
    /// }
    /// # Ok::<(), adl_runtime::Error>(())
    /// ```
    pub fn output_since(&self, cursor: OutputCursor) -> (PartialOutput, OutputCursor) {
        if !self.0.control.is_own() {
            return (PartialOutput::default(), cursor);
        }
        let [stdout, stderr] = self.0.collecting.captures.since(cursor.0);
        let next = OutputCursor([stdout.next, stderr.next]);
        let output = PartialOutput {
            stdout: stdout.bytes,
            stderr: stderr.bytes,
            stdout_dropped: stdout.dropped,
            stderr_dropped: stderr.dropped,
        };
        (output, next)
    }

    /// Waits until it has written more than up to a cursor, or has ended, but no longer than
    /// `timeout`. Returns whether there is more.
    ///
    /// # Errors
    /// [`Error::ForkedProcess`] in a fork of the process that started it.
    pub fn wait_output(&self, cursor: OutputCursor, timeout: Duration) -> Result<bool> {
        self.0.control.check_own()?;
        Ok(self.0.collecting.captures.wait_since(cursor.0, Deadline::after(timeout)))
    }

    /// Looks whether it has ended, and how.
    ///
    /// # Errors
    /// [`Error::Undelivered`], which has the status, if a stream of the caller's did not take what it
    /// wrote; [`Error::Io`] if what it wrote could not be read.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        self.0.control.check_own()?;
        Ok(self.0.collecting.outcome.look()?.map(|(status, _)| status))
    }

    /// Waits until it has ended. From then on it is not in
    /// [`Sandbox::jobs`](crate::Sandbox::jobs) any more.
    ///
    /// # Errors
    /// [`Error::Undelivered`], which has the status, if a stream of the caller's did not take what it
    /// wrote; [`Error::Io`] if what it wrote could not be read.
    pub fn wait(&self) -> Result<Output> {
        let waited = self.wait_until(Deadline::NEVER)?;
        waited.ok_or(Error::TimedOut { what: "a job to end", after: Duration::MAX })
    }

    /// Waits until it has ended, but no longer than `timeout`; `None` if it goes on then.
    ///
    /// # Errors
    /// As [`Job::wait`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<Output>> {
        self.wait_until(Deadline::after(timeout))
    }

    fn wait_until(&self, deadline: Deadline) -> Result<Option<Output>> {
        self.0.control.check_own()?;
        let waited = self.0.collecting.outcome.wait(deadline);
        if !matches!(waited, Ok(None))
            && let Some(jobs) = self.0.jobs.upgrade()
        {
            jobs.lock().retain(|job| job.id() != self.id());
        }
        let Some((status, stdio_open)) = waited? else { return Ok(None) };
        let PartialOutput { stdout, stderr, stdout_dropped, stderr_dropped } =
            self.partial_output();
        Ok(Some(Output { status, stdout, stderr, stdout_dropped, stderr_dropped, stdio_open }))
    }

    /// Sends SIGKILL to all that it ever started, and itself; see [`Handle::kill`].
    ///
    /// # Errors
    /// As [`Handle::kill`].
    pub fn kill(&self) -> Result<()> {
        self.0.handle.kill()
    }

    /// Sends a signal; see [`Handle::signal`].
    ///
    /// # Errors
    /// As [`Handle::signal`].
    pub fn signal(&self, signal: u8, scope: Scope) -> Result<()> {
        self.0.handle.signal(signal, scope)
    }
}

/// Readable when it has ended and all that it wrote is there, and from then on. For `poll(2)` and
/// event loops; not to be read from.
impl AsFd for Job {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.collecting.outcome.as_fd()
    }
}
