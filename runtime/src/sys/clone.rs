//! Starting init in namespaces of its own: the clone, and what its child does until its `execve`.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use adl_protocol::Origin;

use super::child;
use super::empty_namespace::EmptyNamespace;
use super::inheritance::{self, SessionKeyring};
use super::{creator, filled_mask, pidfd, raw, unblocked_mask};

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
    launch: Option<Launch>,
}

impl Process {
    /// A child that executes nothing.
    pub(super) fn of_child(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd: Arc::new(pidfd), launch: None }
    }

    /// Why the child could not execute its program, if it could not.
    pub(crate) fn launch_error(&self) -> Option<io::Error> {
        let errno = self.launch.as_ref()?.0.errno.load(Ordering::Acquire);
        (errno != 0).then(|| io::Error::from_raw_os_error(errno))
    }

    /// Gives back what the launch needed, if the child has let go of it.
    pub(crate) fn launched(&mut self) {
        self.launch = None;
    }
}

/// What a child of [`spawn_in_namespaces`] uses of the caller's memory until its `execve`.
#[derive(Debug)]
struct Launch(Box<Shared>);

#[derive(Debug)]
struct Shared {
    executable: RawFd,
    control: RawFd,
    capabilities: u64,
    keyring: SessionKeyring,
    /// Of clone(2).
    flags: c_int,
    /// The mount namespace to clone from, where that is not the caller's, and what came of it.
    from: RawFd,
    entered: AtomicI32,
    /// The child, or an error number below 0 where there is none, or [`UNTOLD`].
    child: AtomicI32,
    pidfd: AtomicI32,
    /// Why it could not execute its program; 0 until then.
    errno: AtomicI32,
    /// Not 0 for as long as the child uses this memory: the kernel clears it when the child
    /// executes a program or ends (CLONE_CHILD_CLEARTID).
    in_use: AtomicI32,
    /// u128: aligned as a stack must be.
    stack: [u128; 1024],
    /// That of the process between the caller and the child, if there is one.
    stack_between: [u128; 512],
}

/// Whoever was to tell of the child has been killed.
const UNTOLD: i32 = 0;

impl Shared {
    fn unused() -> Self {
        Self {
            executable: -1,
            control: -1,
            capabilities: 0,
            keyring: SessionKeyring::Own,
            flags: 0,
            from: -1,
            entered: AtomicI32::new(0),
            child: AtomicI32::new(-libc::EAGAIN),
            pidfd: AtomicI32::new(-1),
            errno: AtomicI32::new(0),
            in_use: AtomicI32::new(0),
            stack: [0; 1024],
            stack_between: [0; 512],
        }
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        if self.0.in_use.load(Ordering::Acquire) != 0 {
            // The child runs on this stack. A leak of 24 KiB, where the kernel takes seconds to
            // kill a process, is the better choice.
            let unused = Box::new(Shared::unused());
            std::mem::forget(std::mem::replace(&mut self.0, unused));
        }
    }
}

/// What [`spawn_in_namespaces`] starts.
#[derive(Debug)]
pub(crate) struct Init<'a> {
    pub(crate) executable: BorrowedFd<'a>,
    /// Becomes its descriptor 0, and it has no other.
    pub(crate) control: BorrowedFd<'a>,
    /// The user who makes its user namespace, if that is another than the caller.
    pub(crate) maker: Option<u32>,
    /// Those in its user namespace: bit `n` is number `n`.
    pub(crate) capabilities: u64,
    pub(crate) keyring: SessionKeyring,
}

/// Starts init in new namespaces, with an empty argument list and environment. Its mounts are those
/// of `empty`, or the caller's if there is none or it can't be entered. Returns at once;
/// [`Process::launch_error`] tells a failure, after which the other end of its socket is closed.
///
/// Until its `execve` the child shares the caller's memory, so that the size of that costs nothing;
/// the kernel copies the caller's table of descriptors and the mounts. It is not waited for, as
/// `vfork(2)` would, because what the host does next takes as long as the child's `execve`. Between
/// clone and exec there is no allocation, no lock and no code of the standard or the C library,
/// with whose state other threads go on.
///
/// # Errors
/// What `clone(2)` says.
pub(crate) fn spawn_in_namespaces(
    namespaces: Namespaces,
    init: &Init<'_>,
    empty: Option<&EmptyNamespace>,
) -> io::Result<(Process, Origin)> {
    let mut launch = Launch(Box::new(Shared {
        executable: init.executable.as_raw_fd(),
        control: init.control.as_raw_fd(),
        capabilities: init.capabilities,
        keyring: init.keyring,
        flags: namespaces.0
            | libc::CLONE_VM
            | libc::CLONE_PIDFD
            | libc::CLONE_CHILD_CLEARTID
            | libc::SIGCHLD,
        from: empty.map_or(-1, |namespace| namespace.as_fd().as_raw_fd()),
        in_use: AtomicI32::new(1),
        ..Shared::unused()
    }));
    let shared = &raw mut *launch.0;

    // No handler of the caller may run in the child, where it would see the caller's memory but
    // another process.
    let mut old_mask = unblocked_mask();
    let all = filled_mask();
    // SAFETY: both are initialised signal sets.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old_mask) };
    // SAFETY: `Shared`, with the stacks in it, is kept until the kernel has cleared `in_use`, which
    // is what Launch's drop sees to.
    let clone = || unsafe {
        match empty.map(|_| clone_from_empty(shared)) {
            Some(Some(cloned)) => cloned.map(|pid| (pid, Origin::Empty)),
            Some(None) | None => {
                let pid = clone_init(shared, 0);
                if pid < 0 { Err(io::Error::last_os_error()) } else { Ok((pid, Origin::Caller)) }
            }
        }
    };
    let cloned = match init.maker {
        Some(id) => creator::as_user(id, clone).flatten(),
        None => clone(),
    };
    // SAFETY: `old_mask` is what it was before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old_mask, ptr::null_mut()) };
    let (pid, origin) = cloned.inspect_err(|_| {
        if launch.0.child.load(Ordering::Acquire) != UNTOLD {
            launch.0.in_use.store(0, Ordering::Release);
        }
    })?;
    // SAFETY: the kernel made it, for us.
    let descriptor = unsafe { OwnedFd::from_raw_fd(launch.0.pidfd.load(Ordering::Acquire)) };
    Ok((Process { pid, pidfd: Arc::new(descriptor), launch: Some(launch) }, origin))
}

/// Clones init; returns its pid, or a number below 0 with `errno` set.
///
/// # Safety
/// `shared` is kept until the kernel has cleared `in_use`.
unsafe fn clone_init(shared: *mut Shared, more: c_int) -> c_int {
    // SAFETY: the top of the stack is its end, aligned to 16; CLONE_PIDFD writes a descriptor to
    // `pidfd` before this returns.
    unsafe {
        libc::clone(
            become_init,
            (&raw mut (*shared).stack).add(1).cast(),
            (*shared).flags | more,
            shared.cast(),
            (*shared).pidfd.as_ptr(),
            ptr::null_mut::<c_void>(),
            (*shared).in_use.as_ptr(),
        )
    }
}

/// Clones init from the empty namespace: by a process between, which enters that, clones init as a
/// child of the caller, and ends. `None` if it could not enter.
///
/// # Safety
/// As for [`clone_init`].
unsafe fn clone_from_empty(shared: *mut Shared) -> Option<io::Result<i32>> {
    // Until it has ended, this thread does not run: its thread-local memory is the other's.
    let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_VFORK;
    // SAFETY: the process has ended when this returns, or this one is being killed.
    unsafe {
        let top = (&raw mut (*shared).stack_between).add(1).cast();
        let pid = libc::clone(enter_and_clone, top, flags, shared.cast());
        if pid < 0 {
            return Some(Err(io::Error::last_os_error()));
        }
        child::wait(pid);
        if (*shared).entered.load(Ordering::Acquire) != 0 {
            return None;
        }
        match (*shared).child.load(Ordering::Acquire) {
            UNTOLD => {
                // The kernel wrote this before there was a child.
                let pidfd = (*shared).pidfd.load(Ordering::Acquire);
                if pidfd >= 0 {
                    let child = OwnedFd::from_raw_fd(pidfd);
                    let _ = pidfd::kill(&child).and_then(|()| pidfd::reap(&child));
                }
                Some(Err(io::Error::from_raw_os_error(libc::EAGAIN)))
            }
            pid if pid > 0 => Some(Ok(pid)),
            errno => Some(Err(io::Error::from_raw_os_error(-errno))),
        }
    }
}

/// The process between. It shares memory, descriptors and thread-local memory with the caller.
extern "C" fn enter_and_clone(shared: *mut c_void) -> c_int {
    let shared = shared.cast::<Shared>();
    // SAFETY: the caller's, which waits. Init is the caller's child, not this one's. It signals its
    // end as the first of this process's threads does, by nothing, until its execve has changed
    // that to SIGCHLD.
    unsafe {
        let (from, kind) = ((*shared).from as usize, libc::CLONE_NEWNS as usize);
        match raw(libc::SYS_setns, [from, kind, 0, 0, 0]) {
            Err(errno) => (*shared).entered.store(errno, Ordering::Release),
            Ok(_) => {
                (*shared).child.store(UNTOLD, Ordering::Release);
                let pid = clone_init(shared, libc::CLONE_PARENT);
                let pid = if pid < 0 { -*libc::__errno_location() } else { pid };
                (*shared).child.store(pid, Ordering::Release);
            }
        }
        let _ = raw(libc::SYS_exit, [0; 5]);
    }
    0
}

/// The child. It shares memory with a program whose threads run on.
extern "C" fn become_init(shared: *mut c_void) -> c_int {
    // SAFETY: the caller of clone passes a `Shared`, and keeps it until this has ended; what it
    // changes meanwhile is atomic.
    let shared = unsafe { &*shared.cast::<Shared>() };
    let Err(errno) = execute_init(shared);
    shared.errno.store(errno, Ordering::Release);
    // SAFETY: takes no pointer.
    let _ = unsafe { raw(libc::SYS_exit, [127, 0, 0, 0, 0]) };
    127
}

fn execute_init(shared: &Shared) -> Result<std::convert::Infallible, i32> {
    const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    const RAISE: usize = libc::PR_CAP_AMBIENT_RAISE as usize;
    const AMBIENT: usize = libc::PR_CAP_AMBIENT as usize;
    // 0. What the caller lends without meaning to.
    inheritance::give_up(shared.keyring)?;
    // SAFETY: system calls with valid pointers, to memory of this function or constants. dup2 and
    // close_range change the child's own table, which clone has copied.
    unsafe {
        // 1. An exec by a user whose ids are not mapped yet drops all capabilities but ambient
        //    ones, and ambient ones must be inheritable.
        let header = [CAPABILITY_VERSION_3, 0];
        let mut sets = [0_u32; 6];
        let (header, data) = (header.as_ptr() as usize, sets.as_mut_ptr() as usize);
        raw(libc::SYS_capget, [header, data, 0, 0, 0])?;
        let [_, permitted_low, inheritable_low, _, permitted_high, inheritable_high] = &mut sets;
        *inheritable_low = *permitted_low;
        *inheritable_high = *permitted_high;
        raw(libc::SYS_capset, [header, data, 0, 0, 0])?;
        let mut rest = shared.capabilities;
        while rest != 0 {
            let capability = rest.trailing_zeros() as usize;
            // EINVAL, for one that this kernel does not know, is no loss.
            let _ = raw(libc::SYS_prctl, [AMBIENT, RAISE, capability, 0, 0]);
            rest &= rest - 1;
        }
        // 2. The control socket is descriptor 0; all else is closed by the exec, also what the
        //    calling program left inheritable.
        raw(libc::SYS_dup2, [shared.control as usize, 0, 0, 0, 0])?;
        let (last, close) = (u32::MAX as usize, libc::CLOSE_RANGE_CLOEXEC as usize);
        raw(libc::SYS_close_range, [1, last, close, 0, 0])?;
        // 3. init. No id is mapped yet, so that it belongs to the namespace of the caller's ids.
        let nothing: [usize; 1] = [0];
        let nothing = nothing.as_ptr() as usize;
        let (empty, flags) = (c"".as_ptr() as usize, libc::AT_EMPTY_PATH as usize);
        let executable = shared.executable as usize;
        Err(raw(libc::SYS_execveat, [executable, empty, nothing, nothing, flags])
            .err()
            .unwrap_or(libc::EINVAL))
    }
}
