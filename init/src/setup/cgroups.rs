//! `/sys/fs/cgroup`: the sandbox's own cgroups, and what their paths are told from.

use alloc::collections::VecDeque;
use alloc::ffi::CString;
use alloc::vec::Vec;

use adl_protocol::{Cgroups, Mount, Step, What};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, Result as IoResult};
use rustix::mount::OpenTreeFlags;
use rustix::thread::LinkNameSpaceType;

use crate::setup::failure::{Failure, InStep, Result};
use crate::setup::mounts::open_layer;
use crate::setup::sysfs::attach_read_only;
use crate::sys::{self, Namespace};

/// Mounts cgroups where their hierarchies would be.
pub(crate) fn mount_cgroups(
    cgroups: &Cgroups<'_>,
    descriptors: &mut VecDeque<OwnedFd>,
) -> Result<()> {
    for Mount { at, what, .. } in &cgroups.mounts {
        let fail = |errno| Failure::at(Step::Sys, at)(errno);
        let What::Volume(layer) = what else { return Err(fail(Errno::INVAL)) };
        let mount = open_layer(layer, OpenTreeFlags::empty(), descriptors, Step::Sys)?;
        attach_read_only(mount, &path_of(at).map_err(fail)?).map_err(fail)?;
        // Each of several controllers is looked for by its own name.
        for name in at.split(|byte| *byte == b',').filter(|name| name.len() < at.len()) {
            let link = path_of(name).map_err(fail)?;
            rustix::fs::symlinkat(*at, CWD, link).map_err(fail)?;
        }
    }
    let roots: Vec<_> = (0..cgroups.roots).map_while(|_| descriptors.pop_front()).collect();
    match roots.is_empty() {
        true => Ok(()),
        false => enter_namespace(roots).step(Step::Sys),
    }
}

fn path_of(name: &[u8]) -> IoResult<CString> {
    let path: Vec<u8> = [b"m0/sys/fs/cgroup/", name].concat();
    CString::new(path).map_err(|_| Errno::INVAL)
}

/// Enters a cgroup namespace whose roots are these cgroups, by their files to join them. It is made
/// by a child that is in them, since init is to be in none: then what is mounted is the root of
/// what `/proc/self/cgroup` tells, as programs expect it.
fn enter_namespace(roots: Vec<OwnedFd>) -> IoResult<()> {
    let namespace = sys::open_in_child(roots, |roots| {
        roots.iter().try_for_each(|root| rustix::io::write(root, b"0").map(drop))?;
        sys::unshare(Namespace::Cgroup)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, c"m0/proc/self/ns/cgroup", flags, Mode::empty())
    })?;
    let kind = Some(LinkNameSpaceType::ControlGroup);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)
}
