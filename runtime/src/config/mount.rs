//! What else is mounted in a sandbox: volumes, tmpfs, devices.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::host_path::HostPath;
use crate::error::Result;

/// Something that is mounted in a sandbox, on top of what its image has there.
///
/// A target is an absolute path inside without `..`. Symbolic links on the way lead where they
/// would lead a program inside, and what is missing of it is made, by the rights of root inside.
/// Nothing is mounted on `/`, in `/proc` or on `/dev`, whatever links lead there. Mounts are made
/// by the depth of their targets as written, so a mount below another comes after it.
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
    /// Owners are the same numbers inside and outside, as with images: a file that root inside
    /// makes in a volume that is read-write belongs to root outside. Of an ordinary user's volumes,
    /// what is the user's belongs to root inside.
    Volume {
        /// The path outside; where it is relative, to the working directory of the caller.
        source: HostPath,
        /// The path inside.
        #[serde(with = "crate::config::bytes")]
        target: PathBuf,
        /// What may be done with it.
        access: Access,
    },
    /// An empty file system in memory, without set-user-id rights and devices. By default anyone
    /// inside may write in it, and execute what is there.
    Tmpfs {
        /// The path inside.
        #[serde(with = "crate::config::bytes")]
        target: PathBuf,
        /// The most it may take, in bytes.
        size: u64,
        /// What it is like.
        #[serde(default)]
        options: TmpfsOptions,
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

/// What a tmpfs is like, as `Mount::Tmpfs` has it.
///
/// ```
/// use adl_runtime::{Mount, TmpfsOptions};
///
/// let options = TmpfsOptions { mode: 0o755, can_execute: false, ..TmpfsOptions::default() };
/// let run = Mount::Tmpfs { target: "/run".into(), size: 64 << 20, options };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TmpfsOptions {
    /// The mode of its topmost directory: 1777 by default. Where an ordinary user makes the
    /// sandbox, there can be no other, nor another owner, and programs there can be executed.
    pub mode: u32,
    /// The user whose directory that is; by default root.
    pub uid: u32,
    /// The group whose directory that is; by default root's.
    pub gid: u32,
    /// Whether programs there can be executed; by default they can.
    pub can_execute: bool,
    /// Whether it can be written to; by default it can.
    pub can_write: bool,
}

impl Default for TmpfsOptions {
    fn default() -> Self {
        Self { mode: 0o1777, uid: 0, gid: 0, can_execute: true, can_write: true }
    }
}

/// What may be done with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Reading; nothing else, whatever is mounted in it.
    ReadOnly,
    /// Reading and writing, by the rights that the files give.
    ReadWrite,
    /// Reading, and writing to a copy of the sandbox's own, which is gone with it and with a reset.
    /// For directories; what is mounted in them is not seen, and an ordinary user can't have one in
    /// which something is.
    CopyOnWrite,
}

impl Mount {
    /// See [`Mount::Volume`].
    pub fn volume(source: impl Into<HostPath>, target: impl Into<PathBuf>, access: Access) -> Self {
        Self::Volume { source: source.into(), target: target.into(), access }
    }

    /// See [`Mount::Tmpfs`]; with the default options.
    pub fn tmpfs(target: impl Into<PathBuf>, size: u64) -> Self {
        Self::Tmpfs { target: target.into(), size, options: TmpfsOptions::default() }
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
