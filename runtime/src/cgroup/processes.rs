//! Stopping and ending all that is in a cgroup.

use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::directory::{Directory, read_again, value};
use super::hierarchy::Version;
use crate::error::{Error, Result};
use crate::sys::pidfd;
use crate::wait::Deadline;
use crate::wait::wait_ready;

/// How long it may take until all have stopped.
const FREEZING: Duration = Duration::from_secs(5);
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// How often what is in a cgroup is looked at to end it, while there is always more.
const PASSES: usize = 100;
/// How many descriptors of processes are held at once.
const AT_ONCE: usize = 64;

/// Has all in a cgroup and those below it stop, or go on.
pub(super) fn set_frozen(directory: &Directory, frozen: bool) -> Result<()> {
    match directory.version {
        Version::V1 => directory.write("freezer.state", if frozen { "FROZEN" } else { "THAWED" }),
        Version::V2 => directory.write("cgroup.freeze", if frozen { "1" } else { "0" }),
    }
}

/// Waits until all have stopped, or go on, or there is nothing more to wait for.
pub(super) fn wait_frozen(
    directory: &Directory,
    frozen: bool,
    is_over: impl Fn() -> bool,
) -> Result<()> {
    let late = || Error::TimedOut { what: "all processes to stop", after: FREEZING };
    if directory.version == Version::V1 {
        let state = if frozen { "FROZEN" } else { "THAWED" };
        let begin = Instant::now();
        while directory.read("freezer.state")?.is_none_or(|now| now.trim() != state) {
            if is_over() {
                return Ok(());
            }
            if begin.elapsed() > FREEZING {
                return Err(late());
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
        return Ok(());
    }
    let events = directory.open("cgroup.events", fs::OpenOptions::new().read(true))?;
    let deadline = Deadline::after(FREEZING);
    loop {
        let text = read_again(&events)
            .map_err(Error::at("read", &directory.path().join("cgroup.events")))?;
        if is_over() || value(&text, "frozen") == Some(u64::from(frozen)) {
            return Ok(());
        }
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        if !wait_ready(&mut fds, deadline)? {
            return Err(late());
        }
    }
}

/// Kills all in a cgroup.
pub(super) fn kill(directory: &Directory) -> Result<()> {
    // Linux 5.14. Where that is not known, the other way kills them, too.
    if directory.version == Version::V2 && directory.has("cgroup.kill").unwrap_or_default() {
        return directory.write("cgroup.kill", "1");
    }
    for _ in 0..PASSES {
        let found = pids(directory)?;
        if found.is_empty() {
            break;
        }
        for some in found.chunks(AT_ONCE) {
            let held: Vec<_> =
                some.iter().filter_map(|pid| Some((*pid, pidfd::open(*pid).ok()?))).collect();
            // An id was another's, if what had it in the cgroup has ended before it was held. What
            // is in the cgroup while it is held either is what is held, or that has ended.
            let still = pids(directory)?;
            for (_, process) in held.iter().filter(|(pid, _)| still.contains(pid)) {
                pidfd::kill(process).map_err(Error::io("pidfd_send_signal"))?;
            }
        }
    }
    Ok(())
}

fn pids(directory: &Directory) -> Result<Vec<i32>> {
    let text = directory.read("cgroup.procs")?.unwrap_or_default();
    // 0 is what this PID namespace does not have.
    Ok(text.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid != 0).collect())
}
