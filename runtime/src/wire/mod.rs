//! Frames to and from init, under deadlines.
//!
//! Everything that comes from init is treated as if the guest had written it: no wait without an
//! end, no length that was not checked, and no descriptor taken where none is expected.

pub(crate) mod control;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use adl_protocol::codec;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, recv, sendmsg, shutdown};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys::socket::{self, Peeked, Socket, close_elsewhere};
use crate::wait::Deadline;
use crate::wait::Woken;
use crate::wait::{wait_beside_init, wait_ready};

/// Decodes an answer that is one frame and nothing else.
pub(crate) fn decode_frame<'a, T: Deserialize<'a>>(frame: &'a [u8]) -> Result<T> {
    const WHY: &str = "an answer that is not one frame";
    let (header, body) = frame.split_first_chunk().ok_or(Error::Protocol { why: WHY })?;
    if codec::body_length(*header) != Ok(body.len()) {
        return Err(Error::Protocol { why: WHY });
    }
    codec::decode(body).map_err(|_| Error::Protocol { why: WHY })
}

/// A channel for a job: our end, to which no descriptors are sent unless that is changed, and
/// init's.
pub(crate) fn channel() -> Result<(Socket, OwnedFd)> {
    let (ours, theirs) = Socket::pair().map_err(Error::io("socketpair"))?;
    Ok((ours.refusing_descriptors().map_err(Error::io("setsockopt"))?, theirs))
}

/// Moves a descriptor off the numbers of the standard streams, which it may have where the calling
/// program has closed its own: a child that rearranges those would overwrite it.
pub(crate) fn above_stdio(fd: OwnedFd) -> Result<OwnedFd> {
    if fd.as_raw_fd() > libc::STDERR_FILENO {
        return Ok(fd);
    }
    // The copy has a number from 3 on.
    fd.try_clone().map_err(Error::io("dup"))
}

/// One frame of a message.
pub(crate) fn frame_of(message: &impl Serialize) -> Result<Vec<u8>> {
    let mut frame = Vec::with_capacity(512);
    codec::encode(message, &mut frame)
        .map_err(|error| Error::invalid("request, arguments and environment", error.to_string()))?;
    Ok(frame)
}

/// Sends one frame, with descriptors.
///
/// # Errors
/// [`Error::SandboxDied`] if the other end is closed or init has ended, [`Error::TimedOut`] if it
/// does not read: a part of the frame may have gone then, and the socket is of no further use.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[RawFd],
    init: BorrowedFd<'_>,
    deadline: Deadline,
) -> Result<()> {
    let frame = frame_of(message)?;
    let mut sent = 0;
    while sent == 0 {
        sent = send_now(socket, &frame, descriptors)?;
        if sent == 0 {
            wait_for_room(socket, init, deadline)?;
        }
    }
    send_rest(socket, frame.get(sent..).unwrap_or_default(), init, deadline)
}

/// Sends what follows the beginning of a frame.
pub(crate) fn send_rest(
    socket: BorrowedFd<'_>,
    mut rest: &[u8],
    init: BorrowedFd<'_>,
    deadline: Deadline,
) -> Result<()> {
    while !rest.is_empty() {
        match send_now(socket, rest, &[])? {
            0 => wait_for_room(socket, init, deadline)?,
            sent => rest = rest.get(sent..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// Sends as much as there is room for: with some of it go all descriptors, with none of it, 0,
/// none of them.
pub(crate) fn send_now(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[RawFd],
) -> Result<usize> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None) {
            Ok(sent) => return Ok(sent),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(0),
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(Error::SandboxDied),
            Err(errno) => return Err(Error::io("sendmsg")(errno)),
        }
    }
}

/// Waits until there is room for more.
pub(crate) fn wait_for_room(
    socket: BorrowedFd<'_>,
    init: BorrowedFd<'_>,
    deadline: Deadline,
) -> Result<()> {
    match wait_beside_init(socket, PollFlags::POLLOUT, init, deadline)? {
        Woken::Ready => Ok(()),
        Woken::InitDied => Err(Error::SandboxDied),
        Woken::Late => Err(Error::TimedOut { what: "init to read", after: deadline.length() }),
    }
}

/// The reading side of a socket on which small messages come, for any number of threads.
#[derive(Debug)]
pub(crate) struct Messages {
    socket: Socket,
    inbox: Mutex<Inbox>,
    /// Whether a process of the job is known to have been there, or its end.
    has_begun: AtomicBool,
}

#[derive(Debug, Default)]
struct Inbox {
    bytes: Vec<u8>,
    /// Whether a descriptor is expected, and the one that came.
    wants_descriptor: bool,
    descriptor: Option<OwnedFd>,
}

/// The longest message that init has a reason to send, in bytes: a path, and a little.
const LONGEST: usize = adl_protocol::limits::MAX_PATH + 256;

impl Inbox {
    /// Takes a body out of what was read.
    fn take(&mut self) -> Result<Option<Vec<u8>>> {
        let Some((header, rest)) = self.bytes.split_first_chunk() else { return Ok(None) };
        let length = codec::body_length(*header).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Err(Error::Protocol { why: "a frame of impossible length" });
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let body = body.to_vec();
        self.bytes.drain(..codec::HEADER + length);
        Ok(Some(body))
    }

    fn receive(&mut self, socket: &Socket, flags: MsgFlags) -> Result<Option<Vec<u8>>> {
        if let Some(body) = self.take()? {
            return Ok(Some(body));
        }
        let mut chunk = [0; LONGEST];
        let received = match socket.may_hold_descriptors() {
            true => self.read_what_was_looked_at(socket, &mut chunk, flags)?,
            false => recv(socket.as_fd().as_raw_fd(), &mut chunk, flags),
        };
        match received {
            Ok(0) | Err(Errno::ECONNRESET) => Err(Error::SandboxDied),
            Ok(count) => {
                self.bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
                self.take()
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(Error::io("recv")(errno)),
        }
    }

    /// Reads what has come without descriptors, or with the one that is expected. With others, it
    /// stays where it is: this thread would close what it has no use for, and might never come
    /// back.
    fn read_what_was_looked_at(
        &mut self,
        socket: &Socket,
        chunk: &mut [u8],
        flags: MsgFlags,
    ) -> Result<nix::Result<usize>> {
        let is_expected = self.wants_descriptor && self.descriptor.is_none();
        let Peeked { count, mut descriptors, more } =
            match socket::peek(socket, chunk, flags.bits(), is_expected) {
                Ok(peeked) => peeked,
                Err(errno) => return Ok(Err(errno)),
            };
        let mut came = None;
        match (descriptors.len(), more) {
            (0, false) => {}
            (1, false) => came = descriptors.pop(),
            // There was room for it, but not in this process.
            (0, true) if is_expected => {
                return Err(Error::io("receive a descriptor")(Errno::EMFILE));
            }
            _ => {
                close_elsewhere(descriptors);
                return Err(Error::Protocol { why: "descriptors that were not asked for" });
            }
        }
        let looked_at = chunk.get_mut(..count).unwrap_or_default();
        let read = match count {
            0 => Ok(0),
            _ => recv(socket.as_fd().as_raw_fd(), looked_at, flags),
        };
        match (read, came) {
            (Ok(_), Some(came)) => self.descriptor = Some(came),
            // It is still there, and comes again.
            (Err(_), Some(copy)) => close_elsewhere(copy),
            (_, None) => {}
        }
        Ok(read)
    }
}

impl Messages {
    pub(crate) fn new(socket: Socket) -> Self {
        Self { socket, inbox: Mutex::default(), has_begun: AtomicBool::new(false) }
    }

    /// To be told when something was heard of the job in another way, or its end was read.
    pub(crate) fn mark_begun(&self) {
        self.has_begun.store(true, Ordering::Release);
    }

    /// Whether a process of the job may be still to come, as far as init has said anything, read
    /// or not.
    pub(crate) fn may_be_to_come(&self) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        let mut is_silent =
            || matches!(wait_ready(&mut fds, Deadline::after(Duration::ZERO)), Ok(false));
        !self.has_begun.load(Ordering::Acquire) && is_silent()
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, until one has come, a descriptor is taken. To be called before init is asked
    /// for it.
    pub(crate) fn expect_descriptor(&self) -> Result<()> {
        self.socket.take_descriptors().map_err(Error::io("setsockopt"))?;
        self.inbox().wants_descriptor = true;
        Ok(())
    }

    /// The descriptor that has come, if it is what it should be.
    ///
    /// # Errors
    /// [`Error::Protocol`], for the reason given; [`Error::Io`] where what it is can't be known.
    pub(crate) fn take_descriptor(
        &self,
        is_expected: impl FnOnce(BorrowedFd<'_>) -> io::Result<bool>,
        why: &'static str,
    ) -> Result<OwnedFd> {
        self.socket.refuse_descriptors();
        let mut inbox = self.inbox();
        inbox.wants_descriptor = false;
        let Some(fd) = inbox.descriptor.take() else { return Err(Error::Protocol { why }) };
        let refusal = match is_expected(fd.as_fd()) {
            Ok(true) => return Ok(fd),
            Ok(false) => Error::Protocol { why },
            // That is this machine's fault, and not init's.
            Err(error) => Error::io("look at what init has sent")(error),
        };
        close_elsewhere(fd);
        Err(refusal)
    }

    /// Has nothing more come: what is sent from here on, with whatever descriptors, is refused.
    pub(crate) fn no_more(&self) -> Result<()> {
        shutdown(self.socket.as_fd().as_raw_fd(), Shutdown::Read).map_err(Error::io("shutdown"))
    }

    /// Makes the socket readable for all that wait, whatever init does with the other end. What
    /// init has said before can be read still.
    pub(crate) fn end(&self) {
        // It fails where that has ended already.
        let _ = self.no_more();
    }

    /// Returns the next body if it has come. Reads without waiting, and no more than one message
    /// at a time, so a flood stays in the kernel's buffer.
    ///
    /// # Errors
    /// [`Error::SandboxDied`] at the end of the stream.
    pub(crate) fn try_next(&self) -> Result<Option<Vec<u8>>> {
        self.inbox().receive(&self.socket, MsgFlags::MSG_DONTWAIT)
    }

    /// Returns the next body if it was read with one before it: `poll(2)` does not tell of that.
    pub(crate) fn buffered(&self) -> Result<Option<Vec<u8>>> {
        self.inbox().take()
    }

    /// Waits for the next body.
    ///
    /// # Errors
    /// [`Error::SandboxDied`] at the end of the stream, and if init has ended and nothing more of
    /// what it said is there.
    pub(crate) fn next(
        &self,
        what: &'static str,
        init: BorrowedFd<'_>,
        deadline: Deadline,
    ) -> Result<Vec<u8>> {
        loop {
            // Looked at even where messages come without an end.
            if deadline.passed() {
                return Err(Error::TimedOut { what, after: deadline.length() });
            }
            if let Some(body) = self.try_next()? {
                return Ok(body);
            }
            let socket = self.socket.as_fd();
            match wait_beside_init(socket, PollFlags::POLLIN, init, deadline)? {
                Woken::Ready => {}
                // What it said before it ended may have come since the look.
                Woken::InitDied => return self.try_next()?.ok_or(Error::SandboxDied),
                Woken::Late => return Err(Error::TimedOut { what, after: deadline.length() }),
            }
        }
    }
}

impl AsFd for Messages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Decodes a body from init.
pub(crate) fn decode<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    codec::decode(body).map_err(|_| Error::Protocol { why: "a message that does not decode" })
}
