//! What one guest may take of what all share: it runs into a bound, and no one else does.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio as HostStdio};

use adl_runtime::{Config, Error, Sandbox, Stage, Stdio, Upper};
use nix::sys::resource::{Resource, setrlimit};

use crate::census;
use crate::harness::{Home, Need, adl_command, needs, shell, stderr, within};
use crate::helper::{Helper, say};
use crate::lifetime::GONE;

/// Opens as many as it gets and says how many that were.
const ALL_TERMINALS: &str = "import os
held = []
try:
    while True: held.append(os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY))
except OSError: print(len(held))";

#[test]
fn no_guest_takes_all_terminals_of_the_machine() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let output = home.sandbox().command("python3").args(["-c", ALL_TERMINALS]).output().unwrap();
    let taken: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    // Control: some, it gets.
    assert!((16..=64).contains(&taken), "{taken}");
}

#[test]
fn empty_files_are_bounded_where_writes_go_to_memory() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let config = Config { upper: Upper::Memory { size: 1 << 20 }, ..home.config() };
    let sandbox = Sandbox::create(config).unwrap();
    for (directory, most) in [("/root", 1400), ("/dev/shm", 16_400)] {
        let script =
            format!("cd {directory}; i=0; while : 2>/dev/null >$i; do i=$((i+1)); done; echo $i");
        let made: u32 = shell(&sandbox, script).trim().parse().unwrap();
        assert!((500..=most).contains(&made), "{made} in {directory}");
    }
}

#[test]
fn a_directory_of_the_hosts_is_no_stream() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let directory = || OwnedFd::from(std::fs::File::open("/").unwrap());
    let refused = |output: Result<adl_runtime::Output, Error>, stream| match output {
        Err(Error::Invalid { what, .. }) if what == stream => {}
        other => panic!("{other:?}"),
    };
    let mut script = sandbox.shell("ls /proc/self/fd/0/");
    refused(script.stdin(directory()).output(), "stdin");
    refused(sandbox.shell("ls /proc/self/fd/1/").stdout(directory()).output(), "stdout");
    refused(sandbox.shell("ls /proc/self/fd/2/").stderr(directory()).output(), "stderr");
    // And where it is the calling program's own.
    let mut adl = adl_command(&home.state());
    adl.args(["run", "--", "ls", "/proc/self/fd/0/"]).stdin(directory());
    let output = adl.output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
    assert!(output.stdout.is_empty() && stderr(&output).contains("directory"));
    // Control: it is the directory that is refused.
    let file = std::fs::File::open("/etc/passwd").unwrap();
    assert!(sandbox.shell("cat >/dev/null").stdin(file).status().unwrap().success());
}

#[test]
fn jobs_without_number_are_refused_one_by_one() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    Helper::start("few-descriptors", &home.state()).finish();
}

/// The helper of the test above.
pub(crate) fn few_descriptors(state: &Path) {
    setrlimit(Resource::RLIMIT_NOFILE, 400, 400).unwrap();
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let sandbox = Sandbox::create(config).unwrap();
    let mut children = Vec::new();
    let error = loop {
        match sandbox.command("sleep").arg("1000").spawn() {
            Ok(child) => children.push(child),
            Err(error) => break error,
        }
    };
    let Error::Start { stage: Stage::Fork, source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.raw_os_error(), Some(24), "EMFILE");
    assert!(children.len() > 100, "{}", children.len());
    for child in &mut children {
        assert!(child.try_wait().unwrap().is_none());
    }
    children.pop().unwrap().kill().unwrap();
    let again = || sandbox.command("true").status().is_ok_and(|status| status.success());
    assert!(within(GONE, again));
    sandbox.delete().unwrap();
    adl_runtime::finish_removals();
}

/// Takes copies of all descriptors of a process, as a fork of it has them.
const TAKE_COPIES: &str = "import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
pidfd = os.pidfd_open(int(sys.argv[1]))
print(sum(libc.syscall(438, pidfd, fd, 0) >= 0 for fd in range(3, 100)), flush=True)
sys.stdin.read()";

#[test]
fn a_copy_of_the_callers_descriptors_keeps_nothing_alive() {
    if !needs(&[Need::Program("python3"), Need::Root]) {
        return;
    }
    let home = Home::new();
    let mut helper = Helper::start("hold-one", &home.state());
    let init: i32 = helper.next().unwrap().parse().unwrap();
    let processes = census::tree(init);
    assert!(processes.len() >= 2, "{processes:?}");
    let mut python = Command::new("python3");
    python.args(["-c", TAKE_COPIES, &helper.id().to_string()]);
    let mut python = python.stdin(HostStdio::piped()).stdout(HostStdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(python.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    // Control: there was something to copy.
    assert!(line.trim().parse::<u32>().unwrap() >= 5, "{line}");
    helper.kill();
    assert!(within(GONE, || processes.iter().all(|process| !process.exists())));
    drop(python.stdin.take());
    python.wait().unwrap();
    // Its lock, too, was held by the copies.
    assert_eq!(adl_runtime::collect_garbage(Some(&home.state())).unwrap().len(), 1);
}

/// The helper of the test above.
pub(crate) fn hold_one(state: &Path) {
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let sandbox = Sandbox::create(config).unwrap();
    let _job = sandbox.command("sleep").arg("1000").spawn().unwrap();
    say(sandbox.init_pid());
    let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
}

/// Leaves as many descriptors in the queues of sockets as a process may have there.
const IN_FLIGHT: &str = "
import array, socket, sys, time
one, other = socket.socketpair()
count = 0
try:
    while count < 1000:
        one.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0, 1, 2]))])
        count += 3
except OSError:
    pass
print('%4d' % count, flush=True)
time.sleep(1000)
";

#[test]
fn a_terminal_that_cannot_be_sent_back_is_a_failure_to_start() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    Helper::start("in-flight", &home.state()).finish();
}

/// The helper of the test above.
pub(crate) fn in_flight(state: &Path) {
    // Of init, too, and of what is to send the terminal.
    const FILES: u64 = 300;
    setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES).unwrap();
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let sandbox = Sandbox::create(config).unwrap();
    let start = || sandbox.command("true").terminal(24, 80).output();
    // Control, of the limit of a job: it is the job's alone.
    let mut few = sandbox.command("true");
    few.terminal(24, 80).rlimit(adl_runtime::Resource::OpenFiles, 10, 10);
    assert!(few.output().unwrap().status.success());
    let mut holder = sandbox.command("python3");
    let mut holder = holder.args(["-c", IN_FLIGHT]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 5];
    holder.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    let count: u64 = std::str::from_utf8(&line).unwrap().trim().parse().unwrap();
    assert!((FILES..1000).contains(&count), "{count}");
    match start() {
        Err(Error::Start { stage: Stage::Terminal, source, .. }) => {
            assert_eq!(source.raw_os_error(), Some(nix::errno::Errno::ETOOMANYREFS as i32));
        }
        other => panic!("{other:?}"),
    }
    // Nothing else has suffered.
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(start().unwrap().status.success());
    sandbox.delete().unwrap();
    adl_runtime::finish_removals();
}
