//! The requests that turn a bare process in fresh namespaces into a sandbox.

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::ffi::CStr;

use serde::{Deserialize, Serialize};

use crate::Strings;

/// What init needs to begin: all that can be told before there is a directory of the sandbox.
///
/// Descriptors that come with it, in order: a pidfd of the host's process, whose end is that of the
/// sandbox even where a fork of it holds the control socket; with [`IdMaps::Written`] the file
/// system of `/dev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup<'a> {
    /// [`crate::VERSION`] as the host was built with.
    pub version: u32,
    /// Which ids exist in the user namespace.
    pub identities: Identities,
    /// Who maps them.
    #[serde(borrow)]
    pub id_maps: IdMaps<'a>,
    /// What its mount namespace was copied from.
    pub origin: Origin,
    /// Whether the network namespace is new, so that its loopback device must be brought up.
    pub own_network: bool,
    /// Paths below `/proc` that are covered, so that they can't be read; a directory ends in `/`.
    #[serde(borrow)]
    pub masked: Strings<'a>,
    /// Paths below `/proc` that are made read-only.
    #[serde(borrow)]
    pub read_only: Strings<'a>,
    /// Kernel parameters of its namespaces: in turn a path below `/proc/sys` and what is written
    /// there.
    #[serde(borrow)]
    pub sysctls: Strings<'a>,
    /// The most that may be in `/dev` and `/dev/shm`, in bytes, where init makes that.
    pub dev_size: u64,
    /// Whether there is a `/sys`.
    pub sys: bool,
    /// Whether [`crate::Request::Cgroups`] comes, with what is in `/sys/fs/cgroup`.
    pub cgroups: bool,
    /// Whether the calls of jobs are filtered, so that none looks at mounts but at those it can reach.
    pub is_filtered: bool,
    /// The capabilities that a job may have: bit `n` is capability number `n`.
    pub capabilities: u64,
    /// Programs for `seccomp(2)`, as arrays of `struct sock_filter`, in the order of install.
    #[serde(borrow)]
    pub filters: Vec<&'a [u8]>,
    /// What a change of `RLIMIT_CORE` carries as the fifth argument of `prlimit(2)`, which the
    /// kernel ignores, so that the filters let it pass. It is random, and no guest may learn it.
    pub core_key: u64,
}

/// What init needs to go on: the root file system.
///
/// Descriptors that come with it, in order: the state directory if [`Upper::Disk`] names
/// [`Layer::Descriptor`], then each layer that is one, mount by mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounts<'a> {
    /// What `uname -n` prints inside.
    #[serde(borrow)]
    pub hostname: &'a [u8],
    /// Where writes go.
    #[serde(borrow)]
    pub upper: Upper<'a>,
    /// What the root file system is put together from, in this order. The first is the root itself;
    /// the others come when `/proc` and `/dev` are there.
    #[serde(borrow)]
    pub mounts: Vec<Mount<'a>>,
    /// The files of the sandbox's own in `/etc`: in turn a name and what is in it.
    #[serde(borrow)]
    pub etc: Strings<'a>,
    /// Mode, owner and group of `/etc`, which are those of the image's.
    pub etc_attributes: [u32; 3],
}

/// The cgroups of a sandbox.
///
/// Descriptors that come with it, in order: one for each mount that is a [`Layer::Descriptor`], one
/// for each of the roots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroups<'a> {
    /// What is in `/sys/fs/cgroup`, read-only: each a [`What::Volume`] at the names of its
    /// controllers with a comma between them, or at none.
    #[serde(borrow)]
    pub mounts: Vec<Mount<'a>>,
    /// How many cgroups are the roots of what jobs see: of each came a file by which a process of
    /// one thread joins it. None where each job has roots of its own
    /// ([`crate::Spawn::cgroup_namespace`]).
    pub roots: u8,
}

/// Who writes `uid_map` and `gid_map` of the user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdMaps<'a> {
    /// The host, which is root, has. It makes `/dev` and the layers, too.
    Written,
    /// Init, with this: the host is an ordinary user's and may not map others.
    Own(#[serde(borrow)] [&'a [u8]; 2]),
    /// The host, by newuidmap(1) and newgidmap(1), when init has said [`crate::Reply::Unmapped`].
    /// [`crate::Request::Mapped`] comes next.
    ByHelpers,
}

/// What init's mount namespace was copied from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// The caller's: init leaves it by `pivot_root(2)`.
    Caller,
    /// One with nothing of the host's in it, but a read-only root with `/dev/null`, `/scratch`, a
    /// procfs of no living process on `/proc`, and a sysfs on `/sys` where [`Setup::sys`] needs one.
    /// With [`IdMaps::Own`] it has all of [`DEVICE_NODES`]. No [`Layer::Path`] leads anywhere.
    Empty,
}

/// The ids that there are in the user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identities {
    /// 65,536 ids from 0 on, or more.
    Range,
    /// One user and one group, which outside are the calling user's; `setgroups(2)` is denied.
    Single {
        /// The user id.
        uid: u32,
        /// The group id.
        gid: u32,
    },
}

/// The writable side of the overlays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upper<'a> {
    /// A directory of the host, in which overlay `n` has `n.upper` and `n.work`.
    Disk(#[serde(borrow)] Layer<'a>),
    /// A tmpfs.
    Memory {
        /// Its size limit, in bytes.
        size: u64,
    },
}

/// One mount of the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount<'a> {
    /// Where: a path below the root, without a slash in front; empty for the root itself. Links on
    /// the way lead where they would lead inside, and what is missing is made.
    #[serde(borrow)]
    pub at: &'a [u8],
    /// Whether it can be written to, once all mounts are made.
    pub access: Access,
    /// What is mounted.
    #[serde(borrow)]
    pub what: What<'a>,
}

/// Whether something can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// As far as its modes allow.
    ReadWrite,
    /// By no one.
    ReadOnly,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What<'a> {
    /// An overlay on read-only layers, the topmost first. The first overlay has the upper number
    /// 0, and so on.
    Overlay(#[serde(borrow)] Vec<Layer<'a>>),
    /// A directory or file of the host, with all that is mounted below it.
    Volume(#[serde(borrow)] Layer<'a>),
    /// A device node of the host; as a descriptor with [`Identities::Range`], a file system with
    /// one, called [`DEVICE`].
    Device(#[serde(borrow)] Layer<'a>),
    /// A tmpfs.
    Tmpfs {
        /// Its size limit, in bytes.
        size: u64,
    },
}

/// The name of the node in the file system of a [`What::Device`].
pub const DEVICE: &str = "device";

/// A device node that every sandbox has in `/dev`, which anyone inside may read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceNode {
    /// Its name there, and on the host.
    pub name: &'static CStr,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
}

/// The device nodes of every sandbox. None of them reaches hardware.
pub const DEVICE_NODES: [DeviceNode; 6] = [
    DeviceNode { name: c"null", major: 1, minor: 3 },
    DeviceNode { name: c"zero", major: 1, minor: 5 },
    DeviceNode { name: c"full", major: 1, minor: 7 },
    DeviceNode { name: c"random", major: 1, minor: 8 },
    DeviceNode { name: c"urandom", major: 1, minor: 9 },
    DeviceNode { name: c"tty", major: 5, minor: 0 },
];

/// The most that may be in `/dev` and `/dev/shm`, in bytes, unless the caller says otherwise.
pub const DEV_SIZE: u64 = 64 << 20;

/// The most files that may be there. Each takes a KiB of the kernel's memory, which no size counts.
pub const DEV_INODES: &CStr = c"16384";

/// A directory of the host; of a volume and a device, a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layer<'a> {
    /// A detached mount that comes as a descriptor: made with the host's authority, or in a mount
    /// namespace that belongs to a user without privilege.
    Descriptor,
    /// A path that init opens with its own: such a user can't make a detached mount outside. init
    /// refuses if another inode has taken its place since the host looked.
    Path {
        /// The absolute path, without its NUL.
        #[serde(borrow)]
        path: Cow<'a, [u8]>,
        /// `st_dev` of what the host checked.
        device: u64,
        /// `st_ino` of what the host checked.
        inode: u64,
    },
}

/// A step of set-up that failed, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupFailure<'a> {
    /// Which one.
    pub step: Step,
    /// The kernel's error number.
    pub errno: i32,
    /// What it was done to, if that says more: a path inside or outside, without its NUL.
    #[serde(borrow)]
    pub path: &'a [u8],
}

/// The steps of set-up. `run` of init has the order in which they happen; some come twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Step {
    /// Read the request.
    Protocol,
    /// Become root of the user namespace.
    Identity,
    /// Set the host name.
    Hostname,
    /// Bring the loopback device up.
    Loopback,
    /// Cut the mount namespace off from the host's.
    Propagation,
    /// Mount the file system that the layers are gathered on.
    Scratch,
    /// Attach a read-only layer.
    Layer,
    /// Attach or mount the writable layer.
    Upper,
    /// Mount an overlay.
    Overlay,
    /// Make the sandbox's own files in `/etc`.
    Etc,
    /// Mount `/proc`.
    Proc,
    /// Set a kernel parameter.
    Sysctl,
    /// Cover a path below `/proc`, or make it read-only.
    Mask,
    /// Make `/dev`.
    Dev,
    /// Make `/sys`.
    Sys,
    /// Put a volume, a tmpfs or a device in its place.
    Mount,
    /// Make the assembled tree the root, and let go of the host's.
    Pivot,
    /// Set init's own limits.
    Limits,
    /// Give up all capabilities that are not needed.
    Capabilities,
    /// Install the system call filters.
    Seccomp,
}
