//! What is kept on disk: the state directory of a user, and what lies in it.

pub(crate) mod btrfs;
pub(crate) mod collected;
pub(crate) mod contents;
pub(crate) mod directories;
pub(crate) mod directory;
pub(crate) mod ids;
pub(crate) mod init_record;
#[cfg(test)]
mod loop_disk;
pub(crate) mod name;
pub(crate) mod once;
pub(crate) mod own_file;
pub(crate) mod quota;
pub(crate) mod remover;
pub(crate) mod subordinate;
pub(crate) mod uses;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nix::sys::stat::fstat;

use crate::error::{Error, Result, found};
use crate::store::directories::Directories;
use crate::store::directory::Layout;
use crate::store::directory::SandboxDirectory;
use crate::store::directory::aside_name;
use crate::store::own_file::make_private;
use crate::sys;

/// The directory of all sandboxes of a user.
#[derive(Debug, Clone)]
pub(crate) struct State {
    path: PathBuf,
    sandboxes: Directories,
    /// Once they were asked for.
    snapshots: OnceLock<Arc<Directories>>,
}

impl State {
    /// Opens the state directory, making it if need be.
    pub(crate) fn open(configured: Option<&Path>) -> Result<Self> {
        let path = match configured {
            Some(path) => path.to_owned(),
            None => default_path(),
        };
        // The current directory is no one's choice of it.
        if path.as_os_str().is_empty() {
            const WHY: &str = "its name is empty: name a directory, or, for the default, leave out \
                               ADL_STATE_DIR";
            return Err(Error::invalid("state directory", WHY));
        }
        let path = std::path::absolute(&path).map_err(Error::at("getcwd for", &path))?;
        make_private(&path).map_err(|error| no_state_directory(&path, error))?;
        let sandboxes = Directories::open(path.join("sandboxes"))?;
        // An ext4 without a journal avoids inode numbers that were free for less than a minute, and
        // looks at each. Where one sandbox had a hundred thousand files, the next would wait for
        // that with every file it makes.
        sys::spread_entries(sandboxes.as_fd());
        Ok(Self { path, sandboxes, snapshots: OnceLock::new() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is no sandbox, where one can tell at a glance: in most file systems, a
    /// directory without another in it has two links.
    pub(crate) fn is_surely_empty(&self) -> bool {
        fstat(self.sandboxes.as_fd()).is_ok_and(|stat| stat.st_nlink == 2)
            && self.path.join(SNAPSHOTS).try_exists().is_ok_and(|is_there| !is_there)
    }

    /// Whether its file system gives back the room of what was removed a while later.
    pub(crate) fn gives_room_back_late(&self) -> bool {
        btrfs::is_btrfs(self.sandboxes.as_fd())
    }

    /// Has its file system give back the room of what was removed.
    pub(crate) fn make_room(&self) -> Result<()> {
        if btrfs::is_btrfs(self.sandboxes.as_fd()) {
            return btrfs::sync(self.sandboxes.as_fd()).map_err(Error::at("sync", &self.path));
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
    pub(crate) fn sandboxes(&self) -> &Directories {
        &self.sandboxes
    }

    /// Where snapshots are kept.
    pub(crate) fn snapshots(&self) -> Result<Arc<Directories>> {
        if let Some(directories) = self.snapshots.get() {
            return Ok(Arc::clone(directories));
        }
        let directories = Arc::new(Directories::open(self.path.join(SNAPSHOTS))?);
        Ok(Arc::clone(self.snapshots.get_or_init(|| directories)))
    }

    /// Opens where snapshots are, if there were any.
    pub(crate) fn snapshots_if_any(&self) -> Result<Option<Arc<Directories>>> {
        let is_there = self.path.join(SNAPSHOTS).symlink_metadata().is_ok();
        is_there.then(|| self.snapshots()).transpose()
    }

    /// Makes and locks the directory of a new sandbox.
    pub(crate) fn make_sandbox(&self, name: &str, layout: &Layout) -> Result<SandboxDirectory> {
        self.sandboxes.make(name, layout)
    }

    /// Makes and locks a directory under a name that is no sandbox's, for one that is to take the
    /// place of another.
    pub(crate) fn make_aside(&self, layout: &Layout) -> Result<SandboxDirectory> {
        self.make_sandbox(&aside_name(), layout)
    }
}

/// Says what to do where the caller may not have one there.
fn no_state_directory(path: &Path, error: Error) -> Error {
    use std::io::ErrorKind::{NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    match error {
        Error::Io { operation, source, .. }
            if matches!(source.kind(), NotADirectory | PermissionDenied | ReadOnlyFilesystem) =>
        {
            Error::Unsupported {
                what: format!("the state directory {path:?}"),
                why: format!("{operation}: {source}"),
                fix: "set ADL_STATE_DIR to a directory in which the calling user may write"
                    .to_owned(),
            }
        }
        error => error,
    }
}

/// Where snapshots are, in the state directory.
const SNAPSHOTS: &str = "snapshots";

/// Where images are, in the state directory.
pub(crate) const IMAGES: &str = "images";

fn may_write(path: &Path) -> std::io::Result<()> {
    nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).map_err(Into::into)
}

fn default_path() -> PathBuf {
    // As a path that a caller names, it may be relative.
    if let Some(path) = std::env::var_os("ADL_STATE_DIR") {
        return path.into();
    }
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return PathBuf::from("/var/lib/adl");
    }
    // As the XDG specification has it, a relative path counts for nothing.
    let variable =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(path) = variable("XDG_STATE_HOME") {
        return path.join("adl");
    }
    match variable("HOME") {
        // Where that can't be told now, what fails there is told.
        Some(home) if !matches!(found(may_write(&home)), Ok(None)) => home.join(".local/state/adl"),
        _ => PathBuf::from(format!("/tmp/adl-{uid}")),
    }
}
