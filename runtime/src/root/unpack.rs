//! Images that are made once, in the state directory: archives unpacked, trees copied to btrfs.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::config::host_path::HostPath;
use crate::error::{Error, Result};
use crate::root::private;
use crate::root::source::Source;
use crate::store::collected::{Collected, no_place};
use crate::store::remove::{entries, remove_contents, remove_entry};
use crate::store::{State, btrfs};
use crate::sys::open::{self, DIRECTORY, Location, Purpose};
use crate::sys::{self};
use crate::transfer::{self, CopyOptions, CopyReport, Incoming, Outgoing};
use crate::wait::Deadline;

/// How long another process may take to make an image.
const MAKING: Duration = Duration::from_secs(600);
/// How often it is asked: the kernel tells no one who waits for a while only.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// What the name of an image begins with until it is whole. Who makes it has it locked; without a lock,
/// it is of one who did not come to the end.
const UNFINISHED: &str = ".making-";

/// What the names of whole images begin with.
const KINDS: [&str; 4] = ["host-", "tar-", "copy-", private::KIND];

/// The directory that a tar archive has been unpacked to, now or before.
///
/// # Errors
/// [`Error::Invalid`] for what is no archive, [`Error::Refused`] for one that leads out of itself,
/// [`Error::Io`] for what could not be read or made. Nothing of it is left then.
pub(crate) fn archive(state: &State, archive: &HostPath) -> Result<PathBuf> {
    let file = File::from(archive.locate()?.open_file("image")?);
    let archive = &archive.full_path();
    let metadata = file.metadata().map_err(Error::at("stat", archive))?;
    let name = format!("tar-{:016x}", fingerprint(&metadata, Path::new("")));
    make_once(state, &name, |aside| {
        let mut bytes = BufReader::with_capacity(1 << 20, file);
        copy(aside, |to, options, report| transfer::from_tar(&mut bytes, to, options, report))
            .map_err(|error| no_archive(archive, error))
    })
}

/// Says of which file it is, and what may be the matter.
fn no_archive(path: &Path, error: Error) -> Error {
    match error {
        Error::Invalid { why, .. } => Error::invalid(
            "image",
            format!("{path:?} is no tar archive that is not compressed: {why}"),
        ),
        other => other,
    }
}

/// A subvolume with what is in a directory: itself if it is one on the state directory's file
/// system, else a copy that is made now or was made before.
///
/// # Errors
/// [`Error::Unsupported`] where the state directory is not on btrfs, and as [`archive`].
pub(crate) fn subvolume(state: &State, source: &Source) -> Result<Source> {
    let images = state.images()?;
    let at = File::open(&images).map_err(Error::at("open", &images))?;
    if !btrfs::is_btrfs(at.as_fd()) {
        return Err(Error::Unsupported {
            what: "a btrfs upper".to_owned(),
            why: format!("{images:?} is not on btrfs"),
            fix: "put the state directory on a btrfs, or use the upper `disk`".to_owned(),
        });
    }
    // Opened for more than its path: the ioctls take no O_PATH.
    let opened = open::beneath(source.as_fd(), ".", Purpose::List)
        .map_err(Error::at("open image", &source.path))?;
    if btrfs::is_subvolume(&opened) && btrfs::is_same_file_system(&opened, &at) {
        return Ok(source.clone());
    }
    let opened = File::from(opened);
    let metadata = opened.metadata().map_err(Error::at("stat", &source.path))?;
    let location = Location::beneath(opened.into(), Path::new(""), source.path.clone())?;
    let name = format!("copy-{:016x}", fingerprint(&metadata, &source.path));
    let place = make_once(state, &name, |aside| {
        copy(aside, |to, options, report| transfer::send(&location, to, options, report))
    })?;
    Source::directory("open image", &place.into())
}

/// Takes a lock that another process may hold for as long as it makes an image, or for ever where it
/// was stopped.
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

/// Makes an image of a name, unless it is there. Of those who need the same one at once, one makes it,
/// and the others wait.
pub(crate) fn make_once(
    state: &State,
    name: &str,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let images = state.images()?;
    let place = images.join(name);
    if is_directory(&place) {
        return Ok(place);
    }
    let aside = images.join(format!("{UNFINISHED}{name}"));
    let lock = loop {
        match make_directory(&aside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::at("mkdir", &aside)(error)),
        }
        if let Some(lock) = Lock::wait(&aside)? {
            break lock;
        }
    };
    let made = if is_directory(&place) {
        // By another, meanwhile.
        remove_directory(&aside).map_err(Error::at("remove", &aside))
    } else {
        remove_contents(lock.0.as_fd())
            .map_err(Error::at("remove what was left in", &aside))
            .and_then(|()| fill(&aside))
            .and_then(|()| fs::rename(&aside, &place).map_err(Error::at("rename", &aside)))
    };
    if made.is_err() {
        // The error that is told is the first one.
        let _ = remove_directory(&aside);
    }
    made.map(|()| place)
}

/// A directory that an image is made in, locked until this is dropped, whoever else has a copy.
struct Lock(File);

impl Lock {
    /// Waits until it is no one else's; `None` if it has become an image then, or is gone.
    fn wait(path: &Path) -> Result<Option<Self>> {
        Self::take(path, |file| lock_within(file, MAKING).map(|()| true))
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
    // Looked at once: another may make it whole meanwhile, or make it anew.
    let Ok(metadata) = path.symlink_metadata() else { return };
    if !metadata.is_dir() || !is_kind && !is_unfinished(name) {
        collected.failed(no_place(path));
    } else if is_unfinished(name) {
        let remove = || match Lock::try_take(path)? {
            Some(_lock) => remove_directory(path).map_err(Error::at("remove", path)).map(|()| true),
            None => Ok(false),
        };
        collected.one(name, remove());
    }
}

/// Whether it is the name of an image that is not whole, also of an earlier adl.
fn is_unfinished(name: &str) -> bool {
    name.starts_with(UNFINISHED)
        || name == ".unpacking"
        || name.starts_with("host-") && name.contains('.')
}

/// Changes when what an image is made of does, as far as one can see at a glance.
fn fingerprint(of: &fs::Metadata, path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), of.dev(), of.ino(), of.size(), path).hash(&mut hasher);
    (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()).hash(&mut hasher);
    hasher.finish()
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
fn remove_directory(path: &Path) -> io::Result<()> {
    let (parent, name) = parent_and_name(path)?;
    remove_entry(parent.as_fd(), name)
}

fn parent_and_name(path: &Path) -> io::Result<(File, &OsStr)> {
    let parent = path.parent().unwrap_or(Path::new("."));
    Ok((File::open(parent)?, path.file_name().unwrap_or(OsStr::from_bytes(b""))))
}

/// Copies what is sent into a directory, as out of a sandbox, since images are trusted as little.
fn copy(
    target: &Path,
    send: impl FnOnce(&mut Outgoing, &CopyOptions, &mut CopyReport) -> Result<()>,
) -> Result<()> {
    let options = CopyOptions {
        owners: nix::unistd::geteuid().is_root(),
        set_ids: true,
        limit: u64::MAX,
        entries: u64::MAX,
    };
    let target = Location::followed(target.to_owned());
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::io("pipe"))?;
    let mut from = Incoming::new(read, Deadline::NEVER)?;
    let mut to = Outgoing::new(write, Deadline::NEVER)?;
    std::thread::scope(|scope| {
        let made = std::thread::Builder::new()
            .name("adl-unpack".to_owned())
            .spawn_scoped(scope, move || {
                transfer::receive_as_top(&mut from, &target, &options, &mut CopyReport::default())
            })
            .map_err(Error::io("start of a thread"))?;
        let sent = send(&mut to, &options, &mut CopyReport::default());
        drop(to);
        let made = made.join().unwrap_or(Err(Error::Protocol { why: "a copy that panicked" }));
        match sent {
            // Who made it has stopped, and says why.
            Err(Error::Protocol { .. }) => made,
            sent => sent.and(made),
        }
    })
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
