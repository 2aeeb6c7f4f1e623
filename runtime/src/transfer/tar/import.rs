//! An archive, on its way to a job.
//!
//! It may come from anywhere, so it is as little trusted as a job: it decides neither how much
//! memory this takes nor, by its paths, what is written to.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::Read;

use adl_protocol::limits::MAX_PATH;
use adl_protocol::{Attributes, Chunk, Entry, FileKind, MAX_ATTRIBUTES, MAX_CHUNK, Strings};

use super::super::attributes::is_copied;
use super::super::{CopyOptions, CopyReport, Outgoing, Tally, Trail};
use super::header::Member;
use super::reader::{End, Kind, Reader, each, names_of};
use super::sparse::Map;
use super::{Way, malformed};
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
        archive: Reader::new(input, End::Marked),
        to,
        tally: Tally::new(options, report),
        way: Way::default(),
        has_begun: false,
        directories: HashMap::new(),
    };
    importer.run()
}

struct Importer<'a> {
    archive: Reader<&'a mut dyn Read>,
    to: &'a mut Outgoing,
    tally: Tally<'a>,
    way: Way,
    /// Whether the top was sent.
    has_begun: bool,
    /// What is known of directories, by the keys of [`Way`], since one may be entered again.
    directories: HashMap<u64, Option<Attributes>>,
}

impl Importer<'_> {
    fn run(mut self) -> Result<()> {
        loop {
            // What extends headers, and what is skipped, sends nothing that would notice.
            let (to, tally) = (&self.to, &mut self.tally);
            let next = self.archive.next(|bytes| {
                to.check_time()?;
                tally.charge(bytes)
            })?;
            let Some(entry) = next else { break };
            self.entry(&entry.member, entry.kind)?;
        }
        self.begin(None)?;
        while self.way.pop() {
            self.to.entry(&Entry::Leave)?;
        }
        self.to.entry(&Entry::Leave)?;
        self.to.flush()
    }

    fn entry(&mut self, member: &Member, kind: Kind) -> Result<()> {
        match kind {
            Kind::File(map) => return self.file(member, &map),
            Kind::HardLink => return self.hard_link(member),
            Kind::SymbolicLink => self.symbolic_link(member)?,
            Kind::Directory => self.directory(member)?,
            Kind::Special(kind) => self.skipped(&member.path, kind)?,
        }
        // What it has of content is skipped.
        self.tally.charge(member.size)
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
        let names = tree_names(&member.path)?;
        let names: Vec<&CStr> = each(&names).collect();
        let Some((name, parents)) = names.split_last() else {
            if !self.has_begun {
                self.extended(member)?;
            }
            return self.begin(attributes);
        };
        self.go_to(parents)?;
        self.extended(member)?;
        self.enter(name, attributes)
    }

    fn file(&mut self, member: &Member, map: &Map) -> Result<()> {
        let attributes = self.attributes(member)?;
        let limit = self.tally.options.limit;
        if map.size > limit {
            // With its holes, so that it is no way to make a few bytes look like a whole disk.
            return Err(Error::TooLarge { what: "a file of the archive, in bytes,", limit });
        }
        let names = tree_names(&member.path)?;
        let names: Vec<&CStr> = each(&names).collect();
        let name = self.go_to_parent(&names)?;
        self.tally.entry()?;
        self.tally.bytes(member.size)?;
        self.extended(member)?;
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
        self.tally.report.files += 1;
        Ok(())
    }

    fn content(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            let chunk = length.min(MAX_CHUNK);
            self.to.chunk(Chunk::Data(chunk))?;
            let mut left = chunk;
            while left > 0 {
                let bytes = self.archive.content(left)?;
                self.to.bytes(bytes)?;
                left -= bytes.len() as u64;
            }
            length -= chunk;
        }
        Ok(())
    }

    fn symbolic_link(&mut self, member: &Member) -> Result<()> {
        let attributes = self.attributes(member)?;
        let names = tree_names(&member.path)?;
        let names: Vec<&CStr> = each(&names).collect();
        let target = [member.link.as_slice(), b"\0"].concat();
        let is_target = member.link.len() <= MAX_PATH && !member.link.is_empty();
        let target = CStr::from_bytes_with_nul(&target)
            .ok()
            .filter(|_| is_target)
            .ok_or_else(|| Error::refused("a symbolic link that no directory can have"))?;
        let name = self.go_to_parent(&names)?;
        self.tally.entry()?;
        let (name, target) = (string(name)?, string(target)?);
        self.to.entry(&Entry::SymbolicLink { name, target, attributes })?;
        self.tally.report.symbolic_links += 1;
        Ok(())
    }

    fn hard_link(&mut self, member: &Member) -> Result<()> {
        let (names, target) = (tree_names(&member.path)?, tree_names(&member.link)?);
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
        let names = tree_names(path)?;
        self.tally.entry()?;
        let mut trail = Trail::default();
        each(&names).for_each(|name| trail.push(name));
        self.tally.report.skip(|| trail.path(c""), kind);
        Ok(())
    }

    /// Sends the extended attributes of what comes next, as far as they are copied.
    fn extended(&mut self, member: &Member) -> Result<()> {
        let options = self.tally.options;
        let mut size = 0;
        for (name, value) in &member.attributes {
            size += name.len() + 1 + value.len();
            let name = CString::new(name.as_slice()).map_err(|_| malformed("a bad attribute"))?;
            if size > MAX_ATTRIBUTES {
                let limit = MAX_ATTRIBUTES as u64;
                return Err(Error::TooLarge { what: "the attributes of a file, in bytes,", limit });
            }
            if is_copied(name.to_bytes(), options) {
                self.tally.charge(value.len() as u64)?;
                self.to.entry(&Entry::Attribute { name: string(&name)?, value })?;
            }
        }
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
}

fn no_name() -> Error {
    malformed("a member without a name")
}

fn string(name: &CStr) -> Result<Strings<'_>> {
    Strings::new(name.to_bytes_with_nul()).map_err(|_| no_name())
}

/// As [`names_of`], and no more of them than a tree may be deep.
fn tree_names(path: &[u8]) -> Result<Vec<u8>> {
    let names = names_of(path)?;
    Tally::depth(each(&names).count().saturating_sub(1))?;
    Ok(names)
}
