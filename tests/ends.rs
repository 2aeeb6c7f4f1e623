//! What is waited for ends, by its deadline or with the sandbox, and is told as what it was.
//!
//! It ends whatever the kernel or init makes of it.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use adl_runtime::{Child, Command, Config, EndReason, Error, Sandbox, Stdio};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::census;
use crate::harness::{Home, Need, at_most, needs, shell, within};
use crate::helper::{Helper, say};
use crate::jobs::SOON;

/// How much later than its deadline a call may return: what is promised is 50 ms, on a machine that
/// has time for it. A wait for what can't be killed took 15 s.
const LATE: Duration = Duration::from_secs(8);

/// A cgroup of version 1 whose processes are not scheduled: SIGKILL has no effect on them, as on
/// one that waits for a dead disk, until they are thawed.
struct Ice(PathBuf);

impl Ice {
    fn new(name: &str) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = own.lines().find_map(|line| line.split_once(":freezer:")).unwrap().1;
        let place = Path::new("/sys/fs/cgroup/freezer").join(path.trim_start_matches('/'));
        let this = Self(place.join(format!("adl-test-{name}-{}", std::process::id())));
        fs::create_dir(&this.0).unwrap();
        this
    }

    /// Freezes all of a sandbox but its init.
    fn freeze(&self, sandbox: &Sandbox) {
        for process in census::tree(sandbox.init_pid()) {
            if process.pid != sandbox.init_pid() {
                fs::write(self.0.join("cgroup.procs"), process.pid.to_string()).unwrap();
            }
        }
        self.set("FROZEN");
    }

    fn set(&self, state: &str) {
        fs::write(self.0.join("freezer.state"), state).unwrap();
        let is_so = || fs::read_to_string(self.0.join("freezer.state")).unwrap().trim() == state;
        assert!(within(SOON, is_so), "{state}");
    }

    fn thaw(&self) {
        self.set("THAWED");
    }
}

impl Drop for Ice {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        within(SOON, || fs::remove_dir(&self.0).is_ok());
    }
}

/// Starts what says `ready`.
fn ready(command: &mut Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.as_mut().unwrap();
    std::io::Read::read_exact(stdout, &mut [0; 6]).unwrap();
    child
}

fn is_readable(what: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(what.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn a_command_that_cannot_be_killed_is_told_of_when_its_time_is_up() {
    if !needs(&[Need::Freezer]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let ice = Ice::new("command");
    let timeout = Duration::from_secs(5);
    let begin = Instant::now();
    let hangs = "echo ready; exec sleep 1000";
    let child = ready(sandbox.shell(hangs).timeout(timeout));
    let killed = ready(&mut sandbox.shell(hangs));
    ice.freeze(&sandbox);
    assert!(begin.elapsed() < timeout, "its time was up before it was frozen");

    let status = child.handle().wait().unwrap();
    let late = begin.elapsed().saturating_sub(timeout);
    assert_eq!(status.reason(), EndReason::TimedOut);
    assert!(status.survivors() && !status.success());
    assert!(late < LATE, "{late:?} after its deadline");
    // It stays so, for all who ask.
    assert_eq!(child.handle().try_wait().unwrap(), Some(status));
    assert!(is_readable(&child));

    // So is one without a timeout, once it was killed.
    let begin = Instant::now();
    killed.handle().kill().unwrap();
    let status = killed.handle().wait().unwrap();
    assert_eq!((status.reason(), status.survivors()), (EndReason::Signaled, true));
    assert!(begin.elapsed() < LATE, "{:?} after the kill", begin.elapsed());

    // Others are held up by none of that, and what was killed ends when it can.
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
    ice.thaw();
    let alone = || census::tree(sandbox.init_pid()).len() == 1;
    assert!(within(SOON, alone), "{:?}", census::tree(sandbox.init_pid()));
}

#[test]
fn what_can_be_killed_has_ended_when_its_end_is_told_beside_what_cannot() {
    if !needs(&[Need::Freezer]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let ice = Ice::new("beside");
    let stuck = ready(&mut sandbox.shell("echo ready; exec sleep 1000"));
    ice.freeze(&sandbox);
    let mut other = sandbox.shell("sleep 1000 & setsid sleep 1000 & wait");
    let status = other.timeout(Duration::from_millis(200)).status().unwrap();
    assert_eq!((status.reason(), status.survivors()), (EndReason::TimedOut, false));
    assert_eq!(census::tree(sandbox.init_pid()).len(), 2);
    ice.thaw();
    drop(stuck);
}

#[test]
fn an_end_that_takes_long_is_remembered_and_told_until_it_has_come() {
    if !needs(&[Need::Freezer]) {
        return;
    }
    let home = Home::new();
    let name = Some("ending".to_owned());
    let config = Config { name, ..home.config() };
    let sandbox = Sandbox::create(config.clone()).unwrap();
    let ice = Ice::new("ending");
    let child = ready(&mut sandbox.shell("echo ready; exec sleep 1000"));
    let job = sandbox.shell("exec sleep 1000").background().unwrap();
    ice.freeze(&sandbox);

    let (tell, told) = channel();
    let handle = child.handle();
    let waits = std::thread::spawn(move || tell.send(handle.wait().unwrap()).unwrap());
    let first = sandbox.reset();
    assert!(matches!(first, Err(Error::TimedOut { .. })), "{first:?}");
    // The sandbox has ended for all who wait, whatever the kernel still does.
    assert_eq!(told.recv_timeout(at_most(SOON)).unwrap().reason(), EndReason::SandboxDied);
    waits.join().unwrap();
    assert_eq!(
        job.wait_timeout(at_most(SOON)).unwrap().unwrap().status.reason(),
        EndReason::SandboxDied
    );
    assert!(is_readable(&child));
    let refused = sandbox.command("true").status();
    assert!(matches!(refused, Err(Error::SandboxDied)), "{refused:?}");

    // The same is told again, at once, and nothing of it is anyone else's.
    for _ in 0..3 {
        let begin = Instant::now();
        let again = sandbox.reset();
        assert!(matches!(again, Err(Error::TimedOut { .. })), "{again:?}");
        let snapshot = sandbox.snapshot();
        assert!(matches!(snapshot, Err(Error::TimedOut { .. })), "{snapshot:?}");
        assert!(begin.elapsed() < at_most(SOON), "{:?}", begin.elapsed());
    }
    adl_runtime::finish_removals();
    assert_eq!(home.left(), ["ending"]);
    ice.thaw();
    assert!(within(SOON, || sandbox.reset().is_ok()));
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");

    // And of a delete, after which a thread waits for the rest.
    let _child = ready(&mut sandbox.shell("echo ready; exec sleep 1000"));
    ice.freeze(&sandbox);
    let deleted = sandbox.delete();
    assert!(matches!(deleted, Err(Error::TimedOut { .. })), "{deleted:?}");
    let taken = Sandbox::create(config.clone());
    assert!(matches!(taken, Err(Error::NameInUse { .. })), "{taken:?}");
    ice.thaw();
    assert!(within(SOON, || Sandbox::create(config.clone()).is_ok()));
}

#[test]
fn a_reset_that_cannot_be_made_leaves_the_sandbox_as_it_was() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    Helper::start("reset-without-descriptors", &home.state()).finish();
}

/// The helper of the test above: with fewer and fewer descriptors, down to none.
pub(crate) fn reset_without_descriptors(state: &Path) {
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let sandbox = Sandbox::create(config).unwrap();
    // What is made once is made.
    sandbox.reset().unwrap();
    sandbox.snapshot().unwrap().delete().unwrap_err();
    adl_runtime::finish_removals();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let lowest = std::io::stdin().as_fd().try_clone_to_owned().unwrap().as_raw_fd();
    let lowest = u64::try_from(lowest).unwrap();
    let (mut failed, mut done) = ([0; 2], [0; 2]);
    for spare in 0..60 {
        for (kind, is_snapshot) in [false, true].into_iter().enumerate() {
            let mut job =
                ready(&mut sandbox.shell("echo ready; echo kept >/root/file; sleep 1000"));
            let kept =
                || sandbox.files().read_file("/root/file").is_ok_and(|file| file == b"kept\n");
            assert!(within(SOON, kept));
            let options = adl_runtime::SnapshotOptions {
                running: adl_runtime::IfRunning::End,
                ..Default::default()
            };
            setrlimit(Resource::RLIMIT_NOFILE, lowest + spare, hard).unwrap();
            let made = match is_snapshot {
                false => sandbox.reset(),
                true => sandbox.snapshot_with(&options).map(drop),
            };
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
            if let Err(error) = made {
                failed[kind] += 1;
                assert!(matches!(&error, Error::Io { .. }), "{spare}: {error:?}");
                let alive = sandbox.files().read_file("/root/file");
                assert_eq!(alive.unwrap_or_default(), b"kept\n", "{kind}, {spare}: {error}");
                assert!(job.try_wait().unwrap().is_none(), "{spare}: {error}");
                job.kill().unwrap();
                job.wait().unwrap();
            } else {
                done[kind] += 1;
                assert_eq!(job.wait().unwrap().reason(), EndReason::SandboxDied);
                assert_eq!(shell(&sandbox, "echo alive"), "alive\n", "{spare}");
            }
            sandbox.reset().unwrap();
            adl_runtime::finish_removals();
        }
    }
    say(format!("{failed:?} failed, {done:?} were done"));
    assert!(failed.iter().chain(&done).all(|count| *count > 0), "{failed:?}, {done:?}");
    sandbox.delete().unwrap();
    adl_runtime::finish_removals();
}

/// A way to run a command in which what it writes is read here.
type Way = fn(&mut Command) -> EndReason;

/// All of them.
fn ways() -> [(&'static str, Way); 5] {
    [
        ("output", |command| command.output().unwrap().status.reason()),
        ("background", |command| command.background().unwrap().wait().unwrap().status.reason()),
        ("wait_with_output", |command| {
            let child = command.stdout(Stdio::piped()).spawn().unwrap();
            child.wait_with_output().unwrap().status.reason()
        }),
        ("status", |command| {
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).status().unwrap().reason()
        }),
        ("terminal", |command| command.terminal(24, 80).output().unwrap().status.reason()),
    ]
}

#[test]
fn more_output_than_may_be_is_always_told_as_that() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    for (name, way) in ways() {
        // It fits into a pipe, so that the command ends at once, whoever reads or does not.
        let length = if name == "terminal" { 3_000 } else { 60_000 };
        for (limit, bytes, expected) in [
            (1_000, length, EndReason::OutputLimit),
            (1_000, 1_001, EndReason::OutputLimit),
            (1_000, 1_000, EndReason::Exited),
        ] {
            for run in 0..50 {
                let mut command = sandbox.command("/usr/bin/head");
                command.args(["-c", &bytes.to_string(), "/dev/zero"]).output_limit(limit);
                assert_eq!(way(&mut command), expected, "{name}, run {run}: {bytes} of {limit}");
            }
        }
    }
    // Whatever it exits with, and when it writes more than a pipe holds.
    for run in 0..50 {
        let mut command = sandbox.shell("head -c 100000 /dev/zero; exit 3");
        let output = command.output_limit(1_000).output().unwrap();
        assert_eq!(output.status.reason(), EndReason::OutputLimit, "run {run}: {output:?}");
        assert!(!output.status.success());
    }
}

#[test]
fn bounds_of_what_no_one_reads_are_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let idle: fn(&mut Command) = |command| {
        command.idle_timeout(SOON);
    };
    let limit: fn(&mut Command) = |command| {
        command.output_limit(1);
    };
    for bound in [idle, limit] {
        let bounded = || {
            let mut command = sandbox.command("true");
            bound(&mut command);
            command
        };
        let refused = [
            bounded().status().err(),
            bounded().spawn().err(),
            bounded().stdout(Stdio::null()).stderr(Stdio::null()).output().err(),
            bounded().stdout(Stdio::piped()).spawn().unwrap().wait().err(),
            bounded().stdout(Stdio::piped()).spawn().unwrap().wait_timeout(SOON).err(),
            bounded().stdout(Stdio::piped()).spawn().unwrap().try_wait().err(),
        ];
        for (number, error) in refused.into_iter().enumerate() {
            assert!(matches!(error, Some(Error::Invalid { .. })), "{number}: {error:?}");
        }
        // Control: where something is read, they are kept.
        assert!(bounded().output().unwrap().status.success());
        let child = bounded().stderr(Stdio::piped()).spawn().unwrap();
        assert!(child.wait_with_output().unwrap().status.success());
        assert!(bounded().terminal(24, 80).status().unwrap().success());
    }
}

#[test]
fn what_is_left_on_a_terminal_holds_no_one_up() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    // Without a controlling terminal, the end of the session does not hang it up.
    let script = "import fcntl, os, signal, time
signal.signal(signal.SIGHUP, signal.SIG_IGN)
fcntl.ioctl(0, 0x5422)
os.write(1, b'all')
if os.fork(): os._exit(7)
while True:
    os.write(1, b'.')
    time.sleep(0.005)";
    let (tell, told) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut python = sandbox.command("python3");
            tell.send(python.args(["-c", script]).terminal(24, 80).output()).unwrap();
        });
        let output = told.recv_timeout(at_most(SOON));
        // Whether it has come or not, that is an end of it.
        kill(Pid::from_raw(sandbox.init_pid()), Signal::SIGKILL).unwrap();
        let output = output.expect("an end").unwrap();
        assert_eq!((output.status.code(), output.stdio_open), (Some(7), true));
        assert!(output.stdout.starts_with(b"all"), "{output:?}");
    });
}

#[test]
fn a_request_that_is_read_in_part_ends_with_its_time_and_is_in_no_ones_way() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let init = Pid::from_raw(sandbox.init_pid());
    let much = "x".repeat(100 << 10);
    kill(init, Signal::SIGSTOP).unwrap();
    let begin = Instant::now();
    let mut late = sandbox.shell("touch /tmp/late; sleep 1000");
    let late = late.args(std::iter::repeat_n(&much, 10)).timeout(Duration::from_millis(200));
    let error = late.status().unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    assert!(begin.elapsed() < LATE, "{:?}", begin.elapsed());
    kill(init, Signal::SIGCONT).unwrap();
    // What comes next is whole, and what was given up is ended.
    let output = sandbox.command("echo").args(std::iter::repeat_n(&much, 10)).output().unwrap();
    assert_eq!(output.stdout.len(), 10 * (much.len() + 1));
    let alone = || census::tree(sandbox.init_pid()).len() == 1;
    assert!(within(SOON, alone), "{:?}", census::tree(sandbox.init_pid()));
}

#[test]
fn the_end_of_the_process_waits_for_removals_as_long_as_it_was_told() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    Helper::start("exit-when-removed", &home.state()).finish();
    assert_eq!(home.left(), [""; 0]);
    Helper::start("exit-at-once", &home.state()).finish();
    // So much is not removed in no time, and nothing of it is lost to the collector.
    assert_eq!(home.left().len(), 1);
    assert_eq!(adl_runtime::collect_garbage(Some(&home.state())).unwrap().len(), 1);
    assert_eq!(home.left(), [""; 0]);
}

/// The helper of the test above.
pub(crate) fn exit_after_a_delete(state: &Path, limit: Duration) {
    adl_runtime::wait_at_exit(limit);
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let sandbox = Sandbox::create(config).unwrap();
    let made = sandbox.shell("mkdir /root/d; cd /root/d; seq 50000 | xargs touch").status();
    assert!(made.unwrap().success());
    sandbox.delete().unwrap();
}
