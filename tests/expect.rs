//! What a test needs of the machine, and what becomes of it where that is missing.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

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
    /// A Debian root file system: `debian`. `ADL_TEST_DEBIAN` names one; else root with
    /// debootstrap makes one.
    Debian,
    /// Core dumps that go into a file where the program is: `core-pattern`.
    DumpsInPlace,
    /// A clone of the repository that can be built in, and a cargo: `workspace`.
    Workspace,
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
            Self::Debian => "debian",
            Self::DumpsInPlace => "core-pattern",
            Self::Workspace => "workspace",
        }
    }

    /// Why it is missing, if it is. Found out by doing, without the library under test.
    fn missing(self) -> Option<String> {
        static USERNS: OnceLock<Option<String>> = OnceLock::new();
        static OVERLAY: OnceLock<Option<String>> = OnceLock::new();
        static BTRFS: OnceLock<Option<String>> = OnceLock::new();
        static PROJECT_QUOTA: OnceLock<Option<String>> = OnceLock::new();
        match self {
            Self::Root => (!nix::unistd::geteuid().is_root()).then(|| "not root".to_owned()),
            Self::Userns => USERNS.get_or_init(|| fails_in_user_namespace("true")).clone(),
            Self::Overlay => OVERLAY
                .get_or_init(|| {
                    fails_in_user_namespace(
                        "mount -t tmpfs tmpfs /mnt && mkdir /mnt/a /mnt/b /mnt/m && \
                         mount -t overlay overlay -o lowerdir=/mnt/a:/mnt/b /mnt/m",
                    )
                })
                .clone(),
            Self::Program(name) => (!in_usr(name)).then(|| format!("no {name} in /usr")),
            Self::Btrfs => BTRFS.get_or_init(file_systems::no_btrfs).clone(),
            Self::ProjectQuota => PROJECT_QUOTA.get_or_init(file_systems::no_project_quota).clone(),
            Self::Cgroups => no_cgroups(),
            Self::Cgroup2 => {
                let path = "/sys/fs/cgroup/cgroup.controllers";
                let all = fs::read_to_string(path).unwrap_or_default();
                (!all.contains("memory")).then(|| format!("no memory in {path}"))
            }
            Self::Debian => images::debian().err(),
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
        }
    }
}

/// Whether all of `needs` is there, and with it what every sandbox takes: user namespaces and
/// overlayfs. If not, the caller returns.
///
/// # Panics
/// If something is missing that `ADL_EXPECT` names.
pub(crate) fn needs(needs: &[Need]) -> bool {
    let expected = std::env::var("ADL_EXPECT").unwrap_or_default();
    let all = [Need::Userns, Need::Overlay].iter().chain(needs);
    let missing = all.filter_map(|need| Some((need.name(), need.missing()?)));
    match verdict(&expected, missing) {
        Verdict::Run => true,
        Verdict::Skip(why) => {
            let thread = std::thread::current();
            // Not by eprintln!, which the test harness keeps to itself where a test passes.
            let line = format!("skipped: {}: {why}\n", thread.name().unwrap_or_default());
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            false
        }
        Verdict::Fail(why) => panic!("ADL_EXPECT={expected}, but {why}"),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Run,
    Skip(String),
    Fail(String),
}

/// What becomes of a test that lacks `missing`: names, and why they are.
fn verdict<'a>(expected: &str, missing: impl Iterator<Item = (&'a str, String)>) -> Verdict {
    let mut verdict = Verdict::Run;
    for (name, why) in missing {
        let why = format!("{name} is missing: {why}");
        if expected.split(',').any(|expected| expected.trim() == name) {
            return Verdict::Fail(why);
        }
        if verdict == Verdict::Run {
            verdict = Verdict::Skip(why);
        }
    }
    verdict
}

/// Why no cgroup with limits can be made, if so, by the one of each controller that this process is in.
fn no_cgroups() -> Option<String> {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    WHY.get_or_init(|| {
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
    })
    .clone()
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
    assert_eq!(verdict("", std::iter::empty()), Verdict::Run);
    assert_eq!(verdict("root,userns", std::iter::empty()), Verdict::Run);
}

#[test]
fn what_is_missing_and_not_expected_skips_the_test_and_says_why() {
    let missing = [("gcc", "no gcc".to_owned()), ("root", "not root".to_owned())];
    let skip = Verdict::Skip("gcc is missing: no gcc".to_owned());
    assert_eq!(verdict("", missing.clone().into_iter()), skip);
    assert_eq!(verdict("userns,overlay", missing.into_iter()), skip);
}

#[test]
fn what_is_missing_and_expected_fails_the_test() {
    let missing = [("gcc", "no gcc".to_owned()), ("root", "not root".to_owned())];
    let fail = Verdict::Fail("root is missing: not root".to_owned());
    assert_eq!(verdict("userns, root", missing.into_iter()), fail);
    // Whole names count, not parts of them.
    let overlay = [("overlay", "none".to_owned())];
    assert!(matches!(verdict("overlayfs,over", overlay.into_iter()), Verdict::Skip(_)));
}

#[test]
fn a_program_is_missing_when_no_one_has_it() {
    assert!(Need::Program("no-such-program-anywhere").missing().is_some());
    assert_eq!(Need::Program("env").missing(), None);
}
