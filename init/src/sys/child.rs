//! Children: how they are started and on what memory, and how they are reaped.

use alloc::boxed::Box;
use core::arch::asm;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use adl_protocol::{Status, Usage};
use rustix::fd::{FromRawFd, IntoRawFd, OwnedFd};
use rustix::io::{Errno, Result};

use super::{SIGCHLD, exit, nr, syscall};

/// The stack of a child, in units of 16 bytes: three times what the deepest way through its code
/// takes, which is with three paths on it.
const STACK: usize = (48 << 10) / 16;

/// A stack for a child, and what it works on.
#[repr(C, align(16))]
struct Slot<T> {
    /// The end of an array is where a stack begins. Not written before it is used: what a job does
    /// not need of it takes no memory.
    stack: [MaybeUninit<u128>; STACK],
    /// Not 0 for as long as the child uses this memory: the kernel clears it when the child runs
    /// a program or ends (CLONE_CHILD_CLEARTID, `clone(2)`).
    in_use: AtomicU32,
    work: fn(&T) -> !,
    on: T,
}

/// The memory of a child that was started by [`start_child`].
pub struct ChildMemory<T>(NonNull<Slot<T>>);

impl<T> ChildMemory<T> {
    /// Whether the child has let go of it.
    pub fn is_free(&self) -> bool {
        // SAFETY: it lives as long as `self`, and no one has an exclusive reference to it.
        unsafe { self.0.as_ref() }.in_use.load(Ordering::Acquire) == 0
    }
}

impl<T> Drop for ChildMemory<T> {
    fn drop(&mut self) {
        if self.is_free() {
            // SAFETY: it came from a box, and is used by no one any more.
            drop(unsafe { Box::from_raw(self.0.as_ptr()) });
        }
        // Else it leaks: better than to pull the stack from under the child.
    }
}

/// Whether a child has the parent's memory or a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// The parent's, until it runs a program. It must not allocate.
    Shared,
    /// The parent's, and with it the parent's descriptors, until it ends. It must not allocate. The
    /// parent waits for it.
    Lent,
    /// Its own.
    Copied,
}

/// Starts a child that does `work`. Returns at once, whatever the child does: unlike a parent of
/// `vfork(2)`, which is held for as long as another process keeps the child stopped.
pub fn start_child<T>(memory: Memory, on: T, work: fn(&T) -> !) -> Result<(i32, ChildMemory<T>)> {
    const CLONE_VM: usize = 0x100;
    const CLONE_FILES: usize = 0x400;
    const CLONE_VFORK: usize = 0x4000;
    const CLONE_CHILD_CLEARTID: usize = 0x20_0000;

    let in_use = AtomicU32::new(u32::from(memory != Memory::Copied));
    let mut slot = Box::<Slot<T>>::new_uninit();
    let place = slot.as_mut_ptr();
    // SAFETY: the place is valid for writes, and then all that must be initialised is; a stack
    // need not be.
    let slot = unsafe {
        (&raw mut (*place).in_use).write(in_use);
        (&raw mut (*place).work).write(work);
        (&raw mut (*place).on).write(on);
        NonNull::from(Box::leak(slot.assume_init()))
    };
    let flags = match memory {
        Memory::Shared => SIGCHLD | CLONE_VM | CLONE_CHILD_CLEARTID,
        Memory::Lent => SIGCHLD | CLONE_VM | CLONE_CHILD_CLEARTID | CLONE_VFORK | CLONE_FILES,
        Memory::Copied => SIGCHLD,
    };
    let result: isize;
    // SAFETY: the child begins on a stack of its own, whose end is aligned to 16, with `enter`,
    // which never returns, so that nothing of this function is run twice. What it works on is kept
    // until `in_use` says that it has let go. There is one thread, so in a copy of memory nothing
    // is left half done.
    unsafe {
        let stack = (&raw mut (*slot.as_ptr()).stack).add(1);
        let in_use = &raw mut (*slot.as_ptr()).in_use;
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r9",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") nr::CLONE as isize => result, in("rdi") flags, in("rsi") stack,
            in("rdx") 0, in("r10") in_use, in("r8") 0, in("r9") slot.as_ptr(),
            in("r12") enter::<T> as extern "C" fn(&Slot<T>) -> !,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    let memory = ChildMemory(slot);
    match i32::try_from(result) {
        Ok(pid) if pid > 0 => Ok((pid, memory)),
        _ => {
            // SAFETY: as in `is_free`; no child was made.
            unsafe { slot.as_ref() }.in_use.store(0, Ordering::Release);
            Err(Errno::from_raw_os_error(i32::try_from(-result).unwrap_or(i32::MAX)))
        }
    }
}

/// Opens something in a child, which must not wait for anything: for what changes for good who
/// makes it. The child is gone then: none is there but those of jobs.
pub fn open_in_child<T>(on: T, open: fn(&T) -> Result<OwnedFd>) -> Result<OwnedFd> {
    struct Order<T> {
        on: T,
        open: fn(&T) -> Result<OwnedFd>,
        /// A descriptor, or an error number below 0.
        opened: AtomicI32,
    }
    fn work<T>(order: &Order<T>) -> ! {
        let opened = match (order.open)(&order.on) {
            Ok(opened) => opened.into_raw_fd(),
            Err(errno) => -errno.raw_os_error(),
        };
        order.opened.store(opened, Ordering::Release);
        exit(0)
    }
    let opened = AtomicI32::new(-Errno::SRCH.raw_os_error());
    const WALL: usize = 0x4000_0000;
    let (pid, memory) = start_child(Memory::Lent, Order { on, open, opened }, work)?;
    // SAFETY: null asks for neither status nor usage.
    unsafe { syscall(nr::WAIT4, pid.unsigned_abs() as usize, 0, WALL, 0, 0) }?;
    // SAFETY: it lives as long as `memory`, and no one has an exclusive reference to it.
    let opened = unsafe { memory.0.as_ref() }.on.opened.load(Ordering::Acquire);
    if opened < 0 {
        return Err(Errno::from_raw_os_error(-opened));
    }
    // SAFETY: the child has opened it among the descriptors of this process, and let go of it.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

extern "C" fn enter<T>(slot: &Slot<T>) -> ! {
    if slot.in_use.load(Ordering::Relaxed) == 0 {
        MAY_ALLOCATE.store(true, Ordering::Relaxed);
    }
    (slot.work)(&slot.on)
}

/// Whether this process may allocate although it runs on the stack of a child: it has memory of its
/// own.
static MAY_ALLOCATE: AtomicBool = AtomicBool::new(false);

/// Ends a child that shares init's memory and is about to allocate: a bug, which must not become
/// one of init's. `heap` is where allocations are, and so the stacks of children.
pub fn check_may_allocate(heap: &core::ops::Range<usize>) {
    let here = 0_u8;
    if heap.contains(&ptr::from_ref(&here).addr()) && !MAY_ALLOCATE.load(Ordering::Relaxed) {
        exit(NOT_ALLOWED);
    }
}

/// What a child exits with that has allocated where it must not (`EX_SOFTWARE`).
const NOT_ALLOWED: i32 = 70;

/// A child of which the kernel has something to tell.
pub enum Reaped {
    /// It has ended, and is gone.
    Ended(i32, Status, Usage),
    /// It had made init trace it (`PTRACE_TRACEME`), and stopped. It goes on untraced.
    Released,
}

/// Reaps one child that has ended; `None` if there is none. Never waits.
pub fn reap() -> Result<Option<Reaped>> {
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
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid != 0) else { return Ok(None) };
    if status & 0x7f == 0x7f {
        release(pid, status);
        return Ok(Some(Reaped::Released));
    }
    Ok(Some(Reaped::Ended(pid, decode_status(status), decode_usage(&usage))))
}

/// Whether any process is there but this one: all others are its children, or come to be.
pub fn has_children() -> bool {
    const EXITED_NOHANG_NOWAIT_ALL: usize = 4 | 1 | 0x0100_0000 | 0x4000_0000;
    // SAFETY: P_ALL takes no id, and null asks for neither information nor usage.
    let found = unsafe { syscall(nr::WAITID, 0, 0, 0, EXITED_NOHANG_NOWAIT_ALL, 0) };
    found != Err(Errno::CHILD)
}

/// Lets go of a child that has made init its tracer: it gets the signal at which it has stopped, as
/// if no one traced it. What stopped at a program's start, or at a call, got none.
fn release(pid: i32, status: i32) {
    const PTRACE_DETACH: usize = 17;
    const SIGTRAP: i32 = 5;
    let signal = match status >> 8 {
        SIGTRAP => 0,
        // An event of ptrace's has its number above the signal.
        signal if signal > 0xff => 0,
        signal => signal,
    };
    let (pid, signal) = (pid.unsigned_abs() as usize, signal.unsigned_abs() as usize);
    // SAFETY: takes no pointer. If it fails, the child was killed meanwhile.
    let _ = unsafe { syscall(nr::PTRACE, PTRACE_DETACH, pid, 0, signal, 0) };
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
