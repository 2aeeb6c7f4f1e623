//! What is written down of a sandbox's init, for others to see whether it has ended.
//!
//! A lock does not tell them. A process that ends closes its files before it ends its PID namespace
//! (`do_exit` in the kernel's `kernel/exit.c`), so what the owner of a sandbox had locked is free
//! some milliseconds before the last process of the guest is gone. Who takes over what was the
//! sandbox's has its lock, and sees its init dead.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};

use crate::sys::proc::{self, View};
use crate::sys::{self, pidfd};
use crate::wait::Deadline;
use crate::wait::wait_ready;

/// The longest text of a record, in bytes. So short that ext4 keeps a link to it in the inode.
pub(crate) const LONGEST: usize = 59;

/// An init, told from all other processes of the machine: it is the one that had its number at a
/// time, so one that has it and started later is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InitRecord {
    pid: i32,
    /// In hundredths of a second since the machine started, as `/proc/PID/stat` counts.
    seen: u64,
    namespace: u64,
    boot: u64,
}

/// What is known of a recorded init.
#[derive(Debug)]
pub(crate) enum Life {
    /// All of its PID namespace has ended.
    Ended,
    /// It has not. A descriptor that is readable when it has.
    Alive(OwnedFd),
    /// It was seen from another PID namespace, in which numbers are others.
    Elsewhere,
}

impl InitRecord {
    /// Of a child that has not been reaped.
    pub(crate) fn of_child(pid: i32) -> Self {
        let View { namespace, boot, .. } = View::of_caller();
        Self { pid, seen: sys::ticks_since_boot(), namespace, boot }
    }

    pub(crate) fn life(&self) -> Life {
        let view = View::of_caller();
        if self.boot != view.boot && self.boot != 0 && view.boot != 0 {
            return Life::Ended;
        }
        if self.namespace != view.namespace || view.namespace == 0 {
            return Life::Elsewhere;
        }
        let pidfd = match pidfd::open(self.pid) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                return match error.raw_os_error() {
                    // No process has the number, or one of its threads has.
                    Some(libc::ESRCH | libc::EINVAL | libc::ENOENT) => Life::Ended,
                    _ => Life::Elsewhere,
                };
            }
        };
        // Also of one that no one has reaped: before it is that, all of its namespace is gone.
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match wait_ready(&mut fds, Deadline::after(Duration::ZERO)) {
            Ok(false) => {}
            Ok(true) => return Life::Ended,
            Err(_) => return Life::Alive(pidfd),
        }
        match proc::start_of(&pidfd) {
            Ok(start) if start > self.seen => Life::Ended,
            // What can't be seen may be it.
            _ => Life::Alive(pidfd),
        }
    }
}

impl fmt::Display for InitRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, seen, namespace, boot } = self;
        write!(f, "{pid}:{seen}:{namespace:x}:{boot:x}")
    }
}

impl FromStr for InitRecord {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut fields = text.split(':');
        let mut next = || fields.next().ok_or(());
        let pid = next()?.parse().map_err(drop)?;
        let seen = next()?.parse().map_err(drop)?;
        let mut next_number = || u64::from_str_radix(next()?, 16).map_err(drop);
        let (namespace, boot) = (next_number()?, next_number()?);
        if pid <= 0 || next().is_ok() {
            return Err(());
        }
        Ok(Self { pid, seen, namespace, boot })
    }
}

/// A process to be recorded, for tests.
#[cfg(test)]
pub(crate) struct Sleeper(std::process::Child);

#[cfg(test)]
impl Sleeper {
    pub(crate) fn start() -> (Self, InitRecord) {
        let mut sleep = std::process::Command::new("sleep");
        let child = sleep.arg("1000").stdout(std::process::Stdio::null()).spawn().unwrap();
        let record = InitRecord::of_child(i32::try_from(child.id()).unwrap());
        (Self(child), record)
    }

    /// Kills it, and does not reap it.
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
    }
}

#[cfg(test)]
impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags};

    use super::{InitRecord, LONGEST, Life, Sleeper};
    use crate::wait::Deadline;
    use crate::wait::wait_ready;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record =
            InitRecord { pid: i32::MAX, seen: 1 << 40, namespace: u64::MAX, boot: u64::MAX };
        assert_eq!(record.to_string().parse(), Ok(record));
        assert!(record.to_string().len() <= LONGEST, "{record}");
        for text in ["", "1", "1:2:3", "0:2:3:4", "-1:2:3:4", "1:2:3:4:5", "1:2:3:x", "a:2:3:4"] {
            assert!(text.parse::<InitRecord>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_process_is_alive_until_it_has_ended() {
        let (mut sleeper, record) = Sleeper::start();
        let Life::Alive(pidfd) = record.life() else { panic!("{:?}", record.life()) };
        sleeper.kill();
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        assert!(wait_ready(&mut fds, Deadline::NEVER).unwrap());
        // As a zombie, too.
        assert!(matches!(record.life(), Life::Ended));
        drop(sleeper);
        assert!(matches!(record.life(), Life::Ended));
    }

    #[test]
    fn another_with_its_number_is_not_it() {
        let (_sleeper, record) = Sleeper::start();
        // One that had the number before this one started.
        let earlier = InitRecord { seen: record.seen - 1000, ..record };
        assert!(matches!(earlier.life(), Life::Ended));
        // And one before the machine was started again, or of another PID namespace.
        let boot = record.boot ^ 1;
        assert!(matches!(InitRecord { boot, ..record }.life(), Life::Ended));
        // Where it is not known which boot that was, it may be it.
        assert!(matches!(InitRecord { boot: 0, ..record }.life(), Life::Alive(_)));
        let namespace = record.namespace ^ 1;
        assert!(matches!(InitRecord { namespace, ..record }.life(), Life::Elsewhere));
    }
}
