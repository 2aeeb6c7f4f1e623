//! Threads share a sandbox: whatever one changes of it, the others are told what became of theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use adl_runtime::{Error, IfRunning, Limits, Result, Sandbox, SnapshotOptions, Upper};

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
        Error::SandboxDied => true,
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
    let others = Others::start(2, &sandbox, move |sandbox, _| {
        sandbox.command("/bin/true").args(vec![&large; 10]).output().map(drop)
    });
    let (mut made, mut refused) = (0, 0);
    for _ in 0..300 {
        match sandbox.snapshot() {
            Ok(snapshot) => {
                made += 1;
                drop(snapshot);
            }
            Err(Error::Busy { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if made >= 50 || made >= 10 && refused >= 10 {
            break;
        }
    }
    let errors = others.end();
    assert!(refused != 0, "{made} made");
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
    let died = |result: Result<()>| matches!(result, Err(Error::SandboxDied));
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
