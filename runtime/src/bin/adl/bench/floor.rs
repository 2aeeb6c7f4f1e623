//! The floor: what the kernel takes for the cycle of a sandbox, with nothing else in its way.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::files::Scratch;
use super::{LeftOut, Rows, Times, told};
use crate::values::CliResult;

/// What each of its sandboxes runs.
const PROGRAM: &str = "/bin/true";
/// What a lower layer has to have to be mounted on, beside programs.
const PLACES: [&str; 3] = ["proc", "dev", "tmp"];

/// A small C program that has the kernel do such cycles and does nothing else.
pub(super) struct Floor {
    program: PathBuf,
    init: PathBuf,
    lower: String,
    scratch: PathBuf,
}

/// How long its cycles took.
#[derive(Default)]
pub(super) struct Cycles {
    /// All of them.
    pub(super) whole: Duration,
    /// Until its init was ready, each.
    ready: Times,
    /// Its program.
    run: Times,
    /// The end of its init.
    end: Times,
}

impl Floor {
    pub(super) fn new(scratch: &Path, image: Option<&Path>) -> CliResult<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err("it needs root".into());
        }
        let source = scratch.join("floor.c");
        fs::write(&source, include_str!("floor.c"))?;
        let build = |name: &str, options: &[&str]| -> CliResult<PathBuf> {
            let to = scratch.join(name);
            let mut gcc = Command::new("gcc");
            gcc.args(["-O2", "-static", "-fno-stack-protector"]).args(options);
            let output = gcc.arg("-o").arg(&to).arg(&source).stdin(Stdio::null()).output()?;
            match output.status.success() {
                true => Ok(to),
                false => Err(format!("gcc: {}", String::from_utf8_lossy(&output.stderr)).into()),
            }
        };
        let program = build("floor", &["-pthread"])?;
        let init = build("init", &["-DINIT", "-nostdlib"])?;
        let places = scratch.join("places");
        for name in PLACES {
            fs::create_dir_all(places.join(name))?;
        }
        // `/usr` has what the links of a root lead to.
        let image = image.filter(|image| image.is_dir()).unwrap_or(Path::new("/usr"));
        let lower = format!("{}:{}", places.display(), fs::canonicalize(image)?.display());
        let this = Self { program, init, lower, scratch: scratch.to_owned() };
        this.run(1, 1)?;
        Ok(this)
    }

    /// Does so many cycles.
    pub(super) fn run(&self, threads: usize, count: usize) -> CliResult<Cycles> {
        let output = Command::new(&self.program)
            .arg(&self.lower)
            .arg(&self.scratch)
            .args([threads, count].map(|number| number.to_string()))
            .arg(&self.init)
            .arg(PROGRAM)
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            return Err(format!("the floor: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let mut numbers = text.split_ascii_whitespace().map(str::parse::<f64>);
        let mut next = || -> CliResult<_> {
            let microseconds = numbers.next().ok_or("the floor has told too little")??;
            Ok(Duration::from_secs_f64(microseconds / 1e6))
        };
        let mut cycles = Cycles { whole: next()?, ..Cycles::default() };
        for _ in 0..count {
            cycles.ready.0.push(next()?);
            cycles.run.0.push(next()?);
            cycles.end.0.push(next()?);
        }
        Ok(cycles)
    }
}

/// The floor beside the rows that are always measured, in turns with them.
pub(super) struct Beside {
    floor: Floor,
    cycles: Cycles,
    /// Where it lies.
    _scratch: Scratch,
}

impl Beside {
    /// `None` where it can't be had, which is told.
    pub(super) fn new(image: Option<&Path>) -> CliResult<Option<Self>> {
        let scratch = Scratch::new()?;
        match Floor::new(scratch.path(), image) {
            Ok(floor) => Ok(Some(Self { floor, cycles: Cycles::default(), _scratch: scratch })),
            Err(error) => {
                let why = error.to_string();
                told(Err(LeftOut { rows: "floor_*", why }.into())).map(|()| None)
            }
        }
    }

    pub(super) fn measure(&mut self, count: usize) -> CliResult<()> {
        let more = self.floor.run(1, count)?;
        self.cycles.ready.0.extend(more.ready.0);
        self.cycles.run.0.extend(more.run.0);
        self.cycles.end.0.extend(more.end.0);
        Ok(())
    }

    pub(super) fn rows(&self, rows: &mut Rows) {
        rows.insert("floor_create", self.cycles.ready.row(None));
        rows.insert("floor_exec_argv", self.cycles.run.row(None));
        rows.insert("floor_delete", self.cycles.end.row(None));
    }
}
