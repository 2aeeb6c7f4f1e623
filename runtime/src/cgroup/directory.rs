//! A cgroup's directory, and its files.

use std::fs;
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::hierarchy::Version;
use crate::error::{Error, Result};

/// A cgroup by its path, which nothing but its owner can make lead elsewhere. It is held by no
/// descriptor: a guest decides how many there are.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    pub(super) version: Version,
    path: PathBuf,
}

impl Directory {
    /// Makes one.
    pub(super) fn make(path: PathBuf, version: Version) -> Result<Self> {
        match fs::create_dir(&path) {
            Ok(()) => Ok(Self { version, path }),
            Err(error) => Err(refused(&path, error)),
        }
    }

    /// The one of that name below it.
    pub(super) fn below(&self, name: &str) -> Self {
        Self { version: self.version, path: self.path.join(name) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn open(&self, name: &str, options: &fs::OpenOptions) -> Result<fs::File> {
        let path = self.path.join(name);
        options.open(&path).map_err(Error::at("open", &path))
    }

    /// Opens what a process of one thread writes `0` into to be in it, with all that it starts.
    pub(super) fn open_to_join(&self) -> Result<fs::File> {
        let name = match self.version {
            // As a thread of its own: for that, the kernel need not wait for all who fork just now
            // on this machine (Linux 5.5), which may be 10 ms.
            Version::V1 => "tasks",
            Version::V2 => "cgroup.procs",
        };
        self.open(name, fs::OpenOptions::new().write(true))
    }

    pub(super) fn write(&self, name: &str, value: &str) -> Result<()> {
        let mut file = self.open(name, fs::OpenOptions::new().write(true))?;
        file.write_all(value.as_bytes()).map_err(Error::at("write", &self.path.join(name)))
    }

    /// Reads a file; `None` if this kernel has none of that name.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>> {
        let path = self.path.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound && self.path.is_dir() => Ok(None),
            // As PSI that was turned off when the kernel was started.
            Err(error) if errno(&error) == Some(Errno::EOPNOTSUPP) => Ok(None),
            Err(error) => Err(Error::at("read", &path)(error)),
        }
    }

    pub(super) fn read_of_parent(&self, name: &str) -> Result<String> {
        let path = self.path.join("..").join(name);
        fs::read_to_string(&path).map_err(Error::at("read", &path))
    }

    /// Whether it has a file. What could not be looked at is not taken to be missing.
    pub(super) fn has(&self, name: &str) -> Result<bool> {
        let path = self.path.join(name);
        path.try_exists().map_err(Error::at("stat", &path))
    }

    /// Whether no process is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.read("cgroup.procs").is_ok_and(|pids| pids.is_some_and(|pids| pids.is_empty()))
    }

    /// A number that is all of a file.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.read(name)?.and_then(|text| text.trim().parse().ok()))
    }

    /// A number of a file of `key value` lines.
    pub(super) fn value(&self, name: &str, key: &str) -> Result<Option<u64>> {
        Ok(self.read(name)?.and_then(|text| value(&text, key)))
    }
}

/// Reads all of a file that may have been read before.
pub(super) fn read_again(mut file: &fs::File) -> std::io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

pub(super) fn errno(error: &std::io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

/// Says what to do where a cgroup may not be made.
fn refused(path: &Path, error: std::io::Error) -> Error {
    match errno(&error) {
        Some(Errno::EAGAIN) => Error::Unsupported {
            what: "one more cgroup".to_owned(),
            why: format!("there are as many around {path:?} as there may be: {error}"),
            fix: "raise cgroup.max.descendants above it, or delete sandboxes".to_owned(),
        },
        // What the kernel needs for it is charged to the one above.
        Some(Errno::ENOMEM) => Error::Busy {
            what: "all the memory that there may be".to_owned(),
            by: "what was started or written in the sandbox".to_owned(),
        },
        _ => Error::at("mkdir", path)(error),
    }
}

/// The value of a key in lines of `key value`.
pub(super) fn value(text: &str, key: &str) -> Option<u64> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(name, _)| *name == key)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_key() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n";
        assert_eq!((value(text, "oom_kill"), value(text, "oom")), (Some(7), None));
    }
}
