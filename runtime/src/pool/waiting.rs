//! A caller that waits for a sandbox of a pool.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::Result;
use crate::pool::member::Member;
use crate::sys::lock::lock;
use crate::wait::Deadline;

/// How often a caller is asked whether it still wants one.
const ASKED_EACH: Duration = Duration::from_millis(50);

/// Whether a caller still wants what it waits for; `None` if it does for as long as it has time.
pub(super) type Wish<'a> = Option<&'a dyn Fn() -> bool>;

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

    /// What it was given until then, or until it is not wanted any more.
    pub(super) fn wait(&self, deadline: Deadline, wish: Wish<'_>) -> Option<Result<Member>> {
        let mut given = lock(&self.given);
        loop {
            if let Some(what) = given.take() {
                return Some(what);
            }
            if let Some(is_wanted) = wish {
                // Which may take its time: whoever gives something does not wait for that.
                drop(given);
                if !is_wanted() {
                    return None;
                }
                given = lock(&self.given);
                if given.is_some() {
                    continue;
                }
            }
            let left = match wish {
                Some(_) => Some(deadline.left().map_or(ASKED_EACH, |left| left.min(ASKED_EACH))),
                None => deadline.left(),
            };
            if deadline.passed() {
                return None;
            }
            given = match left {
                None => self.is_given.wait(given).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let waited = self.is_given.wait_timeout(given, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}
