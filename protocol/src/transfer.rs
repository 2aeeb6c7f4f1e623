//! A file or a tree of them as one stream of bytes.
//!
//! Frames of [`Entry`]s, in the order of a walk: the top first, under an empty name; after a
//! directory what is in it and then [`Entry::Leave`]; after a regular file its content, as
//! [`Chunk`]s. Names are single ones, never paths, so nothing in a stream can lead out of the
//! directory that it is written to, however the receiver puts them together; it has to refuse
//! `..`, `.`, what is empty, and what holds a `/`.

use serde::{Deserialize, Serialize};

use crate::{FileKind, Strings, Time};

/// The longest name, in bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;

/// How deep a tree may be.
pub const MAX_DEPTH: usize = 1 << 16;

/// The most bytes in one [`Chunk::Data`].
///
/// Whoever sends one has said how much will come before it has read it. If there is less, as when
/// someone cuts the file off, this is how much has to be made up for.
pub const MAX_CHUNK: u64 = 1 << 20;

/// One step of a walk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry<'a> {
    /// A directory. What follows is in it. It may come again later, with more in it.
    Directory {
        /// Its name.
        #[serde(borrow)]
        name: Strings<'a>,
        /// What it has besides. Without, one that is there stays as it is; so does the top in any
        /// case.
        attributes: Option<Attributes>,
    },
    /// The end of a directory.
    Leave,
    /// A regular file. Its content follows.
    File {
        /// Its name.
        #[serde(borrow)]
        name: Strings<'a>,
        /// What it has besides.
        attributes: Attributes,
        /// Its length, in bytes, as it was before it was read.
        size: u64,
    },
    /// A symbolic link.
    SymbolicLink {
        /// Its name.
        #[serde(borrow)]
        name: Strings<'a>,
        /// What it says.
        #[serde(borrow)]
        target: Strings<'a>,
        /// What it has besides.
        attributes: Attributes,
    },
    /// Another name of a regular file that came before.
    HardLink {
        /// Its name.
        #[serde(borrow)]
        name: Strings<'a>,
        /// The names of the directories from the top down to that file, and its own.
        #[serde(borrow)]
        target: Strings<'a>,
    },
    /// Something that has no content to copy, or none of its own.
    Skipped {
        /// Its name.
        #[serde(borrow)]
        name: Strings<'a>,
        /// What it is.
        kind: FileKind,
    },
    /// Something could not be read; the stream ends here.
    Failed {
        /// Its name.
        #[serde(borrow)]
        name: Strings<'a>,
        /// The kernel's error number.
        errno: i32,
    },
    /// An extended attribute of the file or directory that comes next (`xattr(7)`).
    Attribute {
        /// Its name.
        #[serde(borrow)]
        name: Strings<'a>,
        /// Its value.
        value: &'a [u8],
    },
}

/// The most bytes that the extended attributes of one file may take, names and values together: an
/// ext4 or xfs takes 64 KiB for all, a btrfs 16 KiB for each.
pub const MAX_ATTRIBUTES: usize = 256 << 10;

/// What a file has besides its name and its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attributes {
    /// Permissions, in the lower twelve bits.
    pub mode: u32,
    /// The owner, as seen inside.
    pub uid: u32,
    /// The group, as seen inside.
    pub gid: u32,
    /// When its content was last changed.
    pub modified: Time,
}

/// A piece of a file's content, as a header of eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// So many bytes follow: at least 1, at most [`MAX_CHUNK`].
    Data(u64),
    /// So many zeros, which don't.
    Hole(u64),
    /// The file is complete. Its length is that of all pieces before.
    End,
    /// The file was cut off while it was read: zeros stand for some of its last bytes. This, too,
    /// is its end.
    CutOff,
}

impl Chunk {
    /// The length of a header, in bytes.
    pub const HEADER: usize = 8;

    /// The header: 62 bits of a length and two that say of what, little endian.
    pub fn encode(self) -> [u8; Self::HEADER] {
        let (length, kind) = match self {
            Self::End => (0, 0),
            Self::Data(length) => (length, 1),
            Self::Hole(length) => (length, 2),
            Self::CutOff => (0, 3),
        };
        (length << 2 | kind).to_le_bytes()
    }

    /// Reads a header; `None` if it is none.
    pub fn decode(header: [u8; Self::HEADER]) -> Option<Self> {
        let number = u64::from_le_bytes(header);
        match (number >> 2, number & 3) {
            (0, 0) => Some(Self::End),
            (length @ 1..=MAX_CHUNK, 1) => Some(Self::Data(length)),
            (length @ 1.., 2) => Some(Self::Hole(length)),
            (0, 3) => Some(Self::CutOff),
            _ => None,
        }
    }
}

/// Whether a name may be given to an entry of a directory.
pub fn is_plain_name(name: &[u8]) -> bool {
    let is_special = matches!(name, b"" | b"." | b"..");
    !is_special && name.len() <= MAX_NAME && !name.contains(&b'/') && !name.contains(&0)
}
