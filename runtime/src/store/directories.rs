//! A directory of directories, each locked by who uses it: of sandboxes, or of snapshots.
//!
//! The lock is a `flock(2)` on the directory itself, which the kernel lets go of when the owner
//! ends, however it ends. So a directory whose lock can be had has no owner. Its processes may end
//! later: which init it has is written down in it (`init_record.rs`), and only when that is gone
//! is it removed.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::openat;
use nix::poll::{PollFd, PollFlags};
use nix::sys::stat::{Mode, fstat, mkdirat};

use crate::error::{Error, Result};
use crate::store::contents::{entries, remove_empty};
use crate::store::directory::{Layout, SandboxDirectory, is_aside};
use crate::store::init_record::Life;
use crate::store::own_file::make_private;
use crate::store::remover::{Removal, remove_later};
use crate::sys;
use crate::sys::open::DIRECTORY;
use crate::sys::shared::shared;
use crate::wait::{Deadline, wait_ready};

/// How long a collector may take to give the name of what it has taken free.
const COLLECTION: Duration = Duration::from_millis(20);

/// How long it may take until an init has ended whose owner has.
const ENDING: Duration = Duration::from_secs(2);

/// How long it is waited for the end of those that can't be seen: as a delete does.
const UNSEEN: Duration = Duration::from_secs(10);

/// One pass through what may be collected.
#[derive(Debug)]
pub(crate) struct Pass {
    /// Until when it is waited for what is ending.
    ending: Deadline,
    /// What no one has locked, and of which it can't be seen whether it has ended.
    unseen: Vec<(Directories, String)>,
}

impl Pass {
    pub(crate) fn begin() -> Self {
        Self { ending: Deadline::after(ENDING), unseen: Vec::new() }
    }

    /// Returns what has to be looked at again, when there was time for all in it to end.
    pub(crate) fn finish(self) -> Vec<(Directories, String)> {
        if !self.unseen.is_empty() {
            std::thread::sleep(UNSEEN);
        }
        self.unseen
    }
}

/// A directory of directories, each of which is locked by who uses it.
#[derive(Debug, Clone)]
pub(crate) struct Directories {
    path: PathBuf,
    fd: Arc<OwnedFd>,
}

/// What can be done with a directory that may be someone's.
enum Claim {
    /// It is no one's, and locked now.
    Free(SandboxDirectory),
    /// Its owner has ended, its init has not: a descriptor that is readable when it has.
    Ending(OwnedFd),
    /// Its owner has ended. Whether its init has can't be seen from here.
    Unseen(SandboxDirectory),
    /// It is someone's, or gone.
    No,
}

impl Directories {
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        make_private(&path)?;
        let fd =
            nix::fcntl::open(&path, DIRECTORY, Mode::empty()).map_err(Error::at("open", &path))?;
        Ok(Self { path, fd: shared(fd) })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The path of what has a name there.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The names in it.
    pub(crate) fn entries(&self) -> Result<Vec<OsString>> {
        entries(self.as_fd()).map_err(Error::at("read", &self.path))
    }

    pub(super) fn make(&self, name: &str, layout: &Layout) -> Result<SandboxDirectory> {
        let path = self.path(name);
        // A collector may take the directory for one without an owner, between its making and its
        // locking. Then again, once that has removed it, which it does at once: it is empty.
        let mut taken = None;
        let fd = loop {
            match mkdirat(&self.fd, name, Mode::S_IRWXU) {
                Ok(()) => match self.lock(name) {
                    Ok(Some(fd)) => break fd,
                    Ok(None) => taken = Some(Instant::now()),
                    Err(error) => {
                        // As when there are no descriptors left; this takes none.
                        let _ = remove_empty(self.as_fd(), OsStr::new(name));
                        return Err(error);
                    }
                },
                // Of an owner who has ended, it is no one's. Someone may just be taking it.
                Err(Errno::EEXIST) => match self.claim(name)? {
                    Claim::Free(left) => remove_later(Removal::new(None, Some(left)))?,
                    Claim::Ending(init) if has_ended(&init, Deadline::after(ENDING))? => {}
                    Claim::Unseen(_) | Claim::No
                        if taken.get_or_insert_with(Instant::now).elapsed() <= COLLECTION =>
                    {
                        std::thread::yield_now();
                    }
                    _ => return Err(Error::NameInUse { name: name.to_owned() }),
                },
                Err(errno) => return Err(Error::at("mkdir", &path)(errno)),
            }
        };
        let directory = self.directory(name, layout.overlays, fd);
        match directory.make_parts(layout) {
            Ok(()) => Ok(directory),
            Err(error) => {
                // The error that is told is the first one.
                let _ = directory.remove();
                Err(error)
            }
        }
    }

    /// Makes an empty directory of a name, for another to take the place of; `None` if there is one
    /// that is someone's, or has something in it.
    pub(crate) fn reserve(&self, name: &str) -> Result<Option<OwnedFd>> {
        match mkdirat(&self.fd, name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(Error::at("mkdir", &self.path(name))(errno)),
        }
        // Someone may have died that had reserved it.
        let Some(fd) = self.lock(name)? else { return Ok(None) };
        let entries = entries(fd.as_fd()).map_err(Error::at("read", &self.path(name)))?;
        Ok(entries.is_empty().then_some(fd))
    }

    /// Moves a directory here, where its name is no one's or was reserved, and lets go of its lock.
    /// This takes no descriptor.
    pub(crate) fn take_in(&self, directory: &mut SandboxDirectory, name: &str) -> Result<()> {
        directory.move_to(self.as_fd(), self.path(name), name)
    }

    /// Gives a name up that was reserved.
    pub(crate) fn give_up(&self, name: &str) {
        // If it can't be removed, the collector will.
        let _ = remove_empty(self.as_fd(), OsStr::new(name));
    }

    /// Takes the directory of a name, if it is no one's.
    pub(crate) fn take(&self, name: &str) -> Result<Option<SandboxDirectory>> {
        match self.claim(name)? {
            Claim::Free(directory) => Ok(Some(directory)),
            _ => Ok(None),
        }
    }

    /// Locks the directory of a name, if it is no one's.
    fn claim(&self, name: &str) -> Result<Claim> {
        let Some(fd) = self.lock(name)? else { return Ok(Claim::No) };
        let directory = self.directory(name, 0, fd);
        // Before it is recorded, no guest runs in it.
        Ok(match directory.init()?.map(|init| init.life()) {
            None | Some(Life::Ended) => Claim::Free(directory),
            Some(Life::Alive(init)) => {
                sys::unlock(directory.as_fd());
                Claim::Ending(init)
            }
            Some(Life::Elsewhere) => Claim::Unseen(directory),
        })
    }

    /// A directory here, that is locked.
    fn directory(&self, name: &str, overlays: usize, fd: OwnedFd) -> SandboxDirectory {
        let (path, parent) = (self.path(name), Arc::clone(&self.fd));
        SandboxDirectory::locked(path, name, overlays, fd, parent)
    }

    /// Removes a directory, unless it has an owner, or that has left a process.
    pub(crate) fn collect_one(&self, name: &str, pass: &mut Pass) -> Result<bool> {
        loop {
            match self.claim(name)? {
                Claim::Free(directory) => return Self::collect_claimed(directory),
                Claim::Ending(init) if has_ended(&init, pass.ending)? => {}
                Claim::Unseen(_) => {
                    pass.unseen.push((self.clone(), name.to_owned()));
                    return Ok(false);
                }
                // Not killed: a record may have been copied, or forged by an init that was taken
                // over, and then names another's process.
                Claim::Ending(_) => {
                    return Err(Error::Busy {
                        what: format!("{:?}", self.path(name)),
                        by:
                            "its init, which goes on although its owner has ended: the link `init` \
                             there begins with its process id"
                                .to_owned(),
                    });
                }
                Claim::No => return Ok(false),
            }
        }
    }

    /// Removes what no one has locked, and of which a first pass could not see whether it has
    /// ended.
    pub(crate) fn collect_unseen(&self, name: &str) -> Result<bool> {
        match self.claim(name)? {
            Claim::Free(directory) | Claim::Unseen(directory) => Self::collect_claimed(directory),
            Claim::Ending(_) | Claim::No => Ok(false),
        }
    }

    fn collect_claimed(mut directory: SandboxDirectory) -> Result<bool> {
        if !is_aside(directory.name()) {
            // Its name is free at once; where there is no room for that, at the end.
            let _ = directory.move_aside();
        }
        directory.remove()?;
        Ok(true)
    }

    /// Opens and locks a directory; `None` if it is locked by another, or is gone.
    fn lock(&self, name: &str) -> Result<Option<OwnedFd>> {
        let at = |operation| Error::at::<Errno>(operation, Path::new(name));
        let fd = match openat(&self.fd, name, DIRECTORY, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(at("open")(errno)),
        };
        // nix ties a flock to a type that owns the descriptor; here it is to last as long as it.
        let locked = std::fs::File::from(fd);
        match locked.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(Error::at("flock", Path::new(name))(error));
            }
        }
        let fd = OwnedFd::from(locked);
        let removed = fstat(&fd).map_err(at("stat"))?.st_nlink == 0;
        Ok((!removed).then_some(fd))
    }
}

/// Waits for the end of an init.
fn has_ended(init: &OwnedFd, deadline: Deadline) -> Result<bool> {
    wait_ready(&mut [PollFd::new(init.as_fd(), PollFlags::POLLIN)], deadline)
}
