//! The system calls that nix lacks, behind safe functions.
//!
//! The library has no unsafe code but here and in the modules below.
#![expect(unsafe_code, reason = "system calls")]

use std::ffi::{CStr, CString, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use inheritance::SessionKeyring;

mod creator;
pub(crate) mod id_ranges;
pub(crate) mod inheritance;
pub(crate) mod ioctl;
pub(crate) mod lock;
pub(crate) mod open;
pub(crate) mod owner;
pub(crate) mod per_process;
pub(crate) mod pidfd;
pub(crate) mod proc;
pub(crate) mod quotactl;
pub(crate) mod socket;
pub(crate) mod unique;

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
    maps: Option<OwnIdMaps>,
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
                maps: None,
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

/// Maps that a user without privilege may write, and only from inside: of their own ids alone.
#[derive(Debug)]
pub(crate) struct OwnIdMaps {
    uid_map: CString,
    gid_map: CString,
}

impl OwnIdMaps {
    /// Id 0 inside is the calling user outside.
    pub(crate) fn of_caller() -> Self {
        let map = |id: u32| CString::new(format!("0 {id} 1\n")).unwrap_or_default();
        Self {
            uid_map: map(nix::unistd::geteuid().as_raw()),
            gid_map: map(nix::unistd::getegid().as_raw()),
        }
    }

    /// Writes them, in the child.
    ///
    /// # Errors
    /// The kernel's error number.
    fn write(&self) -> Result<(), i32> {
        // The kernel asks for `deny` before a user without privilege may map a group.
        let files = [
            (c"/proc/self/setgroups", c"deny"),
            (c"/proc/self/uid_map", self.uid_map.as_c_str()),
            (c"/proc/self/gid_map", self.gid_map.as_c_str()),
        ];
        const FLAGS: usize = (libc::O_WRONLY | libc::O_CLOEXEC) as usize;
        for (path, content) in files {
            let length = content.count_bytes();
            // SAFETY: NUL-ended strings; the length is that of the content.
            unsafe {
                let here = libc::AT_FDCWD as usize;
                let fd = raw(libc::SYS_openat, [here, path.as_ptr() as usize, FLAGS, 0, 0])?;
                raw(libc::SYS_write, [fd, content.as_ptr() as usize, length, 0, 0])?;
                raw(libc::SYS_close, [fd, 0, 0, 0, 0])?;
            }
        }
        Ok(())
    }
}

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
    maps: Option<OwnIdMaps>,
    maker: Option<u32>,
    capabilities: u64,
    keyring: SessionKeyring,
) -> io::Result<Process> {
    let launch = Launch(Box::new(Shared {
        executable: executable.as_raw_fd(),
        control: control.as_raw_fd(),
        maps,
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
    // 1. Ids, where the host has no privilege to map others.
    if let Some(maps) = &shared.maps {
        maps.write()?;
    }
    // SAFETY: system calls with valid pointers, to memory of this function or constants. dup2 and
    // close_range change the child's own table, which clone has copied.
    unsafe {
        // 2. An exec by a user whose ids are not mapped yet drops all capabilities but ambient
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
        // 3. The control socket is descriptor 0; all else is closed by the exec, also what the
        //    calling program left inheritable.
        raw(libc::SYS_dup2, [shared.control as usize, 0, 0, 0, 0])?;
        let (last, close) = (u32::MAX as usize, libc::CLOSE_RANGE_CLOEXEC as usize);
        raw(libc::SYS_close_range, [1, last, close, 0, 0])?;
        // 4. init.
        let nothing: [usize; 1] = [0];
        let nothing = nothing.as_ptr() as usize;
        let (empty, flags) = (c"".as_ptr() as usize, libc::AT_EMPTY_PATH as usize);
        let executable = shared.executable as usize;
        Err(raw(libc::SYS_execveat, [executable, empty, nothing, nothing, flags])
            .err()
            .unwrap_or(libc::EINVAL))
    }
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

/// What is mounted below a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    /// Comes along.
    Included,
    /// Does not.
    LeftOut,
}

impl Below {
    fn flag(self) -> c_int {
        match self {
            Self::Included => libc::AT_RECURSIVE,
            Self::LeftOut => 0,
        }
    }
}

/// A detached mount of a directory or a file: it is in no mount namespace, and gone with its
/// descriptor.
pub(crate) fn detached_mount(what: BorrowedFd<'_>, below: Below) -> io::Result<OwnedFd> {
    let flags = (libc::AT_EMPTY_PATH | below.flag()).unsigned_abs()
        | libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: a valid descriptor and an empty, NUL-ended path.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, what.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Maps the ids of a detached mount by a user namespace (Linux 5.12): a file of id 0 appears as
/// owned by the id that 0 is mapped to.
pub(crate) fn map_ids(
    mount: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
    below: Below,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(user_namespace.as_raw_fd().unsigned_abs()),
    };
    // SAFETY: a valid descriptor, an empty path, and a struct mount_attr of the size that is said.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | below.flag(),
            &raw const attributes,
            size_of_val(&attributes),
        )
    })
    .map(drop)
}

/// A new tmpfs, mounted nowhere, on which device nodes work (`fsopen(2)`, Linux 5.2). Nothing in it
/// is executed or sets ids.
pub(crate) fn detached_tmpfs(options: &[(&CStr, &CStr)]) -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: libc::c_uint = 1;
    const FSMOUNT_CLOEXEC: libc::c_uint = 1;
    const FSCONFIG_SET_STRING: libc::c_uint = 1;
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    const ATTRIBUTES: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    let null = ptr::null::<c_void>();
    // SAFETY: NUL-ended strings, which the kernel copies, and descriptors that are open.
    unsafe {
        let context = owned(libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC))?;
        let fd = context.as_raw_fd();
        for (key, value) in options {
            let (key, value) = (key.as_ptr(), value.as_ptr());
            check(libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_SET_STRING, key, value, 0))?;
        }
        check(libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, null, null, 0))?;
        owned(libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, ATTRIBUTES))
    }
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

/// Calls what may write to a pipe that no one reads any more, without the SIGPIPE that would end a
/// program which does not ignore it: pipes have no `MSG_NOSIGNAL`, and the calling program's
/// signal handlers are not ours to change.
pub(crate) fn without_sigpipe<T>(write: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    let mut sigpipe = unblocked_mask();
    let mut old_mask = unblocked_mask();
    // SAFETY: initialised signal sets.
    let was_pending = unsafe {
        libc::sigaddset(&raw mut sigpipe, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const sigpipe, &raw mut old_mask);
        // Only where the thread had it blocked before can one have been waiting.
        let mut pending = unblocked_mask();
        libc::sigismember(&raw const old_mask, libc::SIGPIPE) == 1
            && libc::sigpending(&raw mut pending) == 0
            && libc::sigismember(&raw const pending, libc::SIGPIPE) == 1
    };
    let result = write();
    if matches!(result, Err(nix::errno::Errno::EPIPE)) && !was_pending {
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: an initialised set and time; no information is asked for.
        unsafe { libc::sigtimedwait(&raw const sigpipe, ptr::null_mut(), &raw const at_once) };
    }
    // SAFETY: `old_mask` is what it was before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old_mask, ptr::null_mut()) };
    result
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

/// Sets an extended attribute of an open file: for tests, where overlayfs would.
#[cfg(test)]
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
