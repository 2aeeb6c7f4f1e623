//! The relay: it joins connections that come to a port with others, on the other side of a
//! sandbox's edge.
//!
//! There is one for all sandboxes of a process, a thread with a table of descriptors of its own
//! (`sys/own_table.rs`): however many connections there are, the caller has its descriptors, and a
//! fork of the caller holds none of them open. It is told what to do by messages alone, and no code
//! of the caller's runs in it.

mod bucket;
mod connection;
mod flow;
pub(crate) mod message;
mod orders;
mod run;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};

pub(in crate::network) use self::connection::set_buffers;
use self::message::{Answer, LONGEST, Order};
use self::run::Relay;
use crate::error::{Error, Result, error_of};
use crate::sys::lock::lock;
use crate::sys::own_table;
use crate::sys::owner::PerProcess;
use crate::wait::{Deadline, wait_ready};
use crate::wire::decode_frame;

/// How long the relay may take to do what it was told: it waits for nothing.
const ANSWER: Duration = Duration::from_secs(10);

/// The way to the relay of this process. A fork has none, and starts its own.
static RELAY: PerProcess<Mutex<Option<Arc<Client>>>> = PerProcess::new();

/// The caller's end.
#[derive(Debug)]
pub(super) struct Client {
    socket: Mutex<OwnedFd>,
}

/// The relay of this process, which is started the first time.
pub(super) fn client() -> Result<Arc<Client>> {
    let mut relay = lock(RELAY.get());
    if let Some(relay) = &*relay {
        return Ok(Arc::clone(relay));
    }
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .map_err(Error::io("socketpair"))?;
    let work = |orders| {
        if let Ok(relay) = Relay::new(orders) {
            relay.run();
        }
    };
    own_table::spawn("adl-ports", theirs, work)
        .map_err(Error::io("start a thread with descriptors of its own"))?;
    let client = Arc::new(Client { socket: Mutex::new(ours) });
    *relay = Some(Arc::clone(&client));
    Ok(client)
}

impl Client {
    /// Has the relay do something, and returns when it has.
    pub(super) fn order(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> Result<Answer> {
        const TALK: &str = "talk to the relay of connections";
        let socket = lock(&self.socket);
        orders::give(&socket, order, descriptors).map_err(Error::io(TALK))?;
        let deadline = Deadline::after(ANSWER);
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if !wait_ready(&mut fds, deadline)? {
            let what = "the relay to do what it was told";
            return Err(Error::TimedOut { what, after: deadline.length() });
        }
        let mut buffer = vec![0; LONGEST];
        let count =
            recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(Error::io(TALK))?;
        if count == 0 {
            return Err(Error::io(TALK)(Errno::EPIPE));
        }
        match decode_frame(buffer.get(..count).unwrap_or_default())? {
            Answer::Failed(what, errno) => Err(Error::io("have the relay do something")(
                std::io::Error::other(format!("{what}: {}", error_of(errno))),
            )),
            answer => Ok(answer),
        }
    }
}
