//! Ports under attack and in numbers: what one sandbox does to its connections is nothing to
//! others, nor to the caller, and nothing is left.

use std::fs;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adl_runtime::{
    Config, ConnectionLimits, Error, Forward, Limits, Port, Publish, Sandbox, Stdio,
};
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::forks::fork;
use crate::harness::{Home, Need, at_most, needs, within};
use crate::helper::{self, AS_A_USER, Helper, say};
use crate::own_namespaces::give_to_nobody;
use crate::ports::{ECHO, HOLDS, any, connect, published, read, runs, stats};
use crate::{census, injected};

const PYTHON: &[Need] = &[Need::Program("python3")];
/// Long enough for anything.
const LONG: Duration = Duration::from_secs(30);

/// The relay of this process, as the kernel shows its thread.
fn relay() -> PathBuf {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let mut relays = tasks.filter(|task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "adl-ports")
    });
    relays.next().expect("no relay")
}

fn count(directory: impl AsRef<Path>) -> usize {
    fs::read_dir(directory).unwrap().count()
}

/// The descriptors of the relay, and how many this process has.
fn descriptors() -> (usize, usize) {
    (count(relay().join("fd")), count("/proc/self/fd"))
}

fn config(state: &Path) -> Config {
    Config { state_directory: Some(state.to_owned()), ..Config::default() }
}

/// A server that ends connections as its clients do, and reads nothing before.
const ENDS: &str = "import select, socket, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
s = socket.create_server(('0.0.0.0', 80), backlog=1024)
print('ready', flush=True)
poll, held = select.epoll(), {}
poll.register(s)
while True:
    for fd, event in poll.poll():
        if fd == s.fileno():
            c = s.accept()[0]
            held[c.fileno()] = c
            poll.register(c, select.EPOLLRDHUP)
        else: held.pop(fd).close()";

/// What a connection of a port to an echo takes there and back.
fn says(stream: &mut TcpStream, what: &[u8]) {
    stream.write_all(what).unwrap();
    let mut back = vec![0; what.len()];
    stream.read_exact(&mut back).unwrap();
    assert!(back == what);
}

/// A helper as who runs the tests and, where that is root, as an ordinary user.
fn as_anyone(role: &str) -> Vec<String> {
    if !needs(PYTHON) {
        return Vec::new();
    }
    let user = needs(&[Need::Root, Need::Userns]).then(|| format!("{AS_A_USER}{role}"));
    [role.to_owned()].into_iter().chain(user).collect()
}

fn home_of(role: &str) -> Home {
    let home = Home::new();
    if role.starts_with(AS_A_USER) {
        give_to_nobody(&home);
    }
    home
}

#[test]
fn a_thousand_connections_take_little_memory_and_no_descriptor_of_the_callers() {
    for role in as_anyone("hold-a-thousand-connections") {
        let home = home_of(&role);
        Helper::start(&role, &home.state()).finish();
        assert_eq!(home.left(), [""; 0]);
    }
}

/// The helper of the test above.
pub(crate) fn hold_a_thousand_connections(state: &Path) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(8192), hard).unwrap();
    let sandbox = Sandbox::create(config(state)).unwrap();
    let _server = runs(&sandbox, HOLDS);
    let port = published(&sandbox);
    drop(connect(&port));
    assert!(within(LONG, || stats(&sandbox).begun == 1));
    let own = std::process::id().cast_signed();
    let (memory, before) = (census::resident(own), descriptors());
    let all: Vec<_> = (0..1000).map(|_| connect(&port)).collect();
    assert!(within(LONG, || stats(&sandbox).open >= 1000));
    let (relays, callers) = descriptors();
    // Both ends of each are the relay's, and what the caller has is what it has opened itself.
    assert!(relays >= before.0 + 2000 && relays <= before.0 + 2064, "{before:?} {relays}");
    assert_eq!(callers, before.1 + 1000);
    let grown = census::resident(own).saturating_sub(memory);
    assert!(grown <= 4096, "{grown} KiB");
    // All of them carry what is sent: they are not only there.
    for mut stream in &all {
        stream.write_all(b"x").unwrap();
    }
    assert!(within(LONG, || stats(&sandbox).bytes_in == 1000));
    drop(all);
    sandbox.delete().unwrap();
    assert!(within(LONG, || descriptors().1 < before.1));
    assert!(descriptors().0 < before.0);
    adl_runtime::finish_removals();
}

#[test]
fn where_the_caller_may_have_few_descriptors_it_has_them() {
    if needs(PYTHON) {
        let home = Home::new();
        Helper::start("have-few-descriptors", &home.state()).finish();
    }
}

/// The helper of the test above.
pub(crate) fn have_few_descriptors(state: &Path) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 1024, hard).unwrap();
    let [one, other] = [(); 2].map(|()| Sandbox::create(config(state)).unwrap());
    let _servers = [&one, &other].map(|sandbox| runs(sandbox, ENDS));
    let (port, others) = (published(&one), published(&other));
    let all: Vec<_> = (0..300).map(|_| connect(&port)).collect();
    assert!(within(LONG, || stats(&one).open == 300));
    // The caller has all that it had, but for what it has opened.
    assert!(count("/proc/self/fd") < 400);
    let more: Vec<_> = (0..200).map(|_| connect(&port)).collect();
    // What there is no room for waits; another sandbox has its own.
    let theirs: Vec<_> = (0..50).map(|_| connect(&others)).collect();
    assert!(within(LONG, || stats(&other).open == 50), "{:?}", stats(&other));
    let open = stats(&one).open;
    assert!((300..500).contains(&open), "{open}");
    assert!(count(relay().join("fd")) < 1024);
    // When some end, those that wait come.
    drop(all);
    assert!(within(LONG, || stats(&one).begun == 500), "{:?}", stats(&one));
    drop((more, theirs));
    assert!(one.command("true").status().unwrap().success());
}

/// Waits between two answers of an echo; returns the longest while something is done.
fn longest_stall(port: &Port, work: impl FnOnce()) -> Duration {
    let mut stream = connect(port);
    stream.set_nodelay(true).unwrap();
    let is_over = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let beats = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while is_over.load(Ordering::Relaxed) == 0 {
                let begin = Instant::now();
                says(&mut stream, b"beat");
                longest = longest.max(begin.elapsed());
            }
            longest
        });
        work();
        is_over.store(1, Ordering::Relaxed);
        beats.join().unwrap()
    })
}

/// Opens so many connections to the port of 127.0.0.1 as it may, and does not read; every second is
/// half closed, every third has a byte out of band.
const FLOODS: &str = "import socket, resource, time
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
print('ready', flush=True)
all, end = [], time.monotonic() + 3
for n in range(10000):
    try:
        s = socket.socket()
        s.settimeout(0.01)
        s.connect(('127.0.0.1', 81))
        if n % 2: s.shutdown(socket.SHUT_WR)
        if n % 3 == 0: s.send(b'!', socket.MSG_OOB)
        s.send(b'x' * 100)
    except OSError: pass
    all.append(s)
    if time.monotonic() > end: break
print('done', len(all), flush=True)
time.sleep(1000)";

#[test]
fn a_guest_that_floods_its_port_stalls_no_other_sandbox() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let (quiet, evil) = (home.sandbox(), home.sandbox());
    let _server = runs(&quiet, ECHO);
    let port = published(&quiet);
    // A service that sends without an end to who never reads.
    let service = TcpListener::bind(any()).unwrap();
    let address = service.local_addr().unwrap();
    evil.forward(&Forward::new(81, address)).unwrap();
    let is_over = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            service.set_nonblocking(true).unwrap();
            let mut all = Vec::new();
            while is_over.load(Ordering::Relaxed) == 0 {
                if let Ok((stream, _)) = service.accept() {
                    stream.set_nonblocking(true).unwrap();
                    all.push(stream);
                }
                for mut stream in all.iter().rev().take(50) {
                    let _ = stream.write(&[7; 65_536]);
                }
            }
        });
        let stall = longest_stall(&port, || {
            let mut command = evil.command("python3");
            let mut floods = command.args(["-c", FLOODS]).stdout(Stdio::piped()).spawn().unwrap();
            let mut said = String::new();
            let mut stdout = floods.stdout.take().unwrap();
            let mut chunk = [0; 100];
            while !said.contains("done") {
                let count = stdout.read(&mut chunk).unwrap();
                assert!(count > 0, "{said}");
                said.push_str(std::str::from_utf8(&chunk[..count]).unwrap());
            }
            let stats = stats(&evil);
            assert!(stats.begun > 100, "{stats:?}");
        });
        is_over.store(1, Ordering::Relaxed);
        // Who floods has one of two processors, too.
        assert!(stall < at_most(Duration::from_millis(50)), "{stall:?}");
    });
    // And at its end all of it is gone.
    evil.delete().unwrap();
    assert!(within(LONG, || descriptors().0 < 64), "{:?}", descriptors());
    says(&mut connect(&port), b"still there");
}

#[test]
fn a_server_that_takes_no_connection_holds_up_none_of_another() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let (quiet, evil) = (home.sandbox(), home.sandbox());
    let _server = runs(&quiet, ECHO);
    let port = published(&quiet);
    let script = "import socket, time
s = socket.create_server(('0.0.0.0', 80), backlog=1)
print('ready', flush=True)
time.sleep(1000)";
    let _evil = runs(&evil, script);
    let limits = ConnectionLimits { connections: Some(100), ..ConnectionLimits::default() };
    let stuck = evil.publish(&Publish { limits, ..Publish::new(any(), 80) }).unwrap();
    let mut all = Vec::new();
    let stall = longest_stall(&port, || {
        all.extend((0..300).map(|_| connect(&stuck)));
        // Those that the server's backlog has no room for are given up in their time.
        assert!(within(LONG, || stats(&evil).failed > 0));
    });
    assert!(stall < at_most(Duration::from_millis(50)), "{stall:?}");
    assert!(stats(&evil).open <= 100);
}

#[test]
fn the_streams_of_64_sandboxes_get_on_alike() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let service = TcpListener::bind(any()).unwrap();
    let address = service.local_addr().unwrap();
    let sandboxes: Vec<_> = (0..64).map(|_| home.sandbox()).collect();
    let script = "exec 3<>/dev/tcp/127.0.0.1/81; exec cat /dev/zero >&3";
    let _jobs: Vec<_> = sandboxes
        .iter()
        .map(|sandbox| {
            sandbox.forward(&Forward::new(81, address)).unwrap();
            sandbox.shell(script).spawn().unwrap()
        })
        .collect();
    let mut streams: Vec<_> = (0..64).map(|_| service.accept().unwrap().0).collect();
    streams.iter_mut().for_each(|stream| stream.set_read_timeout(Some(LONG)).unwrap());
    // Who reads takes from each in turn, so that it is the relay alone that favours any.
    let mut counts = [0; 64];
    let begin = Instant::now();
    let mut buffer = vec![0; 1 << 20];
    streams.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    while begin.elapsed() < Duration::from_secs(4) {
        for (stream, count) in streams.iter_mut().zip(&mut counts) {
            match stream.read(&mut buffer) {
                Ok(0) => panic!("it has ended"),
                Ok(some) => *count += some,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
    }
    let mean = counts.iter().sum::<usize>() / 64;
    let least = *counts.iter().min().unwrap();
    println!("the least of 64 streams: {:.2} of their mean", least as f64 / mean as f64);
    assert!(2 * least >= mean, "{counts:?}");
}

#[test]
fn a_fork_of_the_caller_holds_no_connection_open() {
    for role in as_anyone("fork-beside-connections") {
        let home = home_of(&role);
        Helper::start(&role, &home.state()).finish();
    }
}

/// The helper of the test above.
pub(crate) fn fork_beside_connections(state: &Path) {
    let sandbox = Sandbox::create(config(state)).unwrap();
    let script = "import socket
s = socket.create_server(('0.0.0.0', 80))
print('ready', flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b'x')
    while c.recv(100): pass
    c.close()";
    let _server = runs(&sandbox, script);
    let port = published(&sandbox);
    let server = TcpListener::bind(any()).unwrap();
    let mut client = std::process::Command::new("python3")
        .args([
            "-c",
            "import socket,sys\nc=socket.create_connection(('127.0.0.1',int(sys.argv[1])))
print(c.recv(1)); sys.stdout.flush(); sys.stdin.readline(); c.close()",
        ])
        .arg(port.address().port().to_string())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 5];
    client.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    drop(server);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    // It lives on, with all that it has a copy of.
    let forked = fork(|| {
        let _ = (&theirs).read(&mut [0]);
    });
    // By a word, and not by the end of its stdin, of which the fork has a copy.
    client.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(client.wait().unwrap().success());
    // The server has seen its end, and the relay both.
    assert!(within(LONG, || stats(&sandbox).open == 0 && stats(&sandbox).failed == 0));
    // So does one that is cut off, and the port.
    let mut stream = connect(&port);
    stream.read_exact(&mut [0]).unwrap();
    sandbox.close_port(&port).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let error = TcpStream::connect(port.address()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    // Of which the fork has a copy, too.
    ours.shutdown(std::net::Shutdown::Both).unwrap();
    crate::forks::finish(forked);
}

#[test]
fn a_port_of_a_sandbox_that_a_snapshot_has_ended_turns_away_who_comes() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    Helper::start("snapshot-with-few-descriptors", &home.state()).finish();
}

/// The helper of the test above: the next life begins, and there are no descriptors for what
/// listens in it.
pub(crate) fn snapshot_with_few_descriptors(state: &Path) {
    let to = SocketAddr::from(([127, 0, 0, 1], 1));
    let forward = (0..40).map(|_| Forward::new(0, to)).collect();
    let publish = vec![Publish::new(any(), 80)];
    let sandbox = Sandbox::create(Config { publish, forward, ..config(state) }).unwrap();
    sandbox.snapshot().unwrap();
    adl_runtime::finish_removals();
    let port = sandbox.ports().remove(0);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let free = std::io::stdin().as_fd().try_clone_to_owned().unwrap().as_raw_fd();
    for spare in (0..100).step_by(3) {
        let most = u64::try_from(free + spare).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most, hard).unwrap();
        let made = sandbox.snapshot();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        say(format!("{spare} {:?} {}", made.is_ok(), sandbox.is_alive()));
        let mut stream = connect(&port);
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{spare}");
        if !sandbox.is_alive() {
            sandbox.reset().unwrap();
        }
    }
}

#[test]
fn what_the_kernel_takes_no_descriptors_for_ends_no_connection() {
    // Of one with the rights of root it takes any number.
    if !needs(PYTHON) || !needs(&[Need::Root, Need::Userns]) {
        return;
    }
    let role = format!("{AS_A_USER}have-descriptors-on-their-way");
    let home = home_of(&role);
    Helper::start(&role, &home.state()).finish();
}

/// The helper of the test above. All processes of a user count together, and so those in a sandbox
/// of an ordinary user's.
pub(crate) fn have_descriptors_on_their_way(state: &Path) {
    let sandbox = Sandbox::create(config(state)).unwrap();
    let _server = runs(&sandbox, ECHO);
    let port = published(&sandbox);
    let mut stream = connect(&port);
    says(&mut stream, b"before");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 256, hard).unwrap();
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let numbers = [one.as_raw_fd(); 200];
    let rights = [ControlMessage::ScmRights(&numbers)];
    let bytes = [IoSlice::new(b"x")];
    let send = || sendmsg::<()>(one.as_raw_fd(), &bytes, &rights, MsgFlags::MSG_DONTWAIT, None);
    assert_eq!([send(), send(), send()], [Ok(1), Ok(1), Err(Errno::ETOOMANYREFS)]);
    let error = sandbox.publish(&Publish::new(any(), 80)).unwrap_err();
    let Error::Io { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.raw_os_error(), Some(libc::ETOOMANYREFS), "{error}");
    says(&mut stream, b"meanwhile");
    says(&mut connect(&port), b"one more");
    drop((one, other));
    let again = || sandbox.publish(&Publish::new(any(), 80));
    assert!(within(LONG, || again().is_ok()), "{:?}", again());
    says(&mut stream, b"afterwards");
    assert!(sandbox.ports().len() > 1);
}

#[test]
fn a_caller_that_is_killed_leaves_no_port_and_no_connection() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let mut helper = Helper::start("hold-a-port", &home.state());
    let address: SocketAddr = helper.next().unwrap().parse().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    says(&mut stream, b"there");
    for process in helper.stop_and_kill() {
        assert!(within(LONG, || !process.exists()), "{process:?}");
    }
    // The server has not told an end.
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let error = TcpStream::connect(address).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let collected = adl_runtime::collect_garbage(Some(&home.state()));
    assert!(collected.is_ok(), "{collected:?}");
}

/// The helper of the test above.
pub(crate) fn hold_a_port(state: &Path) {
    let sandbox = Sandbox::create(config(state)).unwrap();
    let _server = runs(&sandbox, ECHO);
    say(published(&sandbox).address());
    loop {
        std::thread::park();
    }
}

#[test]
fn two_thousand_connections_leave_nothing() {
    for role in as_anyone("connect-often") {
        let home = home_of(&role);
        let mut command = helper::command(&role, &home.state());
        command.env(injected::PLAN, "2000");
        Helper::start_as(command).finish();
    }
}

#[test]
#[ignore = "takes a minute or more"]
fn a_hundred_thousand_connections_leave_nothing() {
    if needs(PYTHON) {
        let home = Home::of_a_test_that_takes(Duration::from_secs(1800));
        let mut command = helper::command("connect-often", &home.state());
        command.env(injected::PLAN, "100000");
        let mut helper = Helper::start_as(command);
        while let Some(line) = helper.next() {
            println!("{line}");
        }
        helper.finish();
    }
}

/// The helper of the tests above.
pub(crate) fn connect_often(state: &Path) {
    let times: u64 = std::env::var(injected::PLAN).unwrap().parse().unwrap();
    let sandbox = Sandbox::create(config(state)).unwrap();
    let script = "import socket
s = socket.create_server(('0.0.0.0', 80), backlog=1024)
print('ready', flush=True)
while True:
    c, _ = s.accept()
    c.sendall(c.recv(100))
    c.close()";
    let _server = runs(&sandbox, script);
    let port = published(&sandbox);
    let once = || {
        let mut stream = connect(&port);
        stream.write_all(b"once").unwrap();
        assert_eq!(read(stream), "once");
    };
    (0..500).for_each(|_| once());
    assert!(within(LONG, || stats(&sandbox).open == 0));
    let own = std::process::id().cast_signed();
    let (memory, before) = (census::resident(own), descriptors());
    let begin = Instant::now();
    (0..times).for_each(|_| once());
    let took = begin.elapsed();
    assert!(within(LONG, || stats(&sandbox).open == 0));
    let after = stats(&sandbox);
    assert_eq!((after.begun, after.failed), (times + 500, 0));
    assert_eq!(descriptors(), before);
    let grown = census::resident(own).saturating_sub(memory);
    assert!(grown <= 1024, "{grown} KiB");
    say(format_args!("{times} connections: {took:?}, {grown} KiB more"));
}

/// How many network namespaces the kernel has, if it tells.
fn network_namespaces() -> Option<u64> {
    let text = fs::read_to_string("/proc/slabinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("net_namespace "))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn no_network_namespace_is_kept() {
    if !needs(&[PYTHON[0], Need::Root]) {
        return;
    }
    let home = Home::new();
    let cycle = || {
        let sandbox = home.sandbox();
        let _server = runs(&sandbox, HOLDS);
        let port = published(&sandbox);
        sandbox.forward(&Forward::new(81, port.address())).unwrap();
        let streams: Vec<_> = (0..10).map(|_| connect(&port)).collect();
        let mut stream = &streams[0];
        // Bytes that no one ever reads are on their way.
        stream.write_all(&[7; 100_000]).unwrap();
        sandbox.reset().unwrap();
        let _server = runs(&sandbox, HOLDS);
        let more: Vec<_> = (0..10).map(|_| connect(&port)).collect();
        assert!(within(LONG, || stats(&sandbox).open >= 10));
        sandbox.delete().unwrap();
        drop((streams, more));
    };
    cycle();
    let Some(before) = network_namespaces() else {
        // A kernel that does not count them by themselves.
        return;
    };
    (0..30).for_each(|_| cycle());
    // Others make some of their own meanwhile, and the kernel ends each a little later.
    let settled = || network_namespaces().unwrap() < before + 20;
    assert!(within(LONG, settled), "{before} {:?}", network_namespaces());
}

#[test]
fn a_frozen_sandbox_is_nothing_to_others() {
    if !needs(&[PYTHON[0], Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let limits = Limits { accounting: true, ..Limits::default() };
    let frozen = Sandbox::create(Config { limits, ..home.config() }).unwrap();
    let quiet = home.sandbox();
    let _servers = [runs(&frozen, ECHO), runs(&quiet, ECHO)];
    let (stuck, port) = (published(&frozen), published(&quiet));
    let mut stream = connect(&stuck);
    says(&mut stream, b"before");
    frozen.freeze().unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let stall = longest_stall(&port, || {
        let end = Instant::now() + Duration::from_millis(500);
        while Instant::now() < end {
            sent += stream.write(&[7; 65_536]).unwrap_or(0);
        }
    });
    // What waits in the kernel has a bound: that of the test's own socket, the relay's and the
    // server's.
    assert!(sent < 16 << 20, "{sent}");
    assert!(stall < at_most(Duration::from_millis(50)), "{stall:?}");
    frozen.thaw().unwrap();
    stream.set_nonblocking(false).unwrap();
    let mut back = vec![0; sent];
    stream.read_exact(&mut back).unwrap();
    says(&mut stream, b"after");
}

/// What a server does to connections that each say `x` first.
fn serving(does: &str) -> String {
    format!(
        "import socket, struct, time
def reset(c):
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    c.close()
s = socket.create_server(('0.0.0.0', 80), backlog=1024)
print('ready', flush=True)
while True:
    c, _ = s.accept()
    c.recv(1)
    {does}"
    )
}

/// How much comes of a stream, and whether its end is one.
fn rest_of(stream: &mut TcpStream) -> (usize, bool) {
    let (mut count, mut buffer) = (0, vec![0; 65_536]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (count, true),
            Ok(some) => count += some,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
                return (count, false);
            }
        }
    }
}

#[test]
fn an_error_is_never_taken_for_an_end_whatever_is_on_its_way() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    for (does, least) in [
        // In the middle of much.
        (
            "end = time.monotonic() + 0.3
    while time.monotonic() < end: c.sendall(b'x' * 100_000)
    reset(c)",
            1,
        ),
        // While bytes of the client's wait that it does not read.
        ("c.sendall(b'answer'); time.sleep(0.1); reset(c)", 6),
        // An early answer, and a close that leaves what has come: the kernel tells that by a reset.
        ("c.sendall(b'y' * 30_000); c.close()", 30_000),
    ] {
        let sandbox = home.sandbox();
        let _server = runs(&sandbox, &serving(does));
        let port = published(&sandbox);
        for _ in 0..10 {
            let mut stream = connect(&port);
            let mut writes = stream.try_clone().unwrap();
            let (count, is_end) = std::thread::scope(|scope| {
                // It is cut off. The kernel tells an error once, to who writes or who reads.
                let upload = scope.spawn(move || writes.write_all(&vec![b'x'; 3_000_000]));
                std::thread::sleep(Duration::from_millis(50));
                let (count, is_end) = rest_of(&mut stream);
                (count, is_end && upload.join().unwrap().is_ok())
            });
            assert!(!is_end && count >= least, "{does}: {count} bytes, and an end: {is_end}");
        }
    }
}

#[test]
fn where_the_relay_has_no_descriptor_left_that_is_told_and_others_go_on() {
    if needs(PYTHON) {
        let home = Home::new();
        Helper::start("take-all-ports", &home.state()).finish();
    }
}

/// The helper of the test above.
pub(crate) fn take_all_ports(state: &Path) {
    let [greedy, other] = [(); 2].map(|()| Sandbox::create(config(state)).unwrap());
    let _server = runs(&other, ECHO);
    let port = published(&other);
    let mut stream = connect(&port);
    says(&mut stream, b"before");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 200, hard).unwrap();
    let error = (0..400).find_map(|_| greedy.publish(&Publish::new(any(), 80)).err()).unwrap();
    assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
    says(&mut stream, b"meanwhile");
    assert!(greedy.stats().is_ok() && greedy.command("true").status().unwrap().success());
    greedy.delete().unwrap();
    other.publish(&Publish::new(any(), 80)).unwrap();
    says(&mut connect(&port), b"after");
    says(&mut stream, b"after");
}

#[test]
fn whichever_address_a_server_has_no_one_of_many_is_refused() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = "import socket
s = socket.create_server(('::1', 80), family=socket.AF_INET6, backlog=1024)
print('ready', flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b'six')
    c.close()";
    let _server = runs(&sandbox, script);
    let port = published(&sandbox);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| (0..40).for_each(|_| assert_eq!(read(connect(&port)), "six")));
        }
    });
}

#[test]
fn connections_of_a_port_share_its_rate_and_a_byte_out_of_band_is_kept() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let _server = runs(&sandbox, ECHO);
    let rate =
        ConnectionLimits { bytes_per_second: Some(1_000_000), ..ConnectionLimits::default() };
    let port = sandbox.publish(&Publish { limits: rate, ..Publish::new(any(), 80) }).unwrap();
    let streams: Vec<_> = (0..8).map(|_| connect(&port)).collect();
    let begin = Instant::now();
    let counts: Vec<usize> = std::thread::scope(|scope| {
        let each = |mut stream: TcpStream| {
            let mut writes = stream.try_clone().unwrap();
            scope.spawn(move || while writes.write_all(&[7; 4096]).is_ok() {});
            scope.spawn(move || {
                let mut count = 0;
                while begin.elapsed() < Duration::from_secs(3) {
                    count += stream.read(&mut [0; 4096]).unwrap();
                }
                stream.shutdown(std::net::Shutdown::Both).unwrap();
                count
            })
        };
        let all: Vec<_> = streams.into_iter().map(each).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let mean = counts.iter().sum::<usize>() / counts.len();
    assert!(counts.iter().all(|count| 2 * count >= mean), "{counts:?} {:?}", stats(&sandbox));
    // One that waits in the backlog has sent it before anyone could ask for it.
    let one = ConnectionLimits { connections: Some(1), ..ConnectionLimits::default() };
    let port = sandbox.publish(&Publish { limits: one, ..Publish::new(any(), 80) }).unwrap();
    let mut first = connect(&port);
    says(&mut first, b"first");
    let mut stream = connect(&port);
    let out_of_band = |byte: &[u8]| {
        let flags = nix::sys::socket::MsgFlags::MSG_OOB;
        nix::sys::socket::send(std::os::fd::AsRawFd::as_raw_fd(&stream), byte, flags).unwrap()
    };
    out_of_band(b"!");
    out_of_band(b"?");
    stream.write_all(b"end").unwrap();
    drop(first);
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"!?end");
}

#[test]
fn a_sandbox_with_the_hosts_network_has_no_ports_of_its_own() {
    let home = Home::new();
    let config = Config { network: adl_runtime::Network::Host, ..home.config() };
    let sandbox = Sandbox::create(config).unwrap();
    let refused = [
        sandbox.publish(&Publish::new(any(), 80)).unwrap_err(),
        sandbox.forward(&Forward::new(80, ([127, 0, 0, 1], 1))).unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, adl_runtime::Error::Invalid { .. }), "{error}");
    }
}
