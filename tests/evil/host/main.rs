//! A caller of the library with an evil init: makes calls, and tells what came of each.
//!
//! Each call is to a sandbox that is evil in one way. Told are what came of it, how long that took,
//! and what it has cost.
//!
//! `evil-host STATE WAY CALL [WAY CALL]…`, where STATE is a directory of its own. All calls are
//! made twice: the second time the kernel does not know SO_PASSRIGHTS, as before Linux 6.16.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::{IoSlice, Read};
use std::net::{Shutdown, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use adl_runtime::{
    Access, Child, Config, Error, Files, Forward, Mount, Network, Pool, Publish, Sandbox, Scope,
    Stdio,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;

/// What a call that is bounded by the caller may take.
const BOUND: Duration = Duration::from_millis(300);
/// How long what a call has left behind may take to go.
const SETTLE: Duration = Duration::from_secs(5);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [state, kernels, calls @ ..] = &arguments[..] else { panic!("STATE KERNELS WAY CALL") };
    let state = Path::new(state);
    // All that there is once in a process is there from here on.
    sandbox(state, "behaves").unwrap().delete().unwrap();
    Sandbox::create(Config { spare: true, ..config(state, "behaves") }).unwrap().delete().unwrap();
    let publish = vec![Publish::new(([127, 0, 0, 1], 0), 80)];
    let published = Config { publish, network: Network::None, ..config(state, "behaves") };
    Sandbox::create(published).unwrap().delete().unwrap();
    let neighbour = sandbox(state, "behaves").unwrap();
    assert!(neighbour.command("true").status().unwrap().success());
    adl_runtime::finish_removals();

    for kernel in kernels.split(',') {
        if kernel == "older" {
            refuse_passrights();
        }
        for call in calls.chunks(2) {
            let [way, call] = call else { panic!("a way without a call") };
            println!("call {kernel}: {way} {call}");
            tell_of(call, way, state, &neighbour);
        }
    }
}

fn tell_of(call: &str, way: &str, state: &Path, neighbour: &Sandbox) {
    let before = Census::take();
    let (result, took) = make(call, way, state);
    println!("result {}", result.unwrap_or_else(|error| tell(&error)));
    println!("took {}", took.as_millis());
    println!("cpu {}", cpu().saturating_sub(before.cpu).as_millis());
    let begin = Instant::now();
    assert!(neighbour.command("true").status().unwrap().success());
    println!("neighbour {}", begin.elapsed().as_millis());

    adl_runtime::finish_removals();
    let end = Instant::now() + SETTLE;
    while Census::take() != before && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    let after = Census::take();
    if after != before {
        println!("left {after:?}, and before {before:?}");
    }
    println!("grown {}", after.peak.saturating_sub(before.peak));
    let out = state.join("out");
    if out.exists() {
        let names = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        println!("made {}", names.join(" "));
        assert_eq!(fs::read(out.join("canary")).unwrap(), b"canary");
        fs::remove_dir_all(out).unwrap();
    }
}

fn sandbox(state: &Path, way: &str) -> adl_runtime::Result<Sandbox> {
    Sandbox::create(config(state, way))
}

fn config(state: &Path, way: &str) -> Config {
    // For connections of its own to itself.
    let network = Network::Host;
    let hostname = Some(way.to_owned());
    let state_directory = Some(state.join("state"));
    Config { hostname, network, state_directory, ..Config::default() }
}

/// A sandbox of a pool of evil ones, which is told to do something; then all of it ends.
fn pooled(state: &Path, way: &str, does: impl Fn(&Sandbox) -> adl_runtime::Result<()>) -> Outcome {
    timed(
        || {
            let pool = Pool::builder(config(state, way)).maximum(3).prefetch(2).build().unwrap();
            let done = pool.acquire(2 * BOUND).and_then(|sandbox| does(&sandbox));
            pool.close()?;
            done
        },
        |()| "Ok".to_owned(),
    )
}

/// A sandbox of a pool by whose `prepare` a command is run in it, without a deadline.
fn prepared(state: &Path, way: &str) -> Outcome {
    timed(
        || {
            let pool = Pool::builder(config(state, way)).maximum(3).prepare(|sandbox| {
                sandbox.command("x").status()?;
                Ok(())
            });
            let pool = pool.build().unwrap();
            let done = pool.acquire(2 * BOUND).map(drop);
            pool.close()?;
            done
        },
        |()| "Ok".to_owned(),
    )
}

/// A reset that takes a spare, if one can be had.
fn reset_by_spare(state: &Path, way: &str) -> Outcome {
    let sandbox = Sandbox::create(Config { spare: true, ..config(state, way) }).unwrap();
    let end = Instant::now() + BOUND;
    while !sandbox.has_spare() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    timed(|| sandbox.reset().and_then(|()| sandbox.delete()), |()| "Ok".to_owned())
}

/// Creates one while a blank is ready.
fn create_of_blank(state: &Path, way: &str) -> Outcome {
    adl_runtime::keep_blanks(1);
    sandbox(state, way).unwrap().delete().unwrap();
    let end = Instant::now() + BOUND;
    while adl_runtime::blanks_ready() == 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    let outcome = timed(
        || {
            let sandbox = sandbox(state, way)?;
            sandbox.command("x").timeout(BOUND).status()?;
            sandbox.delete()
        },
        |()| "Ok".to_owned(),
    );
    adl_runtime::keep_blanks(0);
    outcome
}

type Outcome = (adl_runtime::Result<String>, Duration);

/// How long a call takes, and what it returns.
fn timed<T>(
    call: impl FnOnce() -> adl_runtime::Result<T>,
    show: impl FnOnce(T) -> String,
) -> Outcome {
    let begin = Instant::now();
    let result = call();
    let took = begin.elapsed();
    (result.map(show), took)
}

fn make(call: &str, way: &str, state: &Path) -> Outcome {
    if call == "create" {
        return timed(|| sandbox(state, way).map(drop), |()| "Ok".to_owned());
    }
    if let Some(call) = call.strip_suffix("-inside") {
        let network = Network::None;
        let sandbox = Sandbox::create(Config { network, ..config(state, way) }).unwrap();
        return inside(call, &sandbox);
    }
    if let Some(call) = call.strip_suffix("-joined") {
        let of = Sandbox::create(Config { network: Network::None, ..config(state, "behaves") });
        let of = of.unwrap();
        let path = PathBuf::from(format!("/proc/{}/ns/net", of.init_pid()));
        let network = Network::Join(path.into());
        let sandbox = Sandbox::create(Config { network, ..config(state, way) }).unwrap();
        return inside(call, &sandbox);
    }
    if let Some(call) = call.strip_prefix("given-") {
        return given(call, way, state);
    }
    match call {
        "pool" => return pooled(state, way, |_| Ok(())),
        "pool-status" => {
            return pooled(state, way, |it| it.command("x").timeout(BOUND).status().map(drop));
        }
        "pool-prepare" => return prepared(state, way),
        "reset-spare" => return reset_by_spare(state, way),
        "create-blank" => return create_of_blank(state, way),
        _ => {}
    }
    let sandbox = sandbox(state, way).unwrap();
    let ok = |()| "Ok".to_owned();
    match call {
        "delete" => timed(|| sandbox.delete(), ok),
        "reset" => timed(|| sandbox.reset(), ok),
        "status" => timed(|| sandbox.command("x").status(), |status| status.to_string()),
        "output" => timed(|| sandbox.command("x").output(), |output| output.status.to_string()),
        "echo" => {
            let input = vec![b'x'; 1 << 20];
            let output = sandbox.command("x").input(input.clone()).output();
            timed(|| output, |output| (output.stdout == input).to_string())
        }
        "stdin" => {
            let mut command = sandbox.command("x");
            command.input(vec![0; 8 << 20]).timeout(BOUND);
            timed(|| command.output(), |output| output.status.to_string())
        }
        "stdout" => {
            let mut command = sandbox.command("x");
            command.output_limit(1 << 20).timeout(BOUND).keep_output(1000, 1000);
            timed(|| command.output(), |output| output.status.to_string())
        }
        "spawn" => timed(|| sandbox.command("x").spawn(), |child| child.id().to_string()),
        "request" => {
            let much = vec![b'x'; 100 << 10];
            let much = std::ffi::OsStr::new(std::str::from_utf8(&much).unwrap());
            let mut command = sandbox.command("x");
            command.args(std::iter::repeat_n(much, 40));
            timed(|| command.status(), |status| status.to_string())
        }
        "stopped" => {
            kill(Pid::from_raw(sandbox.init_pid()), Signal::SIGSTOP).unwrap();
            timed(|| sandbox.command("x").spawn(), |child| child.id().to_string())
        }
        "wait" => {
            let mut child = begun(&sandbox);
            timed(|| child.wait_timeout(BOUND), |status| format!("{status:?}"))
        }
        "kill" => {
            let mut child = begun(&sandbox);
            timed(|| child.kill(), ok)
        }
        "drop" => {
            let child = begun(&sandbox);
            timed(
                || {
                    drop(child);
                    Ok(())
                },
                ok,
            )
        }
        // Ends without a wait, and then with the sandbox.
        "wait-for-ever" => {
            let begin = Instant::now();
            let (sender, receiver) = channel();
            let child = started(&sandbox);
            std::thread::spawn(move || sender.send(child.and_then(|mut child| child.wait())));
            let result = receiver.recv_timeout(Duration::from_secs(3));
            let hang = |_| Ok("Hang".to_owned());
            (result.map_or_else(hang, |r| r.map(|s| s.to_string())), begin.elapsed())
        }
        "exit" => timed(
            || started(&sandbox)?.wait_timeout(BOUND),
            |status| status.map_or("None".into(), |status| status.to_string()),
        ),
        "background" => {
            let job = sandbox.command("x").background();
            timed(|| job?.wait(), |output| output.status.to_string())
        }
        "terminal" => {
            let mut command = sandbox.command("x");
            command.terminal(24, 80);
            timed(|| command.spawn(), |child| child.id().to_string())
        }
        "terminal-wait" => {
            let mut child = sandbox.command("x").terminal(24, 80).spawn().unwrap();
            child.signal(1, Scope::Process).unwrap();
            timed(|| child.wait_timeout(BOUND), |status| format!("{status:?}"))
        }
        "terminal-output" => {
            let mut command = sandbox.command("x");
            command.terminal(24, 80);
            timed(|| command.output(), |output| output.status.to_string())
        }
        "connect-unix" => {
            let mut files = sandbox.files();
            timed(|| files.timeout(BOUND).connect_unix("/x").map(drop), ok)
        }
        "terminal-without-descriptors" => terminal_without_descriptors(&sandbox),
        call => file_call(call, &mut sandbox.files(), state),
    }
}

/// Asks for sockets in the sandbox's own network, to which an ordinary user's init has to lead.
fn inside(call: &str, sandbox: &Sandbox) -> Outcome {
    let ok = |()| "Ok".to_owned();
    let anywhere = ([0, 0, 0, 0], 0);
    match call {
        "listen" => timed(|| sandbox.listen(anywhere).map(drop), ok),
        "connect" => {
            // One that only who is in the host's network can reach.
            let hosts = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = hosts.local_addr().unwrap();
            timed(|| sandbox.connect_timeout(address, BOUND).map(drop), ok)
        }
        "publish" => {
            timed(|| sandbox.publish(&Publish::new(([127, 0, 0, 1], 0), 80)).map(drop), ok)
        }
        "forward" => {
            let address = anywhere.into();
            let forward = Forward { address, ..Forward::new(0, ([127, 0, 0, 1], 1)) };
            timed(|| sandbox.forward(&forward).map(drop), ok)
        }
        call => panic!("what is {call}?"),
    }
}

/// Asks for a Unix socket, or for what an ordinary user's init is asked for the way to its network,
/// where an accomplice on the host has given a socket to init. It is as it should be, but for where
/// it was made.
fn given(call: &str, way: &str, state: &Path) -> Outcome {
    let (network, socket): (_, OwnedFd) = match call {
        "unix" => (Network::Host, UnixStream::pair().unwrap().0.into()),
        "unix-of-own" => (Network::None, UnixStream::pair().unwrap().0.into()),
        _ => (Network::None, UdpSocket::bind("127.0.0.1:0").unwrap().into()),
    };
    let directory = state.join("volume");
    fs::create_dir(&directory).unwrap();
    let path = directory.join("accomplice");
    let accomplice = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let gives = std::thread::spawn(move || {
        let (connection, _) = accomplice.accept().unwrap();
        let (bytes, rights) = ([IoSlice::new(b"x")], [socket.as_raw_fd()]);
        let rights = [ControlMessage::ScmRights(&rights)];
        let flags = MsgFlags::empty();
        sendmsg::<()>(connection.as_raw_fd(), &bytes, &rights, flags, None).unwrap();
    });
    let mounts = vec![Mount::volume(&directory, "/volume", Access::ReadWrite)];
    let sandbox = Sandbox::create(Config { mounts, network, ..config(state, way) }).unwrap();
    gives.join().unwrap();
    fs::remove_dir_all(directory).unwrap();
    let ok = |()| "Ok".to_owned();
    if call.starts_with("unix") {
        let mut files = sandbox.files();
        return timed(|| files.timeout(BOUND).connect_unix("/x").map(drop), ok);
    }
    inside(call, &sandbox)
}

/// Asks for a terminal, and has no descriptor left when it comes, which it does when it is told to:
/// when the call is in `poll`, number 7.
fn terminal_without_descriptors(sandbox: &Sandbox) -> Outcome {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 256, hard).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (done, until_done) = channel::<()>();
    let caller = fs::File::open("/proc/thread-self/syscall").unwrap();
    let rest = std::thread::spawn(move || {
        let (connection, _) = listener.accept().unwrap();
        // What the call has sent it closes before it waits.
        let is_waiting = || {
            let mut now = [0; 64];
            let count = caller.read_at(&mut now, 0).unwrap();
            now[..count].starts_with(b"7 ")
        };
        while !is_waiting() {
            std::thread::yield_now();
        }
        let held: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
        connection.shutdown(Shutdown::Write).unwrap();
        let _ = until_done.recv();
        drop(held);
    });
    let mut command = sandbox.command("x");
    command.arg(port.to_string()).terminal(24, 80);
    let outcome = timed(|| command.spawn(), |child| child.id().to_string());
    drop(done);
    rest.join().unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    outcome
}

/// A job that was sent a signal after it was started.
fn started(sandbox: &Sandbox) -> adl_runtime::Result<Child> {
    let child = sandbox.command("x").spawn()?;
    child.handle().signal(1, Scope::Process)?;
    Ok(child)
}

/// A job that has told, by its stdout, that it has done what it wanted to, when it was known to
/// run.
fn begun(sandbox: &Sandbox) -> Child {
    let mut child = sandbox.command("x").stdout(Stdio::piped()).spawn().unwrap();
    child.signal(1, Scope::Process).unwrap();
    let mut byte = [0];
    child.stdout.take().unwrap().read_exact(&mut byte).unwrap();
    child
}

fn file_call(call: &str, files: &mut Files, state: &Path) -> Outcome {
    let ok = |()| "Ok".to_owned();
    let files = files.timeout(BOUND).limit(1 << 20).entry_limit(1000);
    let out = state.join("out");
    match call {
        "read" => timed(|| files.read_file("/x"), |bytes| format!("{} bytes", bytes.len())),
        "range" => {
            timed(|| files.read_range("/x", 0, 10), |bytes| format!("{} bytes", bytes.len()))
        }
        "stream" => timed(
            || {
                let read = files.open_read("/x")?.read_to_end(&mut Vec::new());
                read.map_err(|error| error.downcast::<Error>().unwrap())
            },
            |count| format!("{count} bytes"),
        ),
        "write" => timed(|| files.write_file("/x", vec![0; 1 << 20]), ok),
        "metadata" => timed(|| files.metadata("/x"), |metadata| format!("{metadata:?}")),
        "link" => timed(
            || files.read_link("/x"),
            |path: PathBuf| format!("{} bytes", path.as_os_str().len()),
        ),
        "list" => timed(|| files.list_dir("/x"), |entries| format!("{} entries", entries.len())),
        "remove" => timed(|| files.remove_dir_all("/x"), ok),
        "copy-out" => {
            fs::create_dir(&out).unwrap();
            fs::write(out.join("canary"), "canary").unwrap();
            timed(|| files.copy_out("/x", out.join("copy")).map(drop), ok)
        }
        "copy-in" => timed(|| files.copy_in("/usr/bin", "/x").map(drop), ok),
        "tar" => timed(|| files.export_tar("/x", std::io::sink()).map(drop), ok),
        call => panic!("what is {call}?"),
    }
}

/// The kind of an error, and what it says.
fn tell(error: &Error) -> String {
    let kind = format!("{error:?}");
    let kind = kind.split([' ', '{']).next().unwrap();
    format!("{kind}: {}", error.to_string().escape_debug())
}

#[derive(Debug, Clone)]
struct Census {
    descriptors: Vec<u64>,
    threads: usize,
    peak: u64,
    cpu: Duration,
}

/// What must be as it was.
impl PartialEq for Census {
    fn eq(&self, other: &Self) -> bool {
        (self.descriptors.len(), self.threads) == (other.descriptors.len(), other.threads)
    }
}

impl Census {
    fn take() -> Self {
        let threads = fs::read_dir("/proc/self/task").unwrap().count();
        Self { descriptors: descriptors(), threads, peak: peak(), cpu: cpu() }
    }
}

fn descriptors() -> Vec<u64> {
    let all = fs::read_dir("/proc/self/fd").unwrap();
    all.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let time = |time: nix::sys::time::TimeVal| {
        Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap())
    };
    time(usage.user_time()) + time(usage.system_time())
}

/// Has setsockopt(2) not know SO_PASSRIGHTS.
fn refuse_passrights() {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };
    const SETSOCKOPT: i64 = 54;
    const SOL_SOCKET: u64 = 1;
    const SO_PASSRIGHTS: u64 = 83;
    const ENOPROTOOPT: u32 = 92;
    let is = |argument, value| {
        let (length, equal) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
        SeccompCondition::new(argument, length, equal, value).unwrap()
    };
    let rule = SeccompRule::new(vec![is(1, SOL_SOCKET), is(2, SO_PASSRIGHTS)]).unwrap();
    let rules = [(SETSOCKOPT, vec![rule])].into();
    let refused = SeccompAction::Errno(ENOPROTOOPT);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, TargetArch::x86_64);
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}
