//! Starting a job, steering it, and the truth about its end.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::Strings;

/// Starts one program.
///
/// Descriptors that come with it, in order: the job channel; the start notice if there is one;
/// one for each [`StdioSource::Descriptor`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn<'a> {
    /// The program, or several of which the first that exists is run. A name without a slash is
    /// looked for in the directories of `PATH` in `environment`. It becomes the argument 0.
    #[serde(borrow)]
    pub programs: Strings<'a>,
    /// The arguments from 1 on.
    #[serde(borrow)]
    pub arguments: Strings<'a>,
    /// The whole environment, `NAME=value` each.
    #[serde(borrow)]
    pub environment: Strings<'a>,
    /// The working directory, without a NUL; a relative one starts at the root.
    #[serde(borrow)]
    pub directory: &'a [u8],
    /// Who runs it.
    pub identity: Identity,
    /// The file mode creation mask.
    pub umask: u32,
    /// Resource limits to set, soft and hard.
    pub rlimits: Vec<Rlimit>,
    /// What is added to the niceness, 0 to leave it.
    pub nice: i8,
    /// Where stdin, stdout and stderr lead.
    pub stdio: [StdioSource; 3],
    /// Whether a descriptor came with it that must be closed by a successful `execve(2)`, and
    /// [`JobEvent::Started`] is wanted.
    pub start_notice: bool,
}

/// The ids of a job, as seen inside the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Real, effective and saved user id.
    pub uid: u32,
    /// Real, effective and saved group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// One resource limit (`setrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// The soft limit, in the unit of the resource; `u64::MAX` is none.
    pub soft: u64,
    /// The hard limit, in the unit of the resource; `u64::MAX` is none.
    pub hard: u64,
}

/// Where one of the three standard descriptors leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StdioSource {
    /// `/dev/null`, opened by init before the first job ran.
    Null,
    /// A descriptor that came with the request.
    Descriptor,
    /// The same as the one before it: stderr joins stdout.
    Previous,
}

/// What the host asks of a running job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobRequest {
    /// Send a signal.
    Signal {
        /// Its number.
        signal: u8,
        /// Who gets it.
        scope: Scope,
    },
}

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// The process that was started, alone.
    Process,
    /// Its process group.
    Group,
}

/// What init, or the job before its `execve(2)`, tells the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobEvent {
    /// The process exists; sent only where [`Spawn::start_notice`] asks for it.
    Started {
        /// Its process id inside.
        pid: i32,
    },
    /// The program was not started.
    Failed {
        /// How far it came.
        stage: Stage,
        /// The kernel's error number.
        errno: i32,
    },
    /// The process was reaped: all it wrote is in the pipes.
    Exited(Exit),
}

/// The stages of a start, in the order in which they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Stage {
    /// Read the request and its descriptors.
    Request,
    /// Make the process.
    Fork,
    /// Make its session.
    Session,
    /// Put its standard descriptors in place and close all others.
    Stdio,
    /// Set its resource limits.
    Rlimit,
    /// Set its niceness.
    Nice,
    /// Enter its working directory.
    Directory,
    /// Take on its groups and ids.
    Identity,
    /// Give up capabilities.
    Capabilities,
    /// Run the program.
    Exec,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit status.
    pub status: Status,
    /// What it and its waited-for children used.
    pub usage: Usage,
}

/// An exit status, as `wait(2)` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It called `exit(2)` with this.
    Code(u8),
    /// A signal ended it.
    Signal {
        /// The signal's number.
        signal: u8,
        /// Whether a core was dumped.
        core: bool,
    },
}

/// Resource usage (`getrusage(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode, in microseconds.
    pub user_us: u64,
    /// CPU time in the kernel, in microseconds.
    pub system_us: u64,
    /// The largest resident set of any one process, in KiB.
    pub max_rss_kib: u64,
    /// Page faults without I/O.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
    /// Blocks of 512 bytes read from a file system.
    pub blocks_in: u64,
    /// Blocks of 512 bytes written to a file system.
    pub blocks_out: u64,
    /// Context switches by waiting.
    pub voluntary_switches: u64,
    /// Context switches by preemption.
    pub involuntary_switches: u64,
}
