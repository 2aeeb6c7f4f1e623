//! Threads share one sandbox: several run commands in it, another one resets it.
//!
//! `cargo run --example threads`

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use adl_runtime::{Config, EndReason, Error, ExitStatus, Result, Sandbox};

const THREADS: usize = 3;

fn main() -> std::result::Result<(), Box<dyn StdError>> {
    // All methods take `&self`: there is no lock around it, and no one waits for another's command.
    let sandbox = Arc::new(Sandbox::create(Config::default())?);
    let (started, starts) = channel();
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let (sandbox, started) = (Arc::clone(&sandbox), started.clone());
            thread::spawn(move || work(&sandbox, number, started))
        })
        .collect();
    drop(started);

    // All of them are in the middle of a command now, or have failed.
    println!("{} commands run at once", starts.iter().count());
    sandbox.reset()?;
    for thread in threads {
        print!("{}", thread.join().map_err(|_| "a thread has panicked")??);
    }

    // Whoever still holds it after its end is told so, by a type and not by a text.
    let other = Arc::clone(&sandbox);
    sandbox.delete()?;
    match other.command("true").status() {
        Err(Error::Deleted) => println!("deleted: the others are told that it was"),
        other => println!("deleted: {other:?}"),
    }
    Ok(())
}

/// What one thread does: commands before the reset, one that the reset ends, others after it.
fn work(sandbox: &Sandbox, number: usize, started: Sender<()>) -> Result<String> {
    let status = begin(sandbox, number, started)?;
    let told = match status.reason() {
        EndReason::SandboxDied => "it was reset",
        _ => "something else ended it",
    };
    // What begins now, or has begun meanwhile, is done in what comes after the reset.
    let left = sandbox.files().exists(format!("/tmp/{number}"))?;
    let next = sandbox.command("true").status()?;
    Ok(format!("thread {number}: {told} ({status}); its file is there: {left}; {next}\n"))
}

/// Leaves a file, and runs a command that does not end by itself.
fn begin(sandbox: &Sandbox, number: usize, started: Sender<()>) -> Result<ExitStatus> {
    sandbox.command("touch").arg(format!("/tmp/{number}")).status()?;
    let mut child = sandbox.command("sleep").arg("1000").spawn()?;
    // The main thread listens until all have said it, or have failed: that drops it, too.
    let _ = started.send(());
    drop(started);
    child.wait()
}
