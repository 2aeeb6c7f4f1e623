//! A tree that a job sends, as an archive.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;

use adl_protocol::{Attributes, Chunk, Entry, Strings, Time, is_plain_name};
use nix::errno::Errno;

use super::super::attributes::Pending;
use super::super::{CopyOptions, CopyReport, Incoming, Tally, plain_name, top_name};
use super::header::{BLOCK, Member, padding};
use super::{BUFFER, Way};
use crate::error::error_of;
use crate::error::{Error, Result};

/// How long a header's extension may be before it counts as content, in bytes: the names of a
/// tree as deep as it may be would make the archive of a few files very large.
const FREE: usize = 4096;

const ZEROS: &[u8] = &[0; 64 << 10];

/// Writes the tree that comes, whose top must be a directory, as an archive: paths are relative
/// to it, and it is `./`.
///
/// Whoever unpacks it may be less careful than [`super::super::receive`]. So it holds no path that
/// leads through a link, no hard link but to a file that it holds, and no name that leads out.
/// Holes become zeros, which count as content; a file that was cut off ends in zeros, too.
///
/// # Errors
/// As [`super::super::receive`], and ENOTDIR for another top.
pub(crate) fn to_tar(
    from: &mut Incoming,
    out: &mut dyn Write,
    options: &CopyOptions,
    report: &mut CopyReport,
) -> Result<()> {
    let tally = Tally::new(options, report);
    let buffer = vec![0; BUFFER];
    let way = Way::default();
    let pending = Pending::default();
    Exporter { from, out, tally, way, kinds: HashMap::new(), pending, buffer }.run()
}

/// What a path of the archive is, as far as it matters to later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Link,
}

struct Exporter<'a> {
    from: &'a mut Incoming,
    out: &'a mut dyn Write,
    tally: Tally<'a>,
    way: Way,
    /// By the keys of [`Way`].
    kinds: HashMap<u64, Kind>,
    /// The extended attributes of what comes next.
    pending: Pending,
    buffer: Vec<u8>,
}

impl Exporter<'_> {
    fn run(mut self) -> Result<()> {
        self.top()?;
        loop {
            match self.from.entry()? {
                Entry::Directory { name, attributes } => {
                    let name = plain_name(name)?;
                    let rest = self.extended();
                    Tally::depth(self.way.depth() + 1)?;
                    let mut path = self.begin(&name, Kind::Directory)?;
                    path.push(b'/');
                    self.member(b'5', path, &attributes.unwrap_or_default(), rest)?;
                    self.way.push(&name);
                    self.tally.report.directories += 1;
                }
                Entry::Leave => {
                    if !self.way.pop() {
                        // Two empty blocks.
                        self.zeros(2 * BLOCK as u64)?;
                        return self.out.flush().map_err(write_failed);
                    }
                }
                Entry::File { name, attributes, size } => {
                    let name = plain_name(name)?;
                    self.file(&name, &attributes, size)?;
                }
                Entry::SymbolicLink { name, target, attributes } => {
                    let name = plain_name(name)?;
                    let target = target.single().filter(|target| !target.is_empty());
                    let why = "a symbolic link to nothing";
                    let link = target.ok_or(Error::Protocol { why })?.to_bytes().to_vec();
                    let path = self.begin(&name, Kind::Link)?;
                    self.member(b'2', path, &attributes, Member { link, ..Member::default() })?;
                    self.tally.report.symbolic_links += 1;
                }
                Entry::HardLink { name, target } => {
                    let name = plain_name(name)?;
                    let (key, link) = file_of(&self.way, target)?;
                    let is_itself = key == self.way.key(&name);
                    if is_itself || self.kinds.get(&key) != Some(&Kind::File) {
                        return Err(Error::refused("a hard link to what is not of this copy"));
                    }
                    let path = self.begin(&name, Kind::File)?;
                    let attributes = Attributes { mode: 0o644, ..Attributes::default() };
                    self.member(b'1', path, &attributes, Member { link, ..Member::default() })?;
                    self.tally.report.hard_links += 1;
                }
                Entry::Attribute { name, value } => {
                    self.pending.add(name, value, self.tally.options)?;
                }
                Entry::Skipped { name, kind } => {
                    let name = plain_name(name)?;
                    self.tally.entry()?;
                    let way = &self.way;
                    self.tally.report.skip(|| way.path(&name), kind);
                }
                Entry::Failed { name, errno } => {
                    let is_here = name.single().is_some_and(|name| name.is_empty());
                    let name = if is_here { CString::default() } else { plain_name(name)? };
                    return Err(failed(&self.way, &name, errno));
                }
            }
        }
    }

    fn top(&mut self) -> Result<()> {
        loop {
            match self.from.entry()? {
                Entry::Attribute { name, value } => {
                    self.pending.add(name, value, self.tally.options)?;
                }
                Entry::Directory { name, attributes } => {
                    top_name(name)?;
                    self.tally.entry()?;
                    let rest = self.extended();
                    self.member(b'5', b"./".to_vec(), &attributes.unwrap_or_default(), rest)?;
                    self.tally.report.directories += 1;
                    return Ok(());
                }
                Entry::Leave => {
                    let why = "the end of a directory that has not begun";
                    return Err(Error::Protocol { why });
                }
                Entry::Failed { errno, .. } => return Err(failed(&self.way, c"", errno)),
                _ => return Err(failed(&self.way, c"", Errno::ENOTDIR as i32)),
            }
        }
    }

    /// The extended attributes of what comes now.
    fn extended(&mut self) -> Member {
        let all = self.pending.take().into_iter();
        let attributes = all.map(|(name, value)| (name.into_bytes(), value)).collect();
        Member { attributes, ..Member::default() }
    }

    /// Notes that the archive holds something, and returns its path.
    fn begin(&mut self, name: &CStr, kind: Kind) -> Result<Vec<u8>> {
        self.tally.entry()?;
        let before = self.kinds.insert(self.way.key(name), kind);
        let is_directory = |kind| kind == Kind::Directory;
        if before.is_some_and(|before| is_directory(before) != is_directory(kind)) {
            return Err(Error::refused("a directory that is something else, too"));
        }
        Ok(self.way.path(name).into_os_string().into_vec())
    }

    fn member(
        &mut self,
        kind: u8,
        path: Vec<u8>,
        attributes: &Attributes,
        rest: Member,
    ) -> Result<()> {
        let options = self.tally.options;
        let Attributes { mode, uid, gid, modified } = *attributes;
        if modified.nanoseconds >= 1_000_000_000 {
            return Err(Error::Protocol { why: "a bad time" });
        }
        let mask = if options.set_ids { 0o7777 } else { 0o1777 };
        let (uid, gid) = if options.owners { (uid, gid) } else { (0, 0) };
        let modified = Time { ..modified };
        let mut bytes = Vec::with_capacity(2 * BLOCK);
        let member = Member { kind, path, mode: mode & mask, uid, gid, modified, ..rest };
        let length = member.write(&mut bytes);
        self.tally.charge(length.saturating_sub(FREE) as u64)?;
        self.out.write_all(&bytes).map_err(write_failed)
    }

    fn file(&mut self, name: &CStr, attributes: &Attributes, size: u64) -> Result<()> {
        let path = self.begin(name, Kind::File)?;
        self.tally.bytes(size)?;
        let rest = self.extended();
        self.member(b'0', path, attributes, Member { size, ..rest })?;
        // What the header says stands, whatever comes.
        let mut left = size;
        let mut is_whole = true;
        loop {
            match self.from.chunk()? {
                Chunk::Data(length) => {
                    let now = length.min(left);
                    self.content(now)?;
                    left -= now;
                    if length > now {
                        is_whole = false;
                        self.tally.charge(length - now)?;
                        self.from.skip(length - now)?;
                    }
                }
                Chunk::Hole(length) => {
                    let now = length.min(left);
                    self.zeros(now)?;
                    left -= now;
                    is_whole &= length == now;
                }
                end @ (Chunk::End | Chunk::CutOff) => {
                    is_whole &= left == 0 && end == Chunk::End;
                    break;
                }
            }
        }
        self.zeros(left)?;
        self.zeros(padding(size))?;
        self.tally.report.files += 1;
        if !is_whole {
            let way = &self.way;
            self.tally.report.cut_off(|| way.path(name));
        }
        Ok(())
    }

    fn content(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            let count = usize::try_from(length).unwrap_or(usize::MAX).min(self.buffer.len());
            self.from.check_time()?;
            let bytes = self.buffer.get_mut(..count).unwrap_or_default();
            self.from.read(bytes)?;
            self.out.write_all(bytes).map_err(write_failed)?;
            length -= count as u64;
        }
        Ok(())
    }

    /// Writes zeros, of which a guest may have made more than there is time for.
    fn zeros(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            let count = usize::try_from(length).unwrap_or(usize::MAX).min(ZEROS.len());
            self.from.check_time()?;
            self.out.write_all(ZEROS.get(..count).unwrap_or_default()).map_err(write_failed)?;
            length -= count as u64;
        }
        Ok(())
    }
}

fn write_failed(error: io::Error) -> Error {
    Error::io("write the archive")(error)
}

fn failed(way: &Way, name: &CStr, errno: i32) -> Error {
    Error::File { operation: "read", path: way.path(name), source: error_of(errno) }
}

/// The key and the path of what a hard link leads to.
fn file_of(way: &Way, names: Strings<'_>) -> Result<(u64, Vec<u8>)> {
    let mut key = 0;
    let mut path = Vec::new();
    for name in names.iter() {
        let name = CStr::from_bytes_with_nul(name).unwrap_or_default();
        if !is_plain_name(name.to_bytes()) {
            return Err(Error::refused("a hard link to what is not in the tree"));
        }
        key = way.key_below(key, name);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
    }
    Ok((key, path))
}
