//! The CPU time of a command and all that it starts has a limit that no fork evades.

use std::time::Duration;

use adl_runtime::{
    Command, Config, Defaults, EndReason, Error, ExitStatus, Limits, Sandbox, Scope, Stdio,
};

use crate::census;
use crate::harness::{Home, Need, OrdinaryUser, adl_command, needs, shell, stderr};

const LIMIT: Duration = Duration::from_millis(400);

/// A sandbox whose commands' CPU time is counted.
fn counting(home: &Home) -> Sandbox {
    let limits = Limits { accounting: true, ..Limits::default() };
    Sandbox::create(Config { limits, ..home.config() }).unwrap()
}

/// What it can't be more than, when it is noticed: 50 ms for each processor, and a machine with
/// much else to do may need far longer for that.
#[track_caller]
fn assert_used(status: ExitStatus, used: Duration) {
    assert_eq!(status.reason(), EndReason::CpuTimedOut, "{status}, {used:?}");
    assert!(used >= LIMIT && used < LIMIT + Duration::from_secs(5), "{used:?}");
}

#[test]
fn whatever_uses_it_up_the_whole_tree_ends() {
    if !needs(&[Need::Cgroups, Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = counting(&home);
    for (what, script) in [
        ("itself", "echo begun; while :; do :; done"),
        // Each has a little, and none has what the limit is.
        (
            "children one by one",
            "echo begun; while :; do (i=0; while [ $i -lt 300 ]; do i=$((i+1)); done); done",
        ),
        ("at once", "echo begun; for i in 1 2 3 4; do (while :; do :; done) & done; wait; exit 3"),
        ("in another session", "echo begun; setsid sh -c 'while :; do :; done' & sleep 1000"),
        (
            "not waited for",
            "echo begun; exec python3 -c '
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: sum(range(100000))
        os._exit(0)
'",
        ),
    ] {
        let mut command = sandbox.shell(script);
        command.cpu_time(LIMIT).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let handle = child.handle();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"begun\n", "{what}");
        assert_used(output.status, handle.stats().unwrap().cpu_time.unwrap());
        assert!(!output.status.success() && !output.status.survivors(), "{what}");
        // Nothing of it is left, and the next has all of its time.
        let mut left = census::tree(sandbox.init_pid());
        left.retain(|process| !process.is_zombie());
        assert_eq!(left.len(), 1, "{what}: {left:?}");
        let mut next = sandbox.shell("i=0; while [ $i -lt 1000 ]; do i=$((i+1)); done; echo done");
        assert_eq!(next.cpu_time(LIMIT).output().unwrap().stdout, b"done\n", "{what}");
    }
}

/// Runs a command to its end.
type Way = fn(&mut Command) -> ExitStatus;

#[test]
fn every_way_of_running_has_the_limit() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let sandbox = counting(&home);
    let ways: [(&str, Way); 6] = [
        ("status", |command| command.status().unwrap()),
        ("output", |command| command.output().unwrap().status),
        ("spawn", |command| command.spawn().unwrap().wait().unwrap()),
        ("background", |command| command.background().unwrap().wait().unwrap().status),
        ("terminal", |command| command.terminal(24, 80).output().unwrap().status),
        ("no one waits", |command| {
            let child = command.spawn().unwrap();
            let handle = child.handle();
            drop(child);
            handle.wait().unwrap()
        }),
    ];
    for (way, run) in ways {
        let mut command = sandbox.shell("while :; do :; done");
        let status = run(command.cpu_time(LIMIT));
        assert_eq!(status.reason(), EndReason::CpuTimedOut, "{way}: {status}");
    }
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
}

#[test]
fn time_that_passes_is_not_used() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let sandbox = counting(&home);
    let status = sandbox.shell("sleep 1; exit 3").cpu_time(LIMIT).status().unwrap();
    assert_eq!((status.reason(), status.code()), (EndReason::Exited, Some(3)));
    // Nor does it count what others use.
    let mut other = sandbox.shell("while :; do :; done");
    let mut other = other.spawn().unwrap();
    let status = sandbox.shell("sleep 1; exit 3").cpu_time(LIMIT).status().unwrap();
    assert_eq!((status.reason(), status.code()), (EndReason::Exited, Some(3)));
    other.signal(9, Scope::Tree).unwrap();
    other.wait().unwrap();
}

#[test]
fn one_that_ends_by_itself_with_more_is_told_of_all_the_same() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let sandbox = counting(&home);
    // Before anyone has looked at it: an exec alone takes longer than that.
    for _ in 0..20 {
        let status = sandbox.command("true").cpu_time(Duration::from_micros(1)).status().unwrap();
        assert_eq!(status.reason(), EndReason::CpuTimedOut, "{status}");
    }
    let most = sandbox.command("true").cpu_time(Duration::MAX).status().unwrap();
    assert!(most.success(), "{most}");
}

#[test]
fn the_defaults_of_a_sandbox_have_one() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let defaults = Defaults { cpu_time: Some(LIMIT), ..Defaults::default() };
    let sandbox = Sandbox::create(Config { defaults, ..home.config() }).unwrap();
    let spin = || sandbox.shell("while :; do :; done");
    for _ in 0..2 {
        assert_eq!(spin().output().unwrap().status.reason(), EndReason::CpuTimedOut);
        sandbox.reset().unwrap();
    }
    let mut lifted = spin();
    let lifted = lifted.cpu_time(Duration::MAX).timeout(LIMIT).output().unwrap();
    assert_eq!(lifted.status.reason(), EndReason::TimedOut);
}

#[test]
fn where_no_cgroup_counts_it_is_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut limited = sandbox.command("true");
    limited.cpu_time(LIMIT);
    for error in [
        limited.status().unwrap_err(),
        limited.output().unwrap_err(),
        limited.spawn().unwrap_err(),
        limited.background().unwrap_err(),
        limited.terminal(24, 80).output().unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains("CPU time"), "{error}");
    }
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
}

#[test]
fn adl_run_takes_it() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let mut adl = adl_command(&home.state());
    adl.args(["run", "--cpu-time", "400ms", "--", "sh", "-c", "echo begun; while :; do :; done"]);
    let output = adl.output().unwrap();
    assert_eq!(output.status.code(), Some(124), "{}", stderr(&output));
    assert_eq!(output.stdout, b"begun\n");
    assert!(stderr(&output).contains("CPU time than 400ms"), "{}", stderr(&output));
    // Who can't have a cgroup is told so, and nothing is run.
    let user = OrdinaryUser::new();
    let mut adl = user.command(user.adl());
    let output = adl.args(["run", "--cpu-time", "5s", "--", "echo", "run"]).output().unwrap();
    match output.status.code() {
        Some(0) => assert_eq!(output.stdout, b"run\n"),
        code => {
            assert_eq!((code, &output.stdout[..]), (Some(125), &b""[..]));
            assert!(stderr(&output).contains("not available"), "{}", stderr(&output));
        }
    }
}
