//! The relay's thread: it waits for all sockets, and gives each connection its turn.
//!
//! It waits for nothing else: no socket blocks, and no code of the caller's runs in it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};

use adl_protocol::codec;

use super::bucket::Bucket;
use super::connection::{
    self, CONNECT, Connection, HALF_CLOSED, Next, Server, addresses_inside, begin_to_connect,
    reset_when_closed,
};
use super::flow::{CHUNK, Flow, PIPES, Pipes, Side};
use super::message::{self, Answer, Leads, Order, PortNumber, SandboxNumber, Told, Why};
use super::orders::Orders;
use crate::config::ports::{ConnectionLimits, ConnectionStats};
use crate::sys;
use crate::sys::network_namespace::NetworkNamespace;
use crate::sys::sockaddr::{accept, option, own_address, peer_address, tcp_socket};

/// How many connections are taken of a port before it is another's turn.
const ACCEPTED_AT_ONCE: usize = 16;

/// How long no connection is taken where the kernel has no room for one more.
const NO_ROOM: Duration = Duration::from_millis(50);

/// How many descriptors are left free of those that the process may have: for pipes, and for what
/// comes with orders.
const SPARE_DESCRIPTORS: usize = 2 * PIPES + 32;

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

/// What has come of an attempt to take connections of a port.
enum Accepted {
    /// There may be more.
    Some,
    /// There are none.
    All,
    /// There is no room for them before that time, or until another ends.
    NoRoom(Option<Instant>),
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
        let mut fds = [PollFd::new(init.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) != Ok(0)
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

    /// Takes the connections that wait at ports. Returns whether there may be more, for which there
    /// is room.
    fn take_connections(&mut self) -> bool {
        let mut is_more = false;
        let waiting: Vec<_> = self.waiting.iter().copied().collect();
        for number in waiting {
            match self.accept(number) {
                Accepted::Some => is_more = true,
                Accepted::All => drop(self.waiting.remove(&number)),
                Accepted::NoRoom(until) => {
                    if let Some(until) = until {
                        self.wake_port(number, until);
                    }
                }
            }
        }
        is_more
    }

    /// How many connections more a sandbox may have: twice as many as there is room for beside
    /// them, so that one alone leaves a third to others.
    fn room(&self, sandbox: &Sandbox) -> usize {
        let most = usize::try_from(sys::most_descriptors()).unwrap_or(usize::MAX);
        let used = 2 * self.connections.len()
            + self.ports.len()
            + 4 * self.sandboxes.len()
            + SPARE_DESCRIPTORS;
        let free = most.saturating_sub(used) / 2;
        let open = usize::try_from(sandbox.stats.open).unwrap_or(usize::MAX);
        free.min(free.saturating_mul(2).saturating_sub(open))
    }

    fn accept(&mut self, number: PortNumber) -> Accepted {
        let now = Instant::now();
        let Some(port) = self.ports.get(&number) else { return Accepted::All };
        let Some(sandbox) = self.sandboxes.get(&port.sandbox) else { return Accepted::All };
        if matches!(sandbox.life, Life::None) {
            return Accepted::NoRoom(None);
        }
        let refused = match sandbox.life {
            Life::Dead => Some(Why::Sandbox),
            _ => port.is_used_up().then_some(Why::Limit),
        };
        let room = self.room(sandbox);
        let Some(port) = self.ports.get_mut(&number) else { return Accepted::All };
        let Some(listener) = &port.listener else { return Accepted::All };
        let most = port.limits.connections.map_or(usize::MAX, |most| most as usize);
        let of_port = most.saturating_sub(port.connections.len());
        let mut most = room.min(of_port).min(ACCEPTED_AT_ONCE);
        if most == 0 {
            return Accepted::NoRoom(None);
        }
        if let Some(begins) = &mut port.begins {
            most = most.min(usize::try_from(begins.available(now)).unwrap_or(usize::MAX));
            if most == 0 {
                return Accepted::NoRoom(Some(begins.ready_at()));
            }
        }
        let mut clients = Vec::new();
        let mut then = Accepted::Some;
        for _ in 0..most {
            match accept(listener.as_fd()) {
                Ok(socket) => clients.push(socket),
                Err(Errno::EAGAIN) => {
                    then = Accepted::All;
                    break;
                }
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                    then = Accepted::NoRoom(Some(now + NO_ROOM));
                    break;
                }
                // It listens no more.
                Err(Errno::EINVAL) => {
                    then = Accepted::All;
                    break;
                }
                // Of a connection that is gone already (accept(2)).
                Err(_) => {}
            }
        }
        if let Some(begins) = &mut port.begins {
            begins.take(clients.len() as u64);
        }
        let clients: Vec<_> = clients
            .into_iter()
            .filter_map(|client| {
                let prepared = connection::prepare(client.as_fd());
                match prepared.and_then(|()| peer_address(client.as_fd())) {
                    Ok(peer) => Some((client, peer)),
                    Err(_) => {
                        reset_when_closed(client.as_fd());
                        None
                    }
                }
            })
            .collect();
        let all = self.begin_connections(number, clients);
        match refused {
            Some(why) => all.into_iter().for_each(|number| self.end_connection(number, why)),
            None => self.connect(number, &all),
        }
        then
    }

    /// Has who has come to a port have connections, with no server yet.
    fn begin_connections(
        &mut self,
        number: PortNumber,
        clients: Vec<(OwnedFd, SocketAddr)>,
    ) -> Vec<u64> {
        let now = Instant::now();
        let Some(port) = self.ports.get_mut(&number) else { return Vec::new() };
        let Some(sandbox) = self.sandboxes.get_mut(&port.sandbox) else { return Vec::new() };
        let first = port.first;
        let mut all = Vec::new();
        for (client, peer) in clients {
            let connection = self.next;
            self.next += 1;
            let watched = EpollFlags::EPOLLIN
                | EpollFlags::EPOLLOUT
                | EpollFlags::EPOLLRDHUP
                | EpollFlags::EPOLLET;
            let event = EpollEvent::new(watched, connection << 2 | CLIENT);
            let is_watched = self.epoll.add(&client, event);
            sandbox.stats.begun += 1;
            sandbox.stats.open += 1;
            port.connections.insert(connection);
            let made = Connection {
                sandbox: port.sandbox,
                port: number,
                peer,
                begun: now,
                client: Side::new(client),
                server: Server::Connecting { attempt: 0, first, socket: None, why: 0 },
                up: Flow::default(),
                down: Flow::default(),
                is_up_first: false,
                timer: None,
                is_queued: false,
                looks: 0,
                unsent: 0,
            };
            self.connections.insert(connection, made);
            all.push((connection, is_watched));
        }
        for (connection, is_watched) in &all {
            match is_watched {
                Ok(()) => self.wake_connection(*connection, Some(now + CONNECT)),
                Err(errno) => self.end_connection(*connection, Why::Refused(*errno as i32)),
            }
        }
        all.into_iter().map(|(connection, _)| connection).collect()
    }

    /// Where a port leads to, and from which address.
    fn targets(&self, number: PortNumber) -> (Vec<SocketAddr>, Option<IpAddr>) {
        let Some(port) = self.ports.get(&number) else { return Default::default() };
        let own = self.sandboxes.get(&port.sandbox).and_then(|sandbox| sandbox.own_address);
        match &port.told.leads {
            Leads::In(inside) => (addresses_inside(own, *inside), own),
            Leads::Out(to) => (to.clone(), None),
        }
    }

    /// Has the next address of each be tried; all of them are tried for the first time, or there is
    /// one.
    fn connect(&mut self, number: PortNumber, all: &[u64]) {
        let (targets, from) = self.targets(number);
        let mut left: Vec<u64> = all.to_vec();
        while let Some(connection) = left.first().copied() {
            let Some(Connection { server: Server::Connecting { attempt, first, why, .. }, .. }) =
                self.connections.get(&connection)
            else {
                left.remove(0);
                continue;
            };
            if *attempt == targets.len() {
                let why = Why::Refused(*why);
                self.end_connection(connection, why);
                left.remove(0);
                continue;
            }
            let Some(target) = targets.get((first + attempt) % targets.len()).copied() else {
                return;
            };
            let sockets = match self.make_sockets(number, target, left.len()) {
                Ok(sockets) => sockets,
                Err(errno) => {
                    let why = Why::Refused(errno as i32);
                    left.into_iter().for_each(|number| self.end_connection(number, why));
                    return;
                }
            };
            let mut failed = Vec::new();
            for (connection, socket) in left.into_iter().zip(sockets) {
                if !self.begin_attempt(connection, socket, from, target) {
                    failed.push(connection);
                }
            }
            left = failed;
        }
    }

    /// Makes so many sockets, where a port leads to.
    fn make_sockets(
        &self,
        number: PortNumber,
        target: SocketAddr,
        count: usize,
    ) -> Result<Vec<OwnedFd>, Errno> {
        let make = || (0..count).map(|_| tcp_socket(target)).collect::<Result<Vec<_>, _>>();
        let Some(port) = self.ports.get(&number) else { return Err(Errno::ESRCH) };
        let life = self.sandboxes.get(&port.sandbox).map(|sandbox| &sandbox.life);
        match (&port.told.leads, life) {
            (Leads::Out(_), _) => make(),
            (Leads::In(_), Some(Life::Alive { network: None, .. })) => make(),
            (Leads::In(_), Some(Life::Alive { network: Some(network), .. })) => {
                let made = network.enter(make);
                made.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?
            }
            _ => Err(Errno::ESRCH),
        }
    }

    /// Has a connection's next address be tried by a socket. Returns whether that is under way.
    fn begin_attempt(
        &mut self,
        number: u64,
        made: OwnedFd,
        from: Option<IpAddr>,
        to: SocketAddr,
    ) -> bool {
        let Some(connection) = self.connections.get_mut(&number) else { return true };
        let Server::Connecting { attempt, socket, why, .. } = &mut connection.server else {
            return true;
        };
        *attempt += 1;
        let watched = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        let begun = begin_to_connect(made.as_fd(), from, to)
            .and_then(|()| self.epoll.add(&made, EpollEvent::new(watched, number << 2 | SERVER)));
        match begun {
            Ok(()) => *socket = Some(made),
            Err(errno) => *why = errno as i32,
        }
        begun.is_ok()
    }

    /// Looks what has come of an attempt to connect.
    fn go_on_connecting(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let port = connection.port;
        let Server::Connecting { attempt, first, socket, why } = &mut connection.server else {
            return;
        };
        let Some(made) = socket.take() else { return };
        let has_failed = match outcome(made.as_fd()) {
            Err(Errno::EINPROGRESS) => return *socket = Some(made),
            Ok(()) => false,
            // A server took it, and has reset it since: what it has said before that is there still.
            Err(Errno::ECONNRESET) => true,
            Err(errno) => {
                *why = errno as i32;
                // A close takes it out of the epoll.
                drop(made);
                return self.connect(port, &[number]);
            }
        };
        let took = *first + *attempt - 1;
        connection.server = Server::Connected(Side { has_failed, ..Side::new(made) });
        let (targets, _) = self.targets(port);
        if let Some(port) = self.ports.get_mut(&port) {
            port.first = took % targets.len().max(1);
        }
        self.wake_connection(number, None);
        self.enqueue(number);
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

    fn wake_ports_of(&mut self, number: SandboxNumber) {
        if let Some(sandbox) = self.sandboxes.get(&number) {
            self.waiting.extend(&sandbox.ports);
        }
    }

    fn end_connections(&mut self, port: PortNumber) {
        let Some(port) = self.ports.get_mut(&port) else { return };
        port.parked.clear();
        let all: Vec<_> = port.connections.iter().copied().collect();
        all.into_iter().for_each(|number| self.end_connection(number, Why::Sandbox));
    }

    fn close_port(&mut self, number: PortNumber) {
        self.end_connections(number);
        let Some(port) = self.ports.remove(&number) else { return };
        self.waiting.remove(&number);
        if let Some(at) = port.timer {
            self.timers.remove(&(at, Timer::Port(number)));
        }
        if let Some(listener) = &port.listener {
            self.close_listener(listener);
        }
        if let Some(sandbox) = self.sandboxes.get_mut(&port.sandbox) {
            sandbox.ports.retain(|other| *other != number);
        }
    }

    /// Does what it was told. Returns whether anyone can tell it anything.
    fn take_orders(&mut self) -> bool {
        loop {
            let next = match self.orders.next() {
                Ok(Some(next)) => next,
                Ok(None) => return true,
                Err(_) => return false,
            };
            let answer = next
                .and_then(|(order, descriptors)| self.follow(order, descriptors))
                .unwrap_or_else(|errno| Answer::Failed(errno as i32));
            if self.orders.answer(&answer).is_err() {
                return false;
            }
        }
    }

    fn follow(&mut self, order: Order, descriptors: Vec<OwnedFd>) -> Result<Answer, Errno> {
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or(Errno::EMFILE);
        match order {
            Order::Begin { sandbox: number, own_address, is_shared } => {
                let init = next()?;
                let network = NetworkNamespace::from_descriptors(descriptors, is_shared);
                self.end_life(number, Life::None);
                let event = EpollEvent::new(EpollFlags::EPOLLIN, number << 2 | INIT);
                self.epoll.add(&init, event)?;
                let sandbox = self.sandboxes.entry(number).or_insert_with(Sandbox::new);
                sandbox.life = Life::Alive { init, network };
                sandbox.own_address = own_address;
                self.waiting.extend(&sandbox.ports);
            }
            Order::Hold { sandbox, is_dead } => {
                self.end_life(sandbox, if is_dead { Life::Dead } else { Life::None });
                self.wake_ports_of(sandbox);
            }
            Order::End { sandbox: number } => {
                self.end_life(number, Life::None);
                let ports = self.sandboxes.get(&number).map_or_else(Vec::new, |s| s.ports.clone());
                ports.into_iter().for_each(|port| self.close_port(port));
                self.sandboxes.remove(&number);
            }
            Order::Open { sandbox, port: told, limits } => {
                let now = Instant::now();
                let bucket = |rate: Option<u64>| rate.map(|rate| Bucket::new(rate, now));
                let port = told.number;
                let opened = Port {
                    sandbox,
                    told,
                    listener: None,
                    begins: bucket(limits.connections_per_second.map(u64::from)),
                    moves: bucket(limits.bytes_per_second),
                    limits,
                    connections: HashSet::new(),
                    bytes: 0,
                    parked: Vec::new(),
                    first: 0,
                    timer: None,
                };
                let of = self.sandboxes.entry(sandbox).or_insert_with(Sandbox::new);
                of.ports.push(port);
                self.ports.insert(port, opened);
                if let Ok(listener) = next()
                    && let Err(errno) = self.listen(port, listener)
                {
                    self.close_port(port);
                    return Err(errno);
                }
            }
            Order::Listen { port, .. } => {
                let listener = next()?;
                self.listen(port, listener)?;
            }
            Order::Close { port, .. } => self.close_port(port),
            Order::Watch { sandbox: number } => {
                let watcher = next()?;
                let sandbox = self.sandboxes.entry(number).or_insert_with(Sandbox::new);
                sandbox.watcher = Some(watcher);
            }
            Order::Count { sandbox } => return Ok(Answer::Stats(self.count(sandbox))),
        }
        Ok(Answer::Done)
    }

    fn listen(&mut self, number: PortNumber, listener: OwnedFd) -> Result<(), Errno> {
        let Some(port) = self.ports.get_mut(&number) else { return Err(Errno::ESRCH) };
        let watched = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        self.epoll.add(&listener, EpollEvent::new(watched, number << 2 | PORT))?;
        port.listener = Some(listener);
        self.waiting.insert(number);
        Ok(())
    }

    /// What the ports of a sandbox have come to, with what is under way.
    fn count(&self, number: SandboxNumber) -> ConnectionStats {
        let Some(sandbox) = self.sandboxes.get(&number) else { return ConnectionStats::default() };
        let mut stats = sandbox.stats;
        for port in sandbox.ports.iter().filter_map(|port| self.ports.get(port)) {
            let all = port.connections.iter().filter_map(|number| self.connections.get(number));
            for (bytes_in, bytes_out) in all.map(|connection| port.bytes_of(connection)) {
                stats.bytes_in += bytes_in;
                stats.bytes_out += bytes_out;
            }
        }
        stats
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

/// Whether a socket has connected.
///
/// # Errors
/// EINPROGRESS if it has not yet; why it can't.
fn outcome(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    match option(socket, libc::SO_ERROR)? {
        0 => {}
        errno => return Err(Errno::from_raw(errno)),
    }
    match peer_address(socket) {
        // Where no one listens, the port that the kernel picks may be that very one.
        Ok(peer) if own_address(socket)? == peer => Err(Errno::ECONNREFUSED),
        Ok(_) => Ok(()),
        Err(Errno::ENOTCONN) => Err(Errno::EINPROGRESS),
        Err(errno) => Err(errno),
    }
}
