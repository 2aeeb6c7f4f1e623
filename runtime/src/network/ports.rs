//! The ports of a sandbox: what the relay is told of them, from the sandbox's first to its end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use adl_protocol::NetworkOrigin;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};

use super::relay::message::{
    Answer, LONGEST, Leads, Order, Port, PortNumber, SandboxNumber, Told, Why,
};
use super::relay::{self, Client, Task, prepare_listener};
use super::{BACKLOG, TIMEOUT, namespace, socket_error, within};
use crate::config::Config;
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
    network: NetworkOrigin,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: Vec<Port>,
    /// The relay that knows the sandbox, if one does. With one that is broken all its ports have
    /// gone.
    relay: Option<Arc<Client>>,
}

impl State {
    fn relay(&self) -> Option<&Client> {
        self.relay.as_deref().filter(|relay| !relay.is_broken())
    }
}

/// What the relay is to be told of a life that begins.
#[derive(Debug)]
pub(crate) struct Prepared {
    init: Arc<OwnedFd>,
    network: Option<Arc<NetworkNamespace>>,
    listeners: Vec<(PortNumber, OwnedFd)>,
}

/// A port that is to be.
#[derive(Debug)]
struct Opening {
    listener: OwnedFd,
    port: Port,
    limits: ConnectionLimits,
}

impl Opening {
    fn new(listener: OwnedFd, leads: Leads, limits: &ConnectionLimits) -> Result<Self> {
        prepare_listener(listener.as_fd()).map_err(Error::io("setsockopt"))?;
        let address = own_address(listener.as_fd()).map_err(Error::io("getsockname"))?;
        let port = Port { number: unique_number(), address, leads };
        Ok(Self { listener, port, limits: limits.clone() })
    }

    fn task(&self, sandbox: SandboxNumber) -> Task<'_> {
        let (port, limits) = (self.port.clone(), self.limits.clone());
        (Order::Open { sandbox, port, limits }, vec![self.listener.as_fd()])
    }
}

impl Ports {
    pub(crate) fn new(network: NetworkOrigin) -> Self {
        Self { number: unique_number(), network, state: Mutex::default() }
    }

    /// Opens the ports of a configuration that are not open yet: while init sets up, those that do
    /// without it; when it is ready, the rest. After an error some may be open, until
    /// [`Ports::end`].
    pub(crate) fn open_configured(
        &self,
        control: &Control,
        config: &Config,
        is_ready: bool,
    ) -> Result<()> {
        let Config { publish, forward, sysctls, .. } = config;
        // Else init tells the way to its network, or has not joined that yet.
        let is_new = self.network == NetworkOrigin::New;
        let is_known = is_ready || is_new && control.may_look_at_init();
        if !is_known {
            return Ok(());
        }
        let open = lock(&self.state).all.len();
        let published = publish.iter().skip(open).map(|publish| self.published(publish));
        let mut openings = published.collect::<Result<Vec<_>>>()?;
        let forwards = forward.iter().skip(open.saturating_sub(publish.len()));
        // Init sets the kernel's parameters, and what listens has those of its beginning. Before a
        // network has a device that is up, the kernel takes any address for its own.
        let is_own = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
        let does_without = |ip| sysctls.is_empty() && is_own(ip);
        for forward in forwards.take_while(|f| is_ready || does_without(f.address.ip())) {
            match self.forwarded(control, forward) {
                // Its device may have none yet.
                Err(Error::Socket { source, .. }) if !is_ready && is_no_address(&source) => break,
                opening => openings.push(opening?),
            }
        }
        self.open(control, &openings)
    }

    /// Has a port of the host's lead into a sandbox.
    pub(crate) fn publish(&self, control: &Control, publish: &Publish) -> Result<Port> {
        self.open_one(control, self.published(publish)?)
    }

    /// Has a port inside lead out of a sandbox.
    pub(crate) fn forward(&self, control: &Control, forward: &Forward) -> Result<Port> {
        self.open_one(control, self.forwarded(control, forward)?)
    }

    fn published(&self, publish: &Publish) -> Result<Opening> {
        publish.check()?;
        if self.network == NetworkOrigin::Caller {
            let why = "a sandbox with the host's network has its ports already";
            return Err(Error::invalid("publish", why));
        }
        let address = publish.address;
        let listener = tcp_listener(address, BACKLOG).map_err(|errno| {
            let (operation, source) = ("listen on", errno.into());
            Error::Socket { operation, address, is_inside: false, source }
        })?;
        Opening::new(listener, Leads::In(publish.port), &publish.limits)
    }

    fn forwarded(&self, control: &Control, forward: &Forward) -> Result<Opening> {
        forward.check()?;
        if self.network == NetworkOrigin::Caller {
            let why = "a sandbox with the host's network reaches what the host does";
            return Err(Error::invalid("forward", why));
        }
        let listener = listen_inside(control, forward.address)?;
        Opening::new(listener, Leads::Out(forward.to.clone()), &forward.limits)
    }

    fn open_one(&self, control: &Control, opening: Opening) -> Result<Port> {
        let port = opening.port.clone();
        self.open(control, &[opening])?;
        Ok(port)
    }

    fn open(&self, control: &Control, openings: &[Opening]) -> Result<()> {
        if openings.is_empty() {
            return Ok(());
        }
        let tasks = openings.iter().map(|opening| opening.task(self.number));
        let mut state = lock(&self.state);
        self.tell(&mut state, control, tasks.collect())?;
        state.all.extend(openings.iter().map(|opening| opening.port.clone()));
        Ok(())
    }

    /// Ends a port; `false` if there is none.
    pub(crate) fn close(&self, port: &Port) -> Result<bool> {
        let mut state = lock(&self.state);
        let Some(at) = state.all.iter().position(|other| other == port) else { return Ok(false) };
        if let Some(relay) = state.relay() {
            relay.order(Order::Close { port: port.number }, &[])?;
        }
        state.all.remove(at);
        Ok(true)
    }

    pub(crate) fn all(&self) -> Vec<Port> {
        lock(&self.state).all.clone()
    }

    /// What its connections have come to; `None` where it never had a port.
    pub(crate) fn stats(&self) -> Result<Option<ConnectionStats>> {
        let state = lock(&self.state);
        let Some(relay) = state.relay() else { return Ok(None) };
        match relay.order(Order::Count { sandbox: self.number }, &[])? {
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
        let order = Order::Watch { sandbox: self.number };
        self.tell(&mut lock(&self.state), control, vec![(order, vec![theirs.as_fd()])])
    }

    /// Has the relay do something, which knows the sandbox as it is now before that.
    fn tell(&self, state: &mut State, control: &Control, tasks: Vec<Task<'_>>) -> Result<()> {
        if let Some(relay) = state.relay() {
            return relay.order_all(&tasks).map(drop);
        }
        let life = prepare_life(control)?;
        let tasks: Vec<_> = self.beginning(&life).into_iter().chain(tasks).collect();
        let relay = relay::client()?;
        relay.order_all(&tasks).inspect_err(|_| end(&relay, self.number))?;
        state.all.clear();
        state.relay = Some(relay);
        Ok(())
    }

    /// What has the relay know a life.
    fn beginning<'a>(&self, life: &'a Prepared) -> Vec<Task<'a>> {
        let Prepared { init, network, listeners } = life;
        let sandbox = self.number;
        let own_address = (self.network == NetworkOrigin::New).then_some(OWN_ADDRESS);
        let network = network.iter().flat_map(|network| network.descriptors());
        let descriptors = [init.as_fd()].into_iter().chain(network).collect();
        let listens = |(port, listener): &'a (PortNumber, OwnedFd)| {
            (Order::Listen { port: *port }, vec![listener.as_fd()])
        };
        let begin = (Order::Begin { sandbox, own_address }, descriptors);
        [begin].into_iter().chain(listeners.iter().map(listens)).collect()
    }

    /// Makes ready what the ports need of the next life; `None` where there are none.
    pub(crate) fn prepare(&self, control: &Control) -> Result<Option<Prepared>> {
        let state = lock(&self.state);
        if state.relay().is_none() {
            return Ok(None);
        }
        let mut prepared = prepare_life(control)?;
        for port in state.all.iter().filter(|port| matches!(port.leads, Leads::Out(_))) {
            let listener = listen_inside(control, port.address)?;
            prepare_listener(listener.as_fd()).map_err(Error::io("setsockopt"))?;
            prepared.listeners.push((port.number, listener));
        }
        Ok(Some(prepared))
    }

    /// Resets all connections: the life that they are of is about to end. Who comes waits for the
    /// next.
    pub(crate) fn hold(&self) {
        self.stop(false);
    }

    fn stop(&self, is_dead: bool) {
        if let Some(relay) = lock(&self.state).relay() {
            // Where it can't be told, it ends, and all connections with it.
            let _ = relay.order(Order::Hold { sandbox: self.number, is_dead }, &[]);
        }
    }

    /// Has who comes from here on, and who has waited, come to the next life. What can fail was done
    /// before.
    pub(crate) fn begin(&self, prepared: Option<Prepared>) {
        if let (Some(life), Some(relay)) = (prepared, lock(&self.state).relay())
            && relay.order_all(&self.beginning(&life)).is_err()
        {
            let _ = relay.order(Order::Hold { sandbox: self.number, is_dead: true }, &[]);
        }
    }

    /// Has who comes come to the life that there was: the next has not come about. Where it is at
    /// its end, who comes is turned away.
    pub(crate) fn go_on(&self, control: &Control) {
        match self.prepare(control) {
            Ok(prepared) => self.begin(prepared),
            Err(_) => self.stop(true),
        }
    }

    /// Resets all connections, and ends all ports.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        if let Some(relay) = state.relay() {
            end(relay, self.number);
        }
        *state = State::default();
    }
}

fn prepare_life(control: &Control) -> Result<Prepared> {
    let network = namespace(control, Deadline::after(TIMEOUT))?;
    Ok(Prepared { init: Arc::clone(control.init()), network, listeners: Vec::new() })
}

fn listen_inside(control: &Control, address: SocketAddr) -> Result<OwnedFd> {
    let deadline = Deadline::after(TIMEOUT);
    within(control, deadline, || tcp_listener(address, BACKLOG))?
        .map_err(socket_error("listen on", address))
}

/// Has the relay end all connections of a sandbox and its ports, and forget it. Where it can't be
/// told, it ends, and they with it.
fn end(relay: &Client, sandbox: SandboxNumber) {
    let _ = relay.order(Order::End { sandbox }, &[]);
}

fn is_no_address(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EADDRNOTAVAIL)
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
