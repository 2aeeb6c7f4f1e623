//! A guest that holds up the jobs of calls, or kills them.

use std::fs;
use std::io::Write;
use std::process::Stdio as HostStdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adl_runtime::{Error, Result, WriteOptions};

use crate::census;
use crate::harness::{Home, Need, at_most, needs, shell, within};
use crate::jobs::{SOON, alone};

use super::{Canary, Guest, LATE, file_jobs, in_time, python};

/// Fights whatever is named as the jobs of file calls are.
const FIGHTER: &str = r"
import os, random, signal, sys, time
mode = sys.argv[1]
print('ready', flush=True)
own = os.getpid()
while True:
    for name in os.listdir('/proc'):
        if not name.isdigit() or int(name) in (1, own): continue
        try:
            if open('/proc/%s/comm' % name).read() != 'adl-file\n': continue
            how = mode if mode != 'both' else random.choice(['stop', 'kill', 'both'])
            if how != 'kill': os.kill(int(name), signal.SIGSTOP)
            if how == 'slow':
                time.sleep(0.15)
                os.kill(int(name), signal.SIGCONT)
                time.sleep(0.001)
            elif how != 'stop': os.kill(int(name), signal.SIGKILL)
        except OSError: pass
";

/// Runs a test in a process of its own, where no other one opens descriptors. Whether this is it.
fn is_alone_in_process(test: &str) -> bool {
    const ALONE: &str = "ADL_TEST_FILE_ATTACK";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("file_attacks::{test}"), "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .stdout(HostStdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{test}: {status}");
    false
}

#[test]
fn a_guest_that_fights_the_jobs_holds_up_nothing_and_leaves_nothing() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let _alone = alone();
    if !is_alone_in_process("a_guest_that_fights_the_jobs_holds_up_nothing_and_leaves_nothing") {
        return;
    }
    let home = Home::new();
    let canary = Canary::new(home.path("canary"));
    let sandbox = home.sandbox();
    let uids: &[u32] = if sandbox.id_range().is_some() { &[0, 1000] } else { &[0] };
    shell(&sandbox, "mkdir -m 777 /tmp/f");
    sandbox.files().read_file("/etc/passwd").unwrap();
    let own = i32::try_from(std::process::id()).unwrap();
    let before = census::descriptors(own).len();
    let content = vec![b'c'; 100_000];
    for &uid in uids {
        let mut files = sandbox.files();
        files.uid(uid).gid(uid).timeout(TIMEOUT);
        fs::create_dir(home.path(format!("out-{uid}"))).unwrap();
        let source = home.path(format!("in-{uid}"));
        fs::create_dir(&source).unwrap();
        for n in 0..20 {
            fs::write(source.join(n.to_string()), &content).unwrap();
        }
        let (failed_writes, fought) = (AtomicU64::new(0), AtomicU64::new(0));
        let late = Mutex::new(Vec::new());
        let fighter = Guest::start(&sandbox, uid, FIGHTER, &["both"]);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (files, content, source) = (&files, &content, &source);
                let (failed_writes, fought, home) = (&failed_writes, &fought, &home);
                let late = &late;
                scope.spawn(move || {
                    let path = format!("/tmp/f/{uid}-{thread}");
                    let begin = Instant::now();
                    let mut turn = 0;
                    let few = || fought.load(Ordering::Relaxed) <= 20;
                    while begin.elapsed() < Duration::from_secs(3)
                        || few() && begin.elapsed() < at_most(SOON)
                    {
                        turn += 1;
                        let begin = Instant::now();
                        let made = match turn % 8 {
                            0 => files.write_file(&path, content),
                            1 => files.write_file(&path, "small"),
                            2 => files.read_file("/etc/passwd").map(|b| assert!(!b.is_empty())),
                            3 => files.copy_in(source, format!("{path}-tree")).map(drop),
                            4 => files
                                .copy_out("/etc", home.path(format!("out-{uid}/{thread}")))
                                .map(drop),
                            5 => files.list_dir("/usr/bin").map(|l| assert!(l.len() > 10)),
                            6 => files.remove_dir_all(format!("{path}-tree")),
                            _ => files.append_file(format!("{path}-log"), "line\n"),
                        };
                        if begin.elapsed() > TIMEOUT + at_most(LATE) {
                            let took = begin.elapsed();
                            late.lock().unwrap().push(format!("{} {took:?} {made:?}", turn % 8));
                        }
                        match made {
                            Ok(()) => continue,
                            Err(Error::TimedOut { .. } | Error::File { .. }) => {}
                            // A directory that a copy before has left half way.
                            Err(Error::Io { .. }) if turn % 8 == 4 => {}
                            Err(error) => panic!("{}: {error:?}", turn % 8),
                        }
                        fought.fetch_add(1, Ordering::Relaxed);
                        if matches!(turn % 8, 0 | 1 | 3) {
                            failed_writes.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        drop(fighter);
        let late = late.into_inner().unwrap();
        assert!(late.is_empty(), "{late:#?}");
        assert!(fought.into_inner() > 20);
        assert!(
            within(Duration::from_secs(3), || file_jobs(&sandbox) == 0),
            "{}",
            file_jobs(&sandbox)
        );
        let left = shell(&sandbox, "find /tmp/f -name '.adl-*' | wc -l");
        let left: u64 = left.trim().parse().unwrap();
        assert!(left <= failed_writes.into_inner(), "{left}");
        // What has its name is whole, whoever was killed while it was written.
        let halves = shell(
            &sandbox,
            "find /tmp/f -path '*-tree/*' -type f ! -name '.adl-*' ! -size 100000c",
        );
        assert_eq!(halves, "");
        let whole = shell(&sandbox, "find /tmp/f -path '*-tree/*' -type f -size 100000c | wc -l");
        assert_ne!(whole, "0\n");
        // All of it works as if nothing had been.
        shell(&sandbox, "rm -rf /tmp/f/.adl-* /tmp/f/*");
        files.timeout(at_most(SOON));
        for turn in 0..50 {
            files.write_file("/tmp/f/after", &content).unwrap();
            files.append_file("/tmp/f/after", turn.to_string()).unwrap();
            files.copy_in(&source, "/tmp/f/tree").unwrap();
        }
        assert_eq!(shell(&sandbox, "find /tmp/f -name '.adl-*' | wc -l"), "0\n");
    }
    assert_eq!(census::tree(sandbox.init_pid()).len(), 1);
    // A pair of sockets may be ready for the next job.
    let after = census::descriptors(own).len();
    assert!(after <= before + 2, "{before} {after}: {:?}", census::descriptors(own));
    assert!(canary.is_whole());
}

#[test]
fn many_jobs_that_are_stopped_leave_others_and_commands_as_they_were() {
    const STUCK: usize = 300;
    const STOP: &str = "
import os, signal, sys
own = [int(n) for n in os.listdir('/proc') if n.isdigit() and int(n) not in (1, os.getpid())]
for pid in own: os.kill(pid, signal.SIGSTOP)
print(len(own))";
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    let open = |n| sandbox.files().open_write(format!("/tmp/{n}"), WriteOptions::new()).unwrap();
    let writers: Vec<_> = (0..STUCK).map(open).collect();
    assert!(within(SOON, || file_jobs(&sandbox) == STUCK));
    assert_eq!(python(&sandbox, STOP, &[]), format!("{STUCK}\n"));
    for _ in 0..20 {
        assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
        let mut files = sandbox.files();
        files.timeout(at_most(Duration::from_secs(2))).read_file("/etc/passwd").unwrap();
    }
    drop(writers);
    assert!(within(SOON, || file_jobs(&sandbox) == 0), "{}", file_jobs(&sandbox));
}

#[test]
fn a_timeout_is_that_of_the_whole_call() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    // A guest that lets the job go on for a moment now and then.
    let fighter = Guest::start(&sandbox, 0, FIGHTER, &["slow"]);
    let mut files = sandbox.files();
    files.timeout(TIMEOUT);
    let content = vec![b'c'; 32 << 20];
    let mut caught = false;
    for _ in 0..10 {
        let calls: [&dyn Fn() -> Result<()>; 4] = [
            &|| files.write_file("/tmp/new", &content),
            &|| files.append_file("/tmp/log", &content),
            &|| files.read_file("/tmp/new").map(drop),
            &|| files.list_dir("/usr/bin").map(drop),
        ];
        for call in calls {
            match in_time(TIMEOUT, call) {
                Err(Error::TimedOut { after, .. }) => {
                    caught = true;
                    assert!(after > Duration::ZERO, "it waited for {after:?}");
                }
                Ok(()) | Err(Error::File { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    drop(fighter);
    assert!(caught);
}

#[test]
fn looking_up_a_user_is_part_of_the_time_of_a_call() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "echo other:x:0:0::/:/bin/sh >> /etc/passwd");
    sandbox.files().user("other").metadata("/tmp").unwrap();
    let _fighter = Guest::start(&sandbox, 0, FIGHTER, &["stop"]);
    let mut files = sandbox.files();
    files.user("other").timeout(TIMEOUT);
    let mut caught = 0;
    for _ in 0..200 {
        let known = in_time(TIMEOUT, || files.metadata("/tmp"));
        caught += u32::from(matches!(known, Err(Error::TimedOut { .. })));
        if caught == 10 {
            break;
        }
    }
    assert!(caught > 0);
}

#[test]
fn no_job_outlives_a_writer_that_is_dropped() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let fighter = Guest::start(&sandbox, 0, FIGHTER, &["stop"]);
    let mut files = sandbox.files();
    files.timeout(Duration::from_millis(100));
    let mut caught = 0;
    for turn in 0..20 {
        let path = format!("/tmp/{turn}");
        let mut writer = files.open_write(path, WriteOptions::new()).unwrap();
        // More than a pipe holds.
        caught += u32::from(writer.write_all(&vec![0; 3 << 20]).is_err());
    }
    assert!(caught > 0);
    drop(fighter);
    // As long as a call that was written to has to clear up, and more.
    assert!(within(Duration::from_secs(3), || file_jobs(&sandbox) == 0), "{}", file_jobs(&sandbox));
}

#[test]
fn the_longest_timeout_is_one() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut files = sandbox.files();
    files.timeout(Duration::MAX);
    files.write_file("/tmp/file", "content").unwrap();
    assert_eq!(files.read_file("/tmp/file").unwrap(), b"content");
    assert!(files.list_dir("/tmp").unwrap().iter().any(|entry| entry.name == "file"));
    files.copy_out("/tmp/file", home.path("file")).unwrap();
    files.copy_in(home.path("file"), "/tmp/other").unwrap();
    let mut writer = files.open_write("/tmp/file", WriteOptions::new()).unwrap();
    writer.write_all(b"more").unwrap();
    writer.finish().unwrap();
}

#[test]
fn an_init_that_hangs_holds_up_no_call_beyond_its_time() {
    const TIMEOUT: Duration = Duration::from_millis(10);
    if !needs(&[]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    let init = nix::unistd::Pid::from_raw(sandbox.init_pid());
    let signal = |signal| nix::sys::signal::kill(init, signal).unwrap();
    signal(nix::sys::signal::Signal::SIGSTOP);
    let refused = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut files = sandbox.files();
                files.timeout(TIMEOUT);
                // More requests than the socket holds.
                for _ in 0..80 {
                    let called = in_time(TIMEOUT, || files.exists("/"));
                    let Err(Error::TimedOut { what, .. }) = called else {
                        panic!("{called:?}");
                    };
                    refused.fetch_add(u64::from(what == "init to read"), Ordering::Relaxed);
                }
            });
        }
    });
    assert!(refused.into_inner() > 8);
    signal(nix::sys::signal::Signal::SIGCONT);
    // What could not be sent took nothing with it.
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
    assert!(within(SOON, || file_jobs(&sandbox) == 0), "{}", file_jobs(&sandbox));
}
