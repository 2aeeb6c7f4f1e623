//! A reset that takes a spare keeps what a reset promises.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use adl_runtime::{Access, Config, EndReason, Error, Limits, Mount, Sandbox, Stdio, Upper};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::census::{self, Process};
use crate::harness::{Home, Need, needs, shell, within};
use crate::helper::{Helper, say};
use crate::lifetime::GONE;
use crate::reset::{FIND, PLANT, python, uppers};

/// How long a spare may take to be made.
const READY: Duration = Duration::from_secs(10);

fn config(state: &Path) -> Config {
    Config { state_directory: Some(state.to_owned()), spare: true, ..Config::default() }
}

#[track_caller]
fn until_ready(sandbox: &Sandbox) {
    assert!(within(READY, || sandbox.has_spare()), "no spare");
}

/// All processes of a sandbox and of its spare: those with its ids, or of this process.
fn all(sandbox: &Sandbox) -> Vec<Process> {
    if let Some(range) = sandbox.id_range() {
        return census::with_ids_in(range);
    }
    inits()
}

/// All that descends from this process.
fn inits() -> Vec<Process> {
    let own = i32::try_from(std::process::id()).unwrap();
    census::tree(own).into_iter().filter(|process| process.pid != own).collect()
}

/// Resets a sandbox by its spare, and makes sure that it was that.
#[track_caller]
fn reset_by_spare(sandbox: &Sandbox) {
    until_ready(sandbox);
    let before = all(sandbox);
    sandbox.reset().unwrap();
    assert!(before.iter().any(|init| init.pid == sandbox.init_pid()), "it was made now");
}

#[test]
fn nothing_that_was_left_is_found_after_a_reset_by_a_spare() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    for upper in uppers() {
        let sandbox = Sandbox::create(Config { upper, ..config(&home.state()) }).unwrap();
        for _ in 0..3 {
            assert_eq!(python(&sandbox, FIND), "\n");
            assert_eq!(python(&sandbox, PLANT), "planted\n");
            assert!(python(&sandbox, FIND).lines().count() >= 20, "the control");
            let members = census::tree(sandbox.init_pid());
            reset_by_spare(&sandbox);
            assert!(members.iter().all(|process| !process.exists()), "{members:?}");
        }
        assert_eq!(python(&sandbox, FIND), "\n");
    }
}

#[test]
fn who_it_is_stays_and_what_runs_is_told() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let named = Config { name: Some("kept".into()), ..config(&home.state()) };
    let sandbox = Sandbox::create(named).unwrap();
    let ids = sandbox.id_range();
    for _ in 0..3 {
        let job = sandbox.command("sleep").arg("1000").background().unwrap();
        let mut reader = sandbox.shell("echo; exec sleep 1000");
        let mut reader = reader.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = reader.stdout.take().unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        let pidfd = sandbox.pidfd().unwrap();
        reset_by_spare(&sandbox);
        assert_eq!(job.wait().unwrap().status.reason(), EndReason::SandboxDied);
        assert_eq!(reader.wait().unwrap().reason(), EndReason::SandboxDied);
        assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
        assert_eq!(sandbox.jobs().len(), 0);
        let mut ended = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&pidfd),
            nix::poll::PollFlags::POLLIN,
        )];
        assert_eq!(nix::poll::poll(&mut ended, 10_000_u16).unwrap(), 1);
        assert_eq!((sandbox.name(), sandbox.id_range()), ("kept", ids));
        assert_eq!(shell(&sandbox, "uname -n; hostname"), "kept\nkept\n");
        let taken = Sandbox::create(Config { name: Some("kept".into()), ..home.config() });
        assert!(matches!(taken, Err(Error::NameInUse { .. })), "{taken:?}");
        assert_eq!(adl_runtime::collect_garbage(Some(&home.state())).unwrap(), [""; 0]);
    }
    sandbox.delete().unwrap();
    if sandbox.id_range().is_some() {
        assert_eq!(all(&sandbox), []);
    }
    Sandbox::create(Config { name: Some("kept".into()), ..home.config() }).unwrap();
}

#[test]
fn nothing_of_the_old_one_acts_after_a_reset_whatever_it_calls_itself() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    // It waits for no command, and has the name of what init starts itself.
    const WRITER: &str = "
import os
open('/proc/self/comm', 'w').write('adl-drain')
file = os.open('/shared/file', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(file, b'x')
print('begun', flush=True)
while True: os.write(file, b'x')";
    let home = Home::new();
    let shared = home.path("shared");
    std::fs::create_dir(&shared).unwrap();
    let mounts = vec![Mount::volume(&shared, "/shared", Access::ReadWrite)];
    let sandbox = Sandbox::create(Config { mounts, ..config(&home.state()) }).unwrap();
    for _ in 0..10 {
        shell(&sandbox, "rm -f /shared/file");
        let mut writer = sandbox.command("python3");
        writer.args(["-c", &format!("import os\nif os.fork(): os._exit(0)\nos.setsid(){WRITER}")]);
        let mut writer = writer.stdout(Stdio::piped()).spawn().unwrap();
        writer.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        until_ready(&sandbox);
        let guests = census::tree(sandbox.init_pid()).split_off(1);
        assert!(!guests.is_empty());
        sandbox.reset().unwrap();
        assert!(guests.iter().all(|process| !process.exists()), "{guests:?}");
        let size = || std::fs::metadata(shared.join("file")).unwrap().len();
        let after = size();
        assert!(after > 0, "the control");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(size(), after);
    }
}

#[test]
fn resets_that_no_spare_is_ready_for_succeed() {
    if needs(&[]) {
        let home = Home::new();
        Helper::start("reset-faster-than-spares", &home.state()).finish();
        assert_eq!(home.left(), [""; 0]);
    }
}

/// The helper of the test above.
pub(crate) fn reset_faster_than_spares(state: &Path) {
    let own = i32::try_from(std::process::id()).unwrap();
    let resets = |count: u32| {
        let sandbox = Sandbox::create(config(state)).unwrap();
        for _ in 0..count {
            let _job = sandbox.shell("echo > /tmp/file; sleep 1000").spawn().unwrap();
            sandbox.reset().unwrap();
            assert_eq!(shell(&sandbox, "ls /tmp"), "");
            // One that is used, one that is made or ends, and what clones that.
            let own = own.to_string();
            let is_child = |init: &Process| init.status("PPid").as_ref() == Some(&own);
            assert!(inits().iter().filter(|init| is_child(init)).count() <= 3, "{:?}", inits());
        }
        // Also while a spare is being made.
        sandbox.delete().unwrap();
        assert_eq!(inits(), []);
        adl_runtime::finish_removals();
    };
    resets(10);
    let now = || (census::descriptors(own).len(), census::mounts());
    let before = now();
    // A thread that began with the process may be about to end.
    let settled = || within(READY, || now().0 <= before.0 && now().1 == before.1);
    resets(200);
    assert!(settled(), "{:?}, before {before:?}", now());
    for _ in 0..50 {
        drop(Sandbox::create(config(state)).unwrap());
        assert_eq!(inits(), []);
    }
    adl_runtime::finish_removals();
    assert!(settled(), "{:?}, before {before:?}", now());
}

#[test]
fn a_spare_that_has_died_is_not_taken() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = Sandbox::create(config(&home.state())).unwrap();
    until_ready(&sandbox);
    let spare = all(&sandbox).into_iter().find(|init| init.pid != sandbox.init_pid()).unwrap();
    kill(Pid::from_raw(spare.pid), Signal::SIGKILL).unwrap();
    let is_dead = || census::status(spare.pid, "State").is_none_or(|s| s.starts_with('Z'));
    assert!(within(GONE, is_dead));
    shell(&sandbox, "echo > /tmp/file");
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, "ls /tmp"), "");
    // And another was made in its place.
    reset_by_spare(&sandbox);
    // A sandbox that has died comes to life by its spare.
    until_ready(&sandbox);
    kill(Pid::from_raw(sandbox.init_pid()), Signal::SIGKILL).unwrap();
    assert!(within(GONE, || !sandbox.is_alive()));
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
}

#[test]
fn limits_that_were_set_hold_after_a_reset_by_a_spare() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let limits = |pids| Limits { pids: Some(pids), ..Limits::default() };
    let config = Config { limits: limits(64), ..config(&home.state()) };
    let sandbox = Sandbox::create(config).unwrap();
    until_ready(&sandbox);
    sandbox.set_limits(limits(8)).unwrap();
    reset_by_spare(&sandbox);
    let many = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done";
    assert!(!sandbox.shell(many).status().unwrap().success());
    // The control.
    sandbox.set_limits(limits(64)).unwrap();
    reset_by_spare(&sandbox);
    assert!(sandbox.shell(many).status().unwrap().success());
    sandbox.stats().unwrap();
}

#[test]
fn a_snapshot_is_as_without_a_spare() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = Sandbox::create(config(&home.state())).unwrap();
    shell(&sandbox, "echo kept > /root/file");
    until_ready(&sandbox);
    let snapshot = sandbox.snapshot().unwrap();
    assert_eq!(shell(&sandbox, "cat /root/file"), "kept\n");
    let forked = snapshot.config();
    assert!(!forked.spare);
    let fork = Sandbox::create(forked).unwrap();
    assert_eq!(shell(&fork, "cat /root/file"), "kept\n");
    assert!(!fork.has_spare());
    // A reset takes it back to its image.
    reset_by_spare(&sandbox);
    assert_eq!(shell(&sandbox, "ls /root"), "");
}

#[test]
fn a_caller_that_is_killed_takes_spares_with_it() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for round in 0..10 {
        let mut helper = Helper::start("reset-by-spares", &home.state());
        // Somewhere in the middle, another place each time.
        for _ in 0..=round {
            helper.next().unwrap();
        }
        let members = helper.stop_and_kill();
        let gone = || members.iter().all(|process| !process.exists());
        assert!(within(GONE, gone), "{members:?}");
        adl_runtime::collect_garbage(Some(&home.state())).unwrap();
        assert_eq!(home.left(), [""; 0]);
    }
}

/// The helper of the test above.
pub(crate) fn reset_by_spares(state: &Path) {
    let config = Config { upper: Upper::Disk { size: None }, ..config(state) };
    let sandbox = Sandbox::create(config).unwrap();
    loop {
        until_ready(&sandbox);
        say("resetting");
        sandbox.reset().unwrap();
    }
}
