//! Limits: memory, processes, time and output, and what a command's end tells of them.
//!
//! `cargo run --example limits`
//!
//! Where the caller can make no cgroups, as an ordinary user without delegation, memory and
//! processes are limited for each process and user alone, and only the exit status tells.

use std::error::Error;
use std::time::Duration;

use adl_runtime::{Config, EndReason, ErrorKind, Leftovers, Limits, Output, Resource, Sandbox};

const MEMORY: u64 = 64 << 20;
const PROCESSES: u32 = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let limits = Limits { memory: Some(MEMORY), pids: Some(PROCESSES), ..Limits::default() };
    let (sandbox, has_cgroups) = match Sandbox::create(Config { limits, ..Config::default() }) {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            println!("without cgroups: {error}");
            (Sandbox::create(Config::default())?, false)
        }
        created => (created?, true),
    };
    // What each process, or each user, may have: the next best, which tells no reason.
    let command = |script: &str| {
        let mut command = sandbox.shell(script);
        if !has_cgroups {
            command.rlimit(Resource::AddressSpace, MEMORY, MEMORY);
            command.rlimit(Resource::Processes, PROCESSES.into(), PROCESSES.into());
        }
        command
    };

    // It keeps all that it reads, as far as that has no end of a line.
    tell("memory", &command("tail /dev/zero").output()?);

    // Where there can be no more processes, to start one fails inside. A shell gives up then, at
    // once or after some attempts. What it has started ends with it.
    let mut many = command("exec sh -c 'for i in $(seq 64); do sleep 1000 & done'");
    many.leftovers(Leftovers::End).timeout(Duration::from_secs(2));
    tell("processes", &many.output()?);

    // What a command wrote until its time was up is kept; all that it has started is gone.
    let mut slow = command("echo so far; sleep 1000 & setsid sleep 1000");
    tell("time", &slow.timeout(Duration::from_secs(2)).output()?);
    let mut silent = command("echo so far; sleep 1000");
    tell("silence", &silent.idle_timeout(Duration::from_millis(200)).output()?);

    // The library keeps so much of each stream, and counts the rest.
    let mut talkative = command("yes");
    tell("output", &talkative.keep_output(4, 4).output_limit(1 << 20).output()?);

    // None of this hurts the sandbox.
    println!("after all: {}", sandbox.command("true").status()?);
    if has_cgroups {
        let stats = sandbox.stats()?;
        println!("stats: {:?} of CPU, {:?} kills", stats.cpu_time, stats.oom_kills);
    }
    Ok(sandbox.delete()?)
}

/// Prints how a command ended, and why.
fn tell(name: &str, output: &Output) {
    let why = match output.status.reason() {
        EndReason::Exited => "it exited by itself",
        EndReason::OutOfMemory => "the sandbox had no more memory",
        EndReason::TimedOut => "its time was up",
        EndReason::Idle => "it was silent for too long",
        EndReason::OutputLimit => "it wrote too much",
        // A signal from inside, or the end of the sandbox.
        _ => "something ended it",
    };
    println!("{name}: {why} ({})", output.status);
    if !output.stdout.is_empty() {
        let kept = String::from_utf8_lossy(&output.stdout);
        println!("{name}: kept {:?}, {} bytes left out", kept.trim_end(), output.stdout_dropped);
    }
    let complaints = String::from_utf8_lossy(&output.stderr);
    complaints.lines().take(1).for_each(|line| println!("{name}: {line}"));
}
