//! Threads share a sandbox: whatever one changes of it, the others are told what became of theirs.

use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use adl_runtime::{Error, IfRunning, Limits, Result, Sandbox, SnapshotOptions, Stdio, Upper};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::harness::{Home, within};
use crate::lifetime::GONE;

/// Threads that do something over and over until they are told to end.
struct Others {
    end: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<Error>>>,
}

impl Others {
    /// `work` is told how often its thread has done it; its errors are kept.
    fn start(
        count: usize,
        sandbox: &Arc<Sandbox>,
        work: impl Fn(&Sandbox, usize) -> Result<()> + Clone + Send + 'static,
    ) -> Self {
        let (end, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let start = |_| {
            let (sandbox, work) = (Arc::clone(sandbox), work.clone());
            let (end, done) = (Arc::clone(&end), Arc::clone(&done));
            thread::spawn(move || {
                let mut errors = Vec::new();
                for number in 0.. {
                    if end.load(Ordering::Relaxed) {
                        break;
                    }
                    errors.extend(work(&sandbox, number).err());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                errors
            })
        };
        let threads = (0..count).map(start).collect();
        Self { end, done, threads }
    }

    /// Waits until they have done so much more.
    fn await_more(&self, count: usize) {
        let until = self.done.load(Ordering::Relaxed) + count;
        assert!(within(GONE, || self.done.load(Ordering::Relaxed) >= until));
    }

    fn end(self) -> Vec<Error> {
        self.end.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

/// Commands and file calls, each of which has to be right where it succeeds.
fn use_it(sandbox: &Sandbox, number: usize) -> Result<()> {
    let text = number.to_string();
    if number.is_multiple_of(2) {
        let output = sandbox.command("/bin/echo").arg(&text).output()?;
        if output.status.success() {
            assert_eq!(output.stdout, format!("{text}\n").as_bytes());
        }
        return Ok(());
    }
    // Another thread has it by another name.
    let path = format!("/tmp/{:?}", thread::current().id());
    sandbox.files().write_file(&path, text.as_bytes())
}

fn is_death(error: &Error) -> bool {
    match error {
        Error::SandboxDied | Error::Deleted => true,
        Error::Start { .. } | Error::File { .. } => false,
        other => panic!("{other}: {other:?}"),
    }
}

#[test]
fn what_runs_beside_a_reset_ends_with_it_or_comes_after_it() {
    let home = Home::new();
    let sandbox = Arc::new(home.sandbox());
    let others = Others::start(3, &sandbox, use_it);
    for _ in 0..30 {
        others.await_more(1);
        sandbox.reset().unwrap();
        assert!(sandbox.command("true").status().unwrap().success());
    }
    others.await_more(10);
    let errors = others.end();
    assert!(errors.iter().all(is_death), "{errors:?}");
    // No command comes to an end of its own without having run.
    sandbox.reset().unwrap();
    assert!(sandbox.jobs().is_empty());
    sandbox.delete().unwrap();
    drop(sandbox);
    home.assert_settled();
}

#[test]
fn a_snapshot_that_refuses_what_runs_hurts_no_command_of_another_thread() {
    let home = Home::new();
    let sandbox = Arc::new(home.sandbox());
    // So much that it takes the caller a while between a look at the sandbox and the request.
    let large = "x".repeat(100 << 10);
    let others = Others::start(1, &sandbox, move |sandbox, _| {
        sandbox.command("/bin/true").args(vec![&large; 10]).output().map(drop)
    });
    let (mut made, mut refused) = (0, 0);
    // Each lies on those before it, and there can be no more than the layers of a sandbox.
    while made < 100 && (made < 10 || refused < 10) {
        match sandbox.snapshot() {
            Ok(snapshot) => {
                made += 1;
                drop(snapshot);
                // Else no command may come to begin between one snapshot and the next.
                others.await_more(1);
            }
            Err(Error::Busy { .. }) => refused += 1,
            Err(error) => panic!("{error}, after {made} made, {refused} refused"),
        }
    }
    let errors = others.end();
    assert!(refused != 0 && made != 0, "{made} made, {refused} refused");
    assert!(errors.is_empty(), "{made} made, {refused} refused: {errors:?}");
    // The control: one that ends what runs.
    let others = Others::start(2, &sandbox, |sandbox, _| {
        sandbox.command("sleep").arg("1000").output().map(drop)
    });
    let options = SnapshotOptions { running: IfRunning::End, ..SnapshotOptions::default() };
    let ended = within(GONE, || {
        sandbox.snapshot_with(&options).unwrap();
        others.done.load(Ordering::Relaxed) >= 2
    });
    others.end.store(true, Ordering::Relaxed);
    sandbox.delete().unwrap();
    assert!(ended && others.end().iter().all(is_death));
}

#[test]
fn limits_and_counts_are_there_for_all() {
    let home = Home::new();
    let limits = Limits { accounting: true, ..Limits::default() };
    let config = adl_runtime::Config { limits: limits.clone(), ..home.config() };
    let sandbox = match Sandbox::create(config) {
        Err(Error::Unsupported { what, .. }) => return eprintln!("skipped: {what}"),
        made => Arc::new(made.unwrap()),
    };
    let others = Others::start(2, &sandbox, |sandbox, number| {
        sandbox.command("true").status()?;
        sandbox.stats()?;
        let pids = Some(64 + u32::try_from(number % 64).unwrap());
        sandbox.set_limits(Limits { pids, accounting: true, ..Limits::default() })
    });
    for _ in 0..10 {
        others.await_more(1);
        sandbox.reset().unwrap();
    }
    let errors = others.end();
    assert!(errors.iter().all(is_death), "{errors:?}");
    sandbox.set_limits(limits).unwrap();
    // What is set in one life holds in the next.
    sandbox.set_limits(Limits { pids: Some(5), accounting: true, ..Limits::default() }).unwrap();
    sandbox.reset().unwrap();
    let output = sandbox.shell("for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done").output().unwrap();
    assert!(!output.stderr.is_empty(), "{output:?}");
}

#[test]
fn who_freezes_beside_an_end_hinders_no_end() {
    let home = Home::new();
    let limits = Limits { accounting: true, ..Limits::default() };
    let config = adl_runtime::Config { limits, ..home.config() };
    for is_deleted in [false, true] {
        let sandbox = match Sandbox::create(config.clone()) {
            Err(Error::Unsupported { what, .. }) => return eprintln!("skipped: {what}"),
            made => Arc::new(made.unwrap()),
        };
        match sandbox.freeze() {
            Err(Error::Unsupported { what, .. }) => return eprintln!("skipped: {what}"),
            frozen => frozen.unwrap(),
        }
        sandbox.thaw().unwrap();
        for _ in 0..5 {
            // Many, so that their end takes a while.
            let many = "for i in $(seq 100); do sleep 1000 & done; echo ready; wait";
            let mut child = sandbox.shell(many).stdout(Stdio::piped()).spawn().unwrap();
            let mut ready = [0; 6];
            child.stdout.take().unwrap().read_exact(&mut ready).unwrap();
            let others = Others::start(1, &sandbox, |sandbox, _| sandbox.freeze());
            others.await_more(1);
            match is_deleted {
                true => sandbox.delete().unwrap(),
                false => sandbox.reset().unwrap(),
            }
            others.await_more(1);
            let errors = others.end();
            assert!(errors.iter().all(is_death), "{errors:?}");
            if is_deleted {
                break;
            }
            sandbox.thaw().unwrap();
        }
        drop(sandbox);
        home.assert_settled();
    }
}

#[test]
fn a_list_is_of_one_life() {
    let home = Home::new();
    let sandbox = Arc::new(home.sandbox());
    let others = Others::start(2, &sandbox, |sandbox, _| {
        let mut files = sandbox.files();
        let mut names: Vec<_> =
            files.entry_limit(1 << 20).list_dir("/tmp")?.into_iter().map(|e| e.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "of two lives");
        match sandbox.changes() {
            Ok(changes) => {
                let there = changes.iter().filter(|c| c.path.starts_with("/tmp/")).count();
                assert!(there <= 9_000);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    });
    for _ in 0..5 {
        let fill = "cd /tmp && seq 9000 | xargs touch";
        assert!(sandbox.shell(fill).status().unwrap().success());
        let changes = sandbox.changes().unwrap();
        let there = changes.iter().filter(|c| c.path.starts_with("/tmp/")).count();
        assert_eq!(there, 9_000);
        others.await_more(1);
        sandbox.reset().unwrap();
    }
    let errors = others.end();
    assert!(errors.iter().all(is_death), "{errors:?}");
}

#[test]
fn of_several_who_delete_it_none_returns_before_it_is_gone() {
    let home = Home::new();
    for _ in 0..20 {
        let config = adl_runtime::Config { name: Some("shared".to_owned()), ..home.config() };
        let sandbox = Arc::new(Sandbox::create(config.clone()).unwrap());
        sandbox.shell("for i in $(seq 100); do sleep 1000 & done").status().unwrap();
        let init = sandbox.pidfd().unwrap();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (sandbox, init) = (Arc::clone(&sandbox), init.try_clone().unwrap());
                thread::spawn(move || {
                    sandbox.delete().unwrap();
                    let mut fds = [PollFd::new(init.as_fd(), PollFlags::POLLIN)];
                    poll(&mut fds, PollTimeout::ZERO).unwrap()
                })
            })
            .collect();
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(ended, [1; 3]);
    }
}

#[test]
fn what_was_deleted_holds_no_descriptor() {
    let home = Home::new();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let make = || {
        let sandbox = home.sandbox();
        assert!(sandbox.command("true").status().unwrap().success());
        sandbox.delete().unwrap();
        adl_runtime::finish_removals();
        sandbox
    };
    // What the process has once is there from the second on.
    let first = [make(), make()];
    let before = open();
    let kept: Vec<_> = (0..10).map(|_| make()).collect();
    // Each has its state directory open, and no more.
    assert!(open() - before <= kept.len(), "{} for {} more", open() - before, kept.len());
    drop(first);
}

#[test]
fn a_sandbox_that_was_deleted_says_so_to_all() {
    let home = Home::new();
    let sandbox = Arc::new(home.sandbox());
    let others = Others::start(2, &sandbox, use_it);
    others.await_more(4);
    sandbox.delete().unwrap();
    others.await_more(4);
    let errors = others.end();
    assert!(!errors.is_empty() && errors.iter().all(is_death), "{errors:?}");
    let died = |result: Result<()>| matches!(result, Err(Error::Deleted));
    assert!(!sandbox.is_alive());
    assert!(died(sandbox.command("true").status().map(drop)));
    assert!(died(sandbox.files().read_file("/etc/passwd").map(drop)));
    assert!(died(sandbox.reset()));
    assert!(died(sandbox.snapshot().map(drop)));
    assert!(died(sandbox.changes().map(drop)));
    assert!(died(sandbox.pidfd().map(drop)));
    assert!(sandbox.jobs().is_empty());
    // Of several who delete it one does.
    sandbox.delete().unwrap();
    // Its name is another's.
    let config = adl_runtime::Config {
        name: Some(sandbox.name().to_owned()),
        upper: Upper::Memory { size: 1 << 20 },
        ..home.config()
    };
    Sandbox::create(config).unwrap();
}

#[test]
fn who_asks_beside_a_snapshot_or_a_reset_is_told_that_it_is_alive() {
    let home = Home::new();
    let sandbox = Arc::new(home.sandbox());
    let is_over = Arc::new(AtomicBool::new(false));
    let asks = {
        let (sandbox, is_over) = (Arc::clone(&sandbox), Arc::clone(&is_over));
        thread::spawn(move || {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                assert!(sandbox.is_alive(), "after {count} times");
                count += 1;
            }
            count
        })
    };
    for turn in 0..40 {
        if turn % 2 == 0 {
            sandbox.reset().unwrap();
        } else {
            let running = IfRunning::End;
            let options = SnapshotOptions { running, ..SnapshotOptions::default() };
            drop(sandbox.snapshot_with(&options).unwrap());
        }
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(asks.join().unwrap() > 40);
    sandbox.delete().unwrap();
    assert!(!sandbox.is_alive());
}
