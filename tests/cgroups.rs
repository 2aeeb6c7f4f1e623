//! The cgroups of sandboxes: where they are, what they count, and that nothing of them is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use adl_runtime::{Config, EndReason, Error, Limits, Sandbox, SnapshotOptions, Stdio};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::census::{self, cgroups};
use crate::harness::{self, Home, Need, adl_command, at_most, needs, within};
use crate::helper::Helper;
use crate::limits::{HOG, MIB, all_limits, memory, sandbox};

/// Whether version 2 has all controllers.
pub(crate) fn is_pure_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The name of the cgroup that a process or one of its descendants is in, as the host sees it.
fn name_below(pid: i32) -> Option<String> {
    let read =
        |process: census::Process| fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).ok();
    census::tree(pid).into_iter().filter_map(read).find_map(|text| {
        text.split(['/', '\n']).find(|part| part.starts_with("adl-")).map(str::to_owned)
    })
}

/// Those of a sandbox, as the host sees them.
pub(crate) fn cgroups_of(sandbox: &Sandbox) -> Vec<PathBuf> {
    // Until its input ends.
    let mut command = sandbox.command("/bin/cat");
    let mut waiting = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let name = name_below(sandbox.init_pid()).expect("no cgroup of its own");
    drop(waiting.stdin.take());
    assert!(waiting.wait().unwrap().success());
    let found = cgroups().into_iter().filter(|path| path.ends_with(&name)).collect::<Vec<_>>();
    assert!(!found.is_empty(), "{name}");
    found
}

/// What is set in each cgroup that is no sandbox's: its files that can be written to, but those
/// that count, and those that say who is in it; and that it is there. Those of other tests say
/// whose they are.
fn settings() -> BTreeMap<PathBuf, String> {
    use std::os::unix::fs::PermissionsExt;
    const COUNTERS: [&str; 7] =
        ["usage", "failcnt", "procs", "tasks", "threads", "peak", "pressure"];
    fn collect(directory: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                let of_a_test = format!("-{}-", std::process::id());
                if !name.starts_with("adl-") && !name.contains(&of_a_test) {
                    found.insert(path.clone(), "a cgroup".to_owned());
                    collect(&path, found);
                }
            } else if metadata.permissions().mode() & 0o200 != 0
                && COUNTERS.iter().all(|counter| !name.contains(counter))
                && let Ok(text) = fs::read_to_string(&path)
            {
                found.insert(path, text);
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(Path::new("/sys/fs/cgroup"), &mut found);
    found
}

/// What differs, of what is there before and after.
fn differences(
    before: &BTreeMap<PathBuf, String>,
    after: &BTreeMap<PathBuf, String>,
) -> Vec<String> {
    let paths = before.keys().chain(after.keys()).collect::<BTreeSet<_>>();
    let values = paths.into_iter().map(|path| (path, before.get(path), after.get(path)));
    let differ = values.filter(|(_, old, new)| old != new);
    differ.map(|(path, old, new)| format!("{}: {old:?} -> {new:?}", path.display())).collect()
}

#[test]
fn nothing_is_set_outside_the_cgroups_of_a_sandbox() {
    if !needs(&[Need::Cgroups, Need::Root]) {
        return;
    }
    // Other tests make cgroups of their own.
    let _alone = harness::alone();
    let home = Home::new();
    let live = |limits: Limits| {
        let sandbox = sandbox(&home, limits);
        assert!(sandbox.shell("sleep 1000 & true").status().unwrap().success());
        sandbox.freeze().unwrap();
        sandbox.thaw().unwrap();
        sandbox.set_limits(Limits { accounting: true, ..Limits::default() }).unwrap();
        sandbox.reset().unwrap();
        assert!(sandbox.command("true").status().unwrap().success());
        sandbox.delete().unwrap();
        adl_runtime::finish_removals();
    };
    // Where version 2 is alone, the tests are in the root, which hands its controllers on from the
    // first time on.
    if is_pure_v2() {
        live(all_limits());
    }
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let before = settings();
    assert!(before.len() >= 3, "{before:?}");
    live(all_limits());
    let after = settings();
    assert_eq!(differences(&before, &after), [""; 0]);
    assert_eq!(fs::read_to_string("/proc/self/cgroup").unwrap(), own);
    // The control: what is set is seen, in a cgroup that no sandbox has.
    let parent = cgroups_of(&sandbox(&home, all_limits())).remove(0);
    let control = parent.with_file_name(format!("control-{}", std::process::id()));
    fs::create_dir(&control).unwrap();
    let before = settings();
    let clone = control.join("cgroup.clone_children");
    let (file, value) =
        if clone.exists() { (clone, "1") } else { (control.join("cgroup.max.depth"), "7") };
    fs::write(file, value).unwrap();
    let seen = differences(&before, &settings());
    fs::remove_dir(&control).unwrap();
    assert_eq!(seen.len(), 1, "{seen:?}");
}

fn cpu_time(sandbox: &Sandbox) -> Duration {
    sandbox.stats().unwrap().cpu_time.unwrap()
}

/// Whether a sandbox in which a loop runs comes to have used so much more.
fn moves(sandbox: &Sandbox, since: Duration) -> bool {
    within(Duration::from_secs(10), || cpu_time(sandbox) > since + Duration::from_millis(20))
}

/// Sees that a frozen sandbox, in which a loop runs, stands for as long as another works. The
/// kernel may charge a process for its last moments when it stands already, which is much less.
fn stands_beside(frozen: &Sandbox, other: &Sandbox) -> Duration {
    const WORK: &str = "import time\nwhile time.process_time() < 0.3: pass";
    let before = cpu_time(frozen);
    assert!(other.command("python3").args(["-c", WORK]).status().unwrap().success());
    let after = cpu_time(frozen);
    assert!(after - before < Duration::from_millis(20), "{before:?} {after:?}");
    after
}

#[test]
fn what_is_frozen_stands_and_goes_on() {
    if !needs(&[Need::Cgroups, Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let limits = || Limits { accounting: true, ..Limits::default() };
    let frozen = sandbox(&home, limits());
    let mut command = frozen.shell("while :; do :; done");
    let child = command.spawn().unwrap();
    assert!(moves(&frozen, Duration::ZERO));
    frozen.freeze().unwrap();
    let stood = stands_beside(&frozen, &sandbox(&home, limits()));
    let refused = frozen.command("true").spawn();
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    let refused = frozen.files().read_file("/etc/passwd");
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    frozen.thaw().unwrap();
    assert!(moves(&frozen, stood));
    // It can be killed, reset and deleted as it stands.
    frozen.freeze().unwrap();
    let begin = Instant::now();
    frozen.reset().unwrap();
    assert_eq!(child.handle().wait().unwrap().reason(), EndReason::SandboxDied);
    assert!(frozen.command("true").status().unwrap().success());
    frozen.freeze().unwrap();
    frozen.delete().unwrap();
    assert!(begin.elapsed() < at_most(Duration::from_secs(2)), "{:?}", begin.elapsed());
}

#[test]
fn what_a_job_has_used_is_its_own() {
    if !needs(&[Need::Cgroups, Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = sandbox(&home, Limits { accounting: true, ..Limits::default() });
    let run = |script: &str| {
        let mut command = sandbox.command("python3");
        let child = command.args(["-c", script]).spawn().unwrap();
        let handle = child.handle();
        assert!(handle.wait().unwrap().success());
        handle.stats().unwrap()
    };
    let large = run("import time\nx = b'1' * (200 << 20)\nend = time.process_time() + 0.5\n\
                     while time.process_time() < end: pass");
    assert!(large.cpu_time.unwrap() >= Duration::from_millis(500), "{large:?}");
    assert!(large.memory_peak.unwrap() > 200 * MIB, "{large:?}");
    // The next in the same cgroup begins anew.
    let small = run("pass");
    assert!(small.cpu_time.unwrap() < Duration::from_millis(400), "{small:?}");
    assert!(small.memory_peak.is_none_or(|peak| peak < 100 * MIB), "{small:?}");
    // So it does after one that has left pages of a file behind.
    let reader = run("open('/tmp/f', 'wb').write(b'1' * (100 << 20))");
    assert!(reader.memory_peak.is_none_or(|peak| peak > 100 * MIB), "{reader:?}");
    assert!(sandbox.stats().unwrap().memory.unwrap() > 100 * MIB, "{:?}", sandbox.stats());
    let small = run("pass");
    assert!(small.memory.unwrap() < 50 * MIB, "{small:?}");
    assert!(small.memory_peak.is_none_or(|peak| peak < 50 * MIB), "{small:?}");
    let has_peaks = !is_pure_v2() || harness::kernel() >= (6, 12);
    assert_eq!(small.memory_peak.is_some(), has_peaks, "{small:?}");
    // A child that it has left is its own still, and no one's who comes after.
    let left = run("import os, time\nif os.fork() == 0:\n os.close(1)\n time.sleep(1000)");
    assert_eq!(left.pids, Some(1), "{left:?}");
    assert_eq!(run("pass").pids, Some(0));
    assert_eq!(sandbox.stats().unwrap().pids, Some(1));
}

#[test]
fn what_is_told_of_an_end_is_of_that_end() {
    if !needs(&[Need::Cgroups, Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = sandbox(&home, memory(64 * MIB));
    // What a job has left runs out of memory after its end.
    let script = format!(
        "import os, time\nif os.fork() == 0:\n\
        \x20while not os.path.exists('/tmp/go'): time.sleep(0.01)\n {HOG}"
    );
    let child = sandbox.command("python3").args(["-c", &script]).stdout(Stdio::null()).spawn();
    let child = child.unwrap();
    assert_eq!(child.handle().wait().unwrap().reason(), EndReason::Exited);
    sandbox.files().write_file("/tmp/go", "").unwrap();
    let has_run_out = |sandbox: &Sandbox| sandbox.stats().unwrap().oom_kills > Some(0);
    assert!(within(Duration::from_secs(10), || has_run_out(&sandbox)), "{:?}", sandbox.stats());
    assert_eq!(child.handle().stats().unwrap().oom_kills, Some(0));
    // It is told also of one whose sandbox has ended before anyone asked.
    for delete in [false, true] {
        sandbox.reset().unwrap();
        let child = sandbox.command("python3").args(["-c", HOG]).spawn().unwrap();
        let handle = child.handle();
        let mut fds = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)), Ok(1));
        if delete {
            sandbox.delete().unwrap();
            adl_runtime::finish_removals();
            assert_eq!(handle.wait().unwrap().reason(), EndReason::OutOfMemory);
            assert!(handle.stats().unwrap().oom_kills > Some(0), "{:?}", handle.stats());
            break;
        }
        sandbox.reset().unwrap();
        adl_runtime::finish_removals();
        assert_eq!(handle.wait().unwrap().reason(), EndReason::OutOfMemory);
        assert!(handle.stats().unwrap().memory_peak > Some(50 * MIB), "{:?}", handle.stats());
    }
}

#[test]
fn leftovers_hold_no_descriptors_of_the_callers() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let sandbox = sandbox(&home, all_limits());
    let name = cgroups_of(&sandbox).remove(0).file_name().unwrap().to_owned();
    let held = || {
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.filter(|path| path.iter().any(|part| part == name)).count()
    };
    let run = |script: &str| {
        let child = sandbox.shell(script).stdout(Stdio::null()).spawn().unwrap();
        assert!(child.handle().wait().unwrap().success());
        child.handle()
    };
    run("true");
    let before = held();
    let mut handles = Vec::new();
    for _ in 0..60 {
        handles.push(run("sleep 1000 & true"));
    }
    for _ in 0..20 {
        run("true");
    }
    // With version 2, one from which the peak of a job can be read.
    assert!(held() <= before + 1, "{} and {before} before", held());
    assert_eq!(sandbox.stats().unwrap().pids, Some(60));
    // The control: what is open is seen.
    let open = fs::File::open(cgroups_of(&sandbox).remove(0)).unwrap();
    assert!(held() > before, "{}", held());
    drop(open);
    // Nor are there more cgroups than that takes, and none of what could not be started.
    for _ in 0..50 {
        let refused = sandbox.command("true").arg("x".repeat(8 << 20)).status();
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
    let below = |path: PathBuf| {
        let entries = fs::read_dir(path).unwrap().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count()
    };
    let count = cgroups_of(&sandbox).into_iter().map(below).max().unwrap();
    assert!((60..=80).contains(&count), "{count}");
    // And what is kept of a job holds nothing of a sandbox that is gone.
    sandbox.delete().unwrap();
    assert_eq!(held(), 0);
    assert!(handles.iter().all(|handle| handle.stats().is_ok()));
}

#[test]
fn nothing_is_left_of_cgroups() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let gone = |paths: &[PathBuf]| {
        adl_runtime::finish_removals();
        let left: Vec<_> = paths.iter().filter(|path| path.exists()).collect();
        assert!(left.is_empty(), "{left:?}");
    };
    for round in 0..50 {
        let sandbox = sandbox(&home, all_limits());
        let before = cgroups_of(&sandbox);
        assert!(sandbox.shell("sleep 1000 & sleep 1000 & true").status().unwrap().success());
        match round % 3 {
            0 => {}
            1 => sandbox.reset().unwrap(),
            _ => {
                let running = adl_runtime::IfRunning::End;
                let options = SnapshotOptions { running, ..SnapshotOptions::default() };
                drop(sandbox.snapshot_with(&options).unwrap());
            }
        }
        if round % 3 != 0 {
            gone(&before);
        }
        let after = cgroups_of(&sandbox);
        sandbox.delete().unwrap();
        gone(&before);
        gone(&after);
    }
    // Where it could not be made, too: of version 1, there is no such limit; of version 2, no such
    // CPU.
    let sandbox = sandbox(&home, all_limits());
    let (parent, at) = parent_of(&sandbox);
    let wrong = match is_pure_v2() {
        true => Limits { cpuset: Some("4000".to_owned()), ..memory(64 * MIB) },
        false => Limits { memory_high: Some(32 * MIB), ..memory(64 * MIB) },
    };
    for (limits, is_made) in [(memory(64 * MIB), true), (wrong, false)] {
        let config = Config { limits, cgroup_parent: Some(at.clone()), ..home.config() };
        let created = Sandbox::create(config);
        assert_eq!(created.is_ok(), is_made, "{created:?}");
        let below = || {
            let entries = fs::read_dir(&parent).unwrap().flatten();
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count()
        };
        // The control: where it is made, it is there.
        assert_eq!(below(), usize::from(is_made));
        drop(created);
        adl_runtime::finish_removals();
        assert_eq!(below(), 0);
    }
    fs::remove_dir(&parent).unwrap();
}

/// A cgroup beside those of a sandbox, with the controller memory: where it is, and what it is
/// called by.
pub(crate) fn parent_of(sandbox: &Sandbox) -> (PathBuf, PathBuf) {
    let mut of_sandbox = cgroups_of(sandbox).into_iter();
    let with_memory = |path: &PathBuf| {
        path.join("memory.max").exists() || path.join("memory.limit_in_bytes").exists()
    };
    let beside = of_sandbox.find(with_memory).unwrap();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = beside.with_file_name(format!("parent-{}-{number}", std::process::id()));
    fs::create_dir(&path).unwrap();
    let mounts = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"];
    let below = mounts.iter().find_map(|mount| path.strip_prefix(mount).ok()).unwrap();
    let at = Path::new("/").join(below);
    (path, at)
}

#[test]
fn a_machine_without_version_2_has_all_but_pressure() {
    if !needs(&[Need::Cgroups, Need::Root, Need::Program("python3")]) {
        return;
    }
    // As nothing but version 1 is mounted.
    let unified = Path::new("/sys/fs/cgroup/unified");
    if !unified.exists() {
        eprintln!("not tried: version 2 alone is mounted here");
        return;
    }
    let home = Home::new();
    let unified = unified.to_str().unwrap();
    Helper::start_without(unified, "without-version-2", &home.state()).finish();
}

/// For the helper: tries what depends on which version there is.
pub(crate) fn without_version_2(state: &Path) {
    assert!(!Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists());
    let create = || {
        let limits = Limits { accounting: true, ..memory(64 * MIB) };
        let state_directory = Some(state.to_owned());
        Sandbox::create(Config { limits, state_directory, ..Config::default() }).unwrap()
    };
    let sandbox = create();
    let begin = Instant::now();
    let script = format!("setsid sleep 1000 & python3 -c \"{HOG}\"; exec sleep 1000");
    let status = sandbox.shell(script).status().unwrap();
    assert_eq!(status.reason(), EndReason::OutOfMemory, "{status}");
    assert!(begin.elapsed() < at_most(Duration::from_secs(2)), "{:?}", begin.elapsed());
    let is_empty = || sandbox.stats().unwrap().pids == Some(0);
    assert!(within(Duration::from_secs(2), is_empty), "{:?}", sandbox.stats());
    let stats = sandbox.stats().unwrap();
    assert!(stats.cpu_time.is_some() && stats.cpu_pressure.is_none(), "{stats:?}");

    let child = sandbox.shell("while :; do :; done").spawn().unwrap();
    assert!(moves(&sandbox, Duration::ZERO));
    sandbox.freeze().unwrap();
    let other = create();
    let stood = stands_beside(&sandbox, &other);
    sandbox.thaw().unwrap();
    assert!(moves(&sandbox, stood));
    sandbox.freeze().unwrap();
    let begin = Instant::now();
    sandbox.reset().unwrap();
    assert_eq!(child.handle().wait().unwrap().reason(), EndReason::SandboxDied);
    sandbox.freeze().unwrap();
    sandbox.delete().unwrap();
    assert!(begin.elapsed() < at_most(Duration::from_secs(2)), "{:?}", begin.elapsed());
    // What its owner has left frozen is ended, too.
    let frozen = create();
    drop(frozen.command("sleep").arg("1000").spawn().unwrap());
    frozen.freeze().unwrap();
    drop(frozen);
    adl_runtime::finish_removals();
    let own = cgroups_of(&other).remove(0);
    let prefix = own.file_name().unwrap().to_str().unwrap().rsplit_once('-').unwrap().0.to_owned();
    drop(other);
    adl_runtime::finish_removals();
    let of_this = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&prefix);
    let left: Vec<_> = cgroups().into_iter().filter(of_this).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_a_dead_caller_left_of_cgroups_is_collected() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let mut caller = adl_command(&home.state());
    caller.args(["run", "--memory", "64m", "--pids-limit", "20", "--"]);
    caller.args(["sh", "-c", "echo; sleep 1000"]);
    let mut caller = caller.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    let mut stdout = std::io::BufReader::new(caller.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut stdout, &mut text).unwrap();
    assert_eq!(text, "\n");
    let name = name_below(caller.id().cast_signed()).unwrap();
    let left: Vec<_> = cgroups().into_iter().filter(|path| path.ends_with(&name)).collect();
    assert!(!left.is_empty(), "{name}");
    caller.kill().unwrap();
    caller.wait().unwrap();
    let collected = adl_runtime::collect_garbage(Some(&home.state())).unwrap();
    assert_eq!(collected.len(), 1, "{collected:?}");
    let left: Vec<_> = left.into_iter().filter(|path| path.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}
