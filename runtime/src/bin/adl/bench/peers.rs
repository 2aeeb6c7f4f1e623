//! The rows of others: what starts a program in namespaces as `adl run` does, each as a whole
//! process, and agentdocker-lite, call by call.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use adl_runtime::Config;
use serde_json::{Value, json};

use super::files::Scratch;
use super::{LeftOut, Rows, Times, spawn_on_host, told};
use crate::values::CliResult;

/// What each of them runs.
const PROGRAM: &str = "/bin/true";

/// What is beside `/usr` in a root: links into it, where the machine has them so.
const BESIDE_USR: [&str; 5] = ["bin", "sbin", "lib", "lib32", "lib64"];

/// Parts of `/proc` that Docker covers, and that it has be read-only.
const COVERED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
];
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// How many calls of each kind a sandbox of agentdocker-lite goes through, which takes ten times as
/// long as others.
const CALLS: usize = 5;
const ROUNDS_OF_SEED: usize = 4;

/// The names of its calls, with those of its rows.
const SEED: [(&str, &str); 6] = [
    ("create", "seed_create"),
    ("exec_argv", "seed_exec_argv"),
    ("write_5b", "seed_write_5b"),
    ("read_5b", "seed_read_5b"),
    ("reset_1", "seed_reset_1"),
    ("delete", "seed_delete"),
];

/// One that starts the program.
struct Peer {
    row: &'static str,
    program: PathBuf,
    arguments: Vec<OsString>,
    times: Times,
}

impl Peer {
    fn run(&self) -> std::io::Result<Output> {
        Command::new(&self.program).args(&self.arguments).stdin(Stdio::null()).output()
    }

    /// Whether it works here.
    fn try_it(&self) -> CliResult<()> {
        let why = match self.run() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                format!("{}: {}: {said}", self.program.display(), output.status)
            }
            Err(error) => format!("{}: {error}", self.program.display()),
        };
        Err(LeftOut { rows: self.row, why }.into())
    }
}

/// All that are here.
pub(super) struct Peers {
    all: Vec<Peer>,
    on_host: Times,
    seed: Option<Seed>,
    /// The root of runc and crun.
    _bundle: Scratch,
}

impl Peers {
    /// With agentdocker-lite, for an image that is a directory.
    pub(super) fn new(config: &Config, image: Option<&Path>) -> CliResult<Self> {
        let this = Self::of_whole_processes(config)?;
        match Seed::new(image) {
            Ok(seed) => Ok(Self { seed: Some(seed), ..this }),
            Err(error) => told(Err(error)).map(|()| this),
        }
    }

    pub(super) fn of_whole_processes(config: &Config) -> CliResult<Self> {
        let bundle = Scratch::new()?;
        make_bundle(bundle.path())?;
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let mut own = words(&["run"]);
        if let Some(state) = &config.state_directory {
            own.extend(["--state-dir".into(), state.clone().into()]);
        }
        own.extend(words(&["--", PROGRAM]));
        let in_bundle = || {
            let name = format!("adl-bench-{}", std::process::id());
            let mut arguments = words(&["run", "--bundle"]);
            arguments.extend([bundle.path().into(), name.into()]);
            arguments
        };
        let peer = |row, program: &str, arguments| Peer {
            row,
            program: program.into(),
            arguments,
            times: Times::default(),
        };
        let mut all = vec![
            Peer { program: std::env::current_exe()?, ..peer("run_adl", "", own) },
            peer("run_bwrap", "bwrap", arguments_of_bwrap()),
        ];
        if nix::unistd::geteuid().is_root() {
            all.extend([
                peer("run_runc", "runc", in_bundle()),
                peer("run_crun", "crun", in_bundle()),
            ]);
        } else {
            told(left_out("run_runc, run_crun", "they are measured as root"))?;
        }
        let mut works = Vec::new();
        for peer in all {
            match peer.try_it() {
                Ok(()) => works.push(peer),
                not => told(not)?,
            }
        }
        Ok(Self { all: works, on_host: Times::default(), seed: None, _bundle: bundle })
    }

    /// The rows of those that start a program as a whole process.
    pub(super) fn rows_of_whole_processes(&self) -> impl Iterator<Item = &'static str> {
        self.all.iter().map(|peer| peer.row)
    }

    /// What they took since this was asked last, in that order, and a spawn on the host.
    pub(super) fn take_times(&mut self) -> Vec<Times> {
        let all = self.all.iter_mut().map(|peer| &mut peer.times);
        all.chain([&mut self.on_host]).map(std::mem::take).collect()
    }

    pub(super) fn measure(&mut self, rounds: usize) -> CliResult<()> {
        for _ in 0..rounds {
            for peer in &mut self.all {
                let begin = std::time::Instant::now();
                let output = peer.run()?;
                peer.times.0.push(begin.elapsed());
                if !output.status.success() {
                    return Err(format!("{}: {output:?}", peer.program.display()).into());
                }
            }
            self.on_host.measure(|| spawn_on_host(Path::new(PROGRAM), &[]))?;
        }
        match &mut self.seed {
            Some(seed) => seed.measure(rounds.div_ceil(ROUNDS_OF_SEED)),
            None => Ok(()),
        }
    }

    pub(super) fn rows(&self, rows: &mut Rows) {
        for peer in &self.all {
            rows.insert(peer.row, peer.times.row(Some(&self.on_host)));
        }
        if let Some(seed) = &self.seed {
            for ((_, row), times) in SEED.iter().zip(&seed.times) {
                rows.insert(row, times.row(None));
            }
        }
    }
}

fn left_out<T>(rows: &'static str, why: impl Into<String>) -> CliResult<T> {
    Err(LeftOut { rows, why: why.into() }.into())
}

/// What a sandbox on the machine's programs has.
fn arguments_of_bwrap() -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        ["--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr"].map(Into::into).into();
    for name in BESIDE_USR {
        let path = PathBuf::from("/").join(name);
        match fs::read_link(&path) {
            Ok(to) => arguments.extend(["--symlink".into(), to.into(), path.into()]),
            Err(_) if path.is_dir() => {
                arguments.extend(["--ro-bind".into(), path.clone().into(), path.into()]);
            }
            Err(_) => {}
        }
    }
    let rest = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--", PROGRAM];
    arguments.extend(rest.map(Into::into));
    arguments
}

/// Makes a bundle of the Open Container Initiative's: a root and a configuration, as Docker's.
fn make_bundle(bundle: &Path) -> CliResult<()> {
    let root = bundle.join("rootfs");
    fs::create_dir(&root)?;
    let mut binds = vec!["/usr".to_owned()];
    for name in BESIDE_USR {
        let path = PathBuf::from("/").join(name);
        match fs::read_link(&path) {
            Ok(to) => symlink(to, root.join(name))?,
            Err(_) if path.is_dir() => binds.push(format!("/{name}")),
            Err(_) => {}
        }
    }
    for name in ["usr", "proc", "dev", "sys", "tmp"] {
        fs::create_dir(root.join(name))?;
    }
    let file = fs::File::create(bundle.join("config.json"))?;
    serde_json::to_writer(file, &configuration(&binds)?)?;
    Ok(())
}

fn configuration(binds: &[String]) -> CliResult<Value> {
    let mount = |kind: &str, to: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    let mut mounts = vec![
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666"]),
        mount("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777"]),
        mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
        mount("tmpfs", "/tmp", &["nosuid", "nodev", "mode=1777"]),
    ];
    mounts.extend(binds.iter().map(|path| {
        json!({"destination": path, "source": path, "options": ["bind", "ro", "nosuid", "nodev"]})
    }));
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    let held = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": [PROGRAM],
            "env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"],
            "cwd": "/",
            "capabilities": {"bounding": held, "effective": held, "permitted": held},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bench",
        "mounts": mounts,
        "linux": {
            "cgroupsPath": own_cgroup()?.join(format!("adl-bench-{}", std::process::id())),
            "namespaces": namespaces.map(|kind| json!({"type": kind})),
            "maskedPaths": COVERED,
            "readonlyPaths": READ_ONLY,
        },
    }))
}

/// The cgroup of this process, below which others' may be made.
fn own_cgroup() -> CliResult<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.splitn(3, ':').nth(2));
    Ok(path.unwrap_or("/").into())
}

/// agentdocker-lite, on a directory with a root file system.
struct Seed {
    rootfs: PathBuf,
    times: [Times; SEED.len()],
}

impl Seed {
    fn new(image: Option<&Path>) -> CliResult<Self> {
        const ROWS: &str = "seed_*";
        let Some(rootfs) = image.filter(|path| path.is_dir()) else {
            return left_out(ROWS, "agentdocker-lite takes a directory: say --image DIRECTORY");
        };
        if !nix::unistd::geteuid().is_root() {
            return left_out(ROWS, "agentdocker-lite needs root");
        }
        let mut this =
            Self { rootfs: rootfs.to_owned(), times: std::array::from_fn(|_| Times::default()) };
        match this.measure(1) {
            Ok(()) => Ok(Self { times: std::array::from_fn(|_| Times::default()), ..this }),
            Err(error) => left_out(ROWS, format!("python3 with agentdocker-lite 0.0.1: {error}")),
        }
    }

    fn measure(&mut self, rounds: usize) -> CliResult<()> {
        let output = Command::new("python3")
            .args(["-c", include_str!("seed.py")])
            .arg(&self.rootfs)
            .args([rounds, CALLS].map(|number| number.to_string()))
            .output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.trim().lines().next_back().unwrap_or_default().to_owned();
            return Err(format!("{}: {last}", output.status).into());
        }
        let told: Value = serde_json::from_slice(&output.stdout)?;
        for ((name, _), times) in SEED.iter().zip(&mut self.times) {
            let seconds = told.get(name).and_then(Value::as_array).into_iter().flatten();
            times.0.extend(seconds.filter_map(Value::as_f64).map(Duration::from_secs_f64));
        }
        Ok(())
    }
}
