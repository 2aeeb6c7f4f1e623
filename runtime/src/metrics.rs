//! What the library has done in this process until now, in numbers.

use serde::Serialize;

use crate::exit::EndReason;
use crate::job::counts::{self as jobs, Counted as Job};
use crate::pool::{self, PoolStats};
use crate::sandbox::blank::blanks_ready;
use crate::sandbox::counts::{self as sandboxes, Counted as Life};
use crate::sandbox::phase::Phase;
use crate::store::remover;

/// What this process has now, and has done since it began; see [`metrics`].
///
/// It is for metrics: a number that only grows can be a counter, the others are gauges. The numbers
/// are read one after the other, while other threads go on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Metrics {
    /// Its sandboxes, those of pools among them.
    pub sandboxes: SandboxMetrics,
    /// The commands that were run in them.
    pub jobs: JobMetrics,
    /// Their spares; see [`Config::spare`](crate::Config::spare).
    pub spares: SpareMetrics,
    /// Its blanks; see [`keep_blanks`](crate::keep_blanks).
    pub blanks: BlankMetrics,
    /// What sandboxes have left on disk; see [`finish_removals`](crate::finish_removals).
    pub removals: RemovalMetrics,
    /// Its pools that are not closed, the oldest first.
    pub pools: Vec<PoolStats>,
}

/// The sandboxes of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SandboxMetrics {
    /// Those that were created and neither deleted nor dropped: also where their init has died.
    pub alive: u64,
    /// How many were created.
    pub created: u64,
    /// How many could not be created, by what has failed.
    pub failed: CreateFailures,
    /// How many were deleted or dropped.
    pub deleted: u64,
    /// How many resets there were.
    pub resets: u64,
    /// How many snapshots were made.
    pub snapshots: u64,
}

/// How many sandboxes could not be created, by what has failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CreateFailures {
    /// The configuration, the state directory, or what can be done before anything is made.
    pub prepare: u64,
    /// To open what the root is made of.
    pub root: u64,
    /// To clone init into its namespaces.
    pub clone: u64,
    /// To give init its ids and the first request.
    pub setup: u64,
    /// To find or make cgroups.
    pub cgroups: u64,
    /// To make the directory of the sandbox.
    pub directory: u64,
    /// The mounts, and all else that init does until it is ready.
    pub ready: u64,
}

/// The commands of a process: those that are run as [`Command`](crate::Command).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct JobMetrics {
    /// Those that were started and of which no end is known yet.
    pub running: u64,
    /// How many an init was asked to start.
    pub started: u64,
    /// How many of those could not be run: no such program, for example.
    pub not_started: u64,
    /// How many have ended, by the reason that their callers were told.
    pub ended: JobEnds,
    /// How many no one has waited for: their ends are not known.
    pub unwatched: u64,
}

/// How many commands have ended, by [`EndReason`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct JobEnds {
    /// [`EndReason::Exited`].
    pub exited: u64,
    /// [`EndReason::Signaled`].
    pub signaled: u64,
    /// [`EndReason::TimedOut`].
    pub timed_out: u64,
    /// [`EndReason::CpuTimedOut`].
    pub cpu_timed_out: u64,
    /// [`EndReason::Idle`].
    pub idle: u64,
    /// [`EndReason::OutOfMemory`].
    pub out_of_memory: u64,
    /// [`EndReason::OutputLimit`].
    pub output_limit: u64,
    /// [`EndReason::Stopped`].
    pub stopped: u64,
    /// [`EndReason::Killed`].
    pub killed: u64,
    /// [`EndReason::SandboxDied`].
    pub sandbox_died: u64,
}

/// The spares of a process's sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SpareMetrics {
    /// Those that are ready.
    pub ready: u64,
    /// How many were made.
    pub made: u64,
    /// How many could not be made.
    pub failed: u64,
    /// How many resets have taken one.
    pub taken: u64,
}

/// The blanks of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BlankMetrics {
    /// Those that are ready.
    pub ready: u64,
    /// How many were made.
    pub made: u64,
    /// How many creates have taken one.
    pub taken: u64,
}

/// The removals of what sandboxes have left on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RemovalMetrics {
    /// Those that are not done: [`pending_removals`](crate::pending_removals).
    pub waiting: u64,
    /// How many are done.
    pub done: u64,
}

/// What the library has in this process at this moment, and has done in it until now. Nothing waits
/// for it; a fork of the process begins with zeros.
///
/// ```
/// let metrics = adl_runtime::metrics();
/// println!("{} of {}", metrics.sandboxes.alive, metrics.sandboxes.created);
/// ```
pub fn metrics() -> Metrics {
    // What ends is read before what begins: no difference is below zero.
    let deleted = sandboxes::read(Life::Deleted);
    let created = sandboxes::read(Life::Created);
    let failed = |phase| sandboxes::read(Life::Failed(phase));
    let sandboxes = SandboxMetrics {
        alive: created.saturating_sub(deleted),
        created,
        failed: CreateFailures {
            prepare: failed(Phase::Prepare),
            root: failed(Phase::Root),
            clone: failed(Phase::Clone),
            setup: failed(Phase::Setup),
            cgroups: failed(Phase::Cgroups),
            directory: failed(Phase::Directory),
            ready: failed(Phase::Ready),
        },
        deleted,
        resets: sandboxes::read(Life::Reset),
        snapshots: sandboxes::read(Life::Snapshot),
    };
    Metrics {
        sandboxes,
        jobs: jobs(),
        spares: spares(),
        blanks: blanks(),
        removals: RemovalMetrics {
            waiting: remover::pending_removals() as u64,
            done: remover::removals_done(),
        },
        pools: pool::all_stats(),
    }
}

fn jobs() -> JobMetrics {
    let ended = |reason| jobs::read(Job::Ended(reason));
    let ended = JobEnds {
        exited: ended(EndReason::Exited),
        signaled: ended(EndReason::Signaled),
        timed_out: ended(EndReason::TimedOut),
        cpu_timed_out: ended(EndReason::CpuTimedOut),
        idle: ended(EndReason::Idle),
        out_of_memory: ended(EndReason::OutOfMemory),
        output_limit: ended(EndReason::OutputLimit),
        stopped: ended(EndReason::Stopped),
        killed: ended(EndReason::Killed),
        sandbox_died: ended(EndReason::SandboxDied),
    };
    let (not_started, unwatched) = (jobs::read(Job::NotStarted), jobs::read(Job::Unwatched));
    let over = not_started.saturating_add(unwatched).saturating_add(ended.total());
    let started = jobs::read(Job::Started);
    JobMetrics { running: started.saturating_sub(over), started, not_started, ended, unwatched }
}

fn blanks() -> BlankMetrics {
    let ready = u64::try_from(blanks_ready()).unwrap_or(u64::MAX);
    let (made, taken) = (sandboxes::read(Life::BlankMade), sandboxes::read(Life::BlankTaken));
    BlankMetrics { ready, made, taken }
}

fn spares() -> SpareMetrics {
    let taken = sandboxes::read(Life::SpareTaken);
    let gone = taken.saturating_add(sandboxes::read(Life::SpareDiscarded));
    let made = sandboxes::read(Life::SpareMade);
    let failed = sandboxes::read(Life::SpareFailed);
    SpareMetrics { ready: made.saturating_sub(gone), made, failed, taken }
}

impl CreateFailures {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Self { prepare, root, clone, setup, cgroups, directory, ready } = *self;
        prepare + root + clone + setup + cgroups + directory + ready
    }
}

impl JobEnds {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Self { exited, signaled, timed_out, cpu_timed_out, idle, .. } = *self;
        let Self { out_of_memory, output_limit, stopped, killed, sandbox_died, .. } = *self;
        let by_itself_or_time = exited + signaled + timed_out + cpu_timed_out + idle;
        by_itself_or_time + out_of_memory + output_limit + stopped + killed + sandbox_died
    }
}
