//! Jobs whose program is init's own code, run by a child that has become the guest's user.

use adl_protocol::{Stage, Task};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use crate::failure::{Failure, InStage};
use crate::{files, sys};

/// The most that is moved at once, in bytes: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// Does a task that is no program, with descriptors 0 to 2 and the job's channel, and no other.
pub(crate) fn run(task: &Task<'_>, channel: BorrowedFd<'_>) -> Result<(), Failure> {
    let [stdin, stdout, stderr] = sys::standard_descriptors();
    match task {
        Task::Program(_) | Task::KillAll | Task::Socket => Err(Failure(Stage::Exec, Errno::INVAL)),
        Task::Drain => {
            let _ = rustix::thread::set_name(c"adl-drain");
            drain(stdin, stderr).stage(Stage::Copy)
        }
        Task::File(task) => {
            let _ = rustix::thread::set_name(c"adl-file");
            sys::ignore_file_size_signal().stage(Stage::Session)?;
            files::run(task, stdin, stdout, channel)
        }
    }
}

/// Moves what comes from a pipe to nowhere, until no one can write to it any more.
fn drain(from: BorrowedFd<'_>, null: BorrowedFd<'_>) -> rustix::io::Result<()> {
    while splice(from, None, null, None, CHUNK, SpliceFlags::empty())? != 0 {}
    Ok(())
}
