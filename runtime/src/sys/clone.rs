//! Starting init in namespaces of its own: the clone, and what its child does until its `execve`.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use adl_protocol::Origin;
use nix::sys::socket::{MsgFlags, Shutdown, shutdown};

use super::child;
use super::creator::Untraceable;
use super::empty_namespace::EmptyNamespace;
use super::inheritance::{self, SessionKeyring};
use super::joined_network::JoinedNetwork;
use super::socket::{self, Peeked};
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

#[derive(Debug)]
struct Shared {
    executable: RawFd,
    control: RawFd,
    capabilities: u64,
    keyring: SessionKeyring,
    /// Of clone(2).
    flags: c_int,
    /// What the process between enters, in this order, and of which kinds they are: -1 where it
    /// stays in the caller's. What it could not enter, by its kind, or 0; and why.
    namespaces: [(RawFd, c_int); 3],
    refused: AtomicI32,
    refusal: AtomicI32,
    /// The numbers of the calling user and group in the user namespace that it clones from.
    ids: [AtomicU32; 2],
    /// The calling process, where the child is to have a table of descriptors that is not a copy of
    /// the caller's, or 0; and why it could not, or 0.
    caller: i32,
    own_table: AtomicI32,
    /// The child, or an error number below 0 where there is none, or [`UNTOLD`].
    child: AtomicI32,
    pidfd: AtomicI32,
    /// Why it could not execute its program; 0 until then.
    errno: AtomicI32,
    /// Not 0 for as long as the child uses this memory, or may come to: [`UNBORN`] until the child
    /// runs (CLONE_CHILD_SETTID). The kernel clears it when that executes a program or ends
    /// (CLONE_CHILD_CLEARTID).
    in_use: AtomicI32,
    /// u128: aligned as a stack must be.
    stack: [u128; 1024],
    /// That of the process between the caller and the child, if there is one.
    stack_between: [u128; 512],
}

/// Whoever was to tell of the child has been killed.
const UNTOLD: i32 = 0;

/// No child has run.
const UNBORN: i32 = -1;

impl Shared {
    fn unused() -> Self {
        Self {
            executable: -1,
            control: -1,
            capabilities: 0,
            keyring: SessionKeyring::Own,
            flags: 0,
            namespaces: [
                (-1, libc::CLONE_NEWUSER),
                (-1, libc::CLONE_NEWNET),
                (-1, libc::CLONE_NEWNS),
            ],
            refused: AtomicI32::new(0),
            refusal: AtomicI32::new(0),
            ids: ids_of_thread().map(AtomicU32::new),
            caller: 0,
            own_table: AtomicI32::new(0),
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

/// Why there is no init.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The process could not be cloned.
    Clone(io::Error),
    /// The network namespace could not be joined.
    Join(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Clone(error)
    }
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

/// The effective user and group of the calling thread, as numbers of its user namespace.
fn ids_of_thread() -> [u32; 2] {
    [libc::SYS_geteuid, libc::SYS_getegid].map(|call| {
        // SAFETY: takes no pointer, and can't fail.
        let id = unsafe { raw(call, [0; 5]) }.unwrap_or_default();
        u32::try_from(id).unwrap_or_default()
    })
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

/// From which number on a new descriptor tells of many: the kernel gives the lowest that is free.
/// To copy fewer costs less than to do without, which takes 50 µs.
const MANY_DESCRIPTORS: RawFd = 512;

/// Set where a process between can't take a table of its own, and won't be able to.
static NO_OWN_TABLE: AtomicBool = AtomicBool::new(false);

/// Clones init from namespaces that are not the caller's: by a process between, which enters them,
/// clones init as a child of the caller, and ends. `None` if it could not enter the
/// mounts, or their user namespace; there, also if init could not be cloned: one level deeper, the
/// kernel may refuse what it allows the caller.
///
/// # Safety
/// As for [`clone_init`].
unsafe fn clone_by_another(
    shared: *mut Shared,
    others: BorrowedFd<'_>,
) -> Option<Result<i32, Refused>> {
    // SAFETY: as this function's; the process between has ended when the first call returns.
    unsafe {
        let are_many = (*shared).control >= MANY_DESCRIPTORS;
        if are_many && !NO_OWN_TABLE.load(Ordering::Relaxed) {
            (*shared).caller = std::process::id().cast_signed();
            let numbers = ((*shared).control, (*shared).executable, (*shared).namespaces);
            let cloned = clone_between(shared);
            if !matches!(cloned, Some(Ok(_))) {
                // They may be those of its table by now.
                ((*shared).control, (*shared).executable, (*shared).namespaces) = numbers;
            }
            match (*shared).own_table.load(Ordering::Acquire) {
                0 => {
                    let told = |pid| told(shared, others, pid).map_err(Refused::from);
                    return cloned.map(|cloned| cloned.and_then(told));
                }
                // Who may not, by a filter or for want of a capability, won't the next time.
                libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EINVAL => {
                    NO_OWN_TABLE.store(true, Ordering::Relaxed);
                }
                _ => {}
            }
            (*shared).caller = 0;
        }
        clone_between(shared)
    }
}

/// Takes the pidfd that the process between has sent, where that was made in its own table. Where
/// none came, init ends.
///
/// # Safety
/// As for [`clone_init`].
unsafe fn told(shared: *mut Shared, others: BorrowedFd<'_>, pid: i32) -> io::Result<i32> {
    let came = match socket::peek(others, &mut [0], libc::MSG_DONTWAIT, true) {
        Ok(Peeked { mut descriptors, .. }) => descriptors.pop().ok_or(libc::EMFILE),
        Err(errno) => Err(errno as i32),
    };
    // Which lets go of the descriptor that waits there.
    let taken = nix::sys::socket::recv(others.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT);
    match came {
        Ok(pidfd) if taken.is_ok() => {
            // SAFETY: as this function's.
            unsafe { (*shared).pidfd.store(pidfd.into_raw_fd(), Ordering::Release) };
            Ok(pid)
        }
        other => {
            // As it does when it can't be told anything any more.
            let _ = shutdown(others.as_raw_fd(), Shutdown::Both);
            child::wait(pid);
            let errno = other.err().unwrap_or(libc::EAGAIN);
            Err(io::Error::from_raw_os_error(errno))
        }
    }
}

/// See [`clone_by_another`].
///
/// # Safety
/// As for [`clone_init`].
unsafe fn clone_between(shared: *mut Shared) -> Option<Result<i32, Refused>> {
    let failed = |errno| Some(Err(io::Error::from_raw_os_error(errno).into()));
    // Until it has ended, this thread does not run: its thread-local memory is the other's.
    let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_VFORK;
    // SAFETY: the process has ended when this returns, or this one is being killed.
    unsafe {
        let top = (&raw mut (*shared).stack_between).add(1).cast();
        let pid = libc::clone(enter_and_clone, top, flags, shared.cast());
        if pid < 0 {
            return Some(Err(io::Error::last_os_error().into()));
        }
        child::wait(pid);
        let [(user, _), (network, _), _] = (*shared).namespaces;
        let is_joined = network >= 0;
        match (*shared).refused.load(Ordering::Acquire) {
            0 => {}
            libc::CLONE_NEWNS => return None,
            libc::CLONE_NEWUSER if !is_joined => return None,
            _ => {
                let errno = (*shared).refusal.load(Ordering::Acquire);
                return Some(Err(Refused::Join(io::Error::from_raw_os_error(errno))));
            }
        }
        match (*shared).child.load(Ordering::Acquire) {
            // Init ends when it sees that no one has the other end of its socket.
            UNTOLD if (*shared).caller != 0 => failed(libc::EAGAIN),
            UNTOLD => {
                // A number alone tells of no child: the kernel writes it before it sees that who
                // clones is killed, and may have given it to another thread since.
                let pidfd = (*shared).pidfd.load(Ordering::Acquire);
                if pidfd >= 0 && libc::fcntl(pidfd, libc::F_GETFD) >= 0 && runs(&(*shared).in_use) {
                    let child = OwnedFd::from_raw_fd(pidfd);
                    let _ = pidfd::kill(&child).and_then(|()| pidfd::reap(&child));
                }
                failed(libc::EAGAIN)
            }
            pid if pid > 0 => Some(Ok(pid)),
            _ if !is_joined && user >= 0 => None,
            errno => failed(-errno),
        }
    }
}

/// Whether there is a child, which is waited for. One that takes longer to run ends by itself: no
/// one has the other end of its socket.
fn runs(in_use: &AtomicI32) -> bool {
    const SOON: Duration = Duration::from_millis(200);
    let begin = Instant::now();
    while in_use.load(Ordering::Acquire) == UNBORN {
        if begin.elapsed() > SOON {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// The process between. It shares memory and thread-local memory with the caller, and at first the
/// table of descriptors.
extern "C" fn enter_and_clone(shared: *mut c_void) -> c_int {
    let shared = shared.cast::<Shared>();
    // SAFETY: the caller's, which waits. Init is the caller's child, not this one's. It signals its
    // end as the first of this process's threads does, by nothing, until its execve has changed
    // that to SIGCHLD.
    unsafe {
        // The table first: in another user namespace it has no rights over the caller.
        if let Err(errno) = own_table(shared) {
            (*shared).own_table.store(errno, Ordering::Release);
        } else if let Err((kind, errno)) = enter_namespaces(shared) {
            (*shared).refusal.store(errno, Ordering::Release);
            (*shared).refused.store(kind, Ordering::Release);
        } else {
            (*shared).child.store(UNTOLD, Ordering::Release);
            let pid = clone_init(shared, libc::CLONE_PARENT);
            let pid = if pid < 0 { -*libc::__errno_location() } else { pid };
            if pid > 0 && (*shared).caller != 0 {
                tell_of_child(shared);
            }
            (*shared).child.store(pid, Ordering::Release);
        }
        let _ = raw(libc::SYS_exit, [0; 5]);
    }
    0
}

/// Enters what there is to be entered. An error is with the kind of what could not be.
///
/// # Safety
/// As for [`take_own_table`].
unsafe fn enter_namespaces(shared: *mut Shared) -> Result<(), (c_int, i32)> {
    // SAFETY: as this function's; the call takes numbers.
    unsafe {
        for (namespace, kind) in (*shared).namespaces {
            if namespace >= 0 {
                raw(libc::SYS_setns, [namespace as usize, kind as usize, 0, 0, 0])
                    .map_err(|errno| (kind, errno))?;
            }
        }
        let [uid, gid] = ids_of_thread();
        let [of_user, of_group] = &(*shared).ids;
        of_user.store(uid, Ordering::Release);
        of_group.store(gid, Ordering::Release);
    }
    Ok(())
}

/// See [`take_own_table`]. Where a filter of the caller's ends this process for one of its calls,
/// what is left says so: the caller does without.
///
/// # Safety
/// As for that.
unsafe fn own_table(shared: *mut Shared) -> Result<(), i32> {
    // SAFETY: as this function's.
    unsafe {
        if (*shared).caller != 0 {
            (*shared).own_table.store(libc::EPERM, Ordering::Release);
            take_own_table(shared)?;
            (*shared).own_table.store(0, Ordering::Release);
        }
    }
    Ok(())
}

/// Leaves the caller's table of descriptors for one with what init needs in it and nothing else.
/// The kernel copies to a child what its parent has, and closes it again at the execve: with 16,000
/// descriptors a create takes 1.6 times as long.
///
/// # Safety
/// `shared` is the caller's, and this a process that shares its table.
unsafe fn take_own_table(shared: *mut Shared) -> Result<(), i32> {
    // SAFETY: system calls on numbers, and on memory of this function and of `shared`.
    unsafe {
        let caller = (*shared).caller;
        let [user, network, mounts] = &mut (*shared).namespaces;
        let needed = [
            &raw mut (*shared).control,
            &raw mut (*shared).executable,
            &raw mut user.0,
            &raw mut network.0,
            &raw mut mounts.0,
        ];
        let mut before = [[0; 2]; 5];
        for (number, before) in needed.iter().zip(&mut before) {
            *before = inode(**number)?;
        }
        // Nothing is copied that is to be closed at once.
        let (last, unshare) = (u32::MAX as usize, libc::CLOSE_RANGE_UNSHARE as usize);
        raw(libc::SYS_close_range, [0, last, unshare, 0, 0])?;
        let caller = raw(libc::SYS_pidfd_open, [caller as usize, 0, 0, 0, 0])?;
        for (number, before) in needed.into_iter().zip(before) {
            if *number < 0 {
                continue;
            }
            let taken = raw(libc::SYS_pidfd_getfd, [caller, *number as usize, 0, 0, 0])?;
            *number = taken as RawFd;
            // The first thread of the caller may have another table than the one that clones.
            if inode(*number)? != before {
                return Err(libc::ESTALE);
            }
        }
    }
    Ok(())
}

/// What a file is, for as long as that is open; 0 for a number below 0, which is none.
///
/// # Safety
/// None of its own; a number that is no descriptor is an error.
unsafe fn inode(number: RawFd) -> Result<[u64; 2], i32> {
    if number < 0 {
        return Ok([0; 2]);
    }
    // SAFETY: a plain C struct, for which zero is a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a struct stat, which outlives the call.
    unsafe { raw(libc::SYS_fstat, [number as usize, (&raw mut stat) as usize, 0, 0, 0]) }?;
    Ok([stat.st_dev, stat.st_ino])
}

/// Sends the child's pidfd, which is in this process's table, to the caller: on init's socket, of
/// which init writes nothing before it is asked to. Where it can't be sent, init is killed.
///
/// # Safety
/// `shared` is the caller's.
unsafe fn tell_of_child(shared: *mut Shared) {
    #[repr(C)]
    struct Rights {
        header: libc::cmsghdr,
        descriptor: c_int,
    }
    // SAFETY: plain C structs, for which zero is a value; all that they point to outlives the call.
    unsafe {
        let pidfd = (*shared).pidfd.load(Ordering::Acquire);
        let mut rights: Rights = std::mem::zeroed();
        rights.header.cmsg_len = size_of::<libc::cmsghdr>() + size_of::<c_int>();
        rights.header.cmsg_level = libc::SOL_SOCKET;
        rights.header.cmsg_type = libc::SCM_RIGHTS;
        rights.descriptor = pidfd;
        let mut byte = 0_u8;
        let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut rights).cast();
        message.msg_controllen = size_of::<Rights>();
        let (socket, flags) = ((*shared).control as usize, libc::MSG_NOSIGNAL as usize);
        let sent = raw(libc::SYS_sendmsg, [socket, (&raw const message) as usize, flags, 0, 0]);
        if sent.is_err() {
            let kill = libc::SIGKILL as usize;
            let _ = raw(libc::SYS_pidfd_send_signal, [pidfd as usize, kill, 0, 0, 0]);
        }
    }
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
            match raw(libc::SYS_prctl, [AMBIENT, RAISE, capability, 0, 0]) {
                // One that this kernel does not know is no loss.
                Ok(_) | Err(libc::EINVAL) => {}
                // Without it init would fail later, at what is not to blame.
                Err(errno) => return Err(errno),
            }
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
