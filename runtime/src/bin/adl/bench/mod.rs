//! `adl bench`: what this machine takes for the main operations.
//!
//! Each row is measured in rounds that go through all the operations, so that what else the
//! machine does at the time falls on all of them alike. Next to running a program in a sandbox
//! stands the same program spawned on the host.

mod alive;
mod blank;
mod files;
mod flat;
mod floor;
mod peers;
mod pool;
mod reset;
mod throughput;

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
Measures creating, resetting and deleting a sandbox, running commands in it, small file calls, and \
pools, which takes seconds. What takes longer is measured where it is named.";

/// In how many turns what is compared is measured.
const TURNS: usize = 5;

/// What takes long, and so has to be asked for.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "kebab-case")]
enum Long {
    Cycles,
    Resets,
    Snapshots,
    Listings,
    Copies,
    Alive,
    Flat,
    Throughput,
    All,
}

#[derive(Args)]
#[command(mut_args = take_any_value)]
#[command(after_help = format!("{HELP}\n\n{}", options::HELP))]
pub(crate) struct BenchOptions {
    /// What to measure, too: `cycles` by 1 to 64 threads, with and without a pool; `resets` after
    /// 100,000 files were made; `snapshots` of 1 MiB and of what --large says, and forks of them;
    /// `listings` of 100,000 names; `copies` of 1 GiB in and out, by way of the temporary directory;
    /// `alive`: thousands of sandboxes at once, in one process and in 16; `flat`: a create with 300
    /// mounts, 3,000 processes or 16,000 descriptors more, in turns with one without them;
    /// `throughput`: cycles by 1 to 64 threads beside what the kernel takes for such cycles
    #[arg(value_name = "WHAT", value_enum)]
    long: Vec<Long>,

    /// Also start bubblewrap, runc, crun and, for an --image that is a directory, agentdocker-lite
    /// 0.0.1 of PyPI, where they are installed, and what the kernel alone takes (with gcc), in
    /// turns with adl
    #[arg(long)]
    compare: bool,

    /// Sandboxes to make
    #[arg(long, value_name = "N", default_value = "200", value_parser = count)]
    rounds: NonZeroUsize,

    /// Commands and file calls of each kind to run in each
    #[arg(long, value_name = "N", default_value = "5", value_parser = count)]
    jobs: NonZeroUsize,

    /// How many of `resets`
    #[arg(long, value_name = "N", default_value = "10", value_parser = number::<usize>)]
    resets: usize,

    /// How many of `snapshots`, of either size
    #[arg(long, value_name = "N", default_value = "5", value_parser = number::<usize>)]
    snapshots: usize,

    /// What to write before the larger ones of those
    #[arg(long, value_name = "SIZE", default_value = "1g", value_parser = size_or_zero)]
    large: u64,

    /// How many of `copies`
    #[arg(long, value_name = "N", default_value = "3", value_parser = number::<usize>)]
    copies: usize,

    /// Creates with a blank, sandboxes to acquire from a pool, resets with a spare, and cycles of
    /// each number of threads
    #[arg(long, value_name = "N", default_value = "100", value_parser = number::<usize>)]
    pool: usize,

    /// How many of `alive`
    #[arg(long, value_name = "N", default_value = "4000", value_parser = number::<usize>)]
    alive: usize,

    /// How many creates of `flat`, with each of what there is more of
    #[arg(long, value_name = "N", default_value = "100", value_parser = number::<usize>)]
    flat: usize,

    /// How many cycles of `throughput`, of each number of threads
    #[arg(long, value_name = "N", default_value = "1000", value_parser = number::<usize>)]
    throughput: usize,

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
    /// The median of so many after so many others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    steps_p50_us: Vec<(usize, f64)>,
    /// What else was measured with them.
    #[serde(flatten)]
    also: BTreeMap<&'static str, f64>,
}

impl Row {
    fn with_rate(self, took: Duration) -> Self {
        Self { per_second: Some(self.n as f64 / took.as_secs_f64()), ..self }
    }

    fn with(mut self, name: &'static str, value: f64) -> Self {
        self.also.insert(name, value);
        self
    }

    /// As more and more of them were there: the median of each `step`, and how much the last is of
    /// the first.
    fn with_steps(mut self, times: &Times, step: usize) -> Self {
        let of_step = |(number, some): (usize, &[Duration])| {
            (number * step + some.len(), Times(some.to_vec()).quantile(0.5))
        };
        self.steps_p50_us = times.0.chunks(step.max(1)).enumerate().map(of_step).collect();
        match self.steps_p50_us[..] {
            [(_, first), .., (_, last)] => self.with("last_to_first", last / first),
            _ => self,
        }
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
            steps_p50_us: Vec::new(),
            also: BTreeMap::new(),
        }
    }
}

pub(crate) fn main(options: &BenchOptions, state: Option<&Path>) -> CliResult<ExitCode> {
    let (mut config, _) = options.sandbox.settle([])?;
    config.state_directory = state.map(Path::to_owned);
    if let Some(count) = std::env::var_os(alive::PART) {
        alive::part(&config, count.to_string_lossy().parse()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let asks = |what| options.long.iter().any(|&long| long == what || long == Long::All);
    if asks(Long::Flat) {
        flat::leave_mounts()?;
    }
    // Not zeroes, which the kernel would give as one page for all.
    let ballast = vec![1_u8; usize::try_from(options.ballast)?];
    let mut rows = short(&config, options)?;
    for (what, measure) in [
        (Long::Cycles, &mut |rows: &mut Rows| pool::cycles(&config, options.pool, rows) as _),
        (Long::Resets, &mut |rows: &mut Rows| reset::large(&config, options.resets, rows)),
        (Long::Snapshots, &mut |rows: &mut Rows| {
            reset::snapshots(&config, options.snapshots, options.large, rows)
        }),
        (Long::Listings, &mut |rows: &mut Rows| files::listings(&config, rows)),
        (Long::Copies, &mut |rows: &mut Rows| files::copies(&config, options.copies, rows)),
        (Long::Alive, &mut |rows: &mut Rows| alive::alive(&config, options.alive, rows)),
        (Long::Flat, &mut |rows: &mut Rows| flat::flat(&config, options.flat, rows)),
        (Long::Throughput, &mut |rows: &mut Rows| {
            let image = options.sandbox.image_path();
            throughput::throughput(&config, image, options.throughput, rows)
        }),
    ] as [(Long, &mut dyn FnMut(&mut Rows) -> CliResult<()>); 8]
    {
        if asks(what) {
            told(measure(&mut rows))?;
        }
    }
    drop(std::hint::black_box(ballast));
    print(match options.json {
        true => serde_json::to_string_pretty(&rows)? + "\n",
        false => table(&rows),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Tells what could not be measured; the rest is.
fn told(measured: CliResult<()>) -> CliResult<()> {
    match measured {
        Err(error) if error.is::<LeftOut>() => {
            say(error);
            Ok(())
        }
        other => other,
    }
}

/// The rows that are always measured, and those of others beside them.
fn short(config: &Config, options: &BenchOptions) -> CliResult<Rows> {
    let (rounds, jobs) = (options.rounds.get(), options.jobs.get());
    let mut basic = Basic::new(config)?;
    let image = options.sandbox.image_path();
    let (mut peers, mut floor) = match options.compare {
        true => (Some(peers::Peers::new(config, image)?), floor::Beside::new(image)?),
        false => (None, None),
    };
    for turn in 0..TURNS {
        // All of them together are as many as were asked for.
        let rounds = rounds * (turn + 1) / TURNS - rounds * turn / TURNS;
        basic.measure(rounds, jobs)?;
        if let Some(peers) = &mut peers {
            peers.measure(rounds)?;
        }
        if let Some(floor) = &mut floor {
            floor.measure(rounds)?;
        }
    }
    adl_runtime::finish_removals();
    let mut rows = basic.rows();
    if let Some(peers) = peers {
        peers.rows(&mut rows);
    }
    if let Some(floor) = floor {
        floor.rows(&mut rows);
    }
    blank::creates(config, options.pool, &mut rows)?;
    pool::pools(config, options.pool, &mut rows)?;
    Ok(rows)
}

/// What each sandbox goes through.
struct Basic<'a> {
    config: &'a Config,
    probe_on_host: ProbeOnHost,
    create: Times,
    reset: Times,
    delete: Times,
    small: files::Small,
    inside: BTreeMap<&'static str, Times>,
    on_host: BTreeMap<&'static str, Times>,
}

impl<'a> Basic<'a> {
    fn new(config: &'a Config) -> CliResult<Self> {
        // Once unmeasured: what the first one in a process makes and keeps.
        Sandbox::create(config.clone())?.delete()?;
        Ok(Self {
            config,
            probe_on_host: ProbeOnHost::new()?,
            create: Times::default(),
            reset: Times::default(),
            delete: Times::default(),
            small: files::Small::default(),
            inside: BTreeMap::new(),
            on_host: BTreeMap::new(),
        })
    }

    fn measure(&mut self, rounds: usize, jobs: usize) -> CliResult<()> {
        for _ in 0..rounds {
            let sandbox = self.create.measure(|| Sandbox::create(self.config.clone()))?;
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
                let inside = self.inside.entry(name).or_default();
                let on_host = self.on_host.entry(name).or_default();
                for _ in 0..jobs {
                    let status =
                        inside.measure(|| sandbox.command(program).args(arguments).status())?;
                    if !status.success() {
                        return Err(format!("{command:?} in the sandbox: {status}").into());
                    }
                    let program = match *program == PROBE {
                        true => self.probe_on_host.path(),
                        false => Path::new(program),
                    };
                    let status = on_host.measure(|| spawn_on_host(program, arguments))?;
                    if !status.success() {
                        return Err(format!("{command:?} on the host: {status}").into());
                    }
                }
            }
            self.small.measure(&sandbox, jobs)?;
            self.reset.measure(|| sandbox.reset())?;
            self.delete.measure(|| sandbox.delete())?;
        }
        Ok(())
    }

    fn rows(&self) -> Rows {
        let mut rows = BTreeMap::from([
            ("create", self.create.row(None)),
            ("reset_1", self.reset.row(None)),
            ("delete", self.delete.row(None)),
        ]);
        self.small.rows(&mut rows);
        for (name, times) in &self.inside {
            rows.insert(name, times.row(self.on_host.get(name)));
        }
        rows
    }
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
        format!("{:<16} {:>9} {:>9} {:>9} {:>6}  host p50\n", "µs", "p50", "p99", "min", "n");
    for (name, row) in rows {
        let Row { p50_us, p99_us, min_us, n, .. } = row;
        table += &format!("{name:<16} {p50_us:>9.0} {p99_us:>9.0} {min_us:>9.0} {n:>6}");
        if let Some(host) = row.host_spawn_p50_us.or(row.host_copy_p50_us) {
            table += &format!("  {host:.0} ({:.2} x)", p50_us / host);
        }
        if let Some(per_second) = row.per_second {
            table += &format!("  {per_second:.0} a second");
        }
        for (name, value) in &row.also {
            table += &format!("  {name} {value:.3}");
        }
        table.push('\n');
    }
    table
}
