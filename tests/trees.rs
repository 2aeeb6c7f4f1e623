//! A signal to a tree comes to all of it, once, and no process outruns the end of a tree.

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use adl_runtime::{
    Capabilities, Capability, Child, Config, EndReason, Limits, Sandbox, Scope, Stdio,
};

use crate::census;
use crate::harness::{Home, Need, at_most, needs, shell, within};
use crate::jobs::{SOON, alone};

/// Families of processes that each live for as long as it takes to make the next: what is looked
/// for has ended when it is found.
const CHAINS: &str = "#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
int main(int count, char **arguments) {
    write(1, \"up\", 2);
    for (int left = atoi(arguments[1]); left > 0; left--)
        if (!fork()) {
            setsid();
            signal(SIGCHLD, SIG_IGN);
            for (;;) if (fork() > 0) _exit(0);
        }
    for (;;) pause();
}";

#[test]
fn a_timeout_ends_families_that_outrun_it_and_leaves_others_as_they_were() {
    if !needs(&[Need::Program("gcc")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    let compile = sandbox.shell("gcc -O1 -o /tmp/chains -x c -").input(CHAINS).output().unwrap();
    assert!(compile.status.success(), "{}", String::from_utf8_lossy(&compile.stderr));
    // Of another job, one that runs, and one that stands still and is to go on doing so.
    let mut other = sandbox.shell("sleep 1000 & kill -STOP $!; echo $!; wait $!");
    let mut other = other.stdout(Stdio::piped()).spawn().unwrap();
    let mut stopped = String::new();
    BufReader::new(other.stdout.as_mut().unwrap()).read_line(&mut stopped).unwrap();
    let stopped = stopped.trim();
    let state = || shell(&sandbox, format!("grep ^State /proc/{stopped}/status"));
    // The signal is on its way when the line is written.
    assert!(within(SOON, || state().contains('T')), "{}", state());

    let timeout = Duration::from_secs(2);
    let output = sandbox.command("/tmp/chains").arg("40").timeout(timeout).output().unwrap();
    assert_eq!(output.status.reason(), EndReason::TimedOut);
    assert!(!output.status.survivors());
    assert_eq!(output.stdout, b"up");
    let names = |sandbox: &Sandbox| -> Vec<String> {
        census::tree(sandbox.init_pid())
            .iter()
            .filter(|process| !process.is_zombie())
            .filter_map(|p| std::fs::read_to_string(format!("/proc/{}/comm", p.pid)).ok())
            .collect()
    };
    assert!(!names(&sandbox).contains(&"chains\n".to_owned()), "{:?}", names(&sandbox));
    let begin = Instant::now();
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
    assert!(begin.elapsed() < at_most(Duration::from_secs(2)), "{:?}", begin.elapsed());

    assert!(other.try_wait().unwrap().is_none());
    assert!(state().contains('T'), "{}", state());
    // And that which waits for it runs on.
    shell(&sandbox, format!("kill -CONT {stopped} && kill {stopped}"));
    assert_eq!(other.wait().unwrap().code(), Some(128 + 15));
}

/// Starts a script that says `ready` and reads a line when it is told what to do.
fn start(sandbox: &Sandbox, script: &str) -> (Child, BufReader<impl Read>) {
    let mut command = sandbox.command("bash");
    let mut child =
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, stdout)
}

#[test]
fn signals_to_a_tree_all_come_and_each_once() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    // Many others that are signalled all the time, so that a pass is under way whenever a signal is
    // asked for.
    let crowd = "for ((i = 0; i < 700; i++)); do sleep 1000 & done; echo ready; wait";
    let (mut crowd, _) = start(&sandbox, crowd);
    let (handle, over) = (crowd.handle(), Arc::new(AtomicBool::new(false)));
    let is_over = Arc::clone(&over);
    let crowding = std::thread::spawn(move || {
        while !is_over.load(Ordering::Relaxed) {
            handle.signal(18, Scope::Tree).unwrap();
            std::thread::yield_now();
        }
    });
    for _ in 0..10 {
        let script = "trap 'echo TERM' TERM; trap 'echo CONT' CONT; trap 'echo USR1' USR1
            trap 'echo last' USR2; echo ready; while ! read -t 0.01 line; do :; done; echo end";
        let (mut child, mut stdout) = start(&sandbox, script);
        for signal in [10, 15, 18] {
            child.signal(signal, Scope::Tree).unwrap();
        }
        let mut seen = Vec::new();
        let mut line = String::new();
        while seen.len() < 3 {
            line.clear();
            stdout.read_line(&mut line).unwrap();
            seen.push(line.trim().to_owned());
        }
        seen.sort();
        assert_eq!(seen, ["CONT", "TERM", "USR1"]);
        // One more pass: whatever would come again comes before this.
        child.signal(12, Scope::Tree).unwrap();
        line.clear();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "last\n", "a signal came twice");
        child.stdin.as_mut().unwrap().write_all(b"end\n").unwrap();
        line.clear();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "end\n");
        assert!(child.wait().unwrap().success());
    }
    over.store(true, Ordering::Relaxed);
    crowding.join().unwrap();
    crowd.kill().unwrap();
}

#[test]
fn every_signal_can_be_sent() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    for signal in [1, 15, 34, 40, 64] {
        let script =
            format!("trap 'exit 7' {signal}; echo ready; while ! read -t 0.01; do :; done");
        let (mut child, _stdout) = start(&sandbox, &script);
        child.signal(signal, Scope::Process).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(7), "{signal}");
    }
}

#[test]
fn what_ended_by_itself_was_not_ended_by_its_time() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let (mut itself, mut timed_out) = (0, 0);
    for run in 0..200 {
        // Around the time that it takes.
        let timeout = Duration::from_micros(20_000 + run * 30);
        let mut command = sandbox.shell("sleep 0.02; exit 3");
        let status = command.timeout(timeout).status().unwrap();
        match (status.code(), status.reason()) {
            (Some(3), EndReason::Exited) => itself += 1,
            (None, EndReason::TimedOut) => timed_out += 1,
            // The sleep alone was met by the end: the shell goes on for a moment.
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(itself + timed_out, 200);
}

/// A process of its own session, without a parent in its job, that has taken namespaces of these
/// flags: what became of that is told before the job's own process waits.
const UNSHARES: &str = r#"
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        refused = libc.unshare(int(sys.argv[1], 16))
        # What comes after has it from birth.
        if os.fork() == 0:
            os.write(write, b'refused' if refused else b'taken')
            os.dup2(os.open('/dev/null', os.O_RDWR), 1)
            time.sleep(1000)
        time.sleep(1000)
    os._exit(0)
print(os.read(read, 10).decode(), flush=True)
time.sleep(1000)
"#;

/// What such a one has told, and how many processes there are after the end of its tree.
fn after_the_end_of_a_tree(sandbox: &Sandbox, flags: &str) -> (String, usize) {
    let mut command = sandbox.command("python3");
    let mut child = command.args(["-c", UNSHARES, flags]).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut told).unwrap();
    child.signal(9, Scope::Tree).unwrap();
    let status = child.wait().unwrap();
    assert!(!status.survivors(), "{status}");
    let tree = census::tree(sandbox.init_pid());
    (told, tree.iter().filter(|process| !process.is_zombie()).count() - 1)
}

#[test]
fn no_namespace_takes_a_process_out_of_its_tree() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    const CGROUP: &str = "0x2000000";
    const UTS: &str = "0x4000000";
    let home = Home::new();
    let sandbox = home.sandbox();
    for flags in [CGROUP, UTS] {
        assert_eq!(after_the_end_of_a_tree(&sandbox, flags), ("refused\n".to_owned(), 0));
    }
    // With the right to one, a namespace of cgroups takes nothing off.
    let capabilities = Capabilities::default().with(Capability::SysAdmin);
    let weak = Sandbox::create(Config { capabilities, ..home.config() }).unwrap();
    assert_eq!(after_the_end_of_a_tree(&weak, CGROUP), ("taken\n".to_owned(), 0));
    // The control: with that right, the mark itself can be taken off. Two have it off then.
    assert_eq!(after_the_end_of_a_tree(&weak, UTS), ("taken\n".to_owned(), 2));
    weak.kill_all().unwrap();
    assert_eq!(census::tree(weak.init_pid()).len(), 1);
    if !needs(&[Need::Cgroups]) {
        return;
    }
    // A job with limits has a cgroup namespace that others have not.
    let limits = Limits { memory: Some(200 << 20), ..Limits::default() };
    let limited = Sandbox::create(Config { limits, ..home.config() }).unwrap();
    assert_eq!(after_the_end_of_a_tree(&limited, CGROUP), ("refused\n".to_owned(), 0));
}
