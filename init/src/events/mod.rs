//! The loop of PID 1: starts jobs, passes signals on, keeps their time, reaps.
//!
//! It waits in one place, `epoll_wait(2)`, and for nothing else: not for a job, a disk, a lock or
//! a reader. Job ends are reported in the order in which they happen.

mod cpu_time;
mod jobs;
mod kill_all;
mod starting;
mod trees;

use alloc::vec::Vec;

use adl_protocol::{EndedBy, JobEvent, JobRequest, Leftovers, Request, Scope, Stage, Task, codec};
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use self::cpu_time::CpuTime;
use self::jobs::{Job, Jobs, Sorted};
use self::kill_all::KillAll;
use self::starting::{PATIENCE, STARTING};
use crate::failure::{Failure, InStage};
use crate::job::tree::{Sweeper, Tree};
use crate::receive::{Receiver, send_small};
use crate::setup::Init;
use crate::sys::{self, ChildMemory, OwnedRequest, Reaped, now};
use crate::{PROTOCOL, job, socket, tracing};

/// How many ended processes are reaped before the loop looks at other things again.
const REAP_AT_ONCE: usize = 64;
/// How long processes that got SIGKILL are given before they are looked for again, in ns.
const BETWEEN_PASSES: u64 = 1_000_000;
/// After how long a job's end is told although some of its tree does not end, in ns.
const UNKILLABLE: u64 = 5_000_000_000;

/// How often in a row SIGCHLD may come although no one has ended, as happens when two end at once.
/// A guest that sends it for ever would otherwise have init work all the time, which is charged to
/// no cgroup.
const IDLE_WAKES: u32 = 16;
/// How long it is then not listened to, in ns; then twice as long, up to the longest.
const PAUSE: u64 = 1_000_000;
/// By how much later the end of a job may come meanwhile, in ns.
const LONGEST_PAUSE: u64 = 20_000_000;

/// How much is read from a job's channel at once, in bytes: some requests, of which the host sends
/// each whole.
const LONGEST_REQUESTS: usize = 64;

/// What an epoll event is about, beyond the channels of jobs, which have the job's number.
const CONTROL: u64 = u64::MAX;
const CHILDREN: u64 = u64::MAX - 1;
const OWNER: u64 = u64::MAX - 2;
const QUESTIONS: u64 = u64::MAX - 3;

/// How long after an answer the next question is read, in ns. A guest that asks for ever must not
/// have init work all the time either.
const BETWEEN_ANSWERS: u64 = 1_000_000;

/// How long a tree may outrun the passes that end it before all processes are stopped for one, in
/// ns; then twice as long, and so on.
const OUTRUN: u64 = 50_000_000;

/// How many descriptors init needs besides those of jobs that run: its own, those that come with a
/// request, those of the sweeper.
const RESERVED: u64 = 32;
/// How many it holds for a job: its channel, the pin of its tree, the file of its CPU time.
const OF_A_JOB: u64 = 3;

pub(crate) struct Loop {
    init: &'static Init,
    epoll: OwnedFd,
    jobs: Jobs,
    /// The number of the next job.
    next: u64,
    /// The jobs whose processes are not reaped yet, by pid.
    by_pid: Sorted<i32>,
    /// The jobs about which something is to be done, by when, in ns.
    timers: Sorted<u64>,
    /// What children were given, until they have let go of it.
    starting: Vec<ChildMemory<job::Start>>,
    /// When they were last found to be as many as there may be, in ns.
    full_at: Option<u64>,
    /// How long requests will wait for them, in ns.
    patience: u64,
    /// When it is looked again whether they are, in ns, if requests wait for that.
    look_at: Option<u64>,
    /// For the next job, made while there was nothing else to do.
    next_tree: Option<Tree>,
    kill_all: Option<KillAll>,
    sweeper: Sweeper,
    /// When the sweeper goes on, in ns.
    sweep_at: u64,
    /// How often in a row SIGCHLD has come although no one had ended.
    idle_wakes: u32,
    /// When SIGCHLD is listened to again, in ns, if it is not.
    deaf_until: Option<u64>,
    /// When the next question may be read, in ns, if not now.
    answer_at: Option<u64>,
}

/// Makes the loop, and has it watch all but jobs.
pub(crate) fn begin(receiver: &Receiver, init: &'static Init) -> rustix::io::Result<Loop> {
    let this = Loop {
        init,
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        jobs: Jobs(Vec::new()),
        next: 0,
        by_pid: Sorted(Vec::new()),
        timers: Sorted(Vec::new()),
        starting: Vec::new(),
        full_at: None,
        patience: PATIENCE,
        look_at: None,
        next_tree: None,
        kill_all: None,
        sweeper: Sweeper::new(&init.jobs.proc),
        sweep_at: 0,
        idle_wakes: 0,
        deaf_until: None,
        answer_at: None,
    };
    this.watch(receiver, CONTROL)?;
    this.watch(&init.child_signals, CHILDREN)?;
    this.watch(&init.owner, OWNER)?;
    init.questions.iter().try_for_each(|from| this.watch(from, QUESTIONS))?;
    Ok(this)
}

/// Runs until the host ends the sandbox or is gone. Returns the exit status.
pub(crate) fn run(mut this: Loop, mut receiver: Receiver) -> i32 {
    let init = this.init;
    let mut more_to_reap = false;
    loop {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 16];
        let may_reap = more_to_reap && this.deaf_until.is_none();
        let timeout = if may_reap { Some(Timespec::default()) } else { this.timeout() };
        let count = match epoll::wait(&this.epoll, &mut events, timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(_) => return crate::SETUP,
        };
        for event in events.iter().take(count) {
            match event.data.u64() {
                CONTROL => match this.on_control(&mut receiver) {
                    Ok(()) => {}
                    Err(status) => return status,
                },
                CHILDREN => {
                    let mut info = [0; 128];
                    // Only to make it unreadable again; how many have ended, reaping tells.
                    let _ = rustix::io::read(&init.child_signals, &mut info);
                    more_to_reap = true;
                }
                OWNER => return 0,
                QUESTIONS => this.answer(),
                number => this.on_channel(number),
            }
        }
        if more_to_reap && this.deaf_until.is_none() {
            more_to_reap = this.reap();
        }
        this.on_time();
        if let Err(status) = this.go_on_killing(&mut receiver) {
            return status;
        }
        if let Err(status) = this.go_on_taking(&mut receiver) {
            return status;
        }
        this.forget_started();
    }
}

impl Loop {
    fn watch(&self, what: impl rustix::fd::AsFd, token: u64) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, what, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
    }

    /// How long there is nothing to do by the clock; `None` for ever.
    fn timeout(&self) -> Option<Timespec> {
        let timer = self.timers.first().map(|(at, _)| at);
        let sweep = (!self.sweeper.is_idle()).then_some(self.sweep_at);
        let kill = self.kill_all.as_ref().map(|kill| kill.next);
        let at = timer
            .into_iter()
            .chain(sweep)
            .chain(self.deaf_until)
            .chain(self.answer_at)
            .chain(kill)
            .chain(self.look_at)
            .min()?;
        let left = i64::try_from(at.saturating_sub(now())).unwrap_or(i64::MAX);
        Some(Timespec { tv_sec: left / 1_000_000_000, tv_nsec: left % 1_000_000_000 })
    }

    /// Stops listening to SIGCHLD for a while where it comes for nothing.
    fn pace(&mut self, is_worth_it: bool) {
        if is_worth_it {
            self.idle_wakes = 0;
            return;
        }
        self.idle_wakes = self.idle_wakes.saturating_add(1);
        let Some(over) = self.idle_wakes.checked_sub(IDLE_WAKES) else { return };
        let pause = (PAUSE << over.min(5)).min(LONGEST_PAUSE);
        if self.listen(epoll::EventFlags::empty()).is_ok() {
            self.deaf_until = Some(now().saturating_add(pause));
        }
    }

    /// Answers one question, and reads no other for a while.
    fn answer(&mut self) {
        let Some(questions) = &self.init.questions else { return };
        tracing::answer(questions, &self.init.jobs.proc);
        self.listen_to_questions(epoll::EventFlags::empty());
        self.answer_at = Some(now().saturating_add(BETWEEN_ANSWERS));
    }

    fn listen_to_questions(&self, flags: epoll::EventFlags) {
        let Some(questions) = &self.init.questions else { return };
        let _ = epoll::modify(&self.epoll, questions, epoll::EventData::new_u64(QUESTIONS), flags);
    }

    fn listen(&self, flags: epoll::EventFlags) -> rustix::io::Result<()> {
        let token = epoll::EventData::new_u64(CHILDREN);
        epoll::modify(&self.epoll, &self.init.child_signals, token, flags)
    }

    /// Handles all requests that have come. `Err` is the status to exit with.
    fn on_control(&mut self, receiver: &mut Receiver) -> Result<(), i32> {
        let open = receiver.read_available().map_err(|_| PROTOCOL)?;
        self.take_requests(receiver)?;
        // The host's end is closed: it has ended, or has dropped the sandbox.
        if open { Ok(()) } else { Err(0) }
    }

    /// Handles requests that were read, up to one that all others wait for.
    fn take_requests(&mut self, receiver: &mut Receiver) -> Result<(), i32> {
        while self.kill_all.is_none() {
            if self.is_full() {
                self.hold_requests(receiver);
                break;
            }
            let Some(body) = receiver.take_frame().map_err(|_| PROTOCOL)? else { break };
            let request = OwnedRequest::decode(body).map_err(|_| PROTOCOL)?;
            match request.get() {
                Request::Spawn(_) => self.spawn(request, receiver)?,
                Request::Shutdown => return Err(0),
                Request::Setup(_) | Request::Mounts(_) | Request::Cgroups(_) | Request::Mapped => {
                    return Err(PROTOCOL);
                }
            }
        }
        Ok(())
    }

    fn spawn(&mut self, request: OwnedRequest, receiver: &mut Receiver) -> Result<(), i32> {
        let Request::Spawn(spawn) = request.get() else { return Err(PROTOCOL) };
        // A request without its descriptors is a broken host; there is no channel to say so on.
        let mut resources = job::Resources::take(spawn, receiver.descriptors()).ok_or(PROTOCOL)?;
        let started = now();
        match spawn.task {
            Task::KillAll => {
                self.kill_all(resources.channel, started, receiver);
                return Ok(());
            }
            Task::Socket => {
                let made = sys::network_socket();
                if let Err(failure) = socket::hand_over(made, &resources.channel) {
                    let _ = send_small(&resources.channel, &failure.event(), &[]);
                }
                return Ok(());
            }
            _ => {}
        }
        let (leftovers, timeout_us, cpu_limit) =
            (spawn.leftovers, spawn.timeout_us, spawn.cpu_limit);
        let number = self.next;
        self.next += 1;
        // Before there is a process: one whose channel can't be watched, as when the guest has used
        // up what its user may watch, would not be told what the host asks.
        let watched = self.watch(&resources.channel, number).stage(Stage::Fork);
        let child = watched.and_then(|()| self.start(request, &resources));
        let (pid, tree) = match child {
            Ok(child) => child,
            Err(failure) => {
                let _ = send_small(&resources.channel, &failure.event(), &[]);
                return Ok(());
            }
        };
        let is_held = resources.start_notice.take().is_some();
        let is_lost =
            is_held && send_small(&resources.channel, &JobEvent::Started { pid }, &[]).is_err();
        let deadline = timeout_us.map(|us| started.saturating_add(us.saturating_mul(1000)));
        if let Some(at) = deadline {
            self.timers.insert(at, number);
        }
        let cpu_time = resources.cpu_time.zip(cpu_limit);
        let cpu_time = cpu_time.map(|(file, limit)| CpuTime { file, limit, next: 0 });
        let job = Job {
            pid: Some(pid),
            channel: Some(resources.channel),
            is_held,
            tree,
            leftovers,
            started,
            deadline,
            cpu_time,
            by: None,
            ending: None,
            survivors: false,
            end: None,
            told: false,
        };
        self.jobs.push(number, job);
        self.by_pid.insert(pid, number);
        self.look_at_cpu_time(number, started);
        if is_lost {
            // The end of its channel tells that it is none.
            self.end_tree(number);
            self.let_go(number);
        }
        self.next_tree = Tree::begin(&self.init.jobs.proc).ok();
        Ok(())
    }

    /// Starts the child of a job, in a tree of its own.
    fn start(
        &mut self,
        request: OwnedRequest,
        resources: &job::Resources,
    ) -> Result<(i32, Tree), Failure> {
        // Below that, a request could lose its descriptors, and the sandbox with them.
        let held = (self.jobs.0.len() as u64 + 1).saturating_mul(OF_A_JOB) + RESERVED;
        if held > self.init.jobs.descriptors {
            return Err(Failure(Stage::Fork, Errno::MFILE));
        }
        let tree = match self.next_tree.take() {
            Some(tree) => tree,
            None => Tree::begin(&self.init.jobs.proc).stage(Stage::Fork)?,
        };
        self.forget_started();
        if self.starting.len() >= STARTING {
            return Err(Failure(Stage::Fork, Errno::NOMEM));
        }
        let score = match request.get() {
            Request::Spawn(spawn) => spawn.oom_score_adj,
            _ => 0,
        };
        let is_crowded = self.starting.len() >= STARTING / 2;
        let (memory, start) =
            job::Start::new(request, resources.lend(), &self.init.jobs, is_crowded)
                .stage(Stage::Fork)?;
        let own_score = self.init.jobs.own_score.as_ref().filter(|_| score != 0);
        if let Some(own_score) = own_score {
            own_score.set(score).stage(Stage::OomScore)?;
        }
        let child = sys::start_child(memory, start, job::run);
        if let Some(own_score) = own_score {
            own_score.put_back();
        }
        let (pid, memory) = child.stage(Stage::Fork)?;
        self.starting.push(memory);
        Ok((pid, tree))
    }

    /// Handles what the host says on a job's channel, or that it has closed it.
    fn on_channel(&mut self, number: u64) {
        let mut bytes = [0; LONGEST_REQUESTS];
        // What was read of a request that did not fit: its rest is there.
        let mut held = 0;
        loop {
            let Some(job) = self.jobs.get(number) else { return };
            let Some(channel) = job.channel.as_ref() else { return };
            let room = bytes.get_mut(held..).unwrap_or_default();
            match rustix::net::recv(channel, room, rustix::net::RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => return,
                Ok((length, _)) if length != 0 => held += length,
                // The host has let go of the job, which goes on.
                _ => {
                    self.let_go(number);
                    return self.settle(number);
                }
            }
            let mut rest = bytes.get(..held).unwrap_or_default();
            while let Some((request, after)) = first_request(rest) {
                rest = after;
                if let Some(request) = request {
                    self.on_request(number, request);
                }
            }
            let left = rest.len();
            if left == 0 || left == bytes.len() {
                return;
            }
            bytes.copy_within(held - left..held, 0);
            held = left;
        }
    }

    fn on_request(&mut self, number: u64, request: JobRequest) {
        let (signal, scope) = match request {
            JobRequest::Signal { signal, scope } => (signal, scope),
            JobRequest::EndAfter { delay_us } => return self.end_after(number, delay_us),
        };
        let Some(job) = self.jobs.get(number) else { return };
        let Some(signal) = sys::signal(signal) else { return };
        // While it is not reaped, its pid is no one else's. ESRCH: it will be in a moment.
        let pid = job.pid.and_then(Pid::from_raw);
        match (scope, pid) {
            (Scope::Process, Some(pid)) => drop(rustix::process::kill_process(pid, signal)),
            (Scope::Group, Some(pid)) => drop(rustix::process::kill_process_group(pid, signal)),
            (Scope::Process | Scope::Group, None) => {}
            (Scope::Tree, _) if signal == Signal::KILL => self.end_tree(number),
            (Scope::Tree, _) => {
                let now = now();
                self.sweeper.add(job.tree.mark(), number, signal, now);
                self.sweep_at = now;
            }
        }
    }

    /// Gives a job another deadline.
    fn end_after(&mut self, number: u64, delay_us: u64) {
        let Some(job) = self.jobs.get_mut(number) else { return };
        if job.end.is_some() || job.ending.is_some() {
            return;
        }
        let at = now().saturating_add(delay_us.saturating_mul(1000));
        if let Some(before) = job.deadline.replace(at) {
            self.timers.remove(before, number);
        }
        self.timers.insert(at, number);
    }

    /// Does what it is time for.
    fn on_time(&mut self) {
        let is_deaf = self.deaf_until.or(self.answer_at).is_some();
        if self.timers.0.is_empty() && self.sweeper.is_idle() && !is_deaf {
            return;
        }
        let now = now();
        if self.answer_at.is_some_and(|at| at <= now) {
            self.answer_at = None;
            self.listen_to_questions(epoll::EventFlags::IN);
        }
        if self.deaf_until.is_some_and(|at| at <= now) && self.listen(epoll::EventFlags::IN).is_ok()
        {
            self.deaf_until = None;
        }
        while let Some((at, number)) = self.timers.first()
            && at <= now
        {
            self.timers.remove(at, number);
            self.on_timer(number, now);
        }
        if self.sweeper.is_idle() || now < self.sweep_at {
            return;
        }
        if self.sweeper.is_outrun(now, OUTRUN) {
            self.sweep_stopped(now);
        } else {
            self.sweep(now);
        }
    }

    fn on_timer(&mut self, number: u64, now: u64) {
        let Some(job) = self.jobs.get_mut(number) else { return };
        if job.ending.is_some_and(|since| since.saturating_add(UNKILLABLE) <= now) {
            self.sweeper.remove(job.tree.mark());
            self.tell_survivors(number);
            self.tree_ended(number);
        } else if job.end.is_none()
            && job.ending.is_none()
            && job.deadline.is_some_and(|at| at <= now)
        {
            job.by.get_or_insert(EndedBy::Timeout);
            self.end_tree(number);
        } else if job.end.is_none()
            && job.ending.is_none()
            && job.cpu_time.as_ref().is_some_and(|cpu_time| cpu_time.next <= now)
        {
            self.look_at_cpu_time(number, now);
        }
    }

    /// Reaps what has ended, `REAP_AT_ONCE` at most; how many that were.
    ///
    /// The only place that waits for a child, and it never does: orphans of jobs come through
    /// here like jobs do, in any number.
    fn reap(&mut self) -> bool {
        // A guest can have a process be released as often as it likes, without an end of it.
        let (mut ended, mut released) = (0, 0);
        while ended + released < REAP_AT_ONCE {
            let (pid, status, usage) = match sys::reap() {
                Ok(Some(Reaped::Ended(pid, status, usage))) => (pid, status, usage),
                Ok(Some(Reaped::Released)) => {
                    released += 1;
                    continue;
                }
                // Nothing tells again of who has ended by now.
                Err(Errno::INTR) => continue,
                // ECHILD: none is left at all.
                Ok(None) | Err(_) => break,
            };
            ended += 1;
            let Some(number) = self.by_pid.get(pid) else { continue };
            self.by_pid.remove(pid, number);
            let Some(job) = self.jobs.get_mut(number) else { continue };
            job.pid = None;
            job.end = Some((status, usage, now().saturating_sub(job.started)));
            if let Some(at) = job.deadline {
                self.timers.remove(at, number);
            }
            let cpu_time = job.cpu_time.take();
            // It may have ended before the next look.
            let is_over = cpu_time.as_ref().is_some_and(|cpu_time| cpu_time.left() == 0);
            if is_over {
                job.by.get_or_insert(EndedBy::CpuTime);
            }
            if let Some(cpu_time) = cpu_time {
                self.timers.remove(cpu_time.next, number);
            }
            if is_over || job.leftovers == Leftovers::End {
                self.end_tree(number);
            }
            self.settle(number);
        }
        self.pace(ended > released);
        ended + released == REAP_AT_ONCE
    }

    /// Tells the end of a job if it is time to, and forgets one of which nobody wants to know
    /// more.
    fn settle(&mut self, number: u64) {
        let Some(job) = self.jobs.get_mut(number) else { return };
        let Some((status, usage, wall)) = job.end else { return };
        if job.ending.is_some() {
            return;
        }
        job.tell(status, usage, wall);
        if !job.is_held {
            self.let_go(number);
        }
        // Not while it is swept: without its pin, its mark may become another's.
        let is_over = |job: &Job| job.channel.is_none() && !self.sweeper.has(job.tree.mark());
        if self.jobs.get(number).is_some_and(is_over) {
            self.jobs.remove(number);
        }
    }

    fn let_go(&mut self, number: u64) {
        if let Some(channel) = self.jobs.get_mut(number).and_then(|job| job.channel.take()) {
            // Explicitly: a child that has not come to its execve yet holds a copy, which would
            // keep the event alive.
            let _ = epoll::delete(&self.epoll, &channel);
        }
    }
}

/// Takes the first request out of bytes from a channel, if it is there as a whole: itself, unless
/// it does not decode, and what follows it.
fn first_request(bytes: &[u8]) -> Option<(Option<JobRequest>, &[u8])> {
    let (header, rest) = bytes.split_first_chunk()?;
    let (body, after) = match codec::body_length(*header) {
        Ok(length) if length <= LONGEST_REQUESTS - codec::HEADER => {
            rest.split_at_checked(length)?
        }
        // No request: nor is what follows.
        _ => return Some((None, &[])),
    };
    Some((codec::decode(body).ok(), after))
}
