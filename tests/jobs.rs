//! A job's end is told truly and at once, and takes with it what it should and nothing else.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use adl_runtime::{
    Child, Command, Config, EndReason, Error, Handle, Leftovers, Resource, Sandbox, Scope, Stdio,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::census;
use crate::figures;
pub(crate) use crate::harness::alone;
use crate::harness::{Home, Need, at_most, needs, shell, typical, within};
use crate::helper::{Helper, say};

/// How long something may take that happens at once, on a machine with other tests on it.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// How many processes a sandbox has beside its init; what waits to be reaped is none.
fn members(sandbox: &Sandbox) -> usize {
    census::tree(sandbox.init_pid()).iter().filter(|process| !process.is_zombie()).count() - 1
}

/// Their names, with that of init.
fn names(sandbox: &Sandbox) -> Vec<String> {
    let tree = census::tree(sandbox.init_pid());
    let living = tree.iter().filter(|process| !process.is_zombie());
    living.filter_map(|process| process.status("Name")).collect()
}

/// Starts a command, and reads the line `ready` from it.
fn ready(command: &mut Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"ready\n");
    child
}

fn is_readable(job: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(job.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn what_a_command_leaves_behind_does_not_delay_its_result() {
    if !needs(&[Need::Program("pgrep")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    let delays = |script: &str, open: bool| {
        let mut delays = Vec::new();
        for _ in 0..20 {
            let begin = Instant::now();
            let output = sandbox.shell(script).output().unwrap();
            // Of what it took, the command itself took this.
            delays.push(begin.elapsed().saturating_sub(output.status.wall_time()));
            assert!(output.status.success());
            assert_eq!((&*output.stdout, output.stdio_open), (&b"done\n"[..], open));
        }
        typical(&mut delays)
    };
    let alone = delays("echo done", false);
    let leaving = delays("sleep 100 & echo done", true);
    eprintln!("delay of the result: p50 {leaving:?} with a process left behind, {alone:?} without");
    assert!(leaving < Duration::from_millis(50), "{leaving:?}");
    assert_eq!(shell(&sandbox, "pgrep -xc sleep"), "20\n");
}

#[test]
fn what_is_left_behind_can_write_on_and_is_seen() {
    if !needs(&[Need::Program("ps")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let ids: &[u32] = if nix::unistd::geteuid().is_root() { &[0, 1000] } else { &[0] };
    for id in ids {
        // A writer that no one reads from would get SIGPIPE, or wait for ever.
        let script = "cd $(mktemp -d); pwd; mkfifo go end
            { read line < go; head -c 1M /dev/zero && head -c 1M /dev/zero >&2 && how=finished
              echo ${how-died} > end; } &";
        let output = sandbox.shell(script).uid(*id).gid(*id).output().unwrap();
        assert!(output.status.success() && output.stdio_open, "{output:?}");
        let place = String::from_utf8(output.stdout).unwrap();
        let seen = shell(&sandbox, "exec ps -eo comm");
        assert_eq!(seen.lines().filter(|name| *name == "bash").count(), 1, "{seen}");
        let mut then = sandbox.shell("echo > go; cat end");
        let output =
            then.uid(*id).gid(*id).current_dir(place.trim()).timeout(at_most(SOON)).output();
        assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), "finished\n", "id {id}");
        // With the last writer, what has read for it is gone, too.
        assert!(within(SOON, || members(&sandbox) == 0), "{:?}", names(&sandbox));
    }
}

#[test]
fn leftovers_that_are_to_be_ended_are_gone_before_the_result_is_told() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut other = ready(&mut sandbox.shell("sleep 1000 & echo ready; wait"));
    let before = members(&sandbox) + 1;
    for _ in 0..10 {
        let mut script =
            sandbox.shell("sleep 1000 & setsid sleep 1000 & (setsid sleep 1000 &) ; echo done");
        let output = script.leftovers(Leftovers::End).output().unwrap();
        let names = names(&sandbox);
        assert_eq!(names.len(), before, "{names:?}");
        assert_eq!((output.status.reason(), &*output.stdout), (EndReason::Exited, &b"done\n"[..]));
        assert!(output.status.success() && !output.status.survivors());
    }
    assert_eq!(other.try_wait().unwrap(), None);
    other.kill().unwrap();
}

/// Whatever a tree can do to be overlooked; 510 processes or so.
const STUBBORN: &str = "trap '' TERM HUP INT
    setsid sleep 1000 &
    (setsid bash -c 'trap \"\" TERM; sleep 1000 & wait' &)
    sleep 1000 & kill -STOP $!
    setsid bash -c '(sleep 1000 &); kill -STOP $$' &
    for ((i = 0; i < 500; i++)); do sleep 1000 & done
    echo ready; echo partial; wait; wait; sleep 1000";

#[test]
fn a_timeout_ends_all_of_a_tree_and_nothing_else() {
    if !needs(&[Need::Program("setsid")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut other = ready(&mut sandbox.shell("setsid sleep 1000 & echo ready; wait"));
    let before = members(&sandbox);
    let timeout = Duration::from_secs(10);
    let child = ready(sandbox.shell(STUBBORN).timeout(timeout));
    assert!(within(SOON, || members(&sandbox) >= before + 505), "{}", members(&sandbox));
    assert!(child.handle().try_wait().unwrap().is_none(), "its time was up before all were there");
    let output = child.wait_with_output().unwrap();
    assert_eq!(members(&sandbox), before);
    assert_eq!(output.status.reason(), EndReason::TimedOut);
    assert!(!output.status.success() && !output.status.survivors());
    assert_eq!(output.stdout, b"partial\n");
    let over = output.status.wall_time().saturating_sub(timeout);
    eprintln!("510 processes ended {over:?} after their time");
    assert!(
        output.status.wall_time() >= timeout && over < at_most(Duration::from_secs(2)),
        "{over:?}"
    );
    assert_eq!(other.try_wait().unwrap(), None);
    other.kill().unwrap();
    assert!(within(SOON, || members(&sandbox) == 0));
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
}

#[test]
fn a_timeout_is_kept_under_load() {
    if !needs(&[]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let mut overshoot = figures::overshoot(&home.sandbox(), 50);
    // What is promised is measured in `figures`.
    let overshoot = typical(&mut overshoot);
    assert!(overshoot <= Duration::from_millis(25), "{overshoot:?}");
}

#[test]
fn a_fork_bomb_ends_with_its_time() {
    if !needs(&[Need::Root, Need::Program("python3")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    let other = sandbox.command("sleep").arg("1000").spawn().unwrap();
    let mut bomb = sandbox.command("python3");
    bomb.args(["-c", "import os\nwhile True:\n try: os.fork()\n except OSError: pass"]);
    bomb.uid(1234).gid(1234).rlimit(Resource::Processes, 100, 100);
    let timeout = Duration::from_secs(6);
    let mut bomb = bomb.timeout(timeout).spawn().unwrap();
    // It has gone off, and no further than it may.
    assert!(within(timeout, || members(&sandbox) == 101), "{}", members(&sandbox));
    let status = bomb.wait().unwrap();
    assert_eq!(members(&sandbox), 1);
    assert_eq!(status.reason(), EndReason::TimedOut);
    let over = status.wall_time() - timeout;
    eprintln!("a fork bomb of 100 ended {over:?} after its time");
    assert!(over < at_most(Duration::from_secs(2)), "{over:?}");
    other.handle().kill().unwrap();
}

#[test]
fn what_a_command_has_left_behind_can_be_killed_by_its_handle() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let leave = || {
        let mut script = sandbox.shell("sleep 1000 & setsid sleep 1000 & echo ready");
        let mut child = ready(&mut script);
        assert!(child.wait().unwrap().success());
        child.handle()
    };
    let (first, second) = (leave(), leave());
    assert_eq!(members(&sandbox), 4);
    assert!(within(SOON, || is_readable(&first)), "the end was told, and stays so");
    first.kill().unwrap();
    assert!(within(SOON, || members(&sandbox) == 2), "{:?}", names(&sandbox));
    // How it ended stays as it was.
    assert!(first.wait().unwrap().success());
    second.kill().unwrap();
    assert!(within(SOON, || members(&sandbox) == 0), "{:?}", names(&sandbox));
}

#[test]
fn a_job_that_kills_another_has_a_result_of_its_own() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut victim = sandbox.command("sleep").arg("1000").spawn().unwrap();
    assert_eq!(shell(&sandbox, format!("kill -KILL {}; echo done", victim.id())), "done\n");
    let status = victim.wait().unwrap();
    assert_eq!((status.signal(), status.reason()), (Some(9), EndReason::Signaled));
}

#[test]
fn ten_thousand_jobs_with_random_cancels_are_never_mixed_and_leave_nothing() {
    if !needs(&[]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    Helper::start("cancel-many", &home.state()).finish();
}

/// The helper of the test above.
pub(crate) fn cancel_many(state: &Path) {
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let sandbox = Sandbox::create(config).unwrap();
    let own = i32::try_from(process::id()).unwrap();
    let root = nix::unistd::geteuid().is_root();
    let held = || {
        let of_init = if root { census::descriptors(sandbox.init_pid()).len() } else { 0 };
        (census::descriptors(own).len(), of_init, census::tree(sandbox.init_pid()).len())
    };
    run_and_cancel(&sandbox, 200);
    // What ended last may not have been cleared up when its result was told. What stays is the mark
    // that init has ready for the next job.
    let is_mark = |(_, target): &(i32, PathBuf)| target.to_string_lossy().starts_with("uts:");
    let marks = || census::descriptors(sandbox.init_pid()).iter().filter(|fd| is_mark(fd)).count();
    let settled = || held().2 == 1 && (!root || marks() == 1);
    assert!(within(SOON, settled), "{:?}", held());
    let before = held();
    let begin = Instant::now();
    run_and_cancel(&sandbox, 10_000);
    say(format!("10,000 jobs in {:?}", begin.elapsed()));
    assert!(within(SOON, || held() == before), "{:?}, before {before:?}", held());
    sandbox.delete().unwrap();
    adl_runtime::finish_removals();
}

/// Runs so many jobs from four threads, 64 at once; a fifth kills some of them.
fn run_and_cancel(sandbox: &Sandbox, count: u32) {
    let (cancel, cancelled) = channel::<Handle>();
    std::thread::scope(|scope| {
        scope.spawn(move || cancelled.iter().for_each(|handle| handle.kill().unwrap()));
        for thread in 0..4 {
            let cancel = cancel.clone();
            scope.spawn(move || {
                let mut random = 0x9e37_79b9_u32 ^ (thread + 1);
                let mut in_flight = std::collections::VecDeque::new();
                for number in 0..count / 4 {
                    random ^= random << 13;
                    random ^= random >> 17;
                    random ^= random << 5;
                    let nonce = format!("{thread}.{number}.{random}");
                    // What does not end by itself is always cancelled.
                    let (endless, cancels) = (random.is_multiple_of(8), random.is_multiple_of(4));
                    let mut command = if endless {
                        let mut command = sandbox.shell("echo $0; exec sleep 1000");
                        command.arg(&nonce);
                        command
                    } else {
                        let mut command = sandbox.command("/bin/echo");
                        command.arg(&nonce);
                        command
                    };
                    let child = command.stdout(Stdio::piped()).spawn().unwrap();
                    let mut kill = cancels.then(|| child.handle());
                    // At once, or when 16 others of the thread have been started.
                    if random % 16 < 8 {
                        kill.take().into_iter().for_each(|handle| cancel.send(handle).unwrap());
                    }
                    in_flight.push_back((child, nonce, endless, cancels, kill));
                    if in_flight.len() == 16 {
                        check(in_flight.pop_front().unwrap(), &cancel);
                    }
                }
                in_flight.into_iter().for_each(|job| check(job, &cancel));
            });
        }
        drop(cancel);
    });

    type InFlight = (Child, String, bool, bool, Option<Handle>);
    fn check(job: InFlight, cancel: &std::sync::mpsc::Sender<Handle>) {
        let (child, nonce, endless, cancels, kill) = job;
        kill.into_iter().for_each(|handle| cancel.send(handle).unwrap());
        let output = child.wait_with_output().unwrap();
        let whole = output.stdout == format!("{nonce}\n").as_bytes();
        let (status, what) = (output.status, String::from_utf8_lossy(&output.stdout));
        let killed = status.signal() == Some(9) && status.reason() == EndReason::Signaled;
        match (endless, cancels) {
            (false, false) => assert!(status.success() && whole, "{nonce}: {status}: {what}"),
            (true, _) => assert!(killed && (whole || what.is_empty()), "{nonce}: {status}: {what}"),
            (false, true) if status.success() => assert!(whole, "{nonce}: {what}"),
            (false, true) => {
                assert!(killed && (whole || what.is_empty()), "{nonce}: {status}: {what}");
            }
        }
    }
}

#[test]
fn every_end_is_told_as_what_it_was_with_what_was_written() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let ends = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.stdout.starts_with(b"partial\n"), "{output:?}");
        assert_eq!(members(&sandbox), 0);
        let status = output.status;
        (status.reason(), status.code(), status.signal())
    };
    let long = Duration::from_secs(3);
    let hangs = "echo partial; sleep 1000 & sleep 1000";
    for code in [0, 3, 255] {
        let mut script = sandbox.shell(format!("echo partial; exit {code}"));
        assert_eq!(ends(&mut script), (EndReason::Exited, Some(code), None));
    }
    for (name, number) in [("KILL", 9), ("SEGV", 11), ("TERM", 15)] {
        let mut script = sandbox.shell(format!("echo partial; kill -{name} $$"));
        assert_eq!(ends(&mut script), (EndReason::Signaled, None, Some(number)));
    }
    let timed_out = ends(sandbox.shell(hangs).timeout(long));
    assert_eq!(timed_out, (EndReason::TimedOut, None, Some(9)));
    assert_eq!(ends(sandbox.shell(hangs).idle_timeout(long)), (EndReason::Idle, None, Some(9)));
    let mut much = sandbox.shell("echo partial; exec yes");
    let limited = ends(much.output_limit(100_000).keep_output(1 << 30, 0));
    assert_eq!(limited, (EndReason::OutputLimit, None, Some(9)));
    // Limits that are not reached end nothing.
    let mut slow = sandbox.shell("echo partial; for i in 1 2 3 4; do sleep 0.3; echo $i; done");
    slow.idle_timeout(SOON).timeout(at_most(SOON)).output_limit(16);
    assert_eq!(ends(&mut slow), (EndReason::Exited, Some(0), None));

    let job = sandbox.shell(hangs).background().unwrap();
    assert!(within(SOON, || job.partial_output().stdout == b"partial\n"));
    kill(Pid::from_raw(sandbox.init_pid()), Signal::SIGKILL).unwrap();
    let output = job.wait_timeout(at_most(SOON)).unwrap().expect("the end is told");
    assert_eq!(output.status.reason(), EndReason::SandboxDied);
    assert_eq!((output.status.code(), &*output.stdout), (None, &b"partial\n"[..]));
    assert!(!output.status.success());
}

#[test]
fn a_core_dump_is_told_where_one_was_asked_for() {
    // Another test sets it.
    let _alone = alone();
    if !needs(&[Need::DumpsInPlace]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    for (limit, dumped) in [(None, false), (Some(u64::MAX), true)] {
        let mut script = sandbox.shell("kill -SEGV $$");
        script.current_dir("/tmp");
        limit.map(|limit| script.rlimit(Resource::Core, limit, limit));
        let status = script.status().unwrap();
        assert_eq!((status.signal(), status.core_dumped()), (Some(11), dumped), "{limit:?}");
        assert_eq!(shell(&sandbox, "ls /tmp | wc -l").trim() != "0", dumped);
    }
}

#[test]
fn what_a_command_used_is_told_as_on_the_host() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    const WORK: &str = "import resource
memory = bytearray(b'x') * (64 << 20)
n = 0
while n < 4_000_000: n += 1
used = resource.getrusage(resource.RUSAGE_SELF)
print(round(1e6 * (used.ru_utime + used.ru_stime)), used.ru_maxrss)";
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    let numbers = |stdout: Vec<u8>| -> [u64; 2] {
        let text = String::from_utf8(stdout).unwrap();
        let numbers: Vec<u64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    };
    // By a child that it has waited for, not by itself.
    let mut script = sandbox.shell("python3 -c \"$0\"; exit $?");
    let begin = Instant::now();
    let output = script.arg(WORK).output().unwrap();
    let took = begin.elapsed();
    assert!(output.status.success(), "{output:?}");
    let usage = output.status.usage();
    let cpu = usage.user_time + usage.system_time;
    let wall = output.status.wall_time();
    assert!(wall <= took && wall > took / 2, "{wall:?} of {took:?}");
    // What it said itself before it ended, and the two starts and ends besides.
    let [said, resident] = numbers(output.stdout);
    let own = Duration::from_micros(said);
    let most = own + own / 10 + Duration::from_millis(20);
    assert!((own..most).contains(&cpu), "{cpu:?}, {own:?} by itself");
    assert!(usage.user_time > usage.system_time, "{usage:?}");
    let resident = resident << 10..(resident + 1024) << 10;
    assert!(resident.contains(&usage.max_resident), "{usage:?}, {resident:?} bytes");
    assert!(usage.minor_faults > 64 << 8, "{usage:?}");

    // In turns, the least of each: what else runs on the machine slows single runs down through its
    // caches.
    let mut least = [said, u64::MAX];
    for _ in 0..3 {
        let output = sandbox.command("python3").args(["-c", WORK]).output().unwrap();
        let host = process::Command::new("/usr/bin/python3").args(["-c", WORK]).output().unwrap();
        for (least, stdout) in least.iter_mut().zip([output.stdout, host.stdout]) {
            let [said, _] = numbers(stdout);
            *least = said.min(*least);
        }
    }
    let [inside, host] = least;
    let ratio = inside as f64 / host as f64;
    eprintln!(
        "CPU time {said} µs, {cpu:?} with start and end; at least {inside} µs inside, {host} µs on the host: {ratio:.2}"
    );
    assert!((0.75..1.33).contains(&ratio), "{inside} µs, on the host {host} µs");
}

#[test]
fn jobs_in_the_background_can_be_listed_read_waited_for_and_killed() {
    if !needs(&[Need::Program("pgrep")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "mkfifo /tmp/go");
    let mut script = sandbox.shell("echo one; echo err >&2; read < /tmp/go; echo two; exit 5");
    let first = script.background().unwrap();
    let second = sandbox.command("sleep").arg("1000").background().unwrap();
    let listed = || sandbox.jobs().iter().map(|job| job.id()).collect::<Vec<_>>();
    assert_eq!(listed(), [first.id(), second.id()]);
    assert_eq!(second.program(), Path::new("sleep"));
    assert_eq!(shell(&sandbox, "pgrep -x sleep").trim(), second.pid().to_string());

    let said = || (first.partial_output().stdout, first.partial_output().stderr);
    assert!(within(SOON, || said() == (b"one\n".to_vec(), b"err\n".to_vec())), "{:?}", said());
    assert_eq!(first.try_wait().unwrap(), None);
    assert!(first.wait_timeout(Duration::from_millis(1)).unwrap().is_none());
    assert!(!is_readable(&first));
    shell(&sandbox, "echo > /tmp/go");
    assert!(within(SOON, || is_readable(&first)));
    // It is listed until someone has waited for it, and can be asked as often as one likes.
    assert_eq!(first.try_wait().unwrap().unwrap().code(), Some(5));
    assert_eq!(listed(), [first.id(), second.id()]);
    let copy = sandbox.jobs().remove(0);
    let output = std::thread::spawn(move || copy.wait().unwrap()).join().unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(5), &b"one\ntwo\n"[..]));
    assert_eq!(listed(), [second.id()]);
    assert!(is_readable(&first));
    assert_eq!(first.wait().unwrap().stdout, b"one\ntwo\n");

    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| second.wait().unwrap());
        sandbox.jobs()[0].kill().unwrap();
        let status = waiting.join().unwrap().status;
        assert_eq!((status.signal(), status.reason()), (Some(9), EndReason::Signaled));
    });
    assert_eq!(listed(), []);
    // One that no one holds runs on, and is found again.
    let forgotten = sandbox.shell("exec sleep 1000").background().unwrap().id();
    assert_eq!(listed(), [forgotten]);
    let found = sandbox.jobs().remove(0);
    found.signal(15, Scope::Process).unwrap();
    assert_eq!(found.wait().unwrap().status.signal(), Some(15));
}

#[test]
fn a_dropped_child_is_killed_only_if_it_was_to_be() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = "sleep 1000 & setsid sleep 1000 & echo ready; wait";
    let kept = ready(&mut sandbox.shell(script)).handle();
    assert_eq!(members(&sandbox), 3);
    drop(ready(sandbox.shell(script).kill_on_drop(true)));
    assert!(within(SOON, || members(&sandbox) == 3), "{:?}", names(&sandbox));
    assert_eq!(kept.try_wait().unwrap(), None);
    // By then, init would long have done to the first what it did to the second.
    kept.kill().unwrap();
    assert_eq!(kept.wait().unwrap().signal(), Some(9));
}

#[test]
fn whoever_waits_is_woken_at_once() {
    if !needs(&[]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut sleep = sandbox.command("sleep");
    sleep.arg("1000");
    let waits = |mut child: Child| {
        let (tell, told) = channel();
        std::thread::spawn(move || {
            tell.send(None).unwrap();
            let status = child.wait().unwrap();
            tell.send(Some((status, Instant::now()))).unwrap();
        });
        assert_eq!(told.recv().unwrap(), None);
        told
    };
    let mut delays: Vec<Duration> = (0..20)
        .map(|_| {
            let mut child = sleep.spawn().unwrap();
            let begin = Instant::now();
            assert_eq!(child.wait_timeout(Duration::from_millis(20)).unwrap(), None);
            assert!((Duration::from_millis(20)..at_most(SOON)).contains(&begin.elapsed()));
            assert!(!is_readable(&child));
            let handle = child.handle();
            let told = waits(child);
            let begin = Instant::now();
            handle.kill().unwrap();
            let (status, end) = told.recv_timeout(at_most(SOON)).unwrap().unwrap();
            assert_eq!((status.signal(), handle.wait().unwrap()), (Some(9), status));
            // For all others, too. Init closes its side right after it has told the end.
            assert!(within(SOON, || is_readable(&handle)));
            end - begin
        })
        .collect();
    let delay = typical(&mut delays);
    eprintln!("woken {delay:?} after the kill");
    assert!(delay < Duration::from_millis(25), "{delay:?}");

    let told = waits(sleep.spawn().unwrap());
    std::thread::spawn(move || drop(sandbox)).join().unwrap();
    let (status, _) = told.recv_timeout(at_most(SOON)).unwrap().unwrap();
    assert_eq!(status.reason(), EndReason::SandboxDied);
}

#[test]
fn no_signal_is_lost_among_others() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let init = Pid::from_raw(sandbox.init_pid());
    for others in [0, 1, 8, 9, 10, 17, 18, 100] {
        let mut child = sandbox.command("sleep").arg("1000").spawn().unwrap();
        // All wait for init, which may read them in pieces.
        kill(init, Signal::SIGSTOP).unwrap();
        for _ in 0..others {
            child.signal(28, Scope::Process).unwrap();
        }
        child.signal(9, Scope::Process).unwrap();
        kill(init, Signal::SIGCONT).unwrap();
        let status = child.wait_timeout(SOON).unwrap().unwrap_or_else(|| panic!("{others}"));
        assert_eq!(status.signal(), Some(9), "{others}");
    }
}

#[test]
fn what_a_child_has_left_behind_outlives_the_child_that_has_ended() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    // Each says that it is there, and what it was started by goes on by the word of the test.
    let start = |then: &str| {
        let script = format!("setsid sh -c 'echo; exec sleep 1000' & read line; {then}");
        let mut command = sandbox.shell(script);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    };
    let mut ended = start("exit 0");
    assert!(ended.wait().unwrap().success());
    drop(ended);
    // The control, in the same sandbox: what runs ends with all that it has started. When it has,
    // so would have what was dropped before.
    drop(start("exit 0"));
    assert!(within(SOON, || members(&sandbox) == 1), "{}", members(&sandbox));
    drop(start("exit 0"));
    assert!(within(SOON, || members(&sandbox) == 1), "{}", members(&sandbox));
}

#[test]
fn in_the_background_no_one_writes_to_a_pipe() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let refused = sandbox.command("cat").stdin(Stdio::piped()).background();
    assert!(matches!(refused, Err(Error::Invalid { what: "stdin", .. })), "{refused:?}");
    let job = sandbox.command("cat").input("text").background().unwrap();
    assert_eq!(job.wait().unwrap().stdout, b"text");
}

#[test]
fn a_job_is_found_by_its_number_and_has_a_handle() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let job = sandbox.command("sleep").arg("1000").background().unwrap();
    let number = job.id().as_u64();
    assert_eq!(sandbox.job(number).map(|found| found.id()), Some(job.id()));
    assert!(sandbox.job(number + 1000).is_none());
    let handle = job.handle();
    assert_eq!(handle.try_wait().unwrap(), None);
    handle.kill().unwrap();
    assert_eq!(job.wait().unwrap().status.signal(), Some(9));
    assert!(sandbox.job(number).is_none());
}

/// What the calling program has open, and the names of its threads.
fn held() -> (usize, Vec<String>) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(entry.ok()?.path().join("comm")).ok()
    };
    (descriptors, threads.filter_map(name).map(|name| name.trim().to_owned()).collect())
}

#[test]
fn a_job_in_the_background_has_four_descriptors_and_no_thread_of_its_own() {
    if !needs(&[]) {
        return;
    }
    const JOBS: usize = 40;
    let home = Home::new();
    // What the process has once is there from the second on.
    let first = [home.sandbox(), home.sandbox()];
    first.iter().for_each(|sandbox| assert_eq!(shell(sandbox, "true"), ""));
    let before = held().0;
    let sandbox = home.sandbox();
    shell(&sandbox, "true");
    let idle = held().0;
    // As docs/limits.md says, on the host image.
    assert!(idle - before <= 10, "{before} and {idle} descriptors");
    let start =
        |number: usize| sandbox.shell(format!("echo {number}; sleep 1000")).background().unwrap();
    let jobs: Vec<_> = (0..JOBS).map(start).collect();
    let text = |job: &adl_runtime::Job| job.partial_output().stdout;
    for (number, job) in jobs.iter().enumerate() {
        assert!(within(SOON, || text(job) == format!("{number}\n").as_bytes()), "{number}");
    }
    let (descriptors, threads) = held();
    // The thread has one, and what is prepared may be there or not.
    assert!(descriptors - idle <= 4 * JOBS + 3, "{idle} and {descriptors} descriptors");
    let readers = threads.iter().filter(|name| *name == "adl-job").count();
    assert_eq!(readers, 1, "{threads:?}");
    // What ends is told while the others go on, and the thread goes with the last.
    let (last, others) = jobs.split_last().unwrap();
    for job in others {
        job.kill().unwrap();
        assert_eq!(job.wait().unwrap().status.signal(), Some(9));
    }
    assert!(last.try_wait().unwrap().is_none());
    last.kill().unwrap();
    assert_eq!(last.wait().unwrap().stdout, format!("{}\n", JOBS - 1).as_bytes());
    drop(jobs);
    let is_gone = || {
        let (descriptors, threads) = held();
        descriptors <= idle + 2 && !threads.iter().any(|name| name == "adl-job")
    };
    assert!(within(SOON, is_gone), "{:?}", held());
    // Another one has another.
    assert_eq!(
        sandbox.shell("echo again").background().unwrap().wait().unwrap().stdout,
        b"again\n"
    );
}

#[test]
fn more_jobs_than_descriptors_allow_are_refused_and_those_that_run_go_on() {
    if needs(&[]) {
        let home = Home::new();
        Helper::start("background-with-few-descriptors", &home.state()).finish();
    }
}

/// The helper of the test above.
pub(crate) fn background_with_few_descriptors(state: &std::path::Path) {
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_NOFILE, 200, 200).unwrap();
    let config =
        adl_runtime::Config { state_directory: Some(state.to_owned()), ..Default::default() };
    let sandbox = Sandbox::create(config).unwrap();
    let mut jobs = Vec::new();
    let error = loop {
        match sandbox.shell("echo up; sleep 1000").background() {
            Ok(job) => jobs.push(job),
            Err(error) => break error,
        }
    };
    assert!(jobs.len() > 30, "{}: {error:?}", jobs.len());
    for job in &jobs {
        assert!(within(SOON, || job.partial_output().stdout == b"up\n"));
        assert!(job.try_wait().unwrap().is_none());
    }
    for job in jobs {
        job.kill().unwrap();
        assert_eq!(job.wait().unwrap().stdout, b"up\n");
    }
    sandbox.delete().unwrap();
    adl_runtime::finish_removals();
}

#[test]
fn one_that_was_to_be_killed_when_dropped_is_where_a_wait_for_it_fails() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    Helper::start("wait-in-vain", &home.state()).finish();
}

/// The helper of the test above.
pub(crate) fn wait_in_vain(state: &std::path::Path) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let config =
        adl_runtime::Config { state_directory: Some(state.to_owned()), ..Default::default() };
    let sandbox = Sandbox::create(config).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let fails = |kill: bool| {
        let mut child = ready(sandbox.shell("echo ready; exec sleep 1000").kill_on_drop(kill));
        drop(child.stdout.take());
        let handle = child.handle();
        // poll(2) refuses more than there may be descriptors.
        setrlimit(Resource::RLIMIT_NOFILE, 1, hard).unwrap();
        let waited = child.wait_with_output();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        assert!(matches!(waited, Err(Error::Io { .. })), "{waited:?}");
        handle
    };
    assert_eq!(fails(true).wait_timeout(SOON).unwrap().and_then(|status| status.signal()), Some(9));
    let kept = fails(false);
    assert_eq!(kept.try_wait().unwrap(), None);
    kept.kill().unwrap();
    kept.wait().unwrap();
}

#[test]
fn who_types_waits_for_room_while_another_thread_reads_the_terminal() {
    if !needs(&[]) {
        return;
    }
    // More than the kernel keeps of what is typed.
    const LENGTH: usize = 300_000;
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = format!("stty raw -echo; : > /tmp/ready; sleep 0.1; head -c {LENGTH} | wc -c");
    let child = sandbox.shell(script).terminal(24, 80).spawn().unwrap();
    let mut types = child.terminal.as_ref().unwrap().try_clone().unwrap();
    let reads = std::thread::spawn(move || child.wait_with_output().unwrap());
    let is_read = || {
        let flags = nix::fcntl::fcntl(&types, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        nix::fcntl::OFlag::from_bits_retain(flags).contains(nix::fcntl::OFlag::O_NONBLOCK)
    };
    assert!(within(SOON, is_read));
    assert!(within(SOON, || sandbox.files().exists("/tmp/ready").unwrap()));
    std::io::Write::write_all(&mut types, &vec![b'x'; LENGTH]).unwrap();
    let output = reads.join().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), LENGTH.to_string());
    // So it does after that; nothing is there any more.
    assert_eq!(std::io::Read::read(&mut types, &mut [0; 10]).unwrap(), 0);
}
