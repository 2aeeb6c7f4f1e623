//! Files of the sandbox: what built-in jobs do with them, and how they answer.
//!
//! A task is done with the rights of the job's user. Paths are taken as in a command: absolute, or
//! from the job's directory; symbolic links lead to what they mean inside. What a task tells goes
//! to its stdout, as one frame or as bytes; that it failed, to its channel.

use serde::{Deserialize, Serialize};

use crate::Strings;

/// What is to be done with which file. Each path is one string.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTask<'a> {
    /// Which one.
    #[serde(borrow)]
    pub path: Strings<'a>,
    /// What.
    #[serde(borrow)]
    pub action: FileAction<'a>,
}

/// What is to be done with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileAction<'a> {
    /// Copies bytes of a regular file to stdout. A symbolic link is followed.
    Read {
        /// Where to begin, in bytes.
        offset: u64,
        /// The most to copy, in bytes.
        limit: u64,
        /// Whether a file that goes on after that is EFBIG.
        whole: bool,
    },
    /// Makes or changes a regular file out of [`crate::Chunk`]s from stdin. Without the last of
    /// them, [`crate::Chunk::End`], it is as if nothing had been asked for, where `how` allows it.
    Write {
        /// How.
        how: WriteHow,
        /// Its permissions; where there are none, those of what it replaces, or else 0666 without
        /// the bits of the umask.
        mode: Option<u32>,
        /// Its owner and group; where there are none, those of what it replaces.
        owner: Option<(u32, u32)>,
    },
    /// Answers with [`Metadata`].
    Metadata {
        /// Whether a symbolic link is followed.
        follow: bool,
    },
    /// Answers with a [`Listing`] of a directory, without `.` and `..`. A symbolic link is
    /// followed.
    List {
        /// Where to begin: 0, or [`Listing::next`] of the part before.
        start: u64,
        /// The most names.
        most: u32,
    },
    /// Makes a directory, and those above it that are missing. One that exists is no error.
    CreateDirectories {
        /// The permissions of those that are made.
        mode: u32,
    },
    /// Removes anything but a directory; of a symbolic link, that itself.
    RemoveFile,
    /// Removes a directory and all that is in it, but nothing that is mounted there, and a symbolic
    /// link neither. If it fails, the path of what could not be removed, below the directory, is
    /// written to stdout.
    RemoveTree,
    /// Gives it another path, in place of what is there (`rename(2)`). Symbolic links in the last
    /// place of either are not followed.
    Rename {
        /// Its new path.
        #[serde(borrow)]
        to: Strings<'a>,
    },
    /// Makes it as a symbolic link.
    SymbolicLink {
        /// What it says.
        #[serde(borrow)]
        target: Strings<'a>,
    },
    /// Answers with what a symbolic link says, as bytes.
    ReadLink,
    /// Sets permissions. A symbolic link is followed.
    SetMode {
        /// Which ones, in the lower twelve bits.
        mode: u32,
    },
    /// Sets owner and group; `u32::MAX` leaves one as it is.
    SetOwner {
        /// The owner.
        uid: u32,
        /// The group.
        gid: u32,
        /// Whether a symbolic link is followed.
        follow: bool,
    },
    /// Writes a file or a directory with all that is in it to stdout, as [`crate::Entry`]s. A
    /// symbolic link at the top is followed.
    Export,
    /// Makes what comes from stdin as [`crate::Entry`]s, the first of which takes this path. A
    /// directory there, or a symbolic link to one, is added to; anything else makes way. If it
    /// fails, the path of what could not be made, below the first, is written to stdout.
    Import {
        /// Whether owners and groups are set.
        owners: bool,
    },
    /// Connects to the stream socket that is there, and answers with [`crate::JobEvent::Socket`]. A
    /// symbolic link is followed. A full backlog is waited for.
    Connect,
}

/// What [`FileAction::Write`] does with what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WriteHow {
    /// Puts a new file in its place, all at once at the end. A symbolic link is replaced, too.
    Replace,
    /// Makes a new file; where there is something, it is EEXIST.
    CreateNew,
    /// Writes into the file itself, from its beginning, and cuts it off at the end. A symbolic
    /// link is followed, and a missing file is made.
    Truncate,
    /// Writes to the end of the file itself. A symbolic link is followed, and a missing file is
    /// made.
    Append,
}

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    SymbolicLink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// Something of which the file system does not say what it is.
    Unknown,
    /// In a copy of a tree: what is mounted there.
    Mount,
}

impl FileKind {
    /// All of them; [`Listing::kinds`] are places in this.
    pub const ALL: [Self; 9] = [
        Self::File,
        Self::Directory,
        Self::SymbolicLink,
        Self::Fifo,
        Self::Socket,
        Self::CharacterDevice,
        Self::BlockDevice,
        Self::Unknown,
        Self::Mount,
    ];
}

/// What is known of a file without reading it (`statx(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Permissions, in the lower twelve bits.
    pub mode: u32,
    /// Its owner, as seen inside.
    pub uid: u32,
    /// Its group, as seen inside.
    pub gid: u32,
    /// Its length, in bytes.
    pub size: u64,
    /// What it takes on disk, in units of 512 bytes.
    pub blocks: u64,
    /// The number of its names.
    pub links: u32,
    /// Its number in its file system.
    pub inode: u64,
    /// When it was last read.
    pub accessed: Time,
    /// When its content was last changed.
    pub modified: Time,
    /// When it was last changed in any way.
    pub changed: Time,
}

/// A time of the wall clock, since the beginning of 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Time {
    /// In seconds, rounded down.
    pub seconds: i64,
    /// The rest, in nanoseconds.
    pub nanoseconds: u32,
}

/// A part of a directory's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing<'a> {
    /// The names.
    #[serde(borrow)]
    pub names: Strings<'a>,
    /// What each is: its place in [`FileKind::ALL`].
    #[serde(borrow)]
    pub kinds: &'a [u8],
    /// Where the next part begins; `None` if there is none.
    pub next: Option<u64>,
}
