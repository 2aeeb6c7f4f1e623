//! A connection that came to a port, and the one that it is joined to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::flow::{Broken, Flow, Moved, Pipes, Side};
use super::message::{PortNumber, SandboxNumber, Why};
use crate::sys::sockaddr::{self, set_option, unsent};

/// How long a server may take to take a connection, all its addresses together.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// How long one side may do nothing when the other has ended.
pub(super) const HALF_CLOSED: Duration = Duration::from_secs(60);

/// What is moved of one connection, each way, before it is the next one's turn, in bytes.
const TURN: u64 = 256 << 10;

/// How many bytes wait in the kernel for each socket, each way: that it doubles, for what they
/// take beside. It finds the best size by itself otherwise, of up to some MiB.
const BUFFER: i32 = 208 << 10;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sandbox: SandboxNumber,
    pub(super) port: PortNumber,
    /// Who has connected.
    pub(super) peer: SocketAddr,
    pub(super) begun: Instant,
    pub(super) client: Side,
    pub(super) server: Server,
    /// From the client to the server, and back.
    pub(super) up: Flow,
    pub(super) down: Flow,
    /// Which of them comes first, where not all may pass.
    pub(super) is_up_first: bool,
    /// When it is looked at, whatever happens.
    pub(super) timer: Option<Instant>,
    /// Whether it waits for its turn.
    pub(super) is_queued: bool,
    /// How often it was looked at since both sides have ended, and what was on its way then.
    pub(super) looks: u32,
    pub(super) unsent: usize,
}

/// The other side.
#[derive(Debug)]
pub(super) enum Server {
    /// None yet: how many addresses were tried, which of the port's was the first, and why the last
    /// did not do.
    Connecting {
        attempt: usize,
        first: usize,
        socket: Option<OwnedFd>,
        why: i32,
    },
    Connected(Side),
}

/// What is to be done with a connection after its turn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It waits for the kernel.
    Wait,
    /// It has more to do.
    Again,
    /// It is over.
    End(Why),
}

impl Connection {
    /// Moves what there is, at most so many bytes.
    pub(super) fn run(&mut self, most: u64, (pipes, buffer): (&mut Pipes, &mut [u8])) -> Next {
        // Where nothing may pass, neither has had its turn.
        self.is_up_first ^= most > 0;
        let is_up_first = self.is_up_first;
        let before = self.taken();
        // Of what may not all pass, each way has its half.
        let share = if most < TURN { most.div_ceil(2) } else { most };
        let first = self.pass(is_up_first, share, true, (&mut *pipes, &mut *buffer));
        let left = most.saturating_sub(self.taken() - before);
        let may_close = first.is_ok();
        let second = self.pass(!is_up_first, left, may_close, (&mut *pipes, &mut *buffer));
        let (up, down) = if is_up_first { (first, second) } else { (second, first) };
        // Who takes no more may have said why before that was seen.
        for (moved, other) in [(&up, false), (&down, true)] {
            if let Err(Broken::To(_)) = moved {
                let _ = self.pass(other, TURN, false, (&mut *pipes, &mut *buffer));
            }
        }
        match (up, down) {
            (Err(Broken::From(_)), _) | (_, Err(Broken::To(_))) => Next::End(Why::ByClient),
            (Err(Broken::To(_)), _) | (_, Err(Broken::From(_))) => Next::End(Why::ByServer),
            _ if self.is_over() => Next::End(Why::Closed),
            (Ok(Moved::Waits), Ok(Moved::Waits)) => Next::Wait,
            _ => Next::Again,
        }
    }

    /// Moves what there is one way.
    fn pass(
        &mut self,
        is_up: bool,
        most: u64,
        may_close: bool,
        tools: (&mut Pipes, &mut [u8]),
    ) -> Result<Moved, Broken> {
        let Self { client, server: Server::Connected(server), up, down, .. } = self else {
            return Ok(Moved::Waits);
        };
        let (flow, from, to) = if is_up { (up, client, server) } else { (down, server, client) };
        // What came with an error is read before that is told.
        from.is_readable |= !may_close;
        flow.run(from, to, most.min(TURN), may_close, tools)
    }

    /// Whether one side has ended, and the other has not.
    pub(super) fn is_half_closed(&self) -> bool {
        self.up.is_closed != self.down.is_closed
    }

    /// Whether both sides have ended, and all that they have sent was passed on to the kernel.
    pub(super) fn is_over(&self) -> bool {
        self.up.is_closed && self.down.is_closed
    }

    /// How many bytes wait in the kernel until the other ends take them, or in pipes.
    pub(super) fn unsent(&self) -> usize {
        let in_pipes = self.up.holds_something() || self.down.holds_something();
        self.sockets().map(unsent).sum::<usize>() + usize::from(in_pipes)
    }

    /// How many bytes it has taken, both ways.
    pub(super) fn taken(&self) -> u64 {
        self.up.taken() + self.down.taken()
    }

    /// Its sockets.
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let server = match &self.server {
            Server::Connecting { socket, .. } => socket.as_ref(),
            Server::Connected(side) => Some(&side.socket),
        };
        [Some(&self.client.socket), server].into_iter().flatten().map(AsFd::as_fd)
    }

    /// Ends it. Unless both sides have, each is told by a reset that it is no end.
    pub(super) fn end(mut self, why: Why, pipes: &mut Pipes) {
        self.up.end(pipes);
        self.down.end(pipes);
        if why == Why::Closed {
            self.sockets().for_each(close_in_order);
        }
    }
}

/// Has the close of a socket be none but of its descriptor: both sides have told their ends.
fn close_in_order(socket: BorrowedFd<'_>) {
    // Of a TCP socket it does not fail.
    let _ = set_option(socket, libc::SOL_SOCKET, libc::SO_LINGER, [0, 0]);
}

/// Has a socket be as those of connections are: nothing waits to be more.
pub(super) fn prepare(socket: BorrowedFd<'_>) -> nix::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, [1])?;
    prepare_listener(socket)
}

/// Has a listener have what it accepts be as connections are, whose first bytes may be there before
/// that is accepted: no byte is beside the others, and what waits in the kernel has a bound. A
/// close that no one has ordered is no end: also where the caller is killed, the other side is told
/// by a reset.
pub(in crate::network) fn prepare_listener(socket: BorrowedFd<'_>) -> nix::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_OOBINLINE, [1])?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_LINGER, [1, 0])?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, [BUFFER])?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, [BUFFER])
}

/// Where a server inside may listen: on all addresses or on 127.0.0.1, on the sandbox's own, or on
/// ::1.
pub(super) fn addresses_inside(own: Option<IpAddr>, port: u16) -> Vec<SocketAddr> {
    let all = [Some(Ipv4Addr::LOCALHOST.into()), own, Some(Ipv6Addr::LOCALHOST.into())];
    all.into_iter().flatten().map(|ip| (ip, port).into()).collect()
}

/// Has a socket begin to connect; from an address, if it is of that family.
pub(super) fn begin_to_connect(
    socket: BorrowedFd<'_>,
    from: Option<IpAddr>,
    to: SocketAddr,
) -> nix::Result<()> {
    prepare(socket)?;
    if let Some(from) = from.filter(|from| from.is_ipv4() == to.is_ipv4()) {
        // So that the port is picked when it is known where it leads: there are more of them then.
        set_option(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, [1])?;
        sockaddr::bind(socket, (from, 0).into())?;
    }
    match sockaddr::connect(socket, to) {
        Err(Errno::EINPROGRESS) => Ok(()),
        other => other,
    }
}
