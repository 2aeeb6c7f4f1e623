//! Deadlines, and waits that end by them or with init.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Result};

/// When to stop waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    after: Duration,
}

impl Deadline {
    pub(crate) const NEVER: Self = Self { at: None, after: Duration::ZERO };

    pub(crate) fn after(after: Duration) -> Self {
        Self { at: Instant::now().checked_add(after), after }
    }

    pub(crate) fn at(at: Instant) -> Self {
        Self { at: Some(at), after: at.saturating_duration_since(Instant::now()) }
    }

    /// For `poll(2)`, rounded up, so that it does not return before the deadline.
    fn timeout(&self) -> PollTimeout {
        let Some(at) = self.at else { return PollTimeout::NONE };
        let left = at.saturating_duration_since(Instant::now());
        let milliseconds = left.as_nanos().div_ceil(1_000_000);
        PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
    }

    /// How long it is until then; `None` if there is no end.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn passed(&self) -> bool {
        self.at.is_some_and(|at| at <= Instant::now())
    }

    /// How long it was until then when it was set.
    pub(crate) fn length(&self) -> Duration {
        self.after
    }

    /// So much later.
    pub(crate) fn later(self, by: Duration) -> Self {
        let after = self.after.saturating_add(by);
        Self { at: self.at.and_then(|at| at.checked_add(by)), after }
    }

    /// The earlier of the two.
    pub(crate) fn min(self, other: Self) -> Self {
        match (self.at, other.at) {
            (Some(one), Some(two)) if two < one => other,
            (None, Some(_)) => other,
            _ => self,
        }
    }
}

/// What has ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// What was waited for is ready, whatever else has happened.
    Ready,
    /// Init has ended, or the job has: no one makes it ready any more.
    InitDied,
    /// The deadline has passed.
    Late,
}

/// Waits until a descriptor is ready, the sandbox's init has ended or the deadline has passed.
///
/// The end of a stream alone is not enough: the other end may be held by someone else than init,
/// as in a message that no one receives, and then it does not come when init ends.
pub(crate) fn wait_beside_init(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    init: BorrowedFd<'_>,
    deadline: Deadline,
) -> Result<Woken> {
    let mut fds = [PollFd::new(fd, events), PollFd::new(init, PollFlags::POLLIN)];
    if !wait_ready(&mut fds, deadline)? {
        return Ok(Woken::Late);
    }
    let [fd, _] = fds;
    Ok(if fd.any().unwrap_or(true) { Woken::Ready } else { Woken::InitDied })
}

/// A job that makes ready what is waited for.
pub(crate) trait Maker: std::fmt::Debug + Send + Sync {
    /// Readable when the sandbox's init has ended.
    fn init(&self) -> BorrowedFd<'_>;

    /// Shut behind the last that is told of the job, or by the end of the sandbox, whether or not
    /// the kernel can end its init.
    fn channel(&self) -> BorrowedFd<'_>;
}

/// Waits as [`wait_beside_init`], and no longer than there is the job.
pub(crate) fn wait_beside_job(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    job: &dyn Maker,
    deadline: Deadline,
) -> Result<Woken> {
    let mut fds = [
        PollFd::new(fd, events),
        PollFd::new(job.init(), PollFlags::POLLIN),
        PollFd::new(job.channel(), PollFlags::from_bits_retain(libc::POLLRDHUP)),
    ];
    if !wait_ready(&mut fds, deadline)? {
        return Ok(Woken::Late);
    }
    let [fd, ..] = fds;
    Ok(if fd.any().unwrap_or(true) { Woken::Ready } else { Woken::InitDied })
}

/// Waits until one of `fds` is ready; `false` if the deadline comes first.
pub(crate) fn wait_ready(fds: &mut [PollFd<'_>], deadline: Deadline) -> Result<bool> {
    loop {
        match wait_once(fds, deadline)? {
            true => return Ok(true),
            false if deadline.passed() => return Ok(false),
            false => {}
        }
    }
}

/// Waits as [`wait_ready`], and no longer than until a signal handler has run in this thread.
pub(crate) fn wait_once(fds: &mut [PollFd<'_>], deadline: Deadline) -> Result<bool> {
    match poll(fds, deadline.timeout()) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(Error::io("poll")(errno)),
    }
}
