//! `adl run` without a terminal of the command's own: its streams are adl's, through the library.
//!
//! The library moves the bytes. What is left to do here is to pass on signals.

use std::os::fd::AsFd;
use std::sync::Arc;

use adl_runtime::{Command, Error, ExitStatus, Job, Scope, Stdio};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use crate::session::leave_the_rest;
use crate::values::{CliResult, passed_on};

/// Says where the streams of a command lead.
pub(crate) fn prepare(command: &mut Command) {
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
}

/// Waits until the command has ended and all that it wrote is written, and passes on signals to its
/// process group meanwhile. Returns how it ended, and why what it wrote could not be passed on.
/// `stop` is what SIGTERM is passed on as.
pub(crate) fn run(
    job: &Job,
    signals: &SignalFd,
    stop: u8,
) -> CliResult<(ExitStatus, Option<Arc<Error>>)> {
    loop {
        match job.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return Ok((status, None)),
            Err(Error::Undelivered { status, why }) => return Ok((*status, unless_left(why))),
            Err(error) => return Err(error.into()),
        }
        let wanted = [job.as_fd(), signals.as_fd()];
        let mut fds = wanted.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        while let Some(signal) = signals.read_signal()? {
            if let Some(status) = job.handle().try_wait()? {
                // All may have been taken meanwhile: then that is told next.
                if job.try_wait().is_ok_and(|ended| ended.is_none()) {
                    leave_the_rest();
                    return Ok((status, None));
                }
                break;
            }
            let signal = passed_on(u8::try_from(signal.ssi_signo)?, stop);
            job.signal(signal, Scope::Group)?;
        }
    }
}

/// Why not all was passed on. What no one takes is left, and told here.
fn unless_left(why: Arc<Error>) -> Option<Arc<Error>> {
    if matches!(*why, Error::TimedOut { .. }) {
        leave_the_rest();
        return None;
    }
    Some(why)
}
