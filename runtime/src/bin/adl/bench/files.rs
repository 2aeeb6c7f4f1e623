//! The rows of file calls. Next to a copy stands the same file through a pipe on the host.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use adl_runtime::{Config, Error, Sandbox};

use super::{LeftOut, Rows, Times};
use crate::values::CliResult;

/// What is copied, in bytes.
const LARGE: u64 = 1 << 30;
/// How many names the large directory has.
const NAMES: usize = 100_000;
/// How often that is listed.
const LISTINGS: usize = 20;

/// Small files: so many writes and reads in each of the sandboxes.
#[derive(Default)]
pub(super) struct Small {
    write: Times,
    read: Times,
}

impl Small {
    pub(super) fn measure(&mut self, sandbox: &Sandbox, jobs: usize) -> CliResult<()> {
        let files = sandbox.files();
        for _ in 0..jobs {
            self.write.measure(|| files.write_file("/tmp/five", b"bytes"))?;
            let read = self.read.measure(|| files.read_file("/tmp/five"))?;
            if read != b"bytes" {
                return Err("what was written is not what is read".into());
            }
        }
        Ok(())
    }

    pub(super) fn rows(&self, rows: &mut Rows) {
        rows.insert("write_5b", self.write.row(None));
        rows.insert("read_5b", self.read.row(None));
    }
}

/// A large directory.
pub(super) fn listings(config: &Config, rows: &mut Rows) -> CliResult<()> {
    let sandbox = Sandbox::create(config.clone())?;
    let script = format!("mkdir /tmp/many && cd /tmp/many && seq {NAMES} | xargs touch");
    let made = sandbox.shell(script).status()?;
    LeftOut::unless_made("list_100k", &format!("a directory of {NAMES} files"), made)?;
    let files = sandbox.files();
    let mut list = Times::default();
    for _ in 0..LISTINGS {
        let entries = list.measure(|| files.list_dir("/tmp/many"))?;
        if entries.len() != NAMES {
            return Err(format!("{} of {NAMES} entries", entries.len()).into());
        }
    }
    rows.insert("list_100k", list.row(None));
    sandbox.delete()?;
    Ok(())
}

/// Large files, in and out.
pub(super) fn copies(config: &Config, rounds: usize, rows: &mut Rows) -> CliResult<()> {
    if rounds == 0 {
        return Ok(());
    }
    let directory = Scratch::new()?;
    let source = directory.0.join("source");
    io::copy(&mut Pattern(0).take(LARGE), &mut File::create(&source)?)?;
    let (mut copy_in, mut copy_out) = (Times::default(), Times::default());
    let mut on_host = Times::default();
    for round in 0..=rounds {
        // Once unmeasured: the first one finds an empty cache.
        let is_measured = round != 0;
        let sandbox = Sandbox::create(config.clone())?;
        let files = sandbox.files();
        let (inside, back) = (Path::new("/tmp/large"), directory.0.join("back"));
        let by_cp = directory.0.join("by-cp");
        let mut times = [Times::default(), Times::default(), Times::default()];
        let [one, two, three] = &mut times;
        match one.measure(|| files.copy_in(&source, inside)) {
            Err(error) if is_full(&error) => {
                let why = format!("a file of 1 GiB in the sandbox: {error}");
                return Err(LeftOut { rows: "copy_in_1g, copy_out_1g", why }.into());
            }
            other => other?,
        };
        two.measure(|| through_a_pipe(&source, &by_cp))?;
        fs::remove_file(&by_cp)?;
        three.measure(|| files.copy_out(inside, &back))?;
        if fs::metadata(&back)?.len() != LARGE {
            return Err("what came out is not what went in".into());
        }
        fs::remove_file(&back)?;
        sandbox.delete()?;
        adl_runtime::finish_removals();
        if is_measured {
            for (all, times) in [&mut copy_in, &mut on_host, &mut copy_out].into_iter().zip(times) {
                all.0.extend(times.0);
            }
        }
    }
    for (name, times) in [("copy_in_1g", copy_in), ("copy_out_1g", copy_out)] {
        rows.insert(name, times.row(None).with_host_copy(&on_host));
    }
    Ok(())
}

/// Whether a sandbox held too little for what was to be written in it.
fn is_full(error: &Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    match error {
        Error::File { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded),
        _ => false,
    }
}

/// `cat SOURCE | cp /dev/stdin TARGET`
fn through_a_pipe(source: &Path, target: &Path) -> CliResult<()> {
    let mut cat = Command::new("cat").arg(source).stdout(Stdio::piped()).spawn()?;
    let pipe = cat.stdout.take().ok_or("cat has no stdout")?;
    let copied = Command::new("cp").arg("/dev/stdin").arg(target).stdin(pipe).status()?;
    if !cat.wait()?.success() || !copied.success() {
        return Err(format!("cat {} | cp: {copied}", source.display()).into());
    }
    Ok(())
}

/// Bytes that no file system stores as a hole.
struct Pattern(u64);

impl io::Read for Pattern {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for byte in &mut *buffer {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let [high, ..] = self.0.to_be_bytes();
            *byte = high;
        }
        Ok(buffer.len())
    }
}

/// A directory, until this is dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> CliResult<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("adl-bench-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new().create(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // In a directory for what need not last.
        let _ = fs::remove_dir_all(&self.0);
    }
}
