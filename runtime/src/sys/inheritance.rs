//! Has a sandbox begin with settings of its own, not with those that its caller passes on.
//!
//! A process passes much on to its children without being asked; a sandbox begins in one way,
//! whoever calls.

use std::io;
use std::ptr;

use super::{check, raw};

/// Whether a sandbox gets a session keyring of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionKeyring {
    /// It does.
    Own,
    /// It has the caller's, which the system call filter keeps it from.
    Callers,
}

/// No limit (`RLIM_INFINITY`).
const NONE: u64 = u64::MAX;

/// What each resource limit (`setrlimit(2)`) begins as, by its number: soft and hard, but never
/// more than the caller's hard limit. Hard limits that a command may ask to have raised are lowered
/// for jobs alone, by init.
const LIMITS: [(u64, u64); 16] = [
    (NONE, NONE),       // RLIMIT_CPU
    (NONE, NONE),       // RLIMIT_FSIZE
    (NONE, NONE),       // RLIMIT_DATA
    (8 << 20, NONE),    // RLIMIT_STACK: the kernel's; with none, addresses are less random
    (1, NONE),          // RLIMIT_CORE: no dump, see init
    (NONE, NONE),       // RLIMIT_RSS
    (NONE, NONE),       // RLIMIT_NPROC
    (1024, NONE),       // RLIMIT_NOFILE: see init, which needs all that it can have
    (8 << 20, NONE),    // RLIMIT_MEMLOCK: the kernel's
    (NONE, NONE),       // RLIMIT_AS
    (NONE, NONE),       // RLIMIT_LOCKS
    (NONE, NONE),       // RLIMIT_SIGPENDING
    (819_200, 819_200), // RLIMIT_MSGQUEUE: the kernel's
    (0, 0),             // RLIMIT_NICE: no one inside comes before the host's own processes
    (0, 0),             // RLIMIT_RTPRIO: likewise
    (NONE, NONE),       // RLIMIT_RTTIME
];

/// Gives up what the caller has and a sandbox must not have. What only holds the caller back, and
/// by its own wish, it keeps: niceness above 0, `SCHED_IDLE`, lower hard limits.
///
/// For a child that shares the caller's memory: nothing here belongs to memory, nor to the caller's
/// other threads. The rest is in init's `setup::prepare`.
///
/// # Errors
/// The kernel's error number.
pub(super) fn give_up(keyring: SessionKeyring) -> Result<(), i32> {
    // 1. The processor: the ordinary policy, no real-time priority, no negative niceness, no clamp
    //    on its frequency, no slice of time of its own. `SCHED_RESET_ON_FORK` was cleared by the
    //    clone.
    ordinary_scheduling()?;
    every_processor()?;
    // 2. The disks: as the niceness says.
    no_io_priority()?;
    // 3. Limits.
    for (resource, (soft, hard)) in LIMITS.into_iter().enumerate() {
        limit(resource, soft, hard)?;
    }
    // SAFETY: none of these takes a pointer.
    unsafe {
        // 4. Addresses are random again, and uname(2) tells the truth. Before the execve: what is
        //    mapped by that one, init keeps.
        raw(libc::SYS_personality, [0; 5])?;
        // 5. Timers: the kernel's slack, in nanoseconds. After 1, since a real-time one has none.
        let slack = [libc::PR_SET_TIMERSLACK as usize, 50_000, 0, 0, 0];
        raw(libc::SYS_prctl, slack)?;
        // 6. Errors of memory, and the clock of the processor, as the machine has them.
        let machine_checks =
            [libc::PR_MCE_KILL as usize, libc::PR_MCE_KILL_CLEAR as usize, 0, 0, 0];
        raw(libc::SYS_prctl, machine_checks)?;
        let clock = [libc::PR_SET_TSC as usize, libc::PR_TSC_ENABLE as usize, 0, 0, 0];
        raw(libc::SYS_prctl, clock)?;
        // 7. Memory from any node. A kernel for machines with one does not know the call.
        unless(libc::ENOSYS, raw(libc::SYS_set_mempolicy, [0; 5]))?;
        // 8. Keys. A kernel without them has no such call; EPERM is from a filter around the
        //    caller, which is around the sandbox, too.
        if keyring == SessionKeyring::Own {
            let join =
                raw(libc::SYS_keyctl, [libc::KEYCTL_JOIN_SESSION_KEYRING as usize, 0, 0, 0, 0]);
            unless(libc::EPERM, unless(libc::ENOSYS, join).map(|()| 0))?;
        }
    }
    Ok(())
}

fn ordinary_scheduling() -> Result<(), i32> {
    /// struct sched_attr (`sched_setattr(2)`).
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: i32,
        flags: u64,
        nice: i32,
        priority: u32,
        times: [u64; 3],
        /// The smallest and the largest; -1 is that of the machine.
        clamp: [i32; 2],
    }
    const CLAMP: u64 = 0x20 | 0x40;
    let mut attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER,
        flags: CLAMP,
        nice: 0,
        priority: 0,
        times: [0; 3],
        clamp: [-1; 2],
    };
    // SAFETY: the struct outlives each call, and its size is said.
    unsafe {
        // The system call itself says 20 less the niceness.
        let nice = raw(libc::SYS_getpriority, [libc::PRIO_PROCESS as usize, 0, 0, 0, 0])?;
        attributes.nice = (20 - i32::try_from(nice).unwrap_or(20)).max(0);
        let set = |attributes: &Attributes| {
            let pointer = std::ptr::from_ref(attributes) as usize;
            raw(libc::SYS_sched_setattr, [0, pointer, 0, 0, 0])
        };
        let mut result = set(&attributes);
        if let Err(libc::EOPNOTSUPP | libc::EINVAL | libc::E2BIG) = result {
            // A kernel without clamps.
            attributes.flags = 0;
            result = set(&attributes);
        }
        match result {
            // SCHED_IDLE, which stands back for all others, and which it takes a right to leave.
            Err(libc::EPERM)
                if raw(libc::SYS_sched_getscheduler, [0; 5])? == libc::SCHED_IDLE as usize =>
            {
                Ok(())
            }
            other => other.map(drop),
        }
    }
}

/// All that the cpuset allows.
fn every_processor() -> Result<(), i32> {
    // For 8,192 of them, the most that a kernel is built for.
    let all = [u64::MAX; 128];
    // SAFETY: the array outlives the call, and its length is said.
    unsafe {
        let pointer = all.as_ptr() as usize;
        raw(libc::SYS_sched_setaffinity, [0, size_of_val(&all), pointer, 0, 0]).map(drop)
    }
}

fn no_io_priority() -> Result<(), i32> {
    const IOPRIO_WHO_PROCESS: usize = 1;
    // SAFETY: neither takes a pointer.
    unsafe {
        // To set what is there already would make the kernel keep a record.
        match raw(libc::SYS_ioprio_get, [IOPRIO_WHO_PROCESS, 0, 0, 0, 0]) {
            Ok(0) | Err(libc::ENOSYS) => Ok(()),
            _ => raw(libc::SYS_ioprio_set, [IOPRIO_WHO_PROCESS, 0, 0, 0, 0]).map(drop),
        }
    }
}

fn limit(resource: usize, soft: u64, hard: u64) -> Result<(), i32> {
    let mut old = [0_u64; 2];
    // SAFETY: both are two u64s, as a struct rlimit64 is.
    unsafe {
        raw(libc::SYS_prlimit64, [0, resource, 0, old.as_mut_ptr() as usize, 0])?;
        let [_, callers] = old;
        let new = [soft.min(callers), hard.min(callers)];
        if new == old {
            return Ok(());
        }
        raw(libc::SYS_prlimit64, [0, resource, new.as_ptr() as usize, 0, 0]).map(drop)
    }
}

/// Gives a child the limit of core dumps that means none, where the caller's hard limit kept it
/// from that: by 0, which is less, the kernel hands a dump to a program all the same (core(5)).
///
/// # Errors
/// EPERM, without CAP_SYS_RESOURCE.
pub(crate) fn raise_core_limit(pid: i32) -> io::Result<()> {
    let mut own = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let none = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    // SAFETY: getrlimit writes a struct rlimit, prlimit reads one.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_CORE, &raw mut own).into())?;
        if own.rlim_max >= none.rlim_max {
            return Ok(());
        }
        check(libc::prlimit(pid, libc::RLIMIT_CORE, &raw const none, ptr::null_mut()).into())
            .map(drop)
    }
}

/// Lets one error pass.
fn unless(errno: i32, result: Result<usize, i32>) -> Result<(), i32> {
    match result {
        Err(other) if other != errno => Err(other),
        _ => Ok(()),
    }
}
