//! How many sandboxes, spares and blanks this process has made and ended.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sandbox::phase::Phase;
use crate::sys::owner::PerProcess;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    Created,
    Failed(Phase),
    Deleted,
    Reset,
    Snapshot,
    SpareMade,
    SpareFailed,
    SpareTaken,
    /// One that was ready was ended, since it had died or another was wanted.
    SpareDiscarded,
    BlankMade,
    BlankTaken,
}

const PHASES: usize = 7;
const KINDS: usize = PHASES + 10;

static COUNTS: PerProcess<[AtomicU64; KINDS]> = PerProcess::new();

fn place(what: Counted) -> usize {
    match what {
        Counted::Failed(phase) => phase as usize,
        Counted::Created => PHASES,
        Counted::Deleted => PHASES + 1,
        Counted::Reset => PHASES + 2,
        Counted::Snapshot => PHASES + 3,
        Counted::SpareMade => PHASES + 4,
        Counted::SpareFailed => PHASES + 5,
        Counted::SpareTaken => PHASES + 6,
        Counted::SpareDiscarded => PHASES + 7,
        Counted::BlankMade => PHASES + 8,
        Counted::BlankTaken => PHASES + 9,
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
