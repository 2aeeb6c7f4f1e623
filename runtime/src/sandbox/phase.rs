//! The phases of a create, for its spans and for the counts of those that fail.

use std::cell::Cell;

use tracing::Span;

use crate::error::Result;
use crate::error::traced::traced;

/// What of a create is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Checking the configuration, opening the state directory, waiting for room.
    Prepare,
    /// Opening what the root is made of.
    Root,
    /// Cloning init into its namespaces.
    Clone,
    /// Giving init its ids, and all that needs no directory.
    Setup,
    /// Finding and making the cgroups.
    Cgroups,
    /// Making the directory of the sandbox.
    Directory,
    /// Giving init its mounts, and waiting until it is ready.
    Ready,
}

thread_local! {
    /// The innermost that has failed of what this thread does. The errors have no place for it.
    static FAILED: Cell<Option<Phase>> = const { Cell::new(None) };
}

/// Does what a phase is, in its span.
pub(crate) fn in_phase<T>(
    phase: Phase,
    span: &Span,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    traced(span, work).inspect_err(|_| FAILED.set(FAILED.get().or(Some(phase))))
}

/// Begins something that has phases.
pub(crate) fn begin() {
    FAILED.set(None);
}

/// Which of them has failed since this thread has begun with the first.
pub(crate) fn failed() -> Phase {
    FAILED.get().unwrap_or(Phase::Prepare)
}
