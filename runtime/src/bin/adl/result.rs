//! `--result`: how a command ended, for a program, as one line of JSON in a file.
//!
//! The file is opened before anything is run, and where a guest may write it is refused; what is
//! in it was written when no process of the sandbox was left.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use adl_runtime::{EndReason, Error, ExitStatus, Stage, Stats};
use serde::Serialize;

use crate::bases::Bases;
use crate::output::{has_left_output, say};
use crate::sys;
use crate::values::CliResult;

/// Reads the path of a result.
pub(crate) fn path(text: &OsStr) -> Result<PathBuf, &'static str> {
    match text.as_encoded_bytes() {
        b"" => Err("takes the name of a file"),
        b"-" => Err("stdout is the command's: name a file, or a descriptor, as /dev/fd/3 with \
                     3>FILE"),
        _ => Ok(text.into()),
    }
}

/// What is known of a run so far.
#[derive(Default)]
pub(crate) struct Outcome {
    ended: Option<ExitStatus>,
    not_started: Option<(Stage, Option<i32>)>,
    stats: Option<Stats>,
    /// Not all that was written was passed on.
    is_cut: bool,
    errors: Vec<String>,
}

impl Outcome {
    /// The command has ended; whether all that it wrote was passed on.
    pub(crate) fn ended(&mut self, status: ExitStatus, delivered: bool) {
        self.ended = Some(status);
        self.is_cut = !delivered;
    }

    /// The command was not started.
    pub(crate) fn not_started(&mut self, error: &Error) {
        if let Error::Start { stage, source, .. } = error {
            self.not_started = Some((*stage, source.raw_os_error()));
        }
        self.errors.push(error.to_string());
    }

    pub(crate) fn was_started(&self) -> bool {
        self.ended.is_some()
    }

    pub(crate) fn used(&mut self, stats: Stats) {
        self.stats = Some(stats);
    }

    /// Says what adl could not do, and keeps it.
    pub(crate) fn fail(&mut self, what: String) {
        say(&what);
        self.errors.push(what);
    }

    /// Keeps what adl could not do, which is said elsewhere.
    pub(crate) fn failed(&mut self, what: String) {
        self.errors.push(what);
    }
}

/// What is written. Units are in the names; what is not known is null.
#[derive(Serialize)]
struct Report {
    reason: &'static str,
    /// What the command exited with.
    exit_code: Option<u8>,
    signal: Option<u8>,
    /// What adl exits with.
    adl_exit_code: u8,
    stage: Option<String>,
    errno: Option<i32>,
    error: Option<String>,
    wall_time_us: Option<u64>,
    user_time_us: Option<u64>,
    system_time_us: Option<u64>,
    max_resident_bytes: Option<u64>,
    cpu_time_us: Option<u64>,
    memory_peak_bytes: Option<u64>,
    oom_kills: Option<u64>,
    processes_peak: Option<u64>,
    processes_refused: Option<u64>,
    survivors: bool,
    output_truncated: bool,
}

impl Report {
    fn of(outcome: &Outcome, code: u8) -> Self {
        let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let Outcome { ended, not_started, stats, is_cut, errors } = outcome;
        let reason = match (ended, not_started) {
            (Some(status), _) => name_of(status.reason()),
            (None, Some(_)) => "not_started",
            (None, None) => "error",
        };
        let usage = ended.map(|status| status.usage());
        let stats = stats.clone().unwrap_or_default();
        let is_limited = ended.is_some_and(|status| status.reason() == EndReason::OutputLimit);
        Self {
            reason,
            exit_code: ended.and_then(|status| status.code()),
            signal: ended.and_then(|status| status.signal()),
            adl_exit_code: code,
            stage: not_started.map(|(stage, _)| snake_case(&format!("{stage:?}"))),
            errno: not_started.and_then(|(_, errno)| errno),
            error: (!errors.is_empty()).then(|| errors.join("; ")),
            wall_time_us: ended.map(|status| microseconds(status.wall_time())),
            user_time_us: usage.map(|usage| microseconds(usage.user_time)),
            system_time_us: usage.map(|usage| microseconds(usage.system_time)),
            max_resident_bytes: usage.map(|usage| usage.max_resident),
            cpu_time_us: stats.cpu_time.map(microseconds),
            memory_peak_bytes: stats.memory_peak,
            oom_kills: stats.oom_kills,
            processes_peak: stats.pids_peak,
            processes_refused: stats.pids_refused,
            survivors: ended.is_some_and(|status| status.survivors()),
            output_truncated: *is_cut || is_limited || has_left_output(),
        }
    }
}

/// The word of an end, as help lists them.
fn name_of(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Exited => "exited",
        EndReason::Signaled => "signaled",
        EndReason::TimedOut => "timed_out",
        EndReason::CpuTimedOut => "cpu_timed_out",
        EndReason::Idle => "idle",
        EndReason::OutOfMemory => "out_of_memory",
        EndReason::OutputLimit => "output_limit",
        EndReason::Stopped => "stopped",
        EndReason::Killed => "killed",
        EndReason::SandboxDied => "sandbox_died",
        _ => "other",
    }
}

/// `OomScore` as `oom_score`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// Where a result goes.
pub(crate) struct ResultFile {
    path: PathBuf,
    file: File,
}

impl ResultFile {
    /// Opens it, empty. `bases` is where guests may write.
    pub(crate) fn open(path: &Path, bases: &Bases) -> CliResult<Self> {
        let path = path.to_owned();
        match open(&path, bases) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(format!("--result {}: {error}", path.display()).into()),
        }
    }

    /// Its device and inode.
    pub(crate) fn place(&self) -> std::io::Result<(u64, u64)> {
        self.file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// Writes what is known, for a program that ends with `code`.
    pub(crate) fn write(&mut self, outcome: &Outcome, code: u8) -> Result<(), String> {
        let line = serde_json::to_string(&Report::of(outcome, code)).map(|json| json + "\n");
        let line = line.map_err(std::io::Error::from);
        let written = line.and_then(|line| self.file.write_all(line.as_bytes()));
        written.map_err(|error| format!("--result {}: {error}", self.path.display()))
    }
}

fn open(path: &Path, bases: &Bases) -> CliResult<File> {
    const THERE: &str = "the command may write there, by a volume or --copy-out: name a file \
                         elsewhere";
    if let Some(number) = descriptor(path) {
        let file = File::from(sys::duplicate(number).map_err(|_| {
            format!("descriptor {number} is not open for writing: say {number}>FILE, too")
        })?);
        let named = fs::read_link(format!("/proc/self/fd/{number}"))?;
        let is_file = file.metadata()?.is_file();
        return if is_file && bases.are_on_the_way_to(&named)? {
            Err(THERE.into())
        } else {
            Ok(file)
        };
    }
    if bases.are_on_the_way_to(path)? {
        return Err(THERE.into());
    }
    let mut how = File::options();
    let file = how.write(true).create(true).custom_flags(libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        // A result of before is not this one's, whatever happens.
        file.set_len(0)?;
    }
    Ok(file)
}

/// The descriptor that a path stands for. To open that again would begin its file anew, and can't
/// be done with a socket.
fn descriptor(path: &Path) -> Option<i32> {
    match path.to_str()? {
        "/dev/stdout" => Some(1),
        "/dev/stderr" => Some(2),
        path => {
            let number = path.strip_prefix("/dev/fd/").or(path.strip_prefix("/proc/self/fd/"))?;
            number.parse().ok().filter(|number| *number >= 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{descriptor, snake_case};

    #[test]
    fn descriptors_and_stages_have_names() {
        for (path, number) in [
            ("/dev/fd/3", Some(3)),
            ("/proc/self/fd/10", Some(10)),
            ("/dev/stderr", Some(2)),
            ("/dev/fd/", None),
            ("/dev/fd/-1", None),
            ("/dev/fd/x", None),
            ("dev/fd/3", None),
        ] {
            assert_eq!(descriptor(Path::new(path)), number, "{path}");
        }
        assert_eq!([snake_case("Exec"), snake_case("OomScore")], ["exec", "oom_score"]);
    }
}
