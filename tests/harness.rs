//! What the tests stand on: a state directory for each, the `adl` program, waiting.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use adl_runtime::{Config, Files, Image, Sandbox};
use tempfile::TempDir;

pub(crate) use crate::cargo::{cargo, repository, target_directory};
pub(crate) use crate::expect::{Need, needs};
use crate::report::{self, Line};

/// The id that a test takes on where root tries what an ordinary user can do.
pub(crate) const NOBODY: u32 = 65_534;

/// How long a test may take that builds this repository.
pub(crate) const BUILD_LIMIT: Duration = Duration::from_secs(1200);

/// A state directory of its own, whose end is the proof that nothing is left in it.
pub(crate) struct Home {
    directory: TempDir,
    /// Dropped in time, or the test hangs.
    _in_time: Option<Sender<()>>,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self::of_a_test_that_takes(report::ORDINARY)
    }

    /// For a test that may take longer than others.
    pub(crate) fn of_a_test_that_takes(limit: Duration) -> Self {
        Self { directory: temporary_directory(), _in_time: takes(limit) }
    }

    /// The state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// A place for files of the test's own.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn config(&self) -> Config {
        Config { state_directory: Some(self.state()), ..Config::default() }
    }

    /// A sandbox on the host image.
    pub(crate) fn sandbox(&self) -> Sandbox {
        self.sandbox_of(Image::host())
    }

    pub(crate) fn sandbox_of(&self, image: Image) -> Sandbox {
        Sandbox::create(Config { image, ..self.config() }).unwrap()
    }

    /// What sandboxes have on disk: the names of their directories.
    pub(crate) fn left(&self) -> Vec<OsString> {
        match fs::read_dir(self.state().join("sandboxes")) {
            Ok(entries) => entries.map(|entry| entry.unwrap().file_name()).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => panic!("{error}"),
        }
    }

    /// Makes sure that nothing of any sandbox is on disk any more.
    pub(crate) fn assert_settled(&self) {
        adl_runtime::finish_removals();
        // The collector of another test's process may be about to let go of one.
        let gone = within(Duration::from_secs(5), || self.left().is_empty());
        assert!(gone, "left on disk: {:?}", self.left());
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.assert_settled();
        }
    }
}

/// Tells the runner of this test something. Whether there is one.
pub(crate) fn tell(line: &Line) -> bool {
    let Some(path) = std::env::var_os(report::REPORT) else { return false };
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
    true
}

/// Says how long the calling test may take from now on. Where no runner looks after it, the whole
/// program is ended, and so what hangs in it, unless the result is dropped in time: the waits of
/// the library for a command have no end, and rightly so.
fn takes(limit: Duration) -> Option<Sender<()>> {
    if tell(&Line::Takes(limit)) {
        return None;
    }
    let (sender, receiver) = channel();
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    std::thread::spawn(move || {
        if receiver.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            let line = format!("{test}: still running after {limit:?}\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            std::process::exit(101);
        }
    });
    Some(sender)
}

/// For those who measure, and for those who would be measured with it. Comes before anything is
/// made: where a runner has started this test beside others, it ends here, and is run again later.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    if std::env::var_os(report::ALONE).is_none() && tell(&Line::Alone) {
        std::process::exit(0);
    }
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a temporary directory where an overlay can have its upper: not in memory.
pub(crate) fn temporary_directory() -> TempDir {
    let fit = |path: &Path| {
        nix::sys::statfs::statfs(path).is_ok_and(|s| {
            s.filesystem_type() != nix::sys::statfs::TMPFS_MAGIC
                && s.filesystem_type() != nix::sys::statfs::OVERLAYFS_SUPER_MAGIC
        }) && nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok()
    };
    let places = [std::env::temp_dir(), "/var/tmp".into(), env!("CARGO_TARGET_TMPDIR").into()];
    let place = places.iter().find(|path| fit(path)).unwrap_or(&places[0]);
    tempfile::Builder::new().prefix("adl-test-").tempdir_in(place).unwrap()
}

/// The version of the kernel that runs.
pub(crate) fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Whether this machine does nothing else, so that times can be what they are promised to be:
/// `ADL_TEST_IDLE` says so.
pub(crate) fn is_idle() -> bool {
    std::env::var_os("ADL_TEST_IDLE").is_some()
}

/// How long something may take here that takes `limit` at most on a machine that does nothing else.
/// On any other it is a time in which only what hangs has not happened; it is shorter than the 45 s
/// for which the kernel lets the holder of a lease wait.
pub(crate) fn at_most(limit: Duration) -> Duration {
    if is_idle() { limit } else { limit + Duration::from_secs(30) }
}

/// The median of times on a machine that does nothing else; on any other the least of them, which
/// shows what is waited for in all of them, and nothing of what came between.
pub(crate) fn typical(times: &mut [Duration]) -> Duration {
    crate::figures::percentile(times, if is_idle() { 50 } else { 0 })
}

/// How much processor time the calling thread takes for something: that depends on what is done,
/// and not on how busy a disk is, or the machine.
pub(crate) fn processor_time<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let now = || {
        let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
        Duration::from(nix::time::clock_gettime(clock).unwrap())
    };
    let begin = now();
    let result = work();
    (now() - begin, result)
}

/// Looks until something holds that comes to hold within `limit` on a machine that does nothing
/// else; whether it did.
pub(crate) fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + at_most(limit);
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What `body` returns, while threads do `work` over and over, each told how often it has. They
/// stop when `body` has failed, too: a test that fails must not look like one that hangs.
pub(crate) fn beside<T>(
    threads: usize,
    work: impl Fn(usize) + Sync,
    body: impl FnOnce() -> T,
) -> T {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&is_over);
        for _ in 0..threads {
            scope.spawn(|| (0..).take_while(|_| !is_over.load(Ordering::Relaxed)).for_each(&work));
        }
        body()
    })
}

/// Files of a sandbox, for calls that have much to do: their ordinary time is short for that on a
/// machine with much else to do.
pub(crate) fn patient_files(sandbox: &Sandbox) -> Files {
    let mut files = sandbox.files();
    files.timeout(report::ORDINARY);
    files
}

/// Runs a script in a sandbox that must succeed; what it wrote to stdout.
#[track_caller]
pub(crate) fn shell(sandbox: &Sandbox, script: impl AsRef<OsStr>) -> String {
    let output = sandbox.shell(script.as_ref()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {}: {stderr}", script.as_ref(), output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// The `adl` program: `ADL_BIN`, or built now as this program was, since cargo builds only the
/// library for the tests of another package.
pub(crate) fn adl() -> &'static Path {
    static ADL: OnceLock<PathBuf> = OnceLock::new();
    ADL.get_or_init(|| match std::env::var_os("ADL_BIN") {
        Some(path) => path.into(),
        None => crate::cargo::build("adl", &crate::cargo::ADL).unwrap(),
    })
}

/// Runs `adl` as the calling user with a state directory.
pub(crate) fn adl_command(state: &Path) -> Command {
    let mut command = Command::new(adl());
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("ADL_STATE_DIR", state);
    command.stdin(Stdio::null());
    command
}

/// What an ordinary user can run: root becomes nobody, anyone else is one.
pub(crate) struct OrdinaryUser {
    directory: TempDir,
    adl: PathBuf,
}

impl OrdinaryUser {
    pub(crate) fn new() -> Self {
        let directory = temporary_directory();
        let adl = if nix::unistd::geteuid().is_root() {
            // The build may lie in a place that no one else can enter.
            let copy = directory.path().join("adl");
            copy_program(adl(), &copy);
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
            std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            copy
        } else {
            adl().to_owned()
        };
        Self { directory, adl }
    }

    pub(crate) fn adl(&self) -> &Path {
        &self.adl
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.env("ADL_STATE_DIR", self.state()).current_dir("/").stdin(Stdio::null());
        if nix::unistd::geteuid().is_root() {
            // With the ids go the supplementary groups.
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Runs a command in a sandbox that must succeed; what it wrote to stdout.
    #[track_caller]
    pub(crate) fn run(&self, command: &[&str]) -> String {
        let mut adl = self.command(self.adl());
        succeeds(adl.args(["run", "--"]).args(command))
    }
}

impl Drop for OrdinaryUser {
    fn drop(&mut self) {
        if let (false, Ok(left)) =
            (std::thread::panicking(), fs::read_dir(self.state().join("sandboxes")))
        {
            let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, [""; 0], "left on disk");
        }
    }
}

/// Copies a program, by another process: a child that another test forks while this one has the
/// copy open for writing would have it, too, and it could not be run (ETXTBSY).
pub(crate) fn copy_program(from: &Path, to: &Path) {
    succeeds(Command::new("cp").arg("-L").arg(from).arg(to));
}

/// Runs a program that must succeed; what it wrote to stdout.
#[track_caller]
pub(crate) fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}: {}", output.status, stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
