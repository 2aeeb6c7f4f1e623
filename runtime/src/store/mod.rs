//! What sandboxes keep on disk: one directory each, locked for as long as its owner lives; and what
//! becomes of it when it is kept, as a snapshot.
//!
//! The lock is a `flock(2)` on the directory itself, which the kernel lets go of when the owner
//! ends, however it ends. So a directory whose lock can be had has no owner. Its processes may end
//! later: which init it has is written down in it (`store/init_record.rs`), and only when that is gone
//! is it removed.

pub(crate) mod btrfs;
pub(crate) mod collected;
mod contents;
pub(crate) mod ids;
pub(crate) mod init_record;
#[cfg(test)]
mod loop_disk;
pub(crate) mod name;
pub(crate) mod quota;
pub(crate) mod remove;

use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{
    OFlag, OpenHow, RenameFlags, ResolveFlag, openat, openat2, readlinkat, renameat, renameat2,
};
use nix::poll::{PollFd, PollFlags};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use crate::error::{Error, Result};
use crate::root::source::Source;
use crate::store::init_record::{InitRecord, LONGEST, Life};
use crate::store::name::SUBVOLUME;
use crate::store::name::upper_name;
use crate::store::remove::{Remains, entries, remove_contents, remove_empty, remove_later};
use crate::sys::open::DIRECTORY;
use crate::sys::unique::unique_name;
use crate::wait::Deadline;
use crate::wait::wait_ready;
use crate::{cgroup, sys};

/// Opens a file in a directory of adl's own, to read what adl has written there. Nothing else is
/// opened, waited for or followed.
///
/// # Errors
/// `InvalidData` for what adl has not written, such as a file of another user's, or a longer one.
pub(crate) fn open_own_file(
    directory: BorrowedFd<'_>,
    name: &str,
    longest: u64,
) -> io::Result<std::fs::File> {
    let flags = OFlag::O_RDONLY
        | OFlag::O_NOFOLLOW
        | OFlag::O_NONBLOCK
        | OFlag::O_NOCTTY
        | OFlag::O_CLOEXEC;
    let file = openat(directory, name, flags, Mode::empty())?;
    check_own(file.as_fd(), libc::S_IFREG)?;
    if fstat(&file)?.st_size.unsigned_abs() > longest {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than adl writes it"));
    }
    Ok(file.into())
}

/// Refuses what someone else than the calling user and root could have written, or what is of another
/// kind.
pub(crate) fn check_own(file: BorrowedFd<'_>, kind: libc::mode_t) -> io::Result<()> {
    let stat = fstat(file)?;
    let why = if stat.st_mode & libc::S_IFMT != kind {
        "of another kind than what adl writes"
    } else if stat.st_uid != nix::unistd::geteuid().as_raw() && stat.st_uid != 0 {
        "it belongs to another user"
    } else if stat.st_mode & 0o022 != 0 {
        "others than its owner may write to it"
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

/// How long a collector may take to give the name of what it has taken free.
const COLLECTION: Duration = Duration::from_millis(20);

/// How long it may take until an init has ended whose owner has.
const ENDING: Duration = Duration::from_secs(2);

/// How long it is waited for the end of those that can't be seen: as a delete does.
const UNSEEN: Duration = Duration::from_secs(10);

/// Where in a sandbox's directory the paths of its cgroups are, each ended by a NUL.
const CGROUPS: &str = "cgroups";

/// The most that may be there, in bytes: a path for each controller that there could be.
const LONGEST_CGROUPS: u64 = 256 << 10;

/// Which init a sandbox has: a symbolic link to no file, in its directory.
const INIT: &str = "init";

/// The directory of all sandboxes of a user.
#[derive(Debug, Clone)]
pub(crate) struct State {
    path: PathBuf,
    sandboxes: Shelf,
    /// Once they were asked for.
    snapshots: OnceLock<Arc<Shelf>>,
}

impl State {
    /// Opens the state directory, making it if need be.
    pub(crate) fn open(configured: Option<&Path>) -> Result<Self> {
        let path = match configured {
            Some(path) => path.to_owned(),
            None => default_path(),
        };
        let path = std::path::absolute(&path).map_err(Error::at("getcwd for", &path))?;
        make_private(&path)?;
        let sandboxes = Shelf::open(path.join("sandboxes"))?;
        // An ext4 without a journal avoids inode numbers that were free for less than a minute, and
        // looks at each. Where one sandbox had a hundred thousand files, the next would wait for
        // that with every file it makes.
        sys::spread_entries(&sandboxes.fd);
        Ok(Self { path, sandboxes, snapshots: OnceLock::new() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is no sandbox, where one can tell at a glance: in most file systems, a
    /// directory without another in it has two links.
    pub(crate) fn is_surely_empty(&self) -> bool {
        fstat(&self.sandboxes.fd).is_ok_and(|stat| stat.st_nlink == 2)
            && !self.path.join(SNAPSHOTS).exists()
    }

    /// Has its file system give back the room of what was removed.
    pub(crate) fn make_room(&self) -> Result<()> {
        if btrfs::is_btrfs(&self.sandboxes.fd) {
            return btrfs::sync(&self.sandboxes.fd).map_err(Error::at("sync", &self.path));
        }
        Ok(())
    }

    /// Where images are kept.
    pub(crate) fn images(&self) -> Result<PathBuf> {
        let path = self.path.join(IMAGES);
        make_private(&path)?;
        Ok(path)
    }

    /// Where images are kept, if there was any.
    pub(crate) fn images_if_any(&self) -> Result<Option<PathBuf>> {
        let is_there = self.path.join(IMAGES).symlink_metadata().is_ok();
        is_there.then(|| self.images()).transpose()
    }

    /// Where sandboxes are kept.
    pub(crate) fn sandboxes(&self) -> &Shelf {
        &self.sandboxes
    }

    /// Where snapshots are kept.
    pub(crate) fn snapshots(&self) -> Result<Arc<Shelf>> {
        if let Some(shelf) = self.snapshots.get() {
            return Ok(Arc::clone(shelf));
        }
        let shelf = Arc::new(Shelf::open(self.path.join(SNAPSHOTS))?);
        Ok(Arc::clone(self.snapshots.get_or_init(|| shelf)))
    }

    /// Opens where snapshots are, if there were any.
    pub(crate) fn snapshots_if_any(&self) -> Result<Option<Arc<Shelf>>> {
        let is_there = self.path.join(SNAPSHOTS).symlink_metadata().is_ok();
        is_there.then(|| self.snapshots()).transpose()
    }

    /// Makes and locks the directory of a new sandbox.
    pub(crate) fn make_sandbox(&self, name: &str, layout: &Layout) -> Result<SandboxDirectory> {
        self.sandboxes.make(name, layout)
    }

    /// The same, under a name that is no sandbox's, for one that is to take the place of another.
    pub(crate) fn make_aside(&self, layout: &Layout) -> Result<SandboxDirectory> {
        self.make_sandbox(&aside_name(), layout)
    }
}

/// One pass through what may be collected.
#[derive(Debug)]
pub(crate) struct Pass {
    /// Until when it is waited for what is ending.
    ending: Deadline,
    /// What no one has locked, and of which it can't be seen whether it has ended.
    unseen: Vec<(Shelf, String)>,
}

impl Pass {
    pub(crate) fn begin() -> Self {
        Self { ending: Deadline::after(ENDING), unseen: Vec::new() }
    }

    /// Returns what has to be looked at again, when there was time for all in it to end.
    pub(crate) fn finish(self) -> Vec<(Shelf, String)> {
        if !self.unseen.is_empty() {
            std::thread::sleep(UNSEEN);
        }
        self.unseen
    }
}

/// Where snapshots are, in the state directory.
const SNAPSHOTS: &str = "snapshots";

/// Where images are, in the state directory.
pub(crate) const IMAGES: &str = "images";

/// What a sandbox has on disk.
#[derive(Debug)]
pub(crate) struct Layout {
    /// How many overlays have an upper and a work directory there.
    pub(crate) overlays: usize,
    /// The subvolume that its root begins as a snapshot of.
    pub(crate) subvolume: Option<Source>,
    /// The most that it may take, in bytes.
    pub(crate) size: Option<u64>,
    /// Whether that is the subvolume's.
    pub(crate) is_btrfs: bool,
}

/// A directory of directories, each of which is locked by who uses it.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
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

impl Shelf {
    fn open(path: PathBuf) -> Result<Self> {
        make_private(&path)?;
        let fd =
            nix::fcntl::open(&path, DIRECTORY, Mode::empty()).map_err(Error::at("open", &path))?;
        Ok(Self { path, fd: Arc::new(fd) })
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

    fn make(&self, name: &str, layout: &Layout) -> Result<SandboxDirectory> {
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
                    Claim::Free(left) => remove_later(Remains::new(None, Some(left)))?,
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
                sys::unlock(&directory.fd);
                Claim::Ending(init)
            }
            Some(Life::Elsewhere) => Claim::Unseen(directory),
        })
    }

    /// A directory here, that is locked.
    fn directory(&self, name: &str, overlays: usize, fd: OwnedFd) -> SandboxDirectory {
        let (path, parent) = (self.path(name), Arc::clone(&self.fd));
        SandboxDirectory { path, name: name.to_owned(), overlays, fd, parent }
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

    /// Removes what no one has locked, and of which a first pass could not see whether it has ended.
    pub(crate) fn collect_unseen(&self, name: &str) -> Result<bool> {
        match self.claim(name)? {
            Claim::Free(directory) | Claim::Unseen(directory) => Self::collect_claimed(directory),
            Claim::Ending(_) | Claim::No => Ok(false),
        }
    }

    fn collect_claimed(mut directory: SandboxDirectory) -> Result<bool> {
        if !is_aside(&directory.name) {
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

/// The directory of one sandbox.
#[derive(Debug)]
pub(crate) struct SandboxDirectory {
    path: PathBuf,
    name: String,
    /// How many overlays have their parts in it.
    overlays: usize,
    fd: OwnedFd,
    parent: Arc<OwnedFd>,
}

impl SandboxDirectory {
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn make_parts(&self, layout: &Layout) -> Result<()> {
        match layout {
            Layout { subvolume: Some(_), .. } => self.add_subvolume(layout)?,
            Layout { is_btrfs: false, size: Some(size), .. } => {
                quota::limit(self.as_fd(), *size)?;
            }
            _ => {}
        }
        for number in 0..layout.overlays {
            for part in [upper_name(number), format!("{number}.work")] {
                mkdirat(&self.fd, part.as_str(), Mode::from_bits_truncate(0o755))
                    .map_err(Error::at("mkdir", &self.path.join(part)))?;
            }
        }
        Ok(())
    }

    /// Makes the root, where that is a subvolume.
    pub(crate) fn add_subvolume(&self, layout: &Layout) -> Result<()> {
        let Some(base) = &layout.subvolume else { return Ok(()) };
        let root = self.path.join(SUBVOLUME);
        let base = openat(base.as_fd(), ".", DIRECTORY, Mode::empty())
            .map_err(Error::at("open the image of", &root))?;
        btrfs::snapshot(base.as_fd(), self.as_fd(), OsStr::new(SUBVOLUME))
            .map_err(Error::at("make a btrfs snapshot", &root))?;
        if let Some(size) = layout.size {
            let fd = openat(&self.fd, SUBVOLUME, DIRECTORY, Mode::empty())
                .map_err(Error::at("open", &root))?;
            btrfs::limit(&fd, size).map_err(|error| no_limit(&root, error))?;
        }
        Ok(())
    }

    /// Whether there are subvolumes in its root, where that is one.
    pub(crate) fn has_nested_subvolumes(&self) -> Result<bool> {
        let path = self.path.join(SUBVOLUME);
        match openat(&self.fd, SUBVOLUME, DIRECTORY, Mode::empty()) {
            Ok(root) => btrfs::has_nested(root).map_err(Error::at("look for subvolumes in", &path)),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(Error::at("open", &path)(errno)),
        }
    }

    /// Writes down which init it has, for who finds it without an owner.
    pub(crate) fn record_init(&self, init: &InitRecord) -> Result<()> {
        symlinkat(init.to_string().as_str(), &self.fd, INIT)
            .map_err(Error::at("symlink", &self.path.join(INIT)))
    }

    /// Which init it has, if that was written down.
    fn init(&self) -> Result<Option<InitRecord>> {
        match readlinkat(&self.fd, INIT) {
            Ok(text) => {
                let text = text.to_str().filter(|text| text.len() <= LONGEST);
                Ok(text.and_then(|text| text.parse().ok()))
            }
            // EINVAL: it is no link, so not from here.
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
            Err(errno) => Err(Error::at("readlink", &self.path.join(INIT))(errno)),
        }
    }

    /// Writes down where its cgroups are, for who removes it.
    pub(crate) fn record_cgroups(&self, paths: &[PathBuf]) -> Result<()> {
        let path = self.path.join(CGROUPS);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = openat(&self.fd, CGROUPS, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(Error::at("create", &path))?;
        let lines: Vec<_> = paths.iter().map(|path| path.as_os_str().as_bytes()).collect();
        std::fs::File::from(file).write_all(&lines.join(&0)).map_err(Error::at("write", &path))
    }

    /// Removes its cgroups, if it has any.
    pub(crate) fn remove_cgroups(&self) -> Result<()> {
        let path = self.path.join(CGROUPS);
        let file = match open_own_file(self.as_fd(), CGROUPS, LONGEST_CGROUPS) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::at("open", &path)(error)),
        };
        let mut text = Vec::new();
        file.take(LONGEST_CGROUPS).read_to_end(&mut text).map_err(Error::at("read", &path))?;
        let paths = text.split(|byte| *byte == 0).map(|path| OsStr::from_bytes(path).into());
        cgroup::remove_recorded(&paths.collect::<Vec<PathBuf>>())?;
        unlinkat(&self.fd, CGROUPS, UnlinkatFlags::NoRemoveDir).map_err(Error::at("unlink", &path))
    }

    /// Removes it.
    pub(crate) fn remove(&self) -> Result<()> {
        self.remove_cgroups()?;
        self.remove_what_overlays_make();
        // By name, since most have nothing more.
        let _ = unlinkat(&self.fd, INIT, UnlinkatFlags::NoRemoveDir);
        remove_contents(self.fd.as_fd()).map_err(Error::at("remove", &self.path))?;
        // A limit that stays is in no one's way.
        let _ = quota::release(self.as_fd());
        remove_empty(self.parent.as_fd(), OsStr::new(&self.name))
            .map_err(Error::at("remove", &self.path))
    }

    /// Removes what overlayfs leaves where nothing was written, by name: a third of the calls that
    /// it takes to look first. What is not so, or may not be entered, is left to the rest.
    fn remove_what_overlays_make(&self) {
        // That none of it is a link is seen once: nothing changes it any more.
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        for number in 0..self.overlays {
            let innermost = format!("{number}.work/work/incompat/volatile");
            if openat2(&self.fd, innermost.as_str(), how).is_err() {
                continue;
            }
            let file = format!("{number}.work/work/incompat/volatile/dirty");
            let _ = unlinkat(&self.fd, file.as_str(), UnlinkatFlags::NoRemoveDir);
            for directory in
                ["work/work/incompat/volatile", "work/work/incompat", "work/work", "work", "upper"]
            {
                let directory = format!("{number}.{directory}");
                let _ = unlinkat(&self.fd, directory.as_str(), UnlinkatFlags::RemoveDir);
            }
        }
    }

    /// Gives its name free. The lock stays, as does what is in it.
    pub(crate) fn move_aside(&mut self) -> Result<()> {
        if is_aside(&self.name) {
            return Ok(());
        }
        let name = aside_name();
        renameat(&self.parent, self.name.as_str(), &self.parent, name.as_str())
            .map_err(Error::at("rename", &self.path))?;
        self.path.set_file_name(&name);
        self.name = name;
        Ok(())
    }

    /// Moves it to another shelf, where its name is no one's or was reserved, and lets go of its
    /// lock. This takes no descriptor.
    pub(crate) fn move_to(&mut self, shelf: &Shelf, name: &str) -> Result<()> {
        // In the place of an empty directory at most.
        match renameat(&self.parent, self.name.as_str(), &shelf.fd, name) {
            Ok(()) => {}
            Err(Errno::EEXIST | Errno::ENOTEMPTY) => {
                return Err(Error::NameInUse { name: name.to_owned() });
            }
            Err(errno) => return Err(Error::at("rename", &self.path)(errno)),
        }
        // What ran in it has ended, and no one asks about that there.
        let _ = unlinkat(&self.fd, INIT, UnlinkatFlags::NoRemoveDir);
        // A child that is on its way to its program may have a copy of the descriptor.
        sys::unlock(&self.fd);
        self.path = shelf.path(name);
        name.clone_into(&mut self.name);
        Ok(())
    }

    /// Takes a name. `from` has it, and gets this one's in exchange, so that no other sandbox can
    /// take it in between; where there is none, no one has it.
    pub(crate) fn take_name(&mut self, name: &str, from: Option<&mut Self>) -> Result<()> {
        let rename = |flags| renameat2(&self.parent, self.name.as_str(), &self.parent, name, flags);
        let mut from = from;
        let renamed = match &from {
            Some(_) => match rename(RenameFlags::RENAME_EXCHANGE) {
                // An attempt that failed has left it without.
                Err(Errno::ENOENT) => {
                    from = None;
                    rename(RenameFlags::RENAME_NOREPLACE)
                }
                renamed => renamed,
            },
            None => rename(RenameFlags::RENAME_NOREPLACE),
        };
        match renamed {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Err(Error::NameInUse { name: name.to_owned() }),
            Err(errno) => return Err(Error::at("rename", &self.path)(errno)),
        }
        if let Some(from) = from {
            std::mem::swap(&mut self.path, &mut from.path);
            std::mem::swap(&mut self.name, &mut from.name);
        } else {
            self.path.set_file_name(name);
            name.clone_into(&mut self.name);
        }
        Ok(())
    }
}

fn no_limit(path: &Path, error: io::Error) -> Error {
    if btrfs::are_quotas_off(&error) {
        return Error::Unsupported {
            what: "a size of a btrfs upper".to_owned(),
            why: format!("no quotas on the file system of {path:?}"),
            fix: "enable them: btrfs quota enable".to_owned(),
        };
    }
    Error::at("limit the size of", path)(error)
}

/// A name that no sandbox has, since it has a dot in front. What has it is to be removed, at the
/// latest when its owner has ended.
fn aside_name() -> String {
    unique_name(ASIDE)
}

pub(crate) fn is_aside(name: &str) -> bool {
    name.starts_with(ASIDE)
}

/// What names of what is to be removed begin with.
const ASIDE: &str = ".removing-";

fn default_path() -> PathBuf {
    let variable =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(path) = variable("ADL_STATE_DIR") {
        return path;
    }
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return PathBuf::from("/var/lib/adl");
    }
    if let Some(path) = variable("XDG_STATE_HOME") {
        return path.join("adl");
    }
    match variable("HOME") {
        Some(home) if nix::unistd::access(&home, nix::unistd::AccessFlags::W_OK).is_ok() => {
            home.join(".local/state/adl")
        }
        _ => PathBuf::from(format!("/tmp/adl-{uid}")),
    }
}

/// Makes a directory that only its owner can enter, or makes sure that it is one: in /tmp, anyone
/// could have made it before us.
fn make_private(path: &Path) -> Result<()> {
    let make = || DirBuilder::new().mode(0o700).create(path);
    let metadata = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = match make() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let parent = path.parent().unwrap_or(Path::new("/"));
                    std::fs::create_dir_all(parent).map_err(Error::at("mkdir", parent))?;
                    make()
                }
                made => made,
            };
            match made {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::at("mkdir", path)(error)),
            }
            std::fs::symlink_metadata(path)
        }
        metadata => metadata,
    }
    .map_err(Error::at("stat", path))?;
    let own = metadata.uid() == nix::unistd::geteuid().as_raw();
    if metadata.is_dir() && own && metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(Error::invalid(
        "state directory",
        format!("{path:?} must be a directory of the calling user's that no one else can enter"),
    ))
}
