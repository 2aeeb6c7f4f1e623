//! A pool hands out sandboxes that are ready, new and in turn, and leaves nothing of them.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use adl_runtime::{Config, EndReason, Error, ErrorKind, Image, Pool, PoolStats};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::census;
use crate::forks::{finish, fork};
use crate::harness::{Home, Need, at_most, needs, shell, within};
use crate::helper::{Helper, say};
use crate::lifetime::GONE;

/// How long a sandbox may be waited for that is sure to come.
const SURE: Duration = Duration::from_secs(60);
/// How long something may take that a thread of the pool does beside.
const SOON: Duration = Duration::from_secs(10);

fn config(state: &Path) -> Config {
    Config { state_directory: Some(state.to_owned()), ..Config::default() }
}

/// Waits until a pool is so.
#[track_caller]
fn until(pool: &Pool, is_so: impl Fn(&PoolStats) -> bool) {
    assert!(within(SOON, || is_so(&pool.stats())), "{:?}", pool.stats());
}

/// The error of an acquire that must fail.
#[track_caller]
fn refused(pool: &Pool, time: Duration) -> Error {
    pool.acquire(time).map(drop).expect_err("no sandbox")
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn what_is_acquired_is_prepared_and_was_never_used() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let pool = Pool::builder(home.config())
        .minimum(3)
        .prefetch(2)
        .maximum(4)
        .prepare(|sandbox| Ok(sandbox.files().write_file("/root/ready", "prepared")?))
        .build()
        .unwrap();
    // Before it is asked.
    until(&pool, |stats| stats.idle == 3);
    let mut names = BTreeSet::new();
    for _ in 0..10 {
        let sandbox = pool.acquire(SURE).unwrap();
        assert_eq!(shell(&sandbox, "cat /root/*; ls /tmp"), "prepared");
        shell(&sandbox, "echo used > /root/used; sleep 1000 > /dev/null 2>&1 & echo > /tmp/used");
        assert!(names.insert(sandbox.name().to_owned()), "{names:?}");
    }
    until(&pool, |stats| stats.idle == 3 && stats.deleting == 0);
    let stats = pool.stats();
    assert_eq!((stats.acquired, stats.deleted, stats.in_use), (10, 10, 0), "{stats:?}");
    assert_eq!((stats.made, stats.failed, stats.sick), (13, 0, 0), "{stats:?}");
    assert!(stats.waited >= stats.waited_most, "{stats:?}");
    pool.close().unwrap();
}

#[test]
fn many_threads_share_few_sandboxes_and_leave_nothing() {
    if needs(&[]) {
        let home = Home::new();
        Helper::start("share-a-pool", &home.state()).finish();
        assert_eq!(home.left(), [""; 0]);
    }
}

/// The helper of the test above.
pub(crate) fn share_a_pool(state: &Path) {
    const MOST: usize = 8;
    let own = i32::try_from(std::process::id()).unwrap();
    let share = |count: usize| {
        let pool = Pool::builder(config(state)).maximum(MOST).prefetch(2).build().unwrap();
        let (next, in_use) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..32 {
                let (pool, next, in_use) = (pool.clone(), &next, &in_use);
                scope.spawn(move || {
                    while next.fetch_add(1, Ordering::Relaxed) < count {
                        let sandbox = pool.acquire(SURE).unwrap();
                        let others = in_use.fetch_add(1, Ordering::SeqCst);
                        assert!(others < MOST, "{others} others");
                        let stats = pool.stats();
                        let all = stats.idle + stats.in_use + stats.making;
                        assert!(all <= MOST, "{stats:?}");
                        assert_eq!(shell(&sandbox, "echo $(ls /tmp); echo > /tmp/used"), "\n");
                        in_use.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        let stats = pool.stats();
        assert_eq!((stats.acquired, stats.in_use, stats.failed), (count as u64, 0, 0), "{stats:?}");
        drop(pool);
        adl_runtime::finish_removals();
        assert_eq!(census::tree(own).len(), 1);
        assert_eq!(std::fs::read_dir(state.join("sandboxes")).unwrap().count(), 0);
        (census::descriptors(own).len(), census::mounts(), threads())
    };
    let before = share(40);
    assert_eq!(share(500), before);
}

#[test]
fn who_asks_first_is_first() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let pool = Pool::builder(home.config()).maximum(1).build().unwrap();
    let held = pool.acquire(SURE).unwrap();
    let order = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for number in 0..6 {
            let (pool, order) = (&pool, &order);
            scope.spawn(move || {
                let sandbox = pool.acquire(SURE).unwrap();
                order.lock().unwrap().push(number);
                drop(sandbox);
            });
            until(pool, |stats| stats.waiting == number + 1);
        }
        drop(held);
    });
    assert_eq!(order.into_inner().unwrap(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_deadline_is_told_and_forgotten() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let pool = Pool::builder(home.config()).maximum(1).build().unwrap();
    let held = pool.acquire(SURE).unwrap();
    for time in [Duration::ZERO, Duration::from_millis(50)] {
        let begin = Instant::now();
        match refused(&pool, time) {
            Error::TimedOut { after, .. } => assert_eq!(after, time),
            error => panic!("{error:?}"),
        }
        let took = begin.elapsed();
        assert!(took >= time && took < at_most(time + Duration::from_secs(1)), "{took:?}");
    }
    let stats = pool.stats();
    assert_eq!((stats.waiting, stats.timed_out, stats.in_use), (0, 2, 1), "{stats:?}");
    // Those who have given up take nothing from those who have not.
    drop(held);
    drop(pool.acquire(SURE).unwrap());
    assert_eq!(pool.stats().acquired, 2);
}

#[test]
fn a_prepare_that_fails_is_told_and_tried_again_with_pauses() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let (calls, may_succeed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let prepare = {
        let (calls, may_succeed) = (Arc::clone(&calls), Arc::clone(&may_succeed));
        move |_: &adl_runtime::Sandbox| {
            calls.fetch_add(1, Ordering::SeqCst);
            if may_succeed.load(Ordering::SeqCst) { Ok(()) } else { Err("no such model".into()) }
        }
    };
    let pool = Pool::builder(home.config()).threads(1).prepare(prepare).build().unwrap();
    let begin = Instant::now();
    let told = AtomicUsize::new(0);
    let looks_at_it = || {
        while calls.load(Ordering::SeqCst) < 7 {
            match refused(&pool, SURE) {
                Error::Pool { why } if matches!(*why, Error::Prepare { .. }) => {
                    assert!(why.to_string().contains("no such model"), "{why}");
                    assert_eq!(why.kind(), ErrorKind::Inside);
                }
                error => panic!("{error:?}"),
            }
            told.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1));
        }
    };
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(looks_at_it);
        }
    });
    // Pauses of 50 ms, 100 ms and so on to 1.6 s, however many ask meanwhile, and are told.
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(3150), "seven calls in {took:?}");
    let (calls, told) = (calls.load(Ordering::SeqCst), told.into_inner());
    assert!(told > 2 * calls, "{calls} calls, told {told} times");
    let stats = pool.stats();
    assert!(stats.failed as usize >= calls && stats.made == 0, "{stats:?}");
    assert!(stats.last_error.unwrap().contains("no such model"));
    may_succeed.store(true, Ordering::SeqCst);
    assert!(within(SOON, || pool.acquire(SURE).is_ok()));
}

#[test]
fn a_panic_of_the_callers_code_is_contained() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let is_bad = Arc::new(AtomicBool::new(true));
    let seen = Arc::clone(&is_bad);
    let prepare = move |_: &adl_runtime::Sandbox| {
        assert!(!seen.load(Ordering::SeqCst), "not this one");
        Ok(())
    };
    let pool = Pool::builder(home.config()).prepare(prepare).build().unwrap();
    let error = refused(&pool, SURE).to_string();
    assert!(error.contains("panicked: not this one"), "{error}");
    is_bad.store(false, Ordering::SeqCst);
    assert!(within(SOON, || pool.acquire(SURE).is_ok()));

    // A check that panics has found its sandbox to be sick.
    let seen = Arc::clone(&is_bad);
    let check = move |_: &adl_runtime::Sandbox| {
        assert!(!seen.swap(false, Ordering::SeqCst), "sick");
        true
    };
    let pool = Pool::builder(home.config()).maximum(1).check(check).build().unwrap();
    until(&pool, |stats| stats.idle == 1);
    is_bad.store(true, Ordering::SeqCst);
    assert!(shell(&pool.acquire(SURE).unwrap(), "echo well") == "well\n");
    assert_eq!(pool.stats().sick, 1);
}

/// An error of a caller's that looks at the pool when it is asked what it says, and then panics.
#[derive(Debug)]
struct Asks(Arc<OnceLock<Pool>>);

impl std::error::Error for Asks {}

impl std::fmt::Display for Asks {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("it has {} ready", self.0.wait().stats().idle);
    }
}

#[test]
fn the_text_of_the_callers_error_is_the_callers_code() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let slot = Arc::new(OnceLock::new());
    let known = Arc::clone(&slot);
    let prepare = move |_: &adl_runtime::Sandbox| Err(Asks(Arc::clone(&known)).into());
    let pool = Pool::builder(home.config()).prepare(prepare).build().unwrap();
    assert!(slot.set(pool.clone()).is_ok());
    assert!(matches!(refused(&pool, SURE), Error::Pool { .. }));
    let told = pool.stats().last_error.unwrap();
    assert!(told.contains("panicked: it has 0 ready"), "{told}");
    // The pool is in what its own `prepare` holds, so that no handle is the last one.
    pool.close().unwrap();
}

#[test]
fn an_image_that_is_gone_is_told_and_what_is_ready_is_not_lost() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let image = home.path("image");
    std::fs::create_dir(&image).unwrap();
    let config = Config { image: Image::directory(&image), ..home.config() };
    let pool = Pool::builder(config).prefetch(1).maximum(4).build().unwrap();
    until(&pool, |stats| stats.idle == 1 && stats.making == 0);
    std::fs::remove_dir(&image).unwrap();
    let ready = pool.acquire(Duration::ZERO).unwrap();
    assert!(ready.is_alive());
    let begin = Instant::now();
    let error = refused(&pool, SURE);
    assert!(begin.elapsed() < at_most(SOON), "{:?}", begin.elapsed());
    match error {
        Error::Pool { why } => match &*why {
            Error::Io { path, source, .. } => {
                assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
                assert_eq!(path, &image);
            }
            other => panic!("{other:?}"),
        },
        error => panic!("{error:?}"),
    }
    std::fs::create_dir(&image).unwrap();
    assert!(within(SOON, || pool.acquire(SURE).is_ok()));
    assert!(ready.is_alive());
}

#[test]
fn one_that_has_died_or_is_not_well_is_replaced() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let inits = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&inits);
    let prepare = move |sandbox: &adl_runtime::Sandbox| {
        seen.lock().unwrap().push(sandbox.init_pid());
        Ok(())
    };
    let pool = Pool::builder(home.config()).prefetch(3).prepare(prepare).build().unwrap();
    until(&pool, |stats| stats.idle == 3 && stats.making == 0);
    let died = inits.lock().unwrap().clone();
    for init in &died {
        kill(Pid::from_raw(*init), Signal::SIGKILL).unwrap();
    }
    let is_dead = |pid: &i32| census::status(*pid, "State").is_none_or(|s| s.starts_with('Z'));
    assert!(within(GONE, || died.iter().all(is_dead)));
    let sandbox = pool.acquire(SURE).unwrap();
    assert_eq!(shell(&sandbox, "echo well"), "well\n");
    assert!(!died.contains(&sandbox.init_pid()));
    assert_eq!(pool.stats().sick, 3);
    drop((sandbox, pool));

    // Not well is what the caller says. A new one that is not is no sandbox at all.
    let check = |sandbox: &adl_runtime::Sandbox| sandbox.files().exists("/root/well").unwrap();
    let pool = Pool::builder(home.config()).check(check).build().unwrap();
    let error = refused(&pool, SURE).to_string();
    assert!(error.contains("not well"), "{error}");
}

#[test]
fn a_reset_takes_another_of_the_pool() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let is_bad = Arc::<AtomicBool>::default();
    let seen = Arc::clone(&is_bad);
    let prepare = move |sandbox: &adl_runtime::Sandbox| {
        if seen.load(Ordering::SeqCst) {
            return Err("it is bad".into());
        }
        Ok(sandbox.files().write_file("/root/ready", "prepared")?)
    };
    // The second is there for the reset alone.
    let pool = Pool::builder(home.config()).maximum(2).prepare(prepare).build().unwrap();
    let mut sandbox = pool.acquire(SURE).unwrap();
    for round in 0..4 {
        if round % 2 == 0 {
            until(&pool, |stats| stats.idle == 1 && stats.making + stats.deleting == 0);
        }
        let name = sandbox.name().to_owned();
        shell(&sandbox, "echo > /root/mark");
        let mut job = sandbox.command("sleep").arg("1000").spawn().unwrap();
        let members = census::tree(sandbox.init_pid());
        let made = pool.stats().made;
        sandbox.reset().unwrap();
        // Nothing runs in the old one; its init may be on its way out.
        assert!(members.iter().skip(1).all(|process| !process.exists()), "{members:?}");
        assert_eq!(job.wait().unwrap().reason(), EndReason::SandboxDied);
        assert_eq!(shell(&sandbox, "ls /root; cat /root/ready"), "ready\nprepared");
        assert_ne!(sandbox.name(), name);
        if round % 2 == 0 {
            assert!(pool.stats().made <= made + 1, "it was there");
        }
    }
    assert_eq!((pool.stats().resets, pool.stats().in_use), (4, 1));
    // Where there is none to take, it goes on as it was.
    is_bad.store(true, Ordering::SeqCst);
    until(&pool, |stats| stats.making + stats.deleting == 0);
    drop(pool.acquire(Duration::ZERO));
    until(&pool, |stats| stats.idle == 0 && stats.making == 0);
    shell(&sandbox, "echo > /root/mark");
    let failed = sandbox.reset();
    assert!(matches!(failed, Err(Error::Prepare { .. })), "{failed:?}");
    assert_eq!(shell(&sandbox, "ls /root"), "mark\nready\n");
    pool.close().unwrap();
    let closed = sandbox.reset();
    assert!(matches!(closed, Err(Error::PoolClosed)), "{closed:?}");
}

#[test]
fn a_pool_that_is_closed_tells_all_and_leaves_nothing() {
    if needs(&[]) {
        let home = Home::new();
        Helper::start("close-a-pool", &home.state()).finish();
        assert_eq!(home.left(), [""; 0]);
    }
}

/// The helper of the test above.
pub(crate) fn close_a_pool(state: &Path) {
    let own = i32::try_from(std::process::id()).unwrap();
    let close = || {
        let pool = Pool::builder(config(state)).maximum(3).prefetch(2).build().unwrap();
        let first = pool.acquire(SURE).unwrap();
        let held = [pool.acquire(SURE).unwrap(), pool.acquire(SURE).unwrap()];
        let mut job = first.command("sleep").arg("1000").spawn().unwrap();
        thread::scope(|scope| {
            let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| refused(&pool, SURE))).collect();
            until(&pool, |stats| stats.waiting == 4);
            pool.close().unwrap();
            for thread in waiting {
                let error = thread.join().unwrap();
                assert!(matches!(error, Error::PoolClosed), "{error:?}");
            }
        });
        // At once, and what is in use among it.
        assert_eq!(census::tree(own).len(), 1);
        assert_eq!(job.wait().unwrap().reason(), EndReason::SandboxDied);
        let deleted = first.command("true").status();
        assert!(matches!(deleted, Err(Error::Deleted)), "{deleted:?}");
        let closed = refused(&pool, SURE);
        assert!(matches!(closed, Error::PoolClosed), "{closed:?}");
        pool.close().unwrap();
        drop((first, held, job));
        let stats = pool.stats();
        assert_eq!((stats.in_use, stats.idle, stats.making), (0, 0, 0), "{stats:?}");
        adl_runtime::finish_removals();
        (census::descriptors(own).len(), threads())
    };
    let before = close();
    assert_eq!(close(), before);
    // Whoever is asked to prepare for ever is ended, too; and whoever is just being made.
    for round in 0..20 {
        let prepare = |sandbox: &adl_runtime::Sandbox| {
            sandbox.command("sleep").arg("1000").status()?;
            Ok(())
        };
        let pool = Pool::builder(config(state)).prefetch(4).threads(4).prepare(prepare).build();
        let pool = pool.unwrap();
        if round % 4 == 0 {
            assert!(within(SOON, || census::tree(own).len() >= 9), "four inits and sleepers");
        } else {
            let some = within(SOON, || census::tree(own).len() > round % 4);
            assert!(some);
        }
        let begin = Instant::now();
        drop(pool);
        assert!(begin.elapsed() < at_most(Duration::from_secs(10)), "{:?}", begin.elapsed());
        assert_eq!(census::tree(own).len(), 1);
    }
    adl_runtime::finish_removals();
    assert_eq!((census::descriptors(own).len(), threads()), before);
}

#[test]
fn a_fork_has_no_part_in_a_pool_of_its_parent() {
    if needs(&[]) {
        let home = Home::new();
        Helper::start("lend-a-pool", &home.state()).finish();
    }
}

/// The helper of the test above.
pub(crate) fn lend_a_pool(state: &Path) {
    let pool = Pool::builder(config(state)).maximum(4).prefetch(2).build().unwrap();
    let mut held = Some((pool.clone(), pool.acquire(SURE).unwrap()));
    let parent = pool;
    // At any moment of its threads' work, the lock among it.
    for round in 0..20 {
        let other = parent.acquire(SURE).unwrap();
        if round % 2 == 0 {
            until(&parent, |stats| stats.making + stats.deleting == 0);
        } else {
            drop(parent.acquire(SURE).unwrap());
        }
        finish(fork(|| {
            let (pool, mut sandbox) = held.take().unwrap();
            assert!(matches!(refused(&pool, SURE), Error::ForkedProcess { .. }));
            assert!(matches!(sandbox.reset(), Err(Error::ForkedProcess { .. })));
            assert!(matches!(pool.close(), Err(Error::ForkedProcess { .. })));
            assert_eq!(pool.stats(), PoolStats::default());
            assert!(sandbox.command("true").status().is_err());
            drop((pool, sandbox));
            // Its own is its own.
            let own = Pool::builder(config(state)).maximum(2).build().unwrap();
            assert_eq!(shell(&own.acquire(SURE).unwrap(), "echo own"), "own\n");
        }));
        assert_eq!(shell(&other, "echo alive"), "alive\n");
        assert_eq!(shell(&held.as_ref().unwrap().1, "echo alive"), "alive\n");
    }
    drop(held);
    assert_eq!(shell(&parent.acquire(SURE).unwrap(), "echo alive"), "alive\n");
    parent.close().unwrap();
    adl_runtime::finish_removals();
}

#[test]
fn a_caller_that_is_killed_takes_its_pool_with_it() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let mounts = census::mounts();
    for round in 0..6 {
        let mut helper = Helper::start("work-a-pool", &home.state());
        // Somewhere in the middle, another place each time.
        for _ in 0..=round * 3 {
            helper.next().unwrap();
        }
        let members = helper.stop_and_kill();
        assert!(members.len() > 2, "{members:?}");
        let gone = || members.iter().all(|process| !process.exists());
        assert!(within(GONE, gone), "{members:?}");
        adl_runtime::collect_garbage(Some(&home.state())).unwrap();
        assert_eq!(home.left(), [""; 0]);
    }
    assert_eq!(census::mounts(), mounts);
}

/// The helper of the test above.
pub(crate) fn work_a_pool(state: &Path) {
    let config = Config { spare: true, ..config(state) };
    let pool = Pool::builder(config).maximum(6).prefetch(3).build().unwrap();
    let mut kept = pool.acquire(SURE).unwrap();
    loop {
        let sandbox = pool.acquire(SURE).unwrap();
        shell(&sandbox, "echo > /root/file");
        say("working");
        kept.reset().unwrap();
        (*kept).reset().unwrap();
    }
}

#[test]
fn a_pool_without_descriptors_says_so_and_goes_on_when_there_are_some() {
    if needs(&[]) {
        let home = Home::new();
        Helper::start("pool-with-few-descriptors", &home.state()).finish();
    }
}

/// The helper of the test above.
pub(crate) fn pool_with_few_descriptors(state: &Path) {
    // What a process has once.
    drop(adl_runtime::Sandbox::create(config(state)).unwrap());
    adl_runtime::finish_removals();
    setrlimit(Resource::RLIMIT_NOFILE, 128, 128).unwrap();
    let mut files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let pool = Pool::builder(config(state)).maximum(64).prefetch(1).build().unwrap();
    let error = refused(&pool, Duration::from_secs(1));
    assert_eq!(error.kind(), ErrorKind::Temporary, "{error:?}");
    match &error {
        Error::Pool { why } => assert!(why.to_string().contains("RLIMIT_NOFILE"), "{why}"),
        error => panic!("{error:?}"),
    }
    // Who waits still gets one, when there are some.
    thread::scope(|scope| {
        let waits = scope.spawn(|| pool.acquire(SURE).map(|sandbox| shell(&sandbox, "echo x")));
        until(&pool, |stats| stats.waiting == 1);
        files.clear();
        assert_eq!(waits.join().unwrap().unwrap(), "x\n");
    });
    // As many as there is room for, and then the limit is told.
    let mut held = Vec::new();
    let error = loop {
        match pool.acquire(Duration::from_secs(1)) {
            Ok(sandbox) => held.push(sandbox),
            Err(error) => break error,
        }
        assert!(held.len() < 64, "no limit was reached");
    };
    assert_eq!(error.kind(), ErrorKind::Temporary, "{error:?}");
    held.clear();
    assert_eq!(shell(&pool.acquire(SURE).unwrap(), "echo x"), "x\n");
    pool.close().unwrap();
    adl_runtime::finish_removals();
}

#[test]
fn what_can_be_no_pool_is_refused() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let named = Config { name: Some("mine".to_owned()), ..home.config() };
    let wrong = Config { hostname: Some("-".to_owned()), ..home.config() };
    for builder in [
        Pool::builder(named),
        Pool::builder(wrong),
        Pool::builder(home.config()).maximum(0),
        Pool::builder(home.config()).minimum(3).maximum(2),
        Pool::builder(home.config()).threads(0),
    ] {
        let refused = builder.build().map(drop);
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
}

#[test]
fn many_that_are_given_back_at_once_are_deleted_within_bounds() {
    if needs(&[]) {
        let home = Home::new();
        Helper::start("give-back-many", &home.state()).finish();
        assert_eq!(home.left(), [""; 0]);
    }
}

/// The helper of the test above.
pub(crate) fn give_back_many(state: &Path) {
    // So few descriptors that four may wait.
    setrlimit(Resource::RLIMIT_NOFILE, 140, 140).unwrap();
    let pool = Pool::builder(config(state)).maximum(9).prefetch(0).threads(1).build().unwrap();
    let held: Vec<_> = (0..9).map(|_| pool.acquire(SURE).unwrap()).collect();
    let inits: Vec<_> = held.iter().map(|sandbox| sandbox.init_pid()).collect();
    for sandbox in held {
        drop(sandbox);
        // With the one that a thread has in hand.
        let stats = pool.stats();
        assert!(stats.deleting <= 4 + 1, "{stats:?}");
    }
    until(&pool, |stats| stats.deleting == 0);
    assert_eq!((pool.stats().deleted, pool.stats().in_use), (9, 0));
    assert!(inits.iter().all(|pid| census::status(*pid, "PPid").is_none()), "{inits:?}");
    drop(pool);
    adl_runtime::finish_removals();
}

#[test]
fn an_idle_pool_takes_no_processor_time() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let pool = Pool::builder(home.config()).prefetch(2).build().unwrap();
    until(&pool, |stats| stats.idle == 2 && stats.making == 0);
    let mut threads = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        // Another thread may end meanwhile.
        if std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "adl-pool\n") {
            threads.push(path.join("schedstat"));
        }
    }
    assert!(!threads.is_empty());
    // Settled when it was seen to be so twice.
    let read = || -> Vec<String> {
        threads.iter().map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect()
    };
    assert!(within(SOON, || {
        let before = read();
        thread::sleep(Duration::from_millis(300));
        read() == before
    }));
}

#[test]
fn who_does_not_want_one_any_more_is_out_of_the_line() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let pool = Pool::builder(home.config()).maximum(1).prefetch(0).build().unwrap();
    let held = pool.acquire(SURE).unwrap();
    let is_wanted = std::sync::atomic::AtomicBool::new(true);
    let wish = || is_wanted.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        let given_up = scope.spawn(|| pool.acquire_while(SURE, wish));
        assert!(within(SOON, || pool.stats().waiting == 1));
        let next = scope.spawn(|| pool.acquire_while(SURE, || true));
        assert!(within(SOON, || pool.stats().waiting == 2));
        is_wanted.store(false, std::sync::atomic::Ordering::Relaxed);
        let error = given_up.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        assert_eq!(pool.stats().waiting, 1);
        drop(held);
        let next = next.join().unwrap().unwrap();
        assert!(next.command("true").status().unwrap().success());
        // One that panics is out of the line, too, and takes none with it.
        let panics = scope.spawn(|| pool.acquire_while(SURE, || panic!("asked")));
        assert!(panics.join().is_err());
        assert_eq!(pool.stats().waiting, 0);
    });
    assert_eq!(pool.stats().made, 2);
    // Asked for no longer than there is time.
    let held = pool.acquire(SURE).unwrap();
    let late = pool.acquire_while(Duration::from_millis(120), || true);
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
    drop(held);
}
