//! What adl itself prints: a stream that takes nothing is an error or an end, and never a panic.

use std::fmt;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::values::CliResult;

/// What stdout did not take.
#[derive(Debug)]
pub(crate) struct Unwritten(pub(crate) io::Error);

impl Unwritten {
    /// Whether it is a pipe that no one reads any more.
    pub(crate) fn is_unread(&self) -> bool {
        self.0.kind() == ErrorKind::BrokenPipe
    }
}

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stdout: {}", self.0)
    }
}

impl std::error::Error for Unwritten {}

/// Writes to stdout.
pub(crate) fn print(text: impl AsRef<[u8]>) -> CliResult<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_ref()).and_then(|()| stdout.flush());
    Ok(written.map_err(Unwritten)?)
}

/// Says something on stderr. Where that takes nothing, the rest is done all the same: there is no
/// one to tell.
pub(crate) fn say(what: impl fmt::Display) {
    say_line(format_args!("adl: {what}"));
}

/// Whether what stderr does not take at once is left.
static WAITS_FOR_NONE: AtomicBool = AtomicBool::new(false);

/// Has nothing that is said from now on wait for a reader: one has stalled, and it may be that of
/// stderr, too.
pub(crate) fn wait_for_no_reader() {
    WAITS_FOR_NONE.store(true, Ordering::Relaxed);
}

/// Whether a reader has stalled, and what it did not take was left.
pub(crate) fn has_left_output() -> bool {
    WAITS_FOR_NONE.load(Ordering::Relaxed)
}

/// Writes a line to stderr, as [`say`], and not in adl's name.
pub(crate) fn say_line(line: impl fmt::Display) {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if WAITS_FOR_NONE.load(Ordering::Relaxed) && poll(&mut fds, PollTimeout::ZERO) == Ok(0) {
        return;
    }
    // At once, so that lines of others don't come between.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}
