//! What a sandbox or a job has used.

use std::time::Duration;

use crate::config::ports::ConnectionStats;

/// What the jobs of a sandbox, or one of them, have used, as the kernel's cgroups count it; `None`
/// where this machine does not count it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// CPU time.
    pub cpu_time: Option<Duration>,
    /// How long it had to wait because of [`Limits::cpu`](crate::Limits::cpu), added up over CPUs.
    /// Of a sandbox only.
    pub throttled: Option<Duration>,
    /// Memory in use, in bytes, with the page cache. For a job it is what its cgroup has grown by;
    /// pages that an earlier job has read do not count.
    pub memory: Option<u64>,
    /// The most memory that was in use at once, in bytes. With version 2 before Linux 6.12, of a
    /// job only if it was the first in its cgroup, which jobs one after another share.
    pub memory_peak: Option<u64>,
    /// How many processes the kernel has killed because memory ran out. Version 2, which ends a job
    /// as a whole, counts the process that it chose twice.
    pub oom_kills: Option<u64>,
    /// Processes and threads that there are.
    pub pids: Option<u64>,
    /// The most processes and threads that there were at once. Of a sandbox only, as the next.
    pub pids_peak: Option<u64>,
    /// How often a process or thread was refused because of [`Limits::pids`](crate::Limits::pids).
    pub pids_refused: Option<u64>,
    /// Bytes read from disks. With version 1, of a sandbox only.
    pub read_bytes: Option<u64>,
    /// Bytes written to disks. With version 1, of a sandbox only.
    pub write_bytes: Option<u64>,
    /// How long something waited for a CPU (`Documentation/accounting/psi.rst`, `some`). Of a
    /// sandbox only, as the next two.
    pub cpu_pressure: Option<Duration>,
    /// How long something waited for memory.
    pub memory_pressure: Option<Duration>,
    /// How long something waited for a disk.
    pub io_pressure: Option<Duration>,
    /// What the connections of its ports have come to. Of a sandbox only, and one that has had
    /// ports.
    pub connections: Option<ConnectionStats>,
}

impl Stats {
    /// What was used since `start`, when what was in memory then was another's.
    pub(crate) fn since(&self, start: &Self) -> Self {
        fn number(now: Option<u64>, start: Option<u64>) -> Option<u64> {
            Some(now?.saturating_sub(start.unwrap_or_default()))
        }
        let begun = start.cpu_time.unwrap_or_default();
        Self {
            cpu_time: self.cpu_time.map(|now| now.saturating_sub(begun)),
            memory: number(self.memory, start.memory),
            memory_peak: number(self.memory_peak, start.memory),
            oom_kills: number(self.oom_kills, start.oom_kills),
            pids: self.pids,
            read_bytes: number(self.read_bytes, start.read_bytes),
            write_bytes: number(self.write_bytes, start.write_bytes),
            ..Self::default()
        }
    }
}
