//! The rows of a create on a machine that has much of something, in turns with one that has not.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use adl_runtime::{Config, Sandbox};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;

use super::blank;
use super::files::Scratch;
use super::peers::Peers;
use super::{LeftOut, Rows, TURNS, Times};
use crate::values::CliResult;

/// What the machine has more of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Nothing,
    Mounts,
    Processes,
    /// Of the calling process: the kernel counts no others.
    Descriptors,
}

const STATES: [More; 4] = [More::Nothing, More::Mounts, More::Processes, More::Descriptors];

/// How many of each, with the names of the figures beside a row.
const MOUNTS: usize = 300;
const PROCESSES: usize = 3_000;
const DESCRIPTORS: usize = 16_000;
/// What the bench has open besides, and what it opens.
const DESCRIPTORS_BESIDE: u64 = 1_000;

impl More {
    /// The names of its median, and of how much that is of the quiet one.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Nothing => ("quiet_us", "quiet_ratio"),
            Self::Mounts => ("mounts_us", "mounts_ratio"),
            Self::Processes => ("processes_us", "processes_ratio"),
            Self::Descriptors => ("descriptors_us", "descriptors_ratio"),
        }
    }
}

/// What there is more of, until this is dropped.
#[derive(Default)]
struct Held {
    mounts: Vec<std::path::PathBuf>,
    processes: Vec<Child>,
    descriptors: Vec<File>,
}

impl Held {
    fn take(more: More, scratch: &Path) -> CliResult<Self> {
        let mut this = Self::default();
        match more {
            More::Nothing => {}
            More::Mounts => {
                for number in 0..MOUNTS {
                    let at = scratch.join(number.to_string());
                    std::fs::create_dir_all(&at)?;
                    let none = None::<&str>;
                    mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), none)?;
                    this.mounts.push(at);
                }
            }
            More::Processes => {
                for _ in 0..PROCESSES {
                    let mut idle = Command::new("sleep");
                    // Which ends by itself, should this one be killed.
                    idle.arg("600").env_clear().env("PATH", "/usr/bin:/bin");
                    this.processes.push(idle.stdin(Stdio::null()).spawn()?);
                }
            }
            More::Descriptors => {
                for _ in 0..DESCRIPTORS {
                    this.descriptors.push(File::open("/dev/null")?);
                }
            }
        }
        Ok(this)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Else the mount namespace of the bench ends with this process at the latest, and each
        // process by itself.
        for at in &self.mounts {
            let _ = umount2(at, MntFlags::MNT_DETACH);
        }
        for idle in &mut self.processes {
            let _ = idle.kill();
        }
        for idle in &mut self.processes {
            let _ = idle.wait();
        }
    }
}

/// Times of one thing, in each of the states.
type OfStates = [Times; STATES.len()];

/// Leaves the mounts of the others on the machine, before this process has threads: a blank is only
/// taken by a thread in the mount namespace in which it was made.
pub(super) fn leave_mounts() -> CliResult<()> {
    if geteuid().is_root() {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    }
    Ok(())
}

/// Measures after [`leave_mounts`].
pub(super) fn flat(config: &Config, count: usize, rows: &mut Rows) -> CliResult<()> {
    if count == 0 {
        return Ok(());
    }
    if !geteuid().is_root() {
        let why = "mounts of its own need root".to_owned();
        return Err(LeftOut { rows: "flat_*", why }.into());
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = DESCRIPTORS as u64 + DESCRIPTORS_BESIDE;
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed))?;
    }
    let scratch = Scratch::new()?;
    let mounts = scratch.path().join("mounts");
    std::fs::create_dir(&mounts)?;
    mount(Some("tmpfs"), &mounts, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    let all = in_turns(config, count, &mounts);
    // What is mounted nowhere else: it can't be in use.
    umount2(&mounts, MntFlags::MNT_DETACH)?;
    rows.extend(all?.into_iter().map(|(name, times)| (name, row(times))));
    Ok(())
}

fn in_turns(
    config: &Config,
    count: usize,
    scratch: &Path,
) -> CliResult<Vec<(&'static str, OfStates)>> {
    let (mut create, mut of_blank) = (OfStates::default(), OfStates::default());
    let has_blanks = blank::are_there(config)?;
    let mut peers = Peers::of_whole_processes(config)?;
    let mut others: Vec<_> = peers
        .rows_of_whole_processes()
        .chain(["spawn"])
        .map(|name| (flat_name(name), OfStates::default()))
        .collect();
    for turn in 0..TURNS {
        let count = count * (turn + 1) / TURNS - count * turn / TURNS;
        if count == 0 {
            continue;
        }
        for (number, more) in STATES.into_iter().enumerate() {
            let held = Held::take(more, &scratch.join("more"))?;
            let (Some(create), Some(of_blank)) = (create.get_mut(number), of_blank.get_mut(number))
            else {
                continue;
            };
            for _ in 0..count {
                let sandbox = create.measure(|| Sandbox::create(config.clone()))?;
                sandbox.delete()?;
                adl_runtime::finish_removals();
            }
            if has_blanks {
                blank::measure(config, count, of_blank)?;
            }
            peers.measure(count)?;
            for ((_, all), times) in others.iter_mut().zip(peers.take_times()) {
                if let Some(of_state) = all.get_mut(number) {
                    of_state.0.extend(times.0);
                }
            }
            drop(held);
        }
    }
    others.push(("flat_create", create));
    if has_blanks {
        others.push(("flat_create_of_blank", of_blank));
    }
    Ok(others)
}

/// The names of the rows of those that start a whole process.
fn flat_name(row: &str) -> &'static str {
    match row {
        "run_adl" => "flat_run_adl",
        "run_bwrap" => "flat_run_bwrap",
        "run_runc" => "flat_run_runc",
        "run_crun" => "flat_run_crun",
        _ => "flat_spawn",
    }
}

/// The quiet figures, and beside them those of each state and how much they are of the quiet ones.
fn row(times: OfStates) -> super::Row {
    let [quiet, ..] = &times;
    let mut row = quiet.row(None);
    for (more, times) in STATES.into_iter().zip(&times).skip(1) {
        let (median, ratio) = more.names();
        let value = times.quantile(0.5);
        row = row.with(median, value).with(ratio, value / quiet.quantile(0.5));
    }
    row
}
