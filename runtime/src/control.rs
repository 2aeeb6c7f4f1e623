//! The control socket of a sandbox: what is asked of its init.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use adl_protocol::Request;
use nix::sys::socket::{Shutdown, shutdown};

use crate::background::Job;
use crate::cgroup::{Entrance, Group, Seat};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::sys::socket::Socket;
use crate::wire::{self, Deadline, Messages};

/// How long init may take to read a request: it never waits for anything itself.
const REQUEST: Duration = Duration::from_secs(10);

/// The way to a sandbox's init, shared by the sandbox and its commands.
#[derive(Debug)]
pub(crate) struct Control {
    /// What init says there, in set-up alone.
    messages: Messages,
    /// Held from the beginning of a request to its end.
    sending: Mutex<()>,
    /// A pair of sockets for the next job, made while there was nothing else to do.
    next_channel: Mutex<Option<(Socket, OwnedFd)>>,
    /// Its cgroups, if it has any.
    group: OnceLock<Arc<Group>>,
    /// The jobs in the background, until someone has waited for their end.
    jobs: Mutex<Vec<Job>>,
}

impl Control {
    pub(crate) fn new(messages: Messages) -> Arc<Self> {
        let (sending, next_channel) = (Mutex::default(), Mutex::default());
        let group = OnceLock::new();
        Arc::new(Self { messages, sending, next_channel, group, jobs: Mutex::default() })
    }

    /// Gives it cgroups, for all jobs from here on.
    pub(crate) fn give_group(&self, group: Arc<Group>) {
        self.group.get_or_init(|| group);
    }

    /// The way into the cgroups of what is no program, if there are any.
    pub(crate) fn entrance_of_builtins(&self) -> Result<Entrance> {
        self.group
            .get()
            .map_or_else(|| Ok(Entrance::default()), |group| group.entrance_of_builtins())
    }

    /// Cgroups for a job, if there are any, and the way into them; see [`Group::seat`].
    pub(crate) fn seat(&self, counted: bool) -> Result<(Option<Arc<Seat>>, Entrance)> {
        let Some(group) = self.group.get() else { return Ok((None, Entrance::default())) };
        group.seat(counted).map(|(seat, entrance)| (Some(seat), entrance))
    }

    pub(crate) fn group(&self) -> Option<&Arc<Group>> {
        self.group.get()
    }

    /// The socket itself, for set-up.
    pub(crate) fn messages(&self) -> &Messages {
        &self.messages
    }

    /// Sends a request to init.
    pub(crate) fn request(&self, request: &Request<'_>, descriptors: &[RawFd]) -> Result<()> {
        self.request_by(Deadline::NEVER, request, descriptors)
    }

    /// The same, if it can begin by the deadline. Where it can't, nothing was sent, and others may
    /// have more patience.
    pub(crate) fn request_by(
        &self,
        deadline: Deadline,
        request: &Request<'_>,
        descriptors: &[RawFd],
    ) -> Result<()> {
        let frame = wire::frame_of(request)?;
        let begin = deadline.min(Deadline::after(REQUEST));
        loop {
            let sending = lock(&self.sending);
            let sent = wire::send_now(self.messages.as_fd(), &frame, descriptors)?;
            if sent != 0 {
                let rest = frame.get(sent..).unwrap_or_default();
                let done = wire::send_rest(self.messages.as_fd(), rest, Deadline::after(REQUEST));
                if let Err(Error::TimedOut { .. }) = done {
                    // Whatever followed would be read as the rest of this. To init, this is the end
                    // of the host, and its own.
                    shutdown(self.messages.as_fd().as_raw_fd(), Shutdown::Both)
                        .map_err(Error::io("shutdown"))?;
                }
                return done;
            }
            // The others wait beside this one, and not for it.
            drop(sending);
            wire::wait_for_room(self.messages.as_fd(), begin)?;
        }
    }

    /// A channel for a job: our end, and init's.
    pub(crate) fn take_channel(&self) -> Result<(Socket, OwnedFd)> {
        lock(&self.next_channel).take().map_or_else(wire::channel, Ok)
    }

    /// Makes ready what the next job takes: to be called when init has something to do.
    pub(crate) fn prepare_next(&self) {
        let mut next = lock(&self.next_channel);
        if next.is_none() {
            // If there is none now, the next job says why.
            *next = wire::channel().ok();
        }
    }

    pub(crate) fn jobs(&self) -> MutexGuard<'_, Vec<Job>> {
        lock(&self.jobs)
    }
}
