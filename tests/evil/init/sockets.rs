//! Sockets that are not what was asked for.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use adl_protocol::{JobEvent, Stage};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, listen, sockopt,
};

use crate::attached;
use crate::job::{Job, exited};
use crate::wire::{Control, forever, frame, receive_one};

/// How long one keeps whoever closes it: longer than a call may take.
const LINGER: Duration = Duration::from_secs(60);

/// What was asked for.
pub(crate) enum Asked {
    /// A TCP socket of this address that listens, or not.
    Inet(SocketAddr, bool),
    Unix,
}

/// A `struct sockaddr_in`.
pub(crate) fn read(address: &[u8]) -> SocketAddr {
    let port = u16::from_be_bytes([address[2], address[3]]);
    (Ipv4Addr::new(address[4], address[5], address[6], address[7]), port).into()
}

/// A descriptor of the host's that an accomplice there hands over, by a socket in a volume.
pub(crate) fn take_given(way: &str, control: &Control) -> Option<OwnedFd> {
    if !way.starts_with("socket-given") {
        return None;
    }
    let reach = |volume: &OwnedFd| {
        UnixStream::connect(format!("/proc/self/fd/{}/accomplice", volume.as_raw_fd())).ok()
    };
    let accomplice = control.descriptors.iter().find_map(reach).expect("no accomplice");
    Some(receive_one(&accomplice))
}

pub(crate) fn answer(
    way: &str,
    asked: &Asked,
    job: &Job,
    control: &Control,
    given: Option<&OwnedFd>,
) {
    let say = |sockets: Vec<OwnedFd>| job.say_with(&frame(&JobEvent::Socket), sockets);
    let Some(what) = way.strip_prefix("socket-") else { return say(vec![good(asked)]) };
    match what {
        "silent" => forever(),
        "exit" => std::process::exit(0),
        "started" => job.say(&frame(&JobEvent::Started { pid: 2 })),
        "exited" => job.say(&frame(&exited(0))),
        "failed-0" => job.say(&frame(&JobEvent::Failed { stage: Stage::Socket, errno: 0 })),
        "failed-minus" => job.say(&frame(&JobEvent::Failed { stage: Stage::Fork, errno: -1 })),
        "given" | "given-cookie" => say(vec![given.unwrap().try_clone().unwrap()]),
        // Of the host's, too: the other end is the library's own.
        "control" => say(vec![rustix::io::dup(&control.socket).unwrap()]),
        "good-and-null" => say(vec![good(asked), attached::null()]),
        "hundreds" => {
            let one = good(asked);
            say((0..200).map(|_| one.try_clone().unwrap()).collect());
        }
        "unix" => say(vec![attached::pair().0]),
        "unconnected-unix" => say(vec![unconnected(AddressFamily::UNIX, SocketType::STREAM, 0)]),
        "unix-packets" => say(vec![unconnected(AddressFamily::UNIX, SocketType::SEQPACKET, 0)]),
        "datagrams" => {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(socket.local_addr().unwrap()).unwrap();
            say(vec![socket.into()]);
        }
        "mptcp" => say(vec![mptcp(asked)]),
        "unconnected" => say(vec![unconnected(AddressFamily::INET, SocketType::STREAM, 0)]),
        "six" => say(vec![unconnected(AddressFamily::INET6, SocketType::STREAM, 0)]),
        // What was asked for the other way round.
        "turned" => {
            let Asked::Inet(address, listens) = *asked else { panic!("a Unix socket") };
            let turned = if listens { stream(elsewhere()) } else { listener(address.ip()) };
            say(vec![turned]);
        }
        "elsewhere" => match asked {
            Asked::Inet(address, true) => say(vec![listener(address.ip())]),
            _ => say(vec![stream(elsewhere())]),
        },
        "listener-elsewhere" => say(vec![listener(Ipv4Addr::new(127, 0, 0, 2).into())]),
        "linger" => {
            let Asked::Inet(address, false) = *asked else { panic!("no stream") };
            let mut connection = TcpStream::connect(address).unwrap();
            sockopt::set_socket_linger(&connection, Some(LINGER)).unwrap();
            // More than the server has room for, which it never reads; and there is room for more.
            sockopt::set_socket_send_buffer_size(&connection, 4096).unwrap();
            connection.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
            while connection.write(&[0; 65536]).is_ok() {}
            sockopt::set_socket_send_buffer_size(&connection, 200_000).unwrap();
            say(vec![connection.into()]);
        }
        what => say(attached::make(what)),
    }
}

/// What was asked for.
fn good(asked: &Asked) -> OwnedFd {
    match *asked {
        Asked::Inet(address, true) => TcpListener::bind(address).unwrap().into(),
        Asked::Inet(address, false) => stream(address),
        Asked::Unix => attached::pair().0,
    }
}

fn stream(to: SocketAddr) -> OwnedFd {
    TcpStream::connect(to).unwrap().into()
}

fn listener(on: std::net::IpAddr) -> OwnedFd {
    TcpListener::bind((on, 0)).unwrap().into()
}

/// A server of its own, for as long as it lives.
fn elsewhere() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::mem::forget(listener);
    address
}

fn unconnected(family: AddressFamily, kind: SocketType, protocol: u32) -> OwnedFd {
    let protocol = rustix::net::RawProtocol::new(protocol).map(rustix::net::Protocol::from_raw);
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol).unwrap()
}

fn mptcp(asked: &Asked) -> OwnedFd {
    let Asked::Inet(address, listens) = *asked else { panic!("a Unix socket") };
    let protocol = ipproto::MPTCP.as_raw().get();
    let socket = unconnected(AddressFamily::INET, SocketType::STREAM, protocol);
    if listens {
        bind(&socket, &address).unwrap();
        listen(&socket, 5).unwrap();
    } else {
        connect(&socket, &address).unwrap();
    }
    socket
}
