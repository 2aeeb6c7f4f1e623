//! Ports that lead into a sandbox and out of it: what passes, what does not, and how it ends.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use adl_runtime::{
    Child, Config, ConnectionEnd, ConnectionEndReason, ConnectionLimits, ConnectionStats, Error,
    Forward, Mount, Port, Publish, Sandbox, Stdio,
};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Home, NOBODY, Need, at_most, needs, shell, succeeds, within};

const PYTHON: &[Need] = &[Need::Program("python3")];
/// Long enough for anything.
const LONG: Duration = Duration::from_secs(20);

/// Has python run a script inside that says when it is ready, and goes on.
#[track_caller]
pub(crate) fn runs(sandbox: &Sandbox, script: &str) -> Child {
    let mut command = sandbox.command("python3");
    let mut child = command.args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "{script}");
    child
}

/// A server that tells each client a name and who the client is, and ends.
#[track_caller]
fn serves(sandbox: &Sandbox, ip: &str, port: u16, name: &str) -> Child {
    let family = if ip.contains(':') { "AF_INET6" } else { "AF_INET" };
    let script = format!(
        "import socket
s = socket.create_server(('{ip}', {port}), family=socket.{family}, backlog=1024)
print('ready', flush=True)
while True:
    c, a = s.accept()
    c.sendall(('{name} ' + a[0]).encode())
    c.close()"
    );
    runs(sandbox, &script)
}

/// A server that sends back all that it reads, in a thread for each client.
pub(crate) const ECHO: &str = "import socket, threading
def serve(c):
    while True:
        data = c.recv(1 << 20)
        if not data: break
        c.sendall(data)
    c.close()
s = socket.create_server(('0.0.0.0', 80), backlog=1024)
print('ready', flush=True)
while True:
    c, _ = s.accept()
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=serve, args=(c,), daemon=True).start()";

/// A server that takes connections, and does nothing with them.
pub(crate) const HOLDS: &str = "import socket, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
s = socket.create_server(('0.0.0.0', 80), backlog=1024)
print('ready', flush=True)
held = []
while True: held.append(s.accept()[0])";

pub(crate) fn any() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn any_server() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 1).into()
}

#[track_caller]
pub(crate) fn published(sandbox: &Sandbox) -> Port {
    sandbox.publish(&Publish::new(any(), 80)).unwrap()
}

#[track_caller]
pub(crate) fn connect(port: &Port) -> TcpStream {
    let stream = TcpStream::connect(port.address()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    stream
}

#[track_caller]
pub(crate) fn read(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Whether a stream ends by a reset: not as one does that has an end.
#[track_caller]
fn is_reset(mut stream: impl Read) -> bool {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            true
        }
    }
}

#[track_caller]
pub(crate) fn stats(sandbox: &Sandbox) -> ConnectionStats {
    sandbox.stats().unwrap().connections.unwrap()
}

/// What connections have come to, when there are none any more: one is over when its server has
/// heard of its end, too.
#[track_caller]
fn when_all_have_ended(sandbox: &Sandbox) -> ConnectionStats {
    assert!(within(LONG, || stats(sandbox).open == 0));
    stats(sandbox)
}

/// The ends of connections that are told.
fn ends(sandbox: &Sandbox) -> mpsc::Receiver<ConnectionEnd> {
    let (tell, told) = mpsc::channel();
    sandbox.watch_connections(move |end| drop(tell.send(end))).unwrap();
    told
}

#[test]
fn a_server_is_reached_wherever_it_listens_and_sees_no_one_from_127() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    for (ip, from) in [
        ("0.0.0.0", "198.18.0.1"),
        ("127.0.0.1", "198.18.0.1"),
        ("198.18.0.1", "198.18.0.1"),
        ("::1", "::1"),
    ] {
        let sandbox = home.sandbox();
        let port = published(&sandbox);
        assert_eq!(port.published(), Some(80));
        // Before there is a server, and after that there is one.
        assert!(is_reset(connect(&port)), "{ip}");
        let _server = serves(&sandbox, ip, 80, "server");
        for _ in 0..3 {
            assert_eq!(read(connect(&port)), format!("server {from}"), "{ip}");
        }
        let stats = when_all_have_ended(&sandbox);
        assert_eq!((stats.begun, stats.failed), (4, 1), "{stats:?}");
        assert_eq!(stats.bytes_out, 3 * ("server ".len() + from.len()) as u64);
    }
}

#[test]
fn ports_of_the_configuration_are_there_from_the_beginning() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let server = TcpListener::bind(any()).unwrap();
    let config = Config {
        publish: vec![Publish::new(any(), 80)],
        forward: vec![Forward::new(5432, server.local_addr().unwrap())],
        ..home.config()
    };
    let sandbox = Sandbox::create(config.clone()).unwrap();
    let [into, out] = &*sandbox.ports() else { panic!("{:?}", sandbox.ports()) };
    assert_eq!(out.address(), (Ipv4Addr::LOCALHOST, 5432).into());
    assert_eq!(out.forwarded_to(), [server.local_addr().unwrap()]);
    let _server = serves(&sandbox, "0.0.0.0", 80, "from the beginning");
    assert_eq!(read(connect(into)), "from the beginning 198.18.0.1");
    let mut client = sandbox.shell("exec 3<>/dev/tcp/127.0.0.1/5432; cat <&3");
    let mut client = client.stdout(Stdio::piped()).spawn().unwrap();
    server.accept().unwrap().0.write_all(b"out").unwrap();
    assert_eq!(read(client.stdout.take().unwrap()), "out");
    // A port that is in use is told of, and leaves nothing.
    let twice = Config { publish: vec![Publish::new(into.address(), 80)], ..config };
    let error = Sandbox::create(twice).unwrap_err();
    let Error::Socket { source, address, .. } = &error else { panic!("{error}") };
    assert_eq!((source.raw_os_error(), *address), (Some(libc::EADDRINUSE), into.address()));
    sandbox.delete().unwrap();
    adl_runtime::finish_removals();
    assert_eq!(home.left(), [""; 0]);
}

#[test]
fn who_comes_while_it_is_created_is_turned_away_and_harms_nothing() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let address = TcpListener::bind(any()).unwrap().local_addr().unwrap();
    let config = Config { publish: vec![Publish::new(address, 80)], ..home.config() };
    for _ in 0..5 {
        let is_created = AtomicBool::new(false);
        let sandbox = std::thread::scope(|scope| {
            let come = || {
                while !is_created.load(Ordering::Relaxed) {
                    if let Ok(stream) = TcpStream::connect(address) {
                        stream.set_read_timeout(Some(LONG)).unwrap();
                        assert!(is_reset(stream));
                    }
                }
            };
            let comes = scope.spawn(come);
            let sandbox = Sandbox::create(config.clone()).unwrap();
            is_created.store(true, Ordering::Relaxed);
            comes.join().unwrap();
            sandbox
        });
        let _server = serves(&sandbox, "0.0.0.0", 80, "here");
        assert_eq!(read(connect(&sandbox.ports()[0])), "here 198.18.0.1");
        sandbox.delete().unwrap();
    }
}

#[test]
fn where_one_of_the_configuration_can_not_be_none_is_left() {
    let home = Home::new();
    let address = TcpListener::bind(any()).unwrap().local_addr().unwrap();
    let ways = [
        // The second is in use, and is not of the sandbox.
        vec![Forward::new(81, any_server()), Forward::new(81, any_server())],
        vec![Forward { address: ([203, 0, 113, 9], 81).into(), ..Forward::new(81, any_server()) }],
    ];
    for (forward, errno) in ways.into_iter().zip([libc::EADDRINUSE, libc::EADDRNOTAVAIL]) {
        let publish = vec![Publish::new(address, 80)];
        let config = Config { publish, forward, ..home.config() };
        let error = Sandbox::create(config).unwrap_err();
        let Error::Socket { source, is_inside: true, .. } = &error else { panic!("{error}") };
        assert_eq!(source.raw_os_error(), Some(errno), "{error}");
        let error = TcpStream::connect(address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    // Nor where init can't do what it is to.
    let publish = vec![Publish::new(address, 80)];
    let mounts = vec![Mount::tmpfs("/etc/passwd/no", 1 << 20)];
    let error = Sandbox::create(Config { publish, mounts, ..home.config() }).unwrap_err();
    assert!(matches!(error, Error::Setup { .. }), "{error}");
    let error = TcpStream::connect(address).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    adl_runtime::finish_removals();
    assert_eq!(home.left(), [""; 0]);
}

#[test]
fn what_init_fails_at_is_told_whatever_ports_are_opened_meanwhile() {
    let home = Home::new();
    // They take longer than init, which has ended by then.
    for (forwards, rounds) in [(0, 100), (300, 1)] {
        for _ in 0..rounds {
            let config = Config {
                publish: vec![Publish::new(any(), 80)],
                forward: vec![Forward::new(0, any_server()); forwards],
                mounts: vec![Mount::tmpfs("/etc/passwd/no", 1 << 20)],
                ..home.config()
            };
            let error = Sandbox::create(config).unwrap_err();
            assert!(matches!(error, Error::Setup { .. }), "{error:?}");
        }
    }
    adl_runtime::finish_removals();
    assert_eq!(home.left(), [""; 0]);
}

#[test]
fn where_init_is_killed_in_a_create_that_is_told_and_no_port_is_left() {
    let home = Home::new();
    let address = TcpListener::bind(any()).unwrap().local_addr().unwrap();
    let config = Config {
        publish: vec![Publish::new(address, 80)],
        forward: (81..85).map(|port| Forward::new(port, any_server())).collect(),
        ..home.config()
    };
    let is_done = AtomicBool::new(false);
    // What the thread that creates has cloned and has another name than that: init.
    let task = std::fs::canonicalize("/proc/thread-self").unwrap();
    let name = |task: &Path| std::fs::read_to_string(task.join("comm")).unwrap_or_default();
    let own = name(&task);
    let kill_inits = || {
        for pause in (0..).map(|number| number * 37 % 4000) {
            std::thread::sleep(Duration::from_micros(pause));
            let children = std::fs::read_to_string(task.join("children")).unwrap();
            for child in children.split_whitespace() {
                if ![&own, ""].contains(&&*name(&Path::new("/proc").join(child))) {
                    let _ = kill(Pid::from_raw(child.parse().unwrap()), Signal::SIGKILL);
                }
            }
            if is_done.load(Ordering::Relaxed) {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(kill_inits);
        let created = (0..400).map(|_| {
            let created = Sandbox::create(config.clone()).map(drop);
            let refused = TcpStream::connect(address).unwrap_err();
            (created, refused.kind())
        });
        let created: Vec<_> = created.collect();
        is_done.store(true, Ordering::Relaxed);
        assert!(created.iter().any(|(created, _)| created.is_err()));
        for (created, refused) in created {
            assert!(matches!(created, Ok(()) | Err(Error::SandboxDied)), "{created:?}");
            assert_eq!(refused, ErrorKind::ConnectionRefused);
        }
    });
    adl_runtime::finish_removals();
    assert_eq!(home.left(), [""; 0]);
}

#[test]
fn what_listens_inside_has_what_the_kernels_parameters_say() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let forward = vec![Forward::new(0, any_server())];
    let sysctls = vec![("net.ipv4.ip_local_port_range".into(), "7100 7110".into())];
    let sandbox = Sandbox::create(Config { forward, sysctls, ..home.config() }).unwrap();
    let port = sandbox.ports()[0].address().port();
    assert!((7100..=7110).contains(&port), "{port}");
}

#[test]
fn what_can_not_be_is_refused_and_leaves_the_others() {
    let home = Home::new();
    let sandbox = home.sandbox();
    let limits = ConnectionLimits { connections: Some(0), ..ConnectionLimits::default() };
    let invalid = |result: Result<Port, Error>, name: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    };
    invalid(sandbox.publish(&Publish::new(any(), 0)), "port 0");
    invalid(sandbox.publish(&Publish { limits, ..Publish::new(any(), 80) }), "connections");
    invalid(sandbox.forward(&Forward::new(80, any())), "no server's");
    invalid(sandbox.forward(&Forward { to: vec![], ..Forward::new(80, any()) }), "0 addresses");
    let port = published(&sandbox);
    let twice = sandbox.publish(&Publish::new(port.address(), 81)).unwrap_err();
    assert!(matches!(twice, Error::Socket { .. }), "{twice}");
    let elsewhere = sandbox.publish(&Publish::new(([198, 51, 100, 7], 0), 81)).unwrap_err();
    assert!(elsewhere.to_string().contains("198.51.100.7"), "{elsewhere}");
    assert_eq!(sandbox.ports(), std::slice::from_ref(&port));
    sandbox.close_port(&port).unwrap();
    let error = sandbox.close_port(&port).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    let error = TcpStream::connect(port.address()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    sandbox.delete().unwrap();
    assert!(matches!(sandbox.publish(&Publish::new(any(), 80)), Err(Error::Deleted)));
}

#[test]
fn all_bytes_pass_both_ways_whatever_their_number() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let _server = runs(&sandbox, ECHO);
    let port = published(&sandbox);
    let sizes = [1, 2, 16_383, 16_384, 16_385, 65_536, 500_000, 20_000_000];
    for size in sizes {
        let sent: Vec<u8> = (0..size).map(|i: usize| (i * 7 + i / 251) as u8).collect();
        let mut stream = connect(&port);
        let mut writes = stream.try_clone().unwrap();
        let received = std::thread::scope(|scope| {
            scope.spawn(|| {
                writes.write_all(&sent).unwrap();
                writes.shutdown(Shutdown::Write).unwrap();
            });
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received
        });
        assert!(received == sent, "{size}: {}", received.len());
    }
    let all: usize = sizes.iter().sum();
    let stats = when_all_have_ended(&sandbox);
    assert_eq!((stats.bytes_in, stats.bytes_out, stats.failed), (all as u64, all as u64, 0));
}

#[test]
fn a_byte_out_of_band_is_one_among_the_others() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = "import socket
s = socket.create_server(('0.0.0.0', 80))
print('ready', flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b'a' * 100000)
    c.send(b'!', socket.MSG_OOB)
    c.sendall(b'b' * 100000)
    c.close()";
    let _server = runs(&sandbox, script);
    let port = published(&sandbox);
    let expected = ["a".repeat(100_000), "b".repeat(100_000)].join("!");
    assert!(read(connect(&port)) == expected);
}

#[test]
fn each_side_ends_by_itself() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = "import socket
s = socket.create_server(('0.0.0.0', 80))
print('ready', flush=True)
while True:
    c, _ = s.accept()
    got = b''
    while data := c.recv(100): got += data
    c.sendall(b'got ' + got)
    c.shutdown(socket.SHUT_WR)
    c.close()";
    let _server = runs(&sandbox, script);
    let port = published(&sandbox);
    let ends = ends(&sandbox);
    let mut stream = connect(&port);
    stream.write_all(b"half").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read(&stream), "got half");
    let end = ends.recv_timeout(LONG).unwrap();
    assert_eq!(end.reason, ConnectionEndReason::Closed);
    assert_eq!((end.bytes_in, end.bytes_out, end.untold), (4, 8, 0));
    assert_eq!((end.peer, end.port), (stream.local_addr().unwrap(), port.clone()));
    // And out of it, the other way round.
    let server = TcpListener::bind(any()).unwrap();
    sandbox.forward(&Forward::new(81, server.local_addr().unwrap())).unwrap();
    let script = "exec 3<>/dev/tcp/127.0.0.1/81; cat <&3; echo inside >&3";
    let client = sandbox.shell(script).spawn().unwrap();
    let (mut served, _) = server.accept().unwrap();
    served.write_all(b"first").unwrap();
    served.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read(&served), "inside\n");
    drop((served, client));
    assert_eq!(ends.recv_timeout(LONG).unwrap().reason, ConnectionEndReason::Closed);
}

/// A reset of a stream: its close is told as that, and no end.
fn reset(stream: TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &linger).unwrap();
}

#[test]
fn an_end_by_error_is_one_on_the_other_side() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let ends = ends(&sandbox);
    let next = || ends.recv_timeout(LONG).unwrap().reason;
    // A server of the host's that fails, seen inside; and one that is not there.
    let server = TcpListener::bind(any()).unwrap();
    sandbox.forward(&Forward::new(81, server.local_addr().unwrap())).unwrap();
    let client = "import socket
c = socket.create_connection(('127.0.0.1', 81))
print('ready', flush=True)
try: print(c.recv(10))
except OSError as error: print(error.errno)";
    for is_there in [true, false] {
        let mut command = sandbox.command("python3");
        let mut command = command.args(["-c", client]).stdout(Stdio::piped()).spawn().unwrap();
        if is_there {
            reset(server.accept().unwrap().0);
        }
        let told = read(command.stdout.take().unwrap());
        assert_eq!(told, format!("ready\n{}\n", libc::ECONNRESET));
        match (is_there, next()) {
            (true, ConnectionEndReason::ServerReset) => {}
            (false, ConnectionEndReason::Refused(libc::ECONNREFUSED)) => return,
            other => panic!("{other:?}"),
        }
        // The port stays that of no one: only this process would take it so soon.
        let address = server.local_addr().unwrap();
        nix::sys::socket::shutdown(server.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn a_client_that_resets_is_seen_inside() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = "import socket
s = socket.create_server(('0.0.0.0', 80))
print('ready', flush=True)
c, _ = s.accept()
c.sendall(b'x')
try: print(c.recv(10), flush=True)
except OSError as error: print(error.errno, flush=True)";
    let mut command = sandbox.command("python3");
    let mut server = command.args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let ends = ends(&sandbox);
    let mut stream = connect(&published(&sandbox));
    stream.read_exact(&mut [0]).unwrap();
    reset(stream);
    assert_eq!(lines.next().unwrap().unwrap(), libc::ECONNRESET.to_string());
    assert_eq!(ends.recv_timeout(LONG).unwrap().reason, ConnectionEndReason::ClientReset);
}

#[test]
fn at_a_reset_and_a_delete_all_connections_are_reset_and_the_port_leads_to_what_comes_then() {
    if !needs(PYTHON) {
        return;
    }
    for spare in [false, true] {
        let home = Home::new();
        let sandbox = Sandbox::create(Config { spare, ..home.config() }).unwrap();
        let server = TcpListener::bind(any()).unwrap();
        sandbox.forward(&Forward::new(81, server.local_addr().unwrap())).unwrap();
        let port = published(&sandbox);
        let held = || {
            let _server = runs(&sandbox, HOLDS);
            let all: Vec<_> = (0..100).map(|_| connect(&port)).collect();
            let opened = || stats(&sandbox).open == 101;
            shell(&sandbox, "exec 3<>/dev/tcp/127.0.0.1/81; sleep inf <&3 > /dev/null 2>&1 &");
            let (inner, _) = server.accept().unwrap();
            assert!(within(LONG, opened));
            (all, inner)
        };
        let all_are_reset = |(all, inner): (Vec<TcpStream>, TcpStream), begin: Instant| {
            for stream in all {
                assert!(is_reset(stream));
            }
            assert!(is_reset(inner));
            assert!(begin.elapsed() < at_most(Duration::from_millis(100)), "{:?}", begin.elapsed());
        };
        let connected = held();
        if spare {
            assert!(within(LONG, || sandbox.has_spare()));
        }
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let resets = scope.spawn(|| sandbox.reset().unwrap());
            all_are_reset(connected, begin);
            resets.join().unwrap();
        });
        // The next instance is reached, and reaches what is outside.
        let connected = held();
        let address = port.address();
        sandbox.delete().unwrap();
        all_are_reset(connected, Instant::now());
        let error = TcpStream::connect(address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        adl_runtime::finish_removals();
        drop(sandbox);
        assert_eq!(home.left(), [""; 0]);
    }
}

#[test]
fn who_comes_to_a_sandbox_that_has_died_is_turned_away() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let _server = runs(&sandbox, HOLDS);
    let port = published(&sandbox);
    let stream = connect(&port);
    assert!(within(LONG, || stats(&sandbox).open == 1));
    let init = nix::unistd::Pid::from_raw(sandbox.init_pid());
    nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL).unwrap();
    // The kernel ends the server's before it tells of init: that is an end like any other.
    let _ = is_reset(stream);
    assert!(within(LONG, || !sandbox.is_alive()));
    assert!(is_reset(connect(&port)));
    sandbox.reset().unwrap();
    let _server = serves(&sandbox, "127.0.0.1", 80, "again");
    assert_eq!(read(connect(&port)), "again 198.18.0.1");
}

#[test]
fn limits_of_a_port_hold() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let _server = runs(&sandbox, ECHO);
    let with = |limits: ConnectionLimits| {
        sandbox.publish(&Publish { limits, ..Publish::new(any(), 80) }).unwrap()
    };
    let none = ConnectionLimits::default;
    let says = |stream: &mut TcpStream, what: &[u8]| {
        stream.write_all(what).unwrap();
        let mut back = vec![0; what.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == what);
    };
    // Two at once; the third when one has ended.
    let port = with(ConnectionLimits { connections: Some(2), ..none() });
    let (mut one, mut two, mut three) = (connect(&port), connect(&port), connect(&port));
    says(&mut one, b"one");
    says(&mut two, b"two");
    three.write_all(b"three").unwrap();
    three.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(three.read(&mut [0; 5]).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(one);
    three.set_read_timeout(Some(LONG)).unwrap();
    let mut back = [0; 5];
    three.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"three");
    // 200,000 bytes a second, both ways together: 100,000 there and back take a second, but for
    // the first tenth.
    let port = with(ConnectionLimits { bytes_per_second: Some(200_000), ..none() });
    let mut stream = connect(&port);
    let begin = Instant::now();
    says(&mut stream, &[7; 100_000]);
    assert!(begin.elapsed() > Duration::from_millis(800), "{:?}", begin.elapsed());
    assert!(begin.elapsed() < at_most(Duration::from_secs(2)), "{:?}", begin.elapsed());
    // Twenty in a second: two at once, then one each 50 ms.
    let port = with(ConnectionLimits { connections_per_second: Some(20), ..none() });
    let begin = Instant::now();
    for _ in 0..12 {
        says(&mut connect(&port), b"x");
    }
    assert!(begin.elapsed() > Duration::from_millis(450), "{:?}", begin.elapsed());
    // So many bytes in all.
    let port = with(ConnectionLimits { bytes: Some(10_000), ..none() });
    let ends = ends(&sandbox);
    let mut stream = connect(&port);
    says(&mut stream, &[7; 4_000]);
    stream.write_all(&[7; 4_000]).unwrap();
    let received = std::iter::repeat_with(|| stream.read(&mut [0; 1000]));
    let received: usize = received.map_while(|count| count.ok().filter(|count| *count > 0)).sum();
    assert!(received <= 2_000, "{received}");
    // Those of before may be told only now.
    let next = || ends.recv_timeout(LONG).unwrap();
    let end = std::iter::repeat_with(next).find(|end| end.port == port).unwrap();
    assert_eq!(end.reason, ConnectionEndReason::ByteLimit);
    assert_eq!(end.bytes_in + end.bytes_out, 10_000);
    assert!(is_reset(connect(&port)));
}

/// A server of a program that people use, inside, on port 80, and that it answers.
#[track_caller]
fn answers(script: &str, program: &[&str], asks: impl Fn(&Port)) {
    let home = Home::new();
    let sandbox = home.sandbox();
    let port = published(&sandbox);
    let mut command = sandbox.command(program[0]);
    let mut server = command.args(&program[1..]).arg(script).current_dir("/tmp").spawn().unwrap();
    let mut listens = || {
        let end = server.try_wait().unwrap();
        assert!(end.is_none(), "{end:?}");
        sandbox.connect(([127, 0, 0, 1], 80)).is_ok() || sandbox.connect(V6_80).is_ok()
    };
    let begin = Instant::now();
    while !listens() {
        assert!(begin.elapsed() < LONG);
        std::thread::yield_now();
    }
    asks(&port);
}

const V6_80: (std::net::Ipv6Addr, u16) = (std::net::Ipv6Addr::LOCALHOST, 80);

fn get(port: &Port) -> String {
    let mut stream = connect(port);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    read(stream)
}

#[test]
fn a_web_server_of_pythons_is_published() {
    if !needs(PYTHON) {
        return;
    }
    for address in ["0.0.0.0", "127.0.0.1", "::1"] {
        answers("80", &["python3", "-m", "http.server", "-b", address], |port| {
            assert!(get(port).starts_with("HTTP/1.0 200 OK"), "{}", get(port));
        });
    }
}

#[test]
fn web_servers_of_node_are_published_with_web_sockets_and_version_2() {
    if !needs(&[Need::Program("node")]) {
        return;
    }
    let plain = "require('http').createServer((q, r) => r.end('of node')).listen(80)";
    answers(plain, &["node", "-e"], |port| assert!(get(port).ends_with("of node")));
    // RFC 6455: the answer to the key of its section 1.3, and a masked frame that comes back bare.
    let web_socket = "const crypto = require('crypto'), http = require('http')
const s = http.createServer()
s.on('upgrade', (q, c) => {
  const all = q.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
  const accept = crypto.createHash('sha1').update(all).digest('base64')
  c.write('HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n' +
    'Sec-WebSocket-Accept: ' + accept + '\\r\\n\\r\\n')
  c.on('data', d => {
    const n = d[1] & 127, mask = d.subarray(2, 6), text = d.subarray(6, 6 + n)
    c.write(Buffer.concat([Buffer.from([0x81, n]), text.map((b, i) => b ^ mask[i % 4])]))
  })
})
s.listen(80, '127.0.0.1')";
    answers(web_socket, &["node", "-e"], |port| {
        let mut stream = connect(port);
        let upgrade = b"GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\n\
            Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(upgrade).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        for _ in 0..10 {
            stream.write_all(&[0x81, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2]).unwrap();
            let mut frame = [0; 4];
            stream.read_exact(&mut frame).unwrap();
            assert_eq!(&frame, b"\x81\x02hi");
        }
    });
    let version_2 = "require('http2').createServer((q, r) => r.end('version ' + q.httpVersion)).listen(80, '::1')";
    answers(version_2, &["node", "-e"], |port| {
        let client = format!(
            "const c = require('http2').connect('http://{}')
const all = [1, 2, 3].map(() => new Promise(done => {{
  let text = ''; const q = c.request(); q.on('data', d => text += d); q.on('end', () => done(text)) }}))
Promise.all(all).then(all => {{ console.log(all.join()); c.close() }})",
            port.address()
        );
        let output = std::process::Command::new("node").args(["-e", &client]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, "version 2.0,version 2.0,version 2.0\n", "{:?}", output.stderr);
    });
}

#[test]
fn nginx_is_published() {
    if !needs(&[Need::Program("nginx")]) {
        return;
    }
    let script = "mkdir -p /tmp/n && cd /tmp/n && echo 'daemon off; user root; pid pid;
        error_log stderr; events {}
        http { access_log off; client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c;
        uwsgi_temp_path d; scgi_temp_path e; server { listen 0.0.0.0:80; return 200 of-nginx; } }' \
        > conf && exec nginx -p /tmp/n -c /tmp/n/conf -e stderr";
    answers(script, &["sh", "-c"], |port| {
        assert!(get(port).ends_with("of-nginx"), "{}", get(port))
    });
}

#[test]
fn a_postgres_of_the_hosts_is_reached_from_inside() {
    let needed = [Need::Program("postgres"), Need::Program("initdb"), Need::Program("psql")];
    if !needs(&[needed[0], needed[1], needed[2], Need::Root]) {
        return;
    }
    let home = Home::new();
    let data = home.path("data");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
    // It does not run as root, and what leads to its directory has to be open to it.
    std::fs::set_permissions(home.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let as_nobody = |program: &str| {
        let mut command = std::process::Command::new("setpriv");
        let id = NOBODY.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--pdeathsig", "KILL"]);
        command.arg(program).arg("-D").arg(&data).current_dir("/");
        command
    };
    succeeds(as_nobody("initdb").args(["-A", "trust", "-U", "owner", "--no-sync"]));
    let free = TcpListener::bind(any()).unwrap().local_addr().unwrap();
    let mut server = as_nobody("postgres");
    server.args(["-h", "127.0.0.1", "-k", "", "-p", &free.port().to_string()]);
    let mut server = server.stderr(std::process::Stdio::null()).spawn().unwrap();
    assert!(within(LONG, || TcpStream::connect(free).is_ok()));
    let sandbox = home.sandbox();
    sandbox.forward(&Forward::new(5432, free)).unwrap();
    let sql = "SELECT sum(n), max(length(repeat('x', 1000000))) FROM generate_series(1, 1000) AS n";
    let script = format!("psql -X -A -t -h 127.0.0.1 -U owner -c \"{sql}\" postgres 2>&1");
    let mut told = String::new();
    // It may take connections, and not yet be ready.
    let is_right = || {
        told = shell(&sandbox, &script);
        told.trim_end() == "500500|1000000"
    };
    let worked = within(LONG, is_right);
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(worked, "{told}");
}
