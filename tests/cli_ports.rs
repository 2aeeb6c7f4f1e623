//! Ports of `adl run`: those of this machine lead to servers inside, those inside to servers of
//! this machine, for as long as adl is there.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::harness::{Home, Need, adl_command, needs, stderr, within};

/// Long enough for anything.
const LONG: Duration = Duration::from_secs(20);

/// Servers that tell each client a name, on all addresses of both families.
const SERVERS: &str = "import socket, threading
def serve(port):
    s = socket.create_server(('::', port), family=socket.AF_INET6, dualstack_ipv6=True)
    ready.wait()
    while True:
        c, _ = s.accept()
        c.sendall(b'server %d' % port)
        c.close()
ready = threading.Barrier(3)
for port in 80, 81: threading.Thread(target=serve, args=(port,), daemon=True).start()
ready.wait()
print('ready', flush=True)
input()";

/// `adl run` with servers on ports 80 and 81 inside, and what it has said of its ports.
struct Served {
    adl: Child,
    told: Vec<String>,
}

impl Served {
    #[track_caller]
    fn new(home: &Home, options: &[&str], told: usize) -> Self {
        let mut adl = adl_command(&home.state());
        adl.arg("run").args(options).args(["--", "python3", "-c", SERVERS]);
        adl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut adl = adl.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(adl.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        // What is told was before that; to read on would wait for the end of adl.
        let mut stderr = adl.stderr.take().unwrap();
        fcntl(&stderr, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut said = Vec::new();
        let _ = stderr.read_to_end(&mut said);
        let lines: Vec<_> = String::from_utf8_lossy(&said).lines().map(str::to_owned).collect();
        assert_eq!((&*line, lines.len()), ("ready\n", told), "{options:?}: {lines:?}");
        Self { adl, told: lines }
    }

    /// The address of a line that was said, which names the port inside.
    #[track_caller]
    fn address(&self, line: usize, inside: u16) -> SocketAddr {
        let told = self.told[line].strip_prefix("adl: ").unwrap();
        let address = told.strip_suffix(&format!(" leads to port {inside} inside")).unwrap();
        address.parse().unwrap()
    }
}

#[track_caller]
fn heard(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn is_refused(address: SocketAddr) -> bool {
    let error = TcpStream::connect(address).err();
    error.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn a_server_inside_is_reached_by_the_port_that_is_told_until_adl_ends() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    // An address of this process alone.
    let [_, _, one, two] = std::process::id().to_be_bytes();
    let given = SocketAddr::from(([127, one, two, 9], 8080));
    let given_option = format!("{given}:81");
    let options =
        ["-p", "0:80", "--publish", "[::1]:0:81", "-p", &given_option, "-p=127.0.0.2:0:81/tcp"];
    let mut served = Served::new(&home, &options, 3);
    let addresses =
        [(0, 80, "127.0.0.1"), (1, 81, "::1"), (2, 81, "127.0.0.2")].map(|(line, inside, ip)| {
            let address = served.address(line, inside);
            assert_eq!(address.ip().to_string(), ip);
            assert_eq!(heard(address), format!("server {inside}"), "{address}");
            address
        });
    // What was named is not told.
    assert_eq!(heard(given), "server 81");
    served.adl.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(served.adl.wait().unwrap().success());
    assert!(addresses.into_iter().chain([given]).all(is_refused));
    assert_eq!(home.left(), [""; 0]);
}

#[test]
fn adl_that_is_killed_leaves_nothing_that_listens() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let mut served = Served::new(&home, &["-p", "0:80", "-p", "[::1]:0:81"], 2);
    let addresses = [served.address(0, 80), served.address(1, 81)];
    assert_eq!(heard(addresses[0]), "server 80");
    served.adl.kill().unwrap();
    served.adl.wait().unwrap();
    assert!(within(Duration::from_secs(2), || addresses.into_iter().all(is_refused)));
    crate::harness::succeeds(adl_command(&home.state()).arg("gc"));
}

#[test]
fn a_server_of_this_machine_is_reached_from_inside_by_address_and_by_name() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let home = Home::new();
    let four = TcpListener::bind("127.0.0.1:0").unwrap();
    let six = TcpListener::bind("[::1]:0").unwrap();
    let [four_at, six_at] = [&four, &six].map(|server| server.local_addr().unwrap());
    let options = [
        format!("--forward=5432:{four_at}"),
        format!("--forward=5433:{six_at}"),
        format!("--forward=5434:localhost:{}", four_at.port()),
    ];
    let script = "for port in 5432 5433 5434; do
        exec 3<>/dev/tcp/127.0.0.1/$port; cat <&3
    done
    ! (exec 3<>/dev/tcp/127.0.0.1/5435) 2> /dev/null";
    let mut adl = adl_command(&home.state());
    let adl = adl.arg("run").args(options).args(["--", "bash", "-ec", script]);
    let adl = adl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for (server, name) in [(&four, "four"), (&six, "six"), (&four, "named")] {
        server.accept().unwrap().0.write_all(format!("{name}\n").as_bytes()).unwrap();
    }
    let output = adl.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "four\nsix\nnamed\n");
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_port_that_can_not_be_had_is_one_error_and_leaves_nothing() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let absent = format!("--forward=1:{}:1", "a".repeat(64));
    for ip in ["127.0.0.1", "[::1]"] {
        let listener = TcpListener::bind(format!("{ip}:0")).unwrap();
        let taken = listener.local_addr().unwrap();
        let publish = format!("--publish={taken}:80");
        for (options, told) in [
            (&["-p", "0:80", &publish][..], &[&*taken.to_string(), "in use", "0 for any"][..]),
            (
                &["--forward=9:127.0.0.1:9", "--forward=9:[::1]:9"],
                &["127.0.0.1:9 inside", "in use", "name another"],
            ),
            (&[&absent], &["--forward", "no address", "getent"]),
        ] {
            let mut adl = adl_command(&home.state());
            let output = adl.arg("run").args(options).args(["--", "echo", "run"]).output().unwrap();
            let error = stderr(&output);
            assert_eq!(output.status.code(), Some(125), "{options:?}: {error}");
            assert_eq!((error.lines().count(), &*output.stdout), (1, &b""[..]), "{error}");
            assert!(told.iter().all(|word| error.contains(word)), "{options:?}: {error}");
        }
    }
    assert_eq!(home.left(), [""; 0]);
}
