//! The blocks that say what a member of an archive is (`tar(5)`, `pax(1)`).

use std::io::Write as _;
use std::ops::Range;

use adl_protocol::Time;

use super::malformed;
use crate::error::{Error, Result};

/// What everything in an archive is a multiple of, in bytes.
pub(super) const BLOCK: usize = 512;

/// The longest extension of a header that is taken, in bytes: a path is 4 KiB at most to the
/// kernel.
pub(super) const MAX_EXTENSION: u64 = 1 << 20;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MODIFIED: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;

/// What the keys of extended attributes begin with, in a pax header, before their names.
const ATTRIBUTE: &str = "SCHILY.xattr.";

pub(super) type Block = [u8; BLOCK];

/// What a header says, with what extends it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Member {
    pub(super) kind: u8,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) modified: Time,
    /// The numbers of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes: name and value of each.
    pub(crate) attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The bytes that fill up the last block of so many.
pub(super) fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

pub(super) fn field(block: &Block, range: Range<usize>) -> &[u8] {
    block.get(range).unwrap_or_default()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number, in octal digits or, with the first bit set, in binary.
pub(super) fn number(bytes: &[u8]) -> Result<i64> {
    let why = "a bad number";
    if let [first @ (0x80 | 0xff), rest @ ..] = bytes {
        let start = if *first == 0xff { -1_i64 } else { 0 };
        return rest
            .iter()
            .try_fold(start, |sum, byte| Some(sum.checked_mul(256)? | i64::from(*byte)))
            .ok_or_else(|| malformed(why));
    }
    let digits = until_nul(bytes).trim_ascii();
    digits
        .iter()
        .try_fold(0_i64, |sum, digit| match digit {
            b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
            _ => None,
        })
        .ok_or_else(|| malformed(why))
}

fn positive<T: TryFrom<i64>>(number: i64) -> Result<T> {
    T::try_from(number).map_err(|_| malformed("a number that is too large, or negative"))
}

/// The sum of a header's bytes, its own field taken for spaces: of unsigned ones, as it must be,
/// and of signed ones, as some have made it.
fn sums(block: &Block) -> (i64, i64) {
    let bytes = block.iter().enumerate().map(
        |(place, byte)| {
            if CHECKSUM.contains(&place) { b' ' } else { *byte }
        },
    );
    bytes.fold((0, 0), |(unsigned, signed), byte| {
        (unsigned + i64::from(byte), signed + i64::from(byte.cast_signed()))
    })
}

impl Member {
    /// Reads a header; `None` for the end of the archive.
    pub(super) fn parse(block: &Block) -> Result<Option<Self>> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let (unsigned, signed) = sums(block);
        let sum = number(field(block, CHECKSUM))?;
        if sum != unsigned && sum != signed {
            return Err(malformed("a header with a wrong checksum"));
        }
        let mut path = until_nul(field(block, NAME)).to_vec();
        let prefix = until_nul(field(block, PREFIX));
        // GNU tar has other things in the place of the prefix.
        if field(block, MAGIC).starts_with(b"ustar\0") && !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        let kind = block.get(KIND).copied().unwrap_or_default();
        // Of others, the fields may hold anything.
        let device = match kind {
            b'3' | b'4' => {
                let part = |range| positive(number(field(block, range))?);
                (part(MAJOR)?, part(MINOR)?)
            }
            _ => (0, 0),
        };
        Ok(Some(Self {
            kind,
            path,
            link: until_nul(field(block, LINK)).to_vec(),
            mode: positive::<u32>(number(field(block, MODE))?)? & 0o7777,
            uid: positive(number(field(block, UID))?)?,
            gid: positive(number(field(block, GID))?)?,
            size: positive(number(field(block, SIZE))?)?,
            modified: Time { seconds: number(field(block, MODIFIED))?, nanoseconds: 0 },
            device,
            attributes: Vec::new(),
        }))
    }

    /// Appends its header, with an extension where it needs one; returns what that takes, in
    /// bytes.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> usize {
        let mut records = Vec::new();
        if self.path.len() > NAME.len() {
            record(&mut records, "path", &self.path);
        }
        if self.link.len() > LINK.len() {
            record(&mut records, "linkpath", &self.link);
        }
        let numbers = [
            ("size", self.size, SIZE),
            ("uid", self.uid.into(), UID),
            ("gid", self.gid.into(), GID),
        ];
        for (key, value, range) in numbers {
            if value > most(&range) {
                record(&mut records, key, value.to_string().as_bytes());
            }
        }
        let Time { seconds, nanoseconds } = self.modified;
        let is_plain = u64::try_from(seconds).is_ok_and(|seconds| seconds <= most(&MODIFIED));
        if !is_plain || nanoseconds != 0 {
            record(&mut records, "mtime", decimal(self.modified).as_bytes());
        }
        for (name, value) in &self.attributes {
            let key = [ATTRIBUTE.as_bytes(), name].concat();
            record(&mut records, &key, value);
        }
        let length = records.len();
        if !records.is_empty() {
            let mut all = Vec::with_capacity(length + 32);
            if std::str::from_utf8(&records).is_err() {
                record(&mut all, "hdrcharset", b"BINARY");
            }
            all.append(&mut records);
            let extension = Self {
                kind: b'x',
                path: b"PaxHeader".to_vec(),
                mode: 0o644,
                size: all.len() as u64,
                ..Self::default()
            };
            out.extend_from_slice(&extension.block());
            out.extend_from_slice(&all);
            let padding = usize::try_from(padding(all.len() as u64)).unwrap_or(0);
            out.resize(out.len() + padding, 0);
        }
        out.extend_from_slice(&self.block());
        length
    }

    /// The header itself, with what does not fit cut off.
    fn block(&self) -> Block {
        let mut block = [0; BLOCK];
        let mut set = |range: Range<usize>, bytes: &[u8]| {
            let places = block.get_mut(range).unwrap_or_default();
            places.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
        };
        let octal = |range: &Range<usize>, value: u64| {
            format!("{:0width$o}", value.min(most(range)), width = range.len() - 1)
        };
        set(NAME, &self.path);
        set(LINK, &self.link);
        set(KIND..KIND + 1, &[self.kind]);
        set(MAGIC, b"ustar\x0000");
        if self.device != (0, 0) {
            set(MAJOR, octal(&MAJOR, self.device.0.into()).as_bytes());
            set(MINOR, octal(&MINOR, self.device.1.into()).as_bytes());
        }
        set(MODE, octal(&MODE, self.mode.into()).as_bytes());
        set(UID, octal(&UID, self.uid.into()).as_bytes());
        set(GID, octal(&GID, self.gid.into()).as_bytes());
        set(SIZE, octal(&SIZE, self.size).as_bytes());
        let seconds = u64::try_from(self.modified.seconds).unwrap_or(0);
        set(MODIFIED, octal(&MODIFIED, seconds).as_bytes());
        let (sum, _) = sums(&block);
        let sum = format!("{sum:06o}\0 ");
        let places = block.get_mut(CHECKSUM).unwrap_or_default();
        places.iter_mut().zip(sum.as_bytes()).for_each(|(place, byte)| *place = *byte);
        block
    }

    /// Applies what an extension says.
    pub(super) fn extend(&mut self, extension: &Extension) -> Result<()> {
        if let Some(path) = &extension.path {
            self.path.clone_from(path);
        }
        if let Some(link) = &extension.link {
            self.link.clone_from(link);
        }
        for (key, value) in extension.records() {
            match key {
                b"path" => self.path = value.to_vec(),
                b"linkpath" => self.link = value.to_vec(),
                b"size" => self.size = count(value)?,
                b"uid" => self.uid = narrow(count(value)?)?,
                b"gid" => self.gid = narrow(count(value)?)?,
                b"mtime" => self.modified = time(value)?,
                key => {
                    if let Some(name) = key.strip_prefix(ATTRIBUTE.as_bytes()) {
                        self.attributes.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// What comes before a header to say more than fits into it.
#[derive(Debug, Default)]
pub(super) struct Extension {
    /// GNU tar's.
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    /// pax's, checked.
    records: Vec<u8>,
}

impl Extension {
    pub(super) fn long_name(bytes: &[u8]) -> Option<Vec<u8>> {
        Some(until_nul(bytes).to_vec())
    }

    /// Takes the records of a pax header.
    pub(super) fn take(&mut self, records: Vec<u8>) -> Result<()> {
        let mut rest = records.as_slice();
        while !rest.is_empty() {
            (_, rest) = split_record(rest).ok_or_else(|| malformed("a malformed pax header"))?;
        }
        self.records = records;
        Ok(())
    }

    /// The records that say something: an empty value takes back what an earlier header said, but
    /// that of an extended attribute, which may be empty.
    pub(super) fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let mut rest = self.records.as_slice();
        std::iter::from_fn(move || {
            let (record, next) = split_record(rest)?;
            rest = next;
            Some(record)
        })
        .filter(|(key, value)| !value.is_empty() || key.starts_with(ATTRIBUTE.as_bytes()))
    }
}

/// A key and a value.
type Record<'a> = (&'a [u8], &'a [u8]);

/// `LENGTH KEY=VALUE\n`, where the length is that of all.
fn split_record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = bytes.iter().take(21).position(|byte| *byte == b' ')?;
    let (digits, _) = bytes.split_at_checked(space)?;
    let length = usize::try_from(count(digits).ok()?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = record.split_at_checked(equals)?;
    Some(((key, value.get(1..)?), rest))
}

fn record(out: &mut Vec<u8>, key: impl AsRef<[u8]>, value: &[u8]) {
    let key = key.as_ref();
    let rest = key.len() + value.len() + 3;
    // The digits of the length count, too.
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    // Writing to memory does not fail.
    let _ = write!(out, "{length} ");
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn most(range: &Range<usize>) -> u64 {
    (1 << (3 * (range.len() - 1))) - 1
}

/// A number in decimal digits.
pub(super) fn count(digits: &[u8]) -> Result<u64> {
    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| malformed("a bad number"))
}

fn narrow(number: u64) -> Result<u32> {
    u32::try_from(number).map_err(|_| malformed("a number that is too large"))
}

fn decimal(time: Time) -> String {
    let Time { seconds, nanoseconds } = time;
    if seconds < 0 && nanoseconds != 0 {
        let rest = 1_000_000_000_u32.saturating_sub(nanoseconds);
        return format!("-{}.{rest:09}", (seconds + 1).unsigned_abs());
    }
    format!("{seconds}.{nanoseconds:09}")
}

fn time(value: &[u8]) -> Result<Time> {
    let why = || malformed("a bad time");
    let (is_negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = count(parts.next().unwrap_or_default()).map_err(|_: Error| why())?;
    let seconds = i64::try_from(seconds).map_err(|_| why())?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(why());
    }
    let nanoseconds = fraction
        .iter()
        .copied()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    Ok(match (is_negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}
