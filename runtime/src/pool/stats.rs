//! What a pool tells of itself.

use std::time::Duration;

use serde::Serialize;

/// What a pool has at one moment, and has done until then; see [`Pool::stats`](super::Pool::stats).
///
/// It is for metrics: each number that only grows can be a counter, the others are gauges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolStats {
    /// Sandboxes that are ready.
    pub idle: usize,
    /// Sandboxes that were acquired and not given back yet.
    pub in_use: usize,
    /// Sandboxes that are being made and prepared.
    pub making: usize,
    /// Sandboxes that were given back, and those that were sick, that are not deleted yet.
    pub deleting: usize,
    /// Callers that wait for one.
    pub waiting: usize,
    /// How many were made and prepared.
    pub made: u64,
    /// How many could not be made or prepared.
    pub failed: u64,
    /// How many were acquired.
    pub acquired: u64,
    /// How many resets there were; see [`PooledSandbox::reset`](super::PooledSandbox::reset).
    pub resets: u64,
    /// How many were not well when they were to be handed out, and were replaced.
    pub sick: u64,
    /// How many were deleted.
    pub deleted: u64,
    /// How many callers were told that their time was up.
    pub timed_out: u64,
    /// How long all that were acquired were waited for, together.
    pub waited: Duration,
    /// How long the one was waited for that was waited for the longest.
    pub waited_most: Duration,
    /// Why the last of those that failed did.
    pub last_error: Option<String>,
}
