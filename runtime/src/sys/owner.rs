//! Who something belongs to: the process that made it, and no fork of that.
//!
//! A fork has a copy of its parent's memory and descriptors. What it does with them, or dropping
//! them does, would be done to its parent's sandboxes, locks and channels. So all that holds such a
//! thing knows its [`Owner`] and asks it first, and all that a process has once is [`PerProcess`].

use crate::error::{Error, Result};
pub(crate) use crate::sys::per_process::PerProcess;
use crate::sys::per_process::token;

/// The process that owns something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(u64);

impl Owner {
    /// The calling process.
    pub(crate) fn this_process() -> Self {
        Self(token())
    }

    /// Whether the calling process is it. That is a read of memory.
    pub(crate) fn is_this_process(self) -> bool {
        self == Self::this_process()
    }

    /// Refuses a fork of it.
    pub(crate) fn check(self, what: &'static str) -> Result<()> {
        if self.is_this_process() { Ok(()) } else { Err(Error::ForkedProcess { what }) }
    }

    /// A number that no other process has.
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}
