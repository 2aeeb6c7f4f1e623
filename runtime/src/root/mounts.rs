//! The mounts that a configuration names, checked and opened.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use adl_protocol::limits;
use nix::sys::stat::{SFlag, fstat};

use crate::config::host_path::HostPath;
use crate::config::mount::{Access, Mount, TmpfsOptions};
use crate::error::{Error, Result};
use crate::root::source::Source;
use crate::root::stack::Stack;
use crate::sys::id_ranges::Ids;

/// One mount of a root file system, checked and opened.
#[derive(Debug, Clone)]
pub(crate) enum OpenedMount {
    /// Files that the sandbox can change without the image or the volume being changed.
    Stack { stack: Stack, access: adl_protocol::Access },
    /// A file or directory as it is.
    Volume { at: PathBuf, source: Source, access: adl_protocol::Access },
    /// An empty file system in memory.
    Tmpfs { at: PathBuf, size: u64, options: TmpfsOptions },
    /// A device node.
    Device { at: PathBuf, source: Source },
}

impl OpenedMount {
    /// The path inside, without the slash in front; empty for the root itself.
    pub(crate) fn at(&self) -> &Path {
        match self {
            Self::Stack { stack, .. } => &stack.at,
            Self::Volume { at, .. } | Self::Tmpfs { at, .. } | Self::Device { at, .. } => at,
        }
    }

    pub(crate) fn access(&self) -> adl_protocol::Access {
        match self {
            Self::Stack { access, .. } | Self::Volume { access, .. } => *access,
            Self::Tmpfs { options, .. } if !options.can_write => adl_protocol::Access::ReadOnly,
            Self::Tmpfs { .. } | Self::Device { .. } => adl_protocol::Access::ReadWrite,
        }
    }

    pub(crate) fn stack(&self) -> Option<&Stack> {
        match self {
            Self::Stack { stack, .. } => Some(stack),
            _ => None,
        }
    }

    pub(crate) fn stack_mut(&mut self) -> Option<&mut Stack> {
        match self {
            Self::Stack { stack, .. } => Some(stack),
            _ => None,
        }
    }
}

/// Checks mounts and opens their sources; those that others may lie on come first. `saved` is what
/// a snapshot has kept of volumes that are copied on write.
pub(crate) fn open(mounts: &[Mount], saved: &[Stack]) -> Result<Vec<OpenedMount>> {
    let mut opened: Vec<OpenedMount> = Vec::new();
    for mount in mounts {
        let at = relative(mount.target())?;
        if opened.iter().any(|other| other.at() == at) {
            return Err(invalid(mount.target(), "two mounts on it"));
        }
        opened.push(open_at(at, mount, saved)?);
    }
    opened.sort_by_key(|mount| mount.at().components().count());
    Ok(opened)
}

fn open_at(at: PathBuf, mount: &Mount, saved: &[Stack]) -> Result<OpenedMount> {
    let access = |can_write| match can_write {
        true => adl_protocol::Access::ReadWrite,
        false => adl_protocol::Access::ReadOnly,
    };
    Ok(match mount {
        Mount::Volume { source, access: Access::CopyOnWrite, .. } => {
            let stack = Stack::of_volume(at, open_volume(source, Access::CopyOnWrite)?, saved)?;
            OpenedMount::Stack { stack, access: access(true) }
        }
        Mount::Volume { source, access: said, .. } => {
            let source = open_volume(source, *said)?;
            OpenedMount::Volume { at, source, access: access(*said == Access::ReadWrite) }
        }
        Mount::Tmpfs { size, options, .. } => {
            check_size("mount", *size)?;
            OpenedMount::Tmpfs { at, size: *size, options: *options }
        }
        Mount::Device { source, .. } => OpenedMount::Device { at, source: open_device(source)? },
    })
}

/// Whether init makes a tmpfs as it is to be; else the host has to.
pub(crate) fn is_usual(options: TmpfsOptions) -> bool {
    options == TmpfsOptions { can_write: options.can_write, ..TmpfsOptions::default() }
}

/// Refuses what a tmpfs can't be with these ids.
pub(crate) fn check_tmpfs(mounts: &[Mount], ids: Ids) -> Result<()> {
    for mount in mounts {
        let Mount::Tmpfs { target, options, .. } = mount else { continue };
        let TmpfsOptions { mode, uid, gid, .. } = *options;
        if mode > 0o7777 {
            return Err(invalid(target, &format!("a mode of {mode:o}: takes 0 to 7777")));
        }
        match ids {
            _ if is_usual(*options) => {}
            Ids::Range(length) if uid < length && gid < length => {}
            Ids::Range(length) => {
                return Err(invalid(target, &format!("an owner that is not below {length}")));
            }
            Ids::One { .. } => {
                return Err(Error::Unsupported {
                    what: format!("a tmpfs at {target:?} of another mode or owner, or noexec"),
                    why: "an ordinary user's has mode 1777, and programs there can be executed"
                        .to_owned(),
                    fix: "leave that out, or make the sandbox as root".to_owned(),
                });
            }
        }
    }
    Ok(())
}

/// Refuses a limit that would be none: to the kernel, 0 is, and so is what rounds up to 2^64.
pub(crate) fn check_size(what: &'static str, size: u64) -> Result<()> {
    const MOST: u64 = 1 << 62;
    if size == 0 || size > MOST {
        return Err(Error::invalid(what, format!("a size of {size} bytes: takes 1 to {MOST}")));
    }
    Ok(())
}

fn invalid(target: &Path, why: &str) -> Error {
    Error::invalid("mount", format!("{target:?}: {why}"))
}

fn relative(target: &Path) -> Result<PathBuf> {
    if !target.is_absolute() {
        return Err(invalid(target, "not an absolute path"));
    }
    if target.as_os_str().as_bytes().contains(&0) || target.as_os_str().len() > limits::MAX_PATH {
        return Err(invalid(target, "no path: a byte 0 in it, or too long"));
    }
    let mut at = PathBuf::new();
    for component in target.components() {
        match component {
            Component::Normal(name) => at.push(name),
            Component::ParentDir => return Err(invalid(target, "`..` in the path")),
            _ => {}
        }
    }
    // These, at the latest, are refused inside, where links are known.
    if at.as_os_str().is_empty() || at.starts_with("proc") || at == Path::new("dev") {
        return Err(invalid(target, "nothing can be mounted on `/`, `/proc` and `/dev`"));
    }
    Ok(at)
}

fn open_volume(path: &HostPath, access: Access) -> Result<Source> {
    let source = Source::open("open volume", path)?;
    let kind = kind_of(&source)?;
    if kind == SFlag::S_IFDIR || kind == SFlag::S_IFREG && access != Access::CopyOnWrite {
        return Ok(source);
    }
    // A socket least of all: read-only or not, what listens there could be talked to.
    let why = match access {
        Access::CopyOnWrite => "no directory, and only those can be copied on write",
        _ => "neither a directory nor a regular file",
    };
    Err(Error::invalid("volume", format!("{:?} is {why}", path.full_path())))
}

fn open_device(path: &HostPath) -> Result<Source> {
    let source = Source::open("open device", path)?;
    match kind_of(&source)? {
        SFlag::S_IFCHR | SFlag::S_IFBLK => Ok(source),
        _ => Err(Error::invalid("device", format!("{:?} is not a device", path.full_path()))),
    }
}

fn kind_of(source: &Source) -> Result<SFlag> {
    let stat = fstat(&source.fd).map_err(Error::at("stat", &source.path))?;
    Ok(SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Mount, open, relative};

    #[test]
    fn targets_are_absolute_and_leave_the_rest_of_the_sandbox_alone() {
        for wrong in [
            "",
            "a",
            "/",
            "//",
            "/.",
            "/a/../b",
            "/..",
            "/proc",
            "/proc/sys",
            "/dev",
            "/dev/",
            "/a\0",
        ] {
            assert!(relative(Path::new(wrong)).is_err(), "{wrong:?}");
        }
        for (target, at) in [("/a//b/", "a/b"), ("/./dev/shm", "dev/shm"), ("/devices", "devices")]
        {
            assert_eq!(relative(Path::new(target)).unwrap(), Path::new(at));
        }
    }

    #[test]
    fn what_lies_on_other_mounts_comes_after_them() {
        let mounts = ["/a/b/c", "/d", "/a"].map(|target| Mount::tmpfs(target, 4096));
        let opened = open(&mounts, &[]).unwrap();
        let places: Vec<_> = opened.iter().map(|mount| mount.at().to_str().unwrap()).collect();
        assert_eq!(places, ["d", "a", "a/b/c"]);
        assert!(open(&[Mount::tmpfs("/a", 1), Mount::tmpfs("/a/", 1)], &[]).is_err());
        assert!(open(&[Mount::tmpfs("/a", 0)], &[]).is_err());
    }
}
