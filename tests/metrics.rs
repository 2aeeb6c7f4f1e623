//! What the library counts of itself is what has happened.

use std::cell::Cell;
use std::time::Duration;

use adl_runtime::{
    Config, Image, JobEnds, Limits, Metrics, Mount, Pool, Sandbox, metrics, pending_removals,
};

use crate::forks::{finish, fork};
use crate::harness::{Home, Need, needs, within};

/// How long something may take that a thread does beside.
const SOON: Duration = Duration::from_secs(20);

/// How many more there are of what only grows, by its place in the JSON.
fn more(before: &Metrics, after: &Metrics, group: &str, name: &str) -> u64 {
    let of = |metrics: &Metrics| {
        let all = serde_json::to_value(metrics).unwrap();
        all[group].pointer(&format!("/{name}")).and_then(serde_json::Value::as_u64).unwrap()
    };
    of(after) - of(before)
}

#[test]
fn sandboxes_are_counted_and_those_that_fail_by_their_step() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let before = metrics();
    let more = |group: &str, name: &str| more(&before, &metrics(), group, name);
    let config = Config { name: Some("one".to_owned()), ..home.config() };
    let sandbox = Sandbox::create(config.clone()).unwrap();
    assert_eq!((more("sandboxes", "created"), more("sandboxes", "alive")), (1, 1));

    Sandbox::create(config).unwrap_err();
    assert_eq!(more("sandboxes", "failed/directory"), 1);
    let image = Image::directory(home.path("absent"));
    Sandbox::create(Config { image, ..home.config() }).unwrap_err();
    assert_eq!(more("sandboxes", "failed/root"), 1);
    let limits = Limits { memory: Some(1), ..Limits::default() };
    Sandbox::create(Config { limits, name: Some("a/b".to_owned()), ..home.config() }).unwrap_err();
    assert_eq!(more("sandboxes", "failed/prepare"), 1);
    // A directory where a file is to be: init can't.
    let mount = Mount::tmpfs("/etc/passwd", 4096);
    Sandbox::create(Config { mounts: vec![mount], ..home.config() }).unwrap_err();
    assert_eq!(more("sandboxes", "failed/ready"), 1);
    let failed = metrics().sandboxes.failed.total() - before.sandboxes.failed.total();
    assert_eq!((failed, more("sandboxes", "created")), (4, 1));

    sandbox.reset().unwrap();
    drop(sandbox.snapshot().unwrap());
    assert_eq!((more("sandboxes", "resets"), more("sandboxes", "snapshots")), (1, 1));
    sandbox.delete().unwrap();
    sandbox.delete().unwrap();
    drop(sandbox);
    let now = metrics().sandboxes;
    assert_eq!((more("sandboxes", "deleted"), now.alive), (1, before.sandboxes.alive));
    adl_runtime::finish_removals();
    assert_eq!((pending_removals(), metrics().removals.waiting), (0, 0));
    assert!(more("removals", "done") >= 2);
}

#[test]
fn a_create_that_cannot_have_its_cgroup_is_counted_as_that() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let before = metrics().sandboxes.failed.cgroups;
    let limits = Limits { pids: Some(64), ..Limits::default() };
    let cgroup_parent = Some(home.path("no-cgroup"));
    Sandbox::create(Config { limits, cgroup_parent, ..home.config() }).unwrap_err();
    assert_eq!(metrics().sandboxes.failed.cgroups, before + 1);
}

#[test]
fn jobs_are_counted_once_each_by_their_ends() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let before = metrics().jobs;
    let count = |reason: fn(&JobEnds) -> u64| reason(&metrics().jobs.ended) - reason(&before.ended);
    let script = |text: &str| {
        let mut command = sandbox.shell(text);
        command.timeout(SOON);
        command
    };
    script("exit 3").output().unwrap();
    script("exit 3").status().unwrap();
    script("exit 0").background().unwrap().wait().unwrap();
    assert_eq!(count(|ends| ends.exited), 3);
    script("kill -9 $$").output().unwrap();
    assert_eq!(count(|ends| ends.signaled), 1);
    let mut slow = script("sleep 60");
    slow.timeout(Duration::from_millis(10)).output().unwrap();
    assert_eq!(count(|ends| ends.timed_out), 1);
    script("sleep 60").idle_timeout(Duration::from_millis(10)).output().unwrap();
    assert_eq!(count(|ends| ends.idle), 1);
    script("yes").output_limit(10).output().unwrap();
    // This one has exited by itself, and is told as the other.
    script("echo 12345").output_limit(3).output().unwrap();
    assert_eq!(count(|ends| ends.output_limit), 2);
    script("yes").output_with(|_, _| std::ops::ControlFlow::Break(())).unwrap();
    assert_eq!(count(|ends| ends.stopped), 1);
    let mut child = script("sleep 60").spawn().unwrap();
    assert_eq!(metrics().jobs.running, before.running + 1);
    sandbox.kill_all().unwrap();
    // Several are told, and it is counted once.
    let handle = child.handle();
    assert_eq!(child.wait().unwrap(), handle.wait().unwrap());
    assert_eq!(count(|ends| ends.killed), 1);
    let job = script("sleep 60").background().unwrap();
    sandbox.reset().unwrap();
    job.wait().unwrap();
    assert_eq!(count(|ends| ends.sandbox_died), 1);
    sandbox.command("/no/such").output().unwrap_err();
    sandbox.command("/no/such").spawn().unwrap_err();
    assert_eq!(metrics().jobs.not_started, before.not_started + 2);
    drop(script("sleep 60").spawn().unwrap());
    assert_eq!(metrics().jobs.unwatched, before.unwatched + 1);
    // What init is not asked for is none.
    sandbox.command("true").umask(0o7777).output().unwrap_err();
    sandbox.files().write_file("/tmp/a", "a").unwrap();
    sandbox.files().read_file("/no/such").unwrap_err();
    let now = metrics().jobs;
    assert_eq!(now.ended.total() - before.ended.total(), 11);
    assert_eq!((now.started - before.started, now.running), (14, before.running));
}

#[test]
fn pools_and_spares_are_counted() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let before = metrics();
    let sandbox = Sandbox::create(Config { spare: true, ..home.config() }).unwrap();
    assert!(within(SOON, || sandbox.has_spare()));
    let spares = metrics().spares;
    assert_eq!((spares.ready, spares.made), (before.spares.ready + 1, before.spares.made + 1));
    sandbox.reset().unwrap();
    assert_eq!(metrics().spares.taken, before.spares.taken + 1);
    sandbox.delete().unwrap();
    assert_eq!(metrics().spares.ready, before.spares.ready);

    let pool = Pool::builder(home.config()).build().unwrap();
    let sandbox = pool.acquire(SOON).unwrap();
    let pools = metrics().pools;
    assert_eq!(pools.len(), before.pools.len() + 1);
    assert_eq!((pools[pools.len() - 1].in_use, pools[pools.len() - 1].acquired), (1, 1));
    pool.close().unwrap();
    assert_eq!(metrics().pools.len(), before.pools.len());
    drop(sandbox);
    assert_eq!(metrics().sandboxes.alive, before.sandboxes.alive);
}

#[test]
fn a_fork_counts_its_own() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    sandbox.command("true").status().unwrap();
    let child = sandbox.command("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
    let before = metrics();
    // The fork takes out its own copy.
    let both = Cell::new(Some((sandbox, child)));
    finish(fork(|| {
        assert_eq!(metrics(), Metrics::default());
        drop(both.take());
        assert_eq!(metrics(), Metrics::default());
    }));
    assert_eq!(metrics(), before);
}
