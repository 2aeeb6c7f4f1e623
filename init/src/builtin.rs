//! Jobs whose program is init's own code, run by a child that has become the guest's user.

use core::ffi::CStr;

use adl_protocol::{Stage, Task};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use crate::job::{Failure, InStage, open_in_root};
use crate::sys;

/// The most that is moved at once, in bytes: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// Does a task that is no program, with descriptors 0 to 2 and the job's channel, and no other.
pub(crate) fn run(task: &Task<'_>) -> Result<(), Failure> {
    let [stdin, stdout, stderr] = sys::standard_descriptors();
    match task {
        Task::Program(_) => Err(Failure(Stage::Exec, Errno::INVAL)),
        Task::Drain => {
            let _ = rustix::thread::set_name(c"adl-drain");
            drain(stdin, stderr).stage(Stage::Copy)
        }
        Task::ReadFile { path, limit } => {
            let path = path.single().ok_or(Failure(Stage::Request, Errno::INVAL))?;
            read_file(path, *limit, stdout)
        }
    }
}

/// Moves what comes from a pipe to nowhere, until no one can write to it any more.
fn drain(from: BorrowedFd<'_>, null: BorrowedFd<'_>) -> rustix::io::Result<()> {
    while splice(from, None, null, None, CHUNK, SpliceFlags::empty())? != 0 {}
    Ok(())
}

/// Copies a regular file, without waiting for whoever has it locked or leased.
fn read_file(path: &CStr, limit: u64, to: BorrowedFd<'_>) -> Result<(), Failure> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open_in_root(path, flags).stage(Stage::File)?;
    let mode = rustix::fs::fstat(&file).stage(Stage::File)?.st_mode;
    if FileType::from_raw_mode(mode) != FileType::RegularFile {
        return Err(Failure(Stage::File, Errno::INVAL));
    }
    let mut left = limit;
    loop {
        // One byte more than there may be, to learn of it.
        let count = usize::try_from(left.saturating_add(1)).map_or(CHUNK, |left| left.min(CHUNK));
        let copied = rustix::fs::sendfile(to, file.as_fd(), None, count).stage(Stage::Copy)?;
        if copied == 0 {
            return Ok(());
        }
        left = left.checked_sub(copied as u64).ok_or(Failure(Stage::File, Errno::FBIG))?;
    }
}
