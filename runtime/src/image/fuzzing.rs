//! Archives that may be anything, one after the other, unpacked beside a tree to which nothing may
//! be done: what the fuzz target in `fuzz/` and the tests of very many archives do with each.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use super::compression::Plain;
use super::digest::Hasher;
use super::options::Caps;
use super::unpack::{Form, Unpacked, unpack};
use crate::error::{Error, Result};
use crate::store::contents::remove_contents;
use crate::transfer::tar::reader::End;
use crate::wait::Deadline;

/// Bits of the first byte of an input: what becomes of the rest.
pub(super) const AS_ROOT: u8 = 1;
pub(super) const WITH_END: u8 = 2;
pub(super) const COMPRESSED: u8 = 4;

/// What an input may have at most, so that a million of them take minutes.
const CAPS: Caps = Caps { size: 1 << 20, entries: 100, depth: 10, ratio: 1000 };

/// A directory to unpack to, and beside it the tree.
pub(super) struct Arena {
    around: PathBuf,
    target: PathBuf,
    out: PathBuf,
    before: Vec<String>,
}

impl Arena {
    /// Makes it in a directory that is there.
    pub(super) fn new(around: PathBuf) -> Self {
        let (target, out) = (around.join("target"), around.join("canary"));
        canary(&out);
        fs::create_dir(&target).unwrap();
        let before = fingerprint(&out);
        Self { around, target, out, before }
    }

    /// The tree, to which what an input says may lead.
    #[cfg(test)]
    pub(super) fn out(&self) -> &Path {
        &self.out
    }

    /// Unpacks an input and removes what was made. It panics where the error is one that no archive
    /// may lead to, or something is beside the two directories.
    pub(super) fn unpack(&self, input: &[u8]) -> Result<Unpacked> {
        let (how, bytes) = input.split_first().unwrap_or((&0, &[]));
        let form = if how & AS_ROOT != 0 { Form::Root } else { Form::Layer };
        let end = if how & WITH_END != 0 { End::Marked } else { End::MarkedOrNot };
        let result = match how & COMPRESSED {
            0 => unpack(bytes, end, &self.target, form, CAPS),
            _ => self.decompress(bytes, end, form),
        };
        match &result {
            Ok(_) | Err(Error::Refused { .. } | Error::TooLarge { .. } | Error::Invalid { .. }) => {
            }
            // A number of a device or a time that the kernel does not take.
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {}
            Err(other) => panic!("{other:?}"),
        }
        assert_eq!(fs::read_dir(&self.around).unwrap().count(), 2, "{result:?}");
        // An archive may have closed it to whoever unpacks it.
        fs::set_permissions(&self.target, fs::Permissions::from_mode(0o755)).unwrap();
        remove_contents(File::open(&self.target).unwrap().as_fd()).unwrap();
        result
    }

    fn decompress(&self, bytes: &[u8], end: End, form: Form) -> Result<Unpacked> {
        struct Through<'a, 'b>(&'a mut Plain<'b>);
        impl Read for Through<'_, '_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                self.0.read(into).map_err(io::Error::other)
            }
        }
        let read = AtomicU64::new(0);
        let hashers = (Hasher::like(None), Hasher::like(None));
        let mut plain = Plain::new(Box::new(bytes), hashers, &read, CAPS, Deadline::NEVER)?;
        let unpacked = unpack(Through(&mut plain), end, &self.target, form, CAPS)?;
        while plain.read(&mut [0; 4096])? > 0 {}
        assert_eq!(plain.finish()?.size, bytes.len() as u64);
        Ok(unpacked)
    }

    /// Panics where anything was done to the tree.
    pub(super) fn check(&self, input: &str) {
        assert_eq!(fingerprint(&self.out), self.before, "{input}");
    }
}

/// Unpacks an input of the fuzz target.
#[cfg(fuzzing)]
pub fn unpack_one(input: &[u8]) {
    static ARENA: std::sync::LazyLock<Arena> = std::sync::LazyLock::new(|| {
        let around = std::env::temp_dir().join(format!("adl-fuzz-{}", std::process::id()));
        fs::create_dir(&around).unwrap();
        Arena::new(around)
    });
    let _ = ARENA.unpack(input);
    ARENA.check("the input");
}

/// Makes a tree beside the one that is unpacked to, which nothing may be done to.
pub(super) fn canary(at: &Path) {
    fs::create_dir_all(at.join("directory")).unwrap();
    fs::write(at.join("file"), "alive").unwrap();
    fs::write(at.join("directory/file"), "alive").unwrap();
    symlink("file", at.join("link")).unwrap();
}

/// What tells whether anything was done to a tree: numbers, owners, times of change and contents.
pub(super) fn fingerprint(top: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![top.to_owned()];
    while let Some(path) = left.pop() {
        let of = fs::symlink_metadata(&path).unwrap();
        let content = if of.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let numbers = (of.ino(), of.mode(), of.uid(), of.gid(), of.nlink(), of.size());
        let times = (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
        lines.push(format!("{path:?} {numbers:?} {times:?} {content:?}"));
        if of.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    lines.sort();
    lines
}
