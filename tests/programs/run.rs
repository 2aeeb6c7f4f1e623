//! Runs the jobs of a program: inside as root, inside as an ordinary user, outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use adl_runtime::{Access, Capabilities, Config, Image, Mount, Sandbox};

use super::list::{PROGRAMS, Program};
use super::{Checks, Outcome, Side, checks};
use crate::harness::{NOBODY, OrdinaryUser, copy_program, temporary_directory};
use crate::helper;

/// What every job finds in its environment, and nothing else.
const ENVIRONMENT: [&str; 4] = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/tmp/work",
    "LANG=C.UTF-8",
    "DEBIAN_FRONTEND=noninteractive",
];
const HOSTNAME: &str = "programs";
/// How long one job may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// What a program runs on.
pub(crate) struct Place {
    /// Of root, and of an ordinary user. `/` for the programs of the machine: inside the host image.
    pub(crate) roots: [PathBuf; 2],
    /// Packages of Debian's that are to be seen at `/repository`.
    pub(crate) packages: Option<PathBuf>,
}

impl Place {
    /// The root file system for one side.
    fn root(&self, side: Side) -> &Path {
        let [of_root, of_user] = &self.roots;
        match side {
            Side::Root => of_root,
            Side::User => of_user,
        }
    }
}

/// What the jobs print in a chroot, in namespaces that end with them.
pub(super) fn outside(place: &Place, jobs: &[String]) -> String {
    let changes = temporary_directory();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"])
        .args(["--uts", "--ipc", "--net", "sh", "-c", include_str!("outside.sh"), "sh"])
        .arg(place.root(Side::Root))
        .arg(changes.path())
        .arg(place.packages.as_deref().unwrap_or(Path::new("")))
        .arg(HOSTNAME)
        .args(jobs)
        .env("ADL_TEST_ENVIRONMENT", ENVIRONMENT.join(" "))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned() + &errors
}

/// What the jobs of a program print in a sandbox.
pub(super) fn inside(config: Config, place: &Place, side: Side, program: &Program) -> String {
    let root = place.root(side);
    let image = if root == Path::new("/") { Image::host() } else { Image::directory(root) };
    let mounts = place
        .packages
        .iter()
        .map(|packages| Mount::volume(packages, "/repository", Access::ReadOnly));
    let capabilities = program.capability.into_iter();
    let is_limited = config.limits.memory.is_some();
    let sandbox = Sandbox::create(Config {
        image,
        capabilities: capabilities.fold(Capabilities::default(), Capabilities::with),
        hostname: Some(HOSTNAME.to_owned()),
        mounts: mounts.collect(),
        ..config
    });
    let sandbox = sandbox.unwrap();
    let mut printed = String::new();
    for job in program.jobs() {
        let mut command = sandbox.command("env");
        command.arg("-i").args(ENVIRONMENT).args(is_limited.then_some("LIMITED=1"));
        command.args(["sh", "-c", &job]).timeout(LIMIT);
        let output = command.keep_output(8 << 20, 8 << 20).output().unwrap();
        printed += &String::from_utf8_lossy(&output.stdout);
        printed += &String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => {}
            Some(code) => printed += &format!("the job ends with {code}\n"),
            None => printed += &format!("the job is over: {}\n", output.status),
        }
    }
    printed
}

/// What the jobs of a program print in a sandbox that an ordinary user makes.
pub(super) fn inside_as_user(place: &Place, program: &str) -> String {
    let user = OrdinaryUser::new();
    let [tests, printed] = ["tests", "printed"].map(|name| user.adl().with_file_name(name));
    copy_program(&std::env::current_exe().unwrap(), &tests);
    // The way to a root file system may be closed to others.
    let show = "mount -t tmpfs tmpfs /mnt
        for path in root repository; do
            [ \"$1\" ] && mkdir /mnt/$path && mount --bind \"$1\" /mnt/$path
            shift
        done
        exec setpriv --reuid $1 --regid $1 --clear-groups \"$2\" --exact helper::entry --ignored \
            --nocapture --test-threads=1";
    let root = place.root(Side::User);
    let is_host = root == Path::new("/");
    let root = if is_host { Path::new("") } else { root };
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec", show, "sh"])
        .arg(root)
        .arg(place.packages.as_deref().unwrap_or(Path::new("")))
        .arg(NOBODY.to_string())
        .arg(&tests)
        .env(helper::ROLE, "run-a-program")
        .env(helper::STATE, user.state())
        .env("ADL_TEST_PROGRAM", program)
        .env(
            "ADL_TEST_PROGRAM_HAS",
            match (is_host, &place.packages) {
                (true, _) => "host",
                (_, None) => "root",
                (_, Some(_)) => "packages",
            },
        )
        .env("ADL_TEST_PROGRAM_PRINTS", &printed)
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::read_to_string(printed).unwrap()
}

/// The ordinary user's part.
pub(crate) fn run_as_user(state: &Path) {
    let set = |name: &str| std::env::var(name).unwrap();
    let (program, has) = (set("ADL_TEST_PROGRAM"), set("ADL_TEST_PROGRAM_HAS"));
    let root = PathBuf::from(if has == "host" { "/" } else { "/mnt/root" });
    let packages = (has == "packages").then(|| PathBuf::from("/mnt/repository"));
    let place = Place { roots: [root.clone(), root], packages };
    let program = PROGRAMS.iter().find(|one| one.name == program).unwrap();
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let printed = inside(config, &place, Side::User, program);
    fs::write(set("ADL_TEST_PROGRAM_PRINTS"), printed).unwrap();
    adl_runtime::finish_removals();
}

/// Keeps what was printed: to look at, and for the table.
pub(super) fn keep(directory: &Path, outcome: &Outcome) {
    fs::create_dir_all(directory).unwrap();
    let write = |side: &str, checks: &Checks| {
        let text: String =
            checks.iter().map(|(name, printed)| format!("== {name}\n{printed}")).collect();
        fs::write(directory.join(format!("{}.{side}", outcome.program.name)), text).unwrap();
    };
    write("outside", &outcome.outside);
    outcome.inside.iter().for_each(|(side, checks)| write(&side.to_string(), checks));
}

/// What was kept of a program's last run, if it has run.
pub(super) fn kept(directory: &Path, program: &'static Program) -> Option<Outcome> {
    let read = |side: &str| {
        let text = fs::read_to_string(directory.join(format!("{}.{side}", program.name)));
        text.ok().map(|text| checks(&text))
    };
    let inside = Side::ALL.map(|side| Some((side, read(&side.to_string())?)));
    let inside = inside.into_iter().collect::<Option<_>>()?;
    Some(Outcome { program, outside: read("outside")?, inside })
}
