//! The ports of a sandbox: what the relay is told of them, from the sandbox's first to its end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};

use super::relay::message::{
    Answer, LONGEST, Leads, Order, Port, PortNumber, SandboxNumber, Told, Why,
};
use super::relay::{self, set_buffers};
use super::{BACKLOG, TIMEOUT, namespace, socket_error, within};
use crate::config::Network;
use crate::config::ports::{ConnectionLimits, ConnectionStats, Forward, Publish};
use crate::error::{Error, Result};
use crate::sys::lock::lock;
use crate::sys::network_namespace::NetworkNamespace;
use crate::sys::sockaddr::{own_address, tcp_listener};
use crate::sys::unique::unique_number;
use crate::wait::Deadline;
use crate::wire::control::Control;
use crate::wire::decode_frame;

/// The address that each sandbox has that has a network of its own, beside those of loopback.
const OWN_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));

/// The end of a connection of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionEnd {
    /// Which port it came to.
    pub port: Port,
    /// Who had connected: outside, or inside.
    pub peer: SocketAddr,
    /// Why it has ended.
    pub reason: ConnectionEndReason,
    /// How many bytes went into the sandbox.
    pub bytes_in: u64,
    /// How many bytes came out of it.
    pub bytes_out: u64,
    /// How long it was there.
    pub lasted: Duration,
    /// How many ends before this one were not told: they came faster than they were taken.
    pub untold: u64,
}

/// Why a connection of a port has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionEndReason {
    /// Both sides have ended it.
    Closed,
    /// Who had connected has reset it, or can't be reached any more.
    ClientReset,
    /// The server has reset it, or can't be reached any more.
    ServerReset,
    /// No server took it, for that reason of the kernel's (`errno`).
    Refused(i32),
    /// No server took it within ten seconds.
    ConnectTimeout,
    /// One side had ended, and for a minute nothing came of the other.
    HalfClosedTimeout,
    /// [`ConnectionLimits::bytes`](crate::ConnectionLimits::bytes) were used up.
    ByteLimit,
    /// The sandbox has ended, was reset or deleted, or the port was closed.
    SandboxEnded,
}

/// The ports of one sandbox, and whether the relay knows it.
#[derive(Debug)]
pub(crate) struct Ports {
    number: SandboxNumber,
    network: Network,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: Vec<Port>,
    is_known: bool,
}

/// What the relay is to be told of a life that begins.
#[derive(Debug)]
pub(crate) struct Prepared {
    init: Arc<OwnedFd>,
    network: Option<Arc<NetworkNamespace>>,
    listeners: Vec<(PortNumber, OwnedFd)>,
}

impl Ports {
    pub(crate) fn new(network: Network) -> Self {
        Self { number: unique_number(), network, state: Mutex::default() }
    }

    /// Has a port of the host's lead into a sandbox.
    pub(crate) fn publish(&self, control: &Control, publish: &Publish) -> Result<Port> {
        publish.check()?;
        self.know(control)?;
        let failed = socket_error("listen on", publish.address);
        let listener = tcp_listener(publish.address, BACKLOG).map_err(failed)?;
        self.open(listener, Leads::In(publish.port), &publish.limits)
    }

    /// Has a port inside lead out of a sandbox.
    pub(crate) fn forward(&self, control: &Control, forward: &Forward) -> Result<Port> {
        forward.check()?;
        self.know(control)?;
        let listener = listen_inside(control, forward.address)?;
        self.open(listener, Leads::Out(forward.to.clone()), &forward.limits)
    }

    fn open(&self, listener: OwnedFd, leads: Leads, limits: &ConnectionLimits) -> Result<Port> {
        set_buffers(listener.as_fd()).map_err(Error::io("setsockopt"))?;
        let address = own_address(listener.as_fd()).map_err(Error::io("getsockname"))?;
        let port = Port { number: unique_number(), address, leads };
        let limits = limits.clone();
        let order = Order::Open { sandbox: self.number, port: port.clone(), limits };
        relay::client()?.order(&order, &[listener.as_fd()])?;
        lock(&self.state).all.push(port.clone());
        Ok(port)
    }

    /// Ends a port; `false` if there is none.
    pub(crate) fn close(&self, port: &Port) -> Result<bool> {
        let mut state = lock(&self.state);
        let Some(at) = state.all.iter().position(|other| other == port) else { return Ok(false) };
        relay::client()?.order(&Order::Close { sandbox: self.number, port: port.number }, &[])?;
        state.all.remove(at);
        Ok(true)
    }

    pub(crate) fn all(&self) -> Vec<Port> {
        lock(&self.state).all.clone()
    }

    /// What its connections have come to; `None` where it never had a port.
    pub(crate) fn stats(&self) -> Result<Option<ConnectionStats>> {
        if !lock(&self.state).is_known {
            return Ok(None);
        }
        match relay::client()?.order(&Order::Count { sandbox: self.number }, &[])? {
            Answer::Stats(stats) => Ok(Some(stats)),
            _ => Err(Error::Protocol { why: "no counts of connections" }),
        }
    }

    /// Has a thread call this with each end of a connection that is told.
    pub(crate) fn watch(
        &self,
        control: &Control,
        mut callback: impl FnMut(ConnectionEnd) + Send + 'static,
    ) -> Result<()> {
        self.know(control)?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .map_err(Error::io("socketpair"))?;
        let tell = move || {
            while let Some(told) = next_told(&ours) {
                let Told { port, peer, why, bytes_in, bytes_out, lasted, untold } = told;
                let reason = reason(why);
                callback(ConnectionEnd { port, peer, reason, bytes_in, bytes_out, lasted, untold });
            }
        };
        thread::Builder::new()
            .name("adl-connections".to_owned())
            .spawn(tell)
            .map_err(Error::io("start a thread"))?;
        relay::client()?.order(&Order::Watch { sandbox: self.number }, &[theirs.as_fd()])?;
        Ok(())
    }

    /// Has the relay know the sandbox, as it is now.
    fn know(&self, control: &Control) -> Result<()> {
        let mut state = lock(&self.state);
        if !state.is_known {
            self.tell(prepare_life(control)?)?;
            state.is_known = true;
        }
        Ok(())
    }

    fn tell(&self, prepared: Prepared) -> Result<()> {
        let Prepared { init, network, listeners } = prepared;
        let own_address = (self.network == Network::None).then_some(OWN_ADDRESS);
        let order = Order::Begin { sandbox: self.number, own_address };
        let network = network.iter().flat_map(|network| network.descriptors());
        let descriptors: Vec<BorrowedFd<'_>> = [init.as_fd()].into_iter().chain(network).collect();
        let relay = relay::client()?;
        relay.order(&order, &descriptors)?;
        for (port, listener) in listeners {
            let order = Order::Listen { sandbox: self.number, port };
            relay.order(&order, &[listener.as_fd()])?;
        }
        Ok(())
    }

    /// Makes ready what the ports need of the next life; `None` where there are none.
    pub(crate) fn prepare(&self, control: &Control) -> Result<Option<Prepared>> {
        let state = lock(&self.state);
        if !state.is_known {
            return Ok(None);
        }
        let mut prepared = prepare_life(control)?;
        for port in state.all.iter().filter(|port| matches!(port.leads, Leads::Out(_))) {
            let listener = listen_inside(control, port.address)?;
            set_buffers(listener.as_fd()).map_err(Error::io("setsockopt"))?;
            prepared.listeners.push((port.number, listener));
        }
        Ok(Some(prepared))
    }

    /// Resets all connections: the life that they are of is about to end.
    pub(crate) fn hold(&self) -> Result<()> {
        if lock(&self.state).is_known {
            relay::client()?.order(&Order::Hold { sandbox: self.number }, &[])?;
        }
        Ok(())
    }

    /// Has who comes from here on, and who has waited, come to the next life. What can fail was done
    /// before; where the relay has no memory for it, who comes waits on.
    pub(crate) fn begin(&self, prepared: Option<Prepared>) {
        if let Some(prepared) = prepared {
            let _ = self.tell(prepared);
        }
    }

    /// Has who comes come to the life that there was, if it is not at its end: the next has not
    /// come about.
    pub(crate) fn go_on(&self, control: &Control) {
        if let Ok(prepared) = self.prepare(control) {
            self.begin(prepared);
        }
    }

    /// Resets all connections, and ends all ports.
    pub(crate) fn end(&self) -> Result<()> {
        let mut state = lock(&self.state);
        if std::mem::take(&mut state.is_known) {
            relay::client()?.order(&Order::End { sandbox: self.number }, &[])?;
        }
        state.all.clear();
        Ok(())
    }
}

fn prepare_life(control: &Control) -> Result<Prepared> {
    let network = namespace(control, Deadline::after(TIMEOUT))?;
    Ok(Prepared { init: Arc::clone(control.init()), network, listeners: Vec::new() })
}

fn listen_inside(control: &Control, address: SocketAddr) -> Result<OwnedFd> {
    let deadline = Deadline::after(TIMEOUT);
    within(control, deadline, || tcp_listener(address, BACKLOG))?
        .map_err(socket_error("listen inside on", address))
}

/// The next end that is told, until no more can be.
fn next_told(socket: &OwnedFd) -> Option<Told> {
    let mut buffer = vec![0; LONGEST];
    loop {
        return match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            Ok(0) | Err(_) => None,
            Ok(count) => decode_frame(buffer.get(..count).unwrap_or_default()).ok(),
        };
    }
}

fn reason(why: Why) -> ConnectionEndReason {
    match why {
        Why::Closed => ConnectionEndReason::Closed,
        Why::ByClient => ConnectionEndReason::ClientReset,
        Why::ByServer => ConnectionEndReason::ServerReset,
        Why::Refused(errno) => ConnectionEndReason::Refused(errno),
        Why::ConnectTimeout => ConnectionEndReason::ConnectTimeout,
        Why::HalfClosedTimeout => ConnectionEndReason::HalfClosedTimeout,
        Why::Limit => ConnectionEndReason::ByteLimit,
        Why::Sandbox => ConnectionEndReason::SandboxEnded,
    }
}
