//! The system calls that nix lacks, behind safe functions.
//!
//! The library has no unsafe code but here and in the modules below.
#![expect(unsafe_code, reason = "system calls")]

use std::ffi::{CStr, CString, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::poll::{PollFd, PollTimeout, poll};
use nix::sys::socket::MsgFlags;

mod child;
pub(crate) mod clone;
mod creator;
pub(crate) mod empty_namespace;
pub(crate) mod id_ranges;
pub(crate) mod inheritance;
pub(crate) mod ioctl;
pub(crate) mod joined_network;
pub(crate) mod listing;
pub(crate) mod lock;
pub(crate) mod mount;
pub(crate) mod network_namespace;
pub(crate) mod open;
pub(crate) mod own_namespaces;
pub(crate) mod own_table;
pub(crate) mod owner;
pub(crate) mod per_process;
pub(crate) mod pidfd;
pub(crate) mod proc;
pub(crate) mod program;
pub(crate) mod quotactl;
pub(crate) mod shared;
pub(crate) mod sockaddr;
pub(crate) mod socket;
pub(crate) mod stamp;
pub(crate) mod surroundings;
pub(crate) mod unique;
pub(crate) mod user_namespace;
#[cfg(test)]
mod watchdog;

/// Makes a system call without the C library, whose `errno` the child would share with the thread
/// that made it.
///
/// # Safety
/// As the system call demands.
unsafe fn raw(number: libc::c_long, arguments: [usize; 5]) -> Result<usize, i32> {
    let [a, b, c, d, e] = arguments;
    let result: isize;
    // SAFETY: the convention of x86_64; the caller answers for the arguments.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a,
            in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, lateout("rcx") _,
            lateout("r11") _, options(nostack));
    }
    usize::try_from(result).map_err(|_| i32::try_from(-result).unwrap_or(i32::MAX))
}

/// What a system call has made.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel made it, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An anonymous file that can be executed (`MFD_EXEC`, Linux 6.3) and sealed.
pub(crate) fn executable_memfd(name: &CStr) -> io::Result<OwnedFd> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a NUL-ended name.
    let make = |flags| check(unsafe { libc::memfd_create(name.as_ptr(), flags) }.into());
    let fd = match make(flags | MFD_EXEC) {
        // An older kernel, where all of them can be executed.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => make(flags),
        other => other,
    }?;
    // SAFETY: the kernel made it, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).map_err(io::Error::other)?) })
}

/// How many of those are ready, at once.
fn poll_now(fds: &mut [PollFd<'_>]) -> nix::Result<c_int> {
    loop {
        match poll(fds, PollTimeout::ZERO) {
            // A signal ends this call, too, though it does not wait.
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Has a function called at the normal end of the process; it must not unwind.
pub(crate) fn at_exit(function: extern "C" fn()) {
    // SAFETY: any function may be registered. If it can't be, it is not called.
    unsafe { libc::atexit(function) };
}

/// The time since the machine was started, in hundredths of a second: the unit of
/// `/proc/PID/stat` (`USER_HZ`, 100 on this architecture).
pub(crate) fn ticks_since_boot() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes a struct timespec; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let ticks = time.tv_sec * 100 + time.tv_nsec / 10_000_000;
    u64::try_from(ticks).unwrap_or(0)
}

/// The most descriptors that this process may have (`RLIMIT_NOFILE`).
pub(crate) fn most_descriptors() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes a struct rlimit.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}

/// Gives the calling thread, and no other, the lowest priority.
pub(crate) fn lower_priority() {
    // SAFETY: takes no pointer; 0 is the calling thread. If it can't be lowered, it stays.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

/// Lets go of a lock of flock(2), whoever else has a copy of the descriptor.
pub(crate) fn unlock(file: impl AsFd) {
    // SAFETY: takes no pointer. One that has none is as it should be.
    unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_UN) };
}

/// The path of an open file that leads to itself, whatever its name means by now (proc_pid_fd(5)).
pub(crate) fn path_of(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Changes the mode of what was opened with `O_PATH`.
pub(crate) fn change_mode(fd: impl AsFd, mode: nix::sys::stat::Mode) -> nix::Result<()> {
    use nix::sys::stat::{FchmodatFlags, fchmodat};
    fchmodat(nix::fcntl::AT_FDCWD, path_of(fd).as_str(), mode, FchmodatFlags::FollowSymlink)
}

/// Tells ext4 that what is made in a directory has nothing to do with one another, so that it
/// spreads it over the disk (`FS_TOPDIR_FL`, ioctl_iflags(2)). No other file system knows it.
pub(crate) fn spread_entries(directory: impl AsFd) {
    const FS_TOPDIR_FL: c_int = 0x2_0000;
    // Where it fails, things stay as they are.
    if let Ok(flags) = ioctl::inode_flags(&directory)
        && flags & FS_TOPDIR_FL == 0
    {
        let _ = ioctl::set_inode_flags(&directory, flags | FS_TOPDIR_FL);
    }
}

/// Has reads and writes wait, or return instead, for all who share the open file.
pub(crate) fn set_blocking(fd: impl AsFd, blocking: bool) -> nix::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = if blocking { OFlag::empty() } else { OFlag::O_NONBLOCK };
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags)).map(drop)
}

/// Sets the size of a terminal, in characters; its programs get SIGWINCH.
pub(crate) fn set_window_size(fd: impl AsFd, rows: u16, columns: u16) -> nix::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a struct winsize.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    nix::errno::Errno::result(result).map(drop)
}

/// Calls what may write to a pipe that no one reads any more, or beyond the longest that a file may
/// be, without the SIGPIPE or SIGXFSZ that would end a program which does not ignore it: pipes have
/// no `MSG_NOSIGNAL`, and the calling program's signal handlers are not ours to change.
pub(crate) fn without_write_signals<T>(write: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    use nix::errno::Errno;
    let mut signals = unblocked_mask();
    let mut old_mask = unblocked_mask();
    let mut pending = unblocked_mask();
    // SAFETY: initialised signal sets.
    unsafe {
        libc::sigaddset(&raw mut signals, libc::SIGPIPE);
        libc::sigaddset(&raw mut signals, libc::SIGXFSZ);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, &raw mut old_mask);
        // Only where the thread had one blocked before can it have been waiting.
        if [libc::SIGPIPE, libc::SIGXFSZ]
            .iter()
            .any(|signal| libc::sigismember(&raw const old_mask, *signal) == 1)
        {
            libc::sigpending(&raw mut pending);
        }
    }
    let result = write();
    let signal = match result {
        Err(Errno::EPIPE) => Some(libc::SIGPIPE),
        Err(Errno::EFBIG) => Some(libc::SIGXFSZ),
        _ => None,
    };
    if let Some(signal) = signal {
        let mut its_own = unblocked_mask();
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: initialised sets and time; no information is asked for.
        unsafe {
            if libc::sigismember(&raw const pending, signal) != 1 {
                libc::sigaddset(&raw mut its_own, signal);
                libc::sigtimedwait(&raw const its_own, ptr::null_mut(), &raw const at_once);
            }
        }
    }
    // SAFETY: `old_mask` is what it was before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old_mask, ptr::null_mut()) };
    result
}

/// Calls what may read from a terminal that another job of the caller's shell has: that is EIO
/// then, and no SIGTTIN stops the whole process group.
pub(crate) fn without_sigttin<T>(read: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal};
    let old_mask = SigSet::from(Signal::SIGTTIN).thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let result = read();
    old_mask.thread_set_mask()?;
    result
}

fn unblocked_mask() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn filled_mask() -> libc::sigset_t {
    let mut set = unblocked_mask();
    // SAFETY: an initialised set.
    unsafe { libc::sigfillset(&raw mut set) };
    set
}

/// How many processors the machine has, those that are off among them.
pub(crate) fn processors() -> u32 {
    // SAFETY: takes no pointer.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
    u32::try_from(count).unwrap_or(1).max(1)
}

/// The longest that this process may make a file, in bytes (`RLIMIT_FSIZE`): to try more is to get
/// SIGXFSZ, which ends it.
pub(crate) fn longest_file() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes a struct rlimit.
    match unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}

/// The bytes that wait to be read.
pub(crate) fn bytes_available(fd: impl AsFd) -> io::Result<usize> {
    let mut count: c_int = 0;
    // SAFETY: FIONREAD writes an int.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) }.into())?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Reads what there is, without a wait where the kernel can say so, whatever the flags of the open
/// file: those are everyone's who has it. `may_wait` is for a file, of which a disk alone is waited
/// for.
pub(crate) fn read_now(fd: impl AsFd, buffer: &mut [u8], may_wait: bool) -> nix::Result<usize> {
    if !may_wait {
        let space = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let number = fd.as_fd().as_raw_fd();
        // SAFETY: one buffer with its length; -1 is the position of the open file.
        let count = unsafe { libc::preadv2(number, &raw const space, 1, -1, libc::RWF_NOWAIT) };
        match nix::errno::Errno::result(count) {
            // A terminal; before Linux 6.5, a pipe or a socket.
            Err(nix::errno::Errno::EOPNOTSUPP) => {}
            read => return read.map(isize::unsigned_abs),
        }
        match nix::sys::socket::recv(number, buffer, MsgFlags::MSG_DONTWAIT) {
            Err(nix::errno::Errno::ENOTSOCK) => {}
            read => return read,
        }
    }
    nix::unistd::read(fd, buffer)
}

/// Writes as [`read_now`] reads. What may wait all the same is no longer than what a pipe takes
/// that is ready, if `bytes` is.
pub(crate) fn write_now(fd: impl AsFd, bytes: &[u8], may_wait: bool) -> nix::Result<usize> {
    if !may_wait {
        let space =
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let number = fd.as_fd().as_raw_fd();
        // SAFETY: one buffer with its length, which is only read.
        let count = unsafe { libc::pwritev2(number, &raw const space, 1, -1, libc::RWF_NOWAIT) };
        match nix::errno::Errno::result(count) {
            Err(nix::errno::Errno::EOPNOTSUPP) => {}
            written => return written.map(isize::unsigned_abs),
        }
        match nix::sys::socket::send(number, bytes, MsgFlags::MSG_DONTWAIT) {
            Err(nix::errno::Errno::ENOTSOCK) => {}
            written => return written,
        }
    }
    nix::unistd::write(fd, bytes)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The value of an extended attribute of an open file (`fgetxattr(2)`), unless it has none.
///
/// # Errors
/// ERANGE for one that is longer than the buffer.
pub(crate) fn extended_attribute<'a>(
    file: BorrowedFd<'_>,
    name: &CStr,
    buffer: &'a mut [u8],
) -> nix::Result<Option<&'a [u8]>> {
    // SAFETY: a valid descriptor, a NUL-ended name, and a buffer with its length.
    let length = unsafe {
        let buffer = (buffer.as_mut_ptr().cast(), buffer.len());
        libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), buffer.0, buffer.1)
    };
    match nix::errno::Errno::result(length) {
        Ok(length) => Ok(buffer.get(..usize::try_from(length).unwrap_or(0))),
        Err(nix::errno::Errno::ENODATA | nix::errno::Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sets an extended attribute of an open file (`fsetxattr(2)`).
pub(crate) fn set_extended_attribute(
    file: BorrowedFd<'_>,
    name: &CStr,
    value: &[u8],
) -> nix::Result<()> {
    // SAFETY: a valid descriptor, a NUL-ended name, and a value with its length.
    let result = unsafe {
        let value = (value.as_ptr().cast(), value.len());
        libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.0, value.1, 0)
    };
    nix::errno::Errno::result(result).map(drop)
}

/// Removes an extended attribute of an open file (`fremovexattr(2)`).
pub(crate) fn remove_extended_attribute(file: BorrowedFd<'_>, name: &CStr) -> nix::Result<()> {
    // SAFETY: a valid descriptor and a NUL-ended name.
    let result = unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) };
    nix::errno::Errno::result(result).map(drop)
}

/// The names of the extended attributes of an open file (`flistxattr(2)`), which no one else
/// changes.
pub(crate) fn extended_attributes(file: BorrowedFd<'_>) -> nix::Result<Vec<CString>> {
    // The longest list that the kernel gives (`XATTR_LIST_MAX`).
    let mut buffer = vec![0_u8; 64 << 10];
    // SAFETY: a valid descriptor, and a buffer with its length.
    let length =
        unsafe { libc::flistxattr(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    let length = match nix::errno::Errno::result(length) {
        Err(nix::errno::Errno::EOPNOTSUPP) => 0,
        length => usize::try_from(length?).unwrap_or(0),
    };
    let names = buffer.get(..length).unwrap_or_default().split_inclusive(|byte| *byte == 0);
    let name = |name: &[u8]| CStr::from_bytes_with_nul(name).ok().map(CStr::to_owned);
    Ok(names.filter_map(name).collect())
}

/// Whether something holds in a child of fork(2), which ends then, without what is done at the end
/// of a process.
#[cfg(test)]
pub(crate) fn in_fork(holds: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child has one thread and a copy of all memory; what it does is up to the caller.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", io::Error::last_os_error());
    if pid == 0 {
        let holds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(holds));
        // SAFETY: does not return.
        unsafe { libc::_exit(i32::from(!matches!(holds, Ok(true)))) };
    }
    let mut status = 0;
    // SAFETY: waitpid writes an int; it is our child.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    status == 0
}
