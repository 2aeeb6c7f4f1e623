//! What a collection has removed, and what it could not.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

use crate::error::{Error, Result};
use crate::store::directories::{Directories, Pass};

/// What has come of a collection so far.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    removed: Vec<String>,
    errors: Vec<Error>,
    /// From the first directory on.
    pass: Option<Pass>,
}

impl Collected {
    /// Removes a directory, unless it has an owner.
    pub(crate) fn directory(&mut self, directories: &Directories, name: &str) {
        let removed = directories.collect_one(name, self.pass.get_or_insert_with(Pass::begin));
        self.one(name, removed);
    }

    pub(crate) fn removed(&mut self, name: &str) {
        self.removed.push(name.to_owned());
    }

    pub(crate) fn failed(&mut self, error: Error) {
        self.errors.push(error);
    }

    /// Takes down whether something was removed.
    pub(crate) fn one(&mut self, name: &str, removed: Result<bool>) {
        match removed {
            Ok(true) => self.removed(name),
            Ok(false) => {}
            Err(error) => self.failed(error),
        }
    }

    /// Whether a name is that of a directory, as all that adl makes; what else there is is told,
    /// and not opened.
    pub(crate) fn is_directory(&mut self, directories: &Directories, name: &OsStr) -> bool {
        match fstatat(directories.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => return true,
            Ok(_) => self.failed(no_place(&directories.path(name))),
            Err(Errno::ENOENT) => {}
            Err(errno) => self.failed(Error::at("stat", &directories.path(name))(errno)),
        }
        false
    }

    /// Looks again at what could not be seen to have ended.
    pub(crate) fn finish_pass(&mut self) {
        for (directories, name) in self.pass.take().map_or(Vec::new(), Pass::finish) {
            self.one(&name, directories.collect_unseen(&name));
        }
    }

    pub(crate) fn done(self) -> Result<Vec<String>> {
        let Self { removed, errors, .. } = self;
        if errors.is_empty() { Ok(removed) } else { Err(Error::Uncollected { removed, errors }) }
    }
}

/// Tells of what adl has not made, or can't know for its own.
pub(crate) fn no_place(path: &Path) -> Error {
    let why = "adl did not make it and leaves it alone: move it elsewhere";
    Error::at("collect", path)(io::Error::other(why))
}
