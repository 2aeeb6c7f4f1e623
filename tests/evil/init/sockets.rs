//! Sockets that are not what was asked for.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use adl_protocol::{JobEvent, Stage};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

use crate::attached;
use crate::job::{Job, exited};
use crate::wire::{Control, forever, frame, receive_one};

/// What was asked for.
pub(crate) enum Asked {
    /// One that tells its network namespace.
    Any,
    Unix,
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
        "datagrams" => say(vec![datagrams()]),
        "mptcp" => {
            let protocol = ipproto::MPTCP.as_raw().get();
            say(vec![unconnected(AddressFamily::INET, SocketType::STREAM, protocol)]);
        }
        "unconnected" => say(vec![unconnected(AddressFamily::INET, SocketType::STREAM, 0)]),
        "six" => say(vec![unconnected(AddressFamily::INET6, SocketType::DGRAM, 0)]),
        "listener" => say(vec![TcpListener::bind("0.0.0.0:0").unwrap().into()]),
        what => say(attached::make(what)),
    }
}

/// What was asked for.
fn good(asked: &Asked) -> OwnedFd {
    match *asked {
        Asked::Any => datagrams(),
        Asked::Unix => attached::pair().0,
    }
}

fn datagrams() -> OwnedFd {
    UdpSocket::bind("0.0.0.0:0").unwrap().into()
}

fn unconnected(family: AddressFamily, kind: SocketType, protocol: u32) -> OwnedFd {
    let protocol = rustix::net::RawProtocol::new(protocol).map(rustix::net::Protocol::from_raw);
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol).unwrap()
}
