//! Thousands of lives and resets leave nothing, and the last are as quick as the first. Every
//! feature works in each of a thousand lives, beside an attacker.
//!
//! What is looked at: what is left, what was touched, and how late each call came back.
//!
//! `cargo test --release --package adl-tests -- --ignored cycles:: --nocapture`

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use adl_runtime::{
    Access, Config, EndReason, Image, Limits, Mount, Sandbox, SnapshotOptions, Stdio, Upper,
};

use crate::census::Census;
use crate::figures::percentile;
use crate::harness::{Home, Need, alone, at_most, needs, shell, within};
use crate::helper::{self, Helper, say};
use crate::injected::{PLAN, Subject};
use crate::{census, images};

/// How much later than its deadline a call may come back.
const LATE: Duration = Duration::from_millis(50);

/// How many lives and resets are timed at each end.
const TIMED: usize = 1000;

#[test]
fn two_thousand_lives_and_five_hundred_resets_leave_nothing() {
    if needs(&[Need::Root, Need::Cgroups]) {
        live_and_reset(2000, 500, Duration::from_secs(600));
    }
}

#[test]
#[ignore = "takes an hour"]
fn a_hundred_thousand_lives_and_twenty_thousand_resets_are_as_quick_at_the_end() {
    if needs(&[Need::Root, Need::Cgroups]) {
        let _alone = alone();
        live_and_reset(100_000, 20_000, Duration::from_secs(8 * 3600));
    }
}

fn live_and_reset(lives: usize, resets: usize, limit: Duration) {
    let home = Home::of_a_test_that_takes(limit);
    let mut command = helper::command("live-shortly", &home.state());
    command.env(PLAN, format!("{lives} {resets}"));
    let mut helper = Helper::start_as(command);
    while let Some(line) = helper.next() {
        println!("{line}");
    }
    helper.finish();
    assert_eq!(home.left(), [""; 0]);
}

/// The helper of the tests above.
pub(crate) fn live_shortly(state: &Path) {
    let plan = std::env::var(PLAN).unwrap();
    let (lives, resets) = plan.split_once(' ').unwrap();
    let mut subject = Subject::of(state);
    subject.sandbox = None;
    let plain = |subject: &Subject| {
        let state_directory = Some(subject.state.clone());
        Config { state_directory, ..Config::default() }
    };
    let life = |subject: &mut Subject| {
        let sandbox = Sandbox::create(plain(subject)).unwrap();
        assert!(sandbox.command("true").output().unwrap().status.success());
        sandbox.delete().unwrap();
    };
    measure(&mut subject, "lives", lives.parse().unwrap(), life);
    let reset = |subject: &mut Subject| {
        let sandbox = subject.sandbox.as_ref().unwrap();
        let _job = sandbox.shell("echo > /tmp/file; sleep 1000").spawn().unwrap();
        sandbox.reset().unwrap();
    };
    let resets: usize = resets.parse().unwrap();
    for (config, what, times) in [
        (plain(&subject), "resets", resets),
        (subject.config(), "resets of one with limits and volumes", resets / 10),
    ] {
        subject.sandbox = Some(Sandbox::create(config).unwrap());
        measure(&mut subject, what, times, reset);
        let sandbox = subject.sandbox.take().unwrap();
        assert_eq!(shell(&sandbox, "ls /tmp"), "");
        sandbox.delete().unwrap();
    }
    adl_runtime::finish_removals();
}

/// Does something so often, and makes sure that it leaves nothing: in a process of its own.
fn measure(subject: &mut Subject, what: &str, times: usize, work: impl Fn(&mut Subject)) {
    let own = std::process::id().cast_signed();
    let settle = |subject: &Subject| {
        adl_runtime::finish_removals();
        let mut census = Census::take(&subject.state, &subject.cgroups);
        // The sandbox that there is, is another after each reset, with other descriptors.
        let is_of_sandbox = |what: &str| Path::new(what).starts_with(&subject.state);
        census.descriptors.iter_mut().for_each(|(number, what)| {
            *number = 0;
            if is_of_sandbox(what) {
                "the sandbox".clone_into(what);
            }
        });
        census.descriptors.sort();
        census.processes.retain(|process| process.pid == own);
        let inits = census::tree(own).len() - 1;
        census.namespaces = census::namespaces(own);
        // And so are its cgroups, its files and the locks on them.
        let counts = (inits, census.cgroups.len(), census.files.len(), census.locks.len());
        census.cgroups.clear();
        census.files.clear();
        census.locks.clear();
        (census, counts)
    };
    // What is made once, and what memory is used for the first time. What is written down here has
    // its memory by then, too.
    let mut first = vec![Duration::MAX; TIMED];
    let mut last = vec![Duration::MAX; TIMED];
    (0..100).for_each(|_| work(subject));
    let before = settle(subject);
    let memory = census::resident(own);
    for number in 0..times {
        let begin = Instant::now();
        work(subject);
        let took = begin.elapsed();
        if let Some(place) = first.get_mut(number) {
            *place = took;
        }
        last[number % TIMED] = took;
    }
    let mut after = settle(subject);
    let same = within(Duration::from_secs(5), || {
        if after != before {
            after = settle(subject);
        }
        after == before
    });
    assert!(same, "{what}: {:?}, {:?}", after.0.difference(&before.0), (after.1, before.1));
    let grown = census::resident(own).saturating_sub(memory);
    let [first, last] = [first, last].map(|mut times| {
        times.retain(|time| *time != Duration::MAX);
        percentile(&mut times, 50)
    });
    say(format_args!("{times} {what}: {first:?} at first, {last:?} at last, {grown} KiB more"));
    assert!(grown < 1024, "{what}: {grown} KiB more");
    if times >= 10 * TIMED {
        let (first, last) = (first.as_secs_f64(), last.as_secs_f64());
        assert!(last <= first * 1.1, "{what}: {first} s at first, {last} s at last");
    }
}

/// How many lives there are: as many as the environment says, on machines where that takes too
/// long.
fn lives() -> usize {
    std::env::var("ADL_LIVES").map_or(1000, |count| count.parse().unwrap())
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_lives_beside_an_attacker_leave_nothing() {
    let needed = [Need::Root, Need::Cgroups, Need::Program("python3"), Need::Program("bash")];
    if !needs(&needed) {
        return;
    }
    let home = Home::of_a_test_that_takes(Duration::from_secs(1800));
    let canary = home.path("canary");
    fs::create_dir_all(canary.join("data/below")).unwrap();
    fs::write(canary.join("data/file"), "canary\n").unwrap();
    fs::write(canary.join("data/below/other"), "other\n").unwrap();
    std::os::unix::fs::symlink("/etc/hostname", canary.join("data/link")).unwrap();
    let (before, etc) = (images::fingerprint(&canary), images::fingerprint(Path::new("/etc")));
    let (mounts, namespaces) = (census::mounts(), census::all_namespaces());

    let mut helper = Helper::start("live-often", &home.state());
    while let Some(line) = helper.next() {
        println!("{line}");
    }
    helper.finish();

    assert_eq!(images::fingerprint(&canary), before);
    assert_eq!(images::fingerprint(Path::new("/etc")), etc);
    assert_eq!(census::mounts(), mounts);
    let more = || census::all_namespaces().difference(&namespaces).cloned().collect::<Vec<_>>();
    assert!(within(Duration::from_secs(5), || more().is_empty()), "{:?}", more());
    home.assert_settled();
    let kept = fs::read_dir(home.state().join("snapshots")).unwrap().count();
    assert_eq!(kept, 0, "snapshots");
}

/// What the attacker does all the time, with what it may use.
const ATTACKS: [&str; 5] = [
    "while :; do :; done & while :; do :; done",
    "while :; do python3 -c \"x = b'1' * (300 << 20)\"; done",
    "while :; do :(){ :|:& }; :; sleep 0.01; done",
    "while :; do head -c 20000000 /dev/zero > /tmp/f; rm /tmp/f; done",
    // Its volume, of which a part is copied out by each life, leads elsewhere as often as not.
    "cd /shared; while :; do mkdir -p out; echo x > out/f; rm -rf out; ln -sfn /canary/data out; rm -f out; done",
];

/// The helper of the test above.
pub(crate) fn live_often(state: &Path) {
    let place = state.parent().unwrap().to_owned();
    let shared = place.join("shared");
    fs::create_dir_all(&shared).unwrap();
    let limits = |memory: u64| Limits {
        memory: Some(memory),
        pids: Some(64),
        cpu: Some(500),
        ..Limits::default()
    };
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let of_attacker = Config {
        limits: limits(64 << 20),
        upper: Upper::Memory { size: 64 << 20 },
        mounts: vec![
            Mount::volume(&shared, "/shared", Access::ReadWrite),
            Mount::volume(place.join("canary"), "/canary", Access::ReadOnly),
        ],
        ..config.clone()
    };
    let attack = |attacker: &Sandbox| {
        for attack in ATTACKS {
            let mut command = attacker.command("bash");
            drop(command.args(["-c", attack]).stderr(Stdio::null()).spawn().unwrap());
        }
    };
    let attacker = Sandbox::create(of_attacker).unwrap();
    attack(&attacker);

    let life = Life { place, shared, config, limits: limits(256 << 20) };
    let own = i32::try_from(std::process::id()).unwrap();
    life.live(0);
    adl_runtime::finish_removals();
    let settled = || {
        let of_attacker: BTreeSet<_> =
            census::tree(attacker.init_pid()).into_iter().map(|process| process.pid).collect();
        let others = census::tree(own).into_iter().map(|process| process.pid);
        others.filter(|pid| *pid != own && !of_attacker.contains(pid)).count() == 0
    };
    assert!(within(Duration::from_secs(10), settled));
    let (descriptors, threads) = (census::descriptors(own).len(), threads());
    let memory = census::resident(own);
    let mut latest = Duration::ZERO;
    for number in 1..=lives() {
        latest = latest.max(life.live(number));
        if number % 50 == 0 {
            attacker.reset().unwrap();
            attack(&attacker);
        }
    }
    adl_runtime::finish_removals();
    say(format_args!("{} lives; the latest call came back {latest:?} after its deadline", lives()));
    assert!(latest <= at_most(LATE), "{latest:?}");
    let now = || (census::descriptors(own).len(), self::threads());
    let same = || now() == (descriptors, threads);
    assert!(
        within(Duration::from_secs(5), same),
        "{:?}, before {:?}",
        now(),
        (descriptors, threads)
    );
    let grown = census::resident(own).saturating_sub(memory);
    say(format_args!("the caller takes {grown} KiB more than after the first life"));
    assert!(grown <= 8 << 10, "{grown} KiB more");
    attacker.delete().unwrap();
    adl_runtime::finish_removals();
    let others = || census::tree(own).len();
    assert!(within(Duration::from_secs(5), || others() == 1), "{:?}", census::tree(own));
    let _ = fs::remove_dir_all(&life.shared);
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

struct Life {
    place: PathBuf,
    shared: PathBuf,
    config: Config,
    limits: Limits,
}

impl Life {
    /// Uses every feature once; returns how much later than its deadline the latest call came back.
    fn live(&self, number: usize) -> Duration {
        let canary = self.place.join("canary");
        let scratch = self.place.join(format!("copied-{number}"));
        let mut latest = Duration::ZERO;
        let config = Config {
            limits: self.limits.clone(),
            image: Image::host(),
            mounts: vec![
                Mount::volume(&canary, "/canary", Access::ReadOnly),
                Mount::volume(&canary, "/copy", Access::CopyOnWrite),
                Mount::volume(&self.shared, "/shared", Access::ReadWrite),
                Mount::tmpfs("/scratch", 1 << 20),
            ],
            ..self.config.clone()
        };
        let sandbox = Sandbox::create(config).unwrap();

        // Commands: their output, a terminal, one in the background, one that does not end by
        // itself.
        assert_eq!(shell(&sandbox, "echo $((6 * 7)) > /root/answer; cat /root/answer"), "42\n");
        let output = sandbox.command("cat").input(*b"fed").output().unwrap();
        assert_eq!(output.stdout, b"fed");
        let output = sandbox.command("tty").terminal(24, 80).output().unwrap();
        assert!(output.stdout.starts_with(b"/dev/pts/"), "{output:?}");
        let job = sandbox.shell("echo begun; sleep 1000 & setsid sleep 1000").background().unwrap();
        let begin = Instant::now();
        let timeout = Duration::from_millis(30);
        let stubborn = "trap '' TERM INT HUP; (setsid sleep 1000 &); while :; do :; done";
        let status = sandbox.shell(stubborn).timeout(timeout).status().unwrap();
        assert_eq!(status.reason(), EndReason::TimedOut);
        latest = latest.max(begin.elapsed().saturating_sub(timeout));
        let begin = Instant::now();
        let mut child = sandbox.command("sleep").arg("1000").spawn().unwrap();
        assert!(child.handle().wait_timeout(timeout).unwrap().is_none());
        latest = latest.max(begin.elapsed().saturating_sub(timeout));
        child.kill().unwrap();
        child.wait().unwrap();
        let limited =
            sandbox.shell("head -c 100000 /dev/zero").output_limit(1000).output().unwrap();
        assert_eq!(limited.status.reason(), EndReason::OutputLimit);
        job.kill().unwrap();
        assert_eq!(job.wait().unwrap().stdout, b"begun\n");

        // Files, and copies in and out.
        let files = sandbox.files();
        files.write_file("/root/file", b"content").unwrap();
        assert_eq!(files.read_file("/root/file").unwrap(), b"content");
        files.copy_in(&canary, "/root/canary").unwrap();
        shell(
            &sandbox,
            "rm -rf /copy/data; echo changed >> /root/canary/data/file; ! rm /canary/data/file 2>&1",
        );
        files.copy_out("/root/canary", &scratch).unwrap();
        assert_eq!(fs::read_to_string(scratch.join("data/file")).unwrap(), "canary\nchanged\n");
        // What the attacker swaps all the time, whatever that is now.
        let _ = files.copy_out("/shared/out", scratch.join("shared"));
        fs::remove_dir_all(&scratch).unwrap();
        let begin = Instant::now();
        shell(&sandbox, "mkfifo /root/fifo");
        let mut waiting = sandbox.files();
        assert!(waiting.timeout(Duration::from_millis(100)).read_file("/root/fifo").is_err());
        latest = latest.max(begin.elapsed().saturating_sub(Duration::from_millis(100)));

        // Limits, what was used, and standing still.
        sandbox.set_limits(Limits { pids: Some(32), ..self.limits.clone() }).unwrap();
        assert!(sandbox.stats().unwrap().memory.is_some());
        sandbox.freeze().unwrap();
        sandbox.thaw().unwrap();

        // A reset, a snapshot and a fork of it.
        sandbox.reset().unwrap();
        shell(&sandbox, "test ! -e /root/file && echo kept > /root/kept");
        let options = SnapshotOptions {
            name: number.is_multiple_of(2).then(|| "named".to_owned()),
            ..SnapshotOptions::default()
        };
        let snapshot = sandbox.snapshot_with(&options).unwrap();
        let config =
            Config { state_directory: self.config.state_directory.clone(), ..snapshot.config() };
        let fork = Sandbox::create(config).unwrap();
        assert_eq!(shell(&fork, "cat /root/kept"), "kept\n");
        fork.delete().unwrap();
        sandbox.reset().unwrap();
        sandbox.delete().unwrap();
        snapshot.delete().unwrap();
        latest
    }
}
