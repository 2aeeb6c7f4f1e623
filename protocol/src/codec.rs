//! Frames: a length of four bytes, little endian, then one bincode message.
//!
//! The only file that names bincode. Each decode runs under a byte limit and must use all the
//! bytes: without the limit a frame of ten bytes can ask for an allocation that aborts the
//! process, and trailing bytes would let two readers see different messages.

use alloc::vec::Vec;
use core::fmt;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::{Deserialize, Serialize};

use crate::limits::MAX_FRAME;

/// The length of a frame's header, in bytes.
pub const HEADER: usize = 4;

/// Why bytes are not a frame, or a message has no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The body is, or would be, longer than [`MAX_FRAME`].
    TooLong,
    /// The body holds no message of the expected type.
    Malformed,
    /// The message ends before its frame does.
    TrailingBytes,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "frame longer than {MAX_FRAME} bytes"),
            Self::Malformed => f.write_str("malformed message"),
            Self::TrailingBytes => f.write_str("bytes after the end of a message"),
        }
    }
}

impl core::error::Error for Error {}

const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_FRAME>> =
    bincode::config::standard().with_limit::<MAX_FRAME>();

/// Appends the frame of `message` to `out`; on an error `out` is as before.
///
/// # Errors
/// [`Error::TooLong`] if the body would exceed [`MAX_FRAME`].
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), Error> {
    struct Body<'a> {
        out: &'a mut Vec<u8>,
        end: usize,
    }
    impl bincode::enc::write::Writer for Body<'_> {
        fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
            if bytes.len() > self.end.saturating_sub(self.out.len()) {
                return Err(bincode::error::EncodeError::UnexpectedEnd);
            }
            self.out.extend_from_slice(bytes);
            Ok(())
        }
    }

    let start = out.len();
    let body_start = start + HEADER;
    out.extend_from_slice(&[0; HEADER]);
    let body = Body { end: body_start + MAX_FRAME, out };
    let result = bincode::serde::encode_into_writer(message, body, CONFIG);
    let length = u32::try_from(out.len() - body_start);
    match (result, length, out.get_mut(start..body_start)) {
        (Ok(()), Ok(length), Some(header)) => {
            header.copy_from_slice(&length.to_le_bytes());
            Ok(())
        }
        _ => {
            out.truncate(start);
            Err(Error::TooLong)
        }
    }
}

/// Encodes the frame of a small message into `out`, without an allocation; returns its length.
///
/// # Errors
/// [`Error::TooLong`] if it does not fit.
pub fn encode_into<T: Serialize>(message: &T, out: &mut [u8]) -> Result<usize, Error> {
    let (header, body) = out.split_first_chunk_mut::<HEADER>().ok_or(Error::TooLong)?;
    let length = bincode::serde::encode_into_slice(message, body, CONFIG)
        .ok()
        .and_then(|length| u32::try_from(length).ok())
        .ok_or(Error::TooLong)?;
    *header = length.to_le_bytes();
    usize::try_from(length).map(|length| HEADER + length).map_err(|_| Error::TooLong)
}

/// Reads a header: the length of the body that follows, in bytes.
///
/// # Errors
/// [`Error::TooLong`] above [`MAX_FRAME`], [`Error::Malformed`] for zero: no message is empty.
pub fn body_length(header: [u8; HEADER]) -> Result<usize, Error> {
    let length = u32::from_le_bytes(header);
    match usize::try_from(length) {
        Ok(0) => Err(Error::Malformed),
        Ok(length) if length <= MAX_FRAME => Ok(length),
        _ => Err(Error::TooLong),
    }
}

/// Decodes the body of a frame; the message borrows from it.
///
/// # Errors
/// [`Error::Malformed`] and [`Error::TrailingBytes`]; never a panic, whatever the bytes.
pub fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    if body.len() > MAX_FRAME {
        return Err(Error::TooLong);
    }
    let (message, used) =
        bincode::serde::borrow_decode_from_slice(body, CONFIG).map_err(|_| Error::Malformed)?;
    if used == body.len() { Ok(message) } else { Err(Error::TrailingBytes) }
}
