//! An archive, on its way to a job.
//!
//! It may come from anywhere, so it is as little trusted as a job: it decides neither how much
//! memory this takes nor, by its paths, what is written to.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io::{self, Read};

use adl_protocol::limits::MAX_PATH;
use adl_protocol::{Attributes, Chunk, Entry, FileKind, MAX_CHUNK, Strings};
use adl_protocol::{MAX_NAME, is_plain_name};

use super::super::{CopyOptions, CopyReport, MAX_DEPTH, Outgoing, Tally, Trail};
use super::header::{BLOCK, Block, Extension, MAX_EXTENSION, Member, padding};
use super::sparse::Map;
use super::{BUFFER, Way, malformed};
use crate::error::{Error, Result};

/// Sends what is in an archive as one tree.
///
/// Paths are relative to its top, those with a `/` before them, too. Directories that the archive
/// does not describe get the permissions 0755; so does the top, unless `./` is the first member.
/// Nothing is read after the end of the archive. Of what comes twice, the later one stays.
///
/// # Errors
/// [`Error::Refused`] of paths with a `..`, [`Error::Invalid`] of what is no archive, or only the
/// beginning of one, [`Error::TooLarge`], and what [`Outgoing`] says.
pub(crate) fn from_tar(
    input: &mut dyn Read,
    to: &mut Outgoing,
    options: &CopyOptions,
    report: &mut CopyReport,
) -> Result<()> {
    let importer = Importer {
        input,
        to,
        tally: Tally::new(options, report),
        way: Way::default(),
        has_begun: false,
        directories: HashMap::new(),
        buffer: vec![0; BUFFER],
    };
    importer.run()
}

struct Importer<'a> {
    input: &'a mut dyn Read,
    to: &'a mut Outgoing,
    tally: Tally<'a>,
    way: Way,
    /// Whether the top was sent.
    has_begun: bool,
    /// What is known of directories, by the keys of [`Way`], since one may be entered again.
    directories: HashMap<u64, Option<Attributes>>,
    buffer: Vec<u8>,
}

impl Importer<'_> {
    fn run(mut self) -> Result<()> {
        let mut extension = Extension::default();
        loop {
            // What extends headers, and what is skipped, sends nothing that would notice.
            self.to.check_time()?;
            let block = block(self.input)?;
            let Some(member) = Member::parse(&block)? else { break };
            match member.kind {
                b'x' => extension.take(self.extension(member.size)?)?,
                b'L' => extension.path = Extension::long_name(&self.extension(member.size)?),
                b'K' => extension.link = Extension::long_name(&self.extension(member.size)?),
                // What pax says of all members is of no use here, as a comment; and a volume's
                // name.
                b'g' | b'V' => drop(self.extension(member.size)?),
                _ => self.member(member, &std::mem::take(&mut extension), &block)?,
            }
        }
        self.begin(None)?;
        while self.way.pop() {
            self.to.entry(&Entry::Leave)?;
        }
        self.to.entry(&Entry::Leave)?;
        self.to.flush()
    }

    /// Reads what extends a header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            let what = "an extension of a header of the archive, in bytes,";
            return Err(Error::TooLarge { what, limit: MAX_EXTENSION });
        }
        self.tally.charge(BLOCK as u64 + size)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        read(self.input, &mut bytes)?;
        self.skip(padding(size))?;
        Ok(bytes)
    }

    fn member(&mut self, mut member: Member, extension: &Extension, header: &Block) -> Result<()> {
        member.extend(extension)?;
        if matches!(member.kind, b'0' | b'\0' | b'7') && member.path.ends_with(b"/") {
            // As it was done before there was a kind for them.
            member.kind = b'5';
        }
        match member.kind {
            b'0' | b'\0' | b'7' => {
                let mut stored = member.size;
                let input = &mut *self.input;
                let sparse = Map::of_pax(extension, || {
                    stored = stored
                        .checked_sub(BLOCK as u64)
                        .ok_or_else(|| malformed("a sparse file without its map"))?;
                    block(input)
                })?;
                let (map, path) = match sparse {
                    Some((map, path)) => (map.check(stored)?, path),
                    None => (Map::whole(stored), None),
                };
                let path = path.unwrap_or_else(|| std::mem::take(&mut member.path));
                self.file(&path, &member, &map, stored)
            }
            b'S' => {
                let map = Map::of_gnu(header, || block(self.input))?.check(member.size)?;
                self.file(&member.path, &member, &map, member.size)
            }
            // Its size is that of the file it is a name of.
            b'1' => self.hard_link(&member),
            b'M' => Err(malformed("it goes on from another one")),
            kind => {
                match kind {
                    b'2' => self.symbolic_link(&member)?,
                    b'3' => self.skipped(&member.path, FileKind::CharacterDevice)?,
                    b'4' => self.skipped(&member.path, FileKind::BlockDevice)?,
                    // D: GNU tar's, with a list of what was in it.
                    b'5' | b'D' => self.directory(&member)?,
                    b'6' => self.skipped(&member.path, FileKind::Fifo)?,
                    _ => self.skipped(&member.path, FileKind::Unknown)?,
                }
                self.skip_content(member.size)
            }
        }
    }

    /// Sends the top, if that is still to be done.
    fn begin(&mut self, attributes: Option<Attributes>) -> Result<()> {
        if self.has_begun {
            return Ok(());
        }
        self.has_begun = true;
        self.tally.entry()?;
        self.tally.report.directories += 1;
        self.to.entry(&Entry::Directory { name: string(c"")?, attributes })
    }

    /// Goes up and down until the directory of `names` is the current one.
    fn go_to(&mut self, names: &[&CStr]) -> Result<()> {
        self.begin(None)?;
        let common = self.way.common(names);
        while self.way.depth() > common {
            self.way.pop();
            self.to.entry(&Entry::Leave)?;
        }
        for name in names.iter().skip(common) {
            let known = self.directories.get(&self.way.key(name)).copied();
            self.enter(name, known.flatten())?;
        }
        Ok(())
    }

    fn enter(&mut self, name: &CStr, attributes: Option<Attributes>) -> Result<()> {
        self.tally.entry()?;
        Tally::depth(self.way.depth() + 1)?;
        self.to.entry(&Entry::Directory { name: string(name)?, attributes })?;
        if self.directories.insert(self.way.key(name), attributes).is_none() {
            self.tally.report.directories += 1;
        }
        self.way.push(name);
        Ok(())
    }

    /// Goes to the directory of a path; returns the name there.
    fn go_to_parent<'n>(&mut self, names: &[&'n CStr]) -> Result<&'n CStr> {
        let (name, parents) = names.split_last().ok_or_else(no_name)?;
        self.go_to(parents)?;
        Ok(name)
    }

    fn directory(&mut self, member: &Member) -> Result<()> {
        let attributes = Some(self.attributes(member)?);
        let names = names_of(&member.path)?;
        let names: Vec<&CStr> = each(&names).collect();
        let Some((name, parents)) = names.split_last() else { return self.begin(attributes) };
        self.go_to(parents)?;
        self.enter(name, attributes)
    }

    fn file(&mut self, path: &[u8], member: &Member, map: &Map, stored: u64) -> Result<()> {
        let attributes = self.attributes(member)?;
        let limit = self.tally.options.limit;
        if map.size > limit {
            // With its holes, so that it is no way to make a few bytes look like a whole disk.
            return Err(Error::TooLarge { what: "a file of the archive, in bytes,", limit });
        }
        let names = names_of(path)?;
        let names: Vec<&CStr> = each(&names).collect();
        let name = self.go_to_parent(&names)?;
        self.tally.entry()?;
        self.tally.bytes(stored)?;
        self.to.entry(&Entry::File { name: string(name)?, attributes, size: map.size })?;
        let mut at = 0;
        for (offset, length) in &map.pieces {
            if *offset > at && *length > 0 {
                self.to.chunk(Chunk::Hole(offset - at))?;
                at = *offset;
            }
            self.content(*length)?;
            at += length;
        }
        if map.size > at {
            self.to.chunk(Chunk::Hole(map.size - at))?;
        }
        self.to.chunk(Chunk::End)?;
        self.skip(padding(stored))?;
        self.tally.report.files += 1;
        Ok(())
    }

    fn content(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            let chunk = length.min(MAX_CHUNK);
            self.to.chunk(Chunk::Data(chunk))?;
            let mut left = chunk;
            while left > 0 {
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                let bytes = self.buffer.get_mut(..count).unwrap_or_default();
                read(self.input, bytes)?;
                self.to.bytes(bytes)?;
                left -= count as u64;
            }
            length -= chunk;
        }
        Ok(())
    }

    fn symbolic_link(&mut self, member: &Member) -> Result<()> {
        let attributes = self.attributes(member)?;
        let names = names_of(&member.path)?;
        let names: Vec<&CStr> = each(&names).collect();
        let target = [member.link.as_slice(), b"\0"].concat();
        let is_target = member.link.len() <= MAX_PATH && !member.link.is_empty();
        let target = CStr::from_bytes_with_nul(&target)
            .ok()
            .filter(|_| is_target)
            .ok_or(Error::Refused { why: "a symbolic link that no directory can have" })?;
        let name = self.go_to_parent(&names)?;
        self.tally.entry()?;
        let (name, target) = (string(name)?, string(target)?);
        self.to.entry(&Entry::SymbolicLink { name, target, attributes })?;
        self.tally.report.symbolic_links += 1;
        Ok(())
    }

    fn hard_link(&mut self, member: &Member) -> Result<()> {
        let (names, target) = (names_of(&member.path)?, names_of(&member.link)?);
        let names: Vec<&CStr> = each(&names).collect();
        if target.is_empty() {
            return Err(no_name());
        }
        let name = self.go_to_parent(&names)?;
        self.tally.entry()?;
        let target = Strings::new(&target).map_err(|_| no_name())?;
        self.to.entry(&Entry::HardLink { name: string(name)?, target })?;
        self.tally.report.hard_links += 1;
        Ok(())
    }

    fn skipped(&mut self, path: &[u8], kind: FileKind) -> Result<()> {
        let names = names_of(path)?;
        self.tally.entry()?;
        let mut trail = Trail::default();
        each(&names).for_each(|name| trail.push(name));
        self.tally.report.skip(|| trail.path(c""), kind);
        Ok(())
    }

    fn attributes(&self, member: &Member) -> Result<Attributes> {
        let options = self.tally.options;
        let mask = if options.set_ids { 0o7777 } else { 0o1777 };
        let (uid, gid) = if options.owners { (member.uid, member.gid) } else { (0, 0) };
        if uid == u32::MAX || gid == u32::MAX {
            return Err(malformed("an owner that no file can have"));
        }
        Ok(Attributes { mode: member.mode & mask, uid, gid, modified: member.modified })
    }

    fn skip_content(&mut self, size: u64) -> Result<()> {
        self.tally.charge(size)?;
        self.skip(size)?;
        self.skip(padding(size))
    }

    fn skip(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            let count = usize::try_from(length).unwrap_or(usize::MAX).min(self.buffer.len());
            self.to.check_time()?;
            read(self.input, self.buffer.get_mut(..count).unwrap_or_default())?;
            length -= count as u64;
        }
        Ok(())
    }
}

fn read(input: &mut dyn Read, bytes: &mut [u8]) -> Result<()> {
    input.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => malformed("it ends in the middle"),
        _ => Error::io("read the archive")(error),
    })
}

fn block(input: &mut dyn Read) -> Result<Block> {
    let mut block = [0; BLOCK];
    read(input, &mut block)?;
    Ok(block)
}

fn no_name() -> Error {
    malformed("a member without a name")
}

fn string(name: &CStr) -> Result<Strings<'_>> {
    Strings::new(name.to_bytes_with_nul()).map_err(|_| no_name())
}

/// The single names of a path from the top, each with a NUL at its end.
fn names_of(path: &[u8]) -> Result<Vec<u8>> {
    let mut names = Vec::with_capacity(path.len().min(MAX_PATH) + 1);
    let mut depth = 0;
    for name in path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")) {
        if !is_plain_name(name) {
            let why = if name.len() > MAX_NAME {
                "a name that is too long"
            } else {
                "a name that leads out of the archive"
            };
            return Err(Error::Refused { why });
        }
        depth += 1;
        Tally::depth(depth)?;
        names.extend_from_slice(name);
        names.push(0);
    }
    Ok(names)
}

fn each(names: &[u8]) -> impl Iterator<Item = &CStr> {
    let names = names.split_inclusive(|byte| *byte == 0);
    names.filter_map(|name| CStr::from_bytes_with_nul(name).ok()).take(MAX_DEPTH)
}
