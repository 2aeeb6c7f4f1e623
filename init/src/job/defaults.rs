//! What every job starts from, as set-up has left it.

use adl_protocol::Identities;
use rustix::fd::OwnedFd;
use rustix::thread::CapabilitySet;

/// What every job starts from.
pub(crate) struct JobDefaults {
    /// `/dev/null`, opened before any guest could put something else in its place.
    pub(crate) null: OwnedFd,
    /// The capabilities that a job of root holds.
    pub(crate) capabilities: CapabilitySet,
    /// Which ids there are to take on.
    pub(crate) identities: Identities,
    /// Limits that hold unless a job asks for others.
    pub(crate) rlimits: [adl_protocol::Rlimit; 3],
    /// See [`adl_protocol::Setup::core_key`].
    pub(crate) core_key: u64,
    /// Whether a child may have init's memory until its `execve(2)`: not where a guest has init's
    /// id or, for a moment, the right to look at it.
    pub(crate) may_share_memory: bool,
    /// How many descriptors init can have.
    pub(crate) descriptors: u64,
    /// The procfs and the devpts of the sandbox, as they were before any guest ran.
    pub(crate) proc: OwnedFd,
    /// See `proc`.
    pub(crate) terminals: OwnedFd,
}

/// The umask of init, and of jobs that ask for no other.
pub(crate) const DEFAULT_UMASK: u32 = 0o022;
