//! What the host can see of sandboxes: processes, namespaces, mounts, descriptors, memory.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A process, told from a later one with the same number by when it started.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    parent: i32,
    state: char,
    start: u64,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            pid,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }

    /// Whether it exists, if only as a zombie.
    pub(crate) fn exists(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.start == self.start)
    }

    pub(crate) fn is_zombie(&self) -> bool {
        self.state == 'Z'
    }

    /// The value of a line of its `status`.
    pub(crate) fn status(&self, key: &str) -> Option<String> {
        status(self.pid, key)
    }
}

/// The value of a line of a process's `status`.
pub(crate) fn status(pid: i32, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// All processes of the host.
pub(crate) fn processes() -> Vec<Process> {
    let pids = fs::read_dir("/proc").unwrap();
    pids.filter_map(|entry| Process::read(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// A process and all that descend from it. Of a sandbox's init: all that is in the sandbox.
pub(crate) fn tree(root: i32) -> Vec<Process> {
    let all = processes();
    let mut members: BTreeSet<i32> = BTreeSet::from([root]);
    loop {
        let before = members.len();
        members.extend(
            all.iter().filter(|p| members.contains(&p.parent)).map(|p| p.pid).collect::<Vec<_>>(),
        );
        if members.len() == before {
            return all.into_iter().filter(|p| members.contains(&p.pid)).collect();
        }
    }
}

/// The processes with a user id in a range.
pub(crate) fn with_ids_in((first, length): (u32, u32)) -> Vec<Process> {
    let range = u64::from(first)..u64::from(first) + u64::from(length);
    let is_in = |process: &Process| {
        let ids = process.status("Uid").unwrap_or_default();
        ids.split_whitespace().any(|id| id.parse().is_ok_and(|id: u64| range.contains(&id)))
    };
    processes().into_iter().filter(is_in).collect()
}

/// The namespaces that a process is in, as the kernel names them: `net:[4026531840]`.
pub(crate) fn namespaces(pid: i32) -> BTreeSet<String> {
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    let name = |kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    kinds.into_iter().filter_map(name).map(|n| n.to_string_lossy().into_owned()).collect()
}

/// The namespaces that any process is in, as far as the caller may look.
pub(crate) fn all_namespaces() -> BTreeSet<String> {
    processes().iter().flat_map(|process| namespaces(process.pid)).collect()
}

/// The mounts of the calling process, but those that other tests make for themselves.
pub(crate) fn mounts() -> String {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_of_a_test = |line: &&str| {
        let place = line.split(' ').nth(4).unwrap();
        place.contains("/adl-test-") && (place.ends_with("/mounted") || place.ends_with("/sub"))
    };
    all.lines().filter(|line| !is_of_a_test(line)).map(|line| format!("{line}\n")).collect()
}

/// What the descriptors of a process are, by number.
pub(crate) fn descriptors(pid: i32) -> Vec<(i32, PathBuf)> {
    let directory = format!("/proc/{pid}/fd");
    let mut all: Vec<(i32, PathBuf)> = fs::read_dir(&directory)
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let number = path.file_name()?.to_str()?.parse().ok()?;
            let target = fs::read_link(&path).ok()?;
            // The one that is being read.
            (target != Path::new(&directory)).then_some((number, target))
        })
        .collect();
    all.sort();
    all
}

/// The memory of a process in KiB, exact for root.
pub(crate) fn resident(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let exact = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
    let value = exact.map_or_else(|| status(pid, "VmRSS").unwrap(), str::to_owned);
    value.trim().trim_end_matches(" kB").parse().unwrap()
}
