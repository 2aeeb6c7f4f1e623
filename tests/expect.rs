//! What a test needs of the machine, and what becomes of it where that is missing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::harness::{BUILD_LIMIT, kernel, tell};
use crate::report::{self, Line, Missing};
use crate::{file_systems, images};

/// Something that not every machine, or not every user of it, has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// The right to do anything: `root`.
    Root,
    /// User namespaces: `userns`.
    Userns,
    /// overlayfs in a user namespace: `overlay`.
    Overlay,
    /// A program in the host's `/usr`: its name.
    Program(&'static str),
    /// A btrfs in a file: `btrfs`.
    Btrfs,
    /// An ext4 with project quotas in a file: `prjquota`.
    ProjectQuota,
    /// The right to make cgroups with limits of cpu, memory, pids and cpuset: `cgroups`.
    Cgroups,
    /// All controllers on cgroup version 2: `cgroup2`.
    Cgroup2,
    /// The right to make a cgroup of version 1 that freezes what is in it: `freezer`.
    Freezer,
    /// A Debian root file system: `debian`. `ADL_TEST_DEBIAN` names one; else root with
    /// debootstrap makes one.
    Debian,
    /// File systems of programs: `fuse`.
    Fuse,
    /// Core dumps that go into a file where the program is: `core-pattern`.
    DumpsInPlace,
    /// A clone of the repository that can be built in, and a cargo: `workspace`.
    Workspace,
    /// A new sysfs in a user namespace: `sysfs`.
    Sysfs,
    /// Parameters of the kernel's IPC that root of a user namespace may set: `ipc-sysctls`.
    IpcSysctls,
}

impl Need {
    /// Its name in `ADL_EXPECT`.
    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Userns => "userns",
            Self::Overlay => "overlay",
            Self::Program(name) => name,
            Self::Btrfs => "btrfs",
            Self::ProjectQuota => "prjquota",
            Self::Cgroups => "cgroups",
            Self::Cgroup2 => "cgroup2",
            Self::Freezer => "freezer",
            Self::Debian => "debian",
            Self::Fuse => "fuse",
            Self::DumpsInPlace => "core-pattern",
            Self::Workspace => "workspace",
            Self::Sysfs => "sysfs",
            Self::IpcSysctls => "ipc-sysctls",
        }
    }

    /// What to do where it is missing.
    fn remedy(self) -> String {
        let remedy = match self {
            Self::Root => "run the tests as root",
            Self::Userns => "allow user namespaces (user.max_user_namespaces, AppArmor)",
            Self::Overlay => "modprobe overlay",
            Self::Program(name) => return format!("{}{}", report::INSTALL, package(name)),
            Self::Btrfs => "apt-get install btrfs-progs",
            Self::ProjectQuota => "a kernel with project quotas, as Debian's: tests/guest/run",
            Self::Cgroups => {
                "run the tests as root, or by `systemd-run --user --scope -p Delegate=yes`"
            }
            Self::Cgroup2 => "a machine with cgroup version 2 alone: tests/guest/run",
            Self::Freezer => "a machine with the freezer of cgroup version 1",
            Self::Debian => "apt-get install debootstrap",
            Self::Fuse => "modprobe fuse",
            Self::DumpsInPlace => "sysctl kernel.core_pattern=core",
            Self::Workspace => "a clone that can be written to, and cargo",
            Self::Sysfs => "a machine rather than a container that covers parts of its /sys",
            Self::IpcSysctls => "Linux 6.9 or later: tests/guest/run",
        };
        remedy.to_owned()
    }

    /// What is said of it where it is missing.
    fn missing(self) -> Option<Missing> {
        let why = self.why_missing()?;
        Some(Missing { name: self.name().to_owned(), why, remedy: self.remedy() })
    }

    /// Why it is missing, if it is. Found out by doing, without the library under test.
    fn why_missing(self) -> Option<String> {
        let once = |look: fn() -> Option<String>| found_once(self.name(), look);
        match self {
            Self::Root => (!nix::unistd::geteuid().is_root()).then(|| "not root".to_owned()),
            Self::Userns => once(|| fails_in_user_namespace("true")),
            Self::Overlay => once(|| {
                fails_in_user_namespace(
                    "mount -t tmpfs tmpfs /mnt && mkdir /mnt/a /mnt/b /mnt/m && \
                     mount -t overlay overlay -o lowerdir=/mnt/a:/mnt/b /mnt/m",
                )
            }),
            Self::Program(name) => (!in_usr(name)).then(|| format!("no {name} in /usr")),
            Self::Btrfs => once(file_systems::no_btrfs),
            Self::ProjectQuota => once(file_systems::no_project_quota),
            Self::Cgroups => once(no_cgroups),
            Self::Cgroup2 => {
                let path = "/sys/fs/cgroup/cgroup.controllers";
                let all = fs::read_to_string(path).unwrap_or_default();
                (!all.contains("memory")).then(|| format!("no memory in {path}"))
            }
            Self::Freezer => no_freezer(),
            Self::Debian => once(|| images::debian().err()),
            Self::Fuse => {
                let opened = File::options().read(true).write(true).open("/dev/fuse");
                opened.err().map(|error| format!("/dev/fuse: {error}"))
            }
            Self::DumpsInPlace => {
                let path = "/proc/sys/kernel/core_pattern";
                let pattern = fs::read_to_string(path).unwrap_or_default();
                let elsewhere = pattern.is_empty() || pattern.starts_with(['|', '@', '/']);
                elsewhere.then(|| format!("{path} is {pattern:?}"))
            }
            Self::Workspace => {
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
                let writable = nix::unistd::access(&root, nix::unistd::AccessFlags::W_OK);
                let cargo = Command::new(crate::harness::cargo()).arg("--version").output();
                match (writable, cargo) {
                    (Err(errno), _) => Some(format!("{}: {errno}", root.display())),
                    (_, Err(error)) => Some(format!("cargo: {error}")),
                    _ => None,
                }
            }
            Self::Sysfs => {
                once(|| fails_in_user_namespace("unshare --net mount -t sysfs sysfs /mnt"))
            }
            // Not by doing: before, whoever is root of the machine may in any user namespace, but
            // not who has ids of a range.
            Self::IpcSysctls => {
                let (major, minor) = kernel();
                ((major, minor) < (6, 9)).then(|| format!("this is Linux {major}.{minor}"))
            }
        }
    }
}

/// The package of Debian's that has a program.
fn package(program: &str) -> &str {
    match program {
        "ps" | "pgrep" => "procps",
        "unshare" | "setsid" | "prlimit" => "util-linux",
        "script" => "bsdutils",
        "find" => "findutils",
        "chattr" => "e2fsprogs",
        "newuidmap" => "uidmap",
        "java" => "default-jre-headless",
        "busybox" => "busybox-static",
        "cat" | "stty" | "yes" | "printf" => "coreutils",
        other => other,
    }
}

/// Looks once for all tests, of this process or of this run: to look may take long, and disturb
/// others.
fn found_once(name: &str, look: impl FnOnce() -> Option<String>) -> Option<String> {
    static FOUND: Mutex<BTreeMap<String, Option<String>>> = Mutex::new(BTreeMap::new());
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = found.get(name) {
        return known.clone();
    }
    let result = match std::env::var_os(report::FOUND) {
        Some(directory) => found_once_in(&Path::new(&directory).join(name), look),
        None => look(),
    };
    found.insert(name.to_owned(), result.clone());
    result
}

/// The file has `+` when nothing is missing, or `-` and what is.
fn found_once_in(path: &Path, look: impl FnOnce() -> Option<String>) -> Option<String> {
    let mut file =
        File::options().read(true).append(true).create(true).open(path).expect("the runner's");
    // A Debian may be made, by this test or by another one.
    tell(&Line::Takes(BUILD_LIMIT));
    file.lock().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let result = match text.split_at_checked(1) {
        Some(("+", _)) => None,
        Some((_, why)) => Some(why.to_owned()),
        None => {
            let result = look();
            let text = result.as_ref().map_or("+".to_owned(), |why| format!("-{why}"));
            file.write_all(text.as_bytes()).unwrap();
            result
        }
    };
    tell(&Line::Takes(report::ORDINARY));
    result
}

/// Whether all of `needs` is there, and with it what every sandbox takes: user namespaces and
/// overlayfs. If not, the caller returns.
///
/// # Panics
/// If something is missing that `ADL_EXPECT` names.
pub(crate) fn needs(needs: &[Need]) -> bool {
    let expected = std::env::var("ADL_EXPECT").unwrap_or_default();
    let all = [Need::Userns, Need::Overlay].iter().chain(needs);
    match verdict(&expected, all.filter_map(|need| need.missing()).collect()) {
        Verdict::Run => true,
        Verdict::Skip(missing) => {
            let thread = std::thread::current();
            for one in missing {
                // Not by eprintln!, which the test harness keeps to itself where a test passes.
                let line = format!("skipped: {}: {one}\n", thread.name().unwrap_or_default());
                std::io::stderr().write_all(line.as_bytes()).unwrap();
                tell(&Line::Skipped(one));
            }
            false
        }
        Verdict::Fail(one) => panic!("ADL_EXPECT={expected}, but {one}"),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Run,
    Skip(Vec<Missing>),
    Fail(Missing),
}

/// What becomes of a test that lacks `missing`.
fn verdict(expected: &str, missing: Vec<Missing>) -> Verdict {
    let is_expected =
        |one: &&Missing| expected.split(',').any(|expected| expected.trim() == one.name);
    match missing.iter().find(is_expected) {
        Some(one) => Verdict::Fail(one.clone()),
        None if missing.is_empty() => Verdict::Run,
        None => Verdict::Skip(missing),
    }
}

/// Why no cgroup with limits can be made, if so, by the one of each controller that this process is
/// in.
fn no_cgroups() -> Option<String> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    ["cpu", "memory", "pids", "cpuset"].into_iter().find_map(|controller| {
        let v1 = own.lines().find_map(|line| {
            let (names, path) = line.split_once(':')?.1.split_once(':')?;
            names.split(',').any(|name| name == controller).then_some(path)
        });
        let name = format!("adl-need-{}", std::process::id());
        match v1 {
            Some(path) => {
                let probe = format!("/sys/fs/cgroup/{controller}{path}/{name}");
                let made = fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe));
                made.err().map(|error| format!("{probe}: {error}"))
            }
            None => {
                let path = "/sys/fs/cgroup/cgroup.controllers";
                let all = fs::read_to_string(path).unwrap_or_default();
                let has = all.split_whitespace().any(|name| name == controller);
                let writable = nix::unistd::access(path, nix::unistd::AccessFlags::W_OK);
                let root = nix::unistd::geteuid().is_root();
                (!has || (writable.is_err() && !root))
                    .then(|| format!("{controller}: not in {path}"))
            }
        }
    })
}

/// Why no cgroup can be made that freezes what is in it and keeps SIGKILL from it, if so.
fn no_freezer() -> Option<String> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some((_, path)) = own.lines().find_map(|line| line.split_once(":freezer:")) else {
        return Some("not in /proc/self/cgroup".to_owned());
    };
    let probe = format!("/sys/fs/cgroup/freezer{path}/adl-need-{}", std::process::id());
    let made = fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe));
    made.err().map(|error| format!("{probe}: {error}"))
}

fn fails_in_user_namespace(script: &str) -> Option<String> {
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

/// Whether a sandbox of the host image has a program, and any user may run it.
fn in_usr(name: &str) -> bool {
    ["local/sbin", "local/bin", "sbin", "bin"].iter().any(|directory| {
        let path = Path::new("/usr").join(directory).join(name);
        fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o005 == 0o005)
    })
}

#[test]
fn a_machine_that_has_all_runs_the_test() {
    assert_eq!(verdict("", Vec::new()), Verdict::Run);
    assert_eq!(verdict("root,userns", Vec::new()), Verdict::Run);
}

fn lacking(names: &[&str]) -> Vec<Missing> {
    let missing = |name: &&str| Missing {
        name: (*name).to_owned(),
        why: format!("no {name}"),
        remedy: String::new(),
    };
    names.iter().map(missing).collect()
}

#[test]
fn what_is_missing_and_not_expected_skips_the_test_and_says_why() {
    let missing = lacking(&["gcc", "root"]);
    assert_eq!(verdict("", missing.clone()), Verdict::Skip(missing.clone()));
    assert_eq!(verdict("userns,overlay", missing.clone()), Verdict::Skip(missing.clone()));
    assert_eq!(missing[0].to_string(), "gcc is missing: no gcc");
}

#[test]
fn what_is_missing_and_expected_fails_the_test() {
    let fail = Verdict::Fail(lacking(&["root"]).remove(0));
    assert_eq!(verdict("userns, root", lacking(&["gcc", "root"])), fail);
    // Whole names count, not parts of them.
    assert!(matches!(verdict("overlayfs,over", lacking(&["overlay"])), Verdict::Skip(_)));
}

#[test]
fn a_program_is_missing_when_no_one_has_it() {
    let missing = Need::Program("no-such-program-anywhere").missing().unwrap();
    assert_eq!(missing.remedy, "apt-get install no-such-program-anywhere");
    assert_eq!(Need::Program("env").missing(), None);
}

#[test]
fn what_one_test_has_found_out_no_other_one_looks_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("found");
    let unexpected = || panic!("it looks again");
    for found in [None, Some(String::new()), Some("no\nbtrfs".to_owned())] {
        assert_eq!(found_once_in(&path, || found.clone()), found);
        assert_eq!(found_once_in(&path, unexpected), found);
        fs::remove_file(&path).unwrap();
    }
}
