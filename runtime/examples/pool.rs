//! A pool hands out sandboxes that are ready: made and prepared before anyone asks.
//!
//! `cargo run --example pool`

use std::error::Error as StdError;
use std::thread;
use std::time::Duration;

use adl_runtime::{Config, Error, Pool, Result};

const THREADS: usize = 4;
/// How long a sandbox is waited for.
const WAIT: Duration = Duration::from_secs(30);

fn main() -> std::result::Result<(), Box<dyn StdError>> {
    // What takes long is done once for each sandbox, by a thread of the pool.
    let pool = Pool::builder(Config::default())
        .minimum(2)
        .maximum(3)
        .prepare(|sandbox| {
            sandbox.shell("mkdir /work; echo prepared > /work/state").status()?;
            Ok(())
        })
        .build()?;

    // Four threads, three sandboxes: who asked first is the first, and no one sees another's.
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let pool = pool.clone();
            thread::spawn(move || work(&pool, number))
        })
        .collect();
    for thread in threads {
        println!("{}", thread.join().map_err(|_| "a thread has panicked")??);
    }

    // As new, and prepared: it is another sandbox of the pool.
    let mut sandbox = pool.acquire(WAIT)?;
    sandbox.command("rm").args(["-r", "/work"]).status()?;
    sandbox.reset()?;
    let state = sandbox.files().read_file("/work/state")?;
    println!("after a reset: {:?}", String::from_utf8_lossy(&state));

    // For metrics.
    let stats = pool.stats();
    println!("in use {}, failed {}, acquired {}", stats.in_use, stats.failed, stats.acquired);

    // Ends all of it, what is in use among it.
    pool.close()?;
    match pool.acquire(WAIT) {
        Err(Error::PoolClosed) => println!("closed: whoever asks is told"),
        other => println!("closed: {other:?}"),
    }
    Ok(())
}

/// What one thread does: it leaves a file, which no one else may find.
fn work(pool: &Pool, number: usize) -> Result<String> {
    let sandbox = pool.acquire(WAIT)?;
    let found = sandbox.shell("ls /work; echo > /work/$0").arg(number.to_string()).output()?;
    let found = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    // Dropped, it goes back to the pool, which deletes it and makes another.
    Ok(format!("thread {number}: found {found}"))
}
