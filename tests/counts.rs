//! What the kernel counts for the machine or by user, a guest can't use up for others.
//!
//! `SECURITY.md` has the table; here is a test for each row. `counts.c` takes as much as it gets of
//! one kind and holds it, while others try to have some. What is refused inside is tried where
//! nothing refuses it, too, or the refusal would prove nothing.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::time::{Duration, Instant};

use adl_runtime::{Access, Config, EndReason, Limits, Mount, Sandbox, Seccomp};

use crate::census;
use crate::harness::{Home, Need, OrdinaryUser, needs, succeeds};
use crate::jobs::alone;
use crate::limits::{MIB, memory};

/// Where the program is inside.
const PROGRAM: &str = "/tmp/counts";

const ENOENT: i32 = 2;
const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;
const ENOSYS: i32 = 38;
const EPROTONOSUPPORT: i32 = 93;
const ESOCKTNOSUPPORT: i32 = 94;
const EOPNOTSUPP: i32 = 95;

/// Compiles the program.
fn compile(directory: &Path) -> PathBuf {
    let program = directory.join("counts");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("counts.c");
    let mut gcc = process::Command::new("gcc");
    succeeds(gcc.args(["-O1", "-w", "-o"]).arg(&program).arg(source));
    program
}

/// A home with the program in it.
fn home_with_program() -> (Home, PathBuf) {
    let home = Home::new();
    let directory = home.path("program");
    fs::create_dir(&directory).unwrap();
    let program = compile(&directory);
    (home, program)
}

fn config(home: &Home, program: &Path) -> Config {
    let mounts = vec![Mount::volume(program, PROGRAM, Access::ReadOnly)];
    Config { mounts, ..home.config() }
}

/// What the program said: how many it took, why no more, and how many bytes that were.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    count: u64,
    errno: i32,
    bytes: u64,
}

impl Taken {
    fn read(line: &str) -> Self {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().unwrap());
        let mut next = || numbers.next().unwrap();
        Self { count: next(), errno: i32::try_from(next()).unwrap(), bytes: next() }
    }
}

/// Takes up to so many of a kind, inside, and lets go of them.
fn take(sandbox: &Sandbox, arguments: &str) -> Taken {
    let output = sandbox.command(PROGRAM).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", output.status);
    Taken::read(std::str::from_utf8(&output.stdout).unwrap())
}

/// Takes up to so many of a kind, inside, and holds them until its input is closed.
fn hold(sandbox: &Sandbox, arguments: &str) -> (Taken, adl_runtime::Child) {
    let mut command = sandbox.command(PROGRAM);
    command.args(arguments.split(' ')).stdin(adl_runtime::Stdio::piped());
    let mut child = command.stdout(adl_runtime::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Taken::read(&line), child)
}

/// Takes up to so many of a kind, outside, and lets go of them.
fn take_outside(program: &Path, arguments: &str) -> Taken {
    let mut command = process::Command::new(program);
    Taken::read(&succeeds(command.args(arguments.split(' ')).stdin(Stdio::null())))
}

/// What is refused inside, with which error, and whether it must work without a filter.
const REFUSED: [(&str, i32, bool); 15] = [
    ("aio", ENOSYS, true),
    // Where none are reserved, the kernel gives none either.
    ("huge-pages", ENOMEM, false),
    ("huge-memfd", EINVAL, true),
    ("huge-shm", ENOMEM, false),
    ("lease", EINVAL, true),
    ("dnotify", EINVAL, true),
    ("key", ENOSYS, true),
    ("line-discipline 1 0", EINVAL, true),
    // Family, type, protocol, two digits each: the types of SCTP and DCCP, and SOCK_PACKET.
    ("socket 1 20500", ESOCKTNOSUPPORT, false),
    ("socket 1 20600", ESOCKTNOSUPPORT, false),
    ("socket 1 100500", ESOCKTNOSUPPORT, false),
    ("socket 1 21000", ESOCKTNOSUPPORT, true),
    // A stream by UDP and a datagram by TCP, which the kernel itself refuses after modprobe.
    ("socket 1 20117", EPROTONOSUPPORT, false),
    ("socket 1 20206", EPROTONOSUPPORT, false),
    ("socketpair 1 20100", EOPNOTSUPP, false),
];

#[test]
fn what_is_counted_for_the_whole_machine_is_refused() {
    if !needs(&[Need::Program("gcc")]) {
        return;
    }
    let (home, program) = home_with_program();
    let sandbox = Sandbox::create(config(&home, &program)).unwrap();
    let unconfined = Config { seccomp: Seccomp::Unconfined, ..config(&home, &program) };
    let unconfined = Sandbox::create(unconfined).unwrap();
    for (kind, errno, works) in REFUSED {
        assert_eq!(take(&sandbox, kind), Taken { count: 0, errno, bytes: 0 }, "{kind}");
        if works {
            assert_eq!(take(&unconfined, kind).count, 1, "{kind}");
        }
    }
    // What programs use of the same calls.
    for kind in ["socket 1 10500", "socketpair 1 10500", "socket 1 20100", "memfd"] {
        assert_eq!(take(&sandbox, kind).count, 1, "{kind}");
    }
    // Of the pressure of the machine nothing can be asked to be told.
    assert_eq!(take(&sandbox, "pressure").errno, ENOENT);
    if Path::new("/proc/pressure").exists() && nix::unistd::geteuid().is_root() {
        assert_eq!(take_outside(&program, "pressure").count, 1);
    }
}

/// What the kernel counts by the user who made a user namespace, and by user id.
const BY_USER: [&str; 5] =
    ["inotify 200", "pending 200000", "queue 20", "in-flight 200", "pipe-pages 80"];

#[test]
fn a_sandbox_takes_nothing_of_what_others_have_by_user() {
    if !needs(&[Need::Root, Need::Program("gcc")]) {
        return;
    }
    let (home, program) = home_with_program();
    let attacker = Sandbox::create(config(&home, &program)).unwrap();
    let neighbour = Sandbox::create(config(&home, &program)).unwrap();
    for kind in BY_USER {
        let (taken, mut child) = hold(&attacker, kind);
        assert_ne!(taken.errno, 0, "{kind}: there is no bound: {taken:?}");
        // Another of the same sandbox's: they are all gone.
        let more = take(&attacker, kind);
        assert!(more.count <= taken.count / 2, "{kind}: {taken:?}, {more:?}");
        let others = take(&neighbour, kind);
        assert!(others.count + 100 >= taken.count, "{kind}: {taken:?}, {others:?}");
        // And root's own; what tests do beside this is not counted on.
        assert!(take_outside(&program, kind).count > 0, "{kind}");
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
    let instances = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap();
    let taken = take(&neighbour, "inotify 200");
    assert_eq!(taken.count, instances.trim().parse::<u64>().unwrap().min(200));
}

#[test]
fn sandboxes_of_an_ordinary_user_share_what_is_counted_by_user() {
    if !needs(&[Need::Program("gcc")]) {
        return;
    }
    let user = OrdinaryUser::new();
    let directory = crate::harness::temporary_directory();
    let program = compile(directory.path());
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory.path(), open).unwrap();
    let run = || {
        let mut command = user.command(user.adl());
        let volume = format!("{}:{PROGRAM}:ro", program.display());
        command.args(["run", "-v", &volume, "--", PROGRAM, "inotify", "200"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (Taken::read(&line), child)
    };
    let (first, mut holder) = run();
    let (second, mut other) = run();
    for child in [&mut other, &mut holder] {
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(first.errno, EMFILE, "{first:?}");
    assert!(second.count < first.count / 2, "no longer shared: {first:?}, {second:?}");
}

#[test]
fn what_a_sandbox_has_of_its_own_is_bounded() {
    if !needs(&[Need::Program("gcc")]) {
        return;
    }
    let (home, program) = home_with_program();
    let attacker = Sandbox::create(config(&home, &program)).unwrap();
    let neighbour = Sandbox::create(config(&home, &program)).unwrap();
    let (_, files) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    for (kind, most, errno) in [
        ("terminal 200", 64, ENOSPC),
        ("inode 20000", 16_384, ENOSPC),
        ("file 2000000", files, EMFILE),
        ("queue 300", 256, EMFILE),
    ] {
        let (taken, mut child) = hold(&attacker, kind);
        assert!(taken.count <= most && taken.errno == errno, "{kind}: {taken:?}");
        let others = take(&neighbour, kind);
        assert!(others.count + 16 >= taken.count, "{kind}: {taken:?}, {others:?}");
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn buffers_of_sockets_and_shared_memory_count_where_memory_is_limited() {
    if !needs(&[Need::Cgroups, Need::Program("gcc")]) {
        return;
    }
    let (home, program) = home_with_program();
    let with =
        |limits: Limits| Sandbox::create(Config { limits, ..config(&home, &program) }).unwrap();
    let (limited, free) = (with(memory(64 * MIB)), with(Limits::default()));
    for kind in ["datagrams 32", "streams 32", "unix-bytes 32"] {
        let output = limited.command(PROGRAM).args(kind.split(' ')).output().unwrap();
        if output.status.reason() != EndReason::OutOfMemory {
            let taken = Taken::read(std::str::from_utf8(&output.stdout).unwrap());
            assert!(taken.bytes <= 68 * MIB, "{kind}: {taken:?}");
        }
        // The control.
        assert!(take(&free, kind).bytes >= 100 * MIB, "{kind}");
    }
    let output = limited.command(PROGRAM).args(["shared-memory", "100"]).output().unwrap();
    assert_eq!(output.status.reason(), EndReason::OutOfMemory, "{}", output.status);
    assert_eq!(take(&free, "shared-memory 100").count, 100);
}

#[test]
fn no_number_of_descriptors_makes_an_end_slow() {
    if !needs(&[Need::Program("gcc")]) {
        return;
    }
    let _alone = alone();
    let (home, program) = home_with_program();
    for kind in [
        "pressure 800",
        "watching 200",
        "epoll-nest 5000",
        "tcp-listening 5000",
        "multicast 5000",
        "unix-pair 2500",
        "in-flight 80",
        "timerfd 5000",
        "memfd 5000",
        "timer 50000",
    ] {
        let sandbox = Sandbox::create(config(&home, &program)).unwrap();
        let (taken, _child) = hold(&sandbox, kind);
        assert!(taken.count > 0 || kind.starts_with("pressure"), "{kind}: {taken:?}");
        let begin = Instant::now();
        sandbox.delete().unwrap();
        // 800 triggers of /proc/pressure took 11 s and more.
        assert!(begin.elapsed() < Duration::from_secs(10), "{kind}: {:?}", begin.elapsed());
    }
}

/// Sends init a signal that tells of no child, for ever.
const FOR_NOTHING: &str = "import os
print('go', flush=True)
for _ in range(2): os.fork()
while True: os.kill(1, 17)";

/// Stops, for ever, as what init traces, who lets it go on.
const TRACED: &str = "import ctypes, os
libc = ctypes.CDLL(None)
print('go', flush=True)
while True:
    libc.ptrace(0, 0, 0, 0)
    os.kill(os.getpid(), 28)";

#[test]
fn signals_that_tell_of_nothing_do_not_keep_init_busy() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    for script in [FOR_NOTHING, TRACED] {
        keep_busy(&sandbox, script);
    }
}

fn keep_busy(sandbox: &Sandbox, script: &str) {
    let mut command = sandbox.command("python3");
    let command = command.args(["-c", script]).stdout(adl_runtime::Stdio::piped());
    let mut attack = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(attack.stdout.take().unwrap()).read_line(&mut line).unwrap();
    // How often init has gone to sleep, which it does after each time that it was woken.
    let wakes = || {
        let switches = census::status(sandbox.init_pid(), "voluntary_ctxt_switches").unwrap();
        switches.trim().parse::<u64>().unwrap()
    };
    let (before, begin) = (wakes(), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    assert!(attack.try_wait().unwrap().is_none());
    let (woken, seconds) = (wakes() - before, begin.elapsed().as_secs_f64());
    // Once in 20 ms by the clock, and once by the signal after that.
    assert!(f64::from(u32::try_from(woken).unwrap()) <= 120.0 * seconds + 40.0, "{woken} times");
    // What ends meanwhile is told.
    for _ in 0..5 {
        assert!(sandbox.command("true").status().unwrap().success());
    }
    attack.handle().kill().unwrap();
    attack.wait().unwrap();
}
