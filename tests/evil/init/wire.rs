//! Frames and descriptors, with no rule but the kernel's.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use adl_protocol::{codec, limits};
use rustix::io::{Errno, IoSlice};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;

/// The control socket.
pub(crate) struct Control {
    pub(crate) socket: OwnedFd,
    bytes: Vec<u8>,
    pub(crate) descriptors: VecDeque<OwnedFd>,
}

impl Control {
    pub(crate) fn new() -> Self {
        let socket = rustix::io::dup(rustix::stdio::stdin()).unwrap();
        let nothing = std::fs::File::open("/dev/null").unwrap();
        rustix::stdio::dup2_stdin(nothing).unwrap();
        Self { socket, bytes: Vec::new(), descriptors: VecDeque::new() }
    }

    /// Waits for the next body; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((header, rest)) = self.bytes.split_first_chunk() {
                let length = codec::body_length(*header).unwrap();
                if let Some(body) = rest.get(..length) {
                    let body = body.to_vec();
                    self.bytes.drain(..codec::HEADER + length);
                    return Some(body);
                }
            }
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(limits::MAX_DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut chunk = [0; 4096];
            let mut into = [IoSliceMut::new(&mut chunk)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let count = recvmsg(&self.socket, &mut into, &mut ancillary, flags).ok()?.bytes;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.descriptors.extend(descriptors);
                }
            }
            if count == 0 {
                return None;
            }
            self.bytes.extend_from_slice(&chunk[..count]);
        }
    }
}

/// Waits for one descriptor.
pub(crate) fn receive_one(socket: impl AsFd) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let (mut byte, flags) = ([0], RecvFlags::CMSG_CLOEXEC);
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags).unwrap();
    let mut messages = ancillary.drain();
    match messages.next() {
        Some(RecvAncillaryMessage::ScmRights(mut descriptors)) => descriptors.next().unwrap(),
        _ => panic!("no descriptor"),
    }
}

pub(crate) fn frame(message: &impl Serialize) -> Vec<u8> {
    let mut frame = Vec::new();
    codec::encode(message, &mut frame).unwrap();
    frame
}

/// A frame of any body.
pub(crate) fn frame_of(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    [&length.to_le_bytes(), body].concat()
}

/// Sends bytes with descriptors, which are closed here then, so that whoever gets them has the
/// last; without them, where the host takes none.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], descriptors: Vec<OwnedFd>) {
    let flags = SendFlags::NOSIGNAL;
    if send_away(&socket, bytes, descriptors, flags) == Err(Errno::PERM) {
        let _ = send_with(&socket, bytes, &[], flags);
    }
}

/// Sends them so that nothing goes where it takes none.
pub(crate) fn send_away(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: Vec<OwnedFd>,
    flags: SendFlags,
) -> rustix::io::Result<usize> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let sent = send_with(&socket, bytes, &borrowed, flags);
    if sent.is_err() {
        // Who closed them here would wait here.
        std::mem::forget(descriptors);
    }
    sent
}

fn send_with(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> rustix::io::Result<usize> {
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(limits::MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)
}

/// Sends the same for ever, or until no one takes it.
pub(crate) fn flood(socket: impl AsFd, bytes: &[u8]) {
    while send_with(&socket, bytes, &[], SendFlags::NOSIGNAL).is_ok() {}
}

/// Lives on, and does nothing.
pub(crate) fn forever() -> ! {
    loop {
        std::thread::park();
    }
}
