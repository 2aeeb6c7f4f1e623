//! `adl run` without a terminal of the command's own: its streams are adl's, through the library.
//!
//! The library moves the bytes. What is left to do here is to pass on signals.

use std::os::fd::AsFd;

use adl_runtime::{Command, Error, ExitStatus, Job, Scope, Stdio};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use crate::output::say;
use crate::session::leave_the_rest;
use crate::values::CliResult;

/// Says where the streams of a command lead.
pub(crate) fn prepare(command: &mut Command) {
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
}

/// Waits until the command has ended and all that it wrote is written, and passes on signals to its
/// process group meanwhile. Returns how it ended, and whether what it wrote was taken.
pub(crate) fn run(job: &Job, signals: &SignalFd) -> CliResult<(ExitStatus, bool)> {
    loop {
        match job.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return Ok((status, true)),
            Err(Error::Undelivered { status, why }) => return Ok((*status, is_left(&why))),
            Err(error) => return Err(error.into()),
        }
        let wanted = [job.as_fd(), signals.as_fd()];
        let mut fds = wanted.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        while let Some(signal) = signals.read_signal()? {
            // What adl's own streams do not take is left.
            if let Some(status) = job.handle().try_wait()? {
                return Ok((status, true));
            }
            job.signal(u8::try_from(signal.ssi_signo)?, Scope::Group)?;
        }
    }
}

/// Tells why not all was passed on. Whether it is left because no one takes it.
fn is_left(why: &Error) -> bool {
    let is_left = matches!(why, Error::TimedOut { .. });
    if is_left {
        leave_the_rest();
    } else {
        say(why);
    }
    is_left
}
