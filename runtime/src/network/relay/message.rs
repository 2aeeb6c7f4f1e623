//! What the relay is told and asked, one message each, with descriptors beside it.
//!
//! Nothing else passes between it and the process: it could be a process of its own.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::ports::{ConnectionLimits, ConnectionStats};

/// The longest of any, in bytes.
pub(crate) const LONGEST: usize = 4096;

/// The most descriptors with one.
pub(crate) const MOST_DESCRIPTORS: usize = 4;

/// Names a sandbox; no other has its number.
pub(crate) type SandboxNumber = u64;

/// Names a port of any sandbox; no other has its number.
pub(crate) type PortNumber = u64;

/// What the relay is to do.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The sandbox has begun a life: a pidfd of its init comes with this and, where it has a
    /// network of its own, the descriptors of that.
    Begin {
        sandbox: SandboxNumber,
        /// An address that is its own, for who comes from outside. Where it has none, others may
        /// have its network, too.
        own_address: Option<IpAddr>,
    },
    /// That life is about to end: each connection is reset. Those that come wait for the next or,
    /// where none is to come, are turned away.
    Hold { sandbox: SandboxNumber, is_dead: bool },
    /// The sandbox is no more, nor any of its ports.
    End { sandbox: SandboxNumber },
    /// A port of it. Where it listens comes with this, unless that is to come with the next life.
    Open { sandbox: SandboxNumber, port: Port, limits: ConnectionLimits },
    /// Where a port listens in this life, which comes with this.
    Listen { port: PortNumber },
    /// There is no such port any more: each of its connections is reset.
    Close { port: PortNumber },
    /// Ends of connections are to be told on a socket, which comes with this.
    Watch { sandbox: SandboxNumber },
    /// What its ports have moved.
    Count { sandbox: SandboxNumber },
}

/// A port of a sandbox: one of the host's that leads into it, or one in it that leads out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub(crate) number: PortNumber,
    pub(crate) address: SocketAddr,
    pub(crate) leads: Leads,
}

/// Where a port leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Leads {
    /// Into the sandbox, to this port.
    In(u16),
    /// Out of it, to the first of these that takes the connection.
    Out(Vec<SocketAddr>),
}

impl Port {
    /// Where it listens: on the host, if it leads into the sandbox, else inside. Where any port was
    /// asked for, this is the one that the kernel has picked.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port inside that it leads to; `None` for one that leads out.
    pub fn published(&self) -> Option<u16> {
        match self.leads {
            Leads::In(port) => Some(port),
            Leads::Out(_) => None,
        }
    }

    /// Where it leads to outside; nothing for one that leads in.
    pub fn forwarded_to(&self) -> &[SocketAddr] {
        match &self.leads {
            Leads::In(_) => &[],
            Leads::Out(to) => to,
        }
    }
}

/// What the relay says to that.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Stats(ConnectionStats),
    /// The kernel's number.
    Failed(i32),
}

/// The end of a connection, as it is told.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) port: Port,
    pub(crate) peer: SocketAddr,
    pub(crate) why: Why,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) lasted: Duration,
    /// How many ends before this one were not told.
    pub(crate) untold: u64,
}

/// Why a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Why {
    /// Both sides have.
    Closed,
    /// Who has connected has reset it, or was lost.
    ByClient,
    /// The server has, or was lost.
    ByServer,
    /// No server took it; the kernel's number.
    Refused(i32),
    /// No server took it in time.
    ConnectTimeout,
    /// One side had ended, and the other did nothing.
    HalfClosedTimeout,
    /// All bytes that may pass have.
    Limit,
    /// The sandbox has ended or was reset, or the port was closed.
    Sandbox,
}

#[cfg(test)]
mod tests {
    use adl_protocol::codec;

    use super::{Answer, ConnectionStats};
    use crate::wire::decode_frame;

    #[test]
    fn answers_are_understood() {
        let stats = ConnectionStats { open: 1, untold: u64::MAX, ..ConnectionStats::default() };
        for answer in [Answer::Done, Answer::Stats(stats), Answer::Failed(24)] {
            let mut frame = Vec::new();
            codec::encode(&answer, &mut frame).unwrap();
            assert_eq!(decode_frame::<Answer>(&frame).unwrap(), answer);
        }
    }
}
