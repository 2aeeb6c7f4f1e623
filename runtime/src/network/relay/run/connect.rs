//! The server that a connection is joined to: the first of its port's addresses that takes it.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::epoll::EpollEvent;

use super::{Life, Relay, SERVER, WATCHED};
use crate::network::relay::connection::{Connection, Server, addresses_inside, begin_to_connect};
use crate::network::relay::flow::Side;
use crate::network::relay::message::{Leads, PortNumber, Why};
use crate::sys::sockaddr::{option, own_address, peer_address, tcp_socket};

impl Relay {
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
    pub(super) fn connect(&mut self, number: PortNumber, all: &[u64]) {
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
        let begun = begin_to_connect(made.as_fd(), from, to)
            .and_then(|()| self.epoll.add(&made, EpollEvent::new(WATCHED, number << 2 | SERVER)));
        match begun {
            Ok(()) => *socket = Some(made),
            Err(errno) => *why = errno as i32,
        }
        begun.is_ok()
    }

    /// Looks what has come of an attempt to connect.
    pub(super) fn go_on_connecting(&mut self, number: u64) {
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
