//! The rows of what was made before it is asked for: pools, and resets with a spare.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use adl_runtime::{Config, Pool, Result, Sandbox};

use super::{Rows, Times};
use crate::values::CliResult;

/// How long something may take to be made ready.
const READY: Duration = Duration::from_secs(30);

/// How many threads go through whole cycles, with the names of the rows: without a pool, and with.
const CYCLES: [(usize, &str, &str); 5] = [
    (1, "cycle_1", "pool_cycle_1"),
    (2, "cycle_2", "pool_cycle_2"),
    (8, "cycle_8", "pool_cycle_8"),
    (32, "cycle_32", "pool_cycle_32"),
    (64, "cycle_64", "pool_cycle_64"),
];

pub(super) fn pools(config: &Config, count: usize, rows: &mut Rows) -> CliResult<()> {
    if count == 0 {
        return Ok(());
    }
    acquire(config, count, rows)?;
    resets(config, count, rows)
}

/// Acquires sandboxes that are ready, and nothing else goes on.
fn acquire(config: &Config, count: usize, rows: &mut Rows) -> CliResult<()> {
    let pool = Pool::builder(config.clone()).build()?;
    let mut times = Times::default();
    for _ in 0..count {
        until("a sandbox of the pool", || {
            let stats = pool.stats();
            stats.idle > 0 && stats.making + stats.deleting == 0
        })?;
        let sandbox = times.measure(|| pool.acquire(Duration::ZERO))?;
        if !sandbox.command("/bin/true").status()?.success() {
            return Err("/bin/true in a sandbox of the pool failed".into());
        }
    }
    pool.close()?;
    adl_runtime::finish_removals();
    rows.insert("acquire", times.row(None));
    Ok(())
}

/// Resets sandboxes with and without a spare, in turns.
fn resets(config: &Config, count: usize, rows: &mut Rows) -> CliResult<()> {
    let create = |spare| Sandbox::create(Config { spare, ..config.clone() });
    let (plain, with_spare) = (create(false)?, create(true)?);
    let (mut of_plain, mut of_spare) = (Times::default(), Times::default());
    for _ in 0..count {
        for (sandbox, times) in [(&plain, &mut of_plain), (&with_spare, &mut of_spare)] {
            sandbox.command("/bin/true").status()?;
            until("a spare", || with_spare.has_spare())?;
            times.measure(|| sandbox.reset())?;
        }
    }
    plain.delete()?;
    with_spare.delete()?;
    adl_runtime::finish_removals();
    rows.insert("reset_plain", of_plain.row(None));
    rows.insert("reset_spare", of_spare.row(None));
    Ok(())
}

/// Goes through cycles of a sandbox, a command in it, and its end, by more and more threads.
pub(super) fn cycles(config: &Config, count: usize, rows: &mut Rows) -> CliResult<()> {
    if count == 0 {
        return Ok(());
    }
    for (threads, plain, pooled) in CYCLES {
        let (times, took) = in_threads(threads, count, || {
            let sandbox = Sandbox::create(config.clone())?;
            sandbox.command("/bin/true").status()?;
            sandbox.delete()
        })?;
        rows.insert(plain, times.row(None).with_rate(took));
        let pool = Pool::builder(config.clone()).prefetch(2).build()?;
        let (times, took) = in_threads(threads, count, || {
            let sandbox = pool.acquire(READY)?;
            sandbox.command("/bin/true").status().map(drop)
        })?;
        rows.insert(pooled, times.row(None).with_rate(took));
        pool.close()?;
        adl_runtime::finish_removals();
    }
    Ok(())
}

/// Does something so often, by so many threads together: how long each took, and all.
pub(super) fn in_threads(
    threads: usize,
    count: usize,
    work: impl Fn() -> Result<()> + Sync,
) -> CliResult<(Times, Duration)> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new((Times::default(), Ok(())));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    let begin = Instant::now();
                    let result = work();
                    let took = begin.elapsed();
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    let (times, all) = &mut *done;
                    times.0.push(took);
                    if let Err(error) = result {
                        *all = Err(error);
                        return;
                    }
                }
            });
        }
    });
    let took = begin.elapsed();
    let (times, result) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    result?;
    Ok((times, took))
}

/// Waits until something is so that a thread of the library brings about.
pub(super) fn until(what: &str, holds: impl Fn() -> bool) -> CliResult<()> {
    let end = Instant::now() + READY;
    while !holds() {
        if Instant::now() > end {
            return Err(format!("waited {READY:?} for {what}").into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
