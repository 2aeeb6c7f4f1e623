//! Nothing is left behind, whoever ends, and however.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use adl_runtime::{Config, EndReason, Error, Sandbox, Stdio};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::census::{self, Process};
use crate::harness::{Home, Need, adl_command, at_most, needs, shell, within};
use crate::helper::{Helper, say};

/// How long after the death of their owner sandboxes may still be seen.
pub(crate) const GONE: Duration = Duration::from_secs(2);

#[test]
fn a_thousand_orphans_are_reaped_and_cost_init_nothing() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    // Double forks: the parent of each `true` is gone before it or soon after.
    let orphans = |count: u32| {
        shell(&sandbox, format!("for ((i = 0; i < {count}; i++)); do (true &); done"));
        let alone = || census::tree(sandbox.init_pid()).len() == 1;
        let left = || census::tree(sandbox.init_pid());
        assert!(within(Duration::from_secs(10), alone), "left: {:?}", left());
    };
    // What init needs once, it has then.
    orphans(1000);
    let before = census::resident(sandbox.init_pid());
    orphans(1000);
    let after = census::resident(sandbox.init_pid());
    // A page of code or of the stack may be needed for the first time. To lose 17 bytes an orphan
    // would show.
    assert!(after < before + 16, "init takes {after} KiB, before {before}");
    assert!(before < 1024, "init takes {before} KiB");
    assert_eq!(shell(&sandbox, "grep -l '^State:.Z' /proc/[0-9]*/status | wc -l"), "0\n");
}

#[test]
fn orphans_that_end_while_a_job_runs_are_no_zombies() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut job = sandbox.shell("for i in {1..50}; do (sleep 0.05 &); done; echo; exec sleep 1000");
    let mut job = job.stdout(Stdio::piped()).spawn().unwrap();
    job.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let tree = || census::tree(sandbox.init_pid());
    let only_job = || tree().len() == 2 && !tree().iter().any(Process::is_zombie);
    assert!(within(Duration::from_secs(10), only_job), "{:?}", tree());
    job.kill().unwrap();
}

#[test]
fn two_thousand_jobs_leave_no_descriptor_and_no_memory() {
    if !needs(&[]) {
        return;
    }
    // Alone in its process: the other tests open and close descriptors, too.
    let home = Home::new();
    Helper::start("count-descriptors", &home.state()).finish();
}

/// The helper of the test above.
pub(crate) fn count_descriptors(state: &Path) {
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let sandbox = Sandbox::create(config).unwrap();
    let own = i32::try_from(std::process::id()).unwrap();
    let of_init = || match nix::unistd::geteuid().is_root() {
        true => census::descriptors(sandbox.init_pid()),
        // No one else may look.
        false => Vec::new(),
    };
    let is_socket = |what: &Path| what.to_string_lossy().starts_with("socket:");
    let jobs = |count: u32| {
        for number in 0..count {
            match number % 4 {
                0 => assert!(sandbox.command("true").output().unwrap().status.success()),
                1 => assert!(sandbox.command("/nonexistent").output().is_err()),
                2 => drop(sandbox.command("true").stdout(Stdio::piped()).spawn().unwrap()),
                _ => assert_eq!(sandbox.command("false").status().unwrap().code(), Some(1)),
            }
        }
        // Of those that no one waits for, init learns in its own time.
        let channels = || of_init().iter().filter(|(_, what)| is_socket(what)).count();
        // One is that to the host.
        let alone = || census::tree(sandbox.init_pid()).len() == 1 && channels() <= 1;
        assert!(within(Duration::from_secs(10), alone), "init holds {:?}", of_init());
        let descriptors = (census::descriptors(own).len(), of_init().len());
        (descriptors, census::resident(sandbox.init_pid()))
    };
    let (descriptors, memory) = jobs(100);
    let (descriptors_after, memory_after) = jobs(2000);
    assert_eq!(descriptors_after, descriptors, "descriptors of the caller and of init");
    // A job takes 18 KiB of init while it starts, and now and then three do at once.
    assert!(memory_after <= memory + 64, "init takes {memory_after} KiB, before {memory}");
    sandbox.delete().unwrap();
    adl_runtime::finish_removals();
}

#[test]
fn sandboxes_that_are_deleted_or_dropped_leave_nothing() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    Helper::start("cycle", &home.state()).finish();
    assert_eq!(home.left(), [""; 0]);
}

/// The helper of the test above.
pub(crate) fn cycle(state: &Path) {
    let own = i32::try_from(std::process::id()).unwrap();
    let mut ranges = Vec::new();
    let mut cycles = |count: u32| {
        for number in 0..count {
            let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
            let sandbox = Sandbox::create(config).unwrap();
            ranges.extend(sandbox.id_range());
            let _job = sandbox.shell("sleep 1000 & sleep 1000").spawn().unwrap();
            shell(&sandbox, "mkdir -p /root/a/b; echo > /root/a/b/c; chmod 0 /root/a/b /root/a");
            match number % 3 {
                0 => sandbox.delete().unwrap(),
                1 => drop(sandbox),
                // A panic drops it, too.
                _ => {
                    let result = std::thread::spawn(move || {
                        let _sandbox = sandbox;
                        std::panic::resume_unwind(Box::new(()));
                    });
                    assert!(result.join().is_err());
                }
            }
            // At once: no process of it, not as a zombie either.
            let others: Vec<Process> =
                census::tree(own).into_iter().filter(|process| process.pid != own).collect();
            assert!(others.is_empty(), "{others:?}");
            for range in &ranges {
                assert_eq!(census::with_ids_in(*range), []);
            }
        }
        adl_runtime::finish_removals();
    };
    let mounts = census::mounts();
    cycles(6);
    let before = census::descriptors(own);
    cycles(24);
    assert_eq!(census::descriptors(own), before);
    assert_eq!(census::mounts(), mounts);
}

#[test]
fn no_mount_appears_on_the_host_while_sandboxes_live() {
    if !needs(&[]) {
        return;
    }
    let before = census::mounts();
    let home = Home::new();
    let sandboxes: Vec<_> = (0..3).map(|_| home.sandbox()).collect();
    shell(&sandboxes[0], "echo > /root/a");
    assert_eq!(census::mounts(), before);
    for process in census::processes() {
        // Nor in any other mount namespace than the sandboxes' own.
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", process.pid));
        assert!(!mounts.unwrap_or_default().contains(home.state().to_str().unwrap()));
    }
    // Control: theirs is another.
    if nix::unistd::geteuid().is_root() {
        let inside = format!("/proc/{}/mountinfo", sandboxes[0].init_pid());
        assert_ne!(std::fs::read_to_string(inside).unwrap(), before);
    }
}

#[test]
fn a_caller_that_is_killed_takes_all_its_sandboxes_with_it() {
    if !needs(&[]) {
        return;
    }
    let mounts = census::mounts();
    let home = Home::new();
    let mut helper = Helper::start("hold-sandboxes", &home.state());
    let mut processes = BTreeSet::new();
    let mut namespaces = BTreeSet::new();
    for _ in 0..20 {
        let init: i32 = helper.next().expect("20 sandboxes").parse().unwrap();
        let tree = census::tree(init);
        assert!(tree.len() >= 4, "init and three processes of jobs: {tree:?}");
        namespaces.extend(census::namespaces(init));
        processes.extend(tree);
    }
    let own = census::namespaces(helper.id());
    let namespaces: BTreeSet<_> = namespaces.difference(&own).cloned().collect();
    if nix::unistd::geteuid().is_root() {
        assert_eq!(namespaces.len(), 20 * 7, "seven namespaces of each");
    }
    assert!(processes.iter().all(Process::exists));

    let begin = Instant::now();
    helper.kill();
    let alive = || processes.iter().filter(|p| p.exists()).collect::<Vec<_>>();
    assert!(within(GONE, || alive().is_empty()), "after {GONE:?}: {:?}", alive());
    let kept = || census::all_namespaces().intersection(&namespaces).cloned().collect::<Vec<_>>();
    assert!(within(GONE.saturating_sub(begin.elapsed()), || kept().is_empty()), "{:?}", kept());
    assert_eq!(census::mounts(), mounts);

    // What has a name on disk is left to the collector, which takes all of it, and only once.
    assert_eq!(home.left().len(), 20);
    let mut collected = adl_runtime::collect_garbage(Some(&home.state())).unwrap();
    collected.sort();
    let mut expected: Vec<String> = (0..20).map(|number| format!("held-{number}")).collect();
    expected.sort();
    assert_eq!(collected, expected);
    assert_eq!(home.left(), [""; 0]);
    assert_eq!(adl_runtime::collect_garbage(Some(&home.state())).unwrap(), [""; 0]);
}

/// The helper of the test above: makes sandboxes with jobs, tells of them, and waits for its end.
pub(crate) fn hold_sandboxes(state: &Path) {
    let mut held = Vec::new();
    for number in 0..20 {
        let sandbox = Sandbox::create(Config {
            name: Some(format!("held-{number}")),
            state_directory: Some(state.to_owned()),
            ..Config::default()
        });
        let sandbox = sandbox.unwrap();
        shell(&sandbox, "mkdir /root/a; echo > /root/a/b");
        let mut script = sandbox.shell("trap '' HUP INT TERM; sleep 1000 & echo; sleep 1000");
        let mut job = script.stdout(Stdio::piped()).spawn().unwrap();
        job.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let other = sandbox.command("sleep").arg("1000").spawn().unwrap();
        say(sandbox.init_pid());
        held.push((sandbox.init_pid(), job, other));
        std::mem::forget(sandbox);
    }
    // Until it is killed, or the test is gone.
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn the_collector_leaves_living_sandboxes_alone() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "echo kept > /root/file");
    assert_eq!(adl_runtime::collect_garbage(Some(&home.state())).unwrap(), [""; 0]);
    // Nor does that of another process.
    let output = adl_command(&home.state()).arg("gc").output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert_eq!(shell(&sandbox, "cat /root/file"), "kept\n");
}

#[test]
fn the_thread_that_made_a_sandbox_may_end_before_it() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = std::thread::scope(|scope| scope.spawn(|| home.sandbox()).join().unwrap());
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
}

#[test]
fn the_death_of_init_is_told_at_once_to_all_who_wait() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let neighbour = home.sandbox();
    let members = std::thread::scope(|scope| {
        let (tell, told) = channel();
        let mut jobs = Vec::new();
        for _ in 0..4 {
            jobs.push(sandbox.command("sleep").arg("1000").stdout(Stdio::piped()).spawn().unwrap());
        }
        for (number, mut job) in jobs.into_iter().enumerate() {
            let tell = tell.clone();
            scope.spawn(move || {
                let end = if number % 2 == 0 {
                    job.wait()
                } else {
                    job.wait_with_output().map(|output| output.status)
                };
                tell.send(end.unwrap()).unwrap();
            });
        }
        let members = census::tree(sandbox.init_pid());
        kill(Pid::from_raw(sandbox.init_pid()), Signal::SIGKILL).unwrap();
        let end = Instant::now() + at_most(Duration::from_secs(1));
        for _ in 0..4 {
            let left = end.saturating_duration_since(Instant::now());
            let told = told.recv_timeout(left).expect("told within a second");
            assert_eq!(told.reason(), EndReason::SandboxDied);
            assert!(!told.success());
        }
        members
    });
    assert!(within(GONE, || members.iter().skip(1).all(|p| !p.exists())), "{members:?}");
    for _ in 0..2 {
        let output = sandbox.command("true").output();
        assert!(matches!(output, Err(Error::SandboxDied)), "{output:?}");
        let child = sandbox.command("true").spawn();
        assert!(matches!(child, Err(Error::SandboxDied)), "{child:?}");
    }
    assert_eq!(shell(&neighbour, "echo alive"), "alive\n");
    // And it can be deleted as any other.
    sandbox.delete().unwrap();
    assert!(!members[0].exists(), "init is a zombie");
}

#[test]
fn deleting_a_sandbox_ends_its_jobs() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut job = sandbox.command("sleep").arg("1000").spawn().unwrap();
    sandbox.delete().unwrap();
    assert_eq!(job.wait().unwrap().reason(), EndReason::SandboxDied);
    job.kill().unwrap();
}

#[test]
fn what_a_guest_leaves_on_disk_is_removed_whatever_it_is() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let make = "import os
os.chdir('/root')
for i in range(3000):
    os.mkdir('d'); os.chdir('d')
os.chdir('/tmp')
os.mkdir('removing-0'); os.mkdir('removing-0/removing-1'); os.mkdir('...'); os.mkdir('removing-7')
open('removing-0/removing-1/x', 'w'); open(b'removing-7/\\xff\\n', 'w'); os.mkfifo('fifo')
os.symlink('/', 'link'); os.symlink('/etc', 'removing-7/etc')
os.mkdir('shut'); open('shut/file', 'w'); os.chmod('shut', 0)
print('made')";
    let output = sandbox.command("python3").args(["-c", make]).output().unwrap();
    assert_eq!(output.stdout, b"made\n", "{}", String::from_utf8_lossy(&output.stderr));
    sandbox.delete().unwrap();
    home.assert_settled();
    // What its links led to is still there.
    assert!(Path::new("/etc/passwd").exists());
}
