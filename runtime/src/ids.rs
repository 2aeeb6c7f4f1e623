//! Ranges of user and group ids, one for each sandbox that root makes.
//!
//! Two sandboxes that shared ids would share what the kernel counts by id (pages of pipes, keys,
//! descriptors in flight), and one could signal the other where they met. What it counts by who has
//! made a user namespace is that sandbox's own as well, since the first of its ids has. A range is
//! held by a lock on one byte of a file, which the kernel lets go of when its holder ends, however it
//! ends: nothing is to be cleaned up.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Error, Result};

/// The number of ids in a range: what a distribution's own ids and `nobody` need.
pub(crate) const LENGTH: u32 = 65_536;
/// The first range. Below are the ids of users, of /etc/subuid, and most of those that
/// systemd-nspawn draws from.
const FIRST: u32 = 0x2000_0000;
/// The end of the last range: 24,574 of them. Above are ids that systemd calls foreign, and from
/// 2^31 on some programs take an id for negative.
const END: u32 = 0x7ffe_0000;
const RANGES: u32 = (END - FIRST) / LENGTH;

/// Where the locks are: one place for all programs of the machine, whatever their state directory.
const DIRECTORY: &str = "/run/adl";
const FILE: &str = "/run/adl/ids";

/// The ranges of this process. Its own locks don't keep it out, so it must remember.
static HELD: Mutex<Held> = Mutex::new(Held { file: None, ranges: BTreeSet::new(), next: None });

struct Held {
    file: Option<File>,
    ranges: BTreeSet<u32>,
    /// Where to look next: far from where other processes do.
    next: Option<u32>,
}

/// Whether the caller can map ranges of ids: root, where these ids exist. Root of a user namespace
/// that has others is in the position of an ordinary user.
pub(crate) fn caller_may_map() -> bool {
    static EXIST: OnceLock<bool> = OnceLock::new();
    nix::unistd::geteuid().is_root()
        && *EXIST.get_or_init(|| {
            ["/proc/self/uid_map", "/proc/self/gid_map"]
                .iter()
                .all(|map| std::fs::read_to_string(map).is_ok_and(|map| holds_all_ranges(&map)))
        })
}

/// Whether a map, of lines with the first id inside, the first outside and their number, has one
/// that holds all ranges.
fn holds_all_ranges(map: &str) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(first)), Some(Ok(_)), Some(Ok(length))) => {
                first <= u64::from(FIRST) && first + length >= u64::from(END)
            }
            _ => false,
        }
    })
}

/// A range that is this sandbox's until it is dropped.
#[derive(Debug)]
pub(crate) struct IdRange {
    number: u32,
}

impl IdRange {
    /// Takes a free range.
    pub(crate) fn take() -> Result<Self> {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let Held { file, ranges, next } = &mut *held;
        let file = match file {
            Some(file) => file,
            None => file.insert(open()?),
        };
        let start = *next.get_or_insert_with(|| std::process::id().wrapping_mul(127) % RANGES);
        for offset in 0..RANGES {
            let number = (start + offset) % RANGES;
            if ranges.contains(&number) || !lock(file, number, libc::F_WRLCK)? {
                continue;
            }
            ranges.insert(number);
            *next = Some((number + 1) % RANGES);
            return Ok(Self { number });
        }
        Err(Error::Unsupported {
            what: "a range of ids for the user namespace".to_owned(),
            why: format!("all {RANGES} are in use"),
            fix: "delete sandboxes that are no longer needed".to_owned(),
        })
    }

    /// The id outside that id 0 inside is.
    pub(crate) fn base(&self) -> u32 {
        FIRST + self.number * LENGTH
    }
}

impl Drop for IdRange {
    fn drop(&mut self) {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &held.file {
            // A lock that can't be let go of is gone when the process is.
            let _ = lock(file, self.number, libc::F_UNLCK);
        }
        held.ranges.remove(&self.number);
    }
}

fn open() -> Result<File> {
    let made = DirBuilder::new().mode(0o700).create(DIRECTORY);
    if let Err(error) = made
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(Error::at("mkdir", Path::new(DIRECTORY))(error));
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
        .open(FILE)
        .map_err(Error::at("open", Path::new(FILE)))
}

/// Changes the lock on one byte; `false` if another process holds it. The locks belong to the
/// open file and not to the process, so closing another descriptor of it lets go of nothing.
fn lock(file: &File, number: u32, kind: i32) -> Result<bool> {
    let range = libc::flock {
        l_type: i16::try_from(kind).unwrap_or(0),
        l_whence: 0,
        l_start: i64::from(number),
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(Error::at("lock", Path::new(FILE))(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::{IdRange, holds_all_ranges};

    #[test]
    fn ranges_exist_where_the_map_has_them() {
        assert!(holds_all_ranges("         0          0 4294967295\n"));
        assert!(!holds_all_ranges("         0       1000          1\n"));
        assert!(!holds_all_ranges("0 100000 65536\n"));
        assert!(!holds_all_ranges(""));
    }

    #[test]
    fn no_two_sandboxes_share_an_id() {
        if !super::caller_may_map() {
            return eprintln!("skipped: not root");
        }
        let ranges: Vec<_> = (0..50).map(|_| IdRange::take().unwrap()).collect();
        let bases: std::collections::BTreeSet<_> = ranges.iter().map(IdRange::base).collect();
        assert_eq!(bases.len(), 50);
        assert!(bases.iter().all(|base| base % super::LENGTH == 0));
    }
}
