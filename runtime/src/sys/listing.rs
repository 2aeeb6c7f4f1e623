//! What is in an open directory. `fdopendir(3)`, as nix calls it, loses the descriptor where it
//! fails.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;

use super::open::{Purpose, beneath};

/// How much is read at once, in bytes: as much as the C library reads.
const CHUNK: usize = 32 << 10;

/// Where in a `struct linux_dirent64` the length of it is, and then its kind and its name
/// (getdents64(2)).
const LENGTH: usize = 16;
const KIND: usize = 18;
const NAME: usize = 19;

/// The entries of a directory but `.` and `..`, in the order of its file system.
#[derive(Debug)]
pub(crate) struct Listing {
    directory: OwnedFd,
    bytes: Vec<u8>,
    /// What of the bytes is still to come.
    at: usize,
    end: usize,
}

/// What something is, where its file system says so with its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    Link,
    Other,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        match number {
            libc::DT_UNKNOWN => None,
            libc::DT_DIR => Some(Self::Directory),
            libc::DT_LNK => Some(Self::Link),
            _ => Some(Self::Other),
        }
    }
}

impl Listing {
    /// Of an open directory, from its beginning, whoever else reads that.
    pub(crate) fn of(directory: impl AsFd) -> nix::Result<Self> {
        let directory = beneath(directory, c".", Purpose::List)?;
        Ok(Self { directory, bytes: vec![0; CHUNK], at: 0, end: 0 })
    }

    /// The next one.
    pub(crate) fn next(&mut self) -> nix::Result<Option<(&CStr, Option<Kind>)>> {
        loop {
            if self.at >= self.end {
                self.at = 0;
                self.end = self.read()?;
                if self.end == 0 {
                    return Ok(None);
                }
            }
            let entry = self.bytes.get(self.at..self.end).unwrap_or_default();
            let length = entry.get(LENGTH..KIND).and_then(|length| length.try_into().ok());
            let length = length.map_or(0, u16::from_ne_bytes);
            // Nothing but the kernel has written it.
            let begin = self.at;
            self.at += usize::from(length).max(NAME);
            if !matches!(entry.get(NAME..), None | Some([b'.', 0, ..] | [b'.', b'.', 0, ..])) {
                return Ok(self.entry(begin));
            }
        }
    }

    fn entry(&self, begin: usize) -> Option<(&CStr, Option<Kind>)> {
        let entry = self.bytes.get(begin..self.end)?;
        let name = CStr::from_bytes_until_nul(entry.get(NAME..)?).ok()?;
        Some((name, Kind::of(*entry.get(KIND)?)))
    }

    fn read(&mut self) -> nix::Result<usize> {
        let (to, room) = (self.bytes.as_mut_ptr(), self.bytes.len());
        let fd = self.directory.as_raw_fd();
        // SAFETY: writes no more than `room` bytes to memory of that size.
        let read = unsafe { libc::syscall(libc::SYS_getdents64, fd, to, room) };
        match Errno::result(read) {
            Ok(read) => Ok(usize::try_from(read).unwrap_or(0).min(room)),
            // It was removed: there is nothing in it.
            Err(Errno::ENOENT) => Ok(0),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::*;

    /// All that is listed.
    fn all(directory: impl AsFd) -> BTreeMap<String, Option<Kind>> {
        let mut listing = Listing::of(directory).unwrap();
        let mut all = BTreeMap::new();
        while let Some((name, kind)) = listing.next().unwrap() {
            assert!(all.insert(name.to_str().unwrap().to_owned(), kind).is_none(), "{name:?}");
        }
        all
    }

    #[test]
    fn all_in_a_directory_is_listed_with_its_kind() {
        let home = std::env::temp_dir().join(format!("adl-listing-{}", std::process::id()));
        fs::create_dir(&home).unwrap();
        let directory = File::open(&home).unwrap();
        assert!(all(&directory).is_empty());
        // More than is read at once, of every length.
        let mut made = BTreeMap::new();
        for number in 1..=3000_usize {
            let mut name = number.to_string();
            name.push_str(&".".repeat(number % 200));
            File::create(home.join(&name)).unwrap();
            made.insert(name, Some(Kind::Other));
        }
        fs::create_dir(home.join("...")).unwrap();
        made.insert("...".to_owned(), Some(Kind::Directory));
        symlink("nowhere", home.join(".hidden")).unwrap();
        made.insert(".hidden".to_owned(), Some(Kind::Link));
        let mut found = all(&directory);
        // Some file systems keep no kinds.
        found.iter_mut().for_each(|(name, kind)| *kind = kind.or(made[name]));
        assert!(found == made);
        // And again, from the beginning.
        assert_eq!(all(&directory).len(), made.len());
        fs::remove_dir_all(home).unwrap();
        assert!(all(&directory).is_empty());
    }

    #[test]
    fn what_is_no_directory_is_not_listed() {
        let file = File::open("/proc/self/status").unwrap();
        assert_eq!(Listing::of(file).unwrap_err(), Errno::ENOTDIR);
    }
}
