//! `/sys`, reduced to what programs look for to know what they run on.
//!
//! It is a directory of the scratch in which a few directories of a sysfs are mounted, and nothing
//! that names the machine or can be written to.

use alloc::collections::VecDeque;
use alloc::ffi::CString;
use alloc::format;
use core::ffi::CStr;

use adl_protocol::{Cgroup, Step, Strings};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode};
use rustix::io::{Errno, Result as IoResult};
use rustix::mount::{MountFlags, OpenTreeFlags};

use crate::setup::failure::{Failure, InStep, Result};
use crate::setup::mounts::{attach, directory_in_root, open_layer};
use crate::sys::{self, Restriction};

/// Directories, each after what it is in.
const DIRECTORIES: [&CStr; 9] = [
    c"sys",
    c"sys/class",
    c"sys/devices",
    c"sys/devices/system",
    c"sys/devices/virtual",
    c"sys/fs",
    c"sys/fs/cgroup",
    c"sys/kernel",
    c"sys/kernel/mm",
];

/// What of a sysfs is there: processors and memory.
const PARTS: [&str; 3] =
    ["devices/system/cpu", "devices/system/node", "kernel/mm/transparent_hugepage"];

/// And what a sysfs has of its network namespace.
const OF_NETWORK: [&str; 2] = ["class/net", "devices/virtual/net"];

const FLAGS: MountFlags =
    MountFlags::RDONLY.union(MountFlags::NOSUID).union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Makes it, to be written to until [`finish_sys`].
pub(crate) fn begin_sys(own_network: bool) -> Result<()> {
    directory_in_root(
        Strings::new(b"sys\0").map_err(|_| Errno::INVAL).step(Step::Sys)?,
        Step::Sys,
    )?;
    make(own_network).step(Step::Sys)
}

fn make(own_network: bool) -> IoResult<()> {
    for directory in DIRECTORIES {
        rustix::fs::mkdirat(CWD, directory, Mode::from_raw_mode(0o755))?;
    }
    rustix::mount::mount_bind(c"sys", c"m0/sys")?;
    // One of its own shows the devices of its own network. There can be none where the host's is
    // covered in part, as in a container; what of that is not of a network is the same.
    rustix::fs::mkdirat(CWD, c"sysfs", Mode::from_raw_mode(0o700))?;
    let is_own = own_network
        && match rustix::mount::mount(c"sysfs", c"sysfs", c"sysfs", FLAGS, None) {
            Ok(()) => true,
            Err(Errno::PERM) => false,
            Err(errno) => return Err(errno),
        };
    let source = if is_own { "sysfs" } else { "/sys" };
    let of_network = OF_NETWORK.iter().filter(|_| is_own == own_network);
    PARTS.iter().chain(of_network).try_for_each(|part| bind(source, part))
}

/// Mounts a part of a sysfs, if this kernel has it.
fn bind(source: &str, part: &str) -> IoResult<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    match rustix::mount::open_tree(CWD, format!("{source}/{part}"), flags) {
        Err(Errno::NOENT) => Ok(()),
        opened => attach_read_only(opened?, part),
    }
}

/// Mounts something read-only on a new directory below `/sys`.
fn attach_read_only(mount: impl AsFd, path: &str) -> IoResult<()> {
    sys::restrict_mount(&mount, Restriction::ReadOnlyData)?;
    let path = CString::new(format!("m0/sys/{path}")).map_err(|_| Errno::INVAL)?;
    match rustix::fs::mkdirat(CWD, path.as_c_str(), Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => attach(mount, &path),
        Err(errno) => Err(errno),
    }
}

/// Mounts cgroups in `/sys/fs/cgroup`, as hierarchies of that name would be.
pub(crate) fn mount_cgroups(
    cgroups: &[Cgroup<'_>],
    descriptors: &mut VecDeque<OwnedFd>,
) -> Result<()> {
    for cgroup in cgroups {
        let flags = OpenTreeFlags::empty();
        let mount = open_layer(&cgroup.directory, flags, descriptors, Step::Sys)?;
        mount_cgroup(cgroup.names, mount).map_err(Failure::at(Step::Sys, b"/sys/fs/cgroup"))?;
    }
    Ok(())
}

fn mount_cgroup(names: Strings<'_>, mount: OwnedFd) -> IoResult<()> {
    let mut names = names.iter().map(|name| CStr::from_bytes_with_nul(name).unwrap_or_default());
    let name = names.next().unwrap_or_default();
    let text = name.to_str().map_err(|_| Errno::INVAL)?;
    attach_read_only(mount, &format!("fs/cgroup/{text}"))?;
    for link in names {
        let path = format!("sys/fs/cgroup/{}", link.to_str().map_err(|_| Errno::INVAL)?);
        rustix::fs::symlinkat(name, CWD, path)?;
    }
    Ok(())
}

/// Has no one be able to change it.
pub(crate) fn finish_sys() -> Result<()> {
    rustix::mount::mount_remount(c"m0/sys", MountFlags::BIND | FLAGS, c"").step(Step::Sys)
}
