//! Images that are made once, in the state directory, by the first who needs them.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::store::collected::{Collected, no_place};
use crate::store::contents::{self, entries, remove_contents, remove_entry};
use crate::store::subordinate::as_owner;
use crate::store::uses::{self, USED, Use};
use crate::store::{State, btrfs};
use crate::sys;
use crate::sys::open::DIRECTORY;
use crate::sys::unique::unique_name;
use crate::wait::Deadline;

/// How long another process may take to make an image.
const MAKING: Duration = Duration::from_secs(600);
/// How often it is asked: the kernel tells no one who waits for a while only.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// What the name of an image begins with until it is whole. Who makes it has it locked; without a
/// lock, it is of one who did not come to the end.
const UNFINISHED: &str = ".making-";

/// What the names of layers that hide private files begin with.
pub(crate) const PRIVATE: &str = "private-";

/// What the names of layers begin with that have the directories of `/usr/local`.
pub(crate) const OWN: &str = "own-";

/// What the names of layers of images begin with.
pub(crate) const LAYER: &str = "layer-";

/// What the names of whole images begin with.
const KINDS: [&str; 7] = ["host-", "tar-", "copy-", "flat-", PRIVATE, OWN, LAYER];

/// Takes a lock that another process may hold for as long as it makes an image, or for ever where
/// it was stopped.
fn lock_within(file: &File, limit: Duration) -> io::Result<()> {
    let end = Instant::now() + limit;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() < end => {
                std::thread::sleep(BETWEEN_LOOKS);
            }
            Err(TryLockError::WouldBlock) => {
                let why = format!("another process has held the lock for {limit:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        }
    }
}

/// Makes an image of a name, unless it is there. Of those who need the same one at once, one makes
/// it, and the others wait.
pub(crate) fn make_once(
    state: &State,
    name: &str,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    make_once_by(state, name, Deadline::NEVER, fill)
}

/// An image that was made once, and stays for as long as this is there.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) path: PathBuf,
    pub(crate) used: Arc<Use>,
}

/// As [`make_once`], of what no record says that it is in use.
pub(crate) fn make_and_hold(
    state: &State,
    name: &str,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<Held> {
    let images = state.images()?;
    let used = uses::hold(&images, name)?;
    match make_once(state, name, fill) {
        Ok(path) => Ok(Held { path, used }),
        Err(error) => {
            drop(used);
            // What tells who uses it goes with the last who wanted it. The first error is told.
            if !is_directory(&images.join(name)) {
                let _ = uses::unless_used(&images, name, || Ok(()));
            }
            Err(error)
        }
    }
}

/// As [`make_once`], with a deadline for the wait for another; without one, it has a limit.
pub(crate) fn make_once_by(
    state: &State,
    name: &str,
    deadline: Deadline,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let place = state.images()?.join(name);
    if is_directory(&place) {
        return Ok(place);
    }
    make(state, name, deadline, |aside| {
        // By another, meanwhile.
        if is_directory(&place) {
            return Ok(None);
        }
        fill(aside).map(|()| Some(place.clone()))
    })?;
    Ok(place)
}

/// Makes an image that gets its name when it is whole; until then, of those with the same `key` at
/// once, one makes it.
pub(crate) fn make_and_name(
    state: &State,
    key: &str,
    deadline: Deadline,
    fill: impl FnOnce(&Path) -> Result<String>,
) -> Result<PathBuf> {
    let images = state.images()?;
    let mut place = images.clone();
    make(state, key, deadline, |aside| {
        place = images.join(fill(aside)?);
        Ok((!is_directory(&place)).then(|| place.clone()))
    })?;
    Ok(place)
}

/// Has `fill` make an image in a directory of its own, which is empty and locked, and renames that
/// to where it says, or removes it.
fn make(
    state: &State,
    key: &str,
    deadline: Deadline,
    fill: impl FnOnce(&Path) -> Result<Option<PathBuf>>,
) -> Result<()> {
    let aside = state.images()?.join(format!("{UNFINISHED}{key}"));
    let limit = deadline.left().unwrap_or(MAKING);
    let lock = loop {
        match make_directory(&aside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::at("mkdir", &aside)(error)),
        }
        if let Some(lock) = Lock::wait(&aside, limit)? {
            break lock;
        }
    };
    let remove = || remove_contents(lock.0.as_fd());
    let made = as_owner(|| remove().map_err(Error::at("remove what was left in", &aside)))
        .and_then(|()| fill(&aside))
        .and_then(|place| match place {
            Some(place) => fs::rename(&aside, &place).map_err(Error::at("rename", &aside)),
            None => remove_directory(&aside),
        });
    if made.is_err() {
        // The error that is told is the first one.
        let _ = remove_directory(&aside);
    }
    made
}

/// A directory that an image is made in, locked until this is dropped, whoever else has a copy.
struct Lock(File);

impl Lock {
    /// Waits until it is no one else's; `None` if it has become an image then, or is gone.
    fn wait(path: &Path, limit: Duration) -> Result<Option<Self>> {
        Self::take(path, |file| lock_within(file, limit).map(|()| true))
    }

    /// Takes it, unless it is someone else's.
    fn try_take(path: &Path) -> Result<Option<Self>> {
        Self::take(path, |file| match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        })
    }

    fn take(path: &Path, lock: impl FnOnce(&File) -> io::Result<bool>) -> Result<Option<Self>> {
        let file = match nix::fcntl::open(path, DIRECTORY, nix::sys::stat::Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(Error::at("open", path)(errno)),
        };
        if !lock(&file).map_err(Error::at("flock", path))? {
            return Ok(None);
        }
        let this = Self(file);
        let locked = this.0.metadata().map_err(Error::at("stat", path))?;
        let is_there = fs::symlink_metadata(path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (locked.dev(), locked.ino()));
        Ok(is_there.then_some(this))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        sys::unlock(&self.0);
    }
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Removes images that were not made to their end, and that no one makes now.
pub(crate) fn collect(state: &State, collected: &mut Collected) {
    let found = state.images_if_any().and_then(|images| {
        let Some(images) = images else { return Ok(Vec::new()) };
        let directory = File::open(&images).map_err(Error::at("open", &images))?;
        let names = entries(directory.as_fd()).map_err(Error::at("read", &images))?;
        Ok(names.into_iter().map(|name| images.join(name)).collect())
    });
    match found {
        Ok(found) => found.iter().for_each(|path| collect_one(path, collected)),
        Err(error) => collected.failed(error),
    }
}

fn collect_one(path: &Path, collected: &mut Collected) {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let is_kind = KINDS.iter().any(|kind| name.starts_with(kind));
    if let Some(image) = name.strip_prefix(USED) {
        return collect_use(path, image, collected);
    }
    // Looked at once: another may make it whole meanwhile, or make it anew.
    let Ok(metadata) = path.symlink_metadata() else { return };
    if !metadata.is_dir() || !is_kind && !is_unfinished(name) {
        collected.failed(no_place(path));
    } else if is_unfinished(name) {
        let remove = || match Lock::try_take(path)? {
            Some(_lock) => remove_directory(path).map(|()| true),
            None => Ok(false),
        };
        collected.one(name, remove());
    }
}

/// Removes what tells who uses an image that is not there.
fn collect_use(path: &Path, image: &str, collected: &mut Collected) {
    let Some(images) = path.parent() else { return };
    if KINDS.iter().any(|kind| image.starts_with(kind)) && !is_directory(&images.join(image)) {
        // While someone makes it, it is used.
        if let Err(error) = uses::unless_used(images, image, || Ok(())) {
            collected.failed(error);
        }
    } else if !is_kept(image) {
        collected.failed(no_place(path));
    }
}

/// Whether it is the name of an image that was made of the host, an archive or a copy.
pub(crate) fn is_kept(name: &str) -> bool {
    KINDS.iter().any(|kind| *kind != LAYER && name.starts_with(kind)) && !is_unfinished(name)
}

/// What was made of the host, of archives and of copies, each by its name and with its last use.
pub(crate) fn kept(state: &State) -> Result<Vec<(String, Option<SystemTime>)>> {
    let Some(images) = state.images_if_any()? else { return Ok(Vec::new()) };
    let mut kept = names(&images, is_kept)?;
    kept.sort();
    Ok(kept
        .into_iter()
        .map(|name| (last_use(&images, &name), name))
        .map(|(at, name)| (name, at))
        .collect())
}

/// When one was last used; of one that an earlier adl has made, when it was made.
fn last_use(images: &Path, name: &str) -> Option<SystemTime> {
    let made = || {
        let stat = images.join(name).symlink_metadata().ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(stat.ctime().try_into().ok()?))
    };
    uses::last(images, name).or_else(made)
}

/// Removes one of those, unless someone uses it, or has used it since a time; whether it was.
pub(crate) fn remove_kept(state: &State, name: &str, since: Option<SystemTime>) -> Result<bool> {
    let images = state.images()?;
    let is_old = |since| last_use(&images, name).is_some_and(|at| at <= since);
    if !since.is_none_or(is_old) {
        return Ok(false);
    }
    Ok(uses::unless_used(&images, name, || remove(state, name))?.is_some())
}

/// How many bytes a directory of images takes on disk.
pub(crate) fn size(state: &State, name: &str) -> Result<u64> {
    let path = state.images()?.join(name);
    let measure = || {
        let top = nix::fcntl::open(&path, DIRECTORY, nix::sys::stat::Mode::empty())?;
        contents::size_on_disk(top)
    };
    as_owner(|| measure().map_err(Error::at("measure", &path)))
}

/// Whether it is the name of an image that is not whole, also of an earlier adl.
fn is_unfinished(name: &str) -> bool {
    name.starts_with(UNFINISHED)
        || name == ".unpacking"
        || name.starts_with("host-") && name.contains('.')
}

/// The names of layers of images.
pub(crate) fn layers(state: &State) -> Result<Vec<String>> {
    let Some(images) = state.images_if_any()? else { return Ok(Vec::new()) };
    names(&images, |name| name.starts_with(LAYER))
}

/// The names of images of a kind.
fn names(images: &Path, is_one: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let directory = File::open(images).map_err(Error::at("open", images))?;
    let names = entries(directory.as_fd()).map_err(Error::at("read", images))?;
    let names = names.into_iter().filter_map(|name| name.into_string().ok());
    Ok(names.filter(|name| is_one(name)).collect())
}

/// Removes a whole image, which no one may use: at once, so that no one finds a part of it.
pub(crate) fn remove(state: &State, name: &str) -> Result<()> {
    let images = state.images()?;
    let (place, aside) = (images.join(name), images.join(unique_name(UNFINISHED)));
    match fs::rename(&place, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(Error::at("rename", &place))?,
    }
    remove_directory(&aside)
}

/// Makes a directory for an image: on btrfs a subvolume, of which snapshots can be made.
fn make_directory(path: &Path) -> io::Result<()> {
    let (parent, name) = parent_and_name(path)?;
    if btrfs::is_btrfs(parent.as_fd()) {
        return btrfs::create(parent.as_fd(), name);
    }
    DirBuilder::new().mode(0o755).create(path)
}

/// Removes a directory with all that is in it; one that is not there is no error.
fn remove_directory(path: &Path) -> Result<()> {
    let remove = || {
        let (parent, name) = parent_and_name(path)?;
        remove_entry(parent.as_fd(), name)
    };
    as_owner(|| remove().map_err(Error::at("remove", path)))
}

fn parent_and_name(path: &Path) -> io::Result<(File, &OsStr)> {
    let parent = path.parent().unwrap_or(Path::new("."));
    Ok((File::open(parent)?, path.file_name().unwrap_or(OsStr::from_bytes(b""))))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::ErrorKind;
    use std::time::Duration;

    #[test]
    fn a_lock_that_is_never_let_go_of_is_waited_for_so_long() {
        let place = std::env::temp_dir().join(format!("adl-lock-{}", std::process::id()));
        let held = File::create(&place).unwrap();
        held.lock().unwrap();
        let other = File::open(&place).unwrap();
        let late = super::lock_within(&other, Duration::from_millis(30)).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::TimedOut);
        drop(held);
        super::lock_within(&other, Duration::from_secs(20)).unwrap();
        std::fs::remove_file(&place).unwrap();
    }
}
