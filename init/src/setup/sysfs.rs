//! `/sys`, reduced to what programs look for to know what they run on.
//!
//! It is a directory of the scratch in which a few directories of a sysfs are mounted, and nothing
//! that names the machine or can be written to.

use core::ffi::CStr;

use adl_protocol::{NetworkOrigin, Step, Strings};
use rustix::fd::AsFd;
use rustix::fs::{CWD, Mode};
use rustix::io::{Errno, Result as IoResult};
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags};

use crate::setup::failure::{InStep, Result};
use crate::setup::mounts::{attach, directory_in_root};
use crate::sys::{self, Restriction};

/// Directories, each after what it is in.
const DIRECTORIES: [&CStr; 8] = [
    c"m0/sys/class",
    c"m0/sys/devices",
    c"m0/sys/devices/system",
    c"m0/sys/devices/virtual",
    c"m0/sys/fs",
    c"m0/sys/fs/cgroup",
    c"m0/sys/kernel",
    c"m0/sys/kernel/mm",
];

/// What of a sysfs is there: processors and memory, and what one has of its network namespace.
const PARTS: [&CStr; 5] = [
    c"m0/sys/devices/system/cpu",
    c"m0/sys/devices/system/node",
    c"m0/sys/kernel/mm/transparent_hugepage",
    c"m0/sys/class/net",
    c"m0/sys/devices/virtual/net",
];
/// How many of them are of the network.
const OF_NETWORK: usize = 2;

const FLAGS: MountFlags =
    MountFlags::RDONLY.union(MountFlags::NOSUID).union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Makes it, to be written to until [`finish_sys`].
pub(crate) fn begin_sys(network: NetworkOrigin) -> Result<()> {
    let name = Strings::new(b"sys\0").map_err(|_| Errno::INVAL).step(Step::Sys)?;
    directory_in_root(name, Step::Sys)?;
    make(network).step(Step::Sys)
}

fn make(network: NetworkOrigin) -> IoResult<()> {
    const HOST: &CStr = c"/sys";
    let mode = Mode::from_raw_mode(0o755);
    rustix::fs::mkdirat(CWD, c"sys", mode)?;
    rustix::mount::mount_bind(c"sys", c"m0/sys")?;
    for directory in DIRECTORIES {
        rustix::fs::mkdirat(CWD, directory, mode)?;
    }
    // A new one has the devices of the own network. There can be none where the host's is covered
    // in part, as in a container; the rest of that is the same. In a network that was joined, init
    // may mount none, and the caller's has the devices of another.
    let is_own = match network {
        NetworkOrigin::New => match rustix::mount::mount(c"sysfs", HOST, c"sysfs", FLAGS, None) {
            Ok(()) => true,
            Err(Errno::PERM) => false,
            Err(errno) => return Err(errno),
        },
        NetworkOrigin::Caller | NetworkOrigin::Joined => false,
    };
    let shows_network = is_own || network == NetworkOrigin::Caller;
    let count = if shows_network { PARTS.len() } else { PARTS.len() - OF_NETWORK };
    for part in PARTS.iter().take(count) {
        // The source is the path inside.
        let source = part.to_bytes().get(2..).unwrap_or_default();
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        match rustix::mount::open_tree(CWD, source, flags) {
            Err(Errno::NOENT) => {}
            opened => attach_read_only(opened?, part)?,
        }
    }
    match is_own {
        true => rustix::mount::unmount(HOST, UnmountFlags::DETACH),
        false => Ok(()),
    }
}

/// Mounts something read-only on a directory, which is made if it is missing.
pub(crate) fn attach_read_only(mount: impl AsFd, path: &CStr) -> IoResult<()> {
    sys::restrict_mount(&mount, Restriction::ReadOnlyData)?;
    match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => attach(mount, path),
        Err(errno) => Err(errno),
    }
}

/// Has no one be able to change it.
pub(crate) fn finish_sys() -> Result<()> {
    rustix::mount::mount_remount(c"m0/sys", MountFlags::BIND | FLAGS, c"").step(Step::Sys)
}
