//! What has become of a thread that moves the bytes of a command, for all who wait for that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::sys::lock::lock;
use crate::wait::{Deadline, wait_ready};

/// The stack of such a thread, in bytes: what it reads at once, and as much again.
pub(crate) const STACK: usize = 256 << 10;

/// How a command has ended, and whether another process still has a stream of it open.
pub(crate) type Moved = (ExitStatus, bool);

/// The end of the work for one command.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Readable when it is over, and from then on.
    done: EventFd,
    result: Mutex<Option<Result<Moved>>>,
}

impl Outcome {
    pub(crate) fn new() -> Result<Self> {
        let done = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(Error::io("eventfd"))?;
        Ok(Self { done, result: Mutex::new(None) })
    }

    /// Tells what it has come to, and wakes all who wait.
    pub(crate) fn end(&self, result: Result<Moved>) {
        *lock(&self.result) = Some(result);
        // It holds one number, so it has room for this.
        let _ = self.done.write(1);
    }

    /// Waits for it; `None` if the deadline comes first.
    pub(crate) fn wait(&self, deadline: Deadline) -> Result<Option<Moved>> {
        let mut fds = [PollFd::new(self.done.as_fd(), PollFlags::POLLIN)];
        if wait_ready(&mut fds, deadline)? { self.look() } else { Ok(None) }
    }

    /// What it has come to, if it is over. All who ask are told the same error.
    pub(crate) fn look(&self) -> Result<Option<Moved>> {
        lock(&self.result).as_ref().map(|it| it.as_ref().copied().map_err(Error::again)).transpose()
    }
}

impl AsFd for Outcome {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}

/// Has a thread of its own do what may have to wait for streams of the caller's.
pub(crate) fn relay(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name("adl-relay".to_owned()).stack_size(STACK);
    thread.spawn(work).map(drop).map_err(Error::io("start of a thread"))
}

/// The result of work, also where that panics.
pub(crate) fn whatever_becomes_of<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let why = io::Error::other("the thread has panicked");
        Err(Error::io("move what the command writes")(why))
    })
}

#[cfg(test)]
mod tests {
    use super::Outcome;
    use crate::error::Error;
    use crate::wait::Deadline;

    #[test]
    fn a_thread_that_panics_has_a_result() {
        let result = super::whatever_becomes_of::<()>(|| panic!("as it should not"));
        assert!(result.is_err_and(|why| why.to_string().contains("panicked")));
    }

    #[test]
    fn all_who_ask_are_told_the_same() {
        let outcome = Outcome::new().unwrap();
        assert!(outcome.look().unwrap().is_none());
        outcome.end(Err(Error::Protocol { why: "a test" }));
        for _ in 0..2 {
            let told = outcome.wait(Deadline::NEVER).unwrap_err();
            assert!(matches!(told, Error::Protocol { why: "a test" }), "{told:?}");
        }
    }
}
