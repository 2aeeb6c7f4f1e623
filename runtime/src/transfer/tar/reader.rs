//! An archive, member by member.
//!
//! It may come from anywhere: it does not decide how much memory this takes, and only by what it
//! holds how long.

use std::ffi::CStr;
use std::io::{self, Read};

use adl_protocol::limits::MAX_PATH;
use adl_protocol::{FileKind, MAX_NAME, is_plain_name};

use super::header::{BLOCK, Block, Extension, MAX_EXTENSION, Member, padding};
use super::sparse::Map;
use super::{BUFFER, malformed};
use crate::error::{Error, Result};

/// Something that an archive holds.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) member: Member,
    pub(crate) kind: Kind,
}

/// What it is.
#[derive(Debug)]
pub(crate) enum Kind {
    /// The pieces of its content, which follow.
    File(Map),
    Directory,
    SymbolicLink,
    HardLink,
    /// A device, a FIFO, or what no one knows.
    Special(FileKind),
}

/// How an archive ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By a mark: without it, it is the beginning of one.
    Marked,
    /// By the mark, or where there is no more: something else tells that it is whole.
    MarkedOrNot,
}

/// Reads an archive, and nothing after its end.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    end: End,
    /// What follows of the content of the last entry, and what fills up its last block.
    left: u64,
    padding: u64,
    buffer: Vec<u8>,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(input: R, end: End) -> Self {
        Self { input, end, left: 0, padding: 0, buffer: vec![0; BUFFER] }
    }

    /// Skips what was not read of the last entry, and reads the next one; `None` at the end.
    ///
    /// `note` hears of the bytes that extend headers, and now and then of none.
    ///
    /// # Errors
    /// [`Error::Invalid`] of what is no archive, or only the beginning of one;
    /// [`Error::TooLarge`] of an extension.
    pub(crate) fn next(
        &mut self,
        mut note: impl FnMut(u64) -> Result<()>,
    ) -> Result<Option<Entry>> {
        self.skip(&mut note)?;
        let mut extension = Extension::default();
        let mut end = self.end;
        loop {
            note(0)?;
            let Some(block) = self.header(end)? else { return Ok(None) };
            let Some(member) = Member::parse(&block)? else {
                return self.look_behind().map(|()| None);
            };
            // What is extended has to follow.
            end = End::Marked;
            match member.kind {
                b'x' => extension.take(self.extension(member.size, &mut note)?)?,
                b'L' => {
                    extension.path = Extension::long_name(&self.extension(member.size, &mut note)?);
                }
                b'K' => {
                    extension.link = Extension::long_name(&self.extension(member.size, &mut note)?);
                }
                // What pax says of all members is of no use here, as a comment; and a volume's
                // name.
                b'g' | b'V' => drop(self.extension(member.size, &mut note)?),
                _ => return self.entry(member, &extension, &block).map(Some),
            }
        }
    }

    /// Reads content of a file, as much as there is room for and no more than `most`, which is at
    /// most what its map says.
    pub(crate) fn content(&mut self, most: u64) -> Result<&[u8]> {
        let most = most.min(self.left);
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(self.buffer.len());
        let bytes = self.buffer.get_mut(..count).unwrap_or_default();
        read(&mut self.input, bytes)?;
        self.left -= count as u64;
        Ok(bytes)
    }

    /// What it reads from. It stands at the content of the last entry, as far as that was not read.
    pub(crate) fn input(&mut self) -> &mut R {
        &mut self.input
    }

    /// Leaves what was not read of the last entry to the caller, who moves the input on by so many
    /// bytes.
    pub(crate) fn leave(&mut self) -> u64 {
        std::mem::take(&mut self.left).saturating_add(std::mem::take(&mut self.padding))
    }

    fn skip(&mut self, note: &mut impl FnMut(u64) -> Result<()>) -> Result<()> {
        while self.left > 0 {
            note(0)?;
            self.content(u64::MAX)?;
        }
        let padding = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(0);
        let bytes = self.buffer.get_mut(..padding).unwrap_or_default();
        match self.input.read_exact(bytes) {
            // As `umoci insert` leaves it out after the last one.
            Err(error)
                if error.kind() == io::ErrorKind::UnexpectedEof && self.end == End::MarkedOrNot =>
            {
                Ok(())
            }
            read => read.map_err(read_failed),
        }
    }

    /// Looks at what follows the first empty block. A reader that goes on there would see files that
    /// this one does not, so nothing may follow but the second one.
    fn look_behind(&mut self) -> Result<()> {
        let mut second = Vec::new();
        let mut rest = (&mut self.input).take(BLOCK as u64);
        rest.read_to_end(&mut second).map_err(read_failed)?;
        match second.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(malformed("something follows its end")),
        }
    }

    fn header(&mut self, end: End) -> Result<Option<Block>> {
        let mut block = [0; BLOCK];
        if end == End::MarkedOrNot {
            let mut first = [0];
            loop {
                match self.input.read(&mut first) {
                    Ok(0) => return Ok(None),
                    Ok(_) => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(read_failed(error)),
                }
            }
            let (place, rest) = block.split_at_mut(1);
            place.copy_from_slice(&first);
            read(&mut self.input, rest)?;
            return Ok(Some(block));
        }
        read(&mut self.input, &mut block)?;
        Ok(Some(block))
    }

    /// Reads what extends a header.
    fn extension(
        &mut self,
        size: u64,
        note: &mut impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            let what = "an extension of a header of the archive, in bytes,";
            return Err(Error::TooLarge { what, limit: MAX_EXTENSION });
        }
        note(BLOCK as u64 + size)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        read(&mut self.input, &mut bytes)?;
        self.padding = padding(size);
        self.skip(note)?;
        Ok(bytes)
    }

    fn entry(
        &mut self,
        mut member: Member,
        extension: &Extension,
        header: &Block,
    ) -> Result<Entry> {
        member.extend(extension)?;
        if matches!(member.kind, b'0' | b'\0' | b'7') && member.path.ends_with(b"/") {
            // As it was done before there was a kind for them.
            member.kind = b'5';
        }
        // What has no content may have a size: of a hard link, that of the file it is a name of. What
        // follows is a header then, to all readers alike.
        if matches!(member.kind, b'1'..=b'6') {
            member.size = 0;
        }
        let kind = match member.kind {
            b'0' | b'\0' | b'7' => {
                let sparse = Map::of_pax(extension, || {
                    member.size = member
                        .size
                        .checked_sub(BLOCK as u64)
                        .ok_or_else(|| malformed("a sparse file without its map"))?;
                    block(&mut self.input)
                })?;
                Kind::File(match sparse {
                    Some((map, path)) => {
                        member.path = path.unwrap_or(member.path);
                        map.check(member.size)?
                    }
                    None => Map::whole(member.size),
                })
            }
            b'S' => {
                let map = Map::of_gnu(header, || block(&mut self.input))?;
                Kind::File(map.check(member.size)?)
            }
            b'1' => Kind::HardLink,
            b'M' => return Err(malformed("it goes on from another one")),
            b'2' => Kind::SymbolicLink,
            b'3' => Kind::Special(FileKind::CharacterDevice),
            b'4' => Kind::Special(FileKind::BlockDevice),
            // D: GNU tar's, with a list of what was in it.
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Special(FileKind::Fifo),
            _ => Kind::Special(FileKind::Unknown),
        };
        self.left = member.size;
        self.padding = padding(member.size);
        Ok(Entry { member, kind })
    }
}

fn read(input: &mut impl Read, bytes: &mut [u8]) -> Result<()> {
    input.read_exact(bytes).map_err(read_failed)
}

fn block(input: &mut impl Read) -> Result<Block> {
    let mut block = [0; BLOCK];
    read(input, &mut block)?;
    Ok(block)
}

/// Says why an archive could not be read, in the words of what reads it, if it has any.
fn read_failed(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return malformed("it ends in the middle");
    }
    error.downcast().unwrap_or_else(Error::io("read the archive"))
}

/// The single names of a path from the top, each with a NUL at its end, and how many they are.
///
/// # Errors
/// [`Error::Refused`] of what no file can be called, and of what leads out.
pub(crate) fn names_of(path: &[u8]) -> Result<Vec<u8>> {
    let mut names = Vec::with_capacity(path.len().min(MAX_PATH) + 1);
    for name in path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")) {
        if !is_plain_name(name) {
            return Err(Error::refused(if name.len() > MAX_NAME {
                "a name that is too long"
            } else {
                "a name that leads out of the archive"
            }));
        }
        names.extend_from_slice(name);
        names.push(0);
    }
    Ok(names)
}

/// Each of the names in turn.
pub(crate) fn each(names: &[u8]) -> impl Iterator<Item = &CStr> {
    let names = names.split_inclusive(|byte| *byte == 0);
    names.filter_map(|name| CStr::from_bytes_with_nul(name).ok())
}
