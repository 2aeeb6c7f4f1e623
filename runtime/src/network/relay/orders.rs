//! The socket by which the relay is told what to do: one message each way in turn.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use adl_protocol::codec;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};
use serde::Serialize;

use super::message::{Answer, LONGEST, MOST_DESCRIPTORS, Order};
use crate::sys::socket::{Peeked, receive_descriptors};
use crate::wire::decode_frame;

/// An order with its descriptors, or why they did not come.
pub(super) type Given = Result<(Order, Vec<OwnedFd>), Errno>;

/// The relay's end.
#[derive(Debug)]
pub(super) struct Orders(OwnedFd);

impl Orders {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The next order, if there is one, with its descriptors; EMFILE in its place where there is no
    /// room for those.
    ///
    /// # Errors
    /// EPIPE where no one can give any more; EBADMSG for what is none.
    pub(super) fn next(&self) -> nix::Result<Option<Given>> {
        let mut buffer = vec![0; LONGEST];
        let Peeked { count, descriptors, more } = match receive_descriptors(&self.0, &mut buffer) {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            other => other?,
        };
        match count {
            0 => Err(Errno::EPIPE),
            _ if more => Ok(Some(Err(Errno::EMFILE))),
            _ => {
                let message = buffer.get(..count).unwrap_or_default();
                let order = decode_frame(message).map_err(|_| Errno::EBADMSG)?;
                Ok(Some(Ok((order, descriptors))))
            }
        }
    }

    pub(super) fn answer(&self, answer: &Answer) -> nix::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.0.as_raw_fd(), &encode(answer)?, flags).map(drop)
    }
}

/// Sends an order.
pub(super) fn give(
    socket: &OwnedFd,
    order: &Order,
    descriptors: &[BorrowedFd<'_>],
) -> nix::Result<()> {
    debug_assert!(descriptors.len() <= MOST_DESCRIPTORS);
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let message = encode(order)?;
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights: &[_] = if numbers.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&message)], rights, flags, None) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

fn encode(message: &impl Serialize) -> nix::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    codec::encode(message, &mut bytes).map_err(|_| Errno::EMSGSIZE)?;
    if bytes.len() > LONGEST {
        return Err(Errno::EMSGSIZE);
    }
    Ok(bytes)
}
