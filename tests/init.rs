//! PID 1 of a sandbox can be neither read, nor steered, nor ended from inside.
//!
//! Each attempt is made from inside, and beside it stands a control: the same attempt where it
//! must succeed, or its failure would prove nothing.

use std::fs;
use std::time::{Duration, Instant};

use adl_runtime::{Config, Sandbox, Scope, Seccomp, Stdio};

use crate::census;
use crate::harness::{Home, Need, at_most, needs, shell, within};
use crate::lifetime::GONE;

/// Asks for an answer as any caller would: init is alive and does its work.
#[track_caller]
fn assert_answers(sandbox: &Sandbox) {
    let begin = Instant::now();
    assert_eq!(shell(sandbox, "echo alive"), "alive\n");
    assert!(
        begin.elapsed() < at_most(Duration::from_secs(2)),
        "answered after {:?}",
        begin.elapsed()
    );
}

/// What `/proc` has of a process that its owner alone may read.
const PRIVATE_FILES: [&str; 6] = ["environ", "maps", "mem", "io", "auxv", "pagemap"];
const PRIVATE_LINKS: [&str; 8] =
    ["exe", "root", "cwd", "ns/mnt", "ns/pid", "ns/user", "ns/net", "fd/0"];

#[test]
fn nothing_of_init_can_be_read_through_proc() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let of_root = nix::unistd::geteuid().is_root();
    let users = if of_root { &[0, 1000, 65_534][..] } else { &[0] };
    let attempt = |target: &str, uid: u32| {
        let files = PRIVATE_FILES.map(|name| match name {
            // Its beginning is mapped in no process.
            "mem" => format!("(: < /proc/{target}/mem) && echo mem"),
            name => format!("head -c 8 /proc/{target}/{name} > /dev/null && echo {name}"),
        });
        let links = PRIVATE_LINKS.map(|l| format!("readlink /proc/{target}/{l} && echo {l}"));
        let others = [
            format!("readlink /proc/{target}/fd/* | grep . && echo fd"),
            format!("ls /proc/{target}/map_files/* && echo map_files"),
            format!("ls /proc/{target}/root/ && echo through root"),
            format!("(cd /proc/{target}/cwd) && echo through cwd"),
            format!("(echo -n x > /proc/{target}/comm) && echo comm"),
        ];
        let mut all = [&files[..], &links[..], &others[..]].concat();
        if of_root {
            // Where root inside has the one id that init has too, it can count init's
            // descriptors.
            all.push(format!("ls /proc/{target}/fd/ && echo numbers of fd"));
        }
        let script = all.join("; ");
        let output = sandbox.shell(script).uid(uid).gid(uid).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for uid in users {
        assert_eq!(attempt("1", *uid), "", "uid {uid}");
        // Control.
        let own = attempt("self", *uid);
        let got = |name: &&str| own.lines().any(|line| line == *name);
        for name in PRIVATE_FILES.iter().chain(&PRIVATE_LINKS).chain(&["fd", "through root"]) {
            assert!(got(name), "control: {name} of the job itself as {uid}: {own}");
        }
    }
}

#[test]
fn init_cannot_be_traced() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let seize = "import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
child = os.fork()
if child == 0:
    import time; time.sleep(1000)
for pid in [1, child]:
    print(pid == 1, libc.ptrace(0x4206, pid, 0, 0) == 0)
os.kill(child, 9)";
    // Whatever the filter says: it must hold by init's own rights.
    let config = Config { seccomp: Seccomp::Unconfined, ..home.config() };
    let sandbox = Sandbox::create(config).unwrap();
    let output = sandbox.command("python3").args(["-c", seize]).output().unwrap();
    assert_eq!(output.stdout, b"True False\nFalse True\n", "{output:?}");
    assert_answers(&sandbox);
}

#[test]
fn a_job_that_has_made_init_its_tracer_goes_on_and_its_end_is_told() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let script = "import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(0, 0, 0, 0) == 0, ctypes.get_errno()
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
os.kill(os.getpid(), signal.SIGUSR1)
assert seen == [1]
assert libc.ptrace(0, 0, 0, 0) == 0, ctypes.get_errno()
os.execv('/bin/sh', ['sh', '-c', 'kill -STOP $$; exit 7'])";
    for seccomp in [Seccomp::Default, Seccomp::Unconfined] {
        let sandbox = Sandbox::create(Config { seccomp, ..home.config() }).unwrap();
        let mut command = sandbox.command("python3");
        let mut child = command.args(["-c", script]).stderr(Stdio::piped()).spawn().unwrap();
        // It stands at the signal that it has sent itself, which is no end, and goes on by another.
        let stands = || {
            let stopped = |process: &census::Process| process.status("State");
            let all = census::tree(sandbox.init_pid());
            all.iter().filter_map(stopped).any(|state| state.starts_with('T'))
        };
        assert!(within(GONE, stands), "{:?}", child.wait_with_output());
        assert!(child.try_wait().unwrap().is_none());
        child.signal(18, Scope::Process).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(7));
        assert_answers(&sandbox);
    }
}

#[test]
fn init_holds_no_descriptor_of_the_callers() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    // Inheritable ones, as a careless caller has them.
    let file = home.path("file");
    fs::write(&file, "").unwrap();
    let open = || {
        let mode = nix::sys::stat::Mode::empty();
        nix::fcntl::open(&file, nix::fcntl::OFlag::O_RDONLY, mode).unwrap()
    };
    let held: Vec<_> = (0..100).map(|_| open()).collect();
    let sandbox = home.sandbox();
    let of_init = census::descriptors(sandbox.init_pid());
    assert!(of_init.len() < 10, "{of_init:?}");
    assert!(!of_init.iter().any(|(_, target)| *target == file), "{of_init:?}");
    assert!(of_init.iter().all(|(_, target)| !target.to_string_lossy().contains("adl-test")));
    drop(held);
}

#[test]
fn init_survives_signals_that_no_process_should() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let neighbour = home.sandbox();
    for signal in ["KILL", "STOP", "ABRT", "SEGV", "TRAP", "HUP"] {
        sandbox.shell(format!("kill -{signal} 1")).status().unwrap();
        assert_answers(&sandbox);
    }
    // To all processes but init; the control is the one that it ends.
    let mut victim = sandbox.command("sleep").arg("1000").spawn().unwrap();
    sandbox.shell("kill -KILL -1").status().unwrap();
    assert_eq!(victim.wait().unwrap().signal(), Some(9));
    sandbox.shell("kill -STOP -1").status().unwrap();
    assert_answers(&sandbox);
    assert_answers(&neighbour);
}

#[test]
fn init_survives_a_storm_of_signals() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let storm = "for i in {1..7000}; do kill -TERM 1; kill -USR1 1; kill -CHLD 1; done";
    let mut job = sandbox.shell(storm).spawn().unwrap();
    while job.try_wait().unwrap().is_none() {
        assert_answers(&sandbox);
    }
    assert!(job.wait().unwrap().success());
    assert_answers(&sandbox);
}

#[test]
fn the_limits_of_init_cannot_be_changed() {
    if !needs(&[Need::Program("prlimit")]) {
        return;
    }
    let root = nix::unistd::geteuid().is_root();
    let home = Home::new();
    let unconfined = Config { seccomp: Seccomp::Unconfined, ..home.config() };
    let mut sandboxes = vec![home.sandbox()];
    if root {
        // There, init's ids protect it even without a filter.
        sandboxes.push(Sandbox::create(unconfined.clone()).unwrap());
    }
    for sandbox in sandboxes {
        let limits = || fs::read_to_string(format!("/proc/{}/limits", sandbox.init_pid())).unwrap();
        let before = limits();
        for attempt in ["--cpu=1:1", "--nofile=0:0", "--as=1:1", "--fsize=0"] {
            for uid in if root { &[0, 1000][..] } else { &[0] } {
                let mut command = sandbox.command("prlimit");
                let output = command.args(["--pid", "1", attempt]).uid(*uid).gid(*uid).output();
                let output = output.unwrap();
                assert!(!output.status.success(), "{attempt} as {uid}");
            }
        }
        assert_eq!(limits(), before);
        assert_answers(&sandbox);
    }
    // Control: of a process that is like the caller, they can.
    let weak = Sandbox::create(unconfined).unwrap();
    shell(&weak, "sleep 1000 & prlimit --pid $! --cpu=1:1 && kill $!");
}

#[test]
fn init_cannot_be_made_the_first_to_die_of_memory() {
    // With one id only, init is the guest's own to the kernel, and its files are made read-only.
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let path = format!("/proc/{}/oom_score_adj", sandbox.init_pid());
    let before = fs::read_to_string(&path).unwrap();
    let output = sandbox.shell("echo 1000 > /proc/1/oom_score_adj").output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    // Control.
    shell(&sandbox, "echo 1000 > /proc/self/oom_score_adj");
}
