//! A job from the host's side: its channel, what was said on it, and how it is steered.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use adl_protocol::{JobEvent, JobRequest, Stage};
use nix::poll::PollFlags;

use crate::cgroup::stats::Stats;
use crate::cgroup::{self, JobCgroup};
use crate::error::error_of;
use crate::error::{Error, Result};
use crate::exit::{EndReason, ExitStatus};
use crate::job::outcome::Outcome;
use crate::job::watch::{End, Watch};
use crate::mirror::mirror;
use crate::sys::owner::Owner;
use crate::sys::socket::Socket;
use crate::wait::wait_beside_init;
use crate::wait::{Deadline, Maker, Woken};
use crate::wire::control::REQUEST;
use crate::wire::{self, Messages};

/// How much later than a job is to end its caller is told that it does not, where init does not say
/// so: by then, init should have ended all that can be, and says at once what can't.
pub(crate) const OVERDUE: Duration = Duration::from_secs(1);

mirror! {
/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The process that was started, alone.
    Process,
    /// Its process group.
    Group,
    /// All that it ever started, whatever sessions and groups they have moved to. SIGKILL leaves
    /// none of them. Any other signal is sent once to each process of the tree that exists shortly
    /// after the call.
    Tree,
}
}

/// A job that init was asked to start. Any number of threads may wait for it: after its end was
/// told, the channel stays readable for all of them.
#[derive(Debug)]
pub(crate) struct Running {
    program: PathBuf,
    /// Where it starts.
    directory: Option<Arc<Path>>,
    messages: Arc<Messages>,
    /// Readable when the sandbox's init has ended. The channel may not say so: its other end is
    /// what init makes of it.
    init: Arc<OwnedFd>,
    started: Instant,
    /// Its cgroups, if it has any.
    job_cgroup: Option<Arc<JobCgroup>>,
    state: Mutex<State>,
    /// Of the thread that moves what goes through the caller's own streams, if anything does.
    delivery: OnceLock<Arc<Outcome>>,
    owner: Owner,
}

#[derive(Debug)]
struct State {
    end: Option<End>,
    /// Why it was killed by the host, if it was.
    asked: Option<EndReason>,
    /// The signal that was sent last.
    sent: Option<u8>,
    /// When the caller is told that it does not end, if it is to.
    overdue: Deadline,
    /// Whether several may wait for it, each of whom is to be woken.
    is_shared: bool,
    /// Until its end was told, once init was asked to start it.
    watch: Option<Arc<Watch>>,
    /// Whether who reads what it writes has the last word on why it has ended.
    is_collected: bool,
}

impl Running {
    pub(crate) fn new(
        program: PathBuf,
        channel: Socket,
        init: &Arc<OwnedFd>,
        timeout: Option<Duration>,
    ) -> Self {
        let overdue = timeout
            .and_then(|timeout| timeout.checked_add(OVERDUE))
            .map_or(Deadline::NEVER, Deadline::after);
        Self {
            program,
            directory: None,
            messages: Arc::new(Messages::new(channel)),
            init: Arc::clone(init),
            started: Instant::now(),
            job_cgroup: None,
            state: Mutex::new(State {
                end: None,
                asked: None,
                sent: None,
                overdue,
                is_shared: false,
                watch: None,
                is_collected: false,
            }),
            delivery: OnceLock::new(),
            owner: Owner::this_process(),
        }
    }

    /// Has an error name where it starts.
    pub(crate) fn in_directory(mut self, directory: Arc<Path>) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Gives it cgroups of its own, if there are any.
    pub(crate) fn with_cgroup(mut self, job_cgroup: Option<Arc<JobCgroup>>) -> Self {
        self.job_cgroup = job_cgroup;
        self
    }

    /// Refuses a fork of the process that had it started: what that would read from its channel, or
    /// say on it, would be missing there.
    pub(crate) fn check_own(&self) -> Result<()> {
        self.owner.check("the command")
    }

    /// What it has used.
    fn stats(&self) -> Result<Stats> {
        self.check_own()?;
        self.job_cgroup
            .as_ref()
            .map_or_else(|| Err(cgroup::none()), |job_cgroup| job_cgroup.stats())
    }

    /// Has someone watch it, now that init has been asked to start it.
    pub(crate) fn watch(&self, watch: Watch) {
        self.lock().watch = Some(Arc::new(watch));
    }

    /// Has its watch say as which process it runs.
    pub(crate) fn tell_pid(&self, pid: i32) {
        let watch = self.lock().watch.clone();
        if let Some(watch) = watch {
            watch.started(pid);
        }
    }

    /// Has its watch say with what it has failed for its caller, who learns of no other end.
    pub(crate) fn tell_error(&self, error: &Error) {
        let watch = self.lock().watch.take();
        if let Some(watch) = watch {
            watch.failed(error);
        }
    }

    /// Takes down that its output is collected: [`Running::collected`] tells its end.
    pub(crate) fn mark_collected(&self) {
        self.lock().is_collected = true;
    }

    /// Tells its end, as it is with all that it has written.
    pub(crate) fn collected(&self, status: ExitStatus) {
        let watch = self.lock().watch.take();
        if let Some(watch) = watch {
            watch.ended(Some(End::Exit(status)));
        }
    }

    /// What its end is, for its caller; and for who watches it, without the lock, since those are
    /// strangers.
    fn conclude(&self, mut state: MutexGuard<'_, State>) -> Result<Option<ExitStatus>> {
        self.wake(&mut state);
        let exit = self.exit_in(&state);
        let end = state.end;
        let is_told = match end {
            None => false,
            Some(End::Exit(_)) => !state.is_collected,
            Some(End::NotStarted { .. }) => true,
        };
        let watch = if is_told { state.watch.take() } else { None };
        drop(state);
        if let Some(watch) = watch {
            watch.ended(end);
        }
        exit
    }

    /// To be told when init has been asked to start it.
    pub(crate) fn mark_requested(&self) {
        if let Some(job_cgroup) = &self.job_cgroup {
            job_cgroup.expect(true);
        }
    }

    /// To be told when it runs its program.
    pub(crate) fn mark_started(&self) {
        self.messages.mark_begun();
        if let Some(job_cgroup) = &self.job_cgroup {
            job_cgroup.expect(false);
        }
    }

    fn ran_out_of_memory(&self) -> bool {
        self.job_cgroup.as_ref().is_some_and(|job_cgroup| job_cgroup.ran_out_of_memory())
    }

    /// What is said of its end is known: nothing that comes later is part of that.
    fn settle(&self) {
        if let Some(job_cgroup) = &self.job_cgroup {
            job_cgroup.settle();
        }
    }

    pub(crate) fn program(&self) -> &PathBuf {
        &self.program
    }

    pub(crate) fn messages(&self) -> &Arc<Messages> {
        &self.messages
    }

    /// Readable when the sandbox's init has ended.
    pub(crate) fn init(&self) -> &Arc<OwnedFd> {
        &self.init
    }

    /// Looks whether its end was told, or is not to be expected any more.
    pub(crate) fn try_exit(&self) -> Result<Option<ExitStatus>> {
        self.wait_until(Deadline::after(Duration::ZERO))
    }

    /// Waits for its end; `None` if the deadline comes first.
    ///
    /// It is told by init; or by the end of init, or of the sandbox; or by the time that it may
    /// take, if it has any.
    pub(crate) fn wait_until(&self, deadline: Deadline) -> Result<Option<ExitStatus>> {
        self.check_own()?;
        loop {
            // Nothing is overdue before the channel was looked at.
            if let Some(status) = self.known()? {
                return Ok(Some(status));
            }
            let until = deadline.min(self.overdue());
            let (channel, init) = (self.as_fd(), self.init.as_fd());
            let woken = wait_beside_init(channel, PollFlags::POLLIN, init, until)?;
            if let Some(status) = self.look(woken)? {
                return Ok(Some(status));
            }
            // Also where what is read is nothing, and there is always more of it.
            if deadline.passed() {
                return Ok(None);
            }
        }
    }

    /// What is known of its end without a look at the channel: a message may have been read with
    /// one before it.
    fn known(&self) -> Result<Option<ExitStatus>> {
        let mut state = self.lock();
        if state.end.is_none()
            && let Some(body) = self.messages.buffered()?
        {
            self.note(&mut state, &body)?;
        }
        self.conclude(state)
    }

    /// Takes in what a wait for it has come to.
    pub(crate) fn look(&self, woken: Woken) -> Result<Option<ExitStatus>> {
        self.check_own()?;
        let mut state = self.lock();
        if state.end.is_none() {
            let next = match woken {
                Woken::Late => self.messages.buffered(),
                Woken::Ready | Woken::InitDied => self.messages.try_next(),
            };
            match next {
                Ok(Some(body)) => self.note(&mut state, &body)?,
                // Whatever init has said is there when it has ended.
                Ok(None) if woken == Woken::InitDied => self.note_death(&mut state),
                Ok(None) => {}
                Err(Error::SandboxDied) => self.note_death(&mut state),
                Err(error) => return Err(error),
            }
        }
        if state.end.is_none() && state.overdue.passed() {
            self.note_overdue(&mut state);
        }
        self.conclude(state)
    }

    /// Wakes up all who wait, where its end is known.
    fn wake(&self, state: &mut State) {
        if state.end.is_some() {
            self.messages.mark_begun();
        }
        if state.end.is_some() && state.is_shared {
            state.is_shared = false;
            self.messages.end();
        }
    }

    /// Waits for its end.
    pub(crate) fn wait(&self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.wait_until(Deadline::NEVER)? {
                return Ok(status);
            }
        }
    }

    /// Has whoever waits for it wait for this, too.
    pub(crate) fn deliver_by(&self, delivery: Arc<Outcome>) {
        self.delivery.get_or_init(|| delivery);
    }

    /// Waits for what others move to the caller's own streams; `false` if the deadline comes first.
    pub(crate) fn wait_delivered(&self, deadline: Deadline) -> Result<bool> {
        self.delivery.get().map_or(Ok(true), |delivery| Ok(delivery.wait(deadline)?.is_some()))
    }

    /// How long the caller's own streams may take for the rest of what it has written, where it
    /// has ended so: for ever if it did by itself, and a moment if it was ended.
    pub(crate) fn delivered_by(&self, status: ExitStatus) -> Deadline {
        let state = self.lock();
        let is_by_itself = match status.reason() {
            EndReason::Exited | EndReason::OutOfMemory => true,
            EndReason::Signaled => state.asked.is_none() && status.signal() != state.sent,
            _ => status.code().is_some(),
        };
        if is_by_itself { Deadline::NEVER } else { state.overdue.min(Deadline::after(OVERDUE)) }
    }

    /// When it is told that it does not end.
    pub(crate) fn overdue(&self) -> Deadline {
        self.lock().overdue
    }

    /// Takes down that several may wait for it.
    pub(crate) fn mark_shared(&self) {
        self.lock().is_shared = true;
    }

    fn note(&self, state: &mut State, body: &[u8]) -> Result<()> {
        let event = wire::decode(body)?;
        self.settle();
        state.end = Some(match event {
            JobEvent::Exited(exit) => {
                End::Exit(ExitStatus::new(&exit, state.asked, self.ran_out_of_memory()))
            }
            JobEvent::Failed { stage, errno } => End::NotStarted { stage, errno },
            JobEvent::Started { .. } | JobEvent::Terminal | JobEvent::Socket => {
                return Err(Error::Protocol { why: "a program that starts twice" });
            }
        });
        Ok(())
    }

    /// The channel, or init, has ended without the job's end.
    fn note_death(&self, state: &mut State) {
        self.settle();
        state.end = Some(End::Exit(ExitStatus::sandbox_died(self.started.elapsed())));
    }

    /// Init has not told in time that it has ended: it is told that it has not. What is ended goes
    /// on to be.
    fn note_overdue(&self, state: &mut State) {
        self.settle();
        let reason = state.asked.unwrap_or(EndReason::TimedOut);
        state.end = Some(End::Exit(ExitStatus::not_ended(reason, self.started.elapsed())));
    }

    fn exit_in(&self, state: &State) -> Result<Option<ExitStatus>> {
        match state.end {
            None => Ok(None),
            Some(End::Exit(status)) => Ok(Some(status)),
            Some(End::NotStarted { stage, errno }) => Err(self.start_error(stage, errno)),
        }
    }

    pub(crate) fn start_error(&self, stage: Stage, errno: i32) -> Error {
        let program = match (stage, &self.directory) {
            (Stage::Directory, Some(directory)) => directory.to_path_buf(),
            _ => self.program.clone(),
        };
        Error::Start {
            program,
            stage: crate::error::Stage::from_wire(stage),
            source: error_of(errno),
        }
    }

    /// Sends a signal. What has ended is no error.
    pub(crate) fn signal(&self, signal: u8, scope: Scope) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(Error::invalid("signal", format!("{signal} is not from 1 to 64")));
        }
        self.check_own()?;
        // The rest of its tree may have outlived it.
        let mut state = self.lock();
        if scope != Scope::Tree && state.end.is_some() {
            return Ok(());
        }
        state.sent = Some(signal);
        // Where memory has run out, it is killed anyway.
        if signal == 9 && state.asked.is_none() && !self.ran_out_of_memory() {
            state.asked = Some(EndReason::Signaled);
        }
        if signal == 9 && scope == Scope::Tree {
            state.overdue = state.overdue.min(Deadline::after(OVERDUE));
        }
        drop(state);
        self.request(
            &JobRequest::Signal { signal, scope: scope.to_wire() },
            Deadline::after(REQUEST),
        )
    }

    /// Has all of it killed, if it goes on for so long from now on. Nobody need wait for that.
    pub(crate) fn end_after(&self, delay: Duration) -> Result<()> {
        let delay_us = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.request(&JobRequest::EndAfter { delay_us }, Deadline::after(Duration::ZERO))
    }

    fn request(&self, request: &JobRequest, deadline: Deadline) -> Result<()> {
        self.check_own()?;
        match wire::send(self.as_fd(), request, &[], self.init.as_fd(), deadline) {
            // Init closed the channel after the end, or has died itself: then nothing is left.
            Err(Error::SandboxDied) => Ok(()),
            other => other,
        }
    }

    /// Kills all of it, for a reason that is told as that of its end. Waits for nothing: where init
    /// does not read, its end is overdue in a moment.
    pub(crate) fn end(&self, reason: EndReason) -> Result<()> {
        // Of what has ended by itself, what it has left behind is not to end. Whatever else it may
        // have said, it is.
        if matches!(self.try_exit(), Ok(Some(_)) | Err(Error::Start { .. })) {
            return Ok(());
        }
        let mut state = self.lock();
        state.asked.get_or_insert(reason);
        state.overdue = state.overdue.min(Deadline::after(OVERDUE));
        drop(state);
        let kill = JobRequest::Signal { signal: 9, scope: Scope::Tree.to_wire() };
        match self.request(&kill, Deadline::after(Duration::ZERO)) {
            Err(Error::TimedOut { .. }) => Ok(()),
            other => other,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        match state.watch.take() {
            Some(watch) if self.owner.is_this_process() => watch.ended(state.end),
            // What a fork has a copy of is its parent's.
            Some(watch) => std::mem::forget(watch),
            None => {}
        }
    }
}

impl Maker for Running {
    fn init(&self) -> BorrowedFd<'_> {
        self.init.as_fd()
    }

    fn channel(&self) -> BorrowedFd<'_> {
        self.messages.as_fd()
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
    /// Waits until it has ended, or its sandbox has. One that was killed, by its timeout or
    /// otherwise, and does not end is told of as [`ExitStatus::survivors`] soon after. What it
    /// wrote to streams of the caller's is there when this returns ([`Stdio`](crate::Stdio)).
    ///
    /// # Errors
    /// [`Error::Start`] if its program was not started after all; [`Error::Undelivered`], which has
    /// the status, if a stream of the caller's did not take what it wrote.
    pub fn wait(&self) -> Result<ExitStatus> {
        let status = self.0.wait()?;
        self.0.wait_delivered(Deadline::NEVER)?;
        Ok(status)
    }

    /// Waits until it has ended, but no longer than `timeout`; `None` if it goes on then.
    ///
    /// # Errors
    /// As [`Handle::wait`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Deadline::after(timeout);
        match self.0.wait_until(deadline)? {
            Some(status) if self.0.wait_delivered(deadline)? => Ok(Some(status)),
            _ => Ok(None),
        }
    }

    /// What it has used by now, with all that it has started: of its end, once it has ended.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where its sandbox has no cgroups; see [`crate::Limits`].
    pub fn stats(&self) -> Result<Stats> {
        self.0.stats()
    }

    /// Looks whether it has ended. Streams of the caller's may still be written to then.
    ///
    /// # Errors
    /// As [`Handle::wait`], but [`Error::Undelivered`].
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

/// Readable when the command has ended, or its sandbox was reset, deleted or made into a snapshot,
/// and from then on: [`Handle::try_wait`] tells. For `poll(2)` and event loops; reading from it
/// would take the message away.
///
/// An event loop that must not trust the sandbox also watches
/// [`Sandbox::pidfd`](crate::Sandbox::pidfd) and has its own timer for the timeout; after either
/// one, [`Handle::try_wait`] tells the end.
impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command, Stdio};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use adl_protocol::{Exit, JobEvent, NetworkOrigin, Request, Status, Usage};

    use super::{Handle, OVERDUE, Running, Scope};
    use crate::error::Error;
    use crate::exit::EndReason;
    use crate::sys::id_ranges::Ids;
    use crate::sys::pidfd;
    use crate::wait::Deadline;
    use crate::wait::wait_ready;
    use crate::wire::control::Control;
    use crate::wire::{self, Messages};

    /// Long enough for anything, and far below the time that a test may take.
    const SOON: Duration = Duration::from_secs(20);

    /// A process in the place of init, and the end of a job's channel that it should have: it was
    /// given to someone who neither closes it nor says anything.
    struct Init {
        process: Child,
        pidfd: Arc<OwnedFd>,
        elsewhere: UnixStream,
    }

    impl Init {
        fn start(timeout: Option<Duration>) -> (Self, Arc<Running>) {
            let cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
            let process = cat.unwrap();
            let pidfd = Arc::new(pidfd::open(process.id().cast_signed()).unwrap());
            let (ours, elsewhere) = wire::channel().unwrap();
            let running = Running::new("program".into(), ours, &pidfd, timeout);
            (Self { process, pidfd, elsewhere: elsewhere.into() }, Arc::new(running))
        }

        fn say_exited(&mut self) {
            let (status, usage) = (Status::Code(7), Usage::default());
            let exit = Exit { status, usage, wall_us: 1, by: None, survivors: false };
            self.elsewhere.write_all(&wire::frame_of(&JobEvent::Exited(exit)).unwrap()).unwrap();
        }

        fn die(&mut self) {
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
    }

    impl Drop for Init {
        fn drop(&mut self) {
            self.die();
        }
    }

    #[test]
    fn a_wait_ends_with_init_whoever_has_the_other_end() {
        let (mut init, running) = Init::start(None);
        let handle = Handle(Arc::clone(&running));
        let waits = std::thread::spawn(move || handle.wait().unwrap());
        assert_eq!(running.try_exit().unwrap(), None);
        assert_eq!(running.wait_until(Deadline::after(Duration::from_millis(1))).unwrap(), None);
        init.die();
        assert_eq!(waits.join().unwrap().reason(), EndReason::SandboxDied);
        assert_eq!(running.try_exit().unwrap().unwrap().reason(), EndReason::SandboxDied);
    }

    #[test]
    fn what_init_has_said_before_it_ended_is_told() {
        let (mut init, running) = Init::start(None);
        init.say_exited();
        init.die();
        assert_eq!(running.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn an_end_that_was_told_in_time_is_told_whenever_it_is_asked_for() {
        let (mut init, running) = Init::start(Some(Duration::ZERO));
        init.say_exited();
        assert!(!wait_ready(&mut [], running.overdue()).unwrap());
        assert_eq!(running.wait().unwrap().code(), Some(7));
        let (mut init, running) = Init::start(Some(Duration::ZERO));
        init.say_exited();
        assert!(!wait_ready(&mut [], running.overdue()).unwrap());
        assert_eq!(running.try_exit().unwrap().unwrap().code(), Some(7));
    }

    #[test]
    fn what_was_read_with_another_message_is_told() {
        use std::os::fd::AsFd;

        let (mut init, running) = Init::start(None);
        let started = wire::frame_of(&JobEvent::Started { pid: 2 }).unwrap();
        init.elsewhere.write_all(&started).unwrap();
        init.say_exited();
        let body =
            running.messages().next("both", init.pidfd.as_fd(), Deadline::after(SOON)).unwrap();
        assert!(matches!(wire::decode(&body).unwrap(), JobEvent::Started { pid: 2 }));
        assert_eq!(running.try_exit().unwrap().unwrap().code(), Some(7));
        assert_eq!(running.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn all_are_woken_by_an_end_although_the_channel_stays_open() {
        let (mut init, running) = Init::start(None);
        running.lock().is_shared = true;
        let handles: Vec<_> = (0..4).map(|_| Handle(Arc::clone(&running))).collect();
        let waits: Vec<_> = handles
            .into_iter()
            .map(|handle| std::thread::spawn(move || handle.wait_timeout(SOON).unwrap().unwrap()))
            .collect();
        init.say_exited();
        for wait in waits {
            assert_eq!(wait.join().unwrap().code(), Some(7));
        }
    }

    #[test]
    fn the_end_of_the_sandbox_is_that_of_its_waits() {
        let (init, running) = Init::start(None);
        let (ours, _theirs) = wire::channel().unwrap();
        let control = Control::new(
            Messages::new(ours),
            Arc::clone(&init.pidfd),
            Ids::Range(1 << 16),
            None,
            NetworkOrigin::New,
        );
        running.mark_shared();
        control.add_waited_for(running.messages());
        let handle = Handle(Arc::clone(&running));
        let waits = std::thread::spawn(move || handle.wait().unwrap());
        control.end_waits();
        assert_eq!(waits.join().unwrap().reason(), EndReason::SandboxDied);
        // Nor can anything be asked of it.
        let asked = control.request_by(Deadline::after(SOON), &Request::Shutdown, &[]);
        assert!(matches!(asked, Err(Error::SandboxDied)), "{asked:?}");
    }

    #[test]
    fn what_init_is_silent_about_is_told_when_it_is_overdue() {
        let timeout = Duration::from_millis(50);
        let (_init, running) = Init::start(Some(timeout));
        let begin = Instant::now();
        let status = running.wait().unwrap();
        assert_eq!((status.reason(), status.survivors()), (EndReason::TimedOut, true));
        assert!(begin.elapsed() >= timeout + OVERDUE && begin.elapsed() < SOON);

        // One without a timeout is, too, once it was to be ended.
        let (_init, running) = Init::start(None);
        running.end(EndReason::OutputLimit).unwrap();
        let status = running.wait().unwrap();
        assert_eq!((status.reason(), status.survivors()), (EndReason::OutputLimit, true));
        let (_init, running) = Init::start(None);
        running.signal(9, Scope::Tree).unwrap();
        let status = running.wait().unwrap();
        assert_eq!((status.reason(), status.survivors()), (EndReason::Signaled, true));
    }

    #[test]
    fn what_is_waited_for_beside_a_job_ends_with_init_too() {
        let (mut init, _running) = Init::start(None);
        // An answer, and room for a request.
        let [(full, theirs), (silent, other_theirs)] = [(); 2].map(|()| wire::channel().unwrap());
        while wire::send_now(full.as_fd(), &[0; 4096], &[]).unwrap() != 0 {}
        let control = Control::new(
            Messages::new(full),
            Arc::clone(&init.pidfd),
            Ids::Range(1 << 16),
            None,
            NetworkOrigin::New,
        );
        let pidfd = Arc::clone(&init.pidfd);
        let messages = Messages::new(silent);
        let answer = std::thread::spawn(move || {
            messages.next("an answer", pidfd.as_fd(), Deadline::after(SOON))
        });
        let asks = std::thread::spawn(move || {
            control.request_by(Deadline::after(SOON), &Request::Shutdown, &[])
        });
        init.die();
        for died in [answer.join().unwrap().map(drop), asks.join().unwrap()] {
            assert!(matches!(died, Err(Error::SandboxDied)), "{died:?}");
        }
        drop((theirs, other_theirs));
    }
}
