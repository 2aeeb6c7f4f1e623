//! What a sandbox may use, as plain data.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The least that [`Limits::cpu`] may be: of 100 ms, a cgroup can have no less than 1 ms.
const LEAST_CPU: u32 = 10;
/// No kernel has more process ids.
const MOST_PIDS: u32 = 1 << 22;
/// More CPUs than the kernel can be built for.
const CPUS: u32 = 8192;

/// What all jobs of a sandbox together may use. By default there is no limit, and no cgroup.
///
/// Limits hold by cgroups (`cgroups(7)`), of version 2 or, where the controller is bound to that,
/// of version 1; a limit whose controller is nowhere is [`Error::Unsupported`]. The sandbox's init
/// is no job: it stays in the caller's cgroup, so that what its jobs use up is not in its way.
///
/// ```no_run
/// use adl_runtime::{Config, Limits, Sandbox};
///
/// let sandbox = Sandbox::create(Config {
///     limits: Limits {
///         memory: Some(512 << 20),
///         cpu: Some(1500),
///         pids: Some(256),
///         ..Limits::default()
///     },
///     ..Config::default()
/// })?;
/// sandbox.command("true").status()?;
/// println!("{:?}", sandbox.stats()?.cpu_time);
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// CPU time, in thousandths of a CPU: 1500 is one and a half. At least 10.
    pub cpu: Option<u32>,
    /// The share of CPU time where there is not enough for all, from 1 to 10,000; others have 100.
    pub cpu_weight: Option<u32>,
    /// Memory, in bytes: that of processes, of the page cache and of file systems in memory that
    /// they have filled. Where it is reached and nothing can be reclaimed, the kernel kills a job,
    /// whose end is [`EndReason::OutOfMemory`](crate::EndReason::OutOfMemory). With the
    /// multi-generational LRU, kernels before 6.13 do so also where a disk is slower than what
    /// writes to it.
    pub memory: Option<u64>,
    /// Memory above which processes are slowed down and reclaimed from, in bytes. Version 2 only.
    pub memory_high: Option<u64>,
    /// Swap beside the memory, in bytes. By default none where `memory` is limited, as far as the
    /// kernel counts swap.
    pub swap: Option<u64>,
    /// Processes and threads. A job starts even when the limit is reached; the processes that it
    /// makes count. Where the controller is nowhere, the PID namespace is the bound (Linux 6.14):
    /// of 301 at least, and with no room for a job where it is reached.
    pub pids: Option<u32>,
    /// What may be read from and written to disks.
    pub io: Vec<IoLimit>,
    /// The CPUs to run on, as `0-3,6`.
    pub cpuset: Option<String>,
    /// All controllers of this machine get a cgroup, so that everything is counted
    /// ([`Sandbox::stats`](crate::Sandbox::stats)) and any limit can be set later. Without it, only
    /// the controllers that a limit needs get one, or all below
    /// [`Config::cgroup_parent`](crate::Config::cgroup_parent). Any cgroup of version 2 counts CPU
    /// time and pressure, and allows [`Sandbox::freeze`](crate::Sandbox::freeze).
    pub accounting: bool,
}

/// What may be read from and written to a disk in a second. Version 1 sees only what goes past the
/// page cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoLimit {
    /// The block device.
    pub device: PathBuf,
    /// Bytes read.
    pub read_bytes: Option<u64>,
    /// Bytes written.
    pub write_bytes: Option<u64>,
    /// Reads.
    pub read_operations: Option<u64>,
    /// Writes.
    pub write_operations: Option<u64>,
}

impl Limits {
    /// Whether there is nothing to limit or to count.
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Has paths mean the same wherever the caller is later.
    pub(crate) fn make_absolute(&mut self) -> Result<()> {
        for IoLimit { device, .. } in &mut self.io {
            *device = std::path::absolute(&*device).map_err(Error::at("getcwd for", device))?;
        }
        Ok(())
    }

    /// Refuses what no cgroup would take.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |what, why: &str| Err(Error::invalid(what, why));
        if self.cpu.is_some_and(|cpu| cpu < LEAST_CPU) {
            return invalid("cpu limit", "less than a hundredth of a CPU");
        }
        if self.cpu.is_some_and(|cpu| cpu > CPUS * 1000) {
            return invalid("cpu limit", "more CPUs than any machine has");
        }
        if self.cpu_weight.is_some_and(|weight| !(1..=10_000).contains(&weight)) {
            return invalid("cpu weight", "not from 1 to 10,000");
        }
        if self.memory == Some(0) || self.memory_high == Some(0) {
            return invalid("memory limit", "nothing runs without memory");
        }
        if self.swap.is_some() && self.memory.is_none() {
            return invalid("swap limit", "it needs a limit of memory, which it is beside");
        }
        if self.pids == Some(0) {
            return invalid("pids limit", "nothing runs without a process");
        }
        if self.pids.is_some_and(|pids| pids > MOST_PIDS) {
            return invalid("pids limit", "more than the 4,194,304 processes that there can be");
        }
        if self.cpuset.as_ref().is_some_and(|list| cpus(list).is_none()) {
            return invalid("cpuset", "not a list of CPUs, as 0-3,6");
        }
        for io in &self.io {
            let rates = [io.read_bytes, io.write_bytes, io.read_operations, io.write_operations];
            if rates.contains(&Some(0)) {
                return invalid("io limit", "a rate of nothing");
            }
        }
        Ok(())
    }
}

/// The CPUs of a list, as `0-3,6`; `None` for what is none.
pub(crate) fn cpus(list: &str) -> Option<BTreeSet<u32>> {
    let number = |text: &str| {
        // Without a sign, which the kernel does not take.
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u32>().ok().filter(|cpu| is_number && *cpu < CPUS)
    };
    let mut ranges = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        ranges.push((first, last));
    }
    // Each CPU once, however often it is named: else a long text takes minutes.
    ranges.sort_unstable();
    let (mut found, mut next) = (BTreeSet::new(), 0);
    for (first, last) in ranges {
        found.extend(first.max(next)..=last);
        next = next.max(last + 1);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_what_they_name() {
        assert_eq!(cpus("0-2,5,1"), Some([0, 1, 2, 5].into()));
        assert_eq!(cpus("7"), Some([7].into()));
        assert_eq!(cpus("4-5,0-9,1,9-10"), Some((0..=10).collect()));
        // In no time, though it names a billion.
        assert_eq!(cpus(&["0-8191"; 100_000].join(",")), Some((0..8192).collect()));
        for wrong in ["", ",", "1,", "a", "-1", "3-1", "1-", "+1", "0-8192", "0\n", "1-2-3"] {
            assert_eq!(cpus(wrong), None, "{wrong:?}");
        }
    }
}
