//! `/sys`, reduced to what programs look for to know what they run on.
//!
//! It is a directory of the scratch in which a few directories of a sysfs are mounted, and nothing
//! that names the machine or can be written to.

use alloc::collections::VecDeque;
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use adl_protocol::{Mount, Step, Strings, What};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode};
use rustix::io::{Errno, Result as IoResult};
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags};

use crate::setup::failure::{Failure, InStep, Result};
use crate::setup::mounts::{attach, directory_in_root, open_layer};
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
pub(crate) fn begin_sys(own_network: bool) -> Result<()> {
    let name = Strings::new(b"sys\0").map_err(|_| Errno::INVAL).step(Step::Sys)?;
    directory_in_root(name, Step::Sys)?;
    make(own_network).step(Step::Sys)
}

fn make(own_network: bool) -> IoResult<()> {
    const HOST: &CStr = c"/sys";
    let mode = Mode::from_raw_mode(0o755);
    rustix::fs::mkdirat(CWD, c"sys", mode)?;
    rustix::mount::mount_bind(c"sys", c"m0/sys")?;
    for directory in DIRECTORIES {
        rustix::fs::mkdirat(CWD, directory, mode)?;
    }
    // A new one has the devices of the own network. There can be none where the host's is covered
    // in part, as in a container; the rest of that is the same.
    let is_own = match own_network {
        true => match rustix::mount::mount(c"sysfs", HOST, c"sysfs", FLAGS, None) {
            Ok(()) => true,
            Err(Errno::PERM) => false,
            Err(errno) => return Err(errno),
        },
        false => false,
    };
    let count = if is_own == own_network { PARTS.len() } else { PARTS.len() - OF_NETWORK };
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
fn attach_read_only(mount: impl AsFd, path: &CStr) -> IoResult<()> {
    sys::restrict_mount(&mount, Restriction::ReadOnlyData)?;
    match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => attach(mount, path),
        Err(errno) => Err(errno),
    }
}

/// Mounts cgroups where their hierarchies would be.
pub(crate) fn mount_cgroups(
    cgroups: &[Mount<'_>],
    descriptors: &mut VecDeque<OwnedFd>,
) -> Result<()> {
    for Mount { at, what, .. } in cgroups {
        let fail = |errno| Failure::at(Step::Sys, at)(errno);
        let What::Volume(layer) = what else { return Err(fail(Errno::INVAL)) };
        let mount = open_layer(layer, OpenTreeFlags::empty(), descriptors, Step::Sys)?;
        attach_read_only(mount, &in_cgroups(at).map_err(fail)?).map_err(fail)?;
        // Each of several controllers is looked for by its own name.
        for name in at.split(|byte| *byte == b',').filter(|name| name.len() < at.len()) {
            let link = in_cgroups(name).map_err(fail)?;
            rustix::fs::symlinkat(*at, CWD, link).map_err(fail)?;
        }
    }
    Ok(())
}

fn in_cgroups(name: &[u8]) -> IoResult<CString> {
    let path: Vec<u8> = [b"m0/sys/fs/cgroup/", name].concat();
    CString::new(path).map_err(|_| Errno::INVAL)
}

/// Has no one be able to change it.
pub(crate) fn finish_sys() -> Result<()> {
    rustix::mount::mount_remount(c"m0/sys", MountFlags::BIND | FLAGS, c"").step(Step::Sys)
}
