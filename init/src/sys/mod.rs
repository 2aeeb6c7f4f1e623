//! The system calls that rustix keeps private, behind safe functions.
//!
//! The only folder of the library with unsafe code, and the only one that knows the architecture.
#![expect(unsafe_code, reason = "system calls")]

mod child;

use alloc::vec::Vec;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::ptr;

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::{Errno, Result};
use rustix::process::Signal;

use adl_protocol::{Request, Strings, codec, limits};

pub use self::child::{
    ChildMemory, Memory, Reaped, check_may_allocate, has_children, open_in_child, reap, start_child,
};

mod nr {
    pub(super) const RT_SIGACTION: usize = 13;
    pub(super) const RT_SIGPROCMASK: usize = 14;
    pub(super) const IOCTL: usize = 16;
    pub(super) const CONNECT: usize = 42;
    pub(super) const SETSOCKOPT: usize = 54;
    pub(super) const GETSOCKOPT: usize = 55;
    pub(super) const CLONE: usize = 56;
    pub(super) const EXECVE: usize = 59;
    pub(super) const WAIT4: usize = 61;
    pub(super) const KILL: usize = 62;
    pub(super) const GETCWD: usize = 79;
    pub(super) const PTRACE: usize = 101;
    pub(super) const PRCTL: usize = 157;
    pub(super) const CLOCK_GETTIME: usize = 228;
    pub(super) const EXIT_GROUP: usize = 231;
    pub(super) const WAITID: usize = 247;
    pub(super) const UNSHARE: usize = 272;
    pub(super) const SIGNALFD4: usize = 289;
    pub(super) const DUP3: usize = 292;
    pub(super) const PRLIMIT64: usize = 302;
    pub(super) const SECCOMP: usize = 317;
    pub(super) const CLOSE_RANGE: usize = 436;
    pub(super) const MOUNT_SETATTR: usize = 442;
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

/// The monotonic clock, in ns. Without the vDSO: to find the call there takes 2.5 KiB of code, more
/// than the few looks at the clock that a job takes are worth.
pub fn now() -> u64 {
    const CLOCK_MONOTONIC: usize = 1;
    let mut time = [0_u64; 2];
    // SAFETY: `time` is a struct timespec and outlives the call, which can't fail.
    let _ =
        unsafe { syscall(nr::CLOCK_GETTIME, CLOCK_MONOTONIC, time.as_mut_ptr() as usize, 0, 0, 0) };
    let [seconds, nanoseconds] = time;
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
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

/// Has a write beyond `RLIMIT_FSIZE` fail instead of ending the process with a signal
/// (setrlimit(2)).
pub fn ignore_file_size_signal() -> Result<()> {
    const SIGXFSZ: usize = 25;
    const SIG_IGN: u64 = 1;
    let ignore = [SIG_IGN, 0, 0, 0];
    // SAFETY: as in `reset_signals`.
    unsafe { syscall(nr::RT_SIGACTION, SIGXFSZ, ignore.as_ptr() as usize, 0, 8, 0) }.map(drop)
}

/// Has the kernel merge no page of this process with another of the same content, also after an
/// `execve(2)` (`PR_SET_MEMORY_MERGE`, Linux 6.4).
pub fn merge_no_memory() -> Result<()> {
    const PR_SET_MEMORY_MERGE: usize = 67;
    // SAFETY: takes no pointer.
    match unsafe { syscall(nr::PRCTL, PR_SET_MEMORY_MERGE, 0, 0, 0, 0) } {
        // A kernel that does not merge, or not for all of a process.
        Ok(_) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Sets the limit of core dumps, with a key without which the filters have it stay as it is.
pub fn set_core_limit(soft: u64, hard: u64, key: u64) -> Result<()> {
    const RLIMIT_CORE: usize = 4;
    let limit = [soft, hard];
    // SAFETY: `limit` is a struct rlimit64 and outlives the call; the kernel takes four arguments.
    unsafe { syscall(nr::PRLIMIT64, 0, RLIMIT_CORE, limit.as_ptr() as usize, 0, key as usize) }
        .map(drop)
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

/// What a process may take a new one of, after set-up, too.
#[derive(Clone, Copy)]
pub enum Namespace {
    /// In which the cgroup that the process is in is the root.
    Cgroup = 0x0200_0000,
    /// Of host and domain name.
    Uts = 0x0400_0000,
}

/// Puts the caller, and so its future children, into a namespace of its own.
pub fn unshare(namespace: Namespace) -> Result<()> {
    // SAFETY: takes no pointer, and takes nothing away that memory safety rests on.
    unsafe { syscall(nr::UNSHARE, namespace as usize, 0, 0, 0, 0) }.map(drop)
}

/// Whether the working directory can be reached from the root.
pub fn working_directory_is_reachable() -> Result<bool> {
    let mut path = [0_u8; limits::MAX_PATH + 1];
    // SAFETY: the kernel writes at most the length that is said.
    unsafe { syscall(nr::GETCWD, path.as_mut_ptr() as usize, path.len(), 0, 0, 0) }?;
    // The path of one that can't starts with "(unreachable)" (getcwd(2)).
    Ok(path.first() == Some(&b'/'))
}

/// A signal by its number, real-time ones too.
pub fn signal(number: u8) -> Option<Signal> {
    let is_signal = (1..=64).contains(&number);
    // SAFETY: it is one, and there is no libc here that keeps some to itself.
    is_signal.then(|| unsafe { Signal::from_raw_unchecked(i32::from(number)) })
}

/// Sends a signal to every process of the sandbox but this one. None of them has a child to which
/// it does not come: the kernel fails a fork in whose middle a signal comes.
pub fn signal_all(signal: Signal) -> Result<()> {
    let signal = signal.as_raw().unsigned_abs() as usize;
    // SAFETY: takes no pointer; -1 is all processes that this one can see, without itself.
    unsafe { syscall(nr::KILL, usize::MAX, signal, 0, 0, 0) }.map(drop)
}

/// Room for the pointers to the strings that `execve(2)` gets, made by the parent for a child that
/// can't allocate.
pub struct PointerSpace(UnsafeCell<Vec<*const u8>>);

impl PointerSpace {
    /// For so many strings, in two lists; `None` if memory runs out.
    pub fn new(strings: usize) -> Option<Self> {
        let mut pointers = Vec::new();
        pointers.try_reserve_exact(strings.checked_add(2)?).ok()?;
        Some(Self(UnsafeCell::new(pointers)))
    }
}

/// Runs another program in place of this one, with `name` as argument 0; returns only the reason
/// why it could not.
pub fn execve(
    program: &CStr,
    name: &CStr,
    arguments: Strings<'_>,
    environment: [Strings<'_>; 2],
    space: &PointerSpace,
) -> Errno {
    // SAFETY: the parent does not touch it after it has started the child, and the child comes
    // here alone, with no other reference alive.
    let pointers = unsafe { &mut *space.0.get() };
    let of_environment: usize = environment.iter().map(Strings::len).sum();
    if pointers.capacity() < 1 + arguments.len() + of_environment + 2 {
        return Errno::TOOBIG;
    }
    pointers.clear();
    pointers.push(name.as_ptr().cast());
    pointers.extend(arguments.iter().map(<[u8]>::as_ptr));
    pointers.push(ptr::null());
    let start_of_environment = pointers.len();
    pointers.extend(environment.iter().flat_map(Strings::iter).map(<[u8]>::as_ptr));
    pointers.push(ptr::null());
    let argv = pointers.as_ptr();
    let envp = argv.wrapping_add(start_of_environment);
    // SAFETY: both lists are of pointers to NUL-ended strings, which live as long as what they
    // were made from, with a null at the end; `program` is NUL-ended.
    let result = unsafe {
        syscall(nr::EXECVE, program.as_ptr() as usize, argv as usize, envp as usize, 0, 0)
    };
    result.err().unwrap_or(Errno::INVAL)
}

/// Reads a request: in one place for all who do, since it takes much code.
#[inline(never)]
pub fn decode_request(body: &[u8]) -> core::result::Result<Request<'_>, codec::Error> {
    codec::decode(body)
}

/// A request with the bytes that it borrows from.
pub struct OwnedRequest {
    // In this order: the first is dropped first.
    request: Request<'static>,
    bytes: Vec<u8>,
}

impl OwnedRequest {
    /// Decodes a body and keeps it.
    pub fn decode(bytes: Vec<u8>) -> core::result::Result<Self, codec::Error> {
        // SAFETY: the bytes are on the heap, where they stay unchanged until after the request is
        // dropped, and `get` lends it for no longer than `self` lives.
        let borrowed: &'static [u8] =
            unsafe { core::slice::from_raw_parts(bytes.as_ptr(), bytes.len()) };
        Ok(Self { request: decode_request(borrowed)?, bytes })
    }

    /// How long it was, in bytes.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// The request.
    pub fn get(&self) -> &Request<'_> {
        &self.request
    }
}

/// A descriptor as a child will have it, in a table of its own that starts as a copy of this one.
///
/// For use in the child alone: here it is closed whenever its owner likes.
pub fn lend_to_child(fd: &OwnedFd) -> BorrowedFd<'static> {
    // SAFETY: as said, what is done with it happens where it stays open.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// The three standard descriptors, in a child in which they have been put in place.
pub fn standard_descriptors() -> [BorrowedFd<'static>; 3] {
    // SAFETY: they are open, and no one owns them.
    [0, 1, 2].map(|number| unsafe { BorrowedFd::borrow_raw(number) })
}

/// Closes every descriptor but the standard ones and `kept`, which is moved to 3, in a child that
/// will use none of them. Those of init are among them, its control socket above all.
pub fn keep_only(kept: BorrowedFd<'_>) -> Result<BorrowedFd<'static>> {
    const KEPT: RawFd = 3;
    const O_CLOEXEC: usize = 0o2_000_000;
    if kept.as_raw_fd() != KEPT {
        // SAFETY: takes no pointer. Values that own descriptors remain, but are not used, nor
        // dropped, since the child ends by `exit`.
        unsafe { syscall(nr::DUP3, kept.as_raw_fd() as usize, KEPT as usize, O_CLOEXEC, 0, 0) }?;
    }
    // SAFETY: as above.
    unsafe { syscall(nr::CLOSE_RANGE, KEPT as usize + 1, u32::MAX as usize, 0, 0, 0) }?;
    // SAFETY: it is open to the end of the process.
    Ok(unsafe { BorrowedFd::borrow_raw(KEPT) })
}

/// Writes a number in decimal, without an allocation.
pub fn decimal(number: i32, into: &mut [u8; 12]) -> &[u8] {
    let mut rest = number.unsigned_abs();
    let mut start = into.len();
    for (at, place) in into.iter_mut().enumerate().rev() {
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
        start = at;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        start -= 1;
        if let Some(place) = into.get_mut(start) {
            *place = b'-';
        }
    }
    into.get(start..).unwrap_or_default()
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

/// Installs a filter on the process, made of `struct sock_filter`s of 8 bytes. Returns what the
/// questions come from that it has asked, if it asks any (`seccomp_unotify(2)`).
///
/// Where a filter around this process has someone who answers already, no one is asked.
///
/// # Errors
/// EINVAL if `program` is no such array, or what the kernel finds wrong with it.
pub fn install_filter(program: &[u8]) -> Result<Option<OwnedFd>> {
    const SECCOMP_SET_MODE_FILTER: usize = 1;
    const NEW_LISTENER: usize = 1 << 3;
    /// `BPF_RET | BPF_K` of `SECCOMP_RET_USER_NOTIF`.
    const ASK: u64 = 0x7fc0_0000 << 32 | 6;
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
    let install = |flags| {
        let program = ptr::from_ref(&program) as usize;
        // SAFETY: `program` is a struct sock_fprog whose pointer and length describe
        // `instructions`; both outlive the call.
        unsafe { syscall(nr::SECCOMP, SECCOMP_SET_MODE_FILTER, flags, program, 0, 0) }
    };
    if instructions.contains(&ASK) {
        match install(NEW_LISTENER) {
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno),
            // SAFETY: a new descriptor, which is no one else's.
            Ok(fd) => return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })),
        }
    }
    install(0).map(|_| None)
}

/// A system call that a filter has asked about (`struct seccomp_notif`).
#[derive(Default)]
#[repr(C)]
pub struct Question {
    id: u64,
    /// Which thread makes it.
    pub caller: u32,
    flags: u32,
    number: i32,
    architecture: u32,
    instruction: u64,
    /// With what.
    pub arguments: [u64; 6],
}

/// The next question. Only to be called where there was one; it may be gone.
///
/// # Errors
/// ENOENT if who has asked has ended.
pub fn next_question(listener: &OwnedFd) -> Result<Question> {
    /// `SECCOMP_IOCTL_NOTIF_RECV`
    const RECEIVE: usize = 0xc050_2100;
    let mut question = Question::default();
    let at = ptr::from_mut(&mut question) as usize;
    let fd = listener.as_raw_fd() as usize;
    // SAFETY: the kernel writes one struct seccomp_notif, which `question` is.
    unsafe { syscall(nr::IOCTL, fd, RECEIVE, at, 0, 0) }?;
    Ok(question)
}

/// Has the call go on, or fail with EPERM.
pub fn answer(listener: &OwnedFd, question: &Question, may: bool) -> Result<()> {
    /// `SECCOMP_IOCTL_NOTIF_SEND`
    const SEND: usize = 0xc018_2101;
    const CONTINUE: u32 = 1;
    /// `struct seccomp_notif_resp`
    #[repr(C)]
    struct Answer {
        id: u64,
        value: i64,
        error: i32,
        flags: u32,
    }
    let (error, flags) = if may { (0, CONTINUE) } else { (-Errno::PERM.raw_os_error(), 0) };
    let answer = Answer { id: question.id, value: 0, error, flags };
    let fd = listener.as_raw_fd() as usize;
    // SAFETY: the kernel reads one struct seccomp_notif_resp.
    unsafe { syscall(nr::IOCTL, fd, SEND, ptr::from_ref(&answer) as usize, 0, 0) }.map(drop)
}

/// What a mount may not be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restriction {
    /// Writing; what is mounted below it stays as it is.
    ReadOnly,
    /// Programs that give rights, and devices; nor may all that is mounted below it.
    Data,
    /// Programs that give rights, devices, and writing; nor may all that is mounted below it.
    ReadOnlyData,
    /// Programs: it is a device.
    Device,
}

/// Restricts a mount (`mount_setattr(2)`).
pub fn restrict_mount(mount: impl AsFd, restriction: Restriction) -> Result<()> {
    const AT_EMPTY_PATH: usize = 0x1000;
    const AT_RECURSIVE: usize = 0x8000;
    const READ_ONLY: u64 = 1;
    const NO_SUID: u64 = 2;
    const NO_DEV: u64 = 4;
    const NO_EXEC: u64 = 8;
    let (set, flags) = match restriction {
        Restriction::ReadOnly => (READ_ONLY, AT_EMPTY_PATH),
        Restriction::Data => (NO_SUID | NO_DEV, AT_EMPTY_PATH | AT_RECURSIVE),
        Restriction::ReadOnlyData => (READ_ONLY | NO_SUID | NO_DEV, AT_EMPTY_PATH | AT_RECURSIVE),
        Restriction::Device => (NO_SUID | NO_EXEC, AT_EMPTY_PATH),
    };
    // struct mount_attr: what is set, what is cleared, propagation, user namespace.
    let attributes = [set, 0, 0, 0];
    let (fd, empty) = (mount.as_fd().as_raw_fd() as usize, c"".as_ptr() as usize);
    let (pointer, size) = (attributes.as_ptr() as usize, size_of_val(&attributes));
    // SAFETY: an empty string, and a struct mount_attr of that size.
    unsafe { syscall(nr::MOUNT_SETATTR, fd, empty, flags, pointer, size) }.map(drop)
}

/// A socket for questions and requests to the network namespace.
pub fn network_socket() -> Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

/// Brings the loopback device of the network namespace up, and gives it the address 198.18.0.1, as
/// the only one of a network: who comes from there is not taken for one of this machine, and
/// programs that ask for no name where there is but 127.0.0.1 do.
pub fn loopback_up(socket: &OwnedFd) -> Result<()> {
    /// In the order of bytes in memory.
    const LO: u64 = u64::from_le_bytes(*b"lo\0\0\0\0\0\0");
    const SECOND: u64 = u64::from_le_bytes(*b"lo:0\0\0\0\0");
    const IFF_UP_RUNNING: u64 = 0x1 | 0x40;
    /// `struct sockaddr_in` without its padding: AF_INET, no port, an address.
    const ADDRESS: u64 = u64::from_le_bytes([2, 0, 0, 0, 198, 18, 0, 1]);
    const MASK: u64 = u64::from_le_bytes([2, 0, 0, 0, 255, 255, 255, 255]);
    /// `SIOCSIFFLAGS`, `SIOCSIFADDR`, `SIOCSIFNETMASK`.
    const STEPS: [(usize, u64, u64); 3] =
        [(0x8914, LO, IFF_UP_RUNNING), (0x8916, SECOND, ADDRESS), (0x891c, SECOND, MASK)];
    STEPS.into_iter().try_for_each(|(request, name, value)| {
        // struct ifreq: 16 bytes of name, then a union of 24 bytes.
        let interface = [name, 0, value, 0, 0];
        let (fd, interface) = (socket.as_raw_fd() as usize, interface.as_ptr() as usize);
        // SAFETY: it is as large as a struct ifreq and outlives the call.
        unsafe { syscall(nr::IOCTL, fd, request, interface, 0, 0) }.map(drop)
    })
}

const SOL_SOCKET: usize = 1;
/// Linux 6.16.
const SO_PASSRIGHTS: usize = 83;

/// The cookie of a socket's network namespace, which no other has until the machine is started
/// anew (Linux 5.14).
pub fn network_cookie(socket: impl AsFd) -> Result<u64> {
    const SO_NETNS_COOKIE: usize = 71;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as u32);
    let (value, size) = (ptr::from_mut(&mut cookie) as usize, ptr::from_mut(&mut length) as usize);
    let fd = socket.as_fd().as_raw_fd() as usize;
    // SAFETY: the kernel writes a u64, and its length, both of which outlive the call.
    unsafe { syscall(nr::GETSOCKOPT, fd, SOL_SOCKET, SO_NETNS_COOKIE, value, size) }?;
    Ok(cookie)
}

/// A Unix stream socket that has connected to an address, a `struct sockaddr_un`. A full backlog is
/// waited for.
pub fn connect(address: &[u8]) -> Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let (fd, at) = (socket.as_raw_fd() as usize, address.as_ptr() as usize);
    let no = 0_i32;
    // SAFETY: an int of that size, and `address`, which has the length that is said.
    unsafe {
        // From the first byte on, a guest sends no descriptor along; older kernels don't know that.
        let no = ptr::from_ref(&no) as usize;
        let _ = syscall(nr::SETSOCKOPT, fd, SOL_SOCKET, SO_PASSRIGHTS, no, size_of::<i32>());
        syscall(nr::CONNECT, fd, at, address.len(), 0, 0)?;
    }
    Ok(socket)
}
