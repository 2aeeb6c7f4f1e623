//! Who comes to a port: as many as there is room for.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::EpollEvent;

use super::{CLIENT, Life, Relay, Sandbox, WATCHED};
use crate::network::relay::connection::{self, CONNECT, Connection, Server};
use crate::network::relay::flow::{Flow, PIPES, Side};
use crate::network::relay::message::{PortNumber, Why};
use crate::sys;
use crate::sys::sockaddr::{accept, peer_address};

/// How many connections are taken of a port before it is another's turn.
const ACCEPTED_AT_ONCE: usize = 16;

/// How long no connection is taken where the kernel has no room for one more.
const NO_ROOM: Duration = Duration::from_millis(50);

/// How many descriptors are left free of those that the process may have: for pipes, and for what
/// comes with orders.
const SPARE_DESCRIPTORS: usize = 2 * PIPES + 32;

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
    /// Takes the connections that wait at ports. Returns whether there may be more, for which there
    /// is room.
    pub(super) fn take_connections(&mut self) -> bool {
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
                let peer = prepared.and_then(|()| peer_address(client.as_fd())).ok()?;
                Some((client, peer))
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
            let event = EpollEvent::new(WATCHED, connection << 2 | CLIENT);
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
}
