//! Sockets in and out of a sandbox.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{Sandbox, alive};
use crate::config::ports::{Forward, Publish};
use crate::error::{Error, Result};
use crate::network;
use crate::network::ports::ConnectionEnd;
use crate::network::relay::message::Port;
use crate::wire::control::Control;

impl Sandbox {
    /// Connects to a TCP server in the sandbox, within ten seconds. The connection is made inside:
    /// 127.0.0.1 and ::1 are the sandbox's own, and so is 198.18.0.1, which each has that has no
    /// other network.
    ///
    /// The stream is an ordinary one, of the caller's. It ends as the server does; nothing of it
    /// is to be trusted more than what a guest writes. No one inside has it.
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

    /// Has a port of the host's lead to a TCP server in the sandbox, until it is deleted or the
    /// port is closed ([`Sandbox::close_port`]). Whoever reaches the port reaches the server; that
    /// may begin to listen later.
    ///
    /// The server sees who comes from outside as 198.18.0.1, an address of the sandbox's own, and
    /// not as 127.0.0.1, which servers trust. It is reached where it listens on all addresses, on
    /// 127.0.0.1, on 198.18.0.1 or on ::1.
    ///
    /// A thread of the process joins the connections of all its sandboxes, with descriptors of its
    /// own. Where one side resets a connection, so does the other. A reset of the sandbox resets
    /// all connections, and who comes later comes to the next instance.
    ///
    /// ```no_run
    /// # use adl_runtime::{Config, Publish, Sandbox};
    /// let sandbox = Sandbox::create(Config::default())?;
    /// let port = sandbox.publish(&Publish::new(([127, 0, 0, 1], 0), 8000))?;
    /// let _server = sandbox.shell("cd /tmp && exec python3 -m http.server 8000").background()?;
    /// println!("http://{}/", port.address());
    /// # Ok::<(), adl_runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Socket`](crate::Error::Socket) where the host can't listen there, as `EADDRINUSE`;
    /// [`Error::Invalid`](crate::Error::Invalid); [`Error::Deleted`](crate::Error::Deleted);
    /// [`Error::SandboxDied`](crate::Error::SandboxDied).
    pub fn publish(&self, publish: &Publish) -> Result<Port> {
        self.changed(|control| self.ports.publish(control, publish))
    }

    /// Has a port in the sandbox lead to a TCP server that the host reaches, until it is deleted or
    /// the port is closed. Whatever runs inside reaches that server, and it alone, as the host's
    /// user.
    ///
    /// Where no address of [`Forward::to`] takes a connection, it is reset.
    ///
    /// ```no_run
    /// # use adl_runtime::{Config, Forward, Sandbox};
    /// let sandbox = Sandbox::create(Config::default())?;
    /// sandbox.forward(&Forward::new(5432, ([127, 0, 0, 1], 5432)))?;
    /// sandbox.shell("psql -h 127.0.0.1 -c 'SELECT 1'").status()?;
    /// # Ok::<(), adl_runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Socket`](crate::Error::Socket) where something inside listens there already;
    /// otherwise as [`Sandbox::publish`].
    pub fn forward(&self, forward: &Forward) -> Result<Port> {
        self.changed(|control| self.ports.forward(control, forward))
    }

    /// The ports that lead into it and out of it, the oldest first: those of
    /// [`Config::publish`](crate::Config::publish) and [`Config::forward`](crate::Config::forward),
    /// and those that were added.
    pub fn ports(&self) -> Vec<Port> {
        // In a fork, a thread of its parent may have had the lock.
        self.lives.check_own().map_or_else(|_| Vec::new(), |()| self.ports.all())
    }

    /// Ends a port, and resets its connections.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) where the sandbox has no such port;
    /// [`Error::Deleted`](crate::Error::Deleted).
    pub fn close_port(&self, port: &Port) -> Result<()> {
        match self.changed(|_| self.ports.close(port))? {
            true => Ok(()),
            false => {
                let why = format!("the sandbox has none at {}", port.address());
                Err(Error::invalid("port", why))
            }
        }
    }

    /// Has a thread call `callback` with the end of each connection of its ports, one after the
    /// other, until it is deleted. About 200 ends are kept for a callback that is slow; how many
    /// were not told comes with the next one. A second callback takes the place of the first.
    ///
    /// # Errors
    /// As [`Sandbox::publish`].
    pub fn watch_connections(
        &self,
        callback: impl FnMut(ConnectionEnd) + Send + 'static,
    ) -> Result<()> {
        self.changed(|control| self.ports.watch(control, callback))
    }

    /// Does something to the sandbox as it is, while no one else changes it.
    fn changed<T>(&self, work: impl FnOnce(&Control) -> Result<T>) -> Result<T> {
        let mut now = self.now()?;
        work(alive(&mut now)?.instance.control())
    }
}
