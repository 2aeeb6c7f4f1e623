//! Starting init in namespaces of its own: the clone, and what its child does until its `execve`.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use super::inheritance::{self, SessionKeyring};
use super::{creator, raw, unblocked_mask};

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
    /// Why it could not execute its program; 0 until then.
    errno: AtomicI32,
    /// Not 0 for as long as the child uses this memory: the kernel clears it when the child
    /// executes a program or ends (CLONE_CHILD_CLEARTID).
    in_use: AtomicI32,
    /// u128: aligned as a stack must be.
    stack: [u128; 1024],
}

impl Drop for Launch {
    fn drop(&mut self) {
        if self.0.in_use.load(Ordering::Acquire) != 0 {
            // The child runs on this stack. A leak of 16 KiB, where the kernel takes seconds to
            // kill a process, is the better choice.
            let unused = Box::new(Shared {
                executable: -1,
                control: -1,
                capabilities: 0,
                keyring: SessionKeyring::Own,
                errno: AtomicI32::new(0),
                in_use: AtomicI32::new(0),
                stack: [0; 1024],
            });
            std::mem::forget(std::mem::replace(&mut self.0, unused));
        }
    }
}

/// Starts `executable` in new namespaces, with `control` as its descriptor 0 and no other, an
/// empty argument list and environment, and `capabilities` (bit `n` is number `n`) in its user
/// namespace, which is made by the user `maker`, if that is another. Returns at once;
/// [`Process::launch_error`] tells a failure, after which the other end of `control` is closed.
///
/// Until its `execve` the child shares the caller's memory, so that the size of that costs nothing;
/// the kernel copies the caller's table of descriptors and its mounts. It is not waited for, as
/// `vfork(2)` would, because what the host does next takes as long as the child's `execve`. Between
/// clone and exec there is no allocation, no lock and no code of the standard or the C library,
/// with whose state other threads go on.
///
/// # Errors
/// What `clone(2)` says.
pub(crate) fn spawn_in_namespaces(
    namespaces: Namespaces,
    executable: BorrowedFd<'_>,
    control: BorrowedFd<'_>,
    maker: Option<u32>,
    capabilities: u64,
    keyring: SessionKeyring,
) -> io::Result<Process> {
    let launch = Launch(Box::new(Shared {
        executable: executable.as_raw_fd(),
        control: control.as_raw_fd(),
        capabilities,
        keyring,
        errno: AtomicI32::new(0),
        in_use: AtomicI32::new(1),
        stack: [0; 1024],
    }));
    let shared = ptr::from_ref(&*launch.0).cast_mut();
    let mut pidfd: RawFd = -1;
    let flags = namespaces.0
        | libc::CLONE_VM
        | libc::CLONE_PIDFD
        | libc::CLONE_CHILD_CLEARTID
        | libc::SIGCHLD;

    // No handler of the caller may run in the child, where it would see the caller's memory but
    // another process.
    let mut old_mask = unblocked_mask();
    let all = filled_mask();
    // SAFETY: both are initialised signal sets.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old_mask) };
    // SAFETY: `Shared`, with the stack in it, is kept until the kernel has cleared `in_use`, which
    // is what Launch's drop sees to; the top of the stack is its end, aligned to 16; CLONE_PIDFD
    // writes a descriptor to `pidfd` before this returns.
    let mut clone = || unsafe {
        let stack = &raw mut (*shared).stack;
        let pid = libc::clone(
            become_init,
            stack.add(1).cast(),
            flags,
            shared.cast(),
            &raw mut pidfd,
            ptr::null_mut::<c_void>(),
            (*shared).in_use.as_ptr(),
        );
        if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
    };
    let cloned = match maker {
        Some(id) => creator::as_user(id, &mut clone).flatten(),
        None => clone(),
    };
    // SAFETY: `old_mask` is what it was before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old_mask, ptr::null_mut()) };
    let pid = cloned.inspect_err(|_| launch.0.in_use.store(0, Ordering::Release))?;
    // SAFETY: the kernel made it, for us.
    let pidfd = Arc::new(unsafe { OwnedFd::from_raw_fd(pidfd) });
    Ok(Process { pid, pidfd, launch: Some(launch) })
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

pub(super) fn filled_mask() -> libc::sigset_t {
    let mut set = unblocked_mask();
    // SAFETY: an initialised set.
    unsafe { libc::sigfillset(&raw mut set) };
    set
}
