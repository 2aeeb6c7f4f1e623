//! Frames and descriptors from the host, and frames back.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem::MaybeUninit;

use adl_protocol::{codec, limits};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
};
use serde::Serialize;

/// How much is asked for at once, in bytes: most requests come whole in one read, and each page
/// of the stack that is written costs a fault after a fork.
const CHUNK: usize = 2 << 10;

/// The longest frame of what is told of a job, in bytes: the most is what it has used, nine numbers
/// of nine bytes.
const SMALL: usize = 128;

/// How often in a row it is tried again where the kernel is out of memory, which is for a moment.
const TRIES: usize = 64;

/// The reading side of the control socket.
pub(crate) struct Receiver {
    socket: OwnedFd,
    /// What has come and was not handed out.
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

/// Why nothing more can be read.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The socket failed.
    Socket,
    /// What came is no frame.
    Frame,
}

/// Descriptors that came for a frame and were not taken by it yet.
pub(crate) type Descriptors<'a> = &'a mut VecDeque<OwnedFd>;

impl Receiver {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, bytes: Vec::new(), descriptors: VecDeque::new() }
    }

    /// Waits for one whole frame; `None` if the host has closed the socket. For set-up only:
    /// the event loop never waits here.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        loop {
            match self.take_frame()? {
                None if !self.read(RecvFlags::empty())? => return Ok(None),
                None => {}
                frame => return Ok(frame),
            }
        }
    }

    /// Reads what is there, without waiting; `false` if the host has closed the socket.
    pub(crate) fn read_available(&mut self) -> Result<bool, Broken> {
        self.read(RecvFlags::DONTWAIT)
    }

    /// Takes the next whole frame out of what was read.
    pub(crate) fn take_frame(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        let Some((header, rest)) = self.bytes.split_first_chunk() else { return Ok(None) };
        let length = codec::body_length(*header).map_err(|_| Broken::Frame)?;
        if rest.len() < length {
            // Room for all of it at once, instead of growing step by step.
            self.bytes.reserve(codec::HEADER + length - self.bytes.len());
            return Ok(None);
        }
        let end = codec::HEADER + length;
        let after = self.bytes.split_off(end);
        let mut frame = core::mem::replace(&mut self.bytes, after);
        frame.drain(..codec::HEADER);
        Ok(Some(frame))
    }

    /// The descriptors that have come, the oldest first.
    pub(crate) fn descriptors(&mut self) -> Descriptors<'_> {
        &mut self.descriptors
    }

    /// Sends one frame to the host, of any length, without waiting: if it does not read, that is
    /// lost.
    pub(crate) fn send(&self, message: &impl Serialize) -> rustix::io::Result<()> {
        let mut frame = Vec::new();
        codec::encode(message, &mut frame).map_err(|_| Errno::MSGSIZE)?;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = while_out_of_memory(|| send(&self.socket, &frame, flags))?;
        if sent == frame.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
    }

    fn read(&mut self, flags: RecvFlags) -> Result<bool, Broken> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(limits::MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut chunk = [0; CHUNK];
        let received = while_out_of_memory(|| {
            let mut into = [rustix::io::IoSliceMut::new(&mut chunk)];
            recvmsg(&self.socket, &mut into, &mut control, flags | RecvFlags::CMSG_CLOEXEC)
        });
        let received = match received {
            Err(Errno::AGAIN) => return Ok(true),
            received => received.map_err(|_| Broken::Socket)?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Broken::Frame);
        }
        self.bytes.extend_from_slice(chunk.get(..received.bytes).unwrap_or_default());
        Ok(received.bytes != 0)
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Tries again what is interrupted, or fails for want of memory.
fn while_out_of_memory<T>(
    mut call: impl FnMut() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    let mut tries = 0;
    loop {
        match call() {
            Err(Errno::INTR | Errno::NOMEM | Errno::NOBUFS) if tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

/// Sends one small frame with one descriptor at most, without waiting and without an allocation: a
/// host that does not read loses the message, and holds up nothing here.
pub(crate) fn send_small(
    socket: impl AsFd,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> rustix::io::Result<()> {
    let mut frame = [0; SMALL];
    let length = codec::encode_into(message, &mut frame).map_err(|_| Errno::MSGSIZE)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::MSGSIZE);
    }
    let bytes = [rustix::io::IoSlice::new(frame.get(..length).unwrap_or_default())];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    while_out_of_memory(|| sendmsg(&socket, &bytes, &mut control, flags)).map(drop)
}
