//! Sockets that are made inside and handed to the host.

use adl_protocol::{JobEvent, Stage};
use rustix::fd::AsFd;

use crate::failure::{Failure, InStage};
use crate::receive::send_small;
use crate::sys::{Stream, stream_socket};

/// Makes a socket for an address and sends it.
pub(crate) fn make(address: &[u8], how: Stream, channel: impl AsFd) -> Result<(), Failure> {
    let socket = stream_socket(address, how).stage(Stage::Socket)?;
    send_small(channel, &JobEvent::Socket, &[socket.as_fd()]).stage(Stage::Socket)
}
