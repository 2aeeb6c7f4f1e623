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

    /// Told from others by what does not change.
    pub(crate) fn whatever_it_does(self) -> Self {
        Self { state: '-', parent: 0, ..self }
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
        let is_of_suite = place.contains("/adl-test-");
        // Those of the unit tests.
        place.contains("/adl-disk-")
            || is_of_suite && (place.ends_with("/mounted") || place.ends_with("/sub"))
    };
    all.lines().filter(|line| !is_of_a_test(line)).map(|line| format!("{line}\n")).collect()
}

/// The cgroups of sandboxes, in every hierarchy.
pub(crate) fn cgroups() -> Vec<PathBuf> {
    fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
        // What goes meanwhile is another test's.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with("adl-") {
                    found.push(entry.path());
                }
                collect(&entry.path(), found);
            }
        }
    }
    let mut found = Vec::new();
    collect(Path::new("/sys/fs/cgroup"), &mut found);
    found
}

/// Those of one process, by what their names begin with.
pub(crate) fn cgroups_of(prefix: &str) -> Vec<PathBuf> {
    let is_its = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    };
    cgroups().into_iter().filter(is_its).collect()
}

/// All that lies below a state directory, but images, which are kept for who comes next.
pub(crate) fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let is_kept = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let kinds = ["host-", "private-", "own-", ".used-"];
        directory.ends_with("images")
            && kinds.iter().any(|kind| name.as_encoded_bytes().starts_with(kind.as_bytes()))
    };
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if is_kept(&entry) {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.append(&mut files(&entry.path()));
        }
        found.insert(entry.path());
    }
    found
}

/// The locks of a process that are its own and of no descriptor.
fn locks(pid: u32) -> Vec<String> {
    let text = fs::read_to_string("/proc/locks").unwrap();
    let of_this = |line: &&str| line.split_whitespace().nth(4) == Some(&pid.to_string());
    let mut found: Vec<String> = text
        .lines()
        .filter(of_this)
        .filter_map(|line| line.split_once(':'))
        .map(|(_, lock)| lock.trim().to_owned())
        .collect();
    found.sort();
    found
}

/// All that a process with sandboxes could leave behind, as that process sees it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) descriptors: Vec<(i32, String)>,
    pub(crate) threads: Vec<String>,
    pub(crate) processes: BTreeSet<Process>,
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) cgroups: Vec<PathBuf>,
    pub(crate) mounts: String,
    /// Of ranges of ids, as the kernel tells them: a class, where in which file.
    pub(crate) locks: Vec<String>,
    pub(crate) files: BTreeSet<PathBuf>,
}

impl Census {
    /// What there is of the calling process, and in its state directory; and the cgroups whose
    /// names begin so.
    pub(crate) fn take(state: &Path, prefix: &str) -> Self {
        let own = std::process::id();
        let processes: BTreeSet<_> = tree(own.cast_signed()).into_iter().collect();
        let mut threads: Vec<String> = fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .collect();
        threads.sort();
        // Of a socket or a pipe, the number is another each time.
        let kind = |path: PathBuf| path.to_string_lossy().split(":[").next().unwrap().to_owned();
        Self {
            descriptors: descriptors(own.cast_signed())
                .into_iter()
                .map(|(number, path)| (number, kind(path)))
                .collect(),
            threads,
            namespaces: processes.iter().flat_map(|process| namespaces(process.pid)).collect(),
            processes: processes
                .into_iter()
                .map(|process| Process { state: '-', ..process })
                .collect(),
            cgroups: cgroups_of(prefix),
            mounts: mounts(),
            locks: locks(own),
            files: files(state),
        }
    }

    /// What has come and what has gone since another one was taken, in words.
    pub(crate) fn difference(&self, before: &Self) -> Vec<String> {
        fn compare<T: PartialEq + std::fmt::Debug>(
            what: &str,
            now: &[T],
            old: &[T],
        ) -> Vec<String> {
            let more = now.iter().filter(|one| !old.contains(one));
            let less = old.iter().filter(|one| !now.contains(one));
            let more = more.map(|one| format!("{what}: more: {one:?}"));
            let mut all: Vec<_> =
                more.chain(less.map(|one| format!("{what}: less: {one:?}"))).collect();
            if all.is_empty() && now.len() != old.len() {
                all.push(format!("{what}: {} instead of {}", now.len(), old.len()));
            }
            all
        }
        fn list<T: Clone>(set: &BTreeSet<T>) -> Vec<T> {
            set.iter().cloned().collect()
        }
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        [
            compare("descriptors", &self.descriptors, &before.descriptors),
            compare("threads", &self.threads, &before.threads),
            compare("processes", &list(&self.processes), &list(&before.processes)),
            compare("namespaces", &list(&self.namespaces), &list(&before.namespaces)),
            compare("cgroups", &self.cgroups, &before.cgroups),
            compare("mounts", &lines(&self.mounts), &lines(&before.mounts)),
            compare("locks", &self.locks, &before.locks),
            compare("files", &list(&self.files), &list(&before.files)),
        ]
        .concat()
    }
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
