//! What every job starts from, as set-up has left it.

use adl_protocol::Identities;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Result;
use rustix::thread::CapabilitySet;

use crate::sys;

/// What every job starts from.
pub(crate) struct JobDefaults {
    /// The sandbox's `/dev/null`, opened before any guest could put something else in its place.
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
    /// By what a job has an OOM score from birth, where a guest may trace whoever it can look at.
    pub(crate) own_score: Option<OwnScore>,
}

/// Init's own OOM score, which a child begins with.
///
/// A process opens its file for that only while it is dumpable, and with `CAP_SYS_PTRACE` a guest
/// could look at a child then, which has a copy of init's memory. This was open before there was a
/// guest. No child may share init's memory where this is used: it would get the score as well.
pub(crate) struct OwnScore {
    file: OwnedFd,
    text: [u8; 8],
    length: usize,
}

impl OwnScore {
    pub(crate) fn open() -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty())?;
        let mut text = [0; 8];
        let length = rustix::io::read(&file, &mut text)?;
        Ok(Self { file, text, length })
    }

    /// Sets it for the children that are started until [`OwnScore::put_back`].
    pub(crate) fn set(&self, score: i16) -> Result<()> {
        write_score(&self.file, score)
    }

    /// Never refused: it is not below what it was before.
    pub(crate) fn put_back(&self) {
        let _ = rustix::io::write(&self.file, self.text.get(..self.length).unwrap_or_default());
    }
}

pub(crate) fn write_score(file: &OwnedFd, score: i16) -> Result<()> {
    let mut digits = [0; 12];
    rustix::io::write(file, sys::decimal(i32::from(score), &mut digits)).map(drop)
}

/// The umask of init, and of jobs that ask for no other.
pub(crate) const DEFAULT_UMASK: u32 = 0o022;
