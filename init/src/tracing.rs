//! Decides whether a process may have another one stop at its end (`PTRACE_O_TRACEEXIT`).
//!
//! SIGKILL does not move one that has stopped so; the end of its tracer does. Two that hold each
//! other would be there for ever, and the sandbox with them. So the tracer must be the parent: a
//! parent is older than its children, also one that they were given to, and no circle leads from
//! older to younger processes alone. The filter of jobs asks init, by `seccomp_unotify(2)`.
//!
//! What was decided stays right. The arguments are numbers, which no one can change meanwhile, and
//! a process that has come to have the number of the child is younger still. There are no PID
//! namespaces inside, in which a number could be another's.

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::path::DecInt;

use crate::job::tree::state_and_parent;
use crate::sys;

/// Answers a question, if who has asked is there still.
pub(crate) fn answer(listener: &OwnedFd, proc: &OwnedFd) {
    let Ok(question) = sys::next_question(listener) else { return };
    // ptrace(request, pid, address, data), of which the kernel takes the low half of `pid`.
    let [_, pid, ..] = question.arguments;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = DecInt::new(pid as u32);
    let process = rustix::fs::openat(proc, path.as_c_str(), flags, Mode::empty());
    let parent = process.ok().and_then(|process| state_and_parent(&process));
    let may = parent.is_some_and(|(_, parent)| parent == u64::from(question.caller));
    let _ = sys::answer(listener, &question, may);
}
