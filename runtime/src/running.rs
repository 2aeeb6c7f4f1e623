//! A job from the host's side: its channel, what was said on it, and how it is steered.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use adl_protocol::Scope;
use adl_protocol::{JobEvent, JobRequest, Stage};
use nix::poll::{PollFd, PollFlags};

use crate::cgroup::{self, Seat};
use crate::error::{Error, Result};
use crate::exit::{EndReason, ExitStatus};
use crate::stats::Stats;
use crate::sys::socket::Socket;
use crate::wire::{self, Deadline, Messages};

/// How long init may take to read a request on a job's channel.
const REQUEST: Duration = Duration::from_secs(10);
/// How much longer than its timeout a job may take to end before its caller is told that it does
/// not: more than init waits for what can't be killed.
const OVERDUE: Duration = Duration::from_secs(15);

/// A job that init was asked to start. Any number of threads may wait for it: after its end was
/// told, the channel stays readable for all of them.
#[derive(Debug)]
pub(crate) struct Running {
    program: PathBuf,
    messages: Messages,
    started: Instant,
    /// When the caller is told that it does not end.
    overdue: Deadline,
    /// Its cgroups, if it has any.
    seat: Option<Arc<Seat>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    end: Option<End>,
    /// Why it was killed by the host, if it was.
    asked: Option<EndReason>,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Exit(ExitStatus),
    NotStarted { stage: Stage, errno: i32 },
}

impl Running {
    pub(crate) fn new(program: PathBuf, channel: Socket, timeout: Option<Duration>) -> Self {
        let overdue = timeout
            .and_then(|timeout| timeout.checked_add(OVERDUE))
            .map_or(Deadline::NEVER, Deadline::after);
        Self {
            program,
            messages: Messages::new(channel),
            started: Instant::now(),
            overdue,
            seat: None,
            state: Mutex::default(),
        }
    }

    /// The same, of one that has cgroups of its own.
    pub(crate) fn with_seat(self, seat: Option<Arc<Seat>>) -> Self {
        Self { seat, ..self }
    }

    /// What it has used.
    fn stats(&self) -> Result<Stats> {
        self.seat.as_ref().map_or_else(|| Err(cgroup::none()), |seat| seat.stats())
    }

    /// To be told when init has been asked to start it.
    pub(crate) fn is_under_way(&self) {
        if let Some(seat) = &self.seat {
            seat.expect(true);
        }
    }

    /// To be told when it runs its program.
    pub(crate) fn runs(&self) {
        if let Some(seat) = &self.seat {
            seat.expect(false);
        }
    }

    fn ran_out_of_memory(&self) -> bool {
        self.seat.as_ref().is_some_and(|seat| seat.ran_out_of_memory())
    }

    /// What is said of its end is known: nothing that comes later is part of that.
    fn settle(&self) {
        if let Some(seat) = &self.seat {
            seat.settle();
        }
    }

    pub(crate) fn program(&self) -> &PathBuf {
        &self.program
    }

    pub(crate) fn messages(&self) -> &Messages {
        &self.messages
    }

    /// Looks whether its end was told.
    pub(crate) fn try_exit(&self) -> Result<Option<ExitStatus>> {
        let mut state = self.lock();
        if state.end.is_none() {
            match self.messages.try_next() {
                Ok(Some(body)) => self.note(&mut state, &body)?,
                Ok(None) => {}
                Err(Error::SandboxDied) => self.note_death(&mut state),
                Err(error) => return Err(error),
            }
        }
        self.exit_in(&state)
    }

    /// Waits for its end; `None` if the deadline comes first.
    pub(crate) fn wait_until(&self, deadline: Deadline) -> Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.try_exit()? {
                return Ok(Some(status));
            }
            let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            let until = deadline.min(self.overdue);
            if !wire::wait_ready(&mut fds, until)? {
                if deadline.passed() {
                    return Ok(None);
                }
                return Err(self.is_overdue());
            }
        }
    }

    /// Waits for its end.
    pub(crate) fn wait(&self) -> Result<ExitStatus> {
        self.wait_until(Deadline::NEVER)?.ok_or_else(|| self.is_overdue())
    }

    /// The same with one system call less, for one who alone knows of it.
    pub(crate) fn wait_alone(&self) -> Result<ExitStatus> {
        if !self.overdue.is_never() {
            return self.wait();
        }
        let mut state = self.lock();
        if state.end.is_none() {
            match self.messages.next_blocking() {
                Ok(body) => self.note(&mut state, &body)?,
                Err(Error::SandboxDied) => self.note_death(&mut state),
                Err(error) => return Err(error),
            }
        }
        self.exit_in(&state)?.ok_or(Error::Protocol { why: "a message that is no end" })
    }

    /// When the caller is told that it does not end; the error is [`Self::is_overdue`].
    pub(crate) fn overdue(&self) -> Deadline {
        self.overdue
    }

    pub(crate) fn is_overdue(&self) -> Error {
        let after = self.started.elapsed();
        Error::TimedOut { what: "a command that was killed to end", after }
    }

    fn note(&self, state: &mut State, body: &[u8]) -> Result<()> {
        let event = wire::decode(body)?;
        self.settle();
        state.end = Some(match event {
            JobEvent::Exited(exit) => {
                End::Exit(ExitStatus::new(&exit, state.asked, self.ran_out_of_memory()))
            }
            JobEvent::Failed { stage, errno } => End::NotStarted { stage, errno },
            JobEvent::Started { .. } | JobEvent::Terminal => {
                return Err(Error::Protocol { why: "a program that starts twice" });
            }
        });
        Ok(())
    }

    /// The channel has ended without the job's end.
    fn note_death(&self, state: &mut State) {
        self.settle();
        state.end = Some(End::Exit(ExitStatus::sandbox_died(self.started.elapsed())));
    }

    fn exit_in(&self, state: &State) -> Result<Option<ExitStatus>> {
        match state.end {
            None => Ok(None),
            Some(End::Exit(status)) => Ok(Some(status)),
            Some(End::NotStarted { stage, errno }) => Err(self.start_error(stage, errno)),
        }
    }

    pub(crate) fn start_error(&self, stage: Stage, errno: i32) -> Error {
        Error::Start { program: self.program.clone(), stage, source: wire::error_of(errno) }
    }

    /// Sends a signal. What has ended is no error.
    pub(crate) fn signal(&self, signal: u8, scope: Scope) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(Error::invalid("signal", format!("{signal} is not from 1 to 64")));
        }
        // The rest of its tree may have outlived it.
        let mut state = self.lock();
        if scope != Scope::Tree && state.end.is_some() {
            return Ok(());
        }
        // Where memory has run out, it is killed anyway.
        if signal == 9 && state.asked.is_none() && !self.ran_out_of_memory() {
            state.asked = Some(EndReason::Signaled);
        }
        drop(state);
        self.request(&JobRequest::Signal { signal, scope })
    }

    /// Has all of it killed, if it goes on for so long from now on. Nobody need wait for that.
    pub(crate) fn end_after(&self, delay: Duration) -> Result<()> {
        let delay_us = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.request(&JobRequest::EndAfter { delay_us })
    }

    fn request(&self, request: &JobRequest) -> Result<()> {
        match wire::send(self.as_fd(), request, &[], Deadline::after(REQUEST)) {
            // Init closed the channel after the end, or has died itself: then nothing is left.
            Err(Error::SandboxDied) => Ok(()),
            other => other,
        }
    }

    /// Kills all of it, for a reason that is told as that of its end.
    pub(crate) fn end(&self, reason: EndReason) -> Result<()> {
        // Whatever else it may have said, it is to end.
        if matches!(self.try_exit(), Ok(Some(_)) | Err(Error::Start { .. })) {
            return Ok(());
        }
        self.lock().asked.get_or_insert(reason);
        self.signal(9, Scope::Tree)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.messages.as_fd()
    }
}

/// A command that runs, to be waited for and signalled from any thread; made by
/// [`Child::handle`](crate::Child::handle).
///
/// Copies are of the same command. What one of them does to it wakes up all that wait.
#[derive(Debug, Clone)]
pub struct Handle(pub(crate) Arc<Running>);

impl Handle {
    /// Waits until it has ended.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if it has a timeout, and does not end although it was killed.
    pub fn wait(&self) -> Result<ExitStatus> {
        self.0.wait()
    }

    /// Waits until it has ended, but no longer than `timeout`; `None` if it goes on then.
    ///
    /// # Errors
    /// As [`Handle::wait`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<ExitStatus>> {
        self.0.wait_until(Deadline::after(timeout))
    }

    /// What it has used by now, with all that it has started: of its end, once it has ended.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where its sandbox has no cgroups; see [`crate::Limits`].
    pub fn stats(&self) -> Result<Stats> {
        self.0.stats()
    }

    /// Looks whether it has ended.
    ///
    /// # Errors
    /// None that a command causes.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        self.0.try_exit()
    }

    /// Sends SIGKILL to all that it ever started, and itself. After its end, to what it has left
    /// behind.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if init does not read. A command that has ended is no error.
    pub fn kill(&self) -> Result<()> {
        self.signal(9, Scope::Tree)
    }

    /// Sends a signal. It can't hit another process that has taken on the same id: init sends it
    /// only while the command has not been reaped.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that is no signal's; else as [`Handle::kill`].
    pub fn signal(&self, signal: u8, scope: Scope) -> Result<()> {
        self.0.signal(signal, scope)
    }
}

/// Readable when the command has ended, or its sandbox has died, and from then on:
/// [`Handle::try_wait`] tells. For `poll(2)` and event loops; reading from it would take the
/// message away.
impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
