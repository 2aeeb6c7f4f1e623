//! A job begins in one way whoever calls, and gets nothing of the caller's that it is not given.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use adl_runtime::{Config, Error, Resource, Seccomp, Stdio};
use nix::fcntl::{FcntlArg, fcntl};
use nix::pty::openpty;

use crate::harness::{Home, Need, OrdinaryUser, adl, needs, shell, succeeds, within};
use crate::jobs::alone;

/// Prints all that a program begins with; three lines by themselves are what a caller's wish is
/// kept of.
const PROBE: &str = r#"
grep -E '^(Umask|Sig(Blk|Ign|Cgt)|NoNewPrivs|Speculation|Cpus_al|Mems_al|THP_en)' /proc/self/status
for file in limits personality coredump_filter; do echo $file; cat /proc/self/$file; done
# cat's own: a shell may have set its own to something else.
echo slack $(cat /proc/self/timerslack_ns)
echo $(chrt -p $$ | sed 's/.*: //') $(ionice -p $$)
grep -s '^ksm_merge_any' /proc/self/ksm_stat
head -1 /proc/self/numa_maps 2>/dev/null | cut -d' ' -f2
echo "kept nice $(nice)"
echo "kept oom_score_adj $(cat /proc/self/oom_score_adj)"
"#;

/// Runs what its arguments say when it has changed all that a program can change in itself and that
/// the programs of util-linux do not.
const CHANGES: &str = r#"
import ctypes, os, resource, signal, sys
call = ctypes.CDLL(None, use_errno=True).syscall
prctl = lambda *arguments: call(157, *arguments)
if sys.argv[1] == 'memory':
    assert prctl(41, 1, 0, 0, 0) == 0          # no large pages
    prctl(67, 1, 0, 0, 0)                      # pages of one content are merged
    assert prctl(33, 1, 1, 0, 0) == 0          # errors of memory: early
    nodes = ctypes.c_ulong(1)
    call(238, 3, ctypes.byref(nodes), 64)      # interleaved among nodes
    open('/proc/self/coredump_filter', 'w').write('0x7f')
elif sys.argv[1] == 'slack':
    assert prctl(29, 1, 0, 0, 0) == 0
elif sys.argv[1] == 'signals':
    for number in set(range(1, 65)) - {9, 17, 19, 32, 33}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 65)) - {2, 15})
    os.umask(0o077)
elif sys.argv[1] == 'limits':
    for number in range(16):
        soft, hard = resource.getrlimit(number)
        lower = {3: 1 << 20, 7: 500}.get(number, 1 << 30 if hard == -1 else hard // 2)
        resource.setrlimit(number, (lower, hard))
elif sys.argv[1] == 'limits-up':
    for number in range(16):
        hard = resource.getrlimit(number)[1]
        resource.setrlimit(number, (hard, hard))
elif sys.argv[1] == 'keyring':
    assert call(250, 1, b'a-session') > 0
    assert call(248, b'user', b'adl-test', b'secret', 6, -3) > 0
os.execvp(sys.argv[2], sys.argv[2:])
"#;

fn adl_by(home: &Home, by: &[&str], options: &[&str]) -> process::Command {
    let (program, arguments) = by.split_first().unwrap();
    let mut command = process::Command::new(program);
    command.args(arguments).arg(adl()).arg("run").args(options).arg("--");
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
    command.env("ADL_STATE_DIR", home.state()).stdin(process::Stdio::null());
    command
}

/// Without the lines that begin with `kept`, and those.
fn split(probe: &str) -> (Vec<&str>, Vec<&str>) {
    probe.lines().partition(|line| !line.starts_with("kept"))
}

#[test]
fn a_job_begins_with_the_same_whoever_calls() {
    let programs = ["chrt", "ionice", "setarch", "taskset", "python3"].map(Need::Program);
    if !needs(&[&[Need::Root], &programs[..]].concat()) {
        return;
    }
    let home = Home::new();
    let inside = |by: &[&str]| succeeds(adl_by(&home, by, &[]).args(["sh", "-c", PROBE]));
    let outside = |by: &[&str]| {
        let (program, arguments) = by.split_first().unwrap();
        succeeds(process::Command::new(program).args(arguments).args(["sh", "-c", PROBE]))
    };
    let plain = inside(&["env"]);
    let (of_host, (expected, kept)) = (outside(&["env"]), split(&plain));
    assert_eq!(kept, ["kept nice 0", "kept oom_score_adj 0"]);
    for line in ["slack 50000", "SigIgn:\t0000000000000000", "Umask:\t0022"] {
        assert!(expected.contains(&line), "{line}: {plain}");
    }

    let python = |what: &'static str| ["python3", "-c", CHANGES, what];
    let stands_back = "echo 300 > /proc/self/oom_score_adj && exec nice -n 5 \"$@\"";
    let callers: [(&[&str], &[&str]); 14] = [
        (&["chrt", "-f", "10"], &kept),
        (&["chrt", "-r", "10"], &kept),
        (&["chrt", "-b", "0"], &kept),
        (&["ionice", "-c", "1", "-n", "2"], &kept),
        (&["ionice", "-c", "3"], &kept),
        (&["nice", "-n", "-5"], &kept),
        (&["sh", "-c", stands_back, "sh"], &["kept nice 5", "kept oom_score_adj 300"]),
        (&["setarch", "-R", "--uname-2.6"], &kept),
        (&["taskset", "-c", "0"], &kept),
        (&python("slack"), &kept),
        (&python("memory"), &kept),
        (&python("signals"), &kept),
        (&python("limits"), &kept),
        (&python("limits-up"), &kept),
    ];
    for (by, kept) in callers {
        // Outside, it makes a difference.
        assert_ne!(outside(by), of_host, "{by:?}");
        let probe = inside(by);
        assert_eq!(split(&probe), (expected.clone(), kept.to_vec()), "{by:?}");
    }
}

#[test]
fn a_command_has_limits_of_its_own_up_to_the_callers() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let hard = |name| nix::sys::resource::getrlimit(name).unwrap().1;
    let files = hard(nix::sys::resource::Resource::RLIMIT_NOFILE);
    assert_eq!(shell(&sandbox, "ulimit -Hn").trim(), files.min(65_536).to_string());
    assert_eq!(shell(&sandbox, "ulimit -Hl; ulimit -Sc; ulimit -Hc").lines().count(), 3);
    let of = |resource, limit| {
        let mut command = sandbox.shell("cat /proc/self/limits");
        let output = command.rlimit(resource, limit, limit).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let core = hard(nix::sys::resource::Resource::RLIMIT_CORE);
    for (resource, name, limit) in [
        (Resource::OpenFiles, "Max open files", files),
        (Resource::LockedMemory, "Max locked memory", 4096),
        (Resource::Core, "Max core file size", core.min(1 << 20)),
    ] {
        let limits = of(resource, limit);
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let set = line.split_whitespace().filter(|word| *word == limit.to_string()).count();
        assert_eq!(set, 2, "{line}");
    }
}

/// Finds the key that the caller has in its session.
const FIND_KEY: &str = "import ctypes, sys
call = ctypes.CDLL(None, use_errno=True).syscall
found = call(250, 10, -3, b'user', b'adl-test', 0)
print('found' if found > 0 else 'errno %d' % ctypes.get_errno())";

#[test]
fn the_keys_of_the_callers_session_are_not_there() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    const ENOKEY: &str = "errno 126\n";
    let home = Home::new();
    let by = ["python3", "-c", CHANGES, "keyring"];
    let mut outside = process::Command::new(by[0]);
    outside.args(&by[1..]).args(["python3", "-c", FIND_KEY]);
    assert_eq!(succeeds(&mut outside), "found\n");
    let options = ["--security-opt", "seccomp=unconfined"];
    let mut inside = adl_by(&home, &by, &options);
    assert_eq!(succeeds(inside.args(["python3", "-c", FIND_KEY])), ENOKEY);
    // Where the filter stands, no key is asked for at all.
    let mut inside = adl_by(&home, &by, &[]);
    assert_eq!(succeeds(inside.args(["python3", "-c", FIND_KEY])), "errno 38\n");

    let user = OrdinaryUser::new();
    let mut inside = user.command(by[0]);
    inside.args(&by[1..]).arg(user.adl()).arg("run").args(options);
    assert_eq!(succeeds(inside.args(["--", "python3", "-c", FIND_KEY])), ENOKEY);
}

/// The machine's `core_pattern`, set to a program, until it is dropped.
struct Helper {
    before: String,
    directory: PathBuf,
}

const PATTERN: &str = "/proc/sys/kernel/core_pattern";

impl Helper {
    /// A program that notes the names of programs that crashed, where they begin with `name`, and
    /// does nothing for others, which may crash just then.
    fn install(home: &Home, name: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let directory = home.path("dumps");
        fs::create_dir(&directory).unwrap();
        let program = home.path("helper");
        let script = format!(
            "#!/bin/sh\ncase \"$1\" in {name}*) : > {}/\"$1\";; esac\nexec cat > /dev/null\n",
            directory.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let before = fs::read_to_string(PATTERN).unwrap();
        // From here on it is put back.
        let this = Self { before, directory };
        fs::write(PATTERN, format!("|{} %e", program.display())).unwrap();
        this
    }

    fn has_noted(&self, name: &str) -> bool {
        self.directory.join(name).exists()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = fs::write(PATTERN, self.before.trim_end());
    }
}

#[test]
fn no_dump_reaches_a_program_of_the_hosts() {
    // What the whole machine has is set.
    let _alone = alone();
    let programs = [Need::Program("python3"), Need::Program("prlimit")];
    if !needs(&[&[Need::Root, Need::DumpsInPlace], &programs[..]].concat()) {
        return;
    }
    let home = Home::new();
    let name = format!("c{:x}", process::id());
    let inside = home.sandbox();
    let config = Config { seccomp: Seccomp::Unconfined, ..home.config() };
    let weak = adl_runtime::Sandbox::create(config).unwrap();
    // By the shell, by the other system call, and with no try at all.
    let crash = |way: &str, to: &str| {
        format!(
            "cp /bin/sleep /tmp/{to}; {way}; /tmp/{to} 1000 & sleep 0.01; kill -SEGV $!; wait $!"
        )
    };
    let ways = [
        ("1", "ulimit -c 0"),
        (
            "2",
            "python3 -c 'import ctypes, os; l = (ctypes.c_ulong * 2)(0, 0)
assert ctypes.CDLL(None).syscall(160, 4, l) == 0; os.kill(os.getpid(), 0)'; ulimit -Sc 0",
        ),
        ("3", ":"),
    ];
    let helper = Helper::install(&home, &name);
    for (number, way) in ways {
        let output = inside.shell(crash(way, &format!("{name}{number}"))).output().unwrap();
        assert_eq!(output.status.code(), Some(128 + 11), "{way}: {output:?}");
    }
    // The program itself is told by the kernel whether it was dumped.
    let status = inside.shell("ulimit -c 0 && kill -SEGV $$").status().unwrap();
    assert_eq!((status.signal(), status.core_dumped()), (Some(11), false));
    // A caller whose own hard limit is below the 1 that means none, as `* hard core 0` has it for
    // all.
    let zero = adl_by(&home, &["prlimit", "--core=0:0"], &[])
        .args(["sh", "-c", &crash(":", &format!("{name}0"))])
        .output()
        .unwrap();
    match zero.status.code() {
        Some(code) if code == 128 + 11 => {}
        // It takes CAP_SYS_RESOURCE to have more.
        Some(125) => assert!(crate::harness::stderr(&zero).contains("RLIMIT_CORE"), "{zero:?}"),
        _ => panic!("{zero:?}"),
    }
    // Where the guest may move the limit, and on the host, it is.
    weak.shell(crash("ulimit -c 0", &format!("{name}w"))).output().unwrap();
    let program = home.path(format!("{name}h"));
    crate::harness::copy_program(Path::new("/bin/sleep"), &program);
    let mut host = process::Command::new("prlimit");
    let mut host = host.args(["--core=0:0"]).arg(&program).arg("1000").spawn().unwrap();
    let is_running = || {
        fs::read_to_string(format!("/proc/{}/comm", host.id())).is_ok_and(|c| c.starts_with(&name))
    };
    assert!(within(Duration::from_secs(10), is_running));
    let pid = nix::unistd::Pid::from_raw(host.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSEGV).unwrap();
    assert!(host.wait().unwrap().core_dumped());
    for control in ["w", "h"] {
        let noted = || helper.has_noted(&format!("{name}{control}"));
        assert!(within(Duration::from_secs(10), noted), "{control}");
    }
    for (number, way) in ways {
        assert!(!helper.has_noted(&format!("{name}{number}")), "{way}");
    }
    assert!(!helper.has_noted(&format!("{name}0")));
}

/// What a change of ids makes of whether a process is dumped, for the whole machine, until it is
/// dropped.
struct DumpableAfterChange(String);

const SUID_DUMPABLE: &str = "/proc/sys/fs/suid_dumpable";

impl DumpableAfterChange {
    fn set(to: &str) -> Self {
        let this = Self(fs::read_to_string(SUID_DUMPABLE).unwrap());
        fs::write(SUID_DUMPABLE, to).unwrap();
        this
    }
}

impl Drop for DumpableAfterChange {
    fn drop(&mut self) {
        let _ = fs::write(SUID_DUMPABLE, self.0.trim_end());
    }
}

#[test]
fn a_caller_that_is_not_to_be_dumped_stays_so() {
    // What the whole machine has is set.
    let _alone = alone();
    if !needs(&[Need::Root, Need::DumpsInPlace]) {
        return;
    }
    let home = Home::new();
    // 0: for all; 1: to whoever may trace it; 2: as root alone, into a program.
    for machine in ["0", "1", "2"] {
        let _set = DumpableAfterChange::set(machine);
        for dumpable in [false, true] {
            nix::sys::prctl::set_dumpable(dumpable).unwrap();
            let sandbox = home.sandbox();
            assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
            assert_eq!(nix::sys::prctl::get_dumpable(), Ok(dumpable), "{machine}");
        }
    }
}

#[test]
fn where_the_kernel_dumps_into_a_socket_there_is_no_sandbox() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    // As this caller alone sees it: of the machine's, all other sandboxes would know.
    let pattern = home.path("pattern");
    let bind = format!("mount --bind {} {PATTERN} && exec \"$@\"", pattern.display());
    let by = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &bind, "sh"];
    let told = |content: &str| {
        fs::write(&pattern, content).unwrap();
        let output = adl_by(&home, &by, &[]).arg("true").output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{content}");
        crate::harness::stderr(&output)
    };
    for socket in ["@/run/dumps", "@@/run/dumps"] {
        let told = told(socket);
        assert!(told.contains(socket) && told.contains("sysctl kernel.core_pattern"), "{told}");
    }
    // With a part of its /proc hidden, this caller gets no sandbox at all, but for another reason.
    let told = told("core");
    assert!(!told.contains("core_pattern"), "{told}");
    assert_eq!(shell(&home.sandbox(), "echo alive"), "alive\n");
}

#[test]
fn a_terminal_of_the_callers_itself_is_no_stream_of_a_command() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let pty = openpty(None, None).unwrap();
    for (number, side) in [(0, &pty.master), (1, &pty.slave)].into_iter().cycle().take(6) {
        let stream = || Stdio::direct(side.try_clone().unwrap());
        for place in 0..3 {
            let mut command = sandbox.command("true");
            match place {
                0 => command.stdin(stream()),
                1 => command.stdout(stream()),
                _ => command.stderr(stream()),
            };
            let error = command.status().unwrap_err();
            let told = matches!(&error, Error::Invalid { .. });
            assert!(told && error.to_string().contains("one of its own"), "{number}: {error}");
        }
    }
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
}

#[test]
fn stdin_is_what_a_command_may_only_read() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let path = home.path("file");
    fs::write(&path, "content\n").unwrap();
    let opened = |write: bool| fs::File::options().read(true).write(write).open(&path).unwrap();
    let cat = |stdin: Stdio| sandbox.command("cat").stdin(stdin).output();
    let error = cat(Stdio::direct(opened(true))).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert!(error.to_string().contains("for reading alone"), "{error}");
    assert_eq!(cat(Stdio::direct(opened(false))).unwrap().stdout, b"content\n");
    // What is no one's to write to, or is made to be written to.
    let null = fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    assert_eq!(cat(Stdio::direct(null)).unwrap().stdout, b"");
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut &ours, b"by socket").unwrap();
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(cat(Stdio::direct(theirs)).unwrap().stdout, b"by socket");
    // As stdout it may be open for both.
    let written = sandbox.shell("echo more").stdout(Stdio::direct(opened(true))).status().unwrap();
    assert!(written.success());
    assert_eq!(fs::read(&path).unwrap(), b"more\nnt\n");
    assert_eq!(fcntl(&ours, FcntlArg::F_GETFD).unwrap() & 1, 1, "{}", ours.as_raw_fd());
}
