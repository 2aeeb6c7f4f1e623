//! Who uses an image that was made once: a file beside each, locked with others by all who do, and
//! alone by who removes it. Its time of change is that of the last use, to a minute.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat, futimens};
use nix::sys::time::TimeSpec;

use crate::error::{Error, Result};
use crate::store::own_file::check_own;
use crate::sys;
use crate::sys::lock::lock;
use crate::sys::owner::{Owner, PerProcess};

/// What the names of these files begin with, before that of the image.
pub(super) const USED: &str = ".used-";

/// How much later a use has to be, to be written down.
const FRESH: Duration = Duration::from_secs(60);
/// How long someone may take who looks whether an image is used.
const LOOKING: Duration = Duration::from_secs(2);
/// How often it is looked at the lock: the kernel tells no one who waits for a while only.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// Keeps an image from being removed for as long as this is there.
#[derive(Debug)]
pub(crate) struct Use {
    file: File,
    owner: Owner,
}

impl Drop for Use {
    fn drop(&mut self) {
        // Forks share the lock; what they drop is none of theirs.
        if self.owner.is_this_process() {
            sys::unlock(&self.file);
        }
    }
}

/// Those that there are in this process, by the paths of their files: a process has one of each at
/// most, however many sandboxes it makes.
static USES: PerProcess<Mutex<BTreeMap<PathBuf, Weak<Use>>>> = PerProcess::new();

/// Where the file of an image is.
fn place(images: &Path, name: &str) -> PathBuf {
    images.join(format!("{USED}{name}"))
}

/// Has an image stay that is there, or that is made next.
pub(super) fn hold(images: &Path, name: &str) -> Result<Arc<Use>> {
    let path = place(images, name);
    let mut uses = lock(USES.get());
    if let Some(known) = uses.get(&path).and_then(Weak::upgrade) {
        // What stays for long is used for as long.
        known.mark().map_err(Error::at("stat", &path))?;
        return Ok(known);
    }
    uses.retain(|_, other| other.strong_count() > 0);
    let held = take(&path).map_err(Error::at("flock", &path))?;
    held.mark().map_err(Error::at("stat", &path))?;
    let held = Arc::new(held);
    uses.insert(path, Arc::downgrade(&held));
    Ok(held)
}

fn take(path: &Path) -> io::Result<Use> {
    let end = Instant::now() + LOOKING;
    loop {
        let file = open_file(path, OFlag::O_CREAT)?;
        match file.try_lock_shared() {
            // Who removes an image removes its file, too.
            Ok(()) if fstat(&file)?.st_nlink > 0 => {
                return Ok(Use { file, owner: Owner::this_process() });
            }
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if Instant::now() < end => {
                std::thread::sleep(BETWEEN_LOOKS);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it is being removed"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn open_file(path: &Path, more: OFlag) -> io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | more;
    let file = open(path, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    check_own(file.as_fd(), libc::S_IFREG)?;
    Ok(file.into())
}

impl Use {
    /// Writes down that the image is used, unless that was done a moment ago.
    fn mark(&self) -> io::Result<()> {
        let last = self.file.metadata()?.modified()?;
        if last.elapsed().map_or(true, |elapsed| elapsed >= FRESH) {
            futimens(&self.file, &TimeSpec::UTIME_OMIT, &TimeSpec::UTIME_NOW)?;
        }
        Ok(())
    }
}

/// When an image was last used, as far as that was written down.
pub(super) fn last(images: &Path, name: &str) -> Option<SystemTime> {
    place(images, name).symlink_metadata().ok()?.modified().ok()
}

/// Does something that no one may use the image meanwhile for, and removes the file; `None` if
/// someone uses it.
pub(super) fn unless_used<T>(
    images: &Path,
    name: &str,
    work: impl FnOnce() -> Result<T>,
) -> Result<Option<T>> {
    let path = place(images, name);
    let file = open_file(&path, OFlag::O_CREAT).map_err(Error::at("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(Error::at("flock", &path)(error)),
    }
    let is_there = fstat(&file).map_err(Error::at("stat", &path))?.st_nlink > 0;
    // Another has removed it just now, and a third may have made it anew.
    let done = if is_there { work().map(Some) } else { Ok(None) };
    if is_there && done.is_ok() {
        match nix::unistd::unlink(&path) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(Error::at("unlink", &path)(errno)),
        }
    }
    sys::unlock(&file);
    done
}
