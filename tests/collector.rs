//! What owners have left that ended without a word: who may take it, and when.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use adl_runtime::{Config, Error, Sandbox, Stdio};

use crate::harness::{Home, Need, at_most, needs, shell, within};
use crate::helper::{Helper, say};

fn collect(home: &Home) -> Vec<String> {
    adl_runtime::collect_garbage(Some(&home.state())).unwrap()
}

fn directory(home: &Home, name: &str) -> PathBuf {
    home.state().join("sandboxes").join(name)
}

/// What is written down of a sandbox's init.
fn record(home: &Home, sandbox: &Sandbox) -> String {
    let link = fs::read_link(directory(home, sandbox.name()).join("init")).unwrap();
    link.to_str().unwrap().to_owned()
}

/// A directory that is locked by no one, with a record of an init.
fn leave(home: &Home, name: &str, record: &str) {
    let path = directory(home, name);
    fs::create_dir(&path).unwrap();
    symlink(record, path.join("init")).unwrap();
    fs::write(path.join("file"), "left").unwrap();
}

#[test]
fn what_has_no_owner_is_left_until_its_init_has_ended() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let record = record(&home, &sandbox);
    assert!(record.starts_with(&format!("{}:", sandbox.init_pid())), "{record}");
    leave(&home, "left", &record);
    // Also by a sandbox that would like its name.
    let begin = Instant::now();
    // It is told of, since it will not end by itself if it was taken over.
    match adl_runtime::collect_garbage(Some(&home.state())) {
        Err(Error::Uncollected { removed, errors }) => {
            assert_eq!(removed, [""; 0]);
            assert!(matches!(&errors[..], [Error::Busy { what, .. }] if what.contains("left")));
        }
        other => panic!("{other:?}"),
    }
    let named = || Sandbox::create(Config { name: Some("left".to_owned()), ..home.config() });
    assert!(matches!(named(), Err(Error::NameInUse { .. })));
    assert!(begin.elapsed() < at_most(Duration::from_secs(20)), "{:?}", begin.elapsed());
    assert_eq!(fs::read(directory(&home, "left").join("file")).unwrap(), b"left");
    sandbox.delete().unwrap();
    assert_eq!(collect(&home), ["left"]);
    // Of an owner that is ending, too, the name is free.
    let sandbox = home.sandbox();
    leave(&home, "left", &self::record(&home, &sandbox));
    std::thread::scope(|scope| {
        let named = scope.spawn(named);
        sandbox.delete().unwrap();
        shell(&named.join().unwrap().unwrap(), "true");
    });
}

#[test]
fn what_was_recorded_before_the_machine_started_has_ended() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let record = record(&home, &sandbox);
    let (rest, boot) = record.rsplit_once(':').unwrap();
    let boot = u64::from_str_radix(boot, 16).unwrap() ^ 1;
    leave(&home, "left", &format!("{rest}:{boot:016x}"));
    // And what is no record was not written down by anyone.
    leave(&home, "other", "/etc/passwd");
    let mut collected = collect(&home);
    collected.sort();
    assert_eq!(collected, ["left", "other"]);
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
}

#[test]
fn what_another_pid_namespace_has_left_is_given_time_to_end() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let record = record(&home, &sandbox);
    let fields: Vec<_> = record.split(':').collect();
    let [pid, seen, _, boot] = fields[..] else { panic!("{record}") };
    // The number would mean a process that lives; but not from there.
    leave(&home, "left", &format!("{pid}:{seen}:1:{boot}"));
    let named = Sandbox::create(Config { name: Some("left".to_owned()), ..home.config() });
    assert!(matches!(named, Err(Error::NameInUse { .. })));
    let begin = Instant::now();
    assert_eq!(collect(&home), ["left"]);
    assert!(begin.elapsed() >= Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn what_another_time_namespace_has_left_is_given_time_to_end() {
    if !needs(&[Need::Root, Need::Program("unshare")]) {
        return;
    }
    let home = Home::new();
    // The first sandbox of a process has it collect beside that.
    drop(home.sandbox());
    home.assert_settled();
    let mut helper = Helper::start_at_another_time("hold-one", &home.state());
    helper.next().unwrap();
    let [name] = &home.left()[..] else { panic!("{:?}", home.left()) };
    let record = fs::read_link(directory(&home, name.to_str().unwrap()).join("init")).unwrap();
    leave(&home, "left", record.to_str().unwrap());
    // By the clock of that, its init started before it was seen; here, after that.
    let named = Sandbox::create(Config { name: Some("left".to_owned()), ..home.config() });
    assert!(matches!(named, Err(Error::NameInUse { .. })));
    let begin = Instant::now();
    assert_eq!(collect(&home), ["left"]);
    assert!(begin.elapsed() >= Duration::from_secs(10), "{:?}", begin.elapsed());
    helper.finish();
}

/// Lets names mean directories that can't be entered and links to a file of the host, in turn.
const SWAP: &str = "import os, sys
os.chdir('/root')
def swap(i):
    for k in range(50):
        os.makedirs(f't{i}-{k}/x'); os.chmod(f't{i}-{k}', 0)
    os.symlink(sys.argv[1], f'l{i}')
    print(flush=True)
    while True:
        for k in range(50):
            t, u, l = f't{i}-{k}', f'u{i}', f'l{i}'
            try: os.rename(t, u); os.rename(l, t); os.rename(t, l); os.rename(u, t)
            except OSError: pass
for i in range(4):
    if os.fork() == 0: swap(i)
os.wait()";

#[test]
fn the_collector_follows_no_link_of_a_guest_that_is_ending() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    fs::create_dir(home.path("host")).unwrap();
    let canary = home.path("host/canary");
    fs::write(&canary, "alive").unwrap();
    fs::set_permissions(&canary, fs::Permissions::from_mode(0o604)).unwrap();
    for _ in 0..5 {
        let mut helper = Helper::start("swap-for-ever", &home.state());
        helper.next().unwrap();
        // From before the end of its owner on.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(within(Duration::from_secs(20), || {
                    collect(&home);
                    home.left().is_empty()
                }));
            });
            helper.kill();
        });
        assert_eq!(fs::metadata(&canary).unwrap().permissions().mode() & 0o7777, 0o604);
    }
}

/// The helper of the test above.
pub(crate) fn swap_for_ever(state: &Path) {
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let sandbox = Sandbox::create(config).unwrap();
    let canary = state.parent().unwrap().join("host/canary");
    let mut python = sandbox.command("python3");
    python.args(["-c", SWAP]).arg(&canary);
    let mut child = python.stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
    say("swaps");
    let _ = std::io::stdin().read(&mut [0]);
}
