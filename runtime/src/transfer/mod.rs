//! Trees of files between the host and a job, as a stream of [`adl_protocol::Entry`]s.
//!
//! The job may be hostile.
//!
//! On the host a tree is a directory or a tar archive. However it comes, nothing in it is taken as
//! a path: names are single ones, used in the directory that is open, and never followed.

pub(crate) mod attributes;
mod cursor;
mod diff;
mod pipe;
mod read;
mod sender;
pub(crate) mod tar;
mod write;

#[cfg(test)]
mod tests;

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use adl_protocol::{FileKind, Strings, is_plain_name};

use crate::error::{Error, Result};

pub(crate) use cursor::PathCursor;
pub use diff::{Change, ChangeKind, Export};
pub(crate) use diff::{ChangeForm, OpenedStack, changes, export, send as send_stacks};
pub(crate) use pipe::{Incoming, Outgoing};
pub(crate) use read::send;
pub(crate) use tar::{from_tar, to_tar};
pub(crate) use write::{receive, receive_as_top};

/// How deep a tree may be. Less in tests, since to remove so deep a one takes a minute.
const MAX_DEPTH: usize = if cfg!(test) { 5000 } else { adl_protocol::MAX_DEPTH };

/// What a copy takes along, and how much of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopyOptions {
    /// Whether owners and groups are copied.
    pub(crate) owners: bool,
    /// Whether the bits by which a program gets the rights of its owner or group are copied.
    pub(crate) set_ids: bool,
    /// Whether extended attributes are copied: `user.*`; with owners also access control lists and
    /// what else root may set, with set-id bits also the capabilities of files.
    pub(crate) extended: bool,
    /// The most content of all files together, in bytes; holes are none.
    pub(crate) limit: u64,
    /// The most files, directories and links.
    pub(crate) entries: u64,
}

/// What was copied, and what was not.
///
/// Paths are relative to the top of the tree. The lists end where they get long, for what they
/// hold may have been chosen by a guest.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CopyReport {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symbolic_links: u64,
    /// Further names of files.
    pub hard_links: u64,
    /// Content of all files together, in bytes.
    pub bytes: u64,
    /// What has nothing to copy, as a FIFO or a device; at most 10,000.
    pub skipped: Vec<Skipped>,
    /// How many more were skipped.
    pub more_skipped: u64,
    /// Files that became shorter while they were read, with zeros at their ends; at most 10,000.
    pub cut_off: Vec<PathBuf>,
    /// How many more were cut off.
    pub more_cut_off: u64,
    /// What the paths in both lists take, in bytes.
    listed: usize,
}

/// Something that was not copied.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// Where it is, relative to the top of the tree.
    pub path: PathBuf,
    /// What it is.
    pub kind: FileKind,
}

/// The most paths in a list of a report.
const MOST_LISTED: usize = 10_000;
/// So many bytes of paths are enough for a report; one alone may take 16 MiB.
const MOST_LISTED_BYTES: usize = 4 << 20;

impl CopyReport {
    fn skip(&mut self, path: impl FnOnce() -> PathBuf, kind: FileKind) {
        if let Some(path) = self.listed(self.skipped.len(), path) {
            self.skipped.push(Skipped { path, kind });
        } else {
            self.more_skipped += 1;
        }
    }

    fn cut_off(&mut self, path: impl FnOnce() -> PathBuf) {
        if let Some(path) = self.listed(self.cut_off.len(), path) {
            self.cut_off.push(path);
        } else {
            self.more_cut_off += 1;
        }
    }

    /// The path, made only if there is room for it: to make one may take as long as a guest likes.
    fn listed(&mut self, length: usize, path: impl FnOnce() -> PathBuf) -> Option<PathBuf> {
        if length >= MOST_LISTED || self.listed >= MOST_LISTED_BYTES {
            return None;
        }
        let path = path();
        self.listed = self.listed.saturating_add(path.as_os_str().len());
        Some(path)
    }
}

/// Counts what is copied against what may be.
#[derive(Debug)]
struct Tally<'a> {
    options: &'a CopyOptions,
    report: &'a mut CopyReport,
    bytes: u64,
    entries: u64,
}

impl<'a> Tally<'a> {
    fn new(options: &'a CopyOptions, report: &'a mut CopyReport) -> Self {
        Self { options, report, bytes: 0, entries: 0 }
    }

    /// One more file, directory or link.
    fn entry(&mut self) -> Result<()> {
        self.entries = self.entries.saturating_add(1);
        let limit = self.options.entries;
        if self.entries > limit {
            return Err(Error::TooLarge { what: "the number of files to copy", limit });
        }
        Ok(())
    }

    /// So many more bytes, before they are moved.
    fn bytes(&mut self, count: u64) -> Result<()> {
        self.charge(count)?;
        self.report.bytes = self.report.bytes.saturating_add(count);
        Ok(())
    }

    /// Counts bytes that are not content.
    fn charge(&mut self, count: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(count);
        let limit = self.options.limit;
        if self.bytes > limit {
            return Err(Error::TooLarge { what: "the content to copy, in bytes,", limit });
        }
        Ok(())
    }

    /// Before a directory is entered, with the number of those that it is in.
    fn depth(depth: usize) -> Result<()> {
        if depth >= MAX_DEPTH {
            let limit = MAX_DEPTH as u64;
            return Err(Error::TooLarge { what: "the depth of the tree to copy", limit });
        }
        Ok(())
    }
}

/// The way from the top of a tree to a directory: single names, each with a NUL at its end, as in
/// [`Strings`].
#[derive(Debug, Default)]
struct Trail {
    bytes: Vec<u8>,
    /// Where each name begins.
    starts: Vec<usize>,
}

impl Trail {
    fn push(&mut self, name: &CStr) {
        self.starts.push(self.bytes.len());
        self.bytes.extend_from_slice(name.to_bytes_with_nul());
    }

    fn pop(&mut self) -> Option<CString> {
        let start = self.starts.pop()?;
        CString::from_vec_with_nul(self.bytes.split_off(start)).ok()
    }

    /// How many of `names` lead from the top to here or above.
    fn common(&self, names: &[&CStr]) -> usize {
        let here = self.bytes.split_inclusive(|byte| *byte == 0);
        here.zip(names).take_while(|(one, other)| *one == other.to_bytes_with_nul()).count()
    }

    /// The path of something in that directory, relative to the top, which has an empty name.
    fn path(&self, name: &CStr) -> PathBuf {
        let mut path: Vec<u8> =
            self.bytes.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect();
        path.extend_from_slice(name.to_bytes());
        if name.is_empty() {
            path.pop();
        }
        OsStr::from_bytes(&path).into()
    }
}

/// The name of something in a directory of a stream.
fn plain_name(name: Strings<'_>) -> Result<CString> {
    let name = name.single().ok_or(Error::Protocol { why: "a name that is not one" })?;
    if !is_plain_name(name.to_bytes()) {
        return Err(Error::refused("a name that no directory can have"));
    }
    Ok(name.to_owned())
}

/// The name of the top of a stream, which is none.
fn top_name(name: Strings<'_>) -> Result<()> {
    match name.single() {
        Some(name) if name.is_empty() => Ok(()),
        _ => Err(Error::Protocol { why: "a name for the top of a tree" }),
    }
}

/// Adds a file's path to what [`pipe`] says of it.
fn at_file(error: Error, path: impl FnOnce() -> PathBuf) -> Error {
    match error {
        Error::Io { operation: operation @ (pipe::READ | pipe::WRITE), source, .. } => {
            Error::Io { operation, path: path(), source }
        }
        other => other,
    }
}
