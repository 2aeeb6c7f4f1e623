//! Whenever the host program is killed, all that it had is gone soon after, or is collected, and
//! what others have is as it was.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use adl_runtime::{Config, Pool, Sandbox};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::census::{self, Process};
use crate::harness::{Home, Need, needs, shell, within};
use crate::helper::{self, Helper, say};
use crate::injected::{self, OPERATIONS, PLAN, Subject};
use crate::lifetime::GONE;

/// How many sandboxes another process has meanwhile.
const NEIGHBOURS: usize = 8;

/// The helper that has them: says that each answers and has its file, as often as it is asked.
pub(crate) fn neighbours(state: &Path) {
    let create = |number: usize| {
        let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
        let sandbox = Sandbox::create(config).unwrap();
        shell(&sandbox, format!("echo {number} > /root/file"));
        sandbox
    };
    let sandboxes: Vec<_> = (0..NEIGHBOURS).map(create).collect();
    // What a state directory has from its first snapshot on.
    let another = create(NEIGHBOURS);
    let snapshot = another.snapshot().unwrap();
    drop(another);
    snapshot.delete().unwrap();
    adl_runtime::finish_removals();
    say("ready");
    for line in std::io::stdin().lock().lines() {
        line.unwrap();
        for (number, sandbox) in sandboxes.iter().enumerate() {
            assert_eq!(shell(sandbox, "cat /root/file"), format!("{number}\n"));
        }
        say("all");
    }
    drop(sandboxes);
    adl_runtime::finish_removals();
}

/// What a killed process may leave, looked at from outside.
struct Scene {
    home: Home,
    neighbours: Option<Helper>,
    processes: Vec<Process>,
    mounts: String,
    files: Vec<PathBuf>,
}

impl Scene {
    fn new(limit: Duration) -> Self {
        let home = Home::of_a_test_that_takes(limit);
        // Whatever a killed process has started becomes this one's child, and is seen here.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let mut neighbours = Helper::start("are-neighbours", &home.state());
        assert_eq!(neighbours.next().as_deref(), Some("ready"));
        let mut this = Self {
            home,
            neighbours: Some(neighbours),
            processes: Vec::new(),
            mounts: census::mounts(),
            files: Vec::new(),
        };
        this.ask_neighbours();
        this.processes = tree();
        this.files = this.files();
        this
    }

    fn files(&self) -> Vec<PathBuf> {
        census::files(&self.home.state()).into_iter().collect()
    }

    fn ask_neighbours(&mut self) {
        let neighbours = self.neighbours.as_mut().unwrap();
        neighbours.ask();
        assert_eq!(neighbours.next().as_deref(), Some("all"), "a neighbour was touched");
    }

    /// Looks at what is there after the process has died that made cgroups of this name.
    fn look(&mut self, cgroups: &str, what: &str) {
        let mut left = Vec::new();
        let gone = within(GONE, || {
            left = tree();
            left.retain(|process| !self.processes.contains(process));
            // Init's parent is dead, and this process in its place.
            for process in &left {
                let pid = Pid::from_raw(process.pid);
                while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
                    waitpid(pid, Some(WaitPidFlag::WNOHANG))
                {}
            }
            left.is_empty()
        });
        assert!(gone, "{what}: {left:?}");
        let collected = adl_runtime::collect_garbage(Some(&self.home.state()));
        assert!(collected.is_ok(), "{what}: {collected:?}");
        adl_runtime::finish_removals();
        let left = census::cgroups_of(cgroups);
        assert!(left.is_empty(), "{what}: {left:?}");
        assert_eq!(census::mounts(), self.mounts, "{what}");
        let files = self.files();
        let more: Vec<_> = files.iter().filter(|file| !self.files.contains(file)).collect();
        let less: Vec<_> = self.files.iter().filter(|file| !files.contains(file)).collect();
        assert!(more.is_empty() && less.is_empty(), "{what}: more {more:?}, less {less:?}");
        self.ask_neighbours();
    }

    fn end(mut self) {
        self.neighbours.take().unwrap().finish();
    }
}

/// All that descends from this process, as it was when it started.
fn tree() -> Vec<Process> {
    let own = std::process::id().cast_signed();
    census::tree(own).into_iter().map(Process::whatever_it_does).collect()
}

/// The helper that is killed: does one thing over and over.
pub(crate) fn works(state: &Path) {
    let work = std::env::var(PLAN).unwrap();
    let mut subject = Subject::of(state);
    say(&subject.cgroups);
    if work == "pool" {
        let config = Config { spare: true, ..subject.config() };
        let pool = Pool::builder(config).maximum(4).prefetch(2).build().unwrap();
        loop {
            say("works");
            let mut sandbox = pool.acquire(Duration::from_secs(60)).unwrap();
            shell(&sandbox, "echo > /root/file");
            sandbox.reset().unwrap();
        }
    }
    let operation = OPERATIONS.iter().find(|(name, _)| *name == work).unwrap().1;
    loop {
        subject.prepare(operation);
        say("works");
        subject.run(operation).unwrap();
    }
}

/// Kills a process at so many moments of each kind of work.
fn kill_at_any_moment(times: u64, limit: Duration) {
    if !needs(&[Need::Root, Need::Cgroups]) {
        return;
    }
    let mut scene = Scene::new(limit);
    let mut random = Random(std::process::id().into());
    let works = OPERATIONS.iter().map(|(name, _)| *name).chain(["pool"]);
    for work in works {
        for time in 0..times {
            let mut command = helper::command("works-until-killed", &scene.home.state());
            command.env(PLAN, work);
            let mut helper = Helper::start_as(command);
            let cgroups = helper.next().unwrap();
            for _ in 0..=time % 3 {
                assert_eq!(helper.next().as_deref(), Some("works"), "{work}");
            }
            // No operation takes much longer.
            let moment = Duration::from_micros(random.next() % 30_000);
            let begin = Instant::now();
            while begin.elapsed() < moment {
                std::hint::spin_loop();
            }
            helper.kill();
            scene.look(&cgroups, &format!("{work}, killed after {moment:?}"));
        }
        println!("{work}: killed {times} times");
    }
    scene.end();
}

/// Numbers that look random (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn who_is_killed_at_any_moment_leaves_nothing_and_touches_no_one() {
    kill_at_any_moment(13, Duration::from_secs(600));
}

#[test]
#[ignore = "takes an hour"]
fn who_is_killed_at_a_thousand_moments_of_each_work_leaves_nothing() {
    kill_at_any_moment(1000, Duration::from_secs(4 * 3600));
}

/// Kills a process before every so many system calls of each operation, of its own and of all that
/// it has started.
fn kill_at_each_call(roles: &[&str], step: usize, limit: Duration) {
    if !needs(&[Need::Root, Need::Cgroups, Need::Program("gcc")]) {
        return;
    }
    let mut scene = Scene::new(limit);
    let inject = injected::compile(&scene.home.path(""));
    let mut hit = BTreeSet::new();
    for (work, _) in OPERATIONS {
        for role in roles {
            let mut kill_at = |number: usize| {
                let missed = kill_at_call(&mut scene, &inject, (work, role), number);
                if missed.is_none() {
                    hit.insert(*role);
                }
                missed
            };
            let first = step / 2 + 1;
            for number in (first..).step_by(step) {
                // Other threads are not always as far, nor are children.
                let Some(count) = kill_at(number).and_then(|_| kill_at(number)) else { continue };
                if number == first && count > 0 {
                    let _ = kill_at(count.div_ceil(2));
                }
                println!("{work}, {role}: {} calls", number - 1);
                break;
            }
        }
    }
    assert_eq!(hit, roles.iter().copied().collect());
    scene.end();
}

/// Kills a process before one call; if there are not so many, returns how many there are.
fn kill_at_call(
    scene: &mut Scene,
    inject: &Path,
    (work, role): (&str, &str),
    number: usize,
) -> Option<usize> {
    let by = [inject.to_str().unwrap()];
    let mut command = helper::command_by(&by, "fails-inside-a-call", &scene.home.state());
    command.env(PLAN, format!("{work} {role} any {number} 1 {} each 0", number + 1));
    let mut helper = Helper::start_as(command);
    let cgroups = helper.next().unwrap();
    let said = helper.next();
    // It ends when the process has: how long all else takes is looked at.
    let status = helper.wait();
    let what = format!("{work}, killed at {role}'s call {number}");
    scene.look(&cgroups, &what);
    match said {
        Some(said) => Some(said.strip_prefix("missed ").unwrap().parse().unwrap()),
        None => {
            assert_eq!(status.code(), Some(128 + 9), "{what}");
            None
        }
    }
}

#[test]
fn what_is_killed_at_a_call_is_over_before_what_it_leaves() {
    if !needs(&[Need::Program("gcc")]) {
        return;
    }
    let home = Home::new();
    let mut inject = Command::new(injected::compile(&home.path("")));
    let killed = "sleep 20 > /dev/null 2>&1 & echo $!; kill -KILL $$";
    let output = inject.args(["sh", "-c", killed]).output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 9));
    let left = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let state = census::status(left, "State");
    let _ = kill(Pid::from_raw(left), Signal::SIGKILL);
    assert!(state.as_ref().is_some_and(|state| !state.starts_with('Z')), "{state:?}");
}

#[test]
fn who_is_killed_at_a_system_call_leaves_nothing_and_touches_no_one() {
    kill_at_each_call(&["caller", "init"], 67, Duration::from_secs(600));
}

#[test]
#[ignore = "takes half an hour"]
fn who_is_killed_at_each_system_call_leaves_nothing_and_touches_no_one() {
    kill_at_each_call(&injected::ROLES, 1, Duration::from_secs(3 * 3600));
}
