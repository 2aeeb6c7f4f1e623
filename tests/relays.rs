//! A command that is joined to streams of the caller's does with them as a program outside would,
//! and is held up by them no more.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio as Std;
use std::time::{Duration, Instant};

use adl_runtime::{Command, EndReason, Error, ExitStatus, Sandbox, Scope, Stdio};
use nix::fcntl::OFlag;
use nix::pty::{OpenptyResult, openpty};
use nix::sys::stat::Mode;

use crate::harness::{Home, Need, OrdinaryUser, adl_command, at_most, needs, stderr, within};
use crate::helper::{Helper, say};

/// What nothing here takes that is not held up.
const SOON: Duration = Duration::from_secs(20);

type Way = fn(&mut Command) -> adl_runtime::Result<ExitStatus>;

/// How a command can be run by the library.
const WAYS: [Way; 3] = [
    |command| command.status(),
    |command| command.spawn()?.wait(),
    |command| Ok(command.background()?.wait()?.status),
];

/// How a program runs a script with its own streams: by `adl run`, and each way of the library.
fn callers(home: &Home, script: &str) -> Vec<std::process::Command> {
    let mut adl = adl_command(&home.state());
    adl.args(["run", "--", "sh", "-c", script]);
    let library = (0..WAYS.len()).map(|way| {
        let mut helper = crate::helper::command("joins-its-streams", &home.state());
        helper.env("WAY", way.to_string()).env("SCRIPT", script).stdin(Std::null());
        helper
    });
    std::iter::once(adl).chain(library).collect()
}

/// The helper of the above.
pub(crate) fn joins_its_streams(state: &Path) {
    let config =
        adl_runtime::Config { state_directory: Some(state.to_owned()), ..Default::default() };
    let sandbox = Sandbox::create(config).unwrap();
    let variable = |name| std::env::var(name).unwrap();
    let mut command = sandbox.shell(variable("SCRIPT"));
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let status = WAYS[variable("WAY").parse::<usize>().unwrap()](&mut command).unwrap();
    assert!(status.success(), "{status}");
}

/// A shell whose terminal is its stdin, and a job in the background. It tells what the job says up
/// to `go`; whether that stops it; then it gives it the terminal, and tells the rest and its end.
const SHELL: &str = "import os, select, signal, subprocess, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
to_terminal, argv = sys.argv[1] == 'write', sys.argv[2:]
if to_terminal:
    mode = termios.tcgetattr(0)
    mode[3] |= termios.TOSTOP
    termios.tcsetattr(0, termios.TCSANOW, mode)
def begin():
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
job = subprocess.Popen(argv, stdin=subprocess.DEVNULL if to_terminal else 0,
                       stdout=0 if to_terminal else subprocess.PIPE, preexec_fn=begin)
said = b''
def is_over(how):
    pid, status = os.waitpid(job.pid, os.WUNTRACED | how)
    return pid and status
stopped = 0
if to_terminal:
    stopped = is_over(0)
else:
    while b'go' not in said and not stopped:
        if select.select([job.stdout], [], [], 0.05)[0]:
            said += os.read(job.stdout.fileno(), 100) or b'go'
        stopped = is_over(os.WNOHANG)
tells = 'stopped by %d' % os.WSTOPSIG(stopped) if os.WIFSTOPPED(stopped) else 'runs'
os.tcsetpgrp(0, job.pid)
os.killpg(job.pid, signal.SIGCONT)
if not to_terminal:
    while b := os.read(job.stdout.fileno(), 100): said += b
print(tells, os.waitstatus_to_exitcode(is_over(0)), said.decode().replace('\\n', ' '))";

/// Has the shell above run something on a terminal.
fn under_job_control(
    how: &str,
    pty: &OpenptyResult,
    job: &std::process::Command,
) -> std::process::Command {
    let mut shell = std::process::Command::new("setsid");
    shell.args(["--ctty", "--wait", "python3", "-c", SHELL, how]);
    shell.arg(job.get_program()).args(job.get_args());
    shell.envs(job.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdin(pty.slave.try_clone().unwrap()).stderr(Std::inherit());
    shell
}

#[test]
fn in_the_background_of_a_shell_its_terminal_is_not_read_and_nothing_stops() {
    if !needs(&[Need::Program("python3"), Need::Program("setsid")]) {
        return;
    }
    let home = Home::new();
    // What is typed is there from the beginning. It is for whoever has the terminal.
    let script = "timeout 1 head -n 1; echo go; head -n 1";
    for caller in callers(&home, script) {
        let pty = openpty(None, None).unwrap();
        let mut master = File::from(pty.master.try_clone().unwrap());
        master.write_all(b"typed\n").unwrap();
        let output = under_job_control("read", &pty, &caller).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let (before, after) = told.split_once("go").unwrap_or_else(|| panic!("{told}"));
        assert!(before.starts_with("runs 0 ") && !before.contains("typed"), "{caller:?}: {told}");
        assert!(after.contains("typed"), "{caller:?}: {told}");
    }
}

#[test]
fn a_terminal_that_stops_writers_in_the_background_stops_them_as_any() {
    if !needs(&[Need::Program("python3"), Need::Program("setsid")]) {
        return;
    }
    let home = Home::new();
    let mut outside = std::process::Command::new("sh");
    outside.args(["-c", "exec /bin/echo text"]);
    // Of the others, what runs the helper writes there itself.
    for caller in [outside, callers(&home, "echo text").remove(0)] {
        let pty = openpty(None, None).unwrap();
        let output = under_job_control("write", &pty, &caller).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(told.trim(), "stopped by 22 0", "{caller:?}: {}", stderr(&output));
        let mut shown = vec![0; 4096];
        let count = File::from(pty.master).read(&mut shown).unwrap();
        let shown = String::from_utf8_lossy(&shown[..count]).into_owned();
        assert!(shown.contains("text\r\n"), "{caller:?}: {shown}");
    }
}

#[test]
fn a_terminal_that_is_not_the_callers_to_open_holds_up_no_end() {
    if !needs(&[Need::Root]) {
        return;
    }
    // As after `su`: it is root's, and nobody reads what is shown on it.
    let user = OrdinaryUser::new();
    let pty = openpty(None, None).unwrap();
    let mut adl = user.command(user.adl());
    adl.args(["run", "--timeout", "300ms", "--", "yes"]).stdout(pty.slave).stderr(Std::null());
    let mut adl = adl.spawn().unwrap();
    let ended = within(SOON, || adl.try_wait().unwrap().is_some());
    if !ended {
        // Its write goes on when someone reads.
        adl.kill().unwrap();
        std::thread::spawn(move || File::from(pty.master).read_to_end(&mut Vec::new()));
    }
    assert_eq!((ended, adl.wait().unwrap().code()), (true, Some(124)));
}

#[test]
fn the_end_of_a_fifo_is_told_also_where_its_writers_are_gone() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = home.path("fifo");
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    for mut caller in callers(&home, "cat; echo end") {
        // Opened before the writer comes, and waits from then on as if it had come first.
        let mut how = File::options();
        let fifo = how.read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).unwrap();
        fs::write(&path, "text\n").unwrap();
        nix::fcntl::fcntl(&fifo, nix::fcntl::FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let output = caller.stdin(fifo).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(told.contains("text\nend\n"), "{caller:?}: {told}: {}", stderr(&output));
    }
}

#[test]
fn no_more_is_taken_than_a_command_reads_and_a_pipe_holds() {
    if !needs(&[]) {
        return;
    }
    const ALL: usize = 512 << 10;
    const PIPE: usize = 64 << 10;
    let home = Home::new();
    // It has time to be ahead.
    for mut caller in callers(&home, "head -c 65536 > /dev/null; sleep 0.3") {
        let (mut ours, theirs) = std::io::pipe().unwrap();
        nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
        (&theirs).write_all(&vec![b'x'; ALL]).unwrap();
        drop(theirs);
        let output = caller.stdin(ours.try_clone().unwrap()).output().unwrap();
        assert!(output.status.success(), "{caller:?}: {}", stderr(&output));
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).unwrap();
        let taken = ALL - rest.len();
        assert!((PIPE..=2 * PIPE).contains(&taken), "{caller:?}: {taken}");
    }
}

#[test]
fn what_is_no_pipe_is_a_stream_as_well_and_a_directory_is_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let open = |path: &str| File::options().read(true).write(true).open(path).unwrap();
    for mut caller in callers(&home, "head -c 300000 | wc -c; echo gone >&2") {
        caller.stdin(open("/dev/zero")).stderr(open("/dev/null"));
        let output = caller.output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("300000\n"), "{caller:?}");
    }
    let script = "stat -Lc %t,%T /dev/stdin /dev/stderr; cat; exec 2> /dev/null; echo text >&2";
    for mut caller in callers(&home, script) {
        let output = caller.stdin(Std::null()).stderr(Std::null()).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("1,3\n1,3\n"), "{caller:?}");
    }
    // A socket, and the side of a terminal that shows it: what is written there is typed.
    for mut caller in callers(&home, "read a; echo $a") {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let pty = openpty(None, None).unwrap();
        ours.write_all(b"said\n").unwrap();
        caller.stdin(OwnedFd::from(theirs)).stdout(pty.master.try_clone().unwrap());
        assert!(caller.status().unwrap().success(), "{caller:?}");
        let mut typed = String::new();
        let mut slave = std::io::BufReader::new(File::from(pty.slave));
        while !typed.contains("said") {
            std::io::BufRead::read_line(&mut slave, &mut typed).unwrap();
        }
    }
    let directory = || File::open("/").unwrap();
    let output = callers(&home, "true").remove(0).stdin(directory()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("stdin: it is a directory"), "{}", stderr(&output));
    let sandbox = home.sandbox();
    for way in WAYS {
        let error = way(sandbox.command("true").stdout(directory())).unwrap_err();
        assert!(matches!(error, Error::Invalid { what: "stdout", .. }), "{error:?}");
    }
}

#[test]
fn what_can_not_be_read_is_told() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let path = home.path("file");
    for way in WAYS {
        // It has no right to be read.
        let mut cat = sandbox.command("cat");
        let error = way(cat.stdin(File::create(&path).unwrap())).unwrap_err();
        let Error::Undelivered { status, why } = &error else { panic!("{error:?}") };
        assert!(status.success() && why.to_string().starts_with("read stdin"), "{error}");
    }
}

/// Starts what fills a stream that no one reads, and waits until it is full.
fn stalled(command: &mut Command) -> (UnixStream, adl_runtime::Child) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = command.stdout(OwnedFd::from(theirs)).spawn().unwrap();
    let peek = || nix::sys::socket::MsgFlags::MSG_PEEK | nix::sys::socket::MsgFlags::MSG_DONTWAIT;
    let mut byte = [0];
    let is_there = || nix::sys::socket::recv(ours.as_raw_fd(), &mut byte, peek()).is_ok();
    assert!(within(SOON, is_there));
    (ours, child)
}

#[test]
fn a_reader_that_stands_still_holds_up_neither_an_end_by_a_signal_nor_that_of_the_sandbox() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let begin = Instant::now();
    let mut yes = sandbox.command("yes");
    let (_unread, mut child) = stalled(&mut yes);
    child.signal(15, Scope::Process).unwrap();
    let error = child.wait().unwrap_err();
    let Error::Undelivered { status, .. } = &error else { panic!("{error:?}") };
    assert_eq!((status.reason(), status.signal()), (EndReason::Signaled, Some(15)));

    let (_unread, mut child) = stalled(&mut yes);
    let job = yes.stdout(File::options().write(true).open("/dev/zero").unwrap()).background();
    let job = job.unwrap();
    sandbox.delete().unwrap();
    let error = child.wait().unwrap_err();
    let Error::Undelivered { status, .. } = &error else { panic!("{error:?}") };
    assert_eq!(status.reason(), EndReason::SandboxDied);
    assert_eq!(job.wait().unwrap().status.reason(), EndReason::SandboxDied);
    assert!(begin.elapsed() < at_most(SOON), "{:?}", begin.elapsed());
}

#[test]
fn each_of_many_has_one_thread_with_a_name_until_it_ends() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    Helper::start("joins-many", &home.state()).finish();
}

/// The helper of the test above.
pub(crate) fn joins_many(state: &Path) {
    const MANY: usize = 20;
    let config =
        adl_runtime::Config { state_directory: Some(state.to_owned()), ..Default::default() };
    let sandbox = Sandbox::create(config).unwrap();
    let threads = || {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let names =
            tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
        names.filter(|name| name == "adl-relay\n").count()
    };
    let (ends, theirs): (Vec<_>, Vec<_>) = (0..MANY).map(|_| UnixStream::pair().unwrap()).unzip();
    let mut jobs: Vec<_> = theirs
        .into_iter()
        .map(|theirs| {
            let both = OwnedFd::from(theirs);
            let mut cat = sandbox.command("cat");
            cat.stdin(both.try_clone().unwrap()).stdout(both);
            cat.spawn().unwrap()
        })
        .collect();
    assert!(within(SOON, || threads() == MANY));
    // All at once, each its own.
    for (number, mut end) in ends.iter().enumerate() {
        end.write_all(format!("{number:08}").as_bytes()).unwrap();
    }
    for (number, mut end) in ends.iter().enumerate() {
        let mut came = [0; 8];
        end.read_exact(&mut came).unwrap();
        assert_eq!(came, format!("{number:08}").as_bytes());
        end.shutdown(std::net::Shutdown::Write).unwrap();
    }
    assert!(jobs.iter_mut().all(|job| job.wait().unwrap().success()));
    assert!(within(SOON, || threads() == 0));
    say("done");
}

#[test]
fn no_flag_and_no_size_of_a_terminal_is_changed() {
    if !needs(&[Need::Program("stty")]) {
        return;
    }
    let home = Home::new();
    let pty = openpty(None, None).unwrap();
    let state = || {
        let flags = nix::fcntl::fcntl(&pty.slave, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        let mut stty = std::process::Command::new("stty");
        let output = stty.arg("-a").stdin(pty.slave.try_clone().unwrap()).output().unwrap();
        (flags, String::from_utf8(output.stdout).unwrap())
    };
    let mut stty = std::process::Command::new("stty");
    stty.args(["rows", "17", "columns", "93"]).stdin(pty.slave.try_clone().unwrap());
    assert!(stty.status().unwrap().success());
    let before = state();
    assert!(before.1.contains("rows 17; columns 93"), "{}", before.1);
    // Nor while it runs.
    for mut caller in callers(&home, "echo runs; read a; echo $a") {
        let own = || pty.slave.try_clone().unwrap();
        let mut caller = caller.stdin(own()).stdout(own()).stderr(own()).spawn().unwrap();
        let mut master = File::from(pty.master.try_clone().unwrap());
        let mut shown = String::new();
        while !shown.contains("runs") {
            let mut bytes = [0; 256];
            let count = master.read(&mut bytes).unwrap();
            shown.push_str(str::from_utf8(&bytes[..count]).unwrap());
        }
        assert_eq!(state(), before);
        master.write_all(b"go\n").unwrap();
        assert!(caller.wait().unwrap().success());
        assert_eq!(state(), before);
    }
}

#[test]
fn what_is_wrong_with_a_command_is_told_before_its_user_is_looked_up() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    // From here on, what is asked of the sandbox has another answer.
    let init = nix::unistd::Pid::from_raw(sandbox.init_pid());
    nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(within(SOON, || !sandbox.is_alive()));
    let refused = |change: fn(&mut Command) -> &mut Command| {
        let mut command = sandbox.command("true");
        change(command.user("nobody"));
        match command.status() {
            Err(Error::Invalid { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(|command| command.umask(0o1777)), "umask");
    assert_eq!(refused(|command| command.env("A=B", "")), "environment");
    assert_eq!(refused(|command| command.arg("a\0b")), "argument");
    assert_eq!(refused(|command| command.stdout(File::open("/").unwrap())), "stdout");
    assert_eq!(refused(|command| command.stdin(Stdio::same_as_stdout())), "stdio");
    assert_eq!(refused(|command| command.output_limit(1)), "output limit");
    let asked = sandbox.command("true").user("nobody").status();
    assert!(matches!(asked, Err(Error::SandboxDied)), "{asked:?}");
    // Nor does a copy take what means nothing to it.
    let mut files = sandbox.files();
    files.umask(0o077);
    for copied in [files.copy_in("/etc/hosts", "/f"), files.copy_out("/f", home.path("f"))] {
        assert!(matches!(copied, Err(Error::Invalid { what: "umask", .. })), "{copied:?}");
    }
}
