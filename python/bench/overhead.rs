//! The side of the library's own interface in `overhead.py`: measures what a line on stdin says,
//! and answers with a line of JSON.

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::sync::Barrier;
use std::time::Instant;
use std::{fs, thread};

use adl_runtime::{Config, Result, Sandbox, WriteOptions};

/// Where the probe is, inside.
const PROBE: &str = "/tmp/probe";

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("overhead PROBE")?;
    let probe = fs::read(Path::new(&path))?;
    let sandbox = with_probe(&probe)?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split(' ');
        let word = words.next().unwrap_or_default();
        let number: usize = words.next().unwrap_or("1").parse()?;
        let answer = match word {
            "run" => runs(&sandbox, number)?,
            "workers" => vec![workers(&probe, number, words.next().unwrap_or("1").parse()?)?],
            other => return Err(format!("{other:?} is nothing to measure").into()),
        };
        println!("{answer:?}");
        io::stdout().flush()?;
    }
    sandbox.delete()?;
    Ok(())
}

fn with_probe(probe: &[u8]) -> Result<Sandbox> {
    let sandbox = Sandbox::create(Config::default())?;
    sandbox.files().write_with(PROBE, probe, WriteOptions::new().mode(0o755))?;
    Ok(sandbox)
}

/// What each of so many runs takes, in microseconds.
fn runs(sandbox: &Sandbox, number: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(number);
    for _ in 0..number {
        let begin = Instant::now();
        let output = sandbox.command(PROBE).output()?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        assert!(output.status.success(), "{}", output.status);
    }
    Ok(times)
}

/// How many runs a second so many threads make, each in a sandbox of its own.
fn workers(probe: &[u8], threads: usize, runs_each: usize) -> Result<f64> {
    let sandboxes: Vec<_> = (0..threads).map(|_| with_probe(probe)).collect::<Result<_>>()?;
    let ready = Barrier::new(threads + 1);
    let seconds = thread::scope(|scope| {
        let work = |sandbox| {
            let ready = &ready;
            move || {
                ready.wait();
                runs(sandbox, runs_each)
            }
        };
        let handles: Vec<_> = sandboxes.iter().map(|it| scope.spawn(work(it))).collect();
        ready.wait();
        let begin = Instant::now();
        for handle in handles {
            handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok::<_, adl_runtime::Error>(begin.elapsed().as_secs_f64())
    })?;
    Ok((threads * runs_each) as f64 / seconds)
}
