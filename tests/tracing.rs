//! Debuggers, tracers, sanitizers and what else asks for rare calls work inside as outside.

use std::fmt::Write;

use adl_runtime::{Capabilities, Capability, Config, Output, Sandbox, Seccomp};

use crate::harness::{Home, Need, adl_command, needs, shell};

/// Writes a program in C, and compiles it with these options; its path inside.
#[track_caller]
fn compile(sandbox: &Sandbox, name: &str, options: &[&str], source: &str) -> String {
    let path = format!("/tmp/{name}");
    sandbox.files().write_file(format!("{path}.c"), source).unwrap();
    let mut gcc = sandbox.command("gcc");
    gcc.args(["-g", "-O0", "-o", &path, &format!("{path}.c")]).args(options);
    let output = gcc.output().unwrap();
    assert!(output.status.success(), "{}", texts(&output));
    path
}

fn texts(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{:?}: {}{}", output.status, text(&output.stdout), text(&output.stderr))
}

#[test]
fn sanitizers_find_what_is_wrong_and_nothing_else() {
    if !needs(&[Need::Program("gcc")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    const LEAK: &str = "#include <stdlib.h>
        int main(int argc, char **argv) { volatile char *p = malloc(1000); p = 0; return 0; }";
    const OVERFLOW: &str = "int main(int argc, char **argv) {
        volatile int x = 2147483647; volatile int y = x + argc; return 0; }";
    const RACE: &str = "#include <pthread.h>
        int x; void *add(void *p) { for (int i = 0; i < 100000; i++) x++; return 0; }
        int main() { pthread_t a, b; pthread_create(&a, 0, add, 0); pthread_create(&b, 0, add, 0);
        pthread_join(a, 0); pthread_join(b, 0); return 0; }";
    for (kind, wrong, told) in [
        ("address", LEAK, "LeakSanitizer: detected memory leaks"),
        ("leak", LEAK, "LeakSanitizer: detected memory leaks"),
        ("undefined", OVERFLOW, "signed integer overflow"),
        ("thread", RACE, "ThreadSanitizer: data race"),
    ] {
        let option = format!("-fsanitize={kind}");
        let options = [&option, "-fno-sanitize-recover=all", "-pthread"];
        let right = compile(&sandbox, "right", &options, "int main() { return 0; }");
        let wrong = compile(&sandbox, "wrong", &options, wrong);
        for uid in if sandbox.id_range().is_some() { &[0, 1000][..] } else { &[0] } {
            let run = |path: &str| sandbox.command(path).uid(*uid).gid(*uid).output().unwrap();
            let output = run(&right);
            assert!(output.status.success() && output.stderr.is_empty(), "{}", texts(&output));
            let output = run(&wrong);
            assert!(!output.status.success(), "{kind}: {}", texts(&output));
            assert!(texts(&output).contains(told), "{kind}: {}", texts(&output));
        }
    }
}

const CRASH: &str = "#include <stdlib.h>
#include <unistd.h>
volatile int answer = 42;
void fall(void) { abort(); }
int main(int argc, char **argv) { if (argc > 1) pause(); fall(); }";

#[test]
fn a_debugger_runs_a_program_and_looks_at_one_that_runs() {
    if !needs(&[Need::Program("gcc"), Need::Program("gdb")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let crash = compile(&sandbox, "crash", &[], CRASH);
    let gdb = |arguments: &[&str]| {
        let output = sandbox.command("gdb").args(["-nx", "-batch"]).args(arguments).output();
        texts(&output.unwrap())
    };
    let printed = gdb(&["-ex", "run", "-ex", "bt", &crash]);
    assert!(printed.contains("SIGABRT") && printed.contains("in main"), "{printed}");
    // It has asked for fixed addresses, and got them.
    assert!(!printed.contains("Error disabling address space randomization"), "{printed}");
    let job = sandbox.command(&crash).arg("wait").spawn().unwrap();
    let pid = job.id().as_raw().to_string();
    let printed = gdb(&["-ex", "print answer", "-ex", "set answer = 7", "-p", &pid]);
    assert!(printed.contains("= 42"), "{printed}");
    assert!(gdb(&["-ex", "print answer", "-p", &pid]).contains("= 7"));
}

#[test]
fn strace_follows_what_it_starts_and_takes_a_right_to_trace_others() {
    if !needs(&[Need::Program("strace")]) {
        return;
    }
    let home = Home::new();
    // As `adl run --cap-add SYS_PTRACE`.
    let capabilities = Capabilities::default().with(Capability::SysPtrace);
    let with = Sandbox::create(Config { capabilities, ..home.config() }).unwrap();
    let without = home.sandbox();
    let trace = "strace -f -e trace=execve -o /tmp/trace sh -c '(/bin/echo one); /bin/echo two' &&
        grep -c 'execve(\"/bin/echo\"' /tmp/trace";
    let attach = "sleep 1000 & pid=$!
        strace -p $pid -o /tmp/other sh -c 'kill '$pid 2> /tmp/said; kill -9 $pid 2> /dev/null
        grep -o 'killed by SIGTERM' /tmp/other; grep -o 'Operation not permitted' /tmp/said; true";
    for sandbox in [&with, &without] {
        assert_eq!(shell(sandbox, trace), "one\ntwo\n2\n");
    }
    assert_eq!(shell(&with, attach), "killed by SIGTERM\n");
    assert_eq!(shell(&without, attach), "Operation not permitted\n");
}

#[test]
fn under_a_filter_that_others_answer_for_all_is_there_but_strace() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    // One that allows all, with a descriptor for questions, which stays open over the execve.
    let around = "import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_void_p)]
allow = ctypes.c_uint64(0x7fff0000 << 32 | 6)
program = Program(1, ctypes.addressof(allow))
assert libc.prctl(38, 1, 0, 0, 0) == 0
listener = libc.syscall(ctypes.c_long(317), 1, 8, ctypes.byref(program))
assert listener >= 0, ctypes.get_errno()
os.set_inheritable(listener, True)
os.execv(sys.argv[1], sys.argv[1:])";
    let ask = "import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
libc.ptrace(0x4206, 7, 0, 0x40)
print(errno.errorcode[ctypes.get_errno()])";
    let run = |command: &mut std::process::Command| {
        let output = command.args(["run", "--", "python3", "-c", ask]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (String::from_utf8_lossy(&output.stdout).into_owned(), said)
    };
    let mut under = adl_command(&home.state());
    let adl = under.get_program().to_owned();
    let mut python = std::process::Command::new("python3");
    python.args(["-c", around]).arg(adl);
    python.envs(under.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert_eq!(run(&mut python), ("ENOSYS\n".to_owned(), String::new()));
    // Control.
    assert_eq!(run(&mut under), ("EPERM\n".to_owned(), String::new()));
}

#[test]
fn limits_of_another_process_can_be_changed_but_not_that_of_core_dumps() {
    if !needs(&[Need::Program("prlimit")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = "sleep 1000 & pid=$!
        of() { prlimit --pid $1 --$2 --output SOFT,HARD --noheadings | tr -s ' '; }
        prlimit --pid $$ --nofile=100:200 && of $$ nofile
        prlimit --pid $pid --nofile=300:400 && of $pid nofile
        prlimit --pid $pid --core=0:0; of $pid core
        prlimit --pid $$ --core=0:0; of $$ core
        prlimit --pid 1 --nofile=300:400 || echo no
        kill $pid";
    let output = sandbox.shell(script).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).replace(' ', "");
    // Two columns each, of which the first is as wide as its heading.
    assert_eq!(printed, "100200\n300400\n11\n11\nno\n", "{}", texts(&output));
    if sandbox.id_range().is_some() {
        let mut own = sandbox.shell("prlimit --pid $$ --nofile=100:200");
        assert!(own.uid(1000).gid(1000).status().unwrap().success());
    }
}

/// Makes calls that not every sandbox has, and prints what each says.
const CALLS: &str = "import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *arguments):
    arguments = [ctypes.c_long(value) for value in arguments]
    result = libc.syscall(ctypes.c_long(number), *arguments)
    said = errno.errorcode[ctypes.get_errno()] if result < 0 else 'fine'
    print(name, said)
mode = ctypes.addressof(ctypes.c_int())
pidfd = os.pidfd_open(os.getpid())
call('get_mempolicy', 239, mode, 0, 0, 0, 0)
call('set_mempolicy', 238, 0, 0, 0)
call('mbind', 237, 0, 0, 0, 0, 0, 0)
call('move_pages', 279, 0, 0, 0, 0, 0, 0)
call('pidfd_getfd', 438, pidfd, 0, 0)
call('sethostname', 170, ctypes.addressof(ctypes.create_string_buffer(b'other')), 5)
call('keyctl', 250, 0, -3, 0)
call('modify_ldt', 154, 0, 0, 0)
call('name_to_handle_at', 303, -100, 0, 0, 0, 0)
call('unshare', 272, 0x200)
call('personality', 135, 0x40000)
call('personality', 135, 0)
call('socketpair', 53, 2, 1, 0, mode)
call('socket', 41, 38, 5, 0)
call('socket', 41, 16, 3, 9)";

#[test]
fn calls_come_with_the_capability_that_they_take_and_fail_as_on_a_smaller_kernel() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let run = |seccomp, added: &[Capability]| {
        let capabilities = added.iter().fold(Capabilities::default(), |all, one| all.with(*one));
        let config = Config { seccomp, capabilities, ..home.config() };
        let sandbox = Sandbox::create(config).unwrap();
        let output = sandbox.command("python3").args(["-c", CALLS]).output().unwrap();
        assert!(output.status.success(), "{}", texts(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let placement = ["get_mempolicy", "set_mempolicy", "mbind", "move_pages"];
    let expected = |nice: &str, trace: &str, name: &str| {
        let mut text = String::new();
        for call in placement {
            writeln!(text, "{call} {nice}").unwrap();
        }
        text + &format!("pidfd_getfd {trace}\nsethostname {name}\n")
            + "keyctl ENOSYS\nmodify_ldt ENOSYS\nname_to_handle_at ENOTSUP\nunshare fine\n\
               personality fine\npersonality fine\nsocketpair ENOTSUP\nsocket EAFNOSUPPORT\n\
               socket EPROTONOSUPPORT\n"
    };
    let filtered = |added: &[Capability]| run(Seccomp::Default, added);
    assert_eq!(filtered(&[]), expected("ENOSYS", "ENOSYS", "EPERM"));
    let all = [Capability::SysNice, Capability::SysPtrace, Capability::SysAdmin];
    // A kernel without NUMA has none, whatever is held.
    let unconfined = run(Seccomp::Unconfined, &all);
    let nice = if unconfined.contains("get_mempolicy fine") { "fine" } else { "ENOSYS" };
    assert_eq!(filtered(&all[..1]), expected(nice, "ENOSYS", "EPERM"));
    assert_eq!(filtered(&all[1..2]), expected("ENOSYS", "fine", "EPERM"));
    assert_eq!(filtered(&all[2..]), expected("ENOSYS", "ENOSYS", "fine"));
    assert_eq!(filtered(&all), expected(nice, "fine", "fine"));
}
