//! What else is mounted in a sandbox: volumes, tmpfs, devices.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use adl_protocol::limits;
use nix::sys::stat::{SFlag, fstat};
use serde::{Deserialize, Serialize};

use crate::config::host_path::HostPath;
use crate::error::{Error, Result};
use crate::root::source::Source;

/// Something that is mounted in a sandbox, on top of what its image has there.
///
/// A target is an absolute path inside without `..`. Symbolic links on the way lead where they
/// would lead a program inside, and what is missing of it is made, by the rights of root inside.
/// Nothing is mounted on `/`, in `/proc` or on `/dev`, whatever links lead there. Mounts on other
/// mounts, by the names as they are written, come after those.
///
/// ```no_run
/// use adl_runtime::{Access, Config, Mount, Sandbox};
///
/// let sandbox = Sandbox::create(Config {
///     mounts: vec![
///         Mount::volume("/srv/datasets", "/data", Access::ReadOnly),
///         Mount::tmpfs("/scratch", 64 << 20),
///     ],
///     ..Config::default()
/// })?;
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Mount {
    /// A directory or a regular file of the host, with all that is mounted below it, without
    /// set-user-id rights and devices. It is opened once, when the sandbox is created: what takes
    /// its name afterwards is not in it.
    ///
    /// Owners are the same numbers inside and outside, as with images: a file that root inside makes
    /// in a volume that is read-write belongs to root outside. Of an ordinary user's volumes, what is
    /// the user's belongs to root inside.
    Volume {
        /// The path outside; where it is relative, to the working directory of the caller.
        source: HostPath,
        /// The path inside.
        #[serde(with = "crate::config::bytes")]
        target: PathBuf,
        /// What may be done with it.
        access: Access,
    },
    /// An empty file system in memory, in which anyone inside may write.
    Tmpfs {
        /// The path inside.
        #[serde(with = "crate::config::bytes")]
        target: PathBuf,
        /// The most it may take, in bytes.
        size: u64,
    },
    /// A device node of the host, and what can be done with the device. Where root makes the
    /// sandbox, it belongs to root inside; else it has its owner's mode.
    Device {
        /// The path outside.
        source: HostPath,
        /// The path inside.
        #[serde(with = "crate::config::bytes")]
        target: PathBuf,
    },
}

/// What may be done with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Reading; nothing else, whatever is mounted in it.
    ReadOnly,
    /// Reading and writing, by the rights that the files give.
    ReadWrite,
    /// Reading, and writing to a copy of the sandbox's own, which is gone with it and with a reset. For
    /// directories; what is mounted in them is not seen, and an ordinary user can't have one in which
    /// something is.
    CopyOnWrite,
}

impl Mount {
    /// See [`Mount::Volume`].
    pub fn volume(source: impl Into<HostPath>, target: impl Into<PathBuf>, access: Access) -> Self {
        Self::Volume { source: source.into(), target: target.into(), access }
    }

    /// See [`Mount::Tmpfs`].
    pub fn tmpfs(target: impl Into<PathBuf>, size: u64) -> Self {
        Self::Tmpfs { target: target.into(), size }
    }

    /// See [`Mount::Device`]; the path is the same on both sides.
    pub fn device(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self::Device { source: HostPath::from(&path), target: path }
    }

    pub(crate) fn make_absolute(&mut self) -> Result<()> {
        if let Self::Volume { source, .. } | Self::Device { source, .. } = self {
            *source = source.absolute()?;
        }
        Ok(())
    }

    /// The path inside.
    pub fn target(&self) -> &Path {
        match self {
            Self::Volume { target, .. }
            | Self::Tmpfs { target, .. }
            | Self::Device { target, .. } => target,
        }
    }
}

/// A mount that was checked and opened.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    /// The path inside, without the slash in front.
    pub(crate) at: PathBuf,
    pub(crate) what: OpenedWhat,
}

#[derive(Debug, Clone)]
pub(crate) enum OpenedWhat {
    Volume { source: Source, access: Access },
    Tmpfs { size: u64 },
    Device(Source),
}

/// Checks mounts and opens their sources; those that others may lie on come first.
pub(crate) fn open(mounts: &[Mount]) -> Result<Vec<Opened>> {
    let mut opened = Vec::new();
    for mount in mounts {
        let at = relative(mount.target())?;
        if opened.iter().any(|other: &Opened| other.at == at) {
            return Err(invalid(mount.target(), "two mounts on it"));
        }
        let what = match mount {
            Mount::Volume { source, access, .. } => {
                OpenedWhat::Volume { source: open_volume(source, *access)?, access: *access }
            }
            Mount::Tmpfs { size, .. } => {
                check_size("mount", *size)?;
                OpenedWhat::Tmpfs { size: *size }
            }
            Mount::Device { source, .. } => OpenedWhat::Device(open_device(source)?),
        };
        opened.push(Opened { at, what });
    }
    opened.sort_by_key(|mount| mount.at.components().count());
    Ok(opened)
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
        _ => Err(Error::invalid("device", format!("{:?} is none", path.full_path()))),
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
        let opened = open(&mounts).unwrap();
        let places: Vec<_> = opened.iter().map(|mount| mount.at.to_str().unwrap()).collect();
        assert_eq!(places, ["d", "a", "a/b/c"]);
        assert!(open(&[Mount::tmpfs("/a", 1), Mount::tmpfs("/a/", 1)]).is_err());
        assert!(open(&[Mount::tmpfs("/a", 0)]).is_err());
    }
}
