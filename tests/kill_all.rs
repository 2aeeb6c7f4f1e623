//! All processes of a sandbox can be ended at once, whoever waits for them, and it lives on.

use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use adl_runtime::{EndReason, Error, IfRunning, SnapshotOptions, Stdio};

use crate::census;
use crate::harness::{Home, Need, at_most, needs, shell};
use crate::jobs::{SOON, alone};

#[test]
fn all_that_runs_ends_and_the_sandbox_lives_on() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = Arc::new(home.sandbox());
    // Twice for nothing.
    sandbox.kill_all().unwrap();
    shell(&sandbox, "echo kept > /root/file; (setsid sleep 1000 &) ; sleep 1000 & sleep 1000 &");
    let job = sandbox.shell("echo by the job; sleep 1000").background().unwrap();
    let mut child = sandbox.shell("echo up; sleep 1000").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let waits = {
        let sandbox = Arc::clone(&sandbox);
        let (up, is_up) = std::sync::mpsc::channel();
        let waits = std::thread::spawn(move || {
            let mut command = sandbox.shell("echo before; sleep 1000");
            up.send(()).unwrap();
            command.output().unwrap()
        });
        is_up.recv().unwrap();
        waits
    };
    // It may begin after the end of the others.
    let begin = Instant::now();
    while !waits.is_finished() {
        sandbox.kill_all().unwrap();
        assert!(begin.elapsed() < at_most(SOON));
    }
    let output = waits.join().unwrap();
    assert_eq!((output.status.reason(), output.status.signal()), (EndReason::Killed, Some(9)));
    assert_eq!(child.wait().unwrap().reason(), EndReason::Killed);
    assert_eq!(job.wait().unwrap().status.reason(), EndReason::Killed);
    assert_eq!(census::tree(sandbox.init_pid()).len(), 1, "{:?}", census::tree(sandbox.init_pid()));
    assert_eq!(shell(&sandbox, "cat /root/file"), "kept\n");
}

#[test]
fn no_fork_bomb_outruns_it() {
    if !needs(&[Need::Program("gcc")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    let bomb = "#include <signal.h>
#include <unistd.h>
int main(void) {
    signal(SIGCHLD, SIG_IGN);
    write(1, \"up\\n\", 3);
    for (int i = 0; i < 60; i++)
        if (!fork()) { setsid(); for (;;) if (fork() > 0) _exit(0); }
    for (;;) pause();
}";
    let compiled = sandbox.shell("gcc -O1 -o /tmp/bomb -x c -").input(bomb).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    for _ in 0..5 {
        let mut child = sandbox.command("/tmp/bomb").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        sandbox.kill_all().unwrap();
        assert_eq!(census::tree(sandbox.init_pid()).len(), 1);
        assert_eq!(child.wait().unwrap().reason(), EndReason::Killed);
    }
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
}

#[test]
fn each_of_several_at_once_returns_when_all_have_ended() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    for _ in 0..10 {
        shell(&sandbox, "i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i + 1)); done");
        let left = || {
            sandbox.kill_all().unwrap();
            census::tree(sandbox.init_pid()).len()
        };
        std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(left));
            assert_eq!(threads.map(|thread| thread.join().unwrap()), [1; 4]);
        });
    }
}

#[test]
fn beside_whatever_others_do_it_comes_to_an_end() {
    if !needs(&[]) {
        return;
    }
    let home = Home::of_a_test_that_takes(Duration::from_secs(120));
    let sandbox = Arc::new(home.sandbox());
    let over = Arc::new(AtomicBool::new(false));
    let beside = |work: fn(&adl_runtime::Sandbox)| {
        let (sandbox, over) = (Arc::clone(&sandbox), Arc::clone(&over));
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                work(&sandbox);
            }
        })
    };
    let threads = [
        beside(|sandbox| match sandbox.shell("sleep 0.01 & true").status() {
            Ok(status) => {
                let reason = status.reason();
                let ends = [EndReason::Exited, EndReason::Killed, EndReason::SandboxDied];
                assert!(ends.contains(&reason), "{status}");
            }
            // A reset came between its beginning and what was asked of init.
            Err(Error::SandboxDied) => {}
            Err(error) => panic!("{error:?}"),
        }),
        beside(|sandbox| match sandbox.command("sleep").arg("1000").background() {
            Ok(_) | Err(Error::SandboxDied) => {}
            Err(error) => panic!("{error:?}"),
        }),
        beside(|sandbox| sandbox.reset().unwrap()),
        beside(|sandbox| {
            let how = SnapshotOptions { name: None, running: IfRunning::End };
            sandbox.snapshot_with(&how).unwrap();
        }),
    ];
    // Each has a deadline of its own. Of one reset after the other there may be no end before that.
    for _ in 0..10 {
        match sandbox.kill_all() {
            Ok(()) => {}
            Err(Error::TimedOut { what, .. }) if what.starts_with("another thread") => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    over.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    sandbox.kill_all().unwrap();
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
    sandbox.delete().unwrap();
    assert!(matches!(sandbox.kill_all(), Err(Error::Deleted)));
}
