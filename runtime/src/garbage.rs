//! What is left on disk by who has died, and its removal.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

use crate::config::name::check_name;
use crate::error::{Error, Result};
use crate::root::unpack;
use crate::snapshot;
use crate::store::{Pass, Shelf, State, is_aside};

/// Removes what was left on disk by who has died, and returns the names of that: sandboxes, snapshots
/// without a name that no one uses any more, images that were not made to their end.
///
/// Safe beside anything else that uses the same state directory, and when interrupted anywhere:
/// each is taken only when its lock can be had, which its owner holds for as long as it lives, and its
/// init has ended, for which it is waited for up to two seconds. For one that was made in another PID
/// namespace, where that can't be seen, for ten. `state_directory` is as in [`crate::Config`].
///
/// # Errors
/// [`Error::Uncollected`] with all that could not be removed, each with its path, and with what was:
/// nothing waits for whoever mends that. What adl has not made, as a file among the directories of
/// sandboxes, is one of these.
pub fn collect_garbage(state_directory: Option<&Path>) -> Result<Vec<String>> {
    collect(&State::open(state_directory)?)
}

/// Removes the directories of sandboxes whose owner has ended, and snapshots and images that are no
/// one's, and says which.
pub(crate) fn collect(state: &State) -> Result<Vec<String>> {
    let mut collected = Collected::default();
    collect_sandboxes(state.sandboxes(), &mut collected);
    snapshot::collect(state, &mut collected);
    unpack::collect(state, &mut collected);
    for (shelf, name) in collected.pass.take().map_or(Vec::new(), Pass::finish) {
        collected.one(&name, shelf.collect_unseen(&name));
    }
    collected.done()
}

fn collect_sandboxes(shelf: &Shelf, collected: &mut Collected) {
    let found = match shelf.entries() {
        Ok(found) => found,
        Err(error) => return collected.failed(error),
    };
    for entry in found {
        let is_ours = |name: &&str| is_aside(name) || check_name("name", name).is_ok();
        match entry.to_str().filter(is_ours) {
            Some(name) if collected.is_directory(shelf, &entry) => {
                collected.directory(shelf, name);
            }
            Some(_) => {}
            None => collected.failed(no_place(&shelf.path(&entry))),
        }
    }
}

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
    pub(crate) fn directory(&mut self, shelf: &Shelf, name: &str) {
        let removed = shelf.collect_one(name, self.pass.get_or_insert_with(Pass::begin));
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

    /// Whether a name is that of a directory, as all that adl makes; what else there is is told, and
    /// not opened.
    pub(crate) fn is_directory(&mut self, shelf: &Shelf, name: &OsStr) -> bool {
        match fstatat(shelf.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => return true,
            Ok(_) => self.failed(no_place(&shelf.path(name))),
            Err(Errno::ENOENT) => {}
            Err(errno) => self.failed(Error::at("stat", &shelf.path(name))(errno)),
        }
        false
    }

    fn done(self) -> Result<Vec<String>> {
        let Self { removed, errors, .. } = self;
        if errors.is_empty() { Ok(removed) } else { Err(Error::Uncollected { removed, errors }) }
    }
}

/// Tells of what adl has not made, or can't know for its own.
pub(crate) fn no_place(path: &Path) -> Error {
    let why = "adl did not make it and leaves it alone: move it elsewhere";
    Error::at("collect", path)(io::Error::other(why))
}
