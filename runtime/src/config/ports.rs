//! Ports that lead into a sandbox, and out of it, as plain data.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A port of the host's that leads to a TCP server in the sandbox
/// ([`Config::publish`](crate::Config::publish), [`Sandbox::publish`](crate::Sandbox::publish)).
///
/// ```
/// use adl_runtime::Publish;
///
/// // 127.0.0.1:8080 of the host's leads to port 80 inside.
/// let publish = Publish::new(([127, 0, 0, 1], 8080), 80);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Where the host listens. With port 0 the kernel picks one.
    pub address: SocketAddr,
    /// The port inside. A server may listen on all addresses, on 127.0.0.1 or on ::1.
    pub port: u16,
    /// What connections may take.
    #[serde(default)]
    pub limits: ConnectionLimits,
}

impl Publish {
    /// Leads from an address of the host's to a port inside.
    pub fn new(address: impl Into<SocketAddr>, port: u16) -> Self {
        Self { address: address.into(), port, limits: ConnectionLimits::default() }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.port == 0 {
            let why = format!("{} would lead to port 0: name that of a server", self.address);
            return Err(Error::invalid("publish", why));
        }
        self.limits.check()
    }
}

/// A port in the sandbox that leads to a TCP server of the host's, or one that the host reaches
/// ([`Config::forward`](crate::Config::forward), [`Sandbox::forward`](crate::Sandbox::forward)).
///
/// ```
/// use adl_runtime::Forward;
///
/// // 127.0.0.1:5432 inside leads to a database of the host's.
/// let forward = Forward::new(5432, ([127, 0, 0, 1], 5432));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Where the sandbox has it. With port 0 the kernel picks one.
    pub address: SocketAddr,
    /// Where it leads to, by the host: the first of these that takes the connection.
    pub to: Vec<SocketAddr>,
    /// What connections may take.
    #[serde(default)]
    pub limits: ConnectionLimits,
}

impl Forward {
    /// Leads from a port of 127.0.0.1 inside to an address that the host reaches.
    pub fn new(port: u16, to: impl Into<SocketAddr>) -> Self {
        let address = (Ipv4Addr::LOCALHOST, port).into();
        Self { address, to: vec![to.into()], limits: ConnectionLimits::default() }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let is_no_server = |to: &&SocketAddr| to.port() == 0 || to.ip().is_unspecified();
        if self.to.is_empty() || self.to.len() > MOST_TARGETS {
            let why = format!(
                "it leads to {} addresses, where 1 to {MOST_TARGETS} can be tried",
                self.to.len()
            );
            return Err(Error::invalid("forward", why));
        }
        if let Some(to) = self.to.iter().find(is_no_server) {
            let why = format!("{to} is no server's: name its own address, and a port");
            return Err(Error::invalid("forward", why));
        }
        self.limits.check()
    }
}

/// What the connections of a sandbox's ports have come to, since it has had the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// How many there are.
    pub open: u64,
    /// How many there were in all.
    pub begun: u64,
    /// How many have ended otherwise than by both sides.
    pub failed: u64,
    /// How many bytes went into the sandbox.
    pub bytes_in: u64,
    /// How many bytes came out of it.
    pub bytes_out: u64,
    /// How many ends were not told to
    /// [`Sandbox::watch_connections`](crate::Sandbox::watch_connections), since they came faster
    /// than they were taken.
    pub untold: u64,
}

/// How many addresses of one server are tried.
const MOST_TARGETS: usize = 16;

/// What the connections of a port may take. By default as much as there is: of the descriptors
/// that the process may have for this, a sandbox leaves others a third.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionLimits {
    /// How many there may be at once. Others wait in the kernel until there is room.
    pub connections: Option<u32>,
    /// How many may begin in a second. Others wait.
    pub connections_per_second: Option<u32>,
    /// How many bytes may pass in a second, both ways together. What is more waits.
    pub bytes_per_second: Option<u64>,
    /// How many bytes may pass in all, both ways together. After that all connections are reset,
    /// and so is each that begins.
    pub bytes: Option<u64>,
}

impl ConnectionLimits {
    fn check(&self) -> Result<()> {
        let Self { connections, connections_per_second, bytes_per_second, bytes } = self;
        let zeros = [
            ("connections", *connections == Some(0)),
            ("connections_per_second", *connections_per_second == Some(0)),
            ("bytes_per_second", *bytes_per_second == Some(0)),
            ("bytes", *bytes == Some(0)),
        ];
        match zeros.iter().find(|(_, is_zero)| *is_zero) {
            Some((name, _)) => {
                let why = format!("{name} is 0, by which nothing would pass: leave out the port");
                Err(Error::invalid("connection limits", why))
            }
            None => Ok(()),
        }
    }
}
