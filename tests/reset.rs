//! A reset sandbox is as a new one, whatever was done in it, and as soon.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use adl_runtime::{Config, EndReason, Error, Sandbox, Stdio, Upper};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::census;
use crate::figures::percentile;
use crate::harness::{Home, Need, needs, processor_time, shell, within};
use crate::helper::{Helper, say};
use crate::lifetime::GONE;

/// Leaves something of every kind that a process can leave without a right to more.
pub(crate) const PLANT: &str = r#"
import ctypes, fcntl, os, signal, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
for path in ['/tmp/planted', '/root/planted', '/etc/planted', '/usr/planted', '/dev/shm/planted',
             '/run/planted', '/var/tmp/planted', '/dev/mqueue/planted']:
    open(path, 'w').close()
os.unlink('/etc/hosts')
if os.access('/usr/bin', os.W_OK): os.unlink('/usr/bin/env')
open('/etc/passwd', 'a').write('planted:x:7:7::/:\n')
os.chmod('/var', 0o700)
os.makedirs('/opt/a/b'); os.chmod('/opt/a', 0)
for get, size in ((libc.shmget, 4096), (libc.semget, 1)):
    assert get(77, size, 0o1666) >= 0
assert libc.msgget(77, 0o1666) >= 0
lease = os.open('/root/leased', os.O_CREAT | os.O_RDONLY)
try: fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)
except OSError: pass  # The filter has none.
os.set_inheritable(lease, True)
open('/dev/shm/sem.planted', 'w').close()
# add_key(2), where it is allowed at all.
libc.syscall(248, b'user', b'planted', b'x', 1, -4)
sockets = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_INET)]
for s, address in zip(sockets, ('\0planted', ('127.0.0.1', 7777))):
    s.bind(address); s.listen(); s.set_inheritable(True)
for code in ('import time; time.sleep(1000)',
             'while True: open("/tmp/written", "a").write("x" * 4096)'):
    subprocess.Popen([sys.executable, '-c', code], start_new_session=True, close_fds=False)
print('planted')
"#;

/// Prints what of that it finds.
pub(crate) const FIND: &str = r#"
import ctypes, os, socket
libc = ctypes.CDLL(None)
found = [path for path in ['/tmp/planted', '/root/planted', '/etc/planted', '/usr/planted',
    '/dev/shm/planted', '/run/planted', '/var/tmp/planted', '/dev/mqueue/planted', '/opt/a',
    '/tmp/written', '/dev/shm/sem.planted', '/root/leased'] if os.path.lexists(path)]
found += ['no ' + path for path in ['/etc/hosts', '/usr/bin/env'] if not os.path.lexists(path)]
if 'planted' in open('/etc/passwd').read(): found.append('user')
if os.stat('/var').st_mode & 0o777 != 0o755: found.append('mode')
for name, get, size in (('shm', libc.shmget, 0), ('sem', libc.semget, 0)):
    if get(77, size, 0) >= 0: found.append(name)
if libc.msgget(77, 0) >= 0: found.append('msg')
if os.path.exists('/root/leased'):
    # With a lease, no one can write at once.
    try: os.close(os.open('/root/leased', os.O_WRONLY | os.O_NONBLOCK))
    except BlockingIOError: found.append('lease')
if libc.syscall(249, b'user', b'planted', None, -4) >= 0: found.append('key')
for family, address in ((socket.AF_UNIX, '\0planted'), (socket.AF_INET, ('127.0.0.1', 7777))):
    if socket.socket(family).connect_ex(address) == 0: found.append(str(family))
if len([p for p in os.listdir('/proc') if p.isdigit()]) != 2: found.append('processes')
print(*found, sep='\n')
"#;

pub(crate) fn python(sandbox: &Sandbox, script: &str) -> String {
    let output = sandbox.command("python3").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Both kinds of uppers.
pub(crate) fn uppers() -> [Upper; 2] {
    [Upper::default(), Upper::Memory { size: 512 << 20 }]
}

#[test]
fn nothing_that_was_left_is_found_after_a_reset() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    for upper in uppers() {
        let sandbox = Sandbox::create(Config { upper, ..home.config() }).unwrap();
        assert_eq!(python(&sandbox, FIND), "\n");
        assert_eq!(python(&sandbox, PLANT), "planted\n");
        let members = census::tree(sandbox.init_pid());
        // Init and those two; and what reads the pipes that they hold, as long as it comes to that.
        assert!(members.len() >= 3, "{members:?}");
        // What looks for it sees it, all of it. With one id, /usr/bin belongs to no one inside.
        let planted = if sandbox.id_range().is_some() { 22 } else { 21 };
        assert_eq!(python(&sandbox, FIND).lines().count(), planted, "{}", python(&sandbox, FIND));
        sandbox.reset().unwrap();
        assert!(members.iter().all(|process| !process.exists()), "{members:?}");
        assert_eq!(python(&sandbox, FIND), "\n");
    }
}

/// A sum over all names, modes, owners, contents and links of the root file system.
const TREE: &str = "cd / && find . usr/local -xdev \\( -path ./proc -o -path ./dev \\) -prune -o \
    -printf '%p %y %m %U %G %l\\n' | LC_ALL=C sort | sha256sum; \
    find etc root tmp var home opt srv run -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";

#[test]
fn the_tree_is_that_of_the_image_after_any_writes() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let new = shell(&sandbox, TREE);
    for round in 0..20 {
        // Another mess each time, and writers that go on.
        let mess = format!(
            "RANDOM={round}; cd /; for i in {{1..20}}; do
                d=$(shuf -n1 -e tmp etc var root opt usr/local); mkdir -p $d/x$RANDOM/y
                echo $RANDOM > $d/f$RANDOM; mv $d/f* $d/x*/ 2>/dev/null
                rm -rf $(shuf -n1 -e etc/ssl var/log srv home); chmod $((RANDOM % 8))00 $d
            done; (while :; do echo > /tmp/w$RANDOM; done) & exit 0"
        );
        sandbox.shell(mess).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert_ne!(shell(&sandbox, TREE), new, "round {round}");
        sandbox.reset().unwrap();
        assert_eq!(shell(&sandbox, TREE), new, "round {round}");
    }
}

#[test]
fn the_tree_is_that_of_the_image_beside_writers() {
    sums_are_the_same(25);
}

/// Makes sure that so many resets in a row leave nothing of what random writers do.
pub(crate) fn sums_are_the_same(rounds: u32) {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::of_a_test_that_takes(Duration::from_secs(10) * rounds);
    let sandbox = home.sandbox();
    let mut watch = sandbox.command("python3");
    let new = watch.args(["-c", WRITE_AND_SUM, "-1"]).output().unwrap().stdout;
    assert!(new.len() > 60, "{new:?}");
    for round in 0..rounds {
        // The sum is that of before its own writes, and of what the last round's left.
        let mut command = sandbox.command("python3");
        let output = command.args(["-c", WRITE_AND_SUM, &round.to_string()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, new, "round {round}");
        sandbox.reset().unwrap();
    }
}

/// Prints a sum over all of the root file system but most of /usr, then changes it at random,
/// another way for each number, and leaves processes that go on to; none of it for a negative
/// number.
const WRITE_AND_SUM: &str = r#"
import hashlib, os, random, shutil, stat, sys
sum = hashlib.sha256()
def walk():
    for path, names, files in os.walk('/'):
        names[:] = sorted(set(names) - {'proc', 'dev', 'usr'} if path == '/' else names)
        yield path, names, files
for path, names, files in [*os.walk('/usr/local'), ('/usr', os.listdir('/usr'), []), *walk()]:
    for name in sorted(names + files):
        full = os.path.join(path, name)
        s = os.lstat(full)
        sum.update(repr((full, s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_size)).encode())
        if stat.S_ISREG(s.st_mode): sum.update(open(full, 'rb').read())
        if stat.S_ISLNK(s.st_mode): sum.update(os.readlink(full).encode())
print(sum.hexdigest(), flush=True)
seed = int(sys.argv[1])
if seed < 0: sys.exit()
random.seed(seed)
tops = ['/usr/local', '/etc', '/var', '/tmp', '/opt', '/srv', '/root']
places = [place for top in tops for place, _, _ in os.walk(top)]
def change():
    place = random.choice(places)
    new = os.path.join(place, str(random.randrange(1 << 30)))
    try:
        what = random.randrange(7)
        if what == 0: open(new, 'wb').write(random.randbytes(random.randrange(9000)))
        if what == 1: os.makedirs(new + '/a/b')
        if what == 2: os.chmod(place, random.choice([0, 0o700, 0o1777]))
        if what == 3: os.symlink('/etc/passwd', new)
        old = os.path.join(place, random.choice(os.listdir(place)))
        if what == 4: os.rename(old, new)
        if what == 5: os.link(old, new)
        if what == 6: shutil.rmtree(old) if os.path.isdir(old) else os.unlink(old)
    except (OSError, IndexError): pass
for _ in range(12): change()
for _ in range(2):
    if os.fork() == 0:
        os.setsid(); os.closerange(0, 3)
        while True: change()
os._exit(0)
"#;

#[test]
fn flags_that_forbid_removal_forbid_none() {
    if !needs(&[Need::Root, Need::Program("chattr")]) {
        return;
    }
    let home = Home::new();
    let name = Some("flags".to_owned());
    let sandbox = Sandbox::create(Config { name, ..home.config() }).unwrap();
    shell(&sandbox, "mkdir -p /root/a/b; echo > /root/a/b/file; echo > /root/log; chmod 0 /root/a");
    let upper = home.state().join("sandboxes/flags/0.upper/root");
    for (flag, path) in [("+i", "a/b/file"), ("+i", "a/b"), ("+i", "a"), ("+a", "log"), ("+i", "")]
    {
        let mut chattr = std::process::Command::new("chattr");
        crate::harness::succeeds(chattr.arg(flag).arg(upper.join(path)));
    }
    // Control: so it can't be removed.
    assert!(std::fs::remove_dir_all(upper.join("a")).is_err());
    sandbox.reset().unwrap();
    adl_runtime::finish_removals();
    assert_eq!(home.left(), ["flags"]);
    assert_eq!(shell(&sandbox, "ls /root"), "");
}

#[test]
fn who_it_is_stays() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let config =
        Config { name: Some("kept".into()), hostname: Some("host".into()), ..home.config() };
    let sandbox = Sandbox::create(config).unwrap();
    let (ids, pid) = (sandbox.id_range(), sandbox.init_pid());
    for _ in 0..3 {
        sandbox.reset().unwrap();
        assert_eq!((sandbox.name(), sandbox.id_range()), ("kept", ids));
        assert_eq!(shell(&sandbox, "uname -n"), "host\n");
        assert_ne!(sandbox.init_pid(), pid);
        // No moment without its name: it is no one else's.
        let taken = Sandbox::create(Config { name: Some("kept".into()), ..home.config() });
        assert!(matches!(taken, Err(Error::NameInUse { .. })), "{taken:?}");
        // And no collector takes it.
        assert_eq!(adl_runtime::collect_garbage(Some(&home.state())).unwrap(), [""; 0]);
    }
    sandbox.delete().unwrap();
    let again = Sandbox::create(Config { name: Some("kept".into()), ..home.config() }).unwrap();
    again.delete().unwrap();
}

#[test]
fn commands_that_run_are_told_of_a_reset() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut child = sandbox.command("sleep").arg("1000").spawn().unwrap();
    let mut reader = sandbox.shell("echo; exec sleep 1000").stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = reader.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    let job = sandbox.command("sleep").arg("1000").background().unwrap();
    assert_eq!(sandbox.jobs().len(), 1);
    sandbox.reset().unwrap();
    assert_eq!(child.wait().unwrap().reason(), EndReason::SandboxDied);
    assert_eq!(reader.wait().unwrap().reason(), EndReason::SandboxDied);
    assert_eq!(job.wait().unwrap().status.reason(), EndReason::SandboxDied);
    assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
    assert_eq!(sandbox.jobs().len(), 0);
    assert!(sandbox.command("true").status().unwrap().success());
    // What they hold on to is the old one: a signal reaches nothing in the new one.
    let survivor = sandbox.command("sleep").arg("1000").background().unwrap();
    child.kill().unwrap();
    job.kill().unwrap();
    assert_eq!(survivor.try_wait().unwrap(), None);
}

#[test]
fn a_sandbox_that_has_died_is_alive_after_a_reset() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "echo > /tmp/file");
    kill(Pid::from_raw(sandbox.init_pid()), Signal::SIGKILL).unwrap();
    assert!(within(GONE, || !sandbox.is_alive()));
    let died = sandbox.command("true").status();
    assert!(matches!(died, Err(Error::SandboxDied)), "{died:?}");
    sandbox.reset().unwrap();
    assert!(sandbox.is_alive());
    assert_eq!(shell(&sandbox, "ls /tmp"), "");
}

#[test]
fn a_reset_that_fails_can_be_made_again() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let (sandboxes, away) = (home.state().join("sandboxes"), home.path("away"));
    // No directory can be made where there is none to make it in.
    std::fs::rename(&sandboxes, &away).unwrap();
    let blocked = home.sandbox();
    std::fs::remove_dir_all(&sandboxes).unwrap();
    let blocked = blocked;
    let failed = blocked.reset();
    assert!(failed.is_err(), "{failed:?}");
    // Nothing was ended for it.
    assert_eq!(shell(&blocked, "echo alive"), "alive\n");
    drop(blocked);
    std::fs::rename(&away, &sandboxes).unwrap();
    sandbox.reset().unwrap();
    assert!(sandbox.command("true").status().unwrap().success());
}

#[test]
fn a_full_upper_is_the_guests_trouble_alone() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let upper = Upper::Memory { size: 4 << 20 };
    let sandbox = Sandbox::create(Config { upper, ..home.config() }).unwrap();
    for fill in [
        "head -c 64m /dev/zero > /tmp/large",
        "i=0; while : > /tmp/$i; do i=$((i + 1)); done; exit 1",
        "head -c 256m /dev/zero > /dev/shm/large",
    ] {
        let output = sandbox.shell(fill).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains("No space left"), "{fill}: {stderr}");
        assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
        sandbox.reset().unwrap();
        assert_eq!(shell(&sandbox, "ls /tmp /dev/shm"), "/dev/shm:\n\n/tmp:\n");
    }
}

/// What makes a reset wait, where it does: programs in Python. Each makes a part of it: one of so
/// many.
pub(crate) fn large(part: u32) -> [(&'static str, String); 5] {
    let (directories, depth, links) = (1000 / part, 50_000 / part, 5000 / part);
    let (closed, mebibytes) = (500 / part, 256 / part);
    [
        (
            "100,000 files in 1,000 directories",
            format!(
                "for d in range({directories}):\n os.mkdir(f'/tmp/{{d}}')\n \
                 for f in range(100):\n  open(f'/tmp/{{d}}/{{f}}', 'w').write('x')"
            ),
        ),
        (
            "a tree that is 50,000 deep",
            format!("os.chdir('/tmp')\nfor _ in range({depth}):\n os.mkdir('d'); os.chdir('d')"),
        ),
        (
            "5 GiB in a file, most of it holes, and 5,000 links to one",
            format!(
                "open('/tmp/a', 'w').truncate(5 << 30)\n\
                 for n in range({links}): os.link('/tmp/a', f'/tmp/{{n}}')"
            ),
        ),
        (
            "directories that no one may enter",
            format!(
                "for d in range({closed}):\n os.makedirs(f'/tmp/{{d}}/x/y'); \
                 os.chmod(f'/tmp/{{d}}/x', 0)"
            ),
        ),
        (
            "256 MiB, and a writer that goes on",
            format!(
                "f = open('/tmp/large', 'wb')\nfor _ in range({mebibytes}): f.write(bytes(1 << 20))\n\
                 if os.fork() == 0:\n os.setsid(); os.close(1); os.close(2)\n \
                 while True: f.write(bytes(1 << 20)); f.seek(0)"
            ),
        ),
    ]
}

#[test]
fn a_reset_takes_as_long_whatever_there_was() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    for upper in uppers() {
        let mut sandbox = Sandbox::create(Config { upper, ..home.config() }).unwrap();
        let reset = |sandbox: &mut Sandbox| processor_time(|| sandbox.reset().unwrap()).0;
        let mut small: Vec<_> = (0..20).map(|_| reset(&mut sandbox)).collect();
        let small = percentile(&mut small, 50);
        for (what, make) in large(10) {
            python(&sandbox, &format!("import os\n{make}"));
            let large = reset(&mut sandbox);
            adl_runtime::finish_removals();
            eprintln!("{upper:?}: {what}: {large:?}, a small one {small:?}");
            let limit = small.max(Duration::from_millis(4)) * 5;
            assert!(large < limit, "{upper:?}: {what}: {large:?}, a small one {small:?}");
        }
    }
    // The control: to remove the least of that where it was takes longer.
    for directory in 0..100 {
        let directory = home.path(format!("many/{directory}"));
        std::fs::create_dir_all(&directory).unwrap();
        (0..100).for_each(|file| std::fs::write(directory.join(file.to_string()), "x").unwrap());
    }
    let (many, ()) = processor_time(|| std::fs::remove_dir_all(home.path("many")).unwrap());
    assert!(many > Duration::from_millis(4) * 5, "{many:?}");
}

#[test]
fn what_a_dead_caller_was_resetting_is_collected() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for round in 0..20 {
        let mut helper = Helper::start("reset-for-ever", &home.state());
        // Somewhere in the middle, another place each time.
        for _ in 0..=round {
            helper.next().unwrap();
        }
        let members = helper.stop_and_kill();
        let gone = || members.iter().all(|process| !process.exists());
        assert!(crate::harness::within(GONE, gone), "{members:?}");
        let removed = adl_runtime::collect_garbage(Some(&home.state())).unwrap();
        assert!(removed.iter().any(|name| name == "mine"), "{removed:?}");
        assert_eq!(home.left(), [""; 0]);
    }
}

/// The helper of the test above.
pub(crate) fn reset_for_ever(state: &Path) {
    let name = Some("mine".to_owned());
    let config = Config { name, state_directory: Some(state.to_owned()), ..Config::default() };
    let sandbox = Sandbox::create(config).unwrap();
    loop {
        shell(&sandbox, "mkdir -p /tmp/a/b; echo > /tmp/a/b/c");
        say("resetting");
        sandbox.reset().unwrap();
    }
}
