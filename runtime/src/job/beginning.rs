//! Counts those who are about to ask for a job, for a snapshot to know of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One who may ask for a job: counted until it is dropped. From when init was asked on, the job's
/// channel tells ([`crate::wire::Messages::may_be_to_come`]).
#[derive(Debug)]
pub(crate) struct Beginning(Arc<AtomicUsize>);

impl Beginning {
    /// How many there are, this one among them.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

impl Default for Beginning {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(1)))
    }
}

impl Clone for Beginning {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
