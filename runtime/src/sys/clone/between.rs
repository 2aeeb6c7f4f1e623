//! The process between: it enters namespaces that are not the caller's, clones init there, and
//! ends. Init is the caller's child, not its own.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, Shutdown, shutdown};

use super::execute::clone_init;
use super::shared::{Shared, UNBORN, UNTOLD, ids_of_thread};
use crate::sys::socket::{self, Peeked};
use crate::sys::{child, pidfd, raw};

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
pub(super) unsafe fn clone_by_another(
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
