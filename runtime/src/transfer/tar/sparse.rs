//! Where the content of a sparse file goes, as GNU tar says it in four ways.

use super::header::{BLOCK, Block, Extension, count, field, number};
use super::malformed;
use crate::error::Result;

/// The most pieces of a file: a map of a MiB.
const MOST: usize = 1 << 16;

/// Pieces of content, in order, with holes between and around them.
#[derive(Debug, Default)]
pub(crate) struct Map {
    /// Offset and length of each.
    pub(crate) pieces: Vec<(u64, u64)>,
    /// The length of the file.
    pub(crate) size: u64,
}

impl Map {
    /// That of a file without holes.
    pub(super) fn whole(size: u64) -> Self {
        Self { pieces: vec![(0, size)], size }
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<()> {
        if self.pieces.len() >= MOST {
            return Err(malformed("a sparse file in too many pieces"));
        }
        self.pieces.push((offset, length));
        Ok(())
    }

    /// Checks that the pieces are in order, within the file, and all that the archive holds.
    pub(super) fn check(self, stored: u64) -> Result<Self> {
        let why = || malformed("a sparse file whose pieces make no sense");
        let (mut at, mut sum) = (0_u64, 0_u64);
        for (offset, length) in &self.pieces {
            if *offset < at {
                return Err(why());
            }
            at = offset.checked_add(*length).ok_or_else(why)?;
            sum = sum.checked_add(*length).ok_or_else(why)?;
        }
        if at > self.size || sum != stored || i64::try_from(self.size).is_err() {
            return Err(why());
        }
        Ok(self)
    }

    /// That of a header of kind `S`; `more` reads the blocks that continue it.
    pub(super) fn of_gnu(header: &Block, mut more: impl FnMut() -> Result<Block>) -> Result<Self> {
        let size = natural(field(header, 483..495))?;
        let mut map = Self { size, ..Self::default() };
        map.fields(field(header, 386..482))?;
        let mut goes_on = header.get(482) != Some(&0);
        while goes_on {
            let block = more()?;
            map.fields(field(&block, 0..504))?;
            goes_on = block.get(504) != Some(&0);
            // Blocks without a piece would have no end.
            if goes_on {
                let places = block.chunks_exact(24).take(21);
                if places.filter(|place| place.first() != Some(&0)).count() == 0 {
                    return Err(malformed("a sparse file whose map has no end"));
                }
            }
        }
        Ok(map)
    }

    fn fields(&mut self, bytes: &[u8]) -> Result<()> {
        for place in bytes.chunks_exact(24) {
            let (offset, length) = place.split_at_checked(12).unwrap_or_default();
            if length.first() == Some(&0) {
                break;
            }
            self.push(natural(offset)?, natural(length)?)?;
        }
        Ok(())
    }

    /// That of a pax header, if it has one, and the path that goes with it; `more` reads the
    /// blocks at the beginning of the content that one kind has it in.
    pub(super) fn of_pax(
        extension: &Extension,
        mut more: impl FnMut() -> Result<Block>,
    ) -> Result<Option<(Self, Option<Vec<u8>>)>> {
        let mut map = Self::default();
        let (mut path, mut size, mut major, mut offset) = (None, None, None, None);
        for (key, value) in extension.records() {
            match key {
                b"GNU.sparse.major" => major = Some(count(value)?),
                b"GNU.sparse.name" => path = Some(value.to_vec()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => size = Some(count(value)?),
                b"GNU.sparse.offset" => offset = Some(count(value)?),
                b"GNU.sparse.numbytes" => {
                    let why = "a piece of a sparse file without a place";
                    map.push(offset.take().ok_or_else(|| malformed(why))?, count(value)?)?;
                }
                b"GNU.sparse.map" => {
                    let mut numbers = value.split(|byte| *byte == b',').map(count);
                    while let (Some(offset), Some(length)) = (numbers.next(), numbers.next()) {
                        map.push(offset?, length?)?;
                    }
                }
                _ => {}
            }
        }
        let Some(size) = size else { return Ok(None) };
        map.size = size;
        if major == Some(1) {
            map.pieces.clear();
            map.lines(&mut more)?;
        }
        Ok(Some((map, path)))
    }

    /// Reads numbers on lines: how many pieces, and of each the offset and the length.
    fn lines(&mut self, more: &mut impl FnMut() -> Result<Block>) -> Result<()> {
        let mut block = more()?.to_vec();
        let mut number = || -> Result<u64> {
            loop {
                let end = block.iter().position(|byte| *byte == b'\n');
                if let Some(end) = end {
                    let line: Vec<u8> = block.drain(..=end).collect();
                    return count(line.strip_suffix(b"\n").unwrap_or_default());
                }
                if block.len() > BLOCK {
                    return Err(malformed("a line of a sparse file's map that has no end"));
                }
                block.extend_from_slice(&more()?);
            }
        };
        for _ in 0..number()? {
            let (offset, length) = (number()?, number()?);
            self.push(offset, length)?;
        }
        Ok(())
    }
}

fn natural(bytes: &[u8]) -> Result<u64> {
    u64::try_from(number(bytes)?).map_err(|_| malformed("a negative number"))
}
