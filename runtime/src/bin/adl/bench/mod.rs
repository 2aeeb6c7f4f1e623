//! `adl bench`: what this machine takes for the main operations.
//!
//! Each row is measured in rounds that go through all the operations, so that what else the
//! machine does at the time falls on all of them alike. Next to running a program in a sandbox
//! stands the same program spawned on the host.

mod files;
mod pool;
mod reset;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use adl_runtime::{Config, ExitStatus, Sandbox};
use clap::Args;
use serde::Serialize;

use crate::options::{self, SandboxOptions};
use crate::output::{print, say};
use crate::values::{CliResult, count, number, size_or_zero, take_any_value};

const HELP: &str = "\
Measures creating, resetting, keeping and deleting a sandbox, running commands in it, its \
file calls, and pools.";

#[derive(Args)]
#[command(mut_args = take_any_value)]
#[command(after_help = format!("{HELP}\n\n{}", options::HELP))]
pub(crate) struct BenchOptions {
    /// Sandboxes to make
    #[arg(long, value_name = "N", default_value = "200", value_parser = count)]
    rounds: NonZeroUsize,

    /// Commands and file calls of each kind to run in each
    #[arg(long, value_name = "N", default_value = "5", value_parser = count)]
    jobs: NonZeroUsize,

    /// Resets after 100,000 files were made
    #[arg(long, value_name = "N", default_value = "10", value_parser = number::<usize>)]
    resets: usize,

    /// Snapshots of 1 MiB, and as many of what --large says
    #[arg(long, value_name = "N", default_value = "5", value_parser = number::<usize>)]
    snapshots: usize,

    /// What to write before those
    #[arg(long, value_name = "SIZE", default_value = "1g", value_parser = size_or_zero)]
    large: u64,

    /// Files of 1 GiB to copy in and out, by way of the temporary directory
    #[arg(long, value_name = "N", default_value = "3", value_parser = number::<usize>)]
    copies: usize,

    /// Sandboxes to acquire from a pool, resets with a spare, and whole cycles by 1 to 64 threads
    #[arg(long, value_name = "N", default_value = "100", value_parser = number::<usize>)]
    pool: usize,

    /// Hold so much touched memory meanwhile, as 4g: what the size of the calling program costs
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size_or_zero)]
    ballast: u64,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    sandbox: SandboxOptions,
}

/// The commands, as arguments; each also runs on the host, for comparison.
const COMMANDS: [(&str, &[&str]); 3] = [
    ("exec_argv", &["/bin/true"]),
    ("exec_shell", &["/bin/bash", "-c", "true"]),
    ("exec_probe", &[PROBE]),
];

/// A program that does nothing, without a libc to start: what a start itself costs.
const PROBE: &str = "/tmp/adl-probe";

/// The bytes of that: an ELF header, one program header, and the two instructions of exit(0).
#[rustfmt::skip]
const PROBE_ELF: [u8; 129] = [
    0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    2, 0, 62, 0, 1, 0, 0, 0, 0x78, 0, 0x40, 0, 0, 0, 0, 0,
    64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0,
    // PT_LOAD, readable and executable: all of the file, from 0x400000 on.
    1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0,
    129, 0, 0, 0, 0, 0, 0, 0, 129, 0, 0, 0, 0, 0, 0, 0,
    0, 0x10, 0, 0, 0, 0, 0, 0,
    // mov eax, 60; xor edi, edi; syscall
    0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05,
];

/// One operation's figures.
#[derive(Serialize)]
struct Row {
    p50_us: f64,
    p99_us: f64,
    min_us: f64,
    n: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_spawn_p50_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_spawn_p99_us: Option<f64>,
    /// Of the same file through a pipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    host_copy_p50_us: Option<f64>,
    /// How many were done in a second, by all threads together.
    #[serde(skip_serializing_if = "Option::is_none")]
    per_second: Option<f64>,
}

impl Row {
    fn with_rate(self, took: Duration) -> Self {
        Self { per_second: Some(self.n as f64 / took.as_secs_f64()), ..self }
    }

    fn with_host_copy(self, host: &Times) -> Self {
        Self { host_copy_p50_us: Some(host.quantile(0.5)), ..self }
    }
}

/// Rows that can't be measured in the sandbox that was asked for, as where it holds too little.
#[derive(Debug)]
struct LeftOut {
    rows: &'static str,
    why: String,
}

impl LeftOut {
    /// Of a command that was to make what is measured.
    fn unless_made(rows: &'static str, what: &str, status: ExitStatus) -> CliResult<()> {
        if status.success() {
            return Ok(());
        }
        Err(Self { rows, why: format!("{what} in the sandbox: {status}") }.into())
    }
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not measured: {}: {}", self.rows, self.why)
    }
}

impl std::error::Error for LeftOut {}

type Rows = BTreeMap<&'static str, Row>;

#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn measure<T>(&mut self, operation: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = operation();
        self.0.push(start.elapsed());
        result
    }

    /// The time that `share` of all are below, in microseconds.
    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        // In range: share is from 0 to 1.
        let at = (last as f64 * share).round() as usize;
        sorted.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }

    fn row(&self, host: Option<&Times>) -> Row {
        Row {
            p50_us: self.quantile(0.5),
            p99_us: self.quantile(0.99),
            min_us: self.quantile(0.0),
            n: self.0.len(),
            host_spawn_p50_us: host.map(|host| host.quantile(0.5)),
            host_spawn_p99_us: host.map(|host| host.quantile(0.99)),
            host_copy_p50_us: None,
            per_second: None,
        }
    }
}

pub(crate) fn main(options: &BenchOptions, state: Option<&Path>) -> CliResult<ExitCode> {
    let (mut config, _) = options.sandbox.settle([])?;
    config.state_directory = state.map(Path::to_owned);
    // Not zeroes, which the kernel would give as one page for all.
    let ballast = vec![1_u8; usize::try_from(options.ballast)?];
    let mut rows = measure(&config, options.rounds.get(), options.jobs.get())?;
    for measured in [
        pool::pools(&config, options.pool, &mut rows),
        reset::large(&config, options.resets, &mut rows),
        reset::snapshots(&config, options.snapshots, options.large, &mut rows),
        files::listings(&config, &mut rows),
        files::copies(&config, options.copies, &mut rows),
    ] {
        match measured {
            Err(error) if error.is::<LeftOut>() => say(error),
            other => other?,
        }
    }
    drop(std::hint::black_box(ballast));
    print(match options.json {
        true => serde_json::to_string_pretty(&rows)? + "\n",
        false => table(&rows),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn measure(config: &Config, rounds: usize, jobs: usize) -> CliResult<Rows> {
    // Once unmeasured: what the first one in a process makes and keeps.
    Sandbox::create(config.clone())?.delete()?;

    let probe_on_host = ProbeOnHost::new()?;
    let (mut create, mut reset, mut delete) =
        (Times::default(), Times::default(), Times::default());
    let mut small = files::Small::default();
    let mut inside: BTreeMap<&str, Times> = BTreeMap::new();
    let mut on_host: BTreeMap<&str, Times> = BTreeMap::new();
    for _ in 0..rounds {
        let sandbox = create.measure(|| Sandbox::create(config.clone()))?;
        let put = sandbox
            .shell("cat > \"$0\" && chmod +x \"$0\"")
            .arg(PROBE)
            .input(PROBE_ELF)
            .status()?;
        if !put.success() {
            return Err(format!("{PROBE} in the sandbox: {put}").into());
        }
        for (name, command) in COMMANDS {
            let Some((program, arguments)) = command.split_first() else { continue };
            let inside = inside.entry(name).or_default();
            let on_host = on_host.entry(name).or_default();
            for _ in 0..jobs {
                let status =
                    inside.measure(|| sandbox.command(program).args(arguments).status())?;
                if !status.success() {
                    return Err(format!("{command:?} in the sandbox: {status}").into());
                }
                let program =
                    if *program == PROBE { probe_on_host.path() } else { Path::new(program) };
                let status = on_host.measure(|| spawn_on_host(program, arguments))?;
                if !status.success() {
                    return Err(format!("{command:?} on the host: {status}").into());
                }
            }
        }
        small.measure(&sandbox, jobs)?;
        reset.measure(|| sandbox.reset())?;
        delete.measure(|| sandbox.delete())?;
    }

    adl_runtime::finish_removals();

    let mut rows = BTreeMap::from([
        ("create", create.row(None)),
        ("reset_1", reset.row(None)),
        ("delete", delete.row(None)),
    ]);
    small.rows(&mut rows);
    for (name, times) in &inside {
        rows.insert(name, times.row(on_host.get(name)));
    }
    Ok(rows)
}

/// The probe as a file of the host's, until this is dropped.
struct ProbeOnHost(PathBuf);

impl ProbeOnHost {
    fn new() -> CliResult<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = std::env::temp_dir().join(format!("adl-probe-{}", std::process::id()));
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path)?;
        let this = Self(path);
        file.write_all(&PROBE_ELF)?;
        Ok(this)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ProbeOnHost {
    fn drop(&mut self) {
        // In a directory for what need not last.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The standard library does this by posix_spawn.
fn spawn_on_host(program: &Path, arguments: &[&str]) -> std::io::Result<std::process::ExitStatus> {
    std::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        // A program that reads its locale takes its time for that, here as inside.
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
}

fn table(rows: &Rows) -> String {
    let mut table =
        format!("{:<14} {:>9} {:>9} {:>9} {:>6}  host p50\n", "µs", "p50", "p99", "min", "n");
    for (name, row) in rows {
        let Row { p50_us, p99_us, min_us, n, .. } = row;
        table += &format!("{name:<14} {p50_us:>9.0} {p99_us:>9.0} {min_us:>9.0} {n:>6}");
        if let Some(host) = row.host_spawn_p50_us.or(row.host_copy_p50_us) {
            table += &format!("  {host:.0} ({:.2} x)", p50_us / host);
        }
        if let Some(per_second) = row.per_second {
            table += &format!("  {per_second:.0} a second");
        }
        table.push('\n');
    }
    table
}
