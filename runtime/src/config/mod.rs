//! What a sandbox is made of, as plain data.

pub(crate) mod bytes;
pub(crate) mod capabilities;
pub(crate) mod defaults;
pub(crate) mod host_path;
pub(crate) mod image;
pub(crate) mod limits;
pub(crate) mod mount;

pub(crate) mod name;
pub(crate) mod ports;
pub(crate) mod sysctl;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::capabilities::Capabilities;
use crate::config::defaults::Defaults;
use crate::config::host_path::HostPath;
use crate::config::image::Image;
use crate::config::limits::Limits;
use crate::config::mount::Mount;
use crate::config::ports::{Forward, Publish};
use crate::error::Result;

/// How a sandbox is built. Every field has a default; the default of all of them is the host's
/// programs, nothing of its data, no network, and every protection on.
///
/// ```no_run
/// use adl_runtime::{Config, Image, Network, Sandbox};
///
/// let sandbox = Sandbox::create(Config {
///     image: Image::directory("/srv/debian"),
///     network: Network::Host,
///     ..Config::default()
/// })?;
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// What the root file system looks like at first.
    pub image: Image,
    /// The name, unique in the state directory: letters, digits, `.`, `_` and `-`, at most 64. It
    /// does not begin with `.` or `-`. By default a fresh one.
    pub name: Option<String>,
    /// What `uname -n` prints inside; by default the name. By the same rules.
    pub hostname: Option<String>,
    /// Which network it sees.
    pub network: Network,
    /// Ports of the host's that lead to servers in it. A reset keeps them: who comes while it is
    /// reset waits, and comes to the next instance. They are no part of what a snapshot keeps, as
    /// those of `forward`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Publish>,
    /// Ports in it that lead to servers of the host's, from before anything runs in it. A reset
    /// keeps them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forward: Vec<Forward>,
    /// Which files in `/etc` are its own.
    pub etc_files: EtcFiles,
    /// Whether it has a `/sys`.
    pub sysfs: Sysfs,
    /// The most that may be in `/dev/shm` and the rest of `/dev`, in bytes; 64 MiB by default.
    pub shm_size: Option<u64>,
    /// Kernel parameters of its own namespaces, as names and values of `sysctl(8)`: `fs.mqueue.*`,
    /// `kernel.sem`, the `kernel.msg*` and `kernel.shm*` of `sysvipc(7)` and, with a network of its
    /// own, `net.*`. Those of messages and shared memory need Linux 6.9 or later. Of two with one
    /// name the last counts. By default, any user of its own network may bind any port and `ping`
    /// (`net.ipv4.ip_unprivileged_port_start`, `net.ipv4.ping_group_range`).
    pub sysctls: Vec<(String, String)>,
    /// Where its writes go.
    pub upper: Upper,
    /// Whether its root file system can be written to.
    pub root: RootAccess,
    /// Volumes, tmpfs and devices.
    pub mounts: Vec<Mount>,
    /// The capabilities of jobs that run as root.
    pub capabilities: Capabilities,
    /// Which system calls there are.
    pub seccomp: Seccomp,
    /// What its jobs may use.
    pub limits: Limits,
    /// What its commands and file calls start from.
    pub defaults: Defaults,
    /// How many user and group ids there are inside, from 0 on: 65,536 by default, and at least.
    /// Files whose owners are above appear as those of `nobody` (65534), and no one inside can
    /// change them.
    ///
    /// Where an ordinary user makes the sandbox there is one id, by default: root's, or that of
    /// [`Defaults::user`] where that is a number. A user with subordinate ids (`subuid(5)`,
    /// `newuidmap(1)`, Debian's package `uidmap`) may ask for as many as these are, and one: root
    /// inside is the calling user then, and the others are the subordinate ids. To map them takes
    /// two programs more, some milliseconds.
    pub ids: Option<u32>,
    /// Whether a second sandbox is made beside it, by a thread, which the next reset puts in its
    /// place: [`Sandbox::reset`](crate::Sandbox::reset) then takes a fraction of its time. Where it
    /// is not ready yet, a reset does without. It takes memory, descriptors and processes as
    /// another sandbox does, and its own cgroups, but the same ids. It is no part of what a
    /// snapshot keeps.
    pub spare: bool,
    /// The cgroup to make those of the sandbox in, as `/proc/self/cgroup` tells paths; it has to be
    /// there, in each hierarchy that is used, and with version 2 no process may be in it. By
    /// default the caller's own or, with version 2, the nearest above it that was delegated to the
    /// caller and hands the controllers on.
    pub cgroup_parent: Option<PathBuf>,
    /// Where sandboxes keep what must be on disk. It is made, with mode 0700, where it is missing;
    /// one that is there has to belong to the caller and be closed to all others. By default
    /// `$ADL_STATE_DIR`; else, for root, `/var/lib/adl`; else `$XDG_STATE_HOME/adl`,
    /// `$HOME/.local/state/adl` or, for a user who can't write to a home, `/tmp/adl-UID`. It is no
    /// part of what a snapshot keeps.
    #[serde(skip)]
    pub state_directory: Option<PathBuf>,
}

/// Which network a sandbox sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Network {
    /// One of its own, with a loopback device and nothing else.
    #[default]
    None,
    /// The host's, with all that the calling program could reach.
    Host,
    /// One that is there already, and is not the caller's: a path of a network namespace, as
    /// `/run/netns/NAME` or `/proc/PID/ns/net`. It stays as it is, its loopback device too; no one
    /// in the sandbox can configure it. Its addresses, ports and abstract Unix sockets are shared
    /// with all who are in it.
    ///
    /// It is opened once by [`Sandbox::create`](crate::Sandbox::create): resets are in the same one,
    /// whatever the path leads to by then. An ordinary user can join those of user namespaces of
    /// its own; see `docs/network.md`.
    Join(HostPath),
}

impl Network {
    /// See [`Network::Join`].
    pub fn join(path: impl Into<HostPath>) -> Self {
        Self::Join(path.into())
    }

    pub(crate) fn make_absolute(&mut self) -> Result<()> {
        if let Self::Join(path) = self {
            *path = path.absolute()?;
        }
        Ok(())
    }
}

/// Which files in `/etc` a sandbox has of its own: `hosts`, with localhost and its own name;
/// `hostname`; and, with a network that is not its own, `resolv.conf`, with what the host's has.
/// `hosts` then has what the host's has, too.
///
/// They are files like any other: programs can write to them, replace and remove them. They are
/// made anew by a reset, a snapshot and a fork, and are no part of what
/// [`Sandbox::changes`](crate::Sandbox::changes), a snapshot and an export tell of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum EtcFiles {
    /// Those that the image has not, or has empty. What an image's own say, as the name of the
    /// machine that it was made on in `hostname`, and whom that asked in `resolv.conf`, stays.
    #[default]
    Missing,
    /// All of them, whatever the image has.
    All,
    /// None.
    None,
}

/// Whether a sandbox has a `/sys`, which is read-only: processors, memory nodes, huge pages and,
/// where that is possible, the devices of its network, not of one that it joins; with limits, its
/// own cgroup below `/sys/fs/cgroup`, from which runtimes learn what memory and CPU time they have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Sysfs {
    /// Where it has a cgroup: with [`Config::limits`], of which `accounting` is one, with
    /// [`Config::cgroup_parent`], or with a CPU time for all commands ([`Defaults::cpu_time`]).
    #[default]
    WithLimits,
    /// In any case.
    Always,
    /// In no case.
    Never,
}

/// Where the writes of a sandbox go. They are gone when it is deleted.
///
/// A size is that of content and what the file system keeps beside it. Where it is reached, writing
/// fails inside with `ENOSPC` or `EDQUOT`, and nothing else is hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Upper {
    /// A directory on disk, below the state directory.
    Disk {
        /// The most it may take, in bytes, by a project quota (ext4 and xfs, mounted with
        /// `prjquota`). By default all that there is.
        size: Option<u64>,
    },
    /// Memory.
    Memory {
        /// The most it may take, in bytes.
        size: u64,
    },
    /// A btrfs subvolume below the state directory, which has to be on btrfs: a snapshot of one
    /// that is made once of the image, so that the sandbox works on btrfs itself. A directory that
    /// is a subvolume there is taken as it is; of another one a copy is made, which does not follow
    /// changes below it. What of a host image is in `/usr` lies in an overlay all the same.
    /// Programs inside can make subvolumes, unless there is a size, but no snapshot of the sandbox
    /// takes them along.
    Btrfs {
        /// The most it may take beside what it shares with the image, in bytes, by a quota group
        /// (`btrfs quota enable`). By default all that there is.
        size: Option<u64>,
    },
}

impl Default for Upper {
    fn default() -> Self {
        Self::Disk { size: None }
    }
}

/// Whether the root file system of a sandbox can be written to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootAccess {
    /// As far as its modes allow.
    #[default]
    ReadWrite,
    /// No one can write to the root; what is mounted in it may be writable.
    ReadOnly,
}

/// Which system calls the programs in a sandbox may make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Seccomp {
    /// Those that ordinary programs use, and those that [`Config::capabilities`] bring; see
    /// `docs/seccomp.md`.
    #[default]
    Default,
    /// All. Hostile code then reaches every corner of the kernel.
    Unconfined,
}
