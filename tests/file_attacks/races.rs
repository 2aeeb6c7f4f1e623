//! Paths that a guest swaps while calls go through them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use adl_runtime::{Error, Files, Result, WriteMode, WriteOptions};

use crate::harness::{Home, Need, needs, shell, within};
use crate::images::fingerprint;
use crate::jobs::{SOON, alone};

use super::{Canary, Guest, HOST, bytes_below, in_time, is_sensible};

/// Swaps what is at the paths below `r` for all that a path can lead over.
const RACER: &str = r"
import os, sys
base, host = sys.argv[1:3]
os.makedirs(base + '/r/d', exist_ok=True)
os.makedirs(host, exist_ok=True)
os.chdir(base)
targets = ['/etc', '../../..', host, '/proc/self/root', '../../../../../..' + host, '/nowhere', 'd']
def quiet(call, *arguments):
    try: return call(*arguments)
    except OSError: pass
def put(path):
    fd = quiet(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_TRUNC, 0o644)
    if fd is not None:
        quiet(os.write, fd, b'inside;')
        os.close(fd)
put(host + '/passwd')
print('ready', flush=True)
turn = 0
while True:
    turn += 1
    target = targets[turn % len(targets)]
    quiet(os.mkdir, 'r/d')
    put('r/d/passwd')
    quiet(os.mkdir, 'r/d/sub')
    put('r/d/sub/file')
    # The directory: a link, a FIFO, a file.
    quiet(os.rename, 'r/d', 'r/aside')
    quiet(os.symlink, target, 'r/d')
    quiet(os.unlink, 'r/d')
    if turn % 3 == 0: quiet(os.mkfifo, 'r/d')
    elif turn % 3 == 1: put('r/d')
    quiet(os.unlink, 'r/d')
    quiet(os.rename, 'r/aside', 'r/d')
    # The file: a link, a FIFO, a directory.
    quiet(os.unlink, 'r/d/passwd')
    quiet(os.symlink, target + '/passwd', 'r/d/passwd')
    quiet(os.unlink, 'r/d/passwd')
    if turn % 2: quiet(os.mkfifo, 'r/d/passwd')
    else: quiet(os.mkdir, 'r/d/passwd')
    quiet(os.unlink, 'r/d/passwd')
    quiet(os.rmdir, 'r/d/passwd')
    # What is copied, and the parent.
    quiet(os.rename, 'r/d/sub', 'r/d/was')
    quiet(os.symlink, target, 'r/d/sub')
    quiet(os.rename, 'r', 'q')
    quiet(os.symlink, target, 'r')
    quiet(os.unlink, 'r')
    quiet(os.rename, 'q', 'r')
    quiet(os.unlink, 'r/d/sub')
    quiet(os.rename, 'r/d/was', 'r/d/sub')
";

/// The calls of the race, one kind after the other. `read` is told what was read.
fn race_once(
    files: &Files,
    at: &str,
    turn: u64,
    (source, target): (&Path, &Path),
    read: impl Fn(&[u8]),
) -> Result<()> {
    let file = format!("{at}/r/d/passwd");
    let directory = format!("{at}/r/d/sub");
    match turn % 32 {
        0..=3 => files.read_file(&file).map(|bytes| read(&bytes)),
        4 | 5 => files.write_file(&file, "written;"),
        6 => files.append_file(&file, "more;"),
        7 => files.write_with(&file, "written;", WriteOptions::new().how(WriteMode::Truncate)),
        8 | 9 => {
            let mut bytes = Vec::new();
            let outcome = files.open_read(&file)?.read_to_end(&mut bytes);
            read(&bytes);
            // It holds the library's own.
            outcome.map(drop).map_err(|error| error.downcast::<Error>().unwrap())
        }
        10 => {
            let mut writer = files.open_write(&file, WriteOptions::new())?;
            writer.write_all(b"written;").unwrap();
            writer.finish()
        }
        11..=13 => files.metadata(&file).map(drop),
        14 => files.symlink_metadata(&file).map(drop),
        15..=17 => files.list_dir(format!("{at}/r/d")).map(drop),
        18 | 19 => files.create_dir_all(format!("{directory}/more")),
        20 | 21 => files.remove_file(&file),
        22 | 23 => files.remove_dir_all(&directory),
        24 => files.rename(&file, format!("{at}/r/d/moved")),
        25 => files.rename(format!("{at}/r/d/moved"), &file),
        26 => files.set_permissions(&file, 0o644),
        27 => files.chown(&file, Some(0), Some(0)),
        28 => files.read_link(&file).map(drop),
        29 => files.symlink("/etc/passwd", format!("{at}/r/d/linked")),
        30 if (turn / 32).is_multiple_of(4) => files.copy_in(source, &directory).map(drop),
        31 if (turn / 32).is_multiple_of(4) => files.copy_out(&directory, target).map(drop),
        _ => files.read_range(&file, 0, 100).map(|bytes| read(&bytes)),
    }
}

#[test]
fn no_race_leads_a_call_to_the_host_or_holds_it_up() {
    calls_withstand_races(20_000, Home::new);
}

/// Makes so many calls while a guest swaps what their paths lead over.
pub(crate) fn calls_withstand_races(calls: u64, home: impl FnOnce() -> Home) {
    const THREADS: u64 = 4;
    const TIMEOUT: Duration = Duration::from_secs(30);
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let _alone = alone();
    let home = home();
    let canary = Canary::new(home.path("canary"));
    let (source, targets) = (home.path("source"), home.path("targets"));
    fs::create_dir(&targets).unwrap();
    fs::create_dir_all(source.join("within")).unwrap();
    fs::write(source.join("file"), "copied;").unwrap();
    fs::write(source.join("within/file"), "copied;").unwrap();
    let passwd = fingerprint(Path::new("/etc/passwd"));
    let sandbox = home.sandbox();
    let of_image = sandbox.files().read_file("/etc/passwd").unwrap();
    assert_ne!(of_image, fs::read("/etc/passwd").unwrap());
    let outside = canary.root.to_str().unwrap();
    let racers = ["/tmp/a", "/tmp/b"].map(|at| Guest::start(&sandbox, 0, RACER, &[at, outside]));

    let (strange, read) = (Mutex::new(BTreeSet::new()), AtomicU64::new(0));
    // What is written while it is read may come in pieces of both.
    let passwd_of_host = fs::read("/etc/passwd").unwrap();
    let of_host: Vec<&[u8]> = passwd_of_host
        .split(|byte| *byte == b'\n')
        .filter(|line| line.len() > 8 && !contains(&of_image, line))
        .chain([HOST.as_bytes()])
        .collect();
    assert!(of_host.len() > 1);
    let is_of_inside = |bytes: &[u8]| of_host.iter().all(|part| !contains(bytes, part));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (sandbox, source, strange, read) = (&sandbox, &source, &strange, &read);
            let target = targets.join(thread.to_string());
            scope.spawn(move || {
                let mut files = sandbox.files();
                files.timeout(TIMEOUT).limit(1 << 20).entry_limit(500);
                let at = if thread % 2 == 0 { "/tmp/a" } else { "/tmp/b" };
                for turn in 0..calls / THREADS {
                    let made = in_time(TIMEOUT, || {
                        race_once(&files, at, turn, (source, &target), |bytes| {
                            assert!(is_of_inside(bytes), "{}", bytes.escape_ascii());
                            read.fetch_add(u64::from(!bytes.is_empty()), Ordering::Relaxed);
                        })
                    });
                    if let Err(error) = made.as_ref()
                        && !is_sensible(error)
                    {
                        strange.lock().unwrap().insert(format!("{}: {error:?}", turn % 32));
                    }
                }
            });
        }
    });
    eprintln!("{calls} calls in {:?}", begin.elapsed());
    drop(racers);
    let strange = strange.into_inner().unwrap();
    assert!(strange.is_empty(), "{strange:#?}");
    // The race left something to be read.
    assert!(read.into_inner() > calls / 100);
    assert!(canary.is_whole());
    assert_eq!(fingerprint(Path::new("/etc/passwd")), passwd);
    for path in ["/passwd", "/moved", "/sub"] {
        assert!(!Path::new(path).exists(), "{path}");
    }
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Swaps a directory for a link to `target` and back until it is told that it is over.
fn swap(directory: &Path, target: &Path, is_over: &AtomicBool) {
    let (aside, link) = (directory.with_extension("aside"), directory.with_extension("link"));
    symlink(target, &link).unwrap();
    while !is_over.load(Ordering::Relaxed) {
        let _ = fs::rename(directory, &aside);
        let _ = fs::rename(&link, directory);
        let _ = fs::rename(directory, &link);
        let _ = fs::rename(&aside, directory);
    }
}

#[test]
fn control_the_same_races_lead_naive_calls_astray() {
    let home = tempfile::tempdir().unwrap();
    let canary = Canary::new(home.path().join("canary"));
    let root = home.path().join("upper");
    fs::create_dir_all(root.join("d/sub")).unwrap();
    fs::write(root.join("d/passwd"), "inside").unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let racer = {
        let (directory, target) = (root.join("d"), canary.root.clone());
        let over = Arc::clone(&over);
        std::thread::spawn(move || swap(&directory, &target, &over))
    };
    let read_astray =
        || fs::read(root.join("d/passwd")).is_ok_and(|bytes| bytes == HOST.as_bytes());
    assert!(within(SOON, || (0..1000).any(|_| read_astray())));
    let write_astray = || {
        let _ = fs::write(root.join("d/passwd"), "inside");
        !canary.is_whole()
    };
    assert!(within(SOON, || (0..10).any(|_| write_astray())));
    // Looked at, and then gone into by its name.
    let remove_astray = || {
        let is_directory = fs::symlink_metadata(root.join("d")).is_ok_and(|m| m.is_dir());
        if is_directory && let Ok(entries) = fs::read_dir(root.join("d/sub")) {
            for entry in entries.flatten() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        !canary.root.join("sub/deep").exists()
    };
    assert!(within(SOON, || (0..1000).any(|_| remove_astray())));
    over.store(true, Ordering::Relaxed);
    racer.join().unwrap();
}

/// How long a race may go on until it has had all its outcomes.
const AT_MOST: Duration = Duration::from_secs(120);

/// Makes a tree again and again, in which directories become links to what is outside of it.
const TREE_SWAPPER: &str = r"
import os
def quiet(call, *arguments):
    try: return call(*arguments)
    except OSError: pass
def put(path):
    fd = quiet(os.open, path, os.O_WRONLY | os.O_CREAT)
    if fd is not None: os.close(fd)
print('ready', flush=True)
turn = 0
while True:
    turn += 1
    for directory in ['tree', 'tree/a', 'tree/a/keep', 'tree/a/b']:
        quiet(os.mkdir, '/tmp/' + directory)
    put('/tmp/tree/a/keep/x')
    for name in 'xyz': put('/tmp/tree/a/' + name)
    for _ in range(4):
        target = '/' if turn % 8 == 0 else '/tmp/outside'
        quiet(os.rename, '/tmp/tree/a', '/tmp/aside')
        quiet(os.symlink, target, '/tmp/tree/a')
        quiet(os.unlink, '/tmp/tree/a')
        quiet(os.rename, '/tmp/aside', '/tmp/tree/a')
";

#[test]
fn a_removal_and_a_copy_stay_in_a_tree_that_is_swapped_for_links() {
    const TIMEOUT: Duration = Duration::from_secs(30);
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let canary = Canary::new(home.path("canary"));
    let sandbox = home.sandbox();
    shell(
        &sandbox,
        "mkdir -p /tmp/outside/keep/deep; echo SECRET | tee /tmp/outside/x \
        /tmp/outside/keep/x > /tmp/outside/keep/deep/x; echo SECRET > /sentinel",
    );
    let tell = "find /tmp/outside /sentinel -printf '%p %m %s %T@ %i\n' | sort";
    let before = shell(&sandbox, tell);
    let racer = Guest::start(&sandbox, 0, TREE_SWAPPER, &[]);
    let mut files = sandbox.files();
    files.timeout(TIMEOUT).entry_limit(2_000).limit(1 << 20);
    let (mut removed, mut copied) = (0, 0);
    // Until both have come out well, too, which the guest seldom lets them.
    let (end, mut turn) = (Instant::now() + AT_MOST, 0);
    while turn < 1_200 || (removed < 20 || copied < 20) && Instant::now() < end {
        turn += 1;
        if turn % 2 == 0 {
            let gone = in_time(TIMEOUT, || files.remove_dir_all("/tmp/tree"));
            assert!(gone.as_ref().err().is_none_or(is_sensible), "{gone:?}");
            removed += u32::from(gone.is_ok());
        } else {
            let target = home.path("copy");
            let made = in_time(TIMEOUT, || files.copy_out("/tmp/tree", &target));
            assert!(made.as_ref().err().is_none_or(is_sensible), "{made:?}");
            copied += u32::from(made.is_ok_and(|report| report.files != 0));
            // Of an empty file, nothing is ever in the copy but itself.
            assert_eq!(bytes_below(&target), 0);
            if target.exists() {
                fs::remove_dir_all(&target).unwrap();
            }
        }
    }
    drop(racer);
    assert!(removed >= 20 && copied >= 20, "{removed} {copied}");
    assert_eq!(shell(&sandbox, tell), before);
    assert!(canary.is_whole());
    // Control: what follows links does get there.
    shell(&sandbox, "mkdir -p /tmp/tree; ln -sfn /tmp/outside /tmp/tree/link");
    assert_eq!(files.read_file("/tmp/tree/link/x").unwrap(), b"SECRET\n");
}

/// Swaps what a copy is to be made at, and what it has made.
const TARGET_SWAPPER: &str = r"
import os, shutil, sys, time
host = sys.argv[1]
def quiet(call, *arguments):
    try: return call(*arguments)
    except OSError: pass
os.makedirs('/tmp/c', exist_ok=True); os.makedirs('/tmp/outside', exist_ok=True)
os.makedirs(host, exist_ok=True)
os.chdir('/tmp/c')
print('ready', flush=True)
turn = 0
while True:
    turn += 1
    # So that some copies come out well: a directory may be where a file is to be by now.
    if turn % 64 == 0:
        for left in ['t', 'aside']: shutil.rmtree(left, ignore_errors=True)
        time.sleep(0.02)
    target = ['/tmp/outside', host, '/', '/proc/self/root', '..'][turn % 5]
    for name in ['t/within', 't', 't/file-3']:
        quiet(os.rename, name, 'aside')
        quiet(os.symlink, target, name)
        quiet(os.unlink, name)
        quiet(os.mkfifo, name)
        quiet(os.unlink, name)
        quiet(os.rename, 'aside', name)
";

#[test]
fn a_copy_to_a_target_that_is_swapped_meanwhile_reads_and_writes_nothing_of_the_host() {
    const TIMEOUT: Duration = Duration::from_secs(30);
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let canary = Canary::new(home.path("canary"));
    let source = home.path("source");
    fs::create_dir_all(source.join("within/deep")).unwrap();
    for n in 0..20 {
        fs::write(source.join(format!("file-{n}")), "copied;").unwrap();
        fs::write(source.join(format!("within/file-{n}")), vec![b'c'; 40_000]).unwrap();
        fs::write(source.join(format!("within/deep/file-{n}")), "copied;").unwrap();
    }
    symlink("within", source.join("link")).unwrap();
    fs::hard_link(source.join("file-0"), source.join("within/hard")).unwrap();
    let of_source = fingerprint(&source);
    let sandbox = home.sandbox();
    let racer = Guest::start(&sandbox, 0, TARGET_SWAPPER, &[canary.root.to_str().unwrap()]);
    let (made, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut files = sandbox.files();
                files.timeout(TIMEOUT);
                // Until some have come out well, too, which the guest seldom lets them.
                let (end, mut turn) = (Instant::now() + AT_MOST, 0);
                let few =
                    || made.load(Ordering::Relaxed) < 10 || failed.load(Ordering::Relaxed) < 10;
                while turn < 400 || few() && Instant::now() < end {
                    turn += 1;
                    match in_time(TIMEOUT, || files.copy_in(&source, "/tmp/c/t")) {
                        Ok(report) => {
                            assert_eq!((report.files, report.directories), (60, 3));
                            made.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => {
                            assert!(is_sensible(&error), "{error:?}");
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    drop(racer);
    let (made, failed) = (made.into_inner(), failed.into_inner());
    assert!(made >= 10 && failed >= 10, "{made} {failed}");
    assert!(canary.is_whole());
    assert_eq!(fingerprint(&source), of_source);
    // What failed has left no part of a file, under whatever name.
    let left =
        "find / -xdev \\( -name '.adl-*' -o -name 'file-*' \\) -type f -printf '%s\n' | sort -u";
    assert_eq!(shell(&sandbox, left), "40000\n7\n");
    sandbox.files().copy_in(&source, "/tmp/c/calm").unwrap();
}
