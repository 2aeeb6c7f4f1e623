//! What a child of the calling thread would have of it, and keeps.
//!
//! Who makes something before it is asked for compares: what was made in other surroundings is not
//! what would be made now.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;

/// The lines of `/proc/thread-self/status` that say what a child has, too (`proc_pid_status(5)`).
const OF_STATUS: [&str; 16] = [
    "Umask:",
    "Uid:",
    "Gid:",
    "Groups:",
    "CapInh:",
    "CapPrm:",
    "CapEff:",
    "CapBnd:",
    "CapAmb:",
    "NoNewPrivs:",
    "Seccomp:",
    "Seccomp_filters:",
    "Speculation_Store_Bypass:",
    "SpeculationIndirectBranch:",
    "Cpus_allowed:",
    "Mems_allowed:",
];

/// Those of a thread and of what it clones.
const NAMESPACES: [&str; 10] = [
    "cgroup",
    "ipc",
    "mnt",
    "net",
    "pid",
    "pid_for_children",
    "time",
    "time_for_children",
    "user",
    "uts",
];

/// The surroundings of a thread: its cgroups, resource limits, user, capabilities, filters,
/// namespaces, root directory, security label, scheduling, and how soon it is killed for memory.
///
/// The kernel does not tell of a Landlock domain (`landlock(7)`).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Surroundings(Vec<u8>);

impl Surroundings {
    /// Those of the calling thread.
    pub(crate) fn of_thread() -> io::Result<Self> {
        let own = Path::new("/proc/thread-self");
        let mut all = Vec::new();
        for name in ["cgroup", "limits", "oom_score_adj"] {
            all.extend(fs::read(own.join(name))?);
        }
        for line in fs::read_to_string(own.join("status"))?.lines() {
            if OF_STATUS.iter().any(|begin| line.starts_with(begin)) {
                all.extend_from_slice(line.as_bytes());
            }
        }
        // There are none without a security module, or without auditing.
        for name in ["attr/current", "loginuid"] {
            all.extend(fs::read(own.join(name)).unwrap_or_default());
        }
        for name in NAMESPACES {
            match fs::read_link(own.join("ns").join(name)) {
                Ok(namespace) => all.extend_from_slice(namespace.as_os_str().as_bytes()),
                // Of a kind that the kernel does not have.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let root = fs::metadata("/")?;
        let numbers = [root.dev(), root.ino()].map(u64::to_ne_bytes);
        all.extend(numbers.as_flattened());
        for number in scheduling()? {
            all.extend(number.to_ne_bytes());
        }
        for number in restraints() {
            all.extend(number.to_ne_bytes());
        }
        Ok(Self(all))
    }
}

/// Whether memory may become code (`PR_SET_MDWE(2const)`), the group of those that may share a core
/// (`PR_SCHED_CORE(2const)`), and whether it writes for others back to disk
/// (`PR_SET_IO_FLUSHER(2const)`); or the error numbers of what the kernel does not have.
fn restraints() -> [u64; 3] {
    const PR_GET_MDWE: c_int = 66;
    const PR_GET_IO_FLUSHER: c_int = 58;
    let zero: libc::c_ulong = 0;
    let of = |value: c_int| match value {
        0.. => u64::from(value.unsigned_abs()),
        _ => u64::MAX - u64::from(Errno::last_raw().unsigned_abs()),
    };
    // SAFETY: it takes numbers.
    let code = of(unsafe { libc::prctl(PR_GET_MDWE, zero, zero, zero, zero) });
    let mut core = 0_u64;
    // SAFETY: it takes numbers, 0 for the calling thread, and writes a number, which outlives it.
    let asked = of(unsafe {
        libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_GET, 0, 0, &raw mut core)
    });
    // SAFETY: it takes numbers.
    let flusher = of(unsafe { libc::prctl(PR_GET_IO_FLUSHER, zero, zero, zero, zero) });
    [code, core.wrapping_add(asked), flusher]
}

/// The policy and the niceness.
fn scheduling() -> io::Result<[c_int; 2]> {
    // SAFETY: it takes a number, 0 for the calling thread.
    let policy = Errno::result(unsafe { libc::sched_getscheduler(0) })?;
    Errno::clear();
    // SAFETY: it takes numbers, 0 for the calling thread.
    let niceness = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    match Errno::last_raw() {
        0 => Ok([policy, niceness]),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::Surroundings;

    /// What a thread of its own has after it has changed something.
    fn changed(change: impl FnOnce() + Send + 'static) -> Surroundings {
        let thread = std::thread::spawn(move || {
            change();
            Surroundings::of_thread().unwrap()
        });
        thread.join().unwrap()
    }

    #[test]
    fn they_are_equal_in_threads_until_something_changes() {
        let now = Surroundings::of_thread().unwrap();
        assert_eq!(changed(|| ()), now);
        // SAFETY: numbers; the niceness is that of the thread.
        let nicer = changed(|| assert_eq!(unsafe { libc::nice(1) }, 1));
        assert_ne!(nicer, now);
        let no_new = changed(|| nix::sys::prctl::set_no_new_privs().unwrap());
        assert_ne!(no_new, now);
        let (soft, hard) = getrlimit(Resource::RLIMIT_SIGPENDING).unwrap();
        setrlimit(Resource::RLIMIT_SIGPENDING, soft - 1, hard).unwrap();
        let lower = Surroundings::of_thread().unwrap();
        setrlimit(Resource::RLIMIT_SIGPENDING, soft, hard).unwrap();
        assert_ne!(lower, now);
        assert_eq!(Surroundings::of_thread().unwrap(), now);
    }
}
