//! How a command ended.

use std::fmt;
use std::time::Duration;

use adl_protocol::{EndedBy, Exit, Status};

/// How a command ended, why, and what it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    status: Status,
    reason: EndReason,
    usage: Usage,
    wall_time: Duration,
    survivors: bool,
}

/// What a command used (`getrusage(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Usage {
    /// CPU time in user mode.
    pub user_time: Duration,
    /// CPU time in the kernel.
    pub system_time: Duration,
    /// The largest resident set of any one process, in bytes.
    pub max_resident: u64,
    /// Page faults without I/O.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
    /// Read from file systems, in bytes.
    pub read: u64,
    /// Written to file systems, in bytes.
    pub written: u64,
    /// Context switches by waiting.
    pub voluntary_switches: u64,
    /// Context switches by preemption.
    pub involuntary_switches: u64,
}

impl Usage {
    fn from_wire(wire: adl_protocol::Usage) -> Self {
        const KIB: u64 = 1 << 10;
        const BLOCK: u64 = 512;
        // An init that was taken over may say anything.
        Self {
            user_time: Duration::from_micros(wire.user_us),
            system_time: Duration::from_micros(wire.system_us),
            max_resident: wire.max_rss_kib.saturating_mul(KIB),
            minor_faults: wire.minor_faults,
            major_faults: wire.major_faults,
            read: wire.blocks_in.saturating_mul(BLOCK),
            written: wire.blocks_out.saturating_mul(BLOCK),
            voluntary_switches: wire.voluntary_switches,
            involuntary_switches: wire.involuntary_switches,
        }
    }
}

/// Why a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndReason {
    /// It exited by itself; [`ExitStatus::code`] tells with what.
    Exited,
    /// A signal ended it, which came from inside, or from [`Child::signal`](crate::Child::signal);
    /// [`ExitStatus::signal`] tells which.
    Signaled,
    /// Its time was up; see [`Command::timeout`](crate::Command::timeout).
    TimedOut,
    /// It had used the CPU time that it may, whether it was killed for that or ended by itself
    /// before; see [`Command::cpu_time`](crate::Command::cpu_time).
    CpuTimedOut,
    /// It wrote nothing for too long; see [`Command::idle_timeout`](crate::Command::idle_timeout).
    Idle,
    /// It was killed because the sandbox had used all its memory, or something was that it had
    /// started; see [`Limits::memory`](crate::Limits::memory).
    OutOfMemory,
    /// It wrote more than it may, whether it then exited by itself or was killed for it; see
    /// [`Command::output_limit`](crate::Command::output_limit).
    OutputLimit,
    /// The caller had seen enough of its output; see
    /// [`Command::output_with`](crate::Command::output_with).
    Stopped,
    /// It was killed with all that ran; see [`Sandbox::kill_all`](crate::Sandbox::kill_all).
    Killed,
    /// The sandbox ended, and every process inside with it: its init died, or the sandbox was
    /// reset, deleted or made into a snapshot. The status is that of SIGKILL.
    SandboxDied,
}

impl ExitStatus {
    /// What init said; `asked` is why the host asked for the end, if it did, and `out_of_memory`
    /// whether the kernel has killed any of it.
    pub(crate) fn new(exit: &Exit, asked: Option<EndReason>, out_of_memory: bool) -> Self {
        let reason = match (exit.by, asked, exit.status) {
            // Also where what it had started was killed, and it ended before it was itself.
            (None, None, _) if out_of_memory => EndReason::OutOfMemory,
            (Some(EndedBy::CpuTime), ..) => EndReason::CpuTimedOut,
            // It was quicker than what was to end it.
            (_, _, Status::Code(_)) => EndReason::Exited,
            (Some(EndedBy::Timeout), _, Status::Signal { .. }) => EndReason::TimedOut,
            (Some(EndedBy::KillAll), _, Status::Signal { .. }) => EndReason::Killed,
            (None, Some(asked), Status::Signal { .. }) => asked,
            (None, None, Status::Signal { .. }) => EndReason::Signaled,
        };
        Self {
            status: exit.status,
            reason,
            usage: Usage::from_wire(exit.usage),
            wall_time: Duration::from_micros(exit.wall_us),
            survivors: exit.survivors,
        }
    }

    /// The end of the sandbox, after `wall_time`.
    pub(crate) fn sandbox_died(wall_time: Duration) -> Self {
        Self {
            status: Status::Signal { signal: 9, core: false },
            reason: EndReason::SandboxDied,
            usage: Usage::default(),
            wall_time,
            survivors: false,
        }
    }

    /// It was killed, and has not ended `wall_time` after its start.
    pub(crate) fn not_ended(reason: EndReason, wall_time: Duration) -> Self {
        Self { reason, survivors: true, ..Self::sandbox_died(wall_time) }
    }

    /// The end of a command that has written more than it may, whatever has ended it.
    pub(crate) fn with_too_much_output(self) -> Self {
        match self.reason {
            EndReason::SandboxDied => self,
            _ => Self { reason: EndReason::OutputLimit, ..self },
        }
    }

    /// Whether it exited by itself, with 0.
    pub fn success(&self) -> bool {
        self.status == Status::Code(0) && self.reason == EndReason::Exited
    }

    /// What it exited with, unless a signal ended it.
    pub fn code(&self) -> Option<u8> {
        match self.status {
            Status::Code(code) => Some(code),
            Status::Signal { .. } => None,
        }
    }

    /// The number of the signal that ended it, if one did.
    pub fn signal(&self) -> Option<u8> {
        match self.status {
            Status::Code(_) => None,
            Status::Signal { signal, .. } => Some(signal),
        }
    }

    /// Whether a core was dumped. By default none is, since `RLIMIT_CORE` is 1 byte; a command that
    /// raises [`Resource::Core`](crate::Resource) can have one.
    pub fn core_dumped(&self) -> bool {
        matches!(self.status, Status::Signal { core: true, .. })
    }

    /// Why it ended.
    pub fn reason(&self) -> EndReason {
        self.reason
    }

    /// What it and the children that it waited for used, as `getrusage(2)` tells it. All zero
    /// where the sandbox has died.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// From its start to its end, as init saw it.
    pub fn wall_time(&self) -> Duration {
        self.wall_time
    }

    /// Whether some of what it started, or itself, was killed and had not ended when this was told:
    /// the kernel has it in a state in which it can't be killed. It ends when it leaves that. The
    /// sandbox is better deleted.
    pub fn survivors(&self) -> bool {
        self.survivors
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Status::Code(code) => write!(f, "exit status {code}")?,
            Status::Signal { signal, core: false } => write!(f, "signal {signal}")?,
            Status::Signal { signal, core: true } => write!(f, "signal {signal} (core dumped)")?,
        }
        f.write_str(match self.reason {
            EndReason::Exited | EndReason::Signaled => "",
            EndReason::TimedOut => ", timed out",
            EndReason::CpuTimedOut => ", out of CPU time",
            EndReason::Stopped => ", stopped for its output",
            EndReason::Killed => ", killed with all that ran",
            EndReason::Idle => ", silent for too long",
            EndReason::OutOfMemory => ", out of memory",
            EndReason::OutputLimit => ", too much output",
            EndReason::SandboxDied => ", the sandbox has died",
        })
    }
}
