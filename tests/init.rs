//! PID 1 of a sandbox can be neither read, nor steered, nor ended from inside.
//!
//! Each attempt is made from inside, and beside it stands a control: the same attempt where it
//! must succeed, or its failure would prove nothing.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use adl_runtime::{
    Capabilities, Capability, Child, Config, EndReason, Sandbox, Scope, Seccomp, Stdio,
};

use crate::census;
use crate::harness::{Home, Need, OrdinaryUser, at_most, needs, shell, succeeds, within};
use crate::lifetime::GONE;

/// Asks for an answer as any caller would: init is alive and does its work.
#[track_caller]
fn assert_answers(sandbox: &Sandbox) {
    let begin = Instant::now();
    assert_eq!(shell(sandbox, "echo alive"), "alive\n");
    assert!(
        begin.elapsed() < at_most(Duration::from_secs(2)),
        "answered after {:?}",
        begin.elapsed()
    );
}

/// What `/proc` has of a process that its owner alone may read.
const PRIVATE_FILES: [&str; 6] = ["environ", "maps", "mem", "io", "auxv", "pagemap"];
const PRIVATE_LINKS: [&str; 8] =
    ["exe", "root", "cwd", "ns/mnt", "ns/pid", "ns/user", "ns/net", "fd/0"];

#[test]
fn nothing_of_init_can_be_read_through_proc() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let of_root = nix::unistd::geteuid().is_root();
    let users = if of_root { &[0, 1000, 65_534][..] } else { &[0] };
    let attempt = |target: &str, uid: u32| {
        let files = PRIVATE_FILES.map(|name| match name {
            // Its beginning is mapped in no process.
            "mem" => format!("(: < /proc/{target}/mem) && echo mem"),
            name => format!("head -c 8 /proc/{target}/{name} > /dev/null && echo {name}"),
        });
        let links = PRIVATE_LINKS.map(|l| format!("readlink /proc/{target}/{l} && echo {l}"));
        let others = [
            format!("readlink /proc/{target}/fd/* | grep . && echo fd"),
            format!("ls /proc/{target}/map_files/* && echo map_files"),
            format!("ls /proc/{target}/root/ && echo through root"),
            format!("(cd /proc/{target}/cwd) && echo through cwd"),
            format!("(echo -n x > /proc/{target}/comm) && echo comm"),
        ];
        let mut all = [&files[..], &links[..], &others[..]].concat();
        if of_root {
            // Where root inside has the one id that init has too, it can count init's
            // descriptors.
            all.push(format!("ls /proc/{target}/fd/ && echo numbers of fd"));
        }
        let script = all.join("; ");
        let output = sandbox.shell(script).uid(uid).gid(uid).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for uid in users {
        assert_eq!(attempt("1", *uid), "", "uid {uid}");
        // Control.
        let own = attempt("self", *uid);
        let got = |name: &&str| own.lines().any(|line| line == *name);
        for name in PRIVATE_FILES.iter().chain(&PRIVATE_LINKS).chain(&["fd", "through root"]) {
            assert!(got(name), "control: {name} of the job itself as {uid}: {own}");
        }
    }
}

/// Looks at the process `target` and at one of its own, in each way that there is to see or change
/// what another process has: a line for each way that works, with what it was tried on.
const LOOK: &str = r#"
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    arguments = [ctypes.c_long(value) for value in arguments]
    return libc.syscall(ctypes.c_long(number), *arguments, *[ctypes.c_long(0)] * 2)
class Piece(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('size', ctypes.c_size_t)]
buffer = ctypes.create_string_buffer(8)
here = ctypes.addressof(buffer)
def places(pid):
    # Where init has its code, and what a child has where its parent has it.
    return [0x200000, 0x201000, 0x400000] if pid == target else [here]
def vm(number, pid):
    ours = Piece(here, 8)
    for place in places(pid):
        theirs = Piece(place, 8)
        one, other = ctypes.addressof(ours), ctypes.addressof(theirs)
        if call(number, pid, one, 1, other, 1) == 8: return True
def seize(request):
    def act(pid):
        if call(101, request, pid, 0, 0): return False
        if request == 0x4206: call(101, 0x4207, pid, 0, 0)
        os.waitpid(pid, 0x40000000)
        return call(101, 17, pid, 0, 0) == 0
    return act
def descriptor(pid):
    # Descriptors 0 to 15: pidfd_open, pidfd_getfd.
    pidfd = call(434, pid, 0)
    return pidfd >= 0 and any(call(438, pidfd, number, 0) >= 0 for number in range(16))
def opens(name, flags):
    def act(pid):
        try: os.close(os.open(f'/proc/{pid}/{name}', flags)); return True
        except OSError: return False
    return act
def writes(name, what):
    def act(pid):
        try: file = os.open(f'/proc/{pid}/{name}', os.O_WRONLY)
        except OSError: return False
        try: return os.write(file, what) == len(what)
        except OSError: return False
        finally: os.close(file)
    return act
def lists(name):
    def act(pid):
        try: return bool(os.listdir(f'/proc/{pid}/{name}'))
        except OSError: return False
    return act
ways = {
    'seize': seize(0x4206), 'attach': seize(16),
    'readv': lambda pid: vm(310, pid), 'writev': lambda pid: vm(311, pid),
    'getfd': descriptor,
    'kcmp': lambda pid: call(312, pid, os.getpid(), 1, 0, 0) >= 0,
    'mem': opens('mem', os.O_RDWR), 'environ': opens('environ', os.O_RDONLY),
    'maps': opens('maps', os.O_RDONLY), 'score': opens('oom_score_adj', os.O_WRONLY),
    'fd': lists('fd'), 'root': lists('root'), 'limits': lambda pid: call(302, pid, 7, 0, here) == 0,
}
def look(pid, name):
    for way, act in ways.items():
        if act(pid): print(name, way, flush=True)
"#;

/// Ways to have a process be late.
const DELAY: &str = "
ones, zeros = [ctypes.create_string_buffer(byte * 8) for byte in (b'\\xff', b'\\0')]
ways |= {
    'slack': writes('timerslack_ns', b'50000'),
    'nice': lambda pid: call(141, 0, pid, 19) == 0,
    'affinity': lambda pid: call(203, pid, 8, ctypes.addressof(ones)) == 0,
    'policy': lambda pid: call(144, pid, 3, ctypes.addressof(zeros)) == 0,
    'ioprio': lambda pid: call(251, 1, pid, 3 << 13) == 0,
}";

/// Tries all on init, and then on a child.
fn look_at_init() -> String {
    format!(
        "{LOOK}{DELAY}
target = 1
look(1, 'init')
child = os.fork()
if child == 0: signal.pause()
look(child, 'own')
os.kill(child, 9)"
    )
}

/// What a process can do to another one of its own, whatever it holds: all but to change its slack,
/// which takes CAP_SYS_NICE, and to take a descriptor, for which there is a call only where the
/// filter has it.
const OWN: [&str; 16] = [
    "seize", "attach", "readv", "writev", "kcmp", "mem", "environ", "maps", "score", "fd", "root",
    "limits", "nice", "affinity", "policy", "ioprio",
];

#[track_caller]
fn assert_init_is_untouched(printed: &str, can_take_descriptors: bool, is_seen: &[&str]) {
    let of = |who: &str| -> Vec<String> {
        let lines = printed.lines().filter_map(|line| line.strip_prefix(who));
        lines.map(|way| way.trim().to_owned()).collect()
    };
    assert_eq!(of("init "), is_seen, "{printed}");
    // Control.
    let own = of("own ");
    assert!(OWN.iter().all(|way| own.iter().any(|done| done == way)), "control: {printed}");
    assert_eq!(own.iter().any(|way| way == "getfd"), can_take_descriptors, "{printed}");
}

#[test]
fn init_is_out_of_reach_of_whoever_may_trace() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let usual = Capabilities::default();
    let held = [Capability::SysPtrace, Capability::SysNice].map(|held| usual.with(held));
    for capabilities in [usual, held[0], held[1], Capabilities::ALL] {
        for seccomp in [Seccomp::Default, Seccomp::Unconfined] {
            let config = Config { seccomp, capabilities, ..home.config() };
            let is_filtered = seccomp == Seccomp::Default;
            // CAP_SYS_RESOURCE is the right to see any limits.
            let shows_limits = !is_filtered && capabilities == Capabilities::ALL;
            let shows_limits = shows_limits || !is_filtered && !nix::unistd::geteuid().is_root();
            let sandbox = Sandbox::create(config).unwrap();
            let output = sandbox.command("python3").args(["-c", &look_at_init()]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let printed = String::from_utf8(output.stdout).unwrap();
            let takes = !is_filtered || capabilities.contains(Capability::SysPtrace);
            let mut seen = if shows_limits { vec!["limits"] } else { vec![] };
            if !is_filtered && capabilities.contains(Capability::SysNice) {
                seen.extend(["nice", "affinity", "policy", "ioprio"]);
            }
            assert_init_is_untouched(&printed, takes, &seen);
            let changes_slack = printed.lines().any(|line| line == "own slack");
            assert_eq!(changes_slack, capabilities.contains(Capability::SysNice), "{printed}");
            assert_answers(&sandbox);
        }
    }
}

#[test]
fn an_ordinary_users_init_is_out_of_reach_of_whoever_may_trace() {
    if !needs(&[Need::Program("python3"), Need::Userns]) {
        return;
    }
    let user = OrdinaryUser::new();
    let run = |options: &[&str]| {
        let mut adl = user.command(user.adl());
        adl.arg("run").args(options).args(["--", "python3", "-c", &look_at_init()]);
        succeeds(&mut adl)
    };
    assert_init_is_untouched(&run(&[]), false, &[]);
    assert_init_is_untouched(&run(&["--cap-add", "SYS_PTRACE"]), true, &[]);
    // There the ids are the same, which is all that the kernel asks of who looks at limits.
    let options = ["--cap-add", "SYS_PTRACE", "--security-opt", "seccomp=unconfined"];
    assert_init_is_untouched(&run(&options), true, &["limits"]);
}

#[test]
fn init_is_out_of_reach_where_an_ordinary_user_has_a_range_of_ids() {
    if !needs(&[Need::Root, Need::Program("python3"), Need::Program("newuidmap")]) {
        return;
    }
    let user = OrdinaryUser::with_subordinate_ids();
    for who in ["0", "65534"] {
        let run = |options: &[&str]| {
            let mut adl = user.command(user.adl());
            adl.args(["run", "--ids", "65536", "--user", who]).args(options);
            succeeds(adl.args(["--", "python3", "-c", &look_at_init()]))
        };
        assert_init_is_untouched(&run(&[]), false, &[]);
        assert_init_is_untouched(&run(&["--cap-add", "SYS_PTRACE"]), true, &[]);
        // Init has ids as no one else has them.
        let unconfined = ["--cap-add", "SYS_PTRACE", "--security-opt", "seccomp=unconfined"];
        assert_init_is_untouched(&run(&unconfined), true, &[]);
    }
}

/// Waits for a process of a name and looks at it, from inside.
fn look_at(name: &str) -> String {
    format!(
        "{LOOK}
def named():
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            if open(f'/proc/{{pid}}/comm').read().strip() == '{name}' and pid != '1': return int(pid)
        except OSError: pass
while not (target := named()): pass
look(target, 'it')
print('seen', open(f'/proc/{{target}}/comm').read().strip())"
    )
}

#[test]
fn what_acts_for_the_host_inside_cannot_be_traced() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let usual = Capabilities::default();
    for capabilities in [usual, usual.with(Capability::SysPtrace)] {
        for seccomp in [Seccomp::Default, Seccomp::Unconfined] {
            let config = Config { seccomp, capabilities, ..home.config() };
            let sandbox = Sandbox::create(config).unwrap();
            shell(&sandbox, "head -c 10000000 /dev/zero > /file; sleep 1000 & exec sleep 1000 &");
            // It is there for as long as no one reads from it.
            let mut reader = sandbox.files().open_read("/file").unwrap();
            let mut command = sandbox.command("python3");
            let output = command.args(["-c", &look_at("adl-file")]).output().unwrap();
            let printed = String::from_utf8(output.stdout).unwrap();
            // The limits are those of the same ids, and to see them is no harm.
            let seen = ["it limits\n", ""].map(|limits| format!("{limits}seen adl-file\n"));
            assert!(seen.contains(&printed), "{printed}{}", stderr_of(&output.stderr));
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut content).unwrap();
            assert_eq!(content.len(), 10_000_000);
        }
    }
}

fn stderr_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_job_cannot_be_traced_before_its_program_runs() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    // It stops the next process as soon as it is there, until one still is a copy of init.
    let script = format!(
        "{LOOK}
print('ready', flush=True)
def caught():
    target = int(open('/proc/loadavg').read().split()[-1]) + 1
    for _ in range(1000):
        try: os.kill(target, signal.SIGSTOP); break
        except ProcessLookupError: pass
    # It came and went meanwhile.
    else: return None
    # What it has come to when it stands.
    try:
        while open(f'/proc/{{target}}/stat').read().rsplit(')')[-1].split()[0] != 'T': pass
        name = open(f'/proc/{{target}}/comm').read().strip()
    except OSError: return None
    if name == 'adl-init': return target
    os.kill(target, signal.SIGCONT)
while not (target := caught()): pass
look(target, 'it')
print('caught', flush=True)
os.kill(target, signal.SIGCONT)"
    );
    let home = Home::new();
    let usual = Capabilities::default();
    for capabilities in [usual, usual.with(Capability::SysPtrace)] {
        let config = Config { capabilities, ..home.config() };
        let sandbox = Sandbox::create(config).unwrap();
        let mut command = sandbox.command("python3");
        command.args(["-c", &script]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut attacker = command.spawn().unwrap();
        let mut lines = BufReader::new(attacker.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        // As many as it takes.
        let caught = within(Duration::from_secs(60), || {
            sandbox.command("true").status().unwrap();
            attacker.try_wait().unwrap().is_some()
        });
        assert!(caught);
        let printed: Vec<_> = lines.map(|line| line.unwrap()).collect();
        assert!(printed == ["it limits", "caught"] || printed == ["caught"], "{printed:?}");
        assert_answers(&sandbox);
    }
}

/// Traces the process that the first argument names, with the options that the second is, and never
/// looks after it.
const HOLD: &str = "import ctypes, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
print(libc.ptrace(0x4206, int(sys.argv[1]), 0, int(sys.argv[2])), flush=True)
signal.pause()";

/// A job and one that holds it up at its end: as a zombie that no one reaps, or, with
/// `PTRACE_O_TRACEEXIT`, before it is one.
fn hold(sandbox: &Sandbox, child: &Child, options: u32) -> Child {
    let (pid, options) = (child.id().as_raw().to_string(), options.to_string());
    let mut command = sandbox.command("python3");
    command.args(["-c", HOLD, &pid, &options]).stdout(Stdio::piped());
    let mut holder = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "0\n");
    holder
}

#[test]
fn a_tracer_holds_up_the_end_of_no_job() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    const TRACE_EXIT: u32 = 0x40;
    let home = Home::new();
    let capabilities = Capabilities::default().with(Capability::SysPtrace);
    let config = Config { capabilities, ..home.config() };
    let sandbox = Sandbox::create(config).unwrap();
    for options in [0, TRACE_EXIT] {
        // The job's time is up; then it is killed.
        for is_killed in [false, true] {
            let mut command = sandbox.command("sleep");
            command.arg("1000");
            if !is_killed {
                command.timeout(Duration::from_secs(3));
            }
            let mut job = command.spawn().unwrap();
            let mut holder = hold(&sandbox, &job, options);
            let begin = Instant::now();
            if is_killed {
                job.kill().unwrap();
            }
            let status = job.wait().unwrap();
            // Less than what init waits for one that the kernel has wait.
            let limit = if is_killed { 3 } else { 6 };
            assert!(begin.elapsed() < at_most(Duration::from_secs(limit)), "{:?}", begin.elapsed());
            assert_eq!(status.reason() == EndReason::TimedOut, !is_killed, "{status:?}");
            // It was held up.
            assert!(status.survivors(), "{options}: {status:?}");
            assert_answers(&sandbox);
            holder.kill().unwrap();
        }
    }
    // Reset and delete end what holds and what is held.
    for options in [0, TRACE_EXIT] {
        let mut job = sandbox.command("sleep").arg("1000").spawn().unwrap();
        let holder = hold(&sandbox, &job, options);
        job.signal(9, Scope::Process).unwrap();
        drop((job, holder));
        let begin = Instant::now();
        sandbox.reset().unwrap();
        assert!(begin.elapsed() < at_most(Duration::from_secs(5)), "{:?}", begin.elapsed());
    }
    let job = sandbox.command("sleep").arg("1000").spawn().unwrap();
    drop(hold(&sandbox, &job, 0));
    drop(job);
    sandbox.delete().unwrap();
}

/// `ask` has a process stop at its end, and tells how that went; some processes, of which each
/// asks for others; then all are left as they are.
const HOLD_EACH_OTHER: &str = "import ctypes, errno, os, signal, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
def ask(name, pid, request=0x4206, options=0x40):
    result = libc.ptrace(request, pid, 0, options)
    print(name, 'fine' if result == 0 else errno.errorcode[ctypes.get_errno()], flush=True)
def child(act):
    pid = os.fork()
    if pid == 0:
        act()
        signal.pause()
    return pid
parent = os.getpid()
read, write = os.pipe()
def be_parent():
    grandchild = child(lambda: None)
    os.write(write, b'%d ' % grandchild)
middle = child(be_parent)
grandchild = int(os.read(read, 100))
sibling = child(lambda: (ask('sibling', middle), ask('parent', parent), os.write(write, b'x')))
os.read(read, 1)
ask('grandchild', grandchild)
ask('init', 1)
ask('none', 4194304)
ask('nonsense', -1)
thread = threading.Thread(target=lambda: ask('thread', sibling))
thread.start()
thread.join()
# What it may: with all options, in two steps, and what it has attached to.
ask('child', middle, options=0x10003f | 0x40)
assert libc.ptrace(16, sibling, 0, 0) == 0
os.waitpid(sibling, 0)
ask('set', sibling, request=0x4200)
ask('older', sibling, request=21)
libc.ptrace(7, sibling, 0, 0)
# Killed now, they stop at their ends.
os.kill(middle, 9)
print('ready', flush=True)
signal.pause()";

#[test]
fn no_two_processes_can_hold_up_each_others_end() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let said = |sandbox: &Sandbox| {
        let mut command = sandbox.command("python3");
        command.args(["-c", HOLD_EACH_OTHER]).stdout(Stdio::piped());
        let mut job = command.spawn().unwrap();
        let lines = BufReader::new(job.stdout.take().unwrap()).lines();
        let lines: Vec<_> =
            lines.map(|line| line.unwrap()).take_while(|line| line != "ready").collect();
        (job, lines.join(", "))
    };
    let sandbox = home.sandbox();
    let (job, lines) = said(&sandbox);
    let refused = "sibling EPERM, parent EPERM, grandchild EPERM, init EPERM, none EPERM, \
        nonsense EPERM, thread EPERM";
    assert_eq!(lines, format!("{refused}, child fine, set fine, older fine"));
    let begin = Instant::now();
    drop(job);
    sandbox.delete().unwrap();
    assert!(begin.elapsed() < at_most(Duration::from_secs(5)), "{:?}", begin.elapsed());
    // Control: who may trace all, may do so to others, too. It must not: nothing would end them.
    let capabilities = Capabilities::default().with(Capability::SysPtrace);
    let with = Sandbox::create(Config { capabilities, ..home.config() }).unwrap();
    let script = HOLD_EACH_OTHER.replace("ask('parent', parent)", "None");
    let mut command = with.command("python3");
    let mut job = command.args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(job.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first, "sibling fine\n");
}

#[test]
fn whoever_asks_init_all_the_time_gets_an_answer_now_and_then() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = "import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
begin = time.monotonic()
children = []
for _ in range(4):
    read, write = os.pipe()
    if os.fork() == 0:
        count = 0
        while time.monotonic() < begin + 1:
            libc.ptrace(0x4206, 1, 0, 0x40)
            count += 1
        os.write(write, b'%d' % count)
        os._exit(0)
    children.append(read)
print(sum(int(os.read(read, 100)) for read in children), time.monotonic() - begin)";
    let mut command = sandbox.command("python3");
    let mut job = command.args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    // Init does all else meanwhile.
    while job.try_wait().unwrap().is_none() {
        assert_answers(&sandbox);
    }
    let mut printed = String::new();
    job.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    let (count, seconds) = printed.trim().split_once(' ').unwrap();
    let (count, seconds): (f64, f64) = (count.parse().unwrap(), seconds.parse().unwrap());
    assert!(count >= 4.0 && count <= seconds * 1000.0 + 10.0, "{count} in {seconds} s");
}

#[test]
fn a_tracer_gets_no_call_past_the_filter() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    // The child asks for its own id, and who traces it makes another call of that: io_setup, whose
    // pointer is 0, so that it fails with EFAULT where it is there.
    let script = "import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
ORIG_RAX, RDI, RSI, SYSCALL = 15 * 8, 14 * 8, 13 * 8, 24
child = os.fork()
if child == 0:
    libc.ptrace(0, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    libc.syscall(ctypes.c_long(39))
    os._exit(ctypes.get_errno())
os.waitpid(child, 0)
done = False
while True:
    libc.ptrace(SYSCALL, child, 0, 0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status): break
    if not done and libc.ptrace(3, child, ORIG_RAX, 0) == 39:
        libc.ptrace(6, child, ORIG_RAX, 206)
        libc.ptrace(6, child, RDI, 1)
        libc.ptrace(6, child, RSI, 0)
        done = True
print(done, os.WEXITSTATUS(status))";
    let run = |seccomp| {
        let sandbox = Sandbox::create(Config { seccomp, ..home.config() }).unwrap();
        let output = sandbox.command("python3").args(["-c", script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(Seccomp::Default), format!("True {}\n", nix::libc::ENOSYS));
    // Control.
    assert_eq!(run(Seccomp::Unconfined), format!("True {}\n", nix::libc::EFAULT));
}

#[test]
fn a_job_that_has_made_init_its_tracer_goes_on_and_its_end_is_told() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let script = "import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(0, 0, 0, 0) == 0, ctypes.get_errno()
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
os.kill(os.getpid(), signal.SIGUSR1)
assert seen == [1]
assert libc.ptrace(0, 0, 0, 0) == 0, ctypes.get_errno()
os.execv('/bin/sh', ['sh', '-c', 'kill -STOP $$; exit 7'])";
    for seccomp in [Seccomp::Default, Seccomp::Unconfined] {
        let sandbox = Sandbox::create(Config { seccomp, ..home.config() }).unwrap();
        let mut command = sandbox.command("python3");
        let mut child = command.args(["-c", script]).stderr(Stdio::piped()).spawn().unwrap();
        // It stands at the signal that it has sent itself, which is no end, and goes on by another.
        let stands = || {
            let stopped = |process: &census::Process| process.status("State");
            let all = census::tree(sandbox.init_pid());
            all.iter().filter_map(stopped).any(|state| state.starts_with('T'))
        };
        assert!(within(GONE, stands), "{:?}", child.wait_with_output());
        assert!(child.try_wait().unwrap().is_none());
        child.signal(18, Scope::Process).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(7));
        assert_answers(&sandbox);
    }
}

#[test]
fn init_holds_no_descriptor_of_the_callers() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    // Inheritable ones, as a careless caller has them.
    let file = home.path("file");
    fs::write(&file, "").unwrap();
    let open = || {
        let mode = nix::sys::stat::Mode::empty();
        nix::fcntl::open(&file, nix::fcntl::OFlag::O_RDONLY, mode).unwrap()
    };
    let held: Vec<_> = (0..100).map(|_| open()).collect();
    let sandbox = home.sandbox();
    // One that it hands over with its answer is closed a moment later.
    let few = || census::descriptors(sandbox.init_pid()).len() <= 10;
    assert!(within(GONE, few), "{:?}", census::descriptors(sandbox.init_pid()));
    let of_init = census::descriptors(sandbox.init_pid());
    // None that it opens later is taken for a standard one.
    let is_null = |number| of_init.iter().any(|(n, to)| *n == number && to.ends_with("null"));
    assert!(is_null(1) && is_null(2), "{of_init:?}");
    assert!(!of_init.iter().any(|(_, target)| *target == file), "{of_init:?}");
    assert!(of_init.iter().all(|(_, target)| !target.to_string_lossy().contains("adl-test")));
    drop(held);
}

#[test]
fn init_survives_signals_that_no_process_should() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let neighbour = home.sandbox();
    for signal in ["KILL", "STOP", "ABRT", "SEGV", "TRAP", "HUP"] {
        sandbox.shell(format!("kill -{signal} 1")).status().unwrap();
        assert_answers(&sandbox);
    }
    // To all processes but init; the control is the one that it ends.
    let mut victim = sandbox.command("sleep").arg("1000").spawn().unwrap();
    sandbox.shell("kill -KILL -1").status().unwrap();
    assert_eq!(victim.wait().unwrap().signal(), Some(9));
    sandbox.shell("kill -STOP -1").status().unwrap();
    assert_answers(&sandbox);
    assert_answers(&neighbour);
}

#[test]
fn init_survives_a_storm_of_signals() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let storm = "for i in {1..7000}; do kill -TERM 1; kill -USR1 1; kill -CHLD 1; done";
    let mut job = sandbox.shell(storm).spawn().unwrap();
    while job.try_wait().unwrap().is_none() {
        assert_answers(&sandbox);
    }
    assert!(job.wait().unwrap().success());
    assert_answers(&sandbox);
}

#[test]
fn the_limits_of_init_cannot_be_changed() {
    if !needs(&[Need::Program("prlimit")]) {
        return;
    }
    let root = nix::unistd::geteuid().is_root();
    let home = Home::new();
    let unconfined = Config { seccomp: Seccomp::Unconfined, ..home.config() };
    let mut sandboxes = vec![home.sandbox()];
    if root {
        // There, init's ids protect it even without a filter.
        sandboxes.push(Sandbox::create(unconfined.clone()).unwrap());
    }
    for sandbox in sandboxes {
        let limits = || fs::read_to_string(format!("/proc/{}/limits", sandbox.init_pid())).unwrap();
        let before = limits();
        for attempt in ["--cpu=1:1", "--nofile=0:0", "--as=1:1", "--fsize=0"] {
            for uid in if root { &[0, 1000][..] } else { &[0] } {
                let mut command = sandbox.command("prlimit");
                let output = command.args(["--pid", "1", attempt]).uid(*uid).gid(*uid).output();
                let output = output.unwrap();
                assert!(!output.status.success(), "{attempt} as {uid}");
            }
        }
        assert_eq!(limits(), before);
        assert_answers(&sandbox);
    }
    // Control: of a process that is like the caller, they can.
    let weak = Sandbox::create(unconfined).unwrap();
    shell(&weak, "sleep 1000 & prlimit --pid $! --cpu=1:1 && kill $!");
}

#[test]
fn init_cannot_be_made_the_first_to_die_of_memory() {
    // With one id only, init is the guest's own to the kernel, and its files are made read-only.
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let path = format!("/proc/{}/oom_score_adj", sandbox.init_pid());
    let before = fs::read_to_string(&path).unwrap();
    let output = sandbox.shell("echo 1000 > /proc/1/oom_score_adj").output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    // Control.
    shell(&sandbox, "echo 1000 > /proc/self/oom_score_adj");
}
