//! Starting init in namespaces of its own, as a child of the caller.

mod between;
mod execute;
mod shared;

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use adl_protocol::Origin;

pub(crate) use self::between::Refused;
use self::between::clone_by_another;
use self::execute::clone_init;
use self::shared::{Shared, UNBORN, UNTOLD, ids_of_thread};
use super::creator::{self, Untraceable};
use super::empty_namespace::EmptyNamespace;
use super::inheritance::SessionKeyring;
use super::joined_network::JoinedNetwork;
use super::{filled_mask, unblocked_mask};

/// The namespaces of a sandbox, as flags of `clone(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Namespaces(c_int);

impl Namespaces {
    /// User, PID, mount, UTS, IPC and cgroup.
    pub(crate) const BASE: Self = Self(
        libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWCGROUP,
    );

    /// And a network of its own.
    pub(crate) const fn with_network(self) -> Self {
        Self(self.0 | libc::CLONE_NEWNET)
    }
}

/// A process that was started, by its pid and a descriptor that can't come to mean another.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Readable when it has ended. Shared with all who wait for something of it.
    pub(crate) pidfd: Arc<OwnedFd>,
    /// The numbers that the calling user and group have where its user namespace was made.
    pub(crate) ids_of_caller: [u32; 2],
    launch: Option<Launch>,
}

impl Process {
    /// A child that executes nothing.
    pub(super) fn of_child(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd: Arc::new(pidfd), ids_of_caller: ids_of_thread(), launch: None }
    }

    /// Why the child could not execute its program, if it could not.
    pub(crate) fn launch_error(&self) -> Option<io::Error> {
        let errno = self.launch.as_ref()?.shared.errno.load(Ordering::Acquire);
        (errno != 0).then(|| io::Error::from_raw_os_error(errno))
    }

    /// Gives back what the launch needed, if the child has let go of it.
    pub(crate) fn launched(&mut self) {
        self.launch = None;
    }
}

/// What a child of [`spawn_in_namespaces`] uses of the caller's memory until its `execve`.
#[derive(Debug)]
struct Launch {
    shared: Box<Shared>,
    /// Where the user namespace that it begins in is not the caller's.
    untraceable: Option<Untraceable>,
}

impl Drop for Launch {
    fn drop(&mut self) {
        if self.shared.in_use.load(Ordering::Acquire) != 0 {
            // The child runs on this stack. A leak of 24 KiB, where the kernel takes seconds to
            // kill a process, is the better choice.
            let unused = Box::new(Shared::unused());
            std::mem::forget(std::mem::replace(&mut self.shared, unused));
            std::mem::forget(self.untraceable.take());
        }
    }
}

/// What [`spawn_in_namespaces`] starts.
#[derive(Debug)]
pub(crate) struct Init<'a> {
    pub(crate) executable: BorrowedFd<'a>,
    /// Becomes its descriptor 0, and it has no other.
    pub(crate) control: BorrowedFd<'a>,
    /// The other end of that, of which nothing is read yet.
    pub(crate) others: BorrowedFd<'a>,
    /// The user who makes its user namespace, if that is another than the caller.
    pub(crate) maker: Option<u32>,
    /// Those in its user namespace: bit `n` is number `n`.
    pub(crate) capabilities: u64,
    pub(crate) keyring: SessionKeyring,
    /// The network namespace that it is in, if that is neither the caller's nor new.
    pub(crate) network: Option<&'a JoinedNetwork>,
}

/// Starts init in new namespaces, with an empty argument list and environment. Its mounts are those
/// of `empty`, or the caller's if there is none or it can't be entered. Returns at once;
/// [`Process::launch_error`] tells a failure, after which the other end of its socket is closed.
///
/// Until its `execve` the child shares the caller's memory, so that the size of that costs nothing;
/// the kernel copies the mounts, and the caller's table of descriptors but where that is large and
/// init is cloned from `empty`. It is not waited for, as `vfork(2)` would, because what the host
/// does next takes as long as the child's `execve`. Between clone and exec there is no allocation,
/// no lock and no code of the standard or the C library, with whose state other threads go on.
///
/// A network namespace that was there before is joined by a process between, never by the calling
/// thread.
///
/// # Errors
/// What `clone(2)` or `setns(2)` says.
pub(crate) fn spawn_in_namespaces(
    namespaces: Namespaces,
    init: &Init<'_>,
    empty: Option<&EmptyNamespace>,
) -> Result<(Process, Origin), Refused> {
    // Before the process between is in that user namespace, until init has memory of its own.
    let owner = init.network.and_then(JoinedNetwork::owner);
    let untraceable = owner.map(|_| Untraceable::begin()).transpose()?;
    let number = |fd: Option<BorrowedFd<'_>>| fd.map_or(-1, |fd| fd.as_raw_fd());
    let shared = Box::new(Shared {
        executable: init.executable.as_raw_fd(),
        control: init.control.as_raw_fd(),
        capabilities: init.capabilities,
        keyring: init.keyring,
        flags: namespaces.0
            | libc::CLONE_VM
            | libc::CLONE_PIDFD
            | libc::CLONE_CHILD_SETTID
            | libc::CLONE_CHILD_CLEARTID
            | libc::SIGCHLD,
        namespaces: [
            (number(owner.or(empty.and_then(EmptyNamespace::user))), libc::CLONE_NEWUSER),
            (number(init.network.map(AsFd::as_fd)), libc::CLONE_NEWNET),
            (number(empty.map(AsFd::as_fd)), libc::CLONE_NEWNS),
        ],
        in_use: AtomicI32::new(UNBORN),
        ..Shared::unused()
    });
    let mut launch = Launch { shared, untraceable };
    let shared = &raw mut *launch.shared;

    // No handler of the caller may run in the child, where it would see the caller's memory but
    // another process.
    let mut old_mask = unblocked_mask();
    let all = filled_mask();
    // SAFETY: both are initialised signal sets.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old_mask) };
    // SAFETY: `Shared`, with the stacks in it, is kept until the kernel has cleared `in_use`, which
    // is what Launch's drop sees to.
    let clone = || unsafe {
        if empty.is_some()
            && let Some(cloned) = clone_by_another(shared, init.others)
        {
            return Ok((cloned?, Origin::Empty));
        }
        let [.., (mounts, _)] = &mut (*shared).namespaces;
        *mounts = -1;
        if init.network.is_some() {
            (*shared).refused.store(0, Ordering::Release);
            let cloned = clone_by_another(shared, init.others);
            let cloned = cloned.unwrap_or(Err(io::Error::from_raw_os_error(libc::EAGAIN).into()));
            return Ok((cloned?, Origin::Caller));
        }
        let pid = clone_init(shared, 0);
        if pid < 0 { Err(io::Error::last_os_error().into()) } else { Ok((pid, Origin::Caller)) }
    };
    let cloned = match init.maker {
        Some(id) => creator::as_user(id, clone).map_err(Refused::from).flatten(),
        None => clone(),
    };
    // SAFETY: `old_mask` is what it was before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old_mask, ptr::null_mut()) };
    let (pid, origin) = cloned.inspect_err(|_| {
        if launch.shared.child.load(Ordering::Acquire) != UNTOLD {
            launch.shared.in_use.store(0, Ordering::Release);
        }
    })?;
    let Shared { pidfd, ids, .. } = &*launch.shared;
    // SAFETY: the kernel made it, for us.
    let pidfd = Arc::new(unsafe { OwnedFd::from_raw_fd(pidfd.load(Ordering::Acquire)) });
    let ids_of_caller = ids.each_ref().map(|id| id.load(Ordering::Acquire));
    Ok((Process { pid, pidfd, ids_of_caller, launch: Some(launch) }, origin))
}
