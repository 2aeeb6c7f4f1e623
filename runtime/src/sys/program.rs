//! Programs of the host that end with who started them.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has a program killed when the calling thread ends, in whatever way.
pub(crate) fn end_with_caller(command: &mut Command) {
    let caller = nix::unistd::getpid();
    let ask = move || -> io::Result<()> {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        // It may have ended before that was asked.
        if nix::unistd::getppid() == caller {
            Ok(())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    };
    // SAFETY: between fork and exec it makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(ask) };
}
