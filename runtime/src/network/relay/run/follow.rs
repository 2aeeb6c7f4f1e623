//! What the relay is told to do, done.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{INIT, Life, PORT, Port, Relay, Sandbox, Timer};
use crate::config::ports::ConnectionStats;
use crate::network::relay::bucket::Bucket;
use crate::network::relay::message::{Answer, Order, PortNumber, SandboxNumber};
use crate::sys::network_namespace::NetworkNamespace;

impl Relay {
    /// Does what it was told. Returns whether anyone can tell it anything.
    pub(super) fn take_orders(&mut self) -> bool {
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
            Order::Begin { sandbox: number, own_address } => {
                let init = next()?;
                let is_shared = own_address.is_none();
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
            Order::Listen { port } => {
                let listener = next()?;
                self.listen(port, listener)?;
            }
            Order::Close { port } => self.close_port(port),
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

    fn wake_ports_of(&mut self, number: SandboxNumber) {
        if let Some(sandbox) = self.sandboxes.get(&number) {
            self.waiting.extend(&sandbox.ports);
        }
    }
}
