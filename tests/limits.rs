//! Limits hold, what is used is told, and nothing of it is left.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use adl_runtime::{Config, EndReason, Error, IoLimit, Limits, Sandbox, Stdio};

use crate::cgroups::is_pure_v2;
use crate::harness::{self, Home, Need, adl_command, at_most, is_idle, needs, within};
use crate::helper::Helper;
use crate::jobs::alone;

/// A sandbox with limits, and no network, of which there would be nothing to test.
pub(crate) fn sandbox(home: &Home, limits: Limits) -> Sandbox {
    Sandbox::create(Config { limits, ..home.config() }).unwrap()
}

pub(crate) fn memory(size: u64) -> Limits {
    Limits { memory: Some(size), ..Limits::default() }
}

/// All that there are but those of a disk.
pub(crate) fn all_limits() -> Limits {
    Limits {
        cpu: Some(1000),
        cpu_weight: Some(50),
        memory: Some(256 * MIB),
        swap: Some(MIB),
        pids: Some(100),
        cpuset: Some("0".to_owned()),
        accounting: true,
        ..Limits::default()
    }
}

pub(crate) const MIB: u64 = 1 << 20;

/// Has 200 MiB of a file in the page cache, on disk as soon as they are written: where they are
/// not, a kernel with the multi-generational LRU kills rather than that it waits for the disk (seen
/// with 6.12).
const WRITE: &str = "dd if=/dev/zero of=/tmp/f bs=1M count=200 oflag=dsync status=none";

/// Takes 300 MiB of memory, which is written to.
pub(crate) const HOG: &str = "x = b'1' * (300 << 20)";

#[test]
fn a_hog_of_memory_is_killed_and_told_so_and_nothing_else_is() {
    if !needs(&[Need::Cgroups, Need::Program("python3")]) {
        return;
    }
    let home = Home::of_a_test_that_takes(Duration::from_secs(300));
    // The control: without the limit it has all it wants.
    let free = home.sandbox();
    assert!(free.command("python3").args(["-c", HOG]).status().unwrap().success());
    let sandbox = sandbox(&home, memory(64 * MIB));
    let mut neighbour = sandbox.command("cat");
    let mut neighbour = neighbour.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    for round in 0..100 {
        let begin = Instant::now();
        let status = sandbox.command("python3").args(["-c", HOG]).status().unwrap();
        assert_eq!(status.reason(), EndReason::OutOfMemory, "{round}: {status}");
        assert!(
            begin.elapsed() < at_most(Duration::from_secs(2)),
            "{round}: {:?}",
            begin.elapsed()
        );
        assert!(sandbox.command("true").status().unwrap().success(), "{round}");
    }
    neighbour.stdin.take().unwrap().write_all(b"alive").unwrap();
    let mut said = String::new();
    neighbour.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(neighbour.wait().unwrap().success());
    assert_eq!(said, "alive");
    let stats = sandbox.stats().unwrap();
    // Where the kernel kills a job as a whole, it counts whom it had chosen twice.
    assert!(matches!(stats.oom_kills, Some(100 | 200)), "{stats:?}");
    assert!(stats.memory_peak.unwrap() <= 64 * MIB, "{stats:?}");
    // A SIGKILL of another's is not taken for it.
    let status = sandbox.shell("kill -9 $$").status().unwrap();
    assert_eq!(status.reason(), EndReason::Signaled);
}

#[test]
fn a_job_that_ran_out_of_memory_ends_as_a_whole() {
    if !needs(&[Need::Cgroups, Need::Program("python3"), Need::Program("setsid")]) {
        return;
    }
    let home = Home::new();
    let sandbox = sandbox(&home, memory(64 * MIB));
    let other = sandbox.command("sleep").arg("1000").spawn().unwrap();
    for round in 0..20 {
        // The hog is a child, and not the only one; and what has started it would say that all went
        // well.
        let last = if round % 2 == 0 { "exec sleep 1000" } else { "true" };
        let script = format!("setsid sleep 1000 & python3 -c \"{HOG}\"; {last}");
        let begin = Instant::now();
        let status = sandbox.shell(script).status().unwrap();
        assert_eq!(status.reason(), EndReason::OutOfMemory, "{round}: {status}");
        assert!(
            begin.elapsed() < at_most(Duration::from_secs(2)),
            "{round}: {:?}",
            begin.elapsed()
        );
        let alone = || sandbox.stats().unwrap().oom_kills > Some(round) && processes(&sandbox) == 1;
        assert!(within(Duration::from_secs(2), alone), "{round}: {}", processes(&sandbox));
    }
    assert!(other.handle().try_wait().unwrap().is_none());
}

/// How many processes there are but init.
fn processes(sandbox: &Sandbox) -> usize {
    let tree = crate::census::tree(sandbox.init_pid());
    tree.iter().filter(|process| !process.is_zombie()).count() - 1
}

#[test]
fn files_in_memory_and_the_page_cache_count() {
    if !needs(&[Need::Cgroups, Need::Program("head"), Need::Program("dd")]) {
        return;
    }
    let home = Home::new();
    let sandbox = sandbox(&home, memory(64 * MIB));
    // In memory: it can't be reclaimed.
    let status = sandbox.shell("exec head -c 100000000 /dev/zero > /dev/shm/f").status().unwrap();
    assert_eq!(status.reason(), EndReason::OutOfMemory, "{status}");
    // It is full now, and stays so: not even what would remove the file is sure to start. But what
    // tries ends alone, init and all.
    for _ in 0..200 {
        let status = sandbox.command("/bin/true").arg("a".repeat(30_000)).status();
        let ended = status.as_ref().map(|status| status.reason());
        let is_told = matches!(
            ended,
            Ok(EndReason::Exited | EndReason::OutOfMemory) | Err(Error::Start { .. })
        );
        assert!(is_told, "{status:?}");
    }
    sandbox.reset().unwrap();
    // By a file call, too.
    sandbox.files().write_file("/dev/shm/f", vec![1; 20 << 20]).unwrap();
    assert!(sandbox.stats().unwrap().memory.unwrap() > 20 * MIB, "{:?}", sandbox.stats());
    sandbox.files().remove_file("/dev/shm/f").unwrap();
    // Of the page cache of a file on disk, which can: as much as there may be, and no more.
    let status = sandbox.shell(format!("exec {WRITE}")).status().unwrap();
    assert!(status.success(), "{status}");
    let stats = sandbox.stats().unwrap();
    assert!((20 * MIB..=64 * MIB).contains(&stats.memory.unwrap()), "{stats:?}");
}

#[test]
fn limits_are_changed_while_it_runs() {
    if !needs(&[Need::Cgroups, Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = sandbox(&home, Limits { accounting: true, ..memory(64 * MIB) });
    let hog =
        |sandbox: &Sandbox| sandbox.command("python3").args(["-c", HOG]).status().unwrap().reason();
    assert_eq!(hog(&sandbox), EndReason::OutOfMemory);
    sandbox.set_limits(Limits { accounting: true, ..Limits::default() }).unwrap();
    assert_eq!(hog(&sandbox), EndReason::Exited);
    // What can be reclaimed is: pages of a file.
    let filled = sandbox.shell(format!("exec {WRITE}")).status().unwrap();
    assert!(filled.success());
    assert!(sandbox.stats().unwrap().memory.unwrap() > 64 * MIB);
    sandbox.set_limits(memory(32 * MIB)).unwrap();
    assert!(sandbox.stats().unwrap().memory.unwrap() <= 32 * MIB);
    assert_eq!(hog(&sandbox), EndReason::OutOfMemory);
    // A reset keeps them.
    sandbox.reset().unwrap();
    assert_eq!(hog(&sandbox), EndReason::OutOfMemory);
    // Where nothing is limited any more, there still is what limits.
    for _ in 0..2 {
        sandbox.set_limits(Limits::default()).unwrap();
        sandbox.reset().unwrap();
        assert_eq!(hog(&sandbox), EndReason::Exited);
        assert!(sandbox.stats().unwrap().pids.is_some());
    }
    sandbox.set_limits(memory(32 * MIB)).unwrap();
    assert_eq!(hog(&sandbox), EndReason::OutOfMemory);
    // What can't be reclaimed is killed, or refused.
    sandbox.set_limits(Limits::default()).unwrap();
    let mut holder = sandbox.command("python3");
    holder.args([
        "-c",
        "x = b'1' * (100 << 20)\nprint('has', flush=True)\nimport time\ntime.sleep(1000)",
    ]);
    let mut holder = holder.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 4];
    holder.stdout.take().unwrap().read_exact(&mut said).unwrap();
    let lowered = sandbox.set_limits(memory(32 * MIB));
    if is_pure_v2() {
        lowered.unwrap();
        assert_eq!(holder.wait().unwrap().reason(), EndReason::OutOfMemory);
    } else {
        assert!(matches!(lowered, Err(Error::Busy { .. })), "{lowered:?}");
        assert_eq!(holder.try_wait().unwrap(), None);
    }
    // What it has no cgroup of can't be set later.
    let of_memory = self::sandbox(&home, memory(64 * MIB));
    let refused = of_memory.set_limits(Limits { pids: Some(10), ..memory(64 * MIB) });
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    // Without a cgroup there is nothing to change.
    let without = home.sandbox();
    let refused = without.set_limits(memory(32 * MIB));
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    assert!(matches!(without.stats(), Err(Error::Unsupported { .. })));
    assert!(matches!(without.freeze(), Err(Error::Unsupported { .. })));
}

#[test]
fn cpu_time_is_what_was_given() {
    if !needs(&[Need::Cgroups, Need::Program("python3")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = sandbox(&home, Limits { cpu: Some(200), ..Limits::default() });
    const ONE: &str = "import time\nend = time.monotonic() + 5\nwhile time.monotonic() < end: pass";
    const FOUR: &str = "import os, time\nend = time.monotonic() + 5\n\
        pids = [os.fork() for _ in range(2)]\nwhile time.monotonic() < end: pass\n\
        0 in pids and os._exit(0)";
    for script in [ONE, FOUR] {
        let before = sandbox.stats().unwrap();
        let begin = Instant::now();
        assert!(sandbox.command("python3").args(["-c", script]).status().unwrap().success());
        let time = begin.elapsed().as_secs_f64();
        let after = sandbox.stats().unwrap();
        let used = (after.cpu_time.unwrap() - before.cpu_time.unwrap()).as_secs_f64();
        let share = used / time;
        // Where others want the processors as well, it may be less.
        assert!(share <= 0.22, "{share:.3} CPUs");
        assert!(share >= 0.18 || !is_idle(), "{share:.3} CPUs");
        assert!(after.throttled > before.throttled, "{after:?}");
    }
}

#[test]
fn weights_share_what_there_is() {
    if !needs(&[Need::Cgroups, Need::Program("python3")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let with = |weight| {
        let cpuset = Some("0".to_owned());
        sandbox(&home, Limits { cpu_weight: Some(weight), cpuset, ..Limits::default() })
    };
    let (heavy, light) = (with(400), with(100));
    let spin = |sandbox: &Sandbox| {
        let mut command = sandbox.command("python3");
        command.args(["-c", "print(flush=True)\nwhile True: pass"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        child
    };
    let _children = [spin(&heavy), spin(&light)];
    let time = |sandbox: &Sandbox| sandbox.stats().unwrap().cpu_time.unwrap();
    let before = (time(&heavy), time(&light));
    let has_run = || time(&heavy) > before.0 + Duration::from_secs(2);
    assert!(within(Duration::from_secs(60), has_run), "{:?}", heavy.stats());
    let [heavy, light] = [time(&heavy) - before.0, time(&light) - before.1];
    let ratio = heavy.as_secs_f64() / light.as_secs_f64();
    assert!((2.5..=5.5).contains(&ratio), "{ratio:.2}");
}

#[test]
fn what_is_above_a_high_mark_is_taken_back() {
    if !needs(&[Need::Cgroup2, Need::Program("dd")]) {
        return;
    }
    let home = Home::new();
    let peak = |limits: Limits| {
        let sandbox = sandbox(&home, Limits { accounting: true, ..limits });
        assert!(sandbox.shell(format!("exec {WRITE}")).status().unwrap().success());
        sandbox.stats().unwrap().memory.unwrap()
    };
    let marked = peak(Limits { memory_high: Some(32 * MIB), ..Limits::default() });
    assert!(marked <= 48 * MIB, "{marked}");
    // The control.
    let free = peak(Limits::default());
    assert!(free >= 150 * MIB, "{free}");
}

#[test]
fn bombs_stop_at_the_limit_and_jobs_still_start() {
    if !needs(&[Need::Cgroups, Need::Program("bash"), Need::Program("python3")]) {
        return;
    }
    const THREADS: &str = "import threading, time\ntry:\n\
        \x20while True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n\
        except RuntimeError: print('full', flush=True)\ntime.sleep(1000)";
    let home = Home::new();
    let limits = Limits { pids: Some(64), ..Limits::default() };
    let sandbox = sandbox(&home, limits);
    let shell = ":(){ :|:& };:; sleep 1000";
    for bomb in [vec!["bash", "-c", shell], vec!["python3", "-c", THREADS]] {
        let (program, arguments) = bomb.split_first().unwrap();
        let mut command = sandbox.command(program);
        command.args(arguments).stderr(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        let is_full = || sandbox.stats().unwrap().pids.unwrap() >= 60;
        assert!(within(Duration::from_secs(10), is_full), "{:?}", sandbox.stats());
        for _ in 0..20 {
            assert!(sandbox.command("/bin/true").status().unwrap().success());
            // Those who were let in beside it are few.
            assert!(sandbox.stats().unwrap().pids.unwrap() <= 66, "{:?}", sandbox.stats());
        }
        let begin = Instant::now();
        child.handle().kill().unwrap();
        assert_eq!(child.handle().wait().unwrap().signal(), Some(9));
        assert!(
            begin.elapsed() < at_most(Duration::from_secs(1)),
            "killed in {:?}",
            begin.elapsed()
        );
    }
    let mut bomb = sandbox.command("bash");
    drop(bomb.args(["-c", shell]).stderr(Stdio::null()).spawn().unwrap());
    assert!(within(Duration::from_secs(10), || sandbox.stats().unwrap().pids.unwrap() >= 60));
    let begin = Instant::now();
    sandbox.reset().unwrap();
    assert!(begin.elapsed() < at_most(Duration::from_secs(1)), "reset in {:?}", begin.elapsed());
    assert!(sandbox.command("/bin/true").status().unwrap().success());
}

#[test]
fn a_pid_namespace_is_the_bound_where_there_is_no_controller() {
    if !needs(&[Need::Cgroups, Need::Root, Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    Helper::start_without("/sys/fs/cgroup", "without-cgroups", &home.state()).finish();
}

/// For the helper: tries what is left of limits where no cgroups are mounted.
pub(crate) fn without_cgroups(state: &Path) {
    let config =
        |limits| Config { limits, state_directory: Some(state.to_owned()), ..Config::default() };
    let create = |pids| Sandbox::create(config(Limits { pids: Some(pids), ..Limits::default() }));
    let refused = Sandbox::create(config(memory(64 * MIB)));
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    let refused = create(300);
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    if harness::kernel() < (6, 14) {
        let Err(Error::Unsupported { fix, .. }) = create(400) else { panic!("{:?}", create(400)) };
        assert!(fix.contains("6.14"), "{fix}");
        return;
    }
    const FORKS: &str = "import os, time\nn = 0\ntry:\n while True:\n  if os.fork() == 0:\n   \
                         time.sleep(1000)\n  n += 1\nexcept OSError:\n print(n, flush=True)";
    let sandbox = create(400).unwrap();
    let output = sandbox.command("python3").args(["-c", FORKS]).output().unwrap();
    let forks: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert!((380..400).contains(&forks), "{forks}");
    let begin = Instant::now();
    sandbox.delete().unwrap();
    assert!(begin.elapsed() < at_most(Duration::from_secs(1)), "{:?}", begin.elapsed());
    // The control: the machine's own is another.
    let free = Sandbox::create(config(Limits::default())).unwrap();
    let output = free.command("cat").arg("/proc/sys/kernel/pid_max").output().unwrap();
    assert_ne!(output.stdout, b"400\n");
}

#[test]
fn the_cpus_are_those_of_the_set() {
    if !needs(&[Need::Cgroups, Need::Program("nproc")]) {
        return;
    }
    let home = Home::new();
    let nproc = |sandbox: &Sandbox| {
        let output = sandbox.command("nproc").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse::<usize>().unwrap()
    };
    let limits = |cpuset: &str| Limits { cpuset: Some(cpuset.to_owned()), ..Limits::default() };
    let one = sandbox(&home, limits("0"));
    assert_eq!(nproc(&one), 1);
    let all = std::thread::available_parallelism().unwrap().get();
    assert_eq!(nproc(&home.sandbox()), all);
    for wrong in ["", "0;1", "x", "0\n"] {
        let refused = Sandbox::create(Config { limits: limits(wrong), ..home.config() });
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{wrong:?}: {refused:?}");
    }
}

/// The whole disk that a directory is on.
fn disk_of(directory: &Path) -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let number = fs::metadata(directory).unwrap().dev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let block = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).unwrap();
    let is_part = block.join("partition").exists();
    let whole = if is_part { block.parent().unwrap() } else { &block };
    Path::new("/dev").join(whole.file_name().unwrap())
}

#[test]
fn a_disk_is_written_to_and_read_no_faster_than_that() {
    if !needs(&[Need::Cgroups, Need::Root, Need::Program("dd")]) {
        return;
    }
    let home = Home::new();
    let io = IoLimit {
        device: disk_of(&home.path("")),
        write_bytes: Some(2 * MIB),
        read_bytes: Some(4 * MIB),
        ..IoLimit::default()
    };
    let limited = sandbox(&home, Limits { io: vec![io.clone()], ..Limits::default() });
    let free = home.sandbox();
    let time = |sandbox: &Sandbox, script: &str| {
        let begin = Instant::now();
        let output = sandbox.shell(script).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        begin.elapsed()
    };
    // Past the page cache, which version 1 does not see behind.
    let write = "dd if=/dev/zero of=/tmp/f bs=1M count=4 oflag=direct";
    let read = "dd if=/tmp/f of=/dev/null bs=1M iflag=direct";
    // Whatever else the disk has to do: what has no limit is faster at some time.
    let is_faster = |sandbox: &Sandbox, script, than| (0..20).any(|_| time(sandbox, script) < than);
    for (script, least) in [(write, 1500), (read, 700)] {
        let slow = time(&limited, script);
        assert!(slow > Duration::from_millis(least), "{script}: {slow:?}");
        assert!(is_faster(&free, script, slow / 2), "{script}: {slow:?} with a limit, and without");
    }
    let stats = limited.stats().unwrap();
    assert!(stats.write_bytes >= Some(4 * MIB) && stats.read_bytes >= Some(4 * MIB), "{stats:?}");
    // And as fast as without, when it is taken back.
    limited.set_limits(Limits { accounting: true, ..Limits::default() }).unwrap();
    assert!(is_faster(&limited, write, Duration::from_secs(1)));
    // What is wrong with one is no reason to have the others set, or to forget them.
    let twice = vec![io.clone(), IoLimit { write_bytes: Some(MIB), ..io.clone() }];
    let no_disk = IoLimit { device: "/dev/null".into(), ..io.clone() };
    for wrong in [twice, vec![io.clone(), no_disk]] {
        let refused = limited.set_limits(Limits { io: wrong, ..Limits::default() });
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
        assert!(is_faster(&limited, write, Duration::from_secs(1)));
    }
    for device in ["/dev/null", "/etc", "/no/such"] {
        let io = vec![IoLimit { device: device.into(), ..io.clone() }];
        let limits = Limits { io, ..Limits::default() };
        let refused = Sandbox::create(Config { limits, ..home.config() });
        assert!(refused.is_err(), "{device}");
    }
}

#[test]
fn what_no_limit_can_be_is_refused() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let none = Limits::default;
    for wrong in [
        Limits { cpu: Some(9), ..none() },
        Limits { cpu_weight: Some(0), ..none() },
        Limits { cpu_weight: Some(10_001), ..none() },
        Limits { memory: Some(0), ..none() },
        Limits { pids: Some(0), ..none() },
        Limits { swap: Some(MIB), ..none() },
        Limits { cpu: Some(u32::MAX), ..none() },
        Limits { cpuset: Some("1-0".to_owned()), ..none() },
        Limits { cpuset: Some("4000".to_owned()), ..none() },
        Limits { pids: Some(5_000_000), ..none() },
    ] {
        let refused = Sandbox::create(Config { limits: wrong.clone(), ..home.config() });
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{wrong:?}: {refused:?}");
    }
    // Version 1 has no such limit, and that is said rather than left out.
    let high = Limits { memory_high: Some(64 * MIB), ..none() };
    let created = Sandbox::create(Config { limits: high, ..home.config() });
    if is_pure_v2() {
        created.unwrap();
    } else {
        let Err(Error::Unsupported { what, why, fix }) = created else { panic!("{created:?}") };
        assert!(what.contains("memory_high") && why.contains("version 1"), "{what}: {why}");
        assert!(!fix.is_empty());
    }
    // A parent that is not there.
    let elsewhere = Config {
        limits: memory(64 * MIB),
        cgroup_parent: Some("/no-such-parent".into()),
        ..home.config()
    };
    let refused = Sandbox::create(elsewhere);
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
}

#[test]
fn the_command_line_has_limits() {
    if !needs(&[Need::Cgroups, Need::Program("python3"), Need::Program("nproc")]) {
        return;
    }
    let home = Home::new();
    let output = adl_command(&home.state())
        .args(["run", "--memory", "64m", "--cpus", "1.5", "--cpu-weight", "10", "--cpuset", "0"])
        .args(["--pids-limit", "20", "--stats", "--", "nproc"])
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"1\n");
    let stats = String::from_utf8(output.stderr).unwrap();
    for name in ["cpu time", "memory peak", "pids", "oom kills"] {
        assert!(stats.lines().any(|line| line.starts_with(name)), "{name}: {stats}");
    }
    let output = adl_command(&home.state())
        .args(["run", "--memory", "64m", "--", "python3", "-c", HOG])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(137));
    for wrong in [["--memory", "0"], ["--cpus", "x"], ["--pids-limit", "-2"], ["--io", "x"]] {
        let output = adl_command(&home.state())
            .args(["run"])
            .args(wrong)
            .args(["--", "true"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(125), "{wrong:?}");
    }
}
