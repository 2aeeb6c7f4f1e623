//! Files that adl has written, in directories of its own.

use std::fs::DirBuilder;
use std::io::{self};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};

use crate::error::{Error, Result};

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

/// Refuses what someone else than the calling user and root could have written, or what is of
/// another kind.
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

/// Makes a directory that only its owner can enter, or makes sure that it is one: in /tmp, anyone
/// could have made it before us.
pub(crate) fn make_private(path: &Path) -> Result<()> {
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
        format!(
            "{path:?} has to be a directory that belongs to the calling user and that no one else can \
             enter: chmod 700 it, or name another"
        ),
    ))
}
