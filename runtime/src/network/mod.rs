//! Sockets that are made inside a sandbox and handed out.
//!
//! A socket belongs to the network namespace that it was made in, and whoever has its descriptor
//! may use it. So init makes TCP sockets, in which no path and no user has a part, and a process of
//! the user's inside connects to Unix ones. Each that comes out is looked at as if a guest had sent
//! it (`inspect.rs`); what is waited for, the host waits for, and never init.

mod inspect;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use adl_protocol::{EndedBy, Identity, JobEvent, Request, SocketTask, Spawn, Stage, Task};
use nix::poll::{PollFd, PollFlags};
use tracing::field::Empty;

use self::inspect::{Kind, is_as_expected};
use crate::cgroup::JoinFiles;
use crate::error::traced::{span, traced};
use crate::error::{Error, Result, error_of};
use crate::job::child::builtin;
use crate::job::life::{Life, Lives};
use crate::sys::sockaddr;
use crate::sys::socket::close_elsewhere;
use crate::wait::{Deadline, wait_ready};
use crate::wire::control::Control;
use crate::wire::{self, Messages};

/// How long a call may take unless it says otherwise.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// What has come of a request.
pub(crate) enum Answer {
    Socket(OwnedFd),
    /// How far it came, and the kernel's number.
    Failed(Stage, i32),
    /// Its process has ended without it, by its deadline or by a guest.
    Ended(Option<EndedBy>),
}

/// Connects to a TCP server inside.
pub(crate) fn connect(lives: &Lives, address: SocketAddr, timeout: Duration) -> Result<TcpStream> {
    if address.ip().is_unspecified() || address.port() == 0 {
        let why =
            format!("{address} is no server's: name its own, as 127.0.0.1 or ::1, and a port");
        return Err(Error::invalid("address", why));
    }
    const OPERATION: &str = "connect to";
    let deadline = Deadline::after(timeout);
    in_span(lives, OPERATION, address, deadline, |life| {
        let stream = make(life, OPERATION, address, false, deadline)?;
        let stream = TcpStream::from(stream);
        let connected = settle(&life.control, &stream, address, deadline);
        match connected {
            Ok(()) => Ok(stream),
            // The kernel has closed it: nothing is waited for here.
            Err(error @ Error::Socket { .. }) => Err(error),
            Err(error) => {
                close_elsewhere(stream);
                Err(error)
            }
        }
    })
}

/// Listens for TCP connections of what is inside.
pub(crate) fn listen(lives: &Lives, address: SocketAddr, timeout: Duration) -> Result<TcpListener> {
    const OPERATION: &str = "listen on";
    let deadline = Deadline::after(timeout);
    in_span(lives, OPERATION, address, deadline, |life| {
        let listener = TcpListener::from(make(life, OPERATION, address, true, deadline)?);
        let local = listener.local_addr().map_err(Error::io("getsockname"))?;
        let is_port = local.port() == address.port() || address.port() == 0 && local.port() != 0;
        if !is_port || !is_same_place(local, address) {
            close_elsewhere(listener);
            return Err(Error::Protocol { why: "a listener on another address" });
        }
        listener.set_nonblocking(false).map_err(Error::io("ioctl"))?;
        Ok(listener)
    })
}

/// Does something in the life that there is, in a span.
fn in_span<T>(
    lives: &Lives,
    operation: &'static str,
    address: SocketAddr,
    deadline: Deadline,
    work: impl FnOnce(&Life) -> Result<T>,
) -> Result<T> {
    let span = span!(
        DEBUG,
        "socket",
        sandbox = Empty,
        operation = operation,
        address = %address,
    );
    traced(&span, || {
        let life = lives.begin(deadline)?;
        span.record("sandbox", &*life.sandbox);
        work(&life)
    })
}

/// Has init make a TCP socket.
fn make(
    life: &Life,
    operation: &'static str,
    address: SocketAddr,
    listens: bool,
    deadline: Deadline,
) -> Result<OwnedFd> {
    let bytes = sockaddr::bytes(address);
    let task = SocketTask { address: &bytes, listens };
    let spawn = builtin(Task::Socket(task), Identity::ROOT);
    let kind = if listens { Kind::Listener(address) } else { Kind::Stream(address) };
    match ask(&life.control, spawn, &JoinFiles::default(), kind, deadline)? {
        Answer::Socket(socket) => Ok(socket),
        Answer::Failed(_, errno) => {
            Err(Error::Socket { operation, address, source: error_of(errno) })
        }
        Answer::Ended(_) => Err(Error::Protocol { why: "an end of what has no process" }),
    }
}

/// Connects to the Unix socket that a task names, whose process joins those cgroups.
pub(crate) fn connect_unix(
    control: &Control,
    spawn: Spawn<'_>,
    join_files: &JoinFiles,
    deadline: Deadline,
) -> Result<Answer> {
    ask(control, spawn, join_files, Kind::Unix, deadline)
}

/// Asks init for a socket of a kind, and takes what comes if it is one.
fn ask(
    control: &Control,
    spawn: Spawn<'_>,
    join_files: &JoinFiles,
    kind: Kind,
    deadline: Deadline,
) -> Result<Answer> {
    let network = control.network()?;
    let (channel, theirs) = control.take_channel()?;
    let messages = Arc::new(Messages::new(channel));
    messages.expect_descriptor()?;
    control.add_waited_for(&messages);
    let descriptors: Vec<_> =
        [theirs.as_raw_fd()].into_iter().chain(join_files.descriptors()).collect();
    control.request_by(deadline, &Request::Spawn(spawn), &descriptors)?;
    // Its end is to be that of who has it inside.
    drop(theirs);
    control.prepare_next();
    let what = "a socket of the sandbox";
    let body = messages.next(what, control.init().as_fd(), deadline)?;
    match wire::decode(&body)? {
        JobEvent::Socket => {
            let is_expected = |fd: BorrowedFd<'_>| is_as_expected(fd, kind, network);
            let why = "a socket that is another than was asked for";
            messages.take_descriptor(is_expected, why).map(Answer::Socket)
        }
        JobEvent::Failed { stage, errno } => Ok(Answer::Failed(stage, errno)),
        JobEvent::Exited(exit) => Ok(Answer::Ended(exit.by)),
        JobEvent::Started { .. } | JobEvent::Terminal => {
            Err(Error::Protocol { why: "a program in place of a socket" })
        }
    }
}

/// Waits until a stream is connected, and makes sure that it is to that address.
fn settle(
    control: &Control,
    stream: &TcpStream,
    address: SocketAddr,
    deadline: Deadline,
) -> Result<()> {
    let mut fds = [
        PollFd::new(stream.as_fd(), PollFlags::POLLOUT),
        PollFd::new(control.init().as_fd(), PollFlags::POLLIN),
        // It is shut at the end of the sandbox, whether or not the kernel can end its init.
        PollFd::new(control.messages().as_fd(), PollFlags::empty()),
    ];
    if !wait_ready(&mut fds, deadline)? {
        let what = "a server in the sandbox to take a connection";
        return Err(Error::TimedOut { what, after: deadline.length() });
    }
    let [of_stream, ..] = fds;
    if !of_stream.any().unwrap_or(true) {
        return Err(Error::SandboxDied);
    }
    let failed = |source| Error::Socket { operation: "connect to", address, source };
    if let Some(error) = stream.take_error().map_err(Error::io("getsockopt"))? {
        // Its server may have ended with all else: init lets go of its socket before.
        return Err(if control.is_alive() { failed(error) } else { Error::SandboxDied });
    }
    match (stream.peer_addr(), stream.local_addr()) {
        // Where no one listens, the port that the kernel picks may be that very one.
        (Ok(peer), Ok(local)) if peer == local => Err(failed(error_of(libc::ECONNREFUSED))),
        (Ok(peer), Ok(_)) if peer.port() == address.port() && is_same_place(peer, address) => {
            stream.set_nonblocking(false).map_err(Error::io("ioctl"))
        }
        (Err(error), _) if error.raw_os_error() != Some(libc::ENOTCONN) => {
            Err(Error::io("getpeername")(error))
        }
        _ => Err(Error::Protocol { why: "a socket that is not connected to what was asked for" }),
    }
}

/// Whether two addresses are of one interface; a scope that was not said is any.
fn is_same_place(one: SocketAddr, asked: SocketAddr) -> bool {
    let has_scope = match (one, asked) {
        (SocketAddr::V6(one), SocketAddr::V6(asked)) => {
            asked.scope_id() == 0 || one.scope_id() == asked.scope_id()
        }
        _ => true,
    };
    has_scope && one.ip() == asked.ip()
}

#[cfg(test)]
mod tests {
    use super::is_same_place;

    #[test]
    fn an_address_is_the_same_with_any_scope_that_was_not_said() {
        let is_same =
            |one: &str, asked: &str| is_same_place(one.parse().unwrap(), asked.parse().unwrap());
        assert!(is_same("127.0.0.1:1", "127.0.0.1:2"));
        assert!(
            is_same("[fe80::1%3]:1", "[fe80::1]:1") && is_same("[fe80::1%3]:1", "[fe80::1%3]:1")
        );
        assert!(!is_same("127.0.0.1:1", "127.0.0.2:1") && !is_same("127.0.0.1:1", "[::1]:1"));
        assert!(!is_same("[fe80::1%3]:1", "[fe80::1%4]:1"));
    }
}
