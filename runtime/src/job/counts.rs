//! How many jobs this process has started, and how they have ended.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::exit::EndReason;
use crate::sys::owner::PerProcess;

/// What happens to a job that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Init was asked to start it.
    Started,
    /// Its end was told.
    Ended(EndReason),
    /// Init has told that its program could not be run.
    NotStarted,
    /// No one waits for its end any more.
    Unwatched,
}

const REASONS: usize = 10;
const KINDS: usize = REASONS + 3;

static COUNTS: PerProcess<[AtomicU64; KINDS]> = PerProcess::new();

fn place(what: Counted) -> usize {
    match what {
        Counted::Started => REASONS,
        Counted::NotStarted => REASONS + 1,
        Counted::Unwatched => REASONS + 2,
        Counted::Ended(reason) => match reason {
            EndReason::Exited => 0,
            EndReason::Signaled => 1,
            EndReason::TimedOut => 2,
            EndReason::CpuTimedOut => 3,
            EndReason::Idle => 4,
            EndReason::OutOfMemory => 5,
            EndReason::OutputLimit => 6,
            EndReason::Stopped => 7,
            EndReason::Killed => 8,
            EndReason::SandboxDied => 9,
        },
    }
}

pub(crate) fn add(what: Counted) {
    if let Some(count) = COUNTS.get().get(place(what)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) fn read(what: Counted) -> u64 {
    COUNTS.get().get(place(what)).map_or(0, |count| count.load(Ordering::Relaxed))
}
