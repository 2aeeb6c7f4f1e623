//! The control socket of a sandbox: what is asked of its init.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use adl_protocol::{NetworkOrigin, Request};
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{Gid, Uid};

use crate::cgroup::{self, CpuFile, Group, JobCgroup, JoinFiles};
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::id_ranges::Ids;
use crate::sys::lock::lock;
use crate::sys::network_namespace::NetworkNamespace;
use crate::sys::owner::Owner;
use crate::sys::socket::Socket;
use crate::wait::{Deadline, wait_ready};
use crate::wire::{self, Messages};

/// How long init may take to read a request: it never waits for anything itself.
pub(crate) const REQUEST: Duration = Duration::from_secs(10);

/// The way to a sandbox's init, shared by the sandbox and its commands.
#[derive(Debug)]
pub(crate) struct Control {
    /// What init says there, in set-up alone.
    messages: Messages,
    /// Readable when init has ended.
    init: Arc<OwnedFd>,
    /// What is still to be sent of a request that was begun: before that, no other can be.
    begun: Mutex<Begun>,
    /// A pair of sockets for the next job, made while there was nothing else to do.
    next_channel: Mutex<Option<(Socket, OwnedFd)>>,
    /// Whose network it has.
    network: NetworkOrigin,
    /// Which network namespace that is (`SO_NETNS_COOKIE`), since init was ready.
    cookie: OnceLock<u64>,
    /// That network namespace, since someone has asked for a socket in it, until the end.
    namespace: Mutex<Option<Arc<NetworkNamespace>>>,
    /// Its cgroups, if it has any.
    group: OnceLock<Arc<Group>>,
    /// The channels of commands that someone may wait for who does not hold the sandbox.
    /// `None` from the end of the sandbox on.
    waited_for: Mutex<Option<Vec<Weak<Messages>>>>,
    /// Which ids there are inside.
    ids: Ids,
    /// The first id outside of those inside, if they are a range of their own.
    first_id: Option<u32>,
    owner: Owner,
}

/// The request that was begun last.
#[derive(Debug, Default)]
struct Begun {
    number: u64,
    /// Of its frame.
    rest: Vec<u8>,
}

/// Who may open a pipe again that a command has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PipeOwner {
    /// The caller, who is that user inside, too.
    Caller,
    /// That user of the host's.
    Other(Uid, Gid),
    /// Whoever reaches it: the caller can't give it to a subordinate id. No one does but by
    /// `/proc/PID/fd` of who has it, which is for that user alone.
    Anyone,
}

impl Control {
    pub(crate) fn new(
        messages: Messages,
        init: Arc<OwnedFd>,
        ids: Ids,
        first_id: Option<u32>,
        network: NetworkOrigin,
    ) -> Arc<Self> {
        Arc::new(Self {
            messages,
            init,
            begun: Mutex::default(),
            next_channel: Mutex::default(),
            network,
            cookie: OnceLock::new(),
            namespace: Mutex::default(),
            group: OnceLock::new(),
            waited_for: Mutex::new(Some(Vec::new())),
            ids,
            first_id,
            owner: Owner::this_process(),
        })
    }

    /// Readable when init has ended.
    pub(crate) fn init(&self) -> &Arc<OwnedFd> {
        &self.init
    }

    /// Whether the caller is the process that made it.
    pub(crate) fn is_own(&self) -> bool {
        self.owner.is_this_process()
    }

    /// Refuses a fork of the process that made it: that has the same socket, and each lock as a
    /// thread of its parent may have held it.
    pub(crate) fn check_own(&self) -> Result<()> {
        self.owner.check("the sandbox")
    }

    /// Whether the kernel tells the caller of init what it tells who may trace that (`ptrace(2)`).
    /// It does so to root alone: the memory of init belongs to the user namespace of the host
    /// (`init_binary.rs`), and soon after its beginning it is not dumpable.
    pub(crate) fn may_look_at_init(&self) -> bool {
        self.first_id.is_some()
    }

    /// Whose network it has.
    pub(crate) fn network(&self) -> NetworkOrigin {
        self.network
    }

    /// Says what the sockets of its network namespace do of that.
    pub(crate) fn give_cookie(&self, cookie: u64) {
        self.cookie.get_or_init(|| cookie);
    }

    /// What the sockets of its network namespace say of that.
    pub(crate) fn cookie(&self) -> Result<u64> {
        // Before it is ready, no one has it.
        self.cookie.get().copied().ok_or(Error::SandboxDied)
    }

    /// That network namespace, which `open` opens the first time.
    pub(crate) fn namespace(
        &self,
        open: impl FnOnce() -> Result<NetworkNamespace>,
    ) -> Result<Arc<NetworkNamespace>> {
        if let Some(namespace) = &*lock(&self.namespace) {
            return Ok(Arc::clone(namespace));
        }
        // The lock is not held while init is waited for.
        let opened = Arc::new(open()?);
        // With this lock held: an end that comes now finds it there.
        let waited_for = lock(&self.waited_for);
        if waited_for.is_none() {
            return Err(Error::SandboxDied);
        }
        Ok(Arc::clone(lock(&self.namespace).get_or_insert(opened)))
    }

    /// Gives it cgroups, for all jobs from here on.
    pub(crate) fn give_group(&self, group: Arc<Group>) {
        self.group.get_or_init(|| group);
    }

    /// The way into the cgroups of what is no program, if there are any.
    pub(crate) fn join_files_of_builtins(&self) -> Result<JoinFiles> {
        self.check_own()?;
        self.group
            .get()
            .map_or_else(|| Ok(JoinFiles::default()), |group| group.join_files_of_builtins())
    }

    /// Cgroups for a job, if there are any, and the way into them; see [`Group::job_cgroup`].
    pub(crate) fn job_cgroup(&self, counted: bool) -> Result<(Option<Arc<JobCgroup>>, JoinFiles)> {
        self.check_own()?;
        let Some(group) = self.group.get() else { return Ok((None, JoinFiles::default())) };
        group.job_cgroup(counted).map(|(job_cgroup, join_files)| (Some(job_cgroup), join_files))
    }

    /// Whether each job sees its cgroups from its own on.
    pub(crate) fn has_cgroup_namespaces(&self) -> bool {
        self.group.get().is_some_and(|group| group.has_cgroup_namespaces())
    }

    /// How init finds out that a job has used the CPU time that it may.
    pub(crate) fn cpu_limit(&self, of: Option<&JobCgroup>, limit: Duration) -> Result<CpuFile> {
        of.ok_or_else(cgroup::no_cpu_time)?.cpu_limit(limit)
    }

    pub(crate) fn group(&self) -> Option<&Arc<Group>> {
        self.group.get()
    }

    /// Whether init runs, and its end of the socket is open.
    pub(crate) fn is_alive(&self) -> bool {
        let mut fds = [
            PollFd::new(self.init.as_fd(), PollFlags::POLLIN),
            // Its end alone: there may be something to read.
            PollFd::new(self.messages.as_fd(), PollFlags::empty()),
        ];
        matches!(wait_ready(&mut fds, Deadline::after(Duration::ZERO)), Ok(false))
    }

    /// The socket itself, for set-up.
    pub(crate) fn messages(&self) -> &Messages {
        &self.messages
    }

    /// Sends a request to init by the deadline.
    ///
    /// # Errors
    /// [`TimedOut`](crate::Error::TimedOut) where init does not read it. If a part has gone by
    /// then, the rest goes before the next request.
    pub(crate) fn request_by(
        &self,
        deadline: Deadline,
        request: &Request<'_>,
        descriptors: &[RawFd],
    ) -> Result<()> {
        self.check_own()?;
        let frame = wire::frame_of(request)?;
        let deadline = deadline.min(Deadline::after(REQUEST));
        let (socket, init) = (self.messages.as_fd(), self.init.as_fd());
        let mut own = None;
        loop {
            let mut begun = lock(&self.begun);
            // It may be done by whoever comes next.
            if own.is_some_and(|own| own != begun.number) {
                return Ok(());
            }
            self.send_rest(&mut begun)?;
            if begun.rest.is_empty() && own.is_none() {
                let sent = wire::send_now(socket, &frame, descriptors)?;
                if sent != 0 {
                    begun.number += 1;
                    begun.rest.extend_from_slice(frame.get(sent..).unwrap_or_default());
                    own = Some(begun.number);
                }
            }
            if begun.rest.is_empty() && own.is_some() {
                return Ok(());
            }
            // The others wait beside this one, and not for it.
            drop(begun);
            wire::wait_for_room(socket, init, deadline)?;
        }
    }

    /// Sends as much as there is room for of what was begun.
    fn send_rest(&self, begun: &mut Begun) -> Result<()> {
        while !begun.rest.is_empty() {
            match wire::send_now(self.messages.as_fd(), &begun.rest, &[])? {
                0 => break,
                sent => drop(begun.rest.drain(..sent)),
            }
        }
        Ok(())
    }

    /// Ends what can be asked of init: from here on, that is [`Error::SandboxDied`].
    pub(crate) fn close(&self) {
        // It fails where there is no other end any more.
        let _ = shutdown(self.messages.as_fd().as_raw_fd(), Shutdown::Both);
    }

    /// Which ids there are inside.
    pub(crate) fn ids(&self) -> Ids {
        self.ids
    }

    /// Who a pipe is to belong to that a user inside may open again.
    pub(crate) fn pipe_owner(&self, uid: u32, gid: u32) -> PipeOwner {
        match (self.first_id, self.ids) {
            // Others are none inside, and init says so.
            (Some(first), Ids::Range(length)) if uid < length && gid < length => {
                PipeOwner::Other(Uid::from_raw(first + uid), Gid::from_raw(first + gid))
            }
            (None, Ids::Range(_)) if uid != 0 => PipeOwner::Anyone,
            _ => PipeOwner::Caller,
        }
    }

    /// Remembers the channel of a command, whose waits end with the sandbox.
    pub(crate) fn add_waited_for(&self, channel: &Arc<Messages>) {
        let mut all = lock(&self.waited_for);
        let Some(all) = &mut *all else { return channel.end() };
        // Looked through when it would grow, and so for a moment of each command's time.
        if all.len() == all.capacity() {
            all.retain(|channel| channel.strong_count() != 0);
        }
        all.push(Arc::downgrade(channel));
    }

    /// Whether a process of a job may be still to come that init was asked for.
    pub(crate) fn is_any_to_come(&self) -> bool {
        let all = lock(&self.waited_for);
        let mut all = all.iter().flatten().filter_map(Weak::upgrade);
        all.any(|channel| channel.may_be_to_come())
    }

    /// Wakes up all that wait for a command: the sandbox is at its end, whether or not the kernel
    /// can end each process of it.
    pub(crate) fn end_waits(&self) {
        self.close();
        *lock(&self.next_channel) = None;
        let all = lock(&self.waited_for).take().unwrap_or_default();
        *lock(&self.namespace) = None;
        all.into_iter().filter_map(|channel| channel.upgrade()).for_each(|channel| channel.end());
    }

    /// A channel for a job: our end, and init's.
    pub(crate) fn take_channel(&self) -> Result<(Socket, OwnedFd)> {
        self.check_own()?;
        lock(&self.next_channel).take().map_or_else(wire::channel, Ok)
    }

    /// Makes ready what the next job takes: to be called when init has something to do.
    pub(crate) fn prepare_next(&self) {
        let mut next = lock(&self.next_channel);
        if next.is_none() {
            // If there is none now, the next job says why. Where there are many descriptors, those
            // of a program that has thousands of sandboxes, two for each would be too many.
            *next = wire::channel().ok().filter(|(_, inits)| are_plenty_beside(inits.as_raw_fd()));
        }
    }
}

/// Whether more can be opened beside one with that number, than is open already: the kernel gives
/// the lowest that is free.
fn are_plenty_beside(number: RawFd) -> bool {
    u64::try_from(number).is_ok_and(|number| number < sys::most_descriptors() / 2)
}
