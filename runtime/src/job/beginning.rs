//! Counts commands whose program does not run yet, for a snapshot to know of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A command that begins: counted until its program runs or it has ended.
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
