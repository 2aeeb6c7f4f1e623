//! The limit of CPU time of a job's tree.

use adl_protocol::{CpuLimit, EndedBy};
use rustix::fd::OwnedFd;

use super::Loop;
use crate::text;

/// How often the CPU time of a tree is looked at, at most, in ms.
const BETWEEN_LOOKS: u64 = 10;

/// The CPU time of a tree, until its job is reaped.
pub(super) struct CpuTime {
    pub(super) file: OwnedFd,
    pub(super) limit: CpuLimit,
    /// When it is looked at, in ns.
    pub(super) next: u64,
}

impl CpuTime {
    /// How much is left, in the unit of the limit: nothing, where that can't be read.
    pub(super) fn left(&self) -> u64 {
        let mut text = [0; 64];
        let length = rustix::io::pread(&self.file, &mut text, 0).unwrap_or(0);
        let text = text.get(..length).unwrap_or_default();
        // "usage_usec 12" and more lines, or the number alone.
        let digits = text.split(|byte| !byte.is_ascii_digit()).find(|digits| !digits.is_empty());
        let used = digits.and_then(|digits| text::number(digits, 10));
        self.limit.most.saturating_sub(used.unwrap_or(u64::MAX))
    }
}

impl Loop {
    /// Ends a tree that has used the CPU time that it may, or says when to look again.
    pub(super) fn look_at_cpu_time(&mut self, number: u64, now: u64) {
        let Some(job) = self.jobs.get_mut(number) else { return };
        let Some(cpu_time) = &mut job.cpu_time else { return };
        let left = cpu_time.left();
        if left == 0 {
            job.by.get_or_insert(EndedBy::CpuTime);
            return self.end_tree(number);
        }
        let wait = (left / cpu_time.limit.per_ms.max(1)).max(BETWEEN_LOOKS);
        cpu_time.next = now.saturating_add(wait.saturating_mul(1_000_000));
        self.timers.insert(cpu_time.next, number);
    }
}
