//! The ends of trees: all that a job has started is killed, and the job is settled.

use adl_protocol::{Status, Usage};
use rustix::process::Signal;

use super::{BETWEEN_PASSES, Loop, UNKILLABLE};
use crate::job::tree::Turn;
use crate::sys::{self, now};

impl Loop {
    /// Begins to end all processes of a job.
    pub(super) fn end_tree(&mut self, number: u64) {
        let Some(job) = self.jobs.get_mut(number) else { return };
        if job.ending.is_some() {
            return;
        }
        let now = now();
        job.ending = Some(now);
        self.timers.insert(now.saturating_add(UNKILLABLE), number);
        self.sweeper.add(job.tree.mark(), number, Signal::KILL, now);
        self.sweep_at = now;
    }

    /// Goes on with the pass through all processes; whether it is under way still.
    pub(super) fn sweep(&mut self, now: u64) -> bool {
        let (jobs, by_pid) = (&self.jobs, &self.by_pid);
        let mark_of = |pid| Some(jobs.get(by_pid.get(pid)?)?.tree.mark());
        match self.sweeper.turn(now, mark_of) {
            Ok(Turn::UnderWay) => return true,
            Ok(Turn::Done { ended, signalled, stuck, met }) => {
                self.sweep_at = now + if met { BETWEEN_PASSES } else { 0 };
                for number in ended {
                    self.tree_ended(number);
                }
                for number in signalled {
                    self.settle(number);
                }
                for number in stuck {
                    self.tell_survivors(number);
                }
            }
            // The kernel is out of memory: later.
            Err(_) => self.sweep_at = now + BETWEEN_PASSES,
        }
        false
    }

    /// Makes one pass while nothing else runs: for trees whose processes give birth and end faster
    /// than passes come to them. Those of other trees stand still meanwhile, and no longer.
    pub(super) fn sweep_stopped(&mut self, now: u64) {
        if sys::signal_all(Signal::STOP).is_err() {
            return;
        }
        while self.reap() {}
        self.sweeper.begin_again();
        while self.sweep(now) {}
        self.sweeper.resume_all();
    }

    pub(super) fn tree_ended(&mut self, number: u64) {
        let Some(job) = self.jobs.get_mut(number) else { return };
        if let Some(since) = job.ending.take() {
            self.timers.remove(since.saturating_add(UNKILLABLE), number);
        }
        self.settle(number);
    }

    /// Tells the end of a job of whose tree something does not end, which may be its own process.
    /// What can be ended goes on to be.
    pub(super) fn tell_survivors(&mut self, number: u64) {
        let Some(job) = self.jobs.get_mut(number) else { return };
        job.survivors = true;
        let killed = Status::Signal { signal: 9, core: false };
        let wall = now().saturating_sub(job.started);
        let (status, usage, wall) = job.end.unwrap_or((killed, Usage::default(), wall));
        job.tell(status, usage, wall);
    }
}
