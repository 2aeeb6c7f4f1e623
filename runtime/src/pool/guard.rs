//! A sandbox that was acquired from a pool, until it is dropped.

use std::fmt;
use std::mem;
use std::ops::Deref;
use std::sync::Arc;

use crate::error::Result;
use crate::pool::member::Member;
use crate::pool::shared::Shared;
use crate::sandbox::Sandbox;

/// A sandbox of a [`Pool`](super::Pool), this caller's until it is dropped: then all that runs in
/// it is killed, and a thread of the pool deletes it. All methods of [`Sandbox`] are its own.
///
/// It outlives its pool, but its sandbox does not.
pub struct PooledSandbox {
    member: Member,
    pool: Arc<Shared>,
}

impl PooledSandbox {
    pub(super) fn new(member: Member, pool: Arc<Shared>) -> Self {
        Self { member, pool }
    }

    /// Puts another sandbox of the pool in the place of this one: prepared as that was, with a name
    /// and ids of its own. When it returns, nothing runs in the old one, which is deleted as if it
    /// had been dropped. Where the pool has none ready, this makes one, which takes as long as that
    /// does.
    ///
    /// [`Sandbox::reset`] of the sandbox itself, by `(*sandbox).reset()`, makes it as its image is:
    /// it is not prepared then.
    ///
    /// # Errors
    /// As [`Sandbox::reset`]; what prepares it may fail, too ([`Error::Prepare`]). The sandbox goes
    /// on as it was then; only where the kernel can't end a process, it is dead.
    /// [`Error::PoolClosed`].
    ///
    /// [`Error::Prepare`]: crate::Error::Prepare
    /// [`Error::PoolClosed`]: crate::Error::PoolClosed
    pub fn reset(&mut self) -> Result<()> {
        let next = self.pool.next_for_reset()?;
        if let Err(error) = self.member.sandbox.end_guests() {
            self.pool.give_back(next);
            return Err(error);
        }
        let before = mem::replace(&mut self.member, next);
        self.pool.give_back(before);
        self.pool.count_reset();
        Ok(())
    }
}

impl Deref for PooledSandbox {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        &self.member.sandbox
    }
}

impl Drop for PooledSandbox {
    fn drop(&mut self) {
        self.pool.give_back(self.member.clone());
    }
}

impl fmt::Debug for PooledSandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PooledSandbox").field(&self.member.sandbox).finish()
    }
}
