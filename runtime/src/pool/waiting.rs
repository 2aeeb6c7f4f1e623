//! A caller that waits for a sandbox of a pool.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::error::Result;
use crate::pool::member::Member;
use crate::sys::lock::lock;
use crate::wait::Deadline;

/// What a caller in the queue is handed, once.
#[derive(Debug, Default)]
pub(super) struct Ticket {
    given: Mutex<Option<Result<Member>>>,
    is_given: Condvar,
}

impl Ticket {
    pub(super) fn give(&self, what: Result<Member>) {
        *lock(&self.given) = Some(what);
        self.is_given.notify_one();
    }

    /// What it was given until then.
    pub(super) fn wait(&self, deadline: Deadline) -> Option<Result<Member>> {
        let mut given = lock(&self.given);
        loop {
            if let Some(what) = given.take() {
                return Some(what);
            }
            given = match deadline.left() {
                None => self.is_given.wait(given).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return None,
                Some(left) => {
                    let waited = self.is_given.wait_timeout(given, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}
