//! Sockets that are made inside and handed to the host.

use adl_protocol::{JobEvent, Stage};
use rustix::fd::{AsFd, OwnedFd};

use crate::failure::{Failure, InStage};
use crate::receive::send_small;

/// Sends a socket, if it could be made.
pub(crate) fn hand_over(
    socket: rustix::io::Result<OwnedFd>,
    channel: impl AsFd,
) -> Result<(), Failure> {
    let socket = socket.stage(Stage::Socket)?;
    send_small(channel, &JobEvent::Socket, &[socket.as_fd()]).stage(Stage::Socket)
}
