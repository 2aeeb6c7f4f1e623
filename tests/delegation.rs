//! Where the cgroups of sandboxes are made, and where not.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use adl_runtime::{Config, Error, Limits, Sandbox};

use crate::cgroups::{cgroups_of, is_pure_v2, parent_of};
use crate::harness::{Home, NOBODY, Need, OrdinaryUser, adl_command, needs};
use crate::limits::{HOG, MIB, all_limits, memory, sandbox};

#[test]
fn a_parent_is_where_the_cgroups_are() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let beside = sandbox(&home, all_limits());
    let (parent, at) = parent_of(&beside);
    let create = |at: &Path, limits| {
        Sandbox::create(Config { limits, cgroup_parent: Some(at.to_owned()), ..home.config() })
    };
    // Also where it alone is what limits.
    let unlimited = create(&at, Limits::default()).unwrap();
    assert!(cgroups_of(&unlimited).iter().any(|path| path.starts_with(&parent)));
    unlimited.delete().unwrap();
    for limits in [Limits::default(), memory(64 * MIB)] {
        let refused = create(Path::new("/no-such-parent"), limits);
        let Err(Error::Unsupported { what, why, .. }) = refused else { panic!("{refused:?}") };
        assert!(what.contains("no-such-parent") || why.contains("no-such-parent"), "{what}: {why}");
    }
    let sandbox = create(&at, memory(64 * MIB)).unwrap();
    for _ in 0..2 {
        assert!(sandbox.command("true").status().unwrap().success());
        assert!(cgroups_of(&sandbox).iter().any(|path| path.starts_with(&parent)));
        sandbox.reset().unwrap();
    }
    // It bounds them as it does all that is below it.
    let (file, value) = match is_pure_v2() {
        true => ("memory.max", "33554432"),
        false => ("memory.limit_in_bytes", "33554432"),
    };
    fs::write(parent.join(file), value).unwrap();
    let status = sandbox.shell("exec head -c 50000000 /dev/zero > /dev/shm/f").status().unwrap();
    assert_eq!(status.signal(), Some(9), "{status}");
    sandbox.delete().unwrap();
    // CPUs that it does not have can't be had: the kernel would give others.
    if is_pure_v2() {
        fs::write(parent.join("cpuset.cpus"), "0").unwrap();
        for (cpus, is_there) in [("0", true), ("1", false), ("0-1", false)] {
            let created =
                create(&at, Limits { cpuset: Some(cpus.to_owned()), ..Limits::default() });
            assert_eq!(created.is_ok(), is_there, "{cpus}: {created:?}");
            if let Err(error) = created {
                assert!(matches!(error, Error::Invalid { .. }), "{cpus}: {error:?}");
            }
        }
    }
    for wrong in ["relative", "/../x", "/x/../../y"] {
        let refused = create(Path::new(wrong), memory(64 * MIB));
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{wrong}: {refused:?}");
    }
    adl_runtime::finish_removals();
    fs::remove_dir(&parent).unwrap();
}

#[test]
fn a_user_without_a_cgroup_is_told_what_to_do() {
    if !needs(&[Need::Cgroups, Need::Root]) {
        return;
    }
    let user = OrdinaryUser::new();
    let output =
        user.command(user.adl()).args(["run", "--memory", "64m", "--", "true"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("memory") && said.contains("systemd-run"), "{said}");
}

/// A cgroup that hands controllers on, as systemd makes it for a service with `DelegateSubgroup=`:
/// it, and one further below where the service's own processes are.
struct Service {
    path: PathBuf,
    processes: PathBuf,
}

impl Service {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = Path::new("/sys/fs/cgroup");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("service-{}-{number}", std::process::id()));
        let processes = path.join("middle/main");
        let controllers = "+cpu +memory +pids";
        fs::write(root.join("cgroup.subtree_control"), controllers).unwrap();
        fs::create_dir_all(&processes).unwrap();
        fs::write(path.join("cgroup.subtree_control"), controllers).unwrap();
        Self { path, processes }
    }

    /// A shell in it that executes the command that follows.
    fn enter(&self) -> std::process::Command {
        let join = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", self.processes.display());
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &join, "sh"]);
        command
    }

    /// Removes it, which shows that nothing else is left in it.
    fn remove(self) {
        fs::remove_dir(&self.processes).unwrap();
        fs::remove_dir(self.processes.parent().unwrap()).unwrap();
        fs::remove_dir(&self.path).unwrap();
    }
}

#[test]
fn root_goes_no_further_up_than_was_delegated() {
    if !needs(&[Need::Cgroup2, Need::Root, Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let service = Service::new();
    let command = |limit: &[&str]| {
        let adl = adl_command(&home.state());
        let mut command = service.enter();
        command.arg(adl.get_program());
        for (name, value) in adl.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        // Says that it runs, and goes on until its input ends.
        command.arg("run").args(limit).args(["--", "sh", "-c", "echo; exec cat"]);
        command
    };
    let run = |limit: &[&str]| command(limit).output().unwrap();
    // Above it is what limits it: its sandboxes would not be in that. What it is in itself can't
    // hand controllers on, but to threads, with which it would be of no use to the service any
    // more.
    for limit in [["--memory", "64m"], ["--pids-limit", "50"], ["--cpus", "1"], ["--cpuset", "0"]] {
        let output = run(&limit);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{limit:?}: {said}");
        assert!(said.contains("DelegateSubgroup="), "{said}");
    }
    let output = run(&["--stats"]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("cpu time"));
    let handed_on = fs::read_to_string(service.processes.join("cgroup.subtree_control")).unwrap();
    assert_eq!(handed_on, "");
    for mark in ["trusted.delegate", "user.delegate"] {
        let path = service.path.to_str().unwrap();
        let set = format!("import os; os.setxattr('{path}', '{mark}', b'1')");
        let set = std::process::Command::new("python3").args(["-c", &set]).status().unwrap();
        assert!(set.success());
        let mut command = command(&["--memory", "64m"]);
        let mut running = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0];
        running.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        let names = fs::read_dir(&service.path).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = names.collect();
        assert!(names.iter().any(|n| n.to_string_lossy().starts_with("adl-")), "{names:?}");
        drop(running.stdin.take());
        assert!(running.wait().unwrap().success());
        let unset = format!("import os; os.removexattr('{path}', '{mark}')");
        let unset = std::process::Command::new("python3").args(["-c", &unset]).status().unwrap();
        assert!(unset.success());
    }
    service.remove();
}

#[test]
fn a_user_has_limits_where_a_cgroup_was_delegated() {
    if !needs(&[Need::Cgroup2, Need::Root, Need::Program("python3")]) {
        return;
    }
    let user = OrdinaryUser::new();
    let service = Service::new();
    for path in [&*service.path, service.processes.parent().unwrap(), &service.processes] {
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            std::os::unix::fs::chown(path.join(file), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    let run = |options: &[&str], script: &str| {
        // It joins as root, and becomes the user then.
        let (uid, gid) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
        let mut command = service.enter();
        command.args(["setpriv", &uid, &gid, "--clear-groups"]).arg(user.adl());
        command.env_clear().env("PATH", "/usr/bin:/bin").env("ADL_STATE_DIR", user.state());
        command.arg("run").args(options).args(["--", "python3", "-c", script]);
        let output = command.current_dir("/").output().unwrap();
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), out, err)
    };
    let limits = ["--memory", "64m", "--pids-limit", "20", "--cpus", "1"];
    let (_, said, why) = run(&limits, "print('ran')");
    assert_eq!(said, "ran\n", "{why}");
    let (code, _, why) = run(&limits, HOG);
    assert_eq!(code, Some(137), "{why}");
    // What is not delegated is no reason not to count the rest.
    let (_, _, counted) = run(&["--stats"], "pass");
    for name in ["cpu time", "throttled", "memory peak", "pids"] {
        assert!(counted.lines().any(|line| line.starts_with(name)), "{name}: {counted}");
    }
    assert!(!counted.contains("bytes read"), "{counted}");
    let (code, _, why) = run(&["--cpuset", "0"], "pass");
    assert_eq!(code, Some(125), "{why}");
    assert!(why.contains("cpuset") && why.contains("systemd-run"), "{why}");
    service.remove();
}
