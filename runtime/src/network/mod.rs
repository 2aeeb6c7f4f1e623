//! Sockets inside a sandbox that the host has.
//!
//! A socket belongs to the network namespace that it was made in, and whoever has its descriptor
//! may use it. So TCP sockets are made by the host, inside (`sys/network_namespace.rs`): nothing
//! inside ever has them. The namespace is that which the kernel says that init is in. It tells root
//! alone, since whom it tells may trace init: an ordinary user's init is asked once, for any socket
//! at all, which leads to the namespace.
//!
//! The path of a Unix socket and its permission are a guest's, so a process of the user's inside
//! connects to it. What that hands over is looked at (`inspect.rs`).

mod inspect;
pub(crate) mod ports;
pub(crate) mod relay;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use adl_protocol::{EndedBy, Identity, JobEvent, NetworkOrigin, Request, Spawn, Stage, Task};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use tracing::field::Empty;

use self::inspect::{Kind, is_as_expected};
use crate::cgroup::JoinFiles;
use crate::error::traced::{span, traced};
use crate::error::{Error, Result, error_of};
use crate::job::child::builtin;
use crate::job::life::{Life, Lives};
use crate::sys::network_namespace::NetworkNamespace;
use crate::sys::sockaddr::{self, tcp_listener, tcp_socket};
use crate::wait::{Deadline, wait_ready};
use crate::wire::control::Control;
use crate::wire::{self, Messages};

/// How long a call may take unless it says otherwise.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// How many connections a listener keeps that were not accepted: those that come faster than they
/// are accepted.
const BACKLOG: i32 = 1024;

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
        let socket = within(&life.control, deadline, || tcp_socket(address))?;
        let failed = socket_error(OPERATION, address);
        let stream = TcpStream::from(socket.map_err(&failed)?);
        match sockaddr::connect(stream.as_fd(), address) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(failed(errno)),
        }
        settle(&life.control, &stream, address, deadline)?;
        Ok(stream)
    })
}

/// Listens for TCP connections of what is inside.
pub(crate) fn listen(lives: &Lives, address: SocketAddr, timeout: Duration) -> Result<TcpListener> {
    const OPERATION: &str = "listen on";
    let deadline = Deadline::after(timeout);
    in_span(lives, OPERATION, address, deadline, |life| {
        let listener = within(&life.control, deadline, || tcp_listener(address, BACKLOG))?;
        let listener = listener.map_err(socket_error(OPERATION, address))?;
        let listener = TcpListener::from(listener);
        listener.set_nonblocking(false).map_err(Error::io("ioctl"))?;
        Ok(listener)
    })
}

fn socket_error(operation: &'static str, address: SocketAddr) -> impl Fn(Errno) -> Error {
    move |errno| Error::Socket { operation, address, is_inside: true, source: errno.into() }
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

/// Has sockets be made in the network namespace of a sandbox that lives.
fn within<T>(control: &Control, deadline: Deadline, make: impl FnOnce() -> T) -> Result<T> {
    if !control.is_alive() {
        return Err(Error::SandboxDied);
    }
    match namespace(control, deadline)? {
        Some(namespace) => {
            namespace.enter(make).map_err(Error::io("enter the sandbox's network namespace"))
        }
        None => Ok(make()),
    }
}

/// The network namespace of a sandbox; `None` if that is the one that the calling thread is in.
pub(crate) fn namespace(
    control: &Control,
    deadline: Deadline,
) -> Result<Option<Arc<NetworkNamespace>>> {
    control.check_own()?;
    let network = control.network();
    let is_callers = || {
        let own = sockaddr::own_network_cookie().map_err(Error::io("getsockopt"))?;
        Ok::<_, Error>(own == control.cookie()?)
    };
    if network == NetworkOrigin::Caller && is_callers()? {
        return Ok(None);
    }
    let is_shared = network != NetworkOrigin::New;
    let open = || match control.may_look_at_init() {
        // Init that was taken over can enter no other but what it has made.
        true => match NetworkNamespace::of(control.init().as_fd(), is_shared) {
            // It has none from a moment before its end on.
            Err(error) if error.kind() == io::ErrorKind::NotFound || !control.is_alive() => {
                Err(Error::SandboxDied)
            }
            opened => opened.map_err(Error::io("open the sandbox's network namespace")),
        },
        false if network == NetworkOrigin::New && is_callers()? => {
            Err(Error::Protocol { why: "a sandbox with the network of its caller" })
        }
        false => ask_for_namespace(control, is_shared, deadline),
    };
    control.namespace(open).map(Some)
}

/// Asks init for the way to its network namespace. It has told before any guest ran which that is.
fn ask_for_namespace(
    control: &Control,
    is_shared: bool,
    deadline: Deadline,
) -> Result<NetworkNamespace> {
    let spawn = builtin(Task::Socket, Identity::ROOT);
    match ask(control, spawn, &JoinFiles::default(), Kind::Plain, deadline)? {
        Answer::Socket(socket) => NetworkNamespace::of_socket(socket.as_fd(), is_shared)
            .map_err(Error::io("look for the sandbox's network namespace")),
        Answer::Failed(_, errno) => Err(Error::io("make a socket inside")(error_of(errno))),
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
    let (network, cookie) = (control.network(), control.cookie()?);
    let (channel, theirs) = control.take_channel()?;
    let messages = Arc::new(Messages::new(channel));
    messages.expect_descriptor()?;
    control.add_waited_for(&messages);
    let descriptors: Vec<_> =
        [theirs.as_raw_fd()].into_iter().chain(join_files.descriptors()).collect();
    control.request_by(deadline, &Request::Spawn(spawn), &descriptors)?;
    // Its end is to be that of who has it inside.
    drop(theirs);
    if let Kind::Unix = kind {
        control.prepare_next();
    }
    let what = "a socket of the sandbox";
    let body = messages.next(what, control.init().as_fd(), deadline)?;
    match wire::decode(&body)? {
        JobEvent::Socket => {
            let is_expected = |fd: BorrowedFd<'_>| is_as_expected(fd, kind, network, cookie);
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

/// Waits until a stream is connected.
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
    let failed =
        |source| Error::Socket { operation: "connect to", address, is_inside: true, source };
    let error = match stream.take_error().map_err(Error::io("getsockopt"))? {
        // Where no one listens, the port that the kernel picks may be that very one.
        None if stream.local_addr().is_ok_and(|own| own == address) => error_of(libc::ECONNREFUSED),
        None => return stream.set_nonblocking(false).map_err(Error::io("ioctl")),
        Some(error) => error,
    };
    // Its server may have ended with all else.
    Err(if control.is_alive() { failed(error) } else { Error::SandboxDied })
}
