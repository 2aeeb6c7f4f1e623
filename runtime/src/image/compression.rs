//! Blobs as plain bytes, however they are compressed: that is told by their first bytes, and not
//! by what is said of them.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Chain, Cursor, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::GzDecoder;

use super::digest::{Digest, Digesting, Hasher};
use super::options::Caps;
use crate::error::{Error, Result};
use crate::wait::Deadline;

/// What is read of a blob at once, in bytes.
const BUFFER: usize = 256 << 10;

/// The longest of the first bytes below.
const LONGEST_MAGIC: usize = 6;

/// How much of what has come before zstd may look back to, as a power of two: what it takes itself
/// without being told otherwise.
const ZSTD_WINDOW: u32 = 27;

/// Up to so many bytes, a blob is no bomb, whatever it was compressed to.
const SMALL: u64 = 256 << 20;

/// How something is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    /// Otherwise: by what, and what undoes it.
    Other(&'static str, &'static str),
}

impl Compression {
    /// Tells it by the first bytes.
    pub(crate) fn of(beginning: &[u8]) -> Self {
        match beginning {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or one that is skipped.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Other("xz", "unxz -k"),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Other("bzip2", "bunzip2 -k"),
            [b'P', b'K', 3, 4, ..] => Self::Other("zip", "unzip"),
            _ => Self::None,
        }
    }
}

/// What the beginning of a blob becomes, as far as that can be told; of what is not compressed,
/// itself.
pub(crate) fn plain_beginning(beginning: Vec<u8>, most: usize) -> Vec<u8> {
    if !matches!(Compression::of(&beginning), Compression::Gzip | Compression::Zstd) {
        return beginning;
    }
    let (read, caps) = (AtomicU64::new(0), Caps::default());
    let hashers = (Hasher::None, Hasher::None);
    let input = Box::new(Cursor::new(beginning));
    let mut found = vec![0; most];
    let mut length = 0;
    if let Ok(mut plain) = Plain::new(input, hashers, &read, caps, Deadline::NEVER) {
        // It ends in the middle, which is an error.
        while let Some(rest) = found.get_mut(length..).filter(|rest| !rest.is_empty())
            && let Ok(count @ 1..) = plain.read(rest)
        {
            length += count;
        }
    }
    found.truncate(length);
    found
}

/// Writes what a blob becomes, within the caps.
pub(super) fn decompress(
    from: File,
    to: &mut impl Write,
    caps: Caps,
    deadline: Deadline,
) -> Result<()> {
    let read = AtomicU64::new(0);
    let hashers = (Hasher::None, Hasher::None);
    let mut plain = Plain::new(Box::new(from), hashers, &read, caps, deadline)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match plain.read(&mut buffer)? {
            0 => return Ok(()),
            count => {
                let bytes = buffer.get(..count).unwrap_or_default();
                to.write_all(bytes).map_err(Error::io("write an image that is unpacked"))?;
            }
        }
    }
}

/// What has come of a blob, and its deadline.
struct Raw<'a> {
    input: Box<dyn Read + Send + 'a>,
    count: &'a AtomicU64,
    deadline: Deadline,
}

impl Read for Raw<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // Looked at here, too: much may be read that becomes nothing.
        if self.deadline.passed() {
            return Err(io::Error::other(late(self.deadline)));
        }
        let count = match self.input.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            // Told from what is wrong with the blob.
            Err(error) => return Err(io::Error::other(Error::io("read an image")(error))),
            Ok(count) => count,
        };
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// What is said where time is over.
pub(super) fn late(deadline: Deadline) -> Error {
    Error::TimedOut { what: "an image to be unpacked", after: deadline.length() }
}

type Input<'a> = BufReader<Chain<Cursor<Vec<u8>>, Digesting<Raw<'a>>>>;

enum Decoder<'a> {
    Plain(Input<'a>),
    Gzip(Box<GzDecoder<Input<'a>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Input<'a>>>),
    /// At its end, or after an error.
    Ended(Option<Input<'a>>),
}

/// The plain bytes of a blob. Digests are made of both.
pub(crate) struct Plain<'a> {
    decoder: Decoder<'a>,
    hasher: Hasher,
    count: u64,
    /// How many bytes of the blob have been read.
    read: &'a AtomicU64,
    caps: Caps,
}

/// What a blob was, when all of it has been read.
#[derive(Debug)]
pub(crate) struct Whole {
    /// That of the blob as it came.
    pub(crate) digest: Option<Digest>,
    pub(crate) size: u64,
    /// That of the plain bytes.
    pub(crate) plain: Option<Digest>,
}

impl<'a> Plain<'a> {
    /// Begins to read; `hashers` are for the bytes as they come and for plain ones, and `read`
    /// counts the former.
    ///
    /// # Errors
    /// [`Error::Invalid`] of another compression, and what reading says.
    pub(crate) fn new(
        input: Box<dyn Read + Send + 'a>,
        hashers: (Hasher, Hasher),
        read: &'a AtomicU64,
        caps: Caps,
        deadline: Deadline,
    ) -> Result<Self> {
        let (raw, plain) = hashers;
        let mut input = Digesting::new(Raw { input, count: read, deadline }, raw);
        let mut beginning = Vec::with_capacity(LONGEST_MAGIC);
        (&mut input)
            .take(LONGEST_MAGIC as u64)
            .read_to_end(&mut beginning)
            .map_err(|error| failed(error, "it"))?;
        let compression = Compression::of(&beginning);
        let input = BufReader::with_capacity(BUFFER, Cursor::new(beginning).chain(input));
        let decoder = match compression {
            Compression::None => Decoder::Plain(input),
            Compression::Gzip => Decoder::Gzip(Box::new(GzDecoder::new(input))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)
                    .map_err(Error::io("begin to decompress"))?;
                decoder.window_log_max(ZSTD_WINDOW).map_err(Error::io("begin to decompress"))?;
                Decoder::Zstd(Box::new(decoder))
            }
            Compression::Other(by, undo) => {
                let why = format!("it is compressed by {by}: decompress it first, by `{undo}`");
                return Err(Error::invalid("archive", why));
            }
        };
        Ok(Self { decoder, hasher: plain, count: 0, read, caps })
    }

    /// Reads plain bytes; none at the end of the blob, to which it has been read then.
    ///
    /// # Errors
    /// [`Error::Invalid`] of what is not whole or damaged, [`Error::TooLarge`] of a bomb.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let count = loop {
            match self.decode(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let by = match self.decoder {
                        Decoder::Gzip(_) => "what gzip has compressed",
                        Decoder::Zstd(_) => "what zstd has compressed",
                        _ => "it",
                    };
                    self.decoder = Decoder::Ended(None);
                    return Err(failed(error, by));
                }
                Ok(count) => break count,
            }
        };
        self.hasher.update(into.get(..count).unwrap_or_default());
        self.count = self.count.saturating_add(count as u64);
        let Caps { size, ratio, .. } = self.caps;
        if self.count > size {
            let what = "the content of the image, in bytes,";
            return Err(Error::TooLarge { what, limit: size });
        }
        let read = self.read.load(Ordering::Relaxed).max(1);
        if self.count > SMALL.min(size / 4) && self.count / read > ratio {
            let what = "what a byte of the image becomes, in bytes,";
            return Err(Error::TooLarge { what, limit: ratio });
        }
        Ok(count)
    }

    fn decode(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = match &mut self.decoder {
                Decoder::Plain(input) => input.read(into)?,
                Decoder::Gzip(decoder) => decoder.read(into)?,
                Decoder::Zstd(decoder) => decoder.read(into)?,
                Decoder::Ended(_) => return Ok(0),
            };
            if count > 0 || into.is_empty() {
                return Ok(count);
            }
            self.decoder = match std::mem::replace(&mut self.decoder, Decoder::Ended(None)) {
                Decoder::Plain(input) => Decoder::Ended(Some(input)),
                Decoder::Gzip(decoder) => next_member(decoder.into_inner())?,
                Decoder::Zstd(decoder) => Decoder::Ended(Some(decoder.finish())),
                ended @ Decoder::Ended(_) => ended,
            };
        }
    }

    /// What it was.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it was not read to its end.
    pub(crate) fn finish(self) -> Result<Whole> {
        let Decoder::Ended(Some(input)) = self.decoder else {
            return Err(Error::invalid("archive", "it was not read to its end"));
        };
        let (_, input) = input.into_inner().into_inner();
        let size = input.count();
        Ok(Whole { digest: input.finish(), size, plain: self.hasher.finish() })
    }
}

/// What follows a member of gzip's: another one, or nothing but zeros, as on a tape.
fn next_member(mut input: Input<'_>) -> io::Result<Decoder<'_>> {
    if input.fill_buf()?.first() == Some(&0x1f) {
        return Ok(Decoder::Gzip(Box::new(GzDecoder::new(input))));
    }
    loop {
        let rest = input.fill_buf()?;
        if rest.is_empty() {
            return Ok(Decoder::Ended(Some(input)));
        }
        if rest.iter().any(|byte| *byte != 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "something else follows it"));
        }
        let length = rest.len();
        input.consume(length);
    }
}

/// Says why a blob could not be read, in the words of what reads it, if it has any.
fn failed(error: io::Error, what: &str) -> Error {
    error.downcast().unwrap_or_else(|error| {
        let is_cut = error.kind() == io::ErrorKind::UnexpectedEof;
        let why = if is_cut { "it ends in the middle".to_owned() } else { error.to_string() };
        Error::invalid("archive", format!("{what} is damaged: {why}"))
    })
}
