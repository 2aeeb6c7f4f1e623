//! The embedded `adl-init`, in the form in which it is executed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::{Mode, fchmod};

use crate::error::{Error, Result};
use crate::sys;
use crate::sys::owner::PerProcess;
use crate::wire::above_stdio;

static INIT: &[u8] = include_bytes!(env!("ADL_INIT_PATH"));

/// The program as a sealed memory file: what is executed is what was built, whatever happens to
/// files on disk, and `/proc/1/exe` can't be overwritten. Made once in a process.
pub(crate) fn memfd() -> Result<BorrowedFd<'static>> {
    static MEMFD: PerProcess<OwnedFd> = PerProcess::new();
    Ok(MEMFD.get_or_try(make)?.as_fd())
}

fn make() -> Result<OwnedFd> {
    let memfd = sys::executable_memfd(c"adl-init").map_err(Error::io("memfd_create"))?;
    let mut rest = INIT;
    while !rest.is_empty() {
        // A limit of the caller's on the length of files holds for memory as well.
        let written = sys::without_write_signals(|| nix::unistd::write(&memfd, rest));
        let written = written.map_err(Error::io("write of adl-init, a file of 128 KiB,"))?;
        rest = rest.get(written..).unwrap_or_default();
    }
    // Not readable, so that the kernel makes a process that runs it belong to the user namespace
    // of whoever can read it: the host's. Nothing inside can then trace it, read its memory or
    // write to its files in /proc (would_dump in the kernel's fs/exec.c).
    fchmod(&memfd, Mode::from_bits_truncate(0o111)).map_err(Error::io("fchmod of adl-init"))?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals)).map_err(Error::io("sealing of adl-init"))?;
    above_stdio(memfd)
}
