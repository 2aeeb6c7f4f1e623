//! Sockets in and out of a sandbox.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::Sandbox;
use crate::error::Result;
use crate::network;

impl Sandbox {
    /// Connects to a TCP server in the sandbox, within ten seconds. The connection is made inside:
    /// 127.0.0.1 and ::1 are the sandbox's own, and so is 198.18.0.1, which each has that has no
    /// other network.
    ///
    /// The stream is an ordinary one, of the caller's. It ends as the server does; nothing of it
    /// is to be trusted more than what a guest writes. The sandbox's init has made it: one that was
    /// taken over may have kept a copy, and use and change it, too.
    ///
    /// ```no_run
    /// # use adl_runtime::{Config, Sandbox};
    /// use std::io::{Read, Write};
    ///
    /// let sandbox = Sandbox::create(Config::default())?;
    /// let server = sandbox.shell("cd /tmp && exec python3 -m http.server 8000").background()?;
    /// # let mut answer = String::new();
    /// let mut stream = loop {
    ///     match sandbox.connect(([127, 0, 0, 1], 8000)) {
    ///         // It has not come so far yet.
    ///         Err(_) if server.try_wait()?.is_none() => std::thread::yield_now(),
    ///         other => break other?,
    ///     }
    /// };
    /// stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    /// stream.read_to_string(&mut answer).unwrap();
    /// # Ok::<(), adl_runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Socket`](crate::Error::Socket) with the kernel's answer, as `ECONNREFUSED` where
    /// nothing listens; [`Error::TimedOut`](crate::Error::TimedOut);
    /// [`Error::SandboxDied`](crate::Error::SandboxDied);
    /// [`Error::Deleted`](crate::Error::Deleted); [`Error::Invalid`](crate::Error::Invalid) for
    /// an address that is no server's, as 0.0.0.0.
    pub fn connect(&self, address: impl Into<SocketAddr>) -> Result<TcpStream> {
        self.connect_timeout(address, network::TIMEOUT)
    }

    /// Connects as [`Sandbox::connect`], within another time.
    ///
    /// # Errors
    /// As [`Sandbox::connect`].
    pub fn connect_timeout(
        &self,
        address: impl Into<SocketAddr>,
        timeout: Duration,
    ) -> Result<TcpStream> {
        network::connect(&self.lives, address.into(), timeout)
    }

    /// Listens for TCP connections of what runs in the sandbox: a service of the caller's, inside.
    /// With port 0 the kernel picks one ([`TcpListener::local_addr`]).
    ///
    /// Listeners are the caller's. While one is open the network namespace stays, and to accept
    /// from it waits on when the sandbox has ended: wait with `poll(2)` for it and for
    /// [`Sandbox::pidfd`], and drop it after a reset or a delete.
    ///
    /// # Errors
    /// As [`Sandbox::connect`]; `EADDRINUSE` where something inside listens there.
    pub fn listen(&self, address: impl Into<SocketAddr>) -> Result<TcpListener> {
        network::listen(&self.lives, address.into(), network::TIMEOUT)
    }

    /// Connects to a Unix socket in the sandbox as its default user;
    /// [`Files::connect_unix`](crate::Files::connect_unix) does so as another, from another
    /// directory, or within another time.
    ///
    /// # Errors
    /// As [`Files::connect_unix`](crate::Files::connect_unix).
    pub fn connect_unix(&self, path: impl AsRef<Path>) -> Result<UnixStream> {
        self.files().connect_unix(path)
    }
}
