//! Numbers and names that nothing else has.

use std::sync::atomic::{AtomicU64, Ordering};

use super::owner::Owner;

/// A number that no other call in this process has returned.
pub(crate) fn unique_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A name that nothing has, or ever had: process ids come again.
pub(crate) fn unique_name(prefix: &str) -> String {
    // A fork goes on with the same numbers.
    let process = Owner::this_process().number();
    format!("{prefix}{process:016x}-{}", unique_number())
}
