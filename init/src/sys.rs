//! The system calls that rustix keeps private, behind safe functions.
//!
//! The only file of the library with unsafe code, and the only one that knows the architecture.
#![expect(unsafe_code, reason = "system calls")]

use alloc::vec::Vec;
use core::arch::asm;
use core::ffi::CStr;
use core::ptr;

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::{Errno, Result};

use adl_protocol::{Exit, Status, Usage};

mod nr {
    pub(super) const RT_SIGACTION: usize = 13;
    pub(super) const RT_SIGPROCMASK: usize = 14;
    pub(super) const IOCTL: usize = 16;
    pub(super) const CLONE: usize = 56;
    pub(super) const EXECVE: usize = 59;
    pub(super) const WAIT4: usize = 61;
    pub(super) const EXIT_GROUP: usize = 231;
    pub(super) const SIGNALFD4: usize = 289;
    pub(super) const SECCOMP: usize = 317;
    pub(super) const CLOSE_RANGE: usize = 436;
}

const SIGCHLD: usize = 17;
const SIGCHLD_MASK: u64 = 1 << (SIGCHLD - 1);

/// Makes a system call with up to five arguments.
///
/// # Safety
/// As the system call demands; a pointer must be valid for what the kernel does with it.
unsafe fn syscall(
    number: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
) -> Result<usize> {
    let result: isize;
    // SAFETY: the x86_64 convention: number in rax, arguments in rdi, rsi, rdx, r10, r8; the
    // kernel changes rax, rcx and r11 and nothing else. The caller answers for the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b,
            in("rdx") c, in("r10") d, in("r8") e, lateout("rcx") _, lateout("r11") _,
            options(nostack));
    }
    match usize::try_from(result) {
        Ok(value) => Ok(value),
        Err(_) => Err(Errno::from_raw_os_error(i32::try_from(-result).unwrap_or(i32::MAX))),
    }
}

/// The caller's process id, in its own PID namespace.
pub fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Takes over the descriptor that the host left as control socket; `None` if it is no socket.
pub fn take_control_socket(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: only borrowed to be looked at, and not kept.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).ok()?;
    let stat = rustix::fs::fstat(borrowed).ok()?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Socket {
        return None;
    }
    // SAFETY: it is open, as fstat showed, and this function is the first thing that the process
    // runs, once, so nothing else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Ends the process at once.
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: takes no pointer.
        let _ = unsafe { syscall(nr::EXIT_GROUP, status as usize, 0, 0, 0, 0) };
    }
}

/// Sets every signal to its default action, and blocks SIGCHLD alone.
///
/// The kernel drops a signal to the init of a PID namespace that is neither blocked nor handled,
/// so whatever a guest sends is not even queued. SIGCHLD is blocked to be read from
/// [`child_signals`]. The host may have left any signal ignored, which `execve(2)` keeps.
pub fn reset_signals() -> Result<()> {
    // struct sigaction of the kernel: handler, flags, restorer, mask; zero is SIG_DFL.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        // SIGKILL and SIGSTOP can't be set, and need not be.
        // SAFETY: `default` is a whole struct sigaction and outlives the call; the size of the
        // signal set is 8.
        let _ = unsafe { syscall(nr::RT_SIGACTION, signal, default.as_ptr() as usize, 0, 8, 0) };
    }
    set_signal_mask(SIGCHLD_MASK)
}

/// Sets the signal mask to none, for a job.
pub fn unblock_signals() -> Result<()> {
    set_signal_mask(0)
}

fn set_signal_mask(mask: u64) -> Result<()> {
    const SIG_SETMASK: usize = 2;
    // SAFETY: `mask` outlives the call and is 8 bytes long, as is said.
    unsafe { syscall(nr::RT_SIGPROCMASK, SIG_SETMASK, ptr::from_ref(&mask) as usize, 0, 8, 0) }
        .map(drop)
}

/// A descriptor that is readable when a child has ended.
pub fn child_signals() -> Result<OwnedFd> {
    const SFD_CLOEXEC_NONBLOCK: usize = 0o2_000_000 | 0o4_000;
    let mask = SIGCHLD_MASK;
    // SAFETY: `mask` outlives the call and is 8 bytes long; -1 asks for a new descriptor.
    let fd = unsafe {
        syscall(
            nr::SIGNALFD4,
            usize::MAX,
            ptr::from_ref(&mask) as usize,
            8,
            SFD_CLOEXEC_NONBLOCK,
            0,
        )
    }?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Makes a child with memory of its own: `None` in the child, its pid in the parent.
///
/// Not a child that shares memory, which would be faster: a parent of `vfork(2)` is held for as
/// long as another process keeps the child stopped, and a guest can do that.
pub fn fork() -> Result<Option<i32>> {
    // SAFETY: with no flags but the signal, clone is fork: the child gets a copy of memory, and
    // there is only one thread, so nothing is left half done in the copy.
    let pid = unsafe { syscall(nr::CLONE, SIGCHLD, 0, 0, 0, 0) }?;
    Ok(i32::try_from(pid).ok().filter(|pid| *pid != 0))
}

/// Reaps one child that has ended; `None` if there is none. Never waits.
pub fn reap() -> Result<Option<(i32, Exit)>> {
    const WNOHANG_ALL: usize = 1 | 0x4000_0000;
    let mut status = 0_i32;
    let mut usage = [0_i64; 18];
    // SAFETY: `status` is an int, and `usage` a struct rusage: 18 longs; both outlive the call.
    let pid = unsafe {
        syscall(
            nr::WAIT4,
            usize::MAX,
            ptr::from_mut(&mut status) as usize,
            WNOHANG_ALL,
            usage.as_mut_ptr() as usize,
            0,
        )
    }?;
    let exit = Exit { status: decode_status(status), usage: decode_usage(&usage) };
    Ok(i32::try_from(pid).ok().filter(|pid| *pid != 0).map(|pid| (pid, exit)))
}

fn decode_status(status: i32) -> Status {
    let [low, high, ..] = status.to_le_bytes();
    match low & 0x7f {
        0 => Status::Code(high),
        signal => Status::Signal { signal, core: low & 0x80 != 0 },
    }
}

fn decode_usage(raw: &[i64; 18]) -> Usage {
    let [
        user_s,
        user_us,
        system_s,
        system_us,
        max_rss,
        _,
        _,
        _,
        minor,
        major,
        _,
        blocks_in,
        blocks_out,
        _,
        _,
        _,
        voluntary,
        involuntary,
    ] = raw.map(i64::unsigned_abs);
    Usage {
        user_us: user_s.saturating_mul(1_000_000).saturating_add(user_us),
        system_us: system_s.saturating_mul(1_000_000).saturating_add(system_us),
        max_rss_kib: max_rss,
        minor_faults: minor,
        major_faults: major,
        blocks_in,
        blocks_out,
        voluntary_switches: voluntary,
        involuntary_switches: involuntary,
    }
}

/// A list of NUL-ended strings as `execve(2)` wants it.
pub struct Pointers<'a> {
    pointers: Vec<*const u8>,
    strings: core::marker::PhantomData<&'a [u8]>,
}

impl<'a> Pointers<'a> {
    /// Points at each of the strings, behind `first` places to be set; `None` if memory runs out.
    pub fn new(first: usize, strings: adl_protocol::Strings<'a>) -> Option<Self> {
        let mut pointers = Vec::new();
        pointers.try_reserve_exact(first + strings.len() + 1).ok()?;
        pointers.resize(first, c"".as_ptr().cast());
        pointers.extend(strings.iter().map(<[u8]>::as_ptr));
        pointers.push(ptr::null());
        Some(Self { pointers, strings: core::marker::PhantomData })
    }

    /// Sets the first place.
    pub fn set_first(&mut self, string: &'a CStr) {
        if let Some(first) = self.pointers.first_mut().filter(|first| !first.is_null()) {
            *first = string.as_ptr().cast();
        }
    }
}

/// Runs another program in place of this one; returns only the reason why it could not.
pub fn execve(program: &CStr, argv: &Pointers<'_>, environment: &Pointers<'_>) -> Errno {
    // SAFETY: `Pointers` holds pointers to NUL-ended strings that live as long as it, and a null
    // at its end; `program` is NUL-ended.
    let result = unsafe {
        syscall(
            nr::EXECVE,
            program.as_ptr() as usize,
            argv.pointers.as_ptr() as usize,
            environment.pointers.as_ptr() as usize,
            0,
            0,
        )
    };
    result.err().unwrap_or(Errno::INVAL)
}

/// Marks every descriptor from `first` on to be closed by `execve(2)` (Linux 5.11).
pub fn close_on_exec_from(first: RawFd) -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: usize = 1 << 2;
    // SAFETY: takes no pointer, and closes nothing now.
    unsafe {
        syscall(nr::CLOSE_RANGE, first as usize, u32::MAX as usize, CLOSE_RANGE_CLOEXEC, 0, 0)
    }
    .map(drop)
}

/// Installs a filter on the process, made of `struct sock_filter`s of 8 bytes.
///
/// # Errors
/// EINVAL if `program` is no such array, or what the kernel finds wrong with it.
pub fn install_filter(program: &[u8]) -> Result<()> {
    const SECCOMP_SET_MODE_FILTER: usize = 1;
    #[repr(C)]
    struct SockFprog {
        length: u16,
        filter: *const u64,
    }
    // As u64: the kernel copies from any address, but a typed array says what it is.
    let (instructions, rest) = program.as_chunks::<8>();
    let instructions: Vec<u64> =
        instructions.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
    let length = u16::try_from(instructions.len()).map_err(|_| Errno::INVAL)?;
    if !rest.is_empty() {
        return Err(Errno::INVAL);
    }
    let program = SockFprog { length, filter: instructions.as_ptr() };
    // SAFETY: `program` is a struct sock_fprog whose pointer and length describe `instructions`;
    // both outlive the call.
    unsafe {
        syscall(nr::SECCOMP, SECCOMP_SET_MODE_FILTER, 0, ptr::from_ref(&program) as usize, 0, 0)
    }
    .map(drop)
}

/// Brings the loopback device of the network namespace up.
pub fn loopback_up() -> Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    const SIOCSIFFLAGS: usize = 0x8914;
    const IFF_UP_RUNNING: u16 = 0x1 | 0x40;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // struct ifreq: 16 bytes of name, then a union of 24 bytes that starts with the flags.
    let mut request = [0_u8; 40];
    let name = b"lo";
    let flags = IFF_UP_RUNNING.to_ne_bytes();
    for (to, from) in request.iter_mut().zip(name) {
        *to = *from;
    }
    for (to, from) in request.iter_mut().skip(16).zip(flags) {
        *to = from;
    }
    // SAFETY: `request` is as large as a struct ifreq and outlives the call.
    unsafe {
        syscall(
            nr::IOCTL,
            socket.as_raw_fd() as usize,
            SIOCSIFFLAGS,
            request.as_ptr() as usize,
            0,
            0,
        )
    }
    .map(drop)
}
