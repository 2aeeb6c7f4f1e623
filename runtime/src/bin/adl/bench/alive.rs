//! The rows of thousands of sandboxes that are alive at once: in this process, and in many.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use adl_runtime::{Config, Sandbox};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::{Rows, Times};
use crate::output::print;
use crate::values::CliResult;

/// Where it is asked how long a create takes: after so many more.
const STEP: usize = 250;
/// How many processes share the sandboxes of the second form.
const PROCESSES: usize = 16;
/// What a sandbox may have of the caller's descriptors, and what all of them together have besides.
const DESCRIPTORS_EACH: usize = 6;
const DESCRIPTORS_BESIDE: usize = 256;

/// What all of them run.
const PROGRAM: &str = "/bin/true";

/// The variable by which this program starts itself as one of many processes, which are told on
/// stdin what to do; how many sandboxes each has is its value.
pub(super) const PART: &str = "ADL_BENCH_PART";

/// Makes `count` sandboxes in this process, has each answer, and deletes them; then so many in
/// sixteen processes together.
pub(super) fn alive(config: &Config, count: usize, rows: &mut Rows) -> CliResult<()> {
    if count == 0 {
        return Ok(());
    }
    allow_descriptors(count)?;
    in_one(config, count, rows)?;
    in_many(count.div_ceil(PROCESSES), rows)
}

/// Raises the limit of open files to what so many sandboxes need, or as far as that can be done.
fn allow_descriptors(sandboxes: usize) -> CliResult<()> {
    let needed = (sandboxes * DESCRIPTORS_EACH + DESCRIPTORS_BESIDE) as u64;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < needed && setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed)).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

fn in_one(config: &Config, count: usize, rows: &mut Rows) -> CliResult<()> {
    let before = Machine::look()?;
    let (mut create, mut job, mut delete) = <(Times, Times, Times)>::default();
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let made = create.measure(|| Sandbox::create(config.clone()));
        all.push(made.map_err(|error| format!("after {} sandboxes: {error}", all.len()))?);
    }
    let idle = Machine::look()?;
    for sandbox in &all {
        answer(sandbox, &mut job)?;
    }
    let worked = Machine::look()?;
    let begin = Instant::now();
    for sandbox in &all {
        delete.measure(|| sandbox.delete())?;
    }
    let deleted = begin.elapsed();
    adl_runtime::finish_removals();
    let removed = begin.elapsed();
    drop(all);
    let each = |more: f64| more / count as f64;
    rows.insert(
        "alive_create",
        create
            .row(None)
            .with_steps(&create, STEP)
            .with("memory_each_kib", each(before.memory_kib - idle.memory_kib))
            .with("memory_each_after_a_job_kib", each(before.memory_kib - worked.memory_kib))
            .with("slab_each_kib", each(worked.slab_kib - before.slab_kib))
            .with("descriptors_each", each(idle.descriptors - before.descriptors)),
    );
    rows.insert("alive_job", job.row(None).with_steps(&job, STEP));
    let seconds = [("all_seconds", deleted), ("all_removed_seconds", removed)];
    let row = delete.row(None).with_steps(&delete, STEP);
    rows.insert(
        "alive_delete",
        seconds.into_iter().fold(row, |row, (name, took)| row.with(name, took.as_secs_f64())),
    );
    Ok(())
}

fn answer(sandbox: &Sandbox, times: &mut Times) -> CliResult<()> {
    let status = times.measure(|| sandbox.command(PROGRAM).status())?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{PROGRAM} in one of many sandboxes: {status}").into()),
    }
}

/// What the machine has, and this process.
struct Machine {
    /// `MemAvailable`.
    memory_kib: f64,
    slab_kib: f64,
    descriptors: f64,
}

impl Machine {
    fn look() -> CliResult<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_ascii_whitespace().next());
            number.and_then(|number| number.parse().ok()).ok_or(format!("/proc/meminfo: no {name}"))
        };
        let descriptors = fs::read_dir("/proc/self/fd")?.count() as f64;
        Ok(Self { memory_kib: value("MemAvailable:")?, slab_kib: value("Slab:")?, descriptors })
    }
}

/// What one of many processes is asked, a line each, and what it answers: a line of JSON.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Ask {
    Create,
    Job,
    Delete,
}

/// One of many processes.
struct Member {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Member {
    fn start(count: usize) -> CliResult<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(PART, count.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (asks, answers) = (child.stdin.take(), child.stdout.take());
        let (Some(asks), Some(answers)) = (asks, answers) else { return Err("no pipe".into()) };
        Ok(Self { child, asks, answers: BufReader::new(answers) })
    }

    fn ask(&mut self, what: Ask) -> CliResult<()> {
        let line = serde_json::to_string(&what)? + "\n";
        Ok(self.asks.write_all(line.as_bytes())?)
    }

    /// How long each took.
    fn answer(&mut self) -> CliResult<Vec<Duration>> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err("one of many processes has ended".into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn end(mut self) -> CliResult<()> {
        drop(self.asks);
        match self.child.wait()? {
            status if status.success() => Ok(()),
            status => Err(format!("one of many processes: {status}").into()),
        }
    }
}

/// Each process makes its own one after the other; all of them answer and are deleted at once.
fn in_many(count: usize, rows: &mut Rows) -> CliResult<()> {
    let before = Machine::look()?;
    let mut members =
        (0..PROCESSES).map(|_| Member::start(count)).collect::<CliResult<Vec<_>>>()?;
    let mut create = Times::default();
    for member in &mut members {
        member.ask(Ask::Create)?;
        create.0.extend(member.answer()?);
    }
    let idle = Machine::look()?;
    let mut at_once = |what| -> CliResult<(Times, Duration)> {
        let begin = Instant::now();
        members.iter_mut().try_for_each(|member| member.ask(what))?;
        let mut times = Times::default();
        for member in &mut members {
            times.0.extend(member.answer()?);
        }
        Ok((times, begin.elapsed()))
    };
    let (job, _) = at_once(Ask::Job)?;
    let (delete, took) = at_once(Ask::Delete)?;
    members.into_iter().try_for_each(Member::end)?;
    let each = (before.memory_kib - idle.memory_kib) / (count * PROCESSES) as f64;
    let row = create.row(None).with_steps(&create, count).with("memory_each_kib", each);
    rows.insert("alive_create_16", row);
    rows.insert("alive_job_16", job.row(None));
    rows.insert("alive_delete_16", delete.row(None).with("all_seconds", took.as_secs_f64()));
    Ok(())
}

/// What one of many processes does: as it is asked on stdin, until that ends.
pub(super) fn part(config: &Config, count: usize) -> CliResult<()> {
    allow_descriptors(count)?;
    // Once unmeasured, as in the one process.
    for _ in 0..2 {
        Sandbox::create(config.clone())?.delete()?;
    }
    let mut all = Vec::with_capacity(count);
    for line in std::io::stdin().lines() {
        let mut times = Times::default();
        match serde_json::from_str(&line?)? {
            Ask::Create => {
                for _ in 0..count {
                    all.push(times.measure(|| Sandbox::create(config.clone()))?);
                }
            }
            Ask::Job => {
                for sandbox in &all {
                    answer(sandbox, &mut times)?;
                }
            }
            Ask::Delete => {
                for sandbox in all.drain(..) {
                    times.measure(|| sandbox.delete())?;
                }
                adl_runtime::finish_removals();
            }
        }
        print(serde_json::to_string(&times.0)? + "\n")?;
    }
    Ok(())
}
