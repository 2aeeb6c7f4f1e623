//! The directory of one sandbox: what lies in it, and its removal.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{
    OFlag, OpenHow, RenameFlags, ResolveFlag, openat, openat2, readlinkat, renameat, renameat2,
};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use crate::error::{Error, Result};
use crate::store::contents::{remove_contents, remove_empty};
use crate::store::init_record::{InitRecord, LONGEST};
use crate::store::name::{HOSTNAME, HOSTS, RESOLV_CONF, SUBVOLUME, upper_name};
use crate::store::own_file::open_own_file;
use crate::store::subordinate::as_owner;
use crate::store::{btrfs, quota};
use crate::sys::open::DIRECTORY;
use crate::sys::unique::unique_name;
use crate::{cgroup, sys};

/// Where in a sandbox's directory the paths of its cgroups are, with a NUL between them.
const CGROUPS: &str = "cgroups";

/// The most that may be there, in bytes: a path for each controller that there could be.
const LONGEST_CGROUPS: u64 = 256 << 10;

/// Which init a sandbox has: a symbolic link to no file, in its directory.
const INIT: &str = "init";

/// What a sandbox has on disk.
#[derive(Debug)]
pub(crate) struct Layout {
    /// How many overlays have an upper and a work directory there.
    pub(crate) overlays: usize,
    /// The subvolume that its root begins as a snapshot of.
    pub(crate) subvolume: Option<Arc<OwnedFd>>,
    /// The most that it may take, in bytes.
    pub(crate) size: Option<u64>,
    /// Whether that is the subvolume's.
    pub(crate) is_btrfs: bool,
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
    /// One that is locked, with that many overlays that have their parts in it.
    pub(super) fn locked(
        path: PathBuf,
        name: &str,
        overlays: usize,
        fd: OwnedFd,
        parent: Arc<OwnedFd>,
    ) -> Self {
        Self { path, name: name.to_owned(), overlays, fd, parent }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn make_parts(&self, layout: &Layout) -> Result<()> {
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
    pub(super) fn init(&self) -> Result<Option<InitRecord>> {
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
        self.remove_what_is_in_most();
        // By name, since most have nothing more.
        let _ = unlinkat(&self.fd, INIT, UnlinkatFlags::NoRemoveDir);
        as_owner(|| remove_contents(self.fd.as_fd()).map_err(Error::at("remove", &self.path)))?;
        // A limit that stays is in no one's way.
        let _ = quota::release(self.as_fd());
        remove_empty(self.parent.as_fd(), OsStr::new(&self.name))
            .map_err(Error::at("remove", &self.path))
    }

    /// Removes what overlayfs leaves where nothing was written, and the files of `/etc` that each
    /// sandbox has, by name: a third of the calls that it takes to look first. What is not so, or
    /// may not be entered, is left to the rest.
    fn remove_what_is_in_most(&self) {
        // That none of it is a link is seen once: nothing changes it any more.
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        if let Ok(etc) = openat2(&self.fd, "0.upper/etc", how) {
            for name in [HOSTS, HOSTNAME, RESOLV_CONF] {
                let _ = unlinkat(&etc, name, UnlinkatFlags::NoRemoveDir);
            }
            let _ = unlinkat(&self.fd, "0.upper/etc", UnlinkatFlags::RemoveDir);
        }
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

    /// Moves it to other directories, where its name is no one's or was reserved, and lets go of
    /// its lock. This takes no descriptor.
    pub(super) fn move_to(&mut self, to: BorrowedFd<'_>, path: PathBuf, name: &str) -> Result<()> {
        // In the place of an empty directory at most.
        match renameat(&self.parent, self.name.as_str(), to, name) {
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
        self.path = path;
        name.clone_into(&mut self.name);
        Ok(())
    }

    /// Takes a name. `from` has it, and gets this one's in exchange, so that no other sandbox can
    /// take it in between; where there is none, no one has it.
    pub(crate) fn take_name(&mut self, name: &str, from: Option<&mut Self>) -> Result<()> {
        let rename = |flags| renameat2(&self.parent, self.name.as_str(), &self.parent, name, flags);
        // What has another name has lost this one: who has it now is not to be touched.
        let mut from = from.filter(|from| from.name == name);
        let renamed = match &from {
            Some(_) => match rename(RenameFlags::RENAME_EXCHANGE) {
                // Someone has removed or moved it, and no one has the name: it is not to be given
                // up by the one that had it.
                Err(Errno::ENOENT) => {
                    if let Some(from) = from.take() {
                        from.name = aside_name();
                    }
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
pub(super) fn aside_name() -> String {
    unique_name(ASIDE)
}

pub(crate) fn is_aside(name: &str) -> bool {
    name.starts_with(ASIDE)
}

/// What names of what is to be removed begin with.
const ASIDE: &str = ".removing-";
