//! Archives made byte by byte, and what becomes of them.

mod bounds;
mod documents;
mod figures;
mod hostile;
mod layers;
mod million;
mod readers;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub(super) use super::fuzzing::{canary, fingerprint};
use super::options::Caps;
use super::unpack::{Form, Unpacked, unpack};
use crate::error::Result;
use crate::store::contents::remove_contents;
use crate::sys;
use crate::transfer::attributes::OPAQUE;
use crate::transfer::tar::reader::End;

/// The size of everything in an archive, in bytes.
const BLOCK: usize = 512;

/// A directory of a test's own.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    pub(super) fn below(directory: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("adl-image-{}-{next}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_contents(File::open(&self.0).unwrap().as_fd()).unwrap();
        fs::remove_dir(&self.0).unwrap();
    }
}

pub(super) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The fields of a header, as bytes: what no tar would write can be in them.
#[derive(Clone)]
pub(super) struct Head {
    kind: u8,
    path: Vec<u8>,
    link: Vec<u8>,
    mode: Vec<u8>,
    uid: Vec<u8>,
    gid: Vec<u8>,
    size: Option<Vec<u8>>,
    modified: Vec<u8>,
    device: (Vec<u8>, Vec<u8>),
    magic: &'static [u8],
    /// What comes after the fields of GNU's and POSIX's headers, from byte 345 on.
    rest: Vec<u8>,
}

impl Head {
    pub(super) fn new(kind: u8, path: impl AsRef<[u8]>) -> Self {
        Self {
            kind,
            path: path.as_ref().to_vec(),
            link: Vec::new(),
            mode: if kind == b'5' { b"755".to_vec() } else { b"644".to_vec() },
            uid: b"0".to_vec(),
            gid: b"0".to_vec(),
            size: None,
            modified: b"1000".to_vec(),
            device: (Vec::new(), Vec::new()),
            magic: b"ustar\x0000",
            rest: Vec::new(),
        }
    }

    pub(super) fn link(mut self, to: impl AsRef<[u8]>) -> Self {
        self.link = to.as_ref().to_vec();
        self
    }

    pub(super) fn mode(mut self, mode: &str) -> Self {
        self.mode = mode.into();
        self
    }

    pub(super) fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (base256(uid, 8), base256(gid, 8));
        self
    }

    pub(super) fn size(mut self, size: impl AsRef<[u8]>) -> Self {
        self.size = Some(size.as_ref().to_vec());
        self
    }

    pub(super) fn modified(mut self, modified: impl AsRef<[u8]>) -> Self {
        self.modified = modified.as_ref().to_vec();
        self
    }

    pub(super) fn device(mut self, major: impl AsRef<[u8]>, minor: impl AsRef<[u8]>) -> Self {
        self.device = (major.as_ref().to_vec(), minor.as_ref().to_vec());
        self
    }

    /// GNU's, with what it has behind the fields.
    pub(super) fn gnu(mut self, rest: Vec<u8>) -> Self {
        (self.magic, self.rest) = (b"ustar  \0", rest);
        self
    }

    fn block(&self, length: usize) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let size = self.size.clone().unwrap_or_else(|| format!("{length:o}").into());
        for (start, longest, bytes) in [
            (0, 100, &self.path[..]),
            (100, 8, &self.mode),
            (108, 8, &self.uid),
            (116, 8, &self.gid),
            (124, 12, &size),
            (136, 12, &self.modified),
            (156, 1, &[self.kind]),
            (157, 100, &self.link),
            (257, 8, self.magic),
            (329, 8, &self.device.0),
            (337, 8, &self.device.1),
            (345, 167, &self.rest),
        ] {
            let bytes = &bytes[..bytes.len().min(longest)];
            block[start..start + bytes.len()].copy_from_slice(bytes);
        }
        seal(&mut block);
        block
    }
}

/// A number as GNU tar writes one that is too large for octal digits.
pub(super) fn base256(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length - 8.min(length)];
    let number = number.to_be_bytes();
    bytes.extend_from_slice(&number[8 - (length - bytes.len())..]);
    assert_eq!(bytes[0], 0, "it has no room");
    bytes[0] = 0x80;
    bytes
}

/// Makes the checksum of a header right.
pub(super) fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// An archive.
#[derive(Clone, Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn add(mut self, head: &Head, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        self.0.extend_from_slice(&head.block(content.len()));
        self.raw(content)
    }

    /// Bytes, and zeros to the end of a block.
    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub(super) fn file(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.add(&Head::new(b'0', path), content)
    }

    pub(super) fn dir(self, path: impl AsRef<[u8]>) -> Self {
        self.add(&Head::new(b'5', path), "")
    }

    pub(super) fn symlink(self, path: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        self.add(&Head::new(b'2', path).link(to), "")
    }

    pub(super) fn hard(self, path: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        self.add(&Head::new(b'1', path).link(to), "")
    }

    /// What pax says of the next one.
    pub(super) fn pax<V: AsRef<[u8]>>(self, records: &[(&str, V)]) -> Self {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let value = value.as_ref();
            let rest = key.len() + value.len() + 3;
            let mut length = rest;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
            bytes.extend_from_slice(value);
            bytes.push(b'\n');
        }
        self.add(&Head::new(b'x', "pax"), bytes)
    }

    /// Its end.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

pub(super) fn unpack_as(archive: &[u8], target: &Path, form: Form, caps: Caps) -> Result<Unpacked> {
    fs::create_dir(target).unwrap();
    let end = if form == Form::Layer { End::MarkedOrNot } else { End::Marked };
    unpack(archive, end, target, form, caps)
}

/// What is in a directory, one line for each: path, kind and mode, and what a file holds, where a
/// link leads, or whether a directory hides what is below.
pub(super) fn tree(top: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let place = top.join(&path);
        let metadata = fs::symlink_metadata(&place).unwrap();
        let (kind, mode) = (metadata.file_type(), metadata.mode() & 0o7777);
        let shown = path.as_os_str().as_bytes().escape_ascii().to_string();
        let line = if kind.is_dir() {
            if mode & 0o700 != 0o700 {
                fs::set_permissions(&place, fs::Permissions::from_mode(mode | 0o700)).unwrap();
            }
            for entry in fs::read_dir(&place).unwrap() {
                left.push(path.join(entry.unwrap().file_name()));
            }
            let opaque = if is_opaque(&place) { " opaque" } else { "" };
            format!("{shown} d{mode:o}{opaque}")
        } else if kind.is_symlink() {
            let to = fs::read_link(&place).unwrap();
            format!("{shown} -> {}", to.as_os_str().as_bytes().escape_ascii())
        } else if kind.is_file() {
            let content = if metadata.len() > 64 {
                format!("{} bytes", metadata.len())
            } else {
                fs::read(&place).unwrap_or_default().escape_ascii().to_string()
            };
            format!("{shown} f{mode:o} {content}")
        } else if kind.is_char_device() && metadata.rdev() == 0 {
            format!("{shown} whiteout")
        } else if kind.is_char_device() || kind.is_block_device() {
            let letter = if kind.is_char_device() { 'c' } else { 'b' };
            let (major, minor) =
                (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
            format!("{shown} {letter}{mode:o} {major}:{minor}")
        } else {
            format!("{shown} p{mode:o}")
        };
        lines.push(line.trim_start().to_owned());
    }
    lines.sort();
    lines
}

fn is_opaque(directory: &Path) -> bool {
    attribute(directory, OsStr::from_bytes(OPAQUE).to_str().unwrap()).as_deref() == Some(b"y")
}

/// An extended attribute of a file or directory.
pub(super) fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let name = std::ffi::CString::new(name).unwrap();
    let mut value = [0; 1024];
    let file = File::open(path).unwrap();
    sys::extended_attribute(file.as_fd(), &name, &mut value).unwrap().map(<[u8]>::to_vec)
}
