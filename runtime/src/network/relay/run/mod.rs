//! The relay's thread: it waits for all sockets, and gives each connection its turn.
//!
//! It waits for nothing else: no socket blocks, and no code of the caller's runs in it.

mod accept;
mod connect;
mod follow;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};

use adl_protocol::codec;

use super::bucket::Bucket;
use super::connection::{Connection, HALF_CLOSED, Next, Server};
use super::flow::{CHUNK, Pipes};
use super::message::{self, Leads, PortNumber, SandboxNumber, Told, Why};
use super::orders::Orders;
use crate::config::ports::{ConnectionLimits, ConnectionStats};
use crate::sys::network_namespace::NetworkNamespace;
use crate::sys::pidfd;

/// How long after its end what a connection has sent is looked for first, and later, and how often
/// while nothing of it has gone: a minute.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOKS: Duration = Duration::from_secs(1);
const LOOKS: u32 = 66;

/// What an event is of, in its lowest bits, with a number above them.
const CLIENT: u64 = 0;
const SERVER: u64 = 1;
const PORT: u64 = 2;
const INIT: u64 = 3;
const ORDERS: u64 = u64::MAX;

/// What is told of a connection's sockets: each change, once.
const WATCHED: EpollFlags = EpollFlags::EPOLLIN
    .union(EpollFlags::EPOLLOUT)
    .union(EpollFlags::EPOLLRDHUP)
    .union(EpollFlags::EPOLLET);

pub(super) struct Relay {
    epoll: Epoll,
    orders: Orders,
    sandboxes: HashMap<SandboxNumber, Sandbox>,
    ports: HashMap<PortNumber, Port>,
    connections: HashMap<u64, Connection>,
    /// The number of the next connection; none comes again.
    next: u64,
    /// The sandboxes whose connections have something to do, in turn.
    queue: VecDeque<SandboxNumber>,
    /// Ports at which someone may wait.
    waiting: BTreeSet<PortNumber>,
    timers: BTreeSet<(Instant, Timer)>,
    pipes: Pipes,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Connection(u64),
    Port(PortNumber),
}

#[derive(Debug)]
struct Sandbox {
    life: Life,
    own_address: Option<IpAddr>,
    ports: Vec<PortNumber>,
    /// Those of its connections that have something to do, in turn.
    queue: VecDeque<u64>,
    watcher: Option<OwnedFd>,
    stats: ConnectionStats,
    /// How many ends were not told since the last that was.
    untold: u64,
}

#[derive(Debug)]
enum Life {
    /// None just now: who comes waits for the next.
    None,
    Alive {
        init: OwnedFd,
        network: Option<NetworkNamespace>,
    },
    /// It has ended by itself: who comes is turned away.
    Dead,
}

#[derive(Debug)]
struct Port {
    sandbox: SandboxNumber,
    told: message::Port,
    listener: Option<OwnedFd>,
    limits: ConnectionLimits,
    connections: HashSet<u64>,
    bytes: u64,
    begins: Option<Bucket>,
    moves: Option<Bucket>,
    /// Connections that wait until more may be moved.
    parked: Vec<u64>,
    /// Which of its addresses took the last connection.
    first: usize,
    timer: Option<Instant>,
}

impl Port {
    fn is_used_up(&self) -> bool {
        self.limits.bytes.is_some_and(|most| self.bytes >= most)
    }

    /// How many bytes of a connection of its have gone into the sandbox, and out of it.
    fn bytes_of(&self, connection: &Connection) -> (u64, u64) {
        let (up, down) = (connection.up.bytes, connection.down.bytes);
        match self.told.leads {
            Leads::In(_) => (up, down),
            Leads::Out(_) => (down, up),
        }
    }
}

impl Relay {
    pub(super) fn new(orders: OwnedFd) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&orders, EpollEvent::new(EpollFlags::EPOLLIN, ORDERS))?;
        Ok(Self {
            epoll,
            orders: Orders::new(orders),
            sandboxes: HashMap::new(),
            ports: HashMap::new(),
            connections: HashMap::new(),
            next: 0,
            queue: VecDeque::new(),
            waiting: BTreeSet::new(),
            timers: BTreeSet::new(),
            pipes: Pipes::default(),
            buffer: vec![0; CHUNK],
        })
    }

    /// Works until no one can give orders any more.
    pub(super) fn run(mut self) {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let is_more = self.take_connections() || !self.queue.is_empty();
            let timeout = if is_more { EpollTimeout::ZERO } else { self.timeout() };
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(_) => return,
            };
            for event in events.iter().take(count) {
                if event.data() == ORDERS {
                    if !self.take_orders() {
                        return;
                    }
                } else {
                    self.take_event(event.data(), event.events());
                }
            }
            self.run_timers();
            for _ in 0..self.queue.len() {
                self.run_one();
            }
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let Some((at, _)) = self.timers.first() else { return EpollTimeout::NONE };
        let left = at.saturating_duration_since(Instant::now());
        EpollTimeout::try_from(left.as_millis() + 1).unwrap_or(EpollTimeout::MAX)
    }

    fn take_event(&mut self, data: u64, flags: EpollFlags) {
        let number = data >> 2;
        match data & 3 {
            PORT => drop(self.waiting.insert(number)),
            // The life that it is of may be over by an order, and the next one there.
            INIT if self.has_died(number) => self.end_life(number, Life::Dead),
            INIT => {}
            side => self.take_readiness(number, side == CLIENT, flags),
        }
    }

    /// Whether the life that a sandbox has now has ended by itself.
    fn has_died(&self, number: SandboxNumber) -> bool {
        let Some(Sandbox { life: Life::Alive { init, .. }, .. }) = self.sandboxes.get(&number)
        else {
            return false;
        };
        pidfd::has_ended(init.as_fd()).unwrap_or(true)
    }

    fn take_readiness(&mut self, number: u64, is_client: bool, flags: EpollFlags) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let side = match (is_client, &mut connection.server) {
            (true, _) => &mut connection.client,
            (false, Server::Connected(side)) => side,
            (false, Server::Connecting { .. }) => return self.go_on_connecting(number),
        };
        // What has failed tells how when it is read or written.
        let is_over = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        let for_reading = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        side.is_readable |= is_over || flags.intersects(for_reading);
        side.is_writable |= is_over || flags.contains(EpollFlags::EPOLLOUT);
        side.has_failed |= flags.contains(EpollFlags::EPOLLERR);
        let is_lost = is_client && flags.contains(EpollFlags::EPOLLERR);
        if is_lost && matches!(connection.server, Server::Connecting { .. }) {
            return self.end_connection(number, Why::ByClient);
        }
        self.enqueue(number);
    }

    fn enqueue(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let of = connection.sandbox;
        let Some(sandbox) = self.sandboxes.get_mut(&of) else { return };
        if !std::mem::replace(&mut connection.is_queued, true) {
            if sandbox.queue.is_empty() {
                self.queue.push_back(of);
            }
            sandbox.queue.push_back(number);
        }
    }

    /// Gives one connection of the next sandbox its turn: however many one has, others wait for one.
    fn run_one(&mut self) {
        let Some(number) = self.queue.pop_front() else { return };
        let Some(sandbox) = self.sandboxes.get_mut(&number) else { return };
        let next = sandbox.queue.pop_front();
        if !sandbox.queue.is_empty() {
            self.queue.push_back(number);
        }
        if let Some(connection) = next {
            self.run_connection(connection);
        }
    }

    /// Gives a connection its turn.
    fn run_connection(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.is_queued = false;
        let Some(port) = self.ports.get_mut(&connection.port) else { return };
        let now = Instant::now();
        // None takes more at once than its part.
        let sharers = u64::try_from(port.connections.len()).unwrap_or(u64::MAX);
        let may_move = port.moves.as_mut().map_or(u64::MAX, |moves| moves.part(sharers, now));
        let left = port.limits.bytes.map_or(u64::MAX, |most| most.saturating_sub(port.bytes));
        let before = connection.taken();
        let next = connection.run(may_move.min(left), (&mut self.pipes, &mut self.buffer));
        let moved = connection.taken() - before;
        port.bytes += moved;
        if let Some(moves) = &mut port.moves {
            moves.take(moved);
        }
        if port.is_used_up() {
            let all: Vec<_> = port.connections.iter().copied().collect();
            all.into_iter().for_each(|number| self.end_connection(number, Why::Limit));
            return;
        }
        let is_half_closed = connection.is_half_closed();
        match next {
            Next::End(Why::Closed) => return self.end_when_all_is_sent(number),
            Next::End(why) => self.end_connection(number, why),
            Next::Again if port.moves.as_mut().is_some_and(|moves| moves.available(now) == 0) => {
                port.parked.push(number);
                let at = port.moves.as_ref().map_or(now, Bucket::ready_at);
                let port = connection.port;
                self.wake_port(port, at);
            }
            Next::Again => self.enqueue(number),
            Next::Wait => {}
        }
        if is_half_closed && (moved > 0 || self.has_no_timer(number)) {
            self.wake_connection(number, Some(now + HALF_CLOSED));
        }
    }

    /// Ends a connection that is over, when the kernel has passed on what was sent: it counts as one
    /// for as long as that takes, within bounds.
    fn end_when_all_is_sent(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let unsent = connection.unsent();
        if unsent == 0 {
            return self.end_connection(number, Why::Closed);
        }
        if unsent != connection.unsent {
            (connection.looks, connection.unsent) = (0, unsent);
        }
        if connection.looks == LOOKS {
            return self.end_connection(number, Why::HalfClosedTimeout);
        }
        let pause = (FIRST_LOOK * 2_u32.pow(connection.looks.min(8))).min(LAST_LOOKS);
        connection.looks += 1;
        self.wake_connection(number, Some(Instant::now() + pause));
    }

    fn has_no_timer(&self, number: u64) -> bool {
        self.connections.get(&number).is_some_and(|connection| connection.timer.is_none())
    }

    fn wake_connection(&mut self, number: u64, at: Option<Instant>) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let timer = Timer::Connection(number);
        if let Some(before) = std::mem::replace(&mut connection.timer, at) {
            self.timers.remove(&(before, timer));
        }
        self.timers.extend(at.map(|at| (at, timer)));
    }

    fn wake_port(&mut self, number: PortNumber, at: Instant) {
        let Some(port) = self.ports.get_mut(&number) else { return };
        let timer = Timer::Port(number);
        match port.timer {
            Some(before) if before <= at => return,
            Some(before) => drop(self.timers.remove(&(before, timer))),
            None => {}
        }
        port.timer = Some(at);
        self.timers.insert((at, timer));
    }

    fn run_timers(&mut self) {
        while let Some((at, timer)) = self.timers.first().copied()
            && at <= Instant::now()
        {
            self.timers.pop_first();
            match timer {
                Timer::Port(number) => {
                    let Some(port) = self.ports.get_mut(&number) else { continue };
                    port.timer = None;
                    if port.listener.is_some() {
                        self.waiting.insert(number);
                    }
                    let parked = std::mem::take(&mut port.parked);
                    parked.into_iter().for_each(|number| self.enqueue(number));
                }
                Timer::Connection(number) => {
                    let Some(connection) = self.connections.get_mut(&number) else { continue };
                    connection.timer = None;
                    match connection.server {
                        Server::Connecting { .. } => {
                            self.end_connection(number, Why::ConnectTimeout);
                        }
                        Server::Connected(_) if connection.is_over() => {
                            self.end_when_all_is_sent(number);
                        }
                        // What it has is still on its way to who reads late.
                        Server::Connected(_) if connection.unsent() > 0 => {
                            self.wake_connection(number, Some(at + HALF_CLOSED));
                        }
                        Server::Connected(_) => {
                            self.end_connection(number, Why::HalfClosedTimeout);
                        }
                    }
                }
            }
        }
    }

    fn end_connection(&mut self, number: u64, why: Why) {
        self.wake_connection(number, None);
        let Some(connection) = self.connections.remove(&number) else { return };
        if let Some(port) = self.ports.get_mut(&connection.port)
            && let Some(sandbox) = self.sandboxes.get_mut(&connection.sandbox)
        {
            port.connections.remove(&number);
            let (bytes_in, bytes_out) = port.bytes_of(&connection);
            sandbox.stats.open -= 1;
            sandbox.stats.failed += u64::from(why != Why::Closed);
            sandbox.stats.bytes_in += bytes_in;
            sandbox.stats.bytes_out += bytes_out;
            sandbox.tell(&port.told, &connection, why, (bytes_in, bytes_out));
        }
        connection.end(why, &mut self.pipes);
    }

    /// Ends the life of a sandbox, with all connections of it.
    fn end_life(&mut self, number: SandboxNumber, next: Life) {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else { return };
        if let Life::Alive { init, .. } = std::mem::replace(&mut sandbox.life, next) {
            // The caller has it, too: it would stay watched.
            let _ = self.epoll.delete(&init);
        }
        for port in sandbox.ports.clone() {
            self.end_connections(port);
            let Some(port) = self.ports.get_mut(&port) else { continue };
            // What listened inside is of a network that is no more.
            if let Leads::Out(_) = port.told.leads
                && let Some(listener) = port.listener.take()
            {
                self.close_listener(&listener);
            }
        }
    }

    /// Has a listener listen no more, also where a fork has a copy that was made while the caller
    /// had one.
    fn close_listener(&self, listener: &OwnedFd) {
        let _ = self.epoll.delete(listener);
        let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
    }

    fn end_connections(&mut self, port: PortNumber) {
        let Some(port) = self.ports.get_mut(&port) else { return };
        port.parked.clear();
        let all: Vec<_> = port.connections.iter().copied().collect();
        all.into_iter().for_each(|number| self.end_connection(number, Why::Sandbox));
    }
}

impl Sandbox {
    fn new() -> Self {
        Self {
            life: Life::None,
            own_address: None,
            ports: Vec::new(),
            queue: VecDeque::new(),
            watcher: None,
            stats: ConnectionStats::default(),
            untold: 0,
        }
    }

    /// Tells of the end of a connection, if there is room for that.
    fn tell(
        &mut self,
        port: &message::Port,
        of: &Connection,
        why: Why,
        (bytes_in, bytes_out): (u64, u64),
    ) {
        let Some(watcher) = &self.watcher else { return };
        let told = Told {
            port: port.clone(),
            peer: of.peer,
            why,
            bytes_in,
            bytes_out,
            lasted: of.begun.elapsed(),
            untold: self.untold,
        };
        let mut message = Vec::new();
        let is_encoded = codec::encode(&told, &mut message).is_ok();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(watcher.as_raw_fd(), &message, flags) {
            Ok(_) if is_encoded => self.untold = 0,
            // No one listens any more.
            Err(Errno::EPIPE | Errno::ECONNRESET) => self.watcher = None,
            _ => {
                self.untold += 1;
                self.stats.untold += 1;
            }
        }
    }
}
