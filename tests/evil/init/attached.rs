//! Descriptors that no one asked for.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use adl_protocol::limits;
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::wire::send;

/// How long a connection of [`lingering`] keeps whoever closes it last.
const LINGER: Duration = Duration::from_secs(8);

/// What to attach, by name.
pub(crate) fn make(name: &str) -> Vec<OwnedFd> {
    match name {
        "lingering" => vec![lingering()],
        "many" => (0..limits::MAX_DESCRIPTORS).map(|_| null()).collect(),
        "nested" => vec![nested()],
        "path" => vec![open("/", OFlags::PATH)],
        "fifo" => vec![rustix::pipe::pipe().unwrap().0],
        "two" => vec![mount_namespace(), mount_namespace()],
        "directory" => vec![open("/", OFlags::DIRECTORY)],
        "socket" => vec![pair().0],
        "memfd" => vec![rustix::fs::memfd_create("mnt:[1]", MemfdFlags::CLOEXEC).unwrap()],
        "user-namespace" => vec![File::open("/proc/self/ns/user").unwrap().into()],
        "mount-namespace" => vec![mount_namespace()],
        "null" => vec![null()],
        "ptmx-path" => vec![open(ptmx(), OFlags::PATH)],
        "terminal" => vec![terminal()],
        "terminals" => vec![terminal(), terminal()],
        "none" => vec![],
        _ => panic!("what is {name}?"),
    }
}

pub(crate) fn mount_namespace() -> OwnedFd {
    File::open("/proc/self/ns/mnt").unwrap().into()
}

pub(crate) fn terminal() -> OwnedFd {
    open(ptmx(), OFlags::RDWR | OFlags::NOCTTY)
}

/// Where it is depends on what the mounts were copied from.
fn ptmx() -> &'static str {
    if Path::new("/dev/ptmx").exists() { "/dev/ptmx" } else { "/scratch/ptmx" }
}

pub(crate) fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn open(path: &str, flags: OFlags) -> OwnedFd {
    rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
}

fn copy(fd: &OwnedFd) -> OwnedFd {
    fd.try_clone().unwrap()
}

/// A socket in whose queue there are sockets, of which one is itself in the queue of its peer.
fn nested() -> OwnedFd {
    let (one, other) = pair();
    for (socket, attached) in [(&other, lingering()), (&one, copy(&one)), (&other, copy(&other))] {
        send(socket, b"x", vec![attached]);
    }
    one
}

/// A connection with bytes that are never read: who closes it waits until they are, or the time is
/// over (`SO_LINGER`, socket(7)).
pub(crate) fn lingering() -> OwnedFd {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    // It lives as long as this process.
    std::mem::forget(listener.accept().unwrap());
    std::mem::forget(listener);
    rustix::net::sockopt::set_socket_linger(&connection, Some(LINGER)).unwrap();
    connection.set_nonblocking(true).unwrap();
    while connection.write(&[0; 65536]).is_ok() {}
    connection.set_nonblocking(false).unwrap();
    connection.into()
}
