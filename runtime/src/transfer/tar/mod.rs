//! A tree as a tar archive (POSIX.1-2001 pax, over ustar).

mod export;
mod header;
mod import;
pub(crate) mod reader;
mod sparse;
#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;

use super::Trail;
use crate::error::Error;

pub(crate) use export::to_tar;
pub(crate) use header::Member;
pub(crate) use import::from_tar;
pub(crate) use sparse::Map;

/// What is read and written at once, in bytes.
const BUFFER: usize = 64 << 10;

fn malformed(why: &'static str) -> Error {
    Error::invalid("archive", why)
}

/// The way from the top to a directory, with a key for each step: an archive names files far apart,
/// and to remember them by their paths would let its maker choose how much that takes. A key is
/// a hash that its maker can't foresee.
#[derive(Debug, Default)]
struct Way {
    trail: Trail,
    keys: Vec<u64>,
    hash: RandomState,
}

impl Way {
    /// The key of something in a directory.
    fn key_below(&self, directory: u64, name: &CStr) -> u64 {
        self.hash.hash_one((directory, name.to_bytes()))
    }

    /// The key of something here.
    fn key(&self, name: &CStr) -> u64 {
        self.key_below(self.keys.last().copied().unwrap_or(0), name)
    }

    fn push(&mut self, name: &CStr) {
        let key = self.key(name);
        self.trail.push(name);
        self.keys.push(key);
    }

    fn pop(&mut self) -> bool {
        self.keys.pop();
        self.trail.pop().is_some()
    }

    fn depth(&self) -> usize {
        self.keys.len()
    }

    fn path(&self, name: &CStr) -> PathBuf {
        self.trail.path(name)
    }

    fn common(&self, names: &[&CStr]) -> usize {
        self.trail.common(names)
    }
}
