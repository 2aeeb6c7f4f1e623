//! The loop of PID 1: starts jobs, passes signals on, reaps.
//!
//! It waits in one place, `epoll_wait(2)`, and for nothing else: not for a job, a disk, a lock or
//! a reader. Job ends are reported in the order in which they happen.

use alloc::collections::BTreeMap;

use adl_protocol::{JobEvent, JobRequest, Request, Scope, Spawn, Stage, codec};
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use crate::receive::{Receiver, send_frame};
use crate::setup::Init;
use crate::{PROTOCOL, job, sys};

/// How many ended processes are reaped before the loop looks at other things again.
const REAP_AT_ONCE: usize = 64;

/// What an epoll event is about. Job channels have the (positive) pid of their job.
const CONTROL: u64 = u64::MAX;
const CHILDREN: u64 = u64::MAX - 1;

/// The jobs that run, by pid, each with its channel while the host holds the other end.
type Jobs = BTreeMap<i32, Option<OwnedFd>>;

struct Loop<'a> {
    init: &'a Init,
    epoll: OwnedFd,
    jobs: Jobs,
}

/// Runs until the host ends the sandbox or is gone. Returns the exit status.
pub(crate) fn run(mut receiver: Receiver, init: &Init) -> i32 {
    let Ok(epoll) = epoll::create(epoll::CreateFlags::CLOEXEC) else { return crate::SETUP };
    let mut this = Loop { init, epoll, jobs: Jobs::new() };
    let watched =
        this.watch(&receiver, CONTROL).and_then(|()| this.watch(&init.child_signals, CHILDREN));
    if watched.is_err() {
        return crate::SETUP;
    }

    let mut more_to_reap = false;
    loop {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 16];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = more_to_reap.then_some(&now);
        let count = match epoll::wait(&this.epoll, &mut events, timeout) {
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
                pid => {
                    if let Ok(pid) = i32::try_from(pid) {
                        this.on_channel(pid);
                    }
                }
            }
        }
        if more_to_reap {
            more_to_reap = this.reap();
        }
    }
}

impl Loop<'_> {
    fn watch(&self, what: impl rustix::fd::AsFd, token: u64) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, what, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
    }

    /// Handles all requests that have come. `Err` is the status to exit with.
    fn on_control(&mut self, receiver: &mut Receiver) -> Result<(), i32> {
        let open = receiver.read_available().map_err(|_| PROTOCOL)?;
        while let Some(body) = receiver.take_frame().map_err(|_| PROTOCOL)? {
            match codec::decode(&body) {
                Ok(Request::Spawn(spawn)) => self.spawn(&spawn, receiver)?,
                Ok(Request::Shutdown) => return Err(0),
                Ok(Request::Setup(_)) | Err(_) => return Err(PROTOCOL),
            }
        }
        // The host's end is closed: it has ended, or has dropped the sandbox.
        if open { Ok(()) } else { Err(0) }
    }

    fn spawn(&mut self, spawn: &Spawn<'_>, receiver: &mut Receiver) -> Result<(), i32> {
        // A request without its descriptors is a broken host; there is no channel to say so on.
        let mut resources = job::Resources::take(spawn, receiver.descriptors()).ok_or(PROTOCOL)?;
        let pid = match sys::fork() {
            Ok(None) => job::become_program(spawn, &resources, &self.init.jobs),
            Ok(Some(pid)) => pid,
            Err(errno) => {
                let failed = JobEvent::Failed { stage: Stage::Fork, errno: errno.raw_os_error() };
                let _ = send_frame(&resources.channel, &failed);
                return Ok(());
            }
        };
        if resources.start_notice.take().is_some() {
            let _ = send_frame(&resources.channel, &JobEvent::Started { pid });
        }
        // If it can't be watched (the kernel is out of memory), it still runs and is reaped.
        let _ = self.watch(&resources.channel, token_of(pid));
        self.jobs.insert(pid, Some(resources.channel));
        Ok(())
    }

    /// Handles what the host says on a job's channel, or that it has closed it.
    fn on_channel(&mut self, pid: i32) {
        let Some(channel) = self.jobs.get_mut(&pid) else { return };
        let Some(open) = channel.as_ref() else { return };
        let mut frame = [0; 64];
        match rustix::net::recv(open, &mut frame, rustix::net::RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok((length, _)) if length != 0 => {
                for request in requests(frame.get(..length).unwrap_or_default()) {
                    on_request(pid, request);
                }
            }
            // The host has let go of the job, which goes on.
            _ => {
                let _ = epoll::delete(&self.epoll, open);
                *channel = None;
            }
        }
    }

    /// Reaps what has ended; whether there may be more.
    ///
    /// The only place that waits for a child, and it never does: orphans of jobs come through
    /// here like jobs do, in any number.
    fn reap(&mut self) -> bool {
        for _ in 0..REAP_AT_ONCE {
            match sys::reap() {
                Ok(Some((pid, exit))) => {
                    let Some(Some(channel)) = self.jobs.remove(&pid) else { continue };
                    // Explicitly: a child that has not come to its execve yet holds a copy, which
                    // would keep the event alive.
                    let _ = epoll::delete(&self.epoll, &channel);
                    let _ = send_frame(&channel, &JobEvent::Exited(exit));
                }
                // ECHILD: none is left at all.
                Ok(None) | Err(_) => return false,
            }
        }
        true
    }
}

/// The requests in bytes from a channel. The host sends each whole, and they are small, so what
/// is not a whole frame is dropped.
fn requests(mut bytes: &[u8]) -> impl Iterator<Item = JobRequest> {
    core::iter::from_fn(move || {
        let (header, rest) = bytes.split_first_chunk()?;
        let (body, after) = rest.split_at_checked(codec::body_length(*header).ok()?)?;
        bytes = after;
        codec::decode(body).ok()
    })
}

/// The job exists: it is in the table until it is reaped, so its pid is no one else's.
fn on_request(pid: i32, request: JobRequest) {
    let JobRequest::Signal { signal, scope } = request;
    let (Some(pid), Some(signal)) = (Pid::from_raw(pid), Signal::from_named_raw(i32::from(signal)))
    else {
        return;
    };
    // ESRCH: it has ended and will be reaped in a moment.
    let _ = match scope {
        Scope::Process => rustix::process::kill_process(pid, signal),
        Scope::Group => rustix::process::kill_process_group(pid, signal),
    };
}

fn token_of(pid: i32) -> u64 {
    u64::from(pid.unsigned_abs())
}
