//! What is told of files without reading them.

use std::ffi::OsString;
use std::time::{Duration, SystemTime};

pub use adl_protocol::FileKind;

/// What is known of a file without reading it (`stat(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
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
    pub accessed: SystemTime,
    /// When its content was last changed.
    pub modified: SystemTime,
    /// When it was last changed in any way.
    pub changed: SystemTime,
}

impl From<adl_protocol::Metadata> for Metadata {
    fn from(told: adl_protocol::Metadata) -> Self {
        let adl_protocol::Metadata { kind, mode, uid, gid, size, blocks, links, inode, .. } = told;
        Self {
            kind,
            mode,
            uid,
            gid,
            size,
            blocks,
            links,
            inode,
            accessed: time(told.accessed),
            modified: time(told.modified),
            changed: time(told.changed),
        }
    }
}

/// The clock's own limit is the only one: a guest may set a file to any time.
fn time(told: adl_protocol::Time) -> SystemTime {
    let seconds = Duration::from_secs(told.seconds.unsigned_abs());
    let whole = if told.seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    let rest = Duration::from_nanos(u64::from(told.nanoseconds));
    whole.and_then(|time| time.checked_add(rest)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirEntry {
    /// Its name: any bytes but `/` and NUL, chosen by whoever made it.
    pub name: OsString,
    /// What it is itself: a symbolic link is not followed.
    pub kind: FileKind,
}

/// Where a page of a directory ends and the next one begins. A cursor belongs to one directory and
/// is valid while that does not change; after a change, entries may be missed or told twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor(pub(crate) u64);

/// How [`Files::write_with`](crate::Files::write_with) writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub struct WriteOptions {
    pub(crate) how: WriteMode,
    pub(crate) mode: Option<u32>,
    pub(crate) owner: Option<(u32, u32)>,
}

/// What becomes of a file that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum WriteMode {
    /// A new one takes its place, all at once when all is written: there is the old one or the new
    /// one at any time, and never a part of one. A symbolic link is replaced and not followed. The
    /// new file has the mode and, as far as the user may give it away, the owner of the old one.
    #[default]
    Replace,
    /// Makes a file; one that is there already is an error (`EEXIST`).
    CreateNew,
    /// The file itself is cut off and written to, so that it stays the one that others have open or
    /// have a hard link to. A symbolic link is followed, inside.
    Truncate,
    /// The file itself is written to at its end. A symbolic link is followed, inside. The bytes
    /// are written in pieces of at most 4 KiB, each in one step.
    Append,
}

impl WriteOptions {
    /// The defaults: replace what is there, keep its mode and owner.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what becomes of a file that is there.
    pub fn how(mut self, how: WriteMode) -> Self {
        self.how = how;
        self
    }

    /// Sets the permissions (`chmod(2)`), whatever the umask. Without it they are those of the
    /// replaced file, or 0666 less the umask.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Sets owner and group, as they are inside; for anyone but root this can only be a group of
    /// their own.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }
}
