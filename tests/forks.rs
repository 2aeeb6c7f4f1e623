//! A fork of the caller: what is its parent's stays that, and it makes sandboxes of its own.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use adl_runtime::{
    Config, Error, Limits, Sandbox, Scope, Snapshot, SnapshotOptions, Stdio, WriteOptions,
};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use crate::harness::{Home, Need, beside, needs, shell, within};
use crate::helper::{Helper, say};

/// How long a fork may take for what it does: on an emulated machine, too, where one that takes
/// seconds elsewhere has taken more than thirty.
const FORK: Duration = Duration::from_secs(90);

/// A child of fork(2), that is this process still, and does something and ends.
#[expect(unsafe_code, reason = "what is tested is what a fork of a program with threads does")]
pub(crate) fn fork(does: impl FnOnce()) -> Pid {
    // SAFETY: the C library makes its own locks and memory usable in the child, which is what any
    // program relies on that forks and goes on. What the library under test does there is the test.
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(does));
            std::process::exit(i32::from(done.is_err()));
        }
    }
}

/// Waits until it has done so.
#[track_caller]
pub(crate) fn finish(fork: Pid) {
    let mut end = WaitStatus::StillAlive;
    let has_ended = within(FORK, || {
        end = waitpid(fork, Some(WaitPidFlag::WNOHANG)).unwrap();
        end != WaitStatus::StillAlive
    });
    if !has_ended {
        kill(fork, Signal::SIGKILL).unwrap();
        waitpid(fork, None).unwrap();
    }
    assert_eq!(end, WaitStatus::Exited(fork, 0), "the fork");
}

/// Has forks do something in a PID namespace of their own: first one that has the number there that
/// this process has outside, then process 1.
fn in_pid_namespaces(does: impl Fn()) {
    let own = std::process::id();
    finish(fork(|| {
        unshare(CloneFlags::CLONE_NEWPID).unwrap();
        finish(fork(|| {
            assert_eq!(std::process::id(), 1);
            std::fs::write("/proc/sys/kernel/ns_last_pid", (own - 1).to_string()).unwrap();
            finish(fork(|| {
                assert_eq!(std::process::id(), own);
                does();
            }));
            does();
        }));
    }));
}

fn config(state: &Path) -> Config {
    Config { state_directory: Some(state.to_owned()), ..Config::default() }
}

#[track_caller]
fn refused<T>(result: Result<T, Error>) {
    match result {
        Err(Error::ForkedProcess { .. }) => {}
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("a fork has used what is its parent's"),
    }
}

#[test]
fn what_a_process_has_made_is_refused_to_its_forks() {
    if needs(&[]) {
        let home = Home::new();
        Helper::start("lend-to-forks", &home.state()).finish();
    }
}

#[test]
fn what_a_process_has_made_is_refused_to_forks_with_its_number() {
    if needs(&[Need::Root]) {
        let home = Home::new();
        Helper::start("lend-to-namespaces", &home.state()).finish();
    }
}

/// The helper of the tests above.
pub(crate) fn lend(state: &Path, lend_to: impl FnOnce(&dyn Fn())) {
    let with_counts =
        Config { limits: Limits { accounting: true, ..Limits::default() }, ..config(state) };
    // Where nothing can be counted, the rest is tried.
    let sandbox = Sandbox::create(with_counts).or_else(|_| Sandbox::create(config(state)));
    let sandbox = sandbox.unwrap();
    let options = SnapshotOptions { name: Some("kept".to_owned()), ..SnapshotOptions::default() };
    let snapshot = sandbox.snapshot_with(&options).unwrap();
    // Now the channel of the next one is ready.
    shell(&sandbox, "echo to be read > /root/read");
    let child = sandbox.shell("read -r line; exit 11").stdin(Stdio::piped()).spawn().unwrap();
    let killed = sandbox.command("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
    let handle = child.handle();
    let job = sandbox.shell("echo said; sleep 1000").background().unwrap();
    assert!(within(FORK, || job.partial_output().stdout == b"said\n"));
    let reader = sandbox.files().open_read("/root/read").unwrap();
    let writer = sandbox.files().open_write("/root/written", WriteOptions::default()).unwrap();

    let parts = std::cell::RefCell::new((
        Some(sandbox),
        Some(snapshot),
        Some(child),
        Some(killed),
        Some(job),
        Some(reader),
        Some(writer),
    ));
    lend_to(&|| {
        let (sandbox, snapshot, child, killed, job, reader, writer) = &mut *parts.borrow_mut();
        {
            let sandbox = sandbox.as_mut().unwrap();
            refused(sandbox.command("true").status());
            refused(sandbox.command("true").output());
            refused(sandbox.command("true").spawn());
            refused(sandbox.command("true").user("daemon").background());
            refused(sandbox.files().read_file("/root/read"));
            refused(sandbox.files().write_file("/root/read", "other"));
            refused(sandbox.files().list_dir("/"));
            refused(sandbox.files().copy_out("/root", state.join("copy")));
            refused(sandbox.stats());
            refused(sandbox.freeze());
            refused(sandbox.thaw());
            refused(sandbox.set_limits(Limits::default()));
            refused(sandbox.changes());
            refused(sandbox.snapshot());
            refused(sandbox.reset());
            assert!(sandbox.jobs().is_empty());
            let job = job.as_ref().unwrap();
            refused(job.try_wait());
            refused(job.wait());
            refused(job.wait_timeout(Duration::ZERO));
            refused(job.kill());
            assert!(job.partial_output().stdout.is_empty());
            for handle in [&handle, &child.as_ref().unwrap().handle()] {
                refused(handle.wait());
                refused(handle.wait_timeout(Duration::ZERO));
                refused(handle.try_wait());
                refused(handle.kill());
                refused(handle.signal(15, Scope::Process));
                refused(handle.stats());
            }
            let mut buffer = [0; 100];
            let refused_io = |error: std::io::Error| {
                refused(Err::<(), _>(*error.into_inner().unwrap().downcast().unwrap()));
            };
            refused_io(reader.as_mut().unwrap().read(&mut buffer).unwrap_err());
            let writer = writer.as_mut().unwrap();
            refused_io(std::io::Write::write(writer, b"of the fork").unwrap_err());
        }
        refused(writer.take().unwrap().finish());
        refused(killed.take().unwrap().wait_with_output());
        refused(child.take().unwrap().wait());
        refused(snapshot.take().unwrap().delete());
        refused(sandbox.take().unwrap().delete());
        // The parent's are dropped with all that is left of them.
        drop((job.take(), reader.take()));
        // It can use what has a name, in its own right.
        let snapshot = Snapshot::open(Some(state), "kept").unwrap();
        let own = Sandbox::create(snapshot.config()).unwrap();
        assert_eq!(own.shell("exit 22").status().unwrap().code(), Some(22));
        refused(Snapshot::remove(Some(state), "kept").map_err(|error| match error {
            Error::Busy { .. } => Error::ForkedProcess { what: "" },
            other => other,
        }));
        own.delete().unwrap();
        drop(snapshot);
        adl_runtime::finish_removals();
    });

    // All is as it was.
    let parts = parts.into_inner();
    let (Some(sandbox), Some(snapshot), Some(mut child)) = (parts.0, parts.1, parts.2) else {
        panic!("these are the parent's")
    };
    let (mut killed, job) = (parts.3.unwrap(), parts.4.unwrap());
    assert!(matches!(Snapshot::remove(Some(state), "kept"), Err(Error::Busy { .. })));
    assert!(killed.try_wait().unwrap().is_none());
    assert!(child.try_wait().unwrap().is_none());
    assert_eq!(child.wait().unwrap().code(), Some(11));
    assert_eq!(sandbox.jobs().len(), 1);
    assert!(job.try_wait().unwrap().is_none());
    assert_eq!(job.partial_output().stdout, b"said\n");
    job.kill().unwrap();
    job.wait().unwrap();
    let mut text = String::new();
    parts.5.unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "to be read\n");
    let mut writer = parts.6.unwrap();
    std::io::Write::write_all(&mut writer, b"of the parent").unwrap();
    writer.finish().unwrap();
    assert_eq!(shell(&sandbox, "cat /root/written"), "of the parent");
    for _ in 0..20 {
        assert_eq!(sandbox.shell("exit 11").status().unwrap().code(), Some(11));
    }
    drop(killed);
    sandbox.reset().unwrap();
    shell(&sandbox, "true");
    sandbox.delete().unwrap();
    snapshot.delete().unwrap();
    adl_runtime::finish_removals();
}

/// The helpers of the tests above.
pub(crate) fn lend_to_forks(state: &Path) {
    lend(state, |does| finish(fork(does)));
}

pub(crate) fn lend_to_namespaces(state: &Path) {
    lend(state, |does| in_pid_namespaces(does));
}

#[test]
fn a_fork_makes_sandboxes_of_its_own() {
    if needs(&[]) {
        let home = Home::new();
        Helper::start("share-with-forks", &home.state()).finish();
    }
}

#[test]
fn a_fork_with_the_same_number_makes_sandboxes_of_its_own() {
    if needs(&[Need::Root]) {
        let home = Home::new();
        Helper::start("share-with-namespaces", &home.state()).finish();
    }
}

/// Makes sandboxes beside those of its parent: all that they have is another's.
fn make_own(state: &Path, parents: &Sandbox) {
    let own: Vec<_> = (0..3).map(|_| Sandbox::create(config(state)).unwrap()).collect();
    let mut ranges: BTreeSet<_> = own.iter().filter_map(Sandbox::id_range).collect();
    let mut names: BTreeSet<_> = own.iter().map(|sandbox| sandbox.name().to_owned()).collect();
    assert!(parents.id_range().is_none_or(|range| ranges.insert(range) && ranges.len() == 4));
    assert!(names.insert(parents.name().to_owned()) && names.len() == 4, "{names:?}");
    for sandbox in &own {
        assert_eq!(sandbox.shell("exit 22").status().unwrap().code(), Some(22));
        sandbox.files().write_file("/root/a", "b").unwrap();
        assert_eq!(shell(sandbox, "cat /root/a; id -u"), "b0\n");
    }
    // What is its parent's has an owner.
    assert_eq!(adl_runtime::collect_garbage(Some(state)).unwrap(), [""; 0]);
    let mut own = own.into_iter();
    let first = own.next().unwrap();
    first.reset().unwrap();
    let snapshot = first.snapshot().unwrap();
    shell(&Sandbox::create(snapshot.config()).unwrap(), "true");
    first.delete().unwrap();
    drop((snapshot, own));
}

fn share(state: &Path, share_with: impl Fn(&dyn Fn())) {
    let sandbox = Sandbox::create(config(state)).unwrap();
    shell(&sandbox, "true");
    let mut ranges = BTreeSet::from_iter(sandbox.id_range());
    for _ in 0..2 {
        share_with(&|| make_own(state, &sandbox));
        // What the fork gave back was not its parent's.
        let next = Sandbox::create(config(state)).unwrap();
        assert!(next.id_range().is_none_or(|range| ranges.insert(range)));
        assert_eq!(sandbox.shell("exit 11").status().unwrap().code(), Some(11));
        next.delete().unwrap();
        assert!(std::fs::exists(state.join("sandboxes").join(sandbox.name())).unwrap());
        // Let go of, it may come again.
        ranges = BTreeSet::from_iter(sandbox.id_range());
    }
    sandbox.delete().unwrap();
    adl_runtime::finish_removals();
}

/// The helpers of the tests above.
pub(crate) fn share_with_forks(state: &Path) {
    share(state, |does| finish(fork(does)));
}

pub(crate) fn share_with_namespaces(state: &Path) {
    share(state, |does| in_pid_namespaces(does));
}

#[test]
fn a_fork_of_a_caller_that_creates_in_threads_hangs_on_nothing() {
    if needs(&[]) {
        let home = Home::new();
        Helper::start("fork-among-threads", &home.state()).finish();
    }
}

/// The helper of the test above.
pub(crate) fn fork_among_threads(state: &Path) {
    let creates = |_| {
        let sandbox = Sandbox::create(config(state)).unwrap();
        sandbox.command("true").status().unwrap();
    };
    beside(3, creates, || {
        for _ in 0..30 {
            finish(fork(|| {
                let sandbox = Sandbox::create(config(state)).unwrap();
                assert_eq!(sandbox.shell("exit 22").status().unwrap().code(), Some(22));
                sandbox.delete().unwrap();
            }));
        }
    });
    adl_runtime::finish_removals();
    say("done");
}
