//! Runs the tests, each in a process of its own, and ends with a result whatever one does.
//!
//! Takes the arguments that the test harness of Rust takes, as far as they choose tests:
//! `cargo test --package adl-tests -- [FILTER…] [--skip FILTER] [--exact] [--ignored] …`
//!
//! A test tells what the runner must know by lines in a file (`report.rs`): that it is skipped,
//! that it takes long, that it must be alone.

#![allow(clippy::unwrap_used, reason = "what cargo sets is there")]

mod cargo;
mod report;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lexopt::{Arg, ValueExt as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use report::{Line, Missing};

/// After how long a test is named that still runs.
const LONG: Duration = Duration::from_secs(60);
/// How long the kernel may take to end what was killed.
const KILLED: Duration = Duration::from_secs(10);

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let result = Options::parse().and_then(|options| run(&options));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(101),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(101)
        }
    }
}

/// Runs what is asked for. Whether nothing failed.
fn run(options: &Options) -> Result<bool> {
    let begin = Instant::now();
    let tests = match std::env::var_os(report::TESTS) {
        Some(path) => path.into(),
        None => {
            cargo::build("adl", &["test", "--no-run", "--package", "adl-tests", "--test", "adl"])?
        }
    };
    let all = list(&tests, &[])?;
    let ignored: BTreeSet<String> = list(&tests, &["--ignored"])?.into_iter().collect();
    let count = all.len();
    let chosen: Vec<String> =
        all.into_iter().filter(|name| options.chooses(name, &ignored)).collect();
    let filtered_out = count - chosen.len();
    if options.list {
        chosen.iter().for_each(|name| println!("{name}: test"));
        return Ok(true);
    }
    let adl = match std::env::var_os("ADL_BIN") {
        Some(path) => path.into(),
        None => cargo::build("adl", &cargo::ADL)?,
    };
    let runner = Runner { tests, adl, directory: tempfile::tempdir()?, options };
    fs::create_dir(runner.found())?;

    println!("\nrunning {} tests", chosen.len());
    let (waiting, not_run): (Vec<_>, Vec<_>) = chosen
        .into_iter()
        .partition(|name| options.ignored != Ignored::Left || !ignored.contains(name));
    not_run.iter().for_each(|name| println!("test {name} ... ignored"));
    let (alone, mut ended): (Vec<_>, Vec<_>) = runner
        .side_by_side(waiting)
        .into_iter()
        .partition(|ended| ended.outcome == Outcome::MustBeAlone);
    // In the order of their names, so that two runs are alike.
    let alone: BTreeSet<String> = alone.into_iter().map(|ended| ended.name).collect();
    ended.extend(alone.into_iter().map(|name| runner.one(name, Company::None)));
    Ok(summary(&ended, not_run.len(), filtered_out, begin.elapsed()))
}

/// The names of the tests in a binary.
fn list(tests: &Path, arguments: &[&str]) -> Result<Vec<String>> {
    let mut command = Command::new(tests);
    let output = command.args(["--list", "--format", "terse"]).args(arguments).output();
    let output = output.map_err(|error| format!("{}: {error}", tests.display()))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", output.status).into());
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())).collect())
}

/// What becomes of tests that are marked with `#[ignore]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ignored {
    /// They are counted.
    Left,
    /// They run, and no other.
    Only,
    /// They run, too.
    Included,
}

/// What to run, and how.
struct Options {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    ignored: Ignored,
    list: bool,
    show_output: bool,
    workers: usize,
}

impl Options {
    fn parse() -> Result<Self> {
        let mut options = Self {
            filters: Vec::new(),
            skip: Vec::new(),
            exact: false,
            ignored: Ignored::Left,
            list: false,
            show_output: false,
            // Some of them wait for most of their time.
            workers: std::thread::available_parallelism().map_or(1, usize::from) + 1,
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Arg::Value(filter) => options.filters.push(filter.string()?),
                Arg::Long("skip") => options.skip.push(parser.value()?.string()?),
                Arg::Long("exact") => options.exact = true,
                Arg::Long("ignored") => options.ignored = Ignored::Only,
                Arg::Long("include-ignored") => options.ignored = Ignored::Included,
                Arg::Long("list") => options.list = true,
                Arg::Long("nocapture" | "no-capture" | "show-output") => options.show_output = true,
                Arg::Long("test-threads") => options.workers = parser.value()?.parse()?,
                // It has no colours, and one way to say things.
                Arg::Long("color" | "format") => drop::<OsString>(parser.value()?),
                Arg::Short('q') | Arg::Long("quiet") => {}
                other => return Err(other.unexpected().into()),
            }
        }
        if options.workers == 0 {
            return Err("--test-threads must be at least 1".into());
        }
        Ok(options)
    }

    fn chooses(&self, name: &str, ignored: &BTreeSet<String>) -> bool {
        let fits = |filter: &String| {
            if self.exact { name == filter } else { name.contains(filter.as_str()) }
        };
        (self.filters.is_empty() || self.filters.iter().any(fits))
            && !self.skip.iter().any(fits)
            && (self.ignored != Ignored::Only || ignored.contains(name))
    }
}

/// What runs beside a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Company {
    Others,
    None,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
    Skipped(Vec<Missing>),
    MustBeAlone,
}

/// A test that has run.
struct Ended {
    name: String,
    outcome: Outcome,
    /// What it wrote.
    output: String,
}

struct Runner<'a> {
    tests: PathBuf,
    adl: PathBuf,
    directory: tempfile::TempDir,
    options: &'a Options,
}

impl Runner<'_> {
    /// Where tests leave what they have found out for all.
    fn found(&self) -> PathBuf {
        self.directory.path().join("found")
    }

    /// Runs tests, so many at a time as there are workers.
    fn side_by_side(&self, tests: Vec<String>) -> Vec<Ended> {
        let waiting = Mutex::new(VecDeque::from(tests));
        let ended = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..self.options.workers {
                scope.spawn(|| {
                    while let Some(name) = next(&waiting) {
                        let one = self.one(name, Company::Others);
                        lock(&ended).push(one);
                    }
                });
            }
        });
        ended.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a test and tells how it ended.
    fn one(&self, name: String, company: Company) -> Ended {
        let begin = Instant::now();
        let ended = match self.try_one(&name, company) {
            Ok((outcome, output)) => Ended { name, outcome, output },
            Err(error) => {
                let outcome = Outcome::Failed(format!("it could not be run: {error}"));
                Ended { name, outcome, output: String::new() }
            }
        };
        let took = begin.elapsed().as_secs_f64();
        let name = &ended.name;
        match &ended.outcome {
            Outcome::Passed => println!("test {name} ... ok ({took:.1} s)"),
            Outcome::Failed(why) => println!("test {name} ... FAILED: {why} ({took:.1} s)"),
            Outcome::Skipped(missing) => {
                let missing: Vec<_> = missing.iter().map(|one| &*one.name).collect();
                println!("test {name} ... skipped, without {}", missing.join(", "));
            }
            Outcome::MustBeAlone => {}
        }
        if self.options.show_output && ended.outcome != Outcome::MustBeAlone {
            println!("---- {name} ----\n{}", ended.output);
        }
        ended
    }

    fn try_one(&self, name: &str, company: Company) -> Result<(Outcome, String)> {
        let place = tempfile::tempdir_in(self.directory.path())?;
        let (report, written) = (place.path().join("report"), place.path().join("output"));
        File::create(&report)?;
        let output = File::create(&written)?;
        let mut command = Command::new(&self.tests);
        command.args(["--exact", name, "--include-ignored", "--nocapture", "--color", "never"]);
        command.env(report::REPORT, &report).env(report::FOUND, self.found());
        command.env(report::SUITE, std::env::current_exe()?).env("ADL_BIN", &self.adl);
        match company {
            Company::Others => command.env_remove(report::ALONE),
            Company::None => command.env(report::ALONE, "1"),
        };
        // A file, which no one that a test leaves behind can keep open so that its end is not seen.
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn()?;
        let end = wait(name, child, &report)?;
        let lines = lines(&report);
        let output = String::from_utf8_lossy(&fs::read(&written)?).into_owned();
        let is_told = output.contains("\ntest result: ok. 1 passed");
        let outcome = match end {
            _ if lines.contains(&Line::Alone) => Outcome::MustBeAlone,
            End::Late(limit) => Outcome::Failed(format!("still running after {limit:?}")),
            End::Stuck(limit) => {
                Outcome::Failed(format!("still running after {limit:?}, and can't be killed"))
            }
            // It says so itself, too: a process may also end in the middle of a test.
            End::Itself(status) if status.success() && is_told => {
                let missing: Vec<Missing> = lines.into_iter().filter_map(missing).collect();
                if missing.is_empty() { Outcome::Passed } else { Outcome::Skipped(missing) }
            }
            End::Itself(status) if status.success() => {
                Outcome::Failed("it ended without a result".to_owned())
            }
            End::Itself(status) => Outcome::Failed(status.to_string()),
        };
        Ok((outcome, without_frame(&output, name).to_owned()))
    }
}

/// Waits for a test, no longer than it may take, and ends it then.
fn wait(name: &str, mut child: Child, report: &Path) -> Result<End> {
    let begin = Instant::now();
    let (mut since, mut limit) = (begin, report::ORDINARY);
    let (mut length, mut is_named) = (0, false);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(End::Itself(status));
        }
        let now = Instant::now();
        let written = fs::metadata(report)?.len();
        if written != length {
            length = written;
            let takes = lines(report).into_iter().rev().find_map(|line| match line {
                Line::Takes(limit) => Some(limit),
                _ => None,
            });
            (since, limit) = takes.map_or((since, limit), |limit| (now, limit));
        }
        if now - since >= limit {
            kill_with_descendants(&child);
            let killed = Instant::now();
            while child.try_wait()?.is_none() {
                if killed.elapsed() > KILLED {
                    return Ok(End::Stuck(limit));
                }
                std::thread::sleep(LOOK);
            }
            return Ok(End::Late(limit));
        }
        if now - begin >= LONG && !is_named {
            is_named = true;
            println!("test {name} has been running for over {LONG:?}");
        }
        std::thread::sleep(LOOK);
    }
}

/// How often a runner looks at a test. The standard library has no wait with a deadline.
const LOOK: Duration = Duration::from_millis(5);

/// How a test's process ended.
enum End {
    Itself(ExitStatus),
    /// It was killed when it had taken so long.
    Late(Duration),
    /// It was killed, and is still there.
    Stuck(Duration),
}

/// What a test wrote, without what its harness wrote around that.
fn without_frame<'a>(output: &'a str, name: &str) -> &'a str {
    let output = output.trim_start().trim_start_matches("running 1 test\n");
    output.rfind(&format!("test {name} ... ")).map_or(output, |end| &output[..end]).trim()
}

fn next(waiting: &Mutex<VecDeque<String>>) -> Option<String> {
    lock(waiting).pop_front()
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lines(report: &Path) -> Vec<Line> {
    fs::read_to_string(report).unwrap_or_default().lines().filter_map(Line::parse).collect()
}

fn missing(line: Line) -> Option<Missing> {
    match line {
        Line::Skipped(missing) => Some(missing),
        _ => None,
    }
}

/// Kills a test and what it has started. It is stopped first, so that it starts nothing meanwhile.
fn kill_with_descendants(child: &Child) {
    let Ok(root) = i32::try_from(child.id()) else { return };
    // Not reaped yet, so that the number is its own. One that has ended needs no signal.
    let _ = kill(Pid::from_raw(root), Signal::SIGSTOP);
    let parents = parents();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    for pid in found.into_iter().rev() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// All processes, and the parent of each.
fn parents() -> Vec<(i32, i32)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let parent = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name is in parentheses and may hold anything.
        Some((pid, stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?))
    };
    entries.filter_map(|entry| parent(entry.ok()?)).collect()
}

/// Prints what failed, what was skipped and why, and the result. Whether nothing failed.
fn summary(ended: &[Ended], not_run: usize, filtered_out: usize, took: Duration) -> bool {
    let mut failed: Vec<_> =
        ended.iter().filter(|e| matches!(e.outcome, Outcome::Failed(_))).collect();
    failed.sort_by_key(|ended| &ended.name);
    if !failed.is_empty() {
        println!("\nfailures:\n");
        for Ended { name, outcome, output } in &failed {
            println!("---- {name} ----\n{}", output.trim());
            if let Outcome::Failed(why) = outcome {
                println!("{why}\n");
            }
        }
        println!("failures:");
        failed.iter().for_each(|ended| println!("    {}", ended.name));
    }
    let skipped = print_skipped(ended);
    let passed = ended.iter().filter(|ended| ended.outcome == Outcome::Passed).count();
    println!(
        "\ntest result: {}. {passed} passed; {} failed; {} ignored; 0 measured; \
         {filtered_out} filtered out; finished in {:.2}s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len(),
        not_run + skipped,
        took.as_secs_f64()
    );
    failed.is_empty()
}

/// Prints what was skipped, why, and what to do about it; how many tests that are.
fn print_skipped(ended: &[Ended]) -> usize {
    let mut reasons: BTreeMap<&Missing, Vec<&str>> = BTreeMap::new();
    let mut count = 0;
    for Ended { name, outcome, .. } in ended {
        let Outcome::Skipped(missing) = outcome else { continue };
        count += 1;
        missing.iter().for_each(|one| reasons.entry(one).or_default().push(name));
    }
    if count > 0 {
        println!("\nskipped {count} tests:");
        for (missing, tests) in &mut reasons {
            tests.sort_unstable();
            tests.dedup();
            println!("    {missing}");
            tests.iter().for_each(|name| println!("        {name}"));
        }
        println!("To run them, too: {}", remedies(reasons.keys().map(|missing| &*missing.remedy)));
    }
    count
}

/// All in one line, and all packages by one command.
fn remedies<'a>(all: impl Iterator<Item = &'a str>) -> String {
    let all: BTreeSet<&str> = all.collect();
    let packages: Vec<&str> =
        all.iter().filter_map(|it| it.strip_prefix(report::INSTALL)).collect();
    let install = format!("{}{}", report::INSTALL, packages.join(" "));
    let install = (!packages.is_empty()).then_some(&*install);
    let others = all.iter().copied().filter(|it| !it.starts_with(report::INSTALL));
    install.into_iter().chain(others).collect::<Vec<_>>().join("; ")
}
