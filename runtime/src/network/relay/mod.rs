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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, shutdown, socketpair,
};

pub(in crate::network) use self::connection::prepare_listener;
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
    /// Whether an answer is missing, after which others could not be told apart.
    is_broken: AtomicBool,
}

/// The relay of this process, which is started the first time.
pub(super) fn client() -> Result<Arc<Client>> {
    let mut relay = lock(RELAY.get());
    if let Some(relay) = &*relay
        && !relay.is_broken()
    {
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
    let is_broken = AtomicBool::new(false);
    let client = Arc::new(Client { socket: Mutex::new(ours), is_broken });
    *relay = Some(Arc::clone(&client));
    Ok(client)
}

/// What the relay is to do, with the descriptors that it takes.
pub(super) type Task<'a> = (Order, Vec<BorrowedFd<'a>>);

/// How many are given before the answers are read: all of those have room in the socket.
const AT_ONCE: usize = 16;

impl Client {
    /// Whether it can't be told anything any more, and what it had has gone.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }

    /// Ends the relay: a later answer would be taken for that to another order.
    fn give_up(&self, socket: &OwnedFd) {
        self.is_broken.store(true, Ordering::Relaxed);
        let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
    }

    /// Has the relay do something, and returns when it has.
    pub(super) fn order(&self, order: Order, descriptors: &[BorrowedFd<'_>]) -> Result<Answer> {
        let answers = self.order_all(&[(order, descriptors.to_vec())])?;
        answers.into_iter().next().ok_or(Error::Protocol { why: "no answer of the relay" })
    }

    /// Has it do one thing after the other, and returns when it has done all that it can.
    pub(super) fn order_all(&self, tasks: &[Task<'_>]) -> Result<Vec<Answer>> {
        let socket = lock(&self.socket);
        let (answers, error) = match answers_to(&socket, tasks) {
            Ok(both) => both,
            Err(error) => {
                self.give_up(&socket);
                return Err(error);
            }
        };
        let failed = |answer| match answer {
            Answer::Failed(errno) => {
                Err(Error::io("have the relay of connections do something")(error_of(errno)))
            }
            answer => Ok(answer),
        };
        let answers = answers.into_iter().map(failed).collect();
        error.map_or(answers, Err)
    }
}

const TALK: &str = "talk to the relay of connections";

/// The answers to all orders that were given, and why no more were.
fn answers_to(socket: &OwnedFd, tasks: &[Task<'_>]) -> Result<(Vec<Answer>, Option<Error>)> {
    let mut answers = Vec::new();
    for some in tasks.chunks(AT_ONCE) {
        let mut refused = None;
        let mut given = 0;
        for (order, descriptors) in some {
            match orders::give(socket, order, descriptors) {
                Ok(()) => given += 1,
                // The user has too many on their way (unix(7)); so may a guest of an ordinary
                // user's. The relay, of which others have connections, is well.
                Err(errno @ Errno::ETOOMANYREFS) => {
                    refused = Some(Error::io(TALK)(errno));
                    break;
                }
                Err(errno) => return Err(Error::io(TALK)(errno)),
            }
        }
        for _ in 0..given {
            answers.push(next_answer(socket)?);
        }
        if refused.is_some() {
            return Ok((answers, refused));
        }
    }
    Ok((answers, None))
}

fn next_answer(socket: &OwnedFd) -> Result<Answer> {
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
    decode_frame(buffer.get(..count).unwrap_or_default())
}
