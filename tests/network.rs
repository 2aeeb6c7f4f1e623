//! Sockets in and out of a sandbox: servers inside are reached, services of the caller's are
//! reached from inside, and neither leads anywhere else.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use adl_runtime::{Child, Config, Error, Limits, Network, Sandbox, Stdio};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Home, Need, at_most, beside, kernel, needs, shell, within};
use crate::ports::{read, runs};

const PYTHON: &[Need] = &[Need::Program("python3")];
/// Long enough for anything.
const LONG: Duration = Duration::from_secs(20);
/// A deadline that passes.
const SHORT: Duration = Duration::from_millis(200);

/// A server that tells each client its own name and who the client is.
#[track_caller]
fn serves(sandbox: &Sandbox, address: SocketAddr, name: &str) -> Child {
    let family = if address.is_ipv4() { "AF_INET" } else { "AF_INET6" };
    runs(
        sandbox,
        &format!(
            "import socket
s = socket.create_server(('{}', {}), family=socket.{family})
print('ready', flush=True)
while True:
    c, a = s.accept()
    c.sendall(('{name} ' + a[0]).encode())
    c.close()",
            address.ip(),
            address.port()
        ),
    )
}

fn at(ip: [u8; 4], port: u16) -> SocketAddr {
    (ip, port).into()
}

#[track_caller]
fn errno<T: std::fmt::Debug>(result: Result<T, Error>) -> i32 {
    match result {
        Err(Error::Socket { source, .. } | Error::File { source, .. }) => {
            source.raw_os_error().unwrap()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_inside_is_reached_wherever_it_listens() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let all = Ipv4Addr::UNSPECIFIED;
    let _all = serves(&sandbox, (all, 80).into(), "all");
    let _own = serves(&sandbox, (Ipv4Addr::LOCALHOST, 8001).into(), "loopback");
    let _six = serves(&sandbox, (Ipv6Addr::LOCALHOST, 8002).into(), "six");
    let reach = |address: SocketAddr| read(sandbox.connect(address).unwrap());
    assert_eq!(reach(at([127, 0, 0, 1], 80)), "all 127.0.0.1");
    assert_eq!(reach(at([198, 18, 0, 1], 80)), "all 198.18.0.1");
    assert_eq!(reach(at([127, 0, 0, 1], 8001)), "loopback 127.0.0.1");
    assert_eq!(reach((Ipv6Addr::LOCALHOST, 8002).into()), "six ::1");
    // What is not there is told as the kernel tells it, and so is what no server has.
    assert_eq!(errno(sandbox.connect(at([198, 18, 0, 1], 8001))), libc::ECONNREFUSED);
    assert_eq!(errno(sandbox.connect(at([10, 0, 0, 1], 80))), libc::ENETUNREACH);
    let error = sandbox.connect(at([127, 0, 0, 1], 9)).unwrap_err();
    let told = "could not connect to 127.0.0.1:9 in the sandbox: Connection refused (os error 111); \
                nothing listens there";
    assert!(error.to_string().starts_with(told), "{error}");
    for address in [at([0, 0, 0, 0], 80), at([127, 0, 0, 1], 0)] {
        assert!(matches!(sandbox.connect(address), Err(Error::Invalid { .. })));
    }
}

#[test]
fn no_socket_connects_to_itself() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    // The one port that the kernel may pick is the one that is connected to.
    let sysctls = vec![("net.ipv4.ip_local_port_range".to_owned(), "5000 5000".to_owned())];
    let config = Config { sysctls, ..home.config() };
    let sandbox = Sandbox::create(config.clone()).unwrap();
    assert_eq!(errno(sandbox.connect(at([127, 0, 0, 1], 5000))), libc::ECONNREFUSED);
    // Control: whoever does not look is connected.
    let sandbox = Sandbox::create(config).unwrap();
    let script = "import socket
s = socket.create_connection(('127.0.0.1', 5000), 10)
assert s.getsockname() == s.getpeername()";
    assert!(sandbox.command("python3").args(["-c", script]).status().unwrap().success());
}

#[test]
fn a_frozen_sandbox_takes_tcp_connections_alone() {
    if !needs(&[PYTHON[0], Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let limits = Limits { accounting: true, ..Limits::default() };
    let sandbox = Sandbox::create(Config { limits, ..home.config() }).unwrap();
    let address = at([127, 0, 0, 1], 80);
    let _server = serves(&sandbox, address, "thawed");
    sandbox.freeze().unwrap();
    let stream = sandbox.connect(address).unwrap();
    assert!(matches!(sandbox.connect_unix("/tmp/s"), Err(Error::Busy { .. })));
    sandbox.thaw().unwrap();
    assert_eq!(read(stream), "thawed 127.0.0.1");
    assert_eq!(errno(sandbox.connect_unix("/tmp/s")), libc::ENOENT);
}

#[test]
fn a_guest_sends_no_descriptor_over_a_unix_stream() {
    if !needs(PYTHON) || kernel() < (6, 16) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = "import socket
s = socket.socket(socket.AF_UNIX)
s.bind('/tmp/s')
s.listen(5)
print('ready', flush=True)
while True:
    c, _ = s.accept()
    try:
        socket.send_fds(c, [b'x'], [0])
    except PermissionError:
        c.sendall(b'refused')
    c.close()";
    let _server = runs(&sandbox, script);
    assert_eq!(read(sandbox.connect_unix("/tmp/s").unwrap()), "refused");
    // Control: of one that is no one's outside it is taken.
    let client = "import socket
s = socket.socket(socket.AF_UNIX)
s.connect('/tmp/s')
print(len(socket.recv_fds(s, 99, 9)[1]))";
    let output = sandbox.command("python3").args(["-c", client]).output().unwrap();
    assert_eq!(output.stdout, b"1\n", "{output:?}");
}

#[test]
fn both_ways_and_half_closes_are_those_of_a_connection() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = "import socket
s = socket.create_server(('127.0.0.1', 80))
print('ready', flush=True)
c, _ = s.accept()
total = 0
while data := c.recv(1 << 20): total += len(data)
c.sendall(str(total).encode())";
    let _server = runs(&sandbox, script);
    let mut stream = sandbox.connect(at([127, 0, 0, 1], 80)).unwrap();
    stream.write_all(&vec![b'x'; 8 << 20]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read(stream), (8 << 20).to_string());
}

#[test]
fn a_web_server_of_pythons_is_reached() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    sandbox.files().write_file("/tmp/page", "from inside").unwrap();
    let mut command = sandbox.command("python3");
    let job = command.args(["-m", "http.server", "80"]).current_dir("/tmp").background().unwrap();
    let mut stream = None;
    let is_up = within(LONG, || {
        stream = sandbox.connect(at([127, 0, 0, 1], 80)).ok();
        stream.is_some()
    });
    assert!(is_up && job.try_wait().unwrap().is_none());
    let mut stream = stream.unwrap();
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").unwrap();
    let answer = read(stream);
    assert!(answer.contains("200 OK") && answer.ends_with("from inside"), "{answer}");
}

#[test]
fn a_connection_leads_into_that_sandbox_and_nowhere_else() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    // Of the host, of a neighbour, of the sandbox: on one port.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sandbox, neighbour) = (home.sandbox(), home.sandbox());
    let _server = serves(&neighbour, address, "neighbour");
    assert_eq!(errno(sandbox.connect(address)), libc::ECONNREFUSED);
    assert_eq!(read(neighbour.connect(address).unwrap()), "neighbour 127.0.0.1");
    let _own = serves(&sandbox, address, "own");
    assert_eq!(read(sandbox.connect(address).unwrap()), "own 127.0.0.1");
    // Control: with the host's network, and by the host itself, it is the host's.
    let config = Config { network: Network::Host, ..home.config() };
    let of_host = Sandbox::create(config).unwrap();
    let streams = [of_host.connect(address).unwrap(), TcpStream::connect(address).unwrap()];
    for stream in streams {
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer, stream.local_addr().unwrap());
    }
}

#[test]
fn a_service_of_the_callers_is_reached_from_inside() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let (sandbox, neighbour) = (home.sandbox(), home.sandbox());
    let listener = sandbox.listen(at([127, 0, 0, 1], 5432)).unwrap();
    let six = sandbox.listen((Ipv6Addr::LOCALHOST, 5433)).unwrap();
    let any = sandbox.listen(at([198, 18, 0, 1], 0)).unwrap();
    assert_ne!(any.local_addr().unwrap().port(), 0);
    for listener in [listener, six, any] {
        let address = listener.local_addr().unwrap();
        let client = format!(
            "import socket
print(socket.create_connection(('{}', {}), 10).recv(99).decode())",
            address.ip(),
            address.port()
        );
        let answers = || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"from outside").unwrap();
        };
        std::thread::scope(|scope| {
            scope.spawn(answers);
            let output = sandbox.command("python3").args(["-c", &client]).output().unwrap();
            assert_eq!(output.stdout, b"from outside\n", "{output:?}");
        });
        // It is that sandbox's alone, and there is one there.
        let output = neighbour.command("python3").args(["-c", &client]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("refused"), "{output:?}");
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(errno(sandbox.listen(address)), libc::EADDRINUSE);
        // One that was dropped is gone.
        drop(listener);
        drop(sandbox.listen(address).unwrap());
    }
    assert_eq!(errno(sandbox.listen(at([10, 0, 0, 1], 80))), libc::EADDRNOTAVAIL);
}

#[test]
fn a_sandbox_has_one_address_that_is_not_127() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let bind = |host: &str| format!("import socket; socket.create_server(('{host}', 0))");
    let binds = |sandbox: &Sandbox, host: &str| {
        sandbox.command("python3").args(["-c", &bind(host)]).status().unwrap().success()
    };
    let sandbox = home.sandbox();
    assert!(binds(&sandbox, "198.18.0.1"));
    // And no network of it.
    assert!(!binds(&sandbox, "198.18.0.2") && !binds(&sandbox, "198.18.0.0"));
    assert!(!shell(&sandbox, "cat /proc/net/route").contains("lo"));
    // Not where the network is the host's.
    let config = Config { network: Network::Host, ..home.config() };
    let of_host = Sandbox::create(config).unwrap();
    assert!(!binds(&of_host, "198.18.0.1") && binds(&of_host, "127.0.0.1"));
}

#[test]
fn a_unix_socket_is_reached_with_the_rights_of_a_user_inside() {
    if !needs(&[PYTHON[0], Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let deep = ["d".repeat(200).as_str(); 10].join("/");
    let script = format!(
        "import os, socket, struct
os.umask(0)
os.makedirs('/tmp/{deep}')
os.chdir('/tmp/{deep}')
s = socket.socket(socket.AF_UNIX)
s.bind('s')
os.chdir('/tmp')
os.symlink('/tmp/{deep}/s', '/tmp/link')
p = socket.socket(socket.AF_UNIX)
p.bind('/tmp/private')
os.chmod('/tmp/private', 0o700)
d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
d.bind('/tmp/datagrams')
s.listen(5)
p.listen(5)
print('ready', flush=True)
while True:
    c, _ = s.accept()
    pid, uid, gid = struct.unpack('3i', c.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    c.sendall(f'{{uid}} {{gid}}'.encode())
    c.close()"
    );
    let _server = runs(&sandbox, &script);
    let deep = format!("/tmp/{deep}/s");
    assert_eq!(read(sandbox.connect_unix(&deep).unwrap()), "0 0");
    assert_eq!(read(sandbox.connect_unix("/tmp/link").unwrap()), "0 0");
    let mut files = sandbox.files();
    files.uid(1000).gid(1001).current_dir("/tmp");
    assert_eq!(read(files.connect_unix("link").unwrap()), "1000 1001");
    assert_eq!(errno(files.connect_unix("private")), libc::EACCES);
    drop(sandbox.connect_unix("/tmp/private").unwrap());
    for (path, expected) in [
        ("/tmp/datagrams", libc::EPROTOTYPE),
        ("/etc/passwd", libc::ECONNREFUSED),
        ("/tmp", libc::ECONNREFUSED),
        ("/tmp/none", libc::ENOENT),
        ("/proc/self/fd/3", libc::ELOOP),
    ] {
        assert_eq!(errno(sandbox.connect_unix(path)), expected, "{path}");
    }
}

#[test]
fn a_path_leads_to_no_socket_of_the_hosts() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = home.path("s");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let sandbox = home.sandbox();
    assert_eq!(errno(sandbox.connect_unix(&path)), libc::ENOENT);
    shell(&sandbox, format!("ln -s ../../../../..{} /tmp/s", path.display()));
    assert_eq!(errno(sandbox.connect_unix("/tmp/s")), libc::ENOENT);
    // Control.
    UnixStream::connect(&path).unwrap();
}

/// A server that accepts nothing, with room for no one any more.
const FULL: &str = "import socket
t = socket.socket()
t.bind(('127.0.0.1', 80))
t.listen(0)
u = socket.socket(socket.AF_UNIX)
u.bind('/tmp/full')
u.listen(0)
held = []
for _ in range(4):
    c = socket.socket()
    c.setblocking(False)
    try: c.connect(('127.0.0.1', 80))
    except BlockingIOError: pass
    held.append(c)
held.append(socket.socket(socket.AF_UNIX))
held[-1].connect('/tmp/full')
print('ready', flush=True)
input()";

#[test]
fn a_server_that_takes_no_one_is_waited_for_until_the_deadline_and_holds_up_no_other() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut command = sandbox.command("python3");
    let mut full = command.args(["-c", FULL]);
    full = full.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut full = full.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(full.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let times_out = |call: &dyn Fn() -> Result<(), Error>| {
        let begin = Instant::now();
        let error = call().unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        assert!(begin.elapsed() >= SHORT && begin.elapsed() < at_most(SHORT * 4));
    };
    let address = at([127, 0, 0, 1], 80);
    let tcp = || sandbox.connect_timeout(address, SHORT).map(drop);
    let mut files = sandbox.files();
    files.timeout(SHORT);
    let unix = || files.connect_unix("/tmp/full").map(drop);
    times_out(&tcp);
    times_out(&unix);
    // Meanwhile, commands take what they do.
    let waits = |_| {
        let _ = sandbox.connect_timeout(address, SHORT);
        let _ = files.connect_unix("/tmp/full");
    };
    let longest = beside(4, waits, || {
        let one = || {
            let begin = Instant::now();
            assert!(sandbox.command("true").status().unwrap().success());
            begin.elapsed()
        };
        (0..50).map(|_| one()).min().unwrap()
    });
    assert!(longest < Duration::from_millis(100), "{longest:?}");
}

#[test]
fn a_wait_for_a_connection_ends_with_the_sandbox() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    for how in ["init dies", "delete", "reset"] {
        let sandbox = home.sandbox();
        let mut command = sandbox.command("python3");
        let command = command.args(["-c", FULL]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut full = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(full.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let begin = Instant::now();
        let address = at([127, 0, 0, 1], 80);
        // Of those that wait there is one process, and one socket that has said SYN more than those
        // of the server's own.
        let waiting = || {
            let script = "cat /proc/[0-9]*/comm 2> /dev/null | grep -c adl-file
                grep -c ':0050 02 ' /proc/net/tcp; true";
            let counts = shell(&sandbox, script);
            let mut counts = counts.lines().map(|count| count.parse::<u32>().unwrap());
            (counts.next().unwrap(), counts.next().unwrap())
        };
        let before = waiting();
        std::thread::scope(|scope| {
            let tcp = scope.spawn(|| sandbox.connect_timeout(address, LONG * 10).map(drop));
            let unix = scope.spawn(|| {
                let mut files = sandbox.files();
                files.timeout(LONG * 10).connect_unix("/tmp/full").map(drop)
            });
            assert!(within(LONG, || waiting() == (before.0 + 1, before.1 + 1)), "{before:?}");
            match how {
                "init dies" => {
                    kill(Pid::from_raw(sandbox.init_pid()), Signal::SIGKILL).unwrap();
                }
                "delete" => sandbox.delete().unwrap(),
                _ => sandbox.reset().unwrap(),
            }
            for ended in [tcp.join().unwrap(), unix.join().unwrap()] {
                let error = ended.unwrap_err();
                assert!(matches!(error, Error::SandboxDied), "{how}: {error}");
            }
        });
        assert!(begin.elapsed() < at_most(LONG));
        if how == "delete" {
            assert!(matches!(sandbox.connect(address), Err(Error::Deleted)));
        }
    }
}

#[test]
fn streams_end_with_what_is_inside_and_new_ones_lead_to_what_comes_then() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let address = at([127, 0, 0, 1], 80);
    let script = "import socket
s = socket.create_server(('127.0.0.1', 80), backlog=200)
print('ready', flush=True)
held = []
while True: held.append(s.accept())";
    let _server = runs(&sandbox, script);
    let streams: Vec<_> = (0..100).map(|_| sandbox.connect(address).unwrap()).collect();
    sandbox.reset().unwrap();
    let begin = Instant::now();
    for mut stream in streams {
        stream.set_read_timeout(Some(LONG)).unwrap();
        match stream.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(begin.elapsed() < at_most(Duration::from_millis(100)));
    assert_eq!(errno(sandbox.connect(address)), libc::ECONNREFUSED);
    let _next = serves(&sandbox, address, "next");
    assert_eq!(read(sandbox.connect(address).unwrap()), "next 127.0.0.1");
}

#[test]
fn a_thousand_connections_at_once_leave_nothing() {
    if !needs(PYTHON) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = "import socket, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
s = socket.create_server(('127.0.0.1', 80), backlog=1024)
print('ready', flush=True)
held = [s.accept()[0] for _ in range(400)]
for c in held: c.sendall(b'x')
del c, held
while True: s.accept()";
    let _server = runs(&sandbox, script);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let connect = || sandbox.connect(at([127, 0, 0, 1], 80)).unwrap();
    let streams: Vec<_> = (0..400).map(|_| connect()).collect();
    for stream in streams {
        stream.set_read_timeout(Some(LONG)).unwrap();
        assert_eq!(read(stream), "x");
    }
    for _ in 0..600 {
        drop(connect());
    }
    assert!(within(LONG, || descriptors() <= before + 2), "{before} {}", descriptors());
    assert!(sandbox.command("true").status().unwrap().success());
}

#[test]
fn an_ordinary_user_has_the_same_sockets() {
    if !needs(&[PYTHON[0], Need::Userns]) || nix::unistd::geteuid().is_root() {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let _server = serves(&sandbox, at([198, 18, 0, 1], 80), "own");
    assert_eq!(read(sandbox.connect(at([198, 18, 0, 1], 80)).unwrap()), "own 198.18.0.1");
    let listener = sandbox.listen(at([127, 0, 0, 1], 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    shell(&sandbox, format!("exec 3<>/dev/tcp/127.0.0.1/{port}"));
    listener.accept().unwrap();
    let script = "import socket
s = socket.socket(socket.AF_UNIX)
s.bind('/tmp/s')
s.listen(5)
print('ready', flush=True)
s.accept()[0].sendall(b'unix')";
    let _unix = runs(&sandbox, script);
    assert_eq!(read(sandbox.connect_unix("/tmp/s").unwrap()), "unix");
}
