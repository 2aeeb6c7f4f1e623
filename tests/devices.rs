//! The devices of a sandbox are its own: what is done to them there is no one else's matter.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use adl_runtime::{Sandbox, Stdio};

use crate::harness::{Home, Need, adl, needs, shell, stderr};

/// Prints one line for each time that a device is opened meanwhile, from the first line of its
/// input to its end.
const WATCH: &str = "
import ctypes, os, select, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
OPEN = 0x20
watcher = libc.inotify_init1(os.O_NONBLOCK)
names = {}
for device in ['null', 'zero', 'full', 'random', 'urandom']:
    names[libc.inotify_add_watch(watcher, f'/dev/{device}'.encode(), OPEN)] = device
print('watching', flush=True)
sys.stdin.readline()
while select.select([watcher], [], [], 0)[0]:
    events = os.read(watcher, 65536)
    while events:
        watch, mask, cookie, length = struct.unpack_from('iIII', events)
        events = events[16 + length:]
        print(names[watch])
";

/// Starts to watch, has something done, and returns what was seen.
fn seen(sandbox: &Sandbox, act: impl FnOnce()) -> String {
    use std::io::{BufRead, BufReader, Read, Write};
    let mut watcher = sandbox.command("python3");
    watcher.args(["-c", WATCH]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = watcher.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "watching\n");
    act();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut seen = String::new();
    output.read_to_string(&mut seen).unwrap();
    assert!(child.wait().unwrap().success());
    seen
}

const OPEN_ALL: &str = "for device in null zero full random urandom; do : < /dev/$device; done";

#[test]
fn a_guest_does_not_see_who_else_opens_devices() {
    if !needs(&[Need::Root, Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let (sandbox, other) = (home.sandbox(), home.sandbox());
    let seen_of_others = seen(&sandbox, || {
        assert!(Command::new("sh").args(["-c", OPEN_ALL]).status().unwrap().success());
        shell(&other, OPEN_ALL);
    });
    assert_eq!(seen_of_others, "");
    // Those of the sandbox's own programs are seen.
    let seen_of_its_own = seen(&sandbox, || drop(shell(&sandbox, OPEN_ALL)));
    for device in ["null", "zero", "full", "random", "urandom"] {
        assert!(seen_of_its_own.contains(device), "{device}: {seen_of_its_own}");
    }
}

#[test]
fn a_guest_can_not_lock_devices_for_others() {
    if !needs(&[Need::Root, Need::Program("flock")]) {
        return;
    }
    let home = Home::new();
    let (sandbox, other) = (home.sandbox(), home.sandbox());
    let hold = "flock --exclusive /dev/null sh -c 'echo locked; exec sleep inf'";
    let mut holder = sandbox.shell(hold);
    let holder = holder.background().unwrap();
    let locked = || holder.partial_output().stdout == b"locked\n";
    assert!(crate::harness::within(std::time::Duration::from_secs(20), locked));
    let attempt = "flock --nonblock --exclusive /dev/null true";
    assert!(Command::new("sh").args(["-c", attempt]).status().unwrap().success());
    assert!(other.shell(attempt).status().unwrap().success());
    // For the sandbox's own programs it is locked.
    assert!(!sandbox.shell(attempt).status().unwrap().success());
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn a_guest_can_not_change_the_devices_of_others() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let (sandbox, other) = (home.sandbox(), home.sandbox());
    let look = "cd /dev; stat -c '%n %a %u %g %t %T %y' null zero full random urandom tty";
    let of_host = |name: &str| {
        let metadata = fs::metadata(format!("/dev/{name}")).unwrap();
        (metadata.mode(), metadata.mtime(), metadata.uid())
    };
    let names = ["null", "zero", "full", "random", "urandom", "tty"];
    let (before, of_other) = (names.map(of_host), shell(&other, look));
    let of_own = shell(&sandbox, look);
    shell(
        &sandbox,
        "cd /dev; touch -d @0 *m null zero full tty; chmod 600 null; chown 7:7 zero; rm full",
    );
    assert_eq!(names.map(of_host), before);
    assert_eq!(shell(&other, look), of_other);
    let changed = sandbox.shell(look).output().unwrap();
    assert_ne!(String::from_utf8(changed.stdout).unwrap(), of_own);
    // They are what they are called, and no more can be made.
    for (name, numbers) in names.iter().zip([
        "666 0 0 1 3",
        "666 0 0 1 5",
        "666 0 0 1 7",
        "666 0 0 1 8",
        "666 0 0 1 9",
        "666 0 0 5 0",
    ]) {
        assert!(of_other.contains(&format!("{name} {numbers} ")), "{name}: {of_other}");
    }
    let make = other.shell("mknod /dev/mine c 1 3").output().unwrap();
    assert!(String::from_utf8_lossy(&make.stderr).contains("Operation not permitted"));
}

#[test]
fn a_root_without_the_rights_that_it_takes_is_told_which() {
    if !needs(&[Need::Root, Need::Program("setpriv")]) {
        return;
    }
    let home = Home::new();
    let without = |set: &str| {
        let mut command = Command::new("setpriv");
        command.arg(format!("--bounding-set={set}")).arg(adl()).args(["run", "--", "true"]);
        command.env("ADL_STATE_DIR", home.state()).stdin(std::process::Stdio::null());
        command.output().unwrap()
    };
    assert!(without("+all").status.success());
    for right in
        ["chown", "dac_override", "fowner", "mknod", "setgid", "setuid", "sys_admin", "sys_ptrace"]
    {
        let output = without(&format!("-{right}"));
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(125), "{right}: {told}");
        assert!(told.contains(&format!("CAP_{}", right.to_uppercase())), "{right}: {told}");
    }
}
