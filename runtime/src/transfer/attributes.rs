//! Extended attributes of what is unpacked and copied: which may be set, and how.

use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::path::Path;

use adl_protocol::{MAX_ATTRIBUTES, Strings};
use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;
use nix::unistd::geteuid;

use super::CopyOptions;
use crate::error::{Error, Result};
use crate::sys::{self};

/// Tells an overlay that what the layers below have in a directory is hidden. Overlays are mounted
/// with `userxattr`, by root's inits, too: init is in a user namespace. This is what they look at.
pub(crate) const OPAQUE: &[u8] = b"user.overlay.opaque";

/// What overlays have for themselves, in names of attributes.
const OF_OVERLAYS: &[&[u8]] = &[b"user.overlay.", b"trusted.overlay."];

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Whether an archive or a copy may set an attribute. What is left out is of overlays, and of the
/// host's security modules, whose labels are the host's word.
fn is_taken(name: &[u8]) -> bool {
    let is_known = name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || [&b"security.capability"[..], ACCESS_ACL, DEFAULT_ACL].contains(&name);
    is_known && !OF_OVERLAYS.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a copy takes an attribute along. Access control lists name owners, capabilities give
/// rights as set-id bits do, and root alone keeps its own.
pub(crate) fn is_copied(name: &[u8], options: &CopyOptions) -> bool {
    let may = match name {
        ACCESS_ACL | DEFAULT_ACL => options.owners,
        b"security.capability" => options.owners && options.set_ids,
        other => options.owners || other.starts_with(b"user."),
    };
    options.extended && may && is_taken(name)
}

/// Extended attributes: name and value of each.
pub(super) type Extended = Vec<(CString, Vec<u8>)>;

/// Attributes that have come for what comes next.
#[derive(Debug, Default)]
pub(super) struct Pending {
    all: Extended,
    size: usize,
}

impl Pending {
    /// Adds one that a copy takes along.
    ///
    /// # Errors
    /// [`Error::Protocol`] of more than anything has.
    pub(super) fn add(
        &mut self,
        name: Strings<'_>,
        value: &[u8],
        options: &CopyOptions,
    ) -> Result<()> {
        let why = "a bad extended attribute";
        let name = name.single().ok_or(Error::Protocol { why })?;
        self.size += name.to_bytes_with_nul().len() + value.len();
        if self.size > MAX_ATTRIBUTES {
            return Err(Error::Protocol { why });
        }
        if is_copied(name.to_bytes(), options) {
            self.all.push((name.to_owned(), value.to_owned()));
        }
        Ok(())
    }

    /// Those of what has come now.
    pub(super) fn take(&mut self) -> Extended {
        std::mem::take(self).all
    }
}

/// The attributes of a file or directory that a copy takes along.
pub(super) fn read(file: BorrowedFd<'_>, options: &CopyOptions) -> nix::Result<Extended> {
    let mut all = Extended::new();
    let mut size = 0;
    for name in sys::extended_attributes(file)? {
        if !is_copied(name.to_bytes(), options) {
            continue;
        }
        let mut buffer = vec![0; 64 << 10];
        // Gone, or not for everyone to read.
        let Ok(Some(value)) = sys::extended_attribute(file, &name, &mut buffer) else { continue };
        size += name.to_bytes_with_nul().len() + value.len();
        if size > MAX_ATTRIBUTES {
            break;
        }
        all.push((name, value.to_owned()));
    }
    Ok(all)
}

/// Whether what is made in a directory with this attribute gets a list of its own from it.
pub(crate) fn is_default_acl(name: &[u8]) -> bool {
    name == DEFAULT_ACL
}

/// Sets an attribute of a file or directory; `false` where it can't be or must not be set.
///
/// `squashes`: all owners became one, so a list of them makes no sense.
pub(crate) fn set(
    file: BorrowedFd<'_>,
    name: &[u8],
    value: &[u8],
    squashes: bool,
) -> nix::Result<bool> {
    if !is_taken(name) || squashes && (name == ACCESS_ACL || name == DEFAULT_ACL) {
        return Ok(false);
    }
    let Ok(name) = CString::new(name) else { return Ok(false) };
    match sys::set_extended_attribute(file, &name, value) {
        Ok(()) => Ok(true),
        // By who may not, on a file system that has none, and of what the kernel can't read.
        Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ERANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// How much room a disk has, in bytes, that is not full: more than the attributes of a file take.
const ROOM: u64 = 1 << 20;

/// For `map_err`, of an attribute that could not be set. `ENOSPC` is the kernel's word for a full
/// disk, and for more of them than a file may have: on ext4 what a block takes.
pub(crate) fn not_set(file: BorrowedFd<'_>, path: &Path) -> impl FnOnce(Errno) -> Error {
    move |errno| match errno {
        Errno::E2BIG => Error::Unsupported {
            what: format!("an extended attribute of {path:?}"),
            why: "it has more than the 65,536 bytes that Linux takes for one on any file system"
                .to_owned(),
            fix: "make it smaller, or leave it out, where the file comes from".to_owned(),
        },
        Errno::ENOSPC if has_room(file) => Error::Unsupported {
            what: format!("what {path:?} has of extended attributes"),
            why: "it is more than its file system keeps for one file, as ext4, which has a block \
                  of 4096 bytes for them; the disk is not full"
                .to_owned(),
            fix: "take a directory on xfs or btrfs, or on an ext4 with `tune2fs -O ea_inode`"
                .to_owned(),
        },
        errno => Error::at("setxattr", path)(errno),
    }
}

fn has_room(file: BorrowedFd<'_>) -> bool {
    let Ok(found) = fstatvfs(file) else { return false };
    // Root has what is kept for it, too: the machine's, not that of a user namespace.
    let is_root = geteuid().is_root()
        && std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| has_all_ids(&map));
    let blocks = if is_root { found.blocks_free() } else { found.blocks_available() };
    // Some have no number of files.
    let has_files = found.files() == 0 || found.files_free() > 0;
    has_files && blocks.saturating_mul(found.fragment_size()) >= ROOM
}

/// Whether a map of ids is that of the machine: each is itself.
fn has_all_ids(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Marks a directory as one that hides what the layers below have in it.
pub(crate) fn set_opaque(directory: BorrowedFd<'_>) -> nix::Result<()> {
    let name = CString::new(OPAQUE).map_err(|_| Errno::EINVAL)?;
    sys::set_extended_attribute(directory, &name, b"y")
}

/// Removes what a directory has from an earlier entry of the archive.
pub(crate) fn clear(directory: BorrowedFd<'_>) -> nix::Result<()> {
    for name in sys::extended_attributes(directory)? {
        if is_taken(name.to_bytes()) {
            remove(directory, &name)?;
        }
    }
    Ok(())
}

/// Removes the lists that something has got from the directory it was made in.
pub(crate) fn clear_acls(file: BorrowedFd<'_>) -> nix::Result<()> {
    remove(file, c"system.posix_acl_access")?;
    match remove(file, c"system.posix_acl_default") {
        // Only directories have one.
        Err(Errno::EACCES) => Ok(()),
        other => other,
    }
}

fn remove(file: BorrowedFd<'_>, name: &std::ffi::CStr) -> nix::Result<()> {
    match sys::remove_extended_attribute(file, name) {
        Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EINVAL) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::path::Path;

    use nix::errno::Errno;

    use super::{has_all_ids, not_set, set};

    #[test]
    fn an_attribute_that_no_file_system_takes_is_told_so() {
        let path = std::env::temp_dir().join(format!("adl-attribute-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        let errno = set(file.as_fd(), b"user.much", &[0; (64 << 10) + 1], false).unwrap_err();
        assert_eq!(errno, Errno::E2BIG);
        let told = not_set(file.as_fd(), Path::new("a"))(errno).to_string();
        assert!(told.contains("65,536") && told.contains("any file system"), "{told}");
        assert!(!told.contains("xfs") && !told.contains("full"), "{told}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn root_of_a_user_namespace_has_not_what_a_disk_keeps_for_root() {
        assert!(has_all_ids("         0          0 4294967295\n"));
        for map in [
            "         0       1000          1\n",
            "         0     100000      65536\n",
            "         0          0      65536\n",
            "         0          0          1\n         1     100000      65536\n",
            "",
        ] {
            assert!(!has_all_ids(map), "{map}");
        }
    }
}
