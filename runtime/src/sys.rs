//! The system calls that nix lacks, behind safe functions.
//!
//! The only file of the library with unsafe code.
#![expect(unsafe_code, reason = "system calls")]

use std::ffi::{CStr, CString, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

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
    pub(crate) pidfd: OwnedFd,
}

/// What the child of [`spawn_in_namespaces`] needs; it lives on the caller's stack, which the
/// two share until the child's `execve`.
struct Launch {
    executable: RawFd,
    control: RawFd,
    maps: Option<OwnIdMaps>,
    capabilities: u64,
    errno: AtomicI32,
}

/// Maps that a user without privilege may write, and only from inside: of their own ids alone.
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

    /// Writes them, in the child: system calls only.
    ///
    /// # Safety
    /// None beyond that of the system calls, whose arguments are valid.
    unsafe fn write(&self) -> bool {
        // The kernel asks for `deny` before a user without privilege may map a group.
        let files = [
            (c"/proc/self/setgroups", c"deny"),
            (c"/proc/self/uid_map", self.uid_map.as_c_str()),
            (c"/proc/self/gid_map", self.gid_map.as_c_str()),
        ];
        for (path, content) in files {
            let length = content.count_bytes();
            // SAFETY: NUL-ended strings; the length is that of the content.
            unsafe {
                let flags = libc::O_WRONLY | libc::O_CLOEXEC;
                let fd = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags);
                if fd < 0 || libc::syscall(libc::SYS_write, fd, content.as_ptr(), length) < 0 {
                    return false;
                }
                libc::syscall(libc::SYS_close, fd);
            }
        }
        true
    }
}

/// Runs `executable` in new namespaces, with `control` as its descriptor 0 and no other, an empty
/// argument list and environment, and `capabilities` (bit `n` is number `n`) in its user namespace.
///
/// The child shares the caller's memory and holds up the calling thread alone until its
/// `execve`, so it costs the same whatever the caller's size, and other threads go on. Between
/// clone and exec there is no allocation, no lock and no code of the standard library.
///
/// # Errors
/// What `clone(2)` or `execveat(2)` say.
pub(crate) fn spawn_in_namespaces(
    namespaces: Namespaces,
    executable: BorrowedFd<'_>,
    control: BorrowedFd<'_>,
    maps: Option<OwnIdMaps>,
    capabilities: u64,
) -> io::Result<Process> {
    const STACK: usize = 32 << 10;
    // u128: aligned as a stack must be.
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    let launch = Launch {
        executable: executable.as_raw_fd(),
        control: control.as_raw_fd(),
        maps,
        capabilities,
        errno: AtomicI32::new(0),
    };
    let mut pidfd: RawFd = -1;
    let flags = namespaces.0 | libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;

    // No handler of the caller may run in the child, where it would see the caller's memory but
    // another process.
    let mut old_mask = unblocked_mask();
    let all = filled_mask();
    // SAFETY: both are initialised signal sets.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old_mask) };
    // SAFETY: `stack` and `launch` outlive the child's use of them, because CLONE_VFORK returns
    // only after the child has called execve or ended; the top of the stack is its end, aligned to
    // 16; CLONE_PIDFD writes a descriptor to `pidfd`.
    let pid = unsafe {
        libc::clone(
            become_init,
            stack.as_mut_ptr().add(stack.len()).cast(),
            flags,
            (&raw const launch).cast_mut().cast(),
            &raw mut pidfd,
        )
    };
    let error = io::Error::last_os_error();
    // SAFETY: `old_mask` is what it was before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old_mask, ptr::null_mut()) };
    if pid < 0 {
        return Err(error);
    }
    // SAFETY: the kernel made it, for us.
    let process = Process { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } };
    match launch.errno.load(Ordering::Relaxed) {
        0 => Ok(process),
        errno => {
            let _ = reap(&process);
            Err(io::Error::from_raw_os_error(errno))
        }
    }
}

/// The child. It shares memory with a program of many threads that run on: system calls only.
extern "C" fn become_init(launch: *mut c_void) -> c_int {
    const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    const NONE: libc::c_ulong = 0;
    // SAFETY: the caller of clone passes a `Launch`, and keeps it until this has ended.
    let launch = unsafe { &*launch.cast::<Launch>() };
    // SAFETY: system calls with valid arguments. dup2 changes the child's own table: it was
    // copied by clone. errno lies in memory shared with the one thread that waits for us.
    unsafe {
        // 1. Ids, where the host has no privilege to map others.
        if let Some(maps) = &launch.maps
            && !maps.write()
        {
            launch.errno.store(*libc::__errno_location(), Ordering::Relaxed);
            libc::syscall(libc::SYS_exit, 127);
        }
        // 2. An exec by a user whose ids are not mapped yet drops all capabilities but ambient
        //    ones, and ambient ones must be inheritable.
        let mut header = [CAPABILITY_VERSION_3, 0];
        let mut sets = [0_u32; 6];
        if libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) == 0 {
            let [_, permitted_low, inheritable_low, _, permitted_high, inheritable_high] = &mut sets;
            *inheritable_low = *permitted_low;
            *inheritable_high = *permitted_high;
            libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr());
        }
        let mut rest = launch.capabilities;
        while rest != 0 {
            let capability = libc::c_ulong::from(rest.trailing_zeros());
            let raise = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
            // EINVAL, for one that this kernel does not know, is no loss.
            libc::syscall(libc::SYS_prctl, libc::PR_CAP_AMBIENT, raise, capability, NONE, NONE);
            rest &= rest - 1;
        }
        // 3. The control socket is descriptor 0; all else is closed by the exec, also what the
        //    calling program left inheritable.
        let placed = libc::syscall(libc::SYS_dup2, launch.control, 0);
        let marked = libc::syscall(
            libc::SYS_close_range,
            1,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_uint,
        );
        // 4. init.
        if placed == 0 && marked == 0 {
            let nothing: [*const libc::c_char; 1] = [ptr::null()];
            libc::syscall(
                libc::SYS_execveat,
                launch.executable,
                c"".as_ptr(),
                nothing.as_ptr(),
                nothing.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        launch.errno.store(*libc::__errno_location(), Ordering::Relaxed);
        libc::syscall(libc::SYS_exit, 127);
    }
    127
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

/// Sends SIGKILL; a process that has ended already is no error.
pub(crate) fn kill(process: &Process) -> io::Result<()> {
    // SAFETY: a valid descriptor, and no siginfo.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.pidfd.as_raw_fd(),
            libc::SIGKILL,
            ptr::null::<c_void>(),
            0,
        )
    };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}

/// Waits for the end of a child and reaps it. One that the calling program has reaped, because it
/// waits for all children or ignores SIGCHLD, is no error.
pub(crate) fn reap(process: &Process) -> io::Result<()> {
    loop {
        // SAFETY: waitid fills `info`, which is large enough; P_PIDFD takes the descriptor's number.
        let result = unsafe {
            let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
            libc::waitid(
                libc::P_PIDFD,
                process.pidfd.as_raw_fd().unsigned_abs(),
                info.as_mut_ptr(),
                libc::WEXITED | libc::__WALL,
            )
        };
        match check(result.into()) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// A detached mount of a directory: it is in no mount namespace, and gone with its descriptor.
pub(crate) fn detached_mount(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH.unsigned_abs();
    // SAFETY: a valid descriptor and an empty, NUL-ended path.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), c"".as_ptr(), flags)
    })?;
    // SAFETY: the kernel made it, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).map_err(io::Error::other)?) })
}

/// Maps the ids of a detached mount by a user namespace (Linux 5.12): a file of id 0 appears as
/// owned by the id that 0 is mapped to.
pub(crate) fn map_ids(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
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
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of_val(&attributes),
        )
    })
    .map(drop)
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
