//! Messages about jobs: start, signals, deadlines, ends.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{FileTask, Strings};

/// Starts one job.
///
/// Descriptors that come with it, in order: the job channel; the start notice if there is one;
/// one for each [`StdioSource::Descriptor`]; one for each of [`Spawn::cgroups`]; that of
/// [`Spawn::cpu_limit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn<'a> {
    /// What it does.
    #[serde(borrow)]
    pub task: Task<'a>,
    /// The working directory, one string; a relative one starts at the root.
    #[serde(borrow)]
    pub directory: Strings<'a>,
    /// Who runs it.
    pub identity: Identity,
    /// The file mode creation mask.
    pub umask: u32,
    /// Resource limits to set, soft and hard, beyond those that every job has.
    pub rlimits: Vec<Rlimit>,
    /// What is added to the niceness, 0 to leave it.
    pub nice: i8,
    /// How much sooner than others it is killed when memory runs out, 0 to leave it
    /// (`proc_pid_oom_score_adj(5)`).
    pub oom_score_adj: i16,
    /// Where stdin, stdout and stderr lead.
    pub stdio: JobStdio,
    /// How many cgroups it joins: a descriptor of the `cgroup.procs` of each came with it.
    pub cgroups: u8,
    /// Whether those are the roots of all that it sees of cgroups.
    pub cgroup_namespace: bool,
    /// Whether a descriptor came with it that must be closed by a successful `execve(2)`, and
    /// [`JobEvent::Started`] is wanted.
    pub start_notice: bool,
    /// When its tree is ended, in microseconds from its start.
    pub timeout_us: Option<u64>,
    /// How much CPU time its tree may use, by a file that counts it, whose descriptor came with it.
    pub cpu_limit: Option<CpuLimit>,
    /// What becomes of its tree when its own process has ended.
    pub leftovers: Leftovers,
}

/// When a tree has used the CPU time that it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuLimit {
    /// The first number in the file at which it has.
    pub most: u64,
    /// By how much that number grows in a millisecond in which all processors are busy.
    pub per_ms: u64,
}

/// What a job does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task<'a> {
    /// Runs a program.
    #[serde(borrow)]
    Program(Program<'a>),
    /// Reads all from stdin and stdout, as long as there is someone to write, and drops it: for
    /// pipes whose reader is gone but whose writers are to live.
    Drain,
    /// Does something with files.
    #[serde(borrow)]
    File(FileTask<'a>),
    /// Ends every process but init, which does this itself and reads no request meanwhile.
    KillAll,
    /// Makes a socket (UDP), which init does itself. It is for nothing but to tell which network
    /// namespace it is in. The answer is [`JobEvent::Socket`] or [`JobEvent::Failed`], and nothing
    /// after it.
    Socket,
}

/// A program with its arguments and environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program<'a> {
    /// The program, or several of which the first that exists is run. A name without a slash is
    /// looked for in the directories of `PATH` in `environment`. It becomes the argument 0.
    #[serde(borrow)]
    pub names: Strings<'a>,
    /// The arguments from 1 on.
    #[serde(borrow)]
    pub arguments: Strings<'a>,
    /// The environment, `NAME=value` each.
    #[serde(borrow)]
    pub environment: Strings<'a>,
    /// What is added to the environment.
    pub login: Login,
}

/// Which variables of a login a job is to have, by the first entry of its user id in the sandbox's
/// own `/etc/passwd`, as the job's user can read it. Where there is none, `HOME` is `/`, and there
/// are no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Login(u8);

impl Login {
    /// `HOME`
    pub const HOME: Self = Self(1);
    /// `USER`
    pub const USER: Self = Self(2);
    /// `LOGNAME`
    pub const LOGNAME: Self = Self(4);
    /// `SHELL`; `/bin/sh` where the entry names none.
    pub const SHELL: Self = Self(8);
    /// All of them.
    pub const ALL: Self = Self(15);
    /// None of them.
    pub const NONE: Self = Self(0);
    /// How many they are at most.
    pub const COUNT: usize = 4;

    /// Whether some of `other` are among them.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Takes those of `other` out.
    pub fn remove(&mut self, other: Self) {
        self.0 &= !other.0;
    }
}

/// What becomes of the processes that a job has started and that outlive it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Leftovers {
    /// They live on, as a server that `server &` has started must.
    #[default]
    Keep,
    /// They are killed, all of them, before the job's end is told.
    End,
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

impl Identity {
    /// Root of the sandbox, in no other group.
    pub const ROOT: Self = Self { uid: 0, gid: 0, groups: Vec::new() };
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

/// Where the standard descriptors lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobStdio {
    /// Each to a place of its own.
    Streams([StdioSource; 3]),
    /// All to a new terminal in the sandbox's own devpts, which controls the job's session. Its
    /// other side goes to the host with [`JobEvent::Terminal`].
    Terminal {
        /// Its height, in characters.
        rows: u16,
        /// Its width, in characters.
        columns: u16,
    },
}

/// Where one of the three standard descriptors leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StdioSource {
    /// `/dev/null`, opened by init before the first job ran.
    Null,
    /// A descriptor that came with the request.
    Descriptor,
    /// The stream before it: stderr goes where stdout goes.
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
    /// End its tree so many microseconds from now, whatever was said of it before.
    EndAfter {
        /// In microseconds.
        delay_us: u64,
    },
}

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// The process that was started, alone.
    Process,
    /// Its process group.
    Group,
    /// All that it ever started, whatever sessions and groups they have moved to. SIGKILL leaves
    /// none of them; any other signal is sent to each that exists at some moment after.
    Tree,
}

/// What init, or the job before its `execve(2)`, tells the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobEvent {
    /// The process exists; sent only where [`Spawn::start_notice`] asks for it.
    Started {
        /// Its process id inside.
        pid: i32,
    },
    /// The terminal exists; a descriptor of its master side comes with this. Sent before the
    /// program runs, and in no order with [`JobEvent::Started`].
    Terminal,
    /// The program was not started, or the built-in task failed.
    Failed {
        /// How far it came.
        stage: Stage,
        /// The kernel's error number.
        errno: i32,
    },
    /// The process was reaped: all it wrote is in the pipes. Where its tree was to be ended, that
    /// has happened, too.
    Exited(Exit),
    /// The socket that was asked for exists; its descriptor comes with this.
    Socket,
}

/// The stages of a start. A program's come about in this order, but its streams are put in place
/// before its identity, and once more after its terminal; and how many files it may have open is
/// set last before it is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// Read the request and its descriptors.
    Request,
    /// Make the process.
    Fork,
    /// Join its cgroups.
    Cgroup,
    /// Make its session.
    Session,
    /// Set its resource limits.
    Rlimit,
    /// Set its niceness.
    Nice,
    /// Set what the kernel thinks of it when memory runs out.
    OomScore,
    /// Take on its groups and ids.
    Identity,
    /// Give up capabilities.
    Capabilities,
    /// Make its terminal.
    Terminal,
    /// Put its standard descriptors in place and close all others.
    Stdio,
    /// Enter its working directory.
    Directory,
    /// Run the program.
    Exec,
    /// Find the file, or make it.
    File,
    /// See whether it is a regular file. The error number says nothing more.
    Kind,
    /// Move bytes.
    Copy,
    /// Make a socket, give it its address or have it connect.
    Socket,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit status.
    pub status: Status,
    /// What it and its waited-for children used.
    pub usage: Usage,
    /// From its start to its end, in microseconds.
    pub wall_us: u64,
    /// What has ended it, if init did by itself.
    pub by: Option<EndedBy>,
    /// Whether some of its tree, which was to be ended, does not end: the kernel has it in a state
    /// in which it can't be killed.
    pub survivors: bool,
}

/// What init ends a tree for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndedBy {
    /// Its time was up.
    Timeout,
    /// It had used the CPU time that it may, whether or not it ended by itself before that was
    /// noticed.
    CpuTime,
    /// [`Task::KillAll`].
    KillAll,
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
