//! `/proc` with its dangerous parts covered, and a `/dev` of our own.

use adl_protocol::{Identities, Step, Strings};
use core::ffi::CStr;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result as IoResult};
use rustix::mount::{MountAttrFlags, MoveMountFlags};

use crate::mounts::{Blank, attach, clone_mount, directory_below, new_file_system};
use crate::setup::{Failure, InStep, Result};
use crate::sys::{self, MountAttributes};

/// Mounts a procfs of this PID namespace on `/proc`, covers `masked` and protects `read_only`.
pub(crate) fn mount_proc(
    root: &OwnedFd,
    blank: &Blank,
    masked: Strings<'_>,
    read_only: Strings<'_>,
) -> Result<()> {
    let target = directory_below(root, one(b"proc\0", Step::Proc)?, Step::Proc)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = new_file_system(c"proc", &[], attributes).step(Step::Proc)?;
    attach(&proc, target).step(Step::Proc)?;

    for path in masked.iter() {
        if let Some(target) = open_below(&proc, path)? {
            blank.cover(&target).map_err(Failure::at(Step::Mask, path))?;
        }
    }
    for path in read_only.iter() {
        if let Some(target) = open_below(&proc, path)? {
            protect(&target).map_err(Failure::at(Step::Mask, path))?;
        }
    }
    Ok(())
}

/// Puts a read-only mount of a directory or file on top of itself.
fn protect(target: &OwnedFd) -> IoResult<()> {
    let mount = clone_mount(target, c"")?;
    sys::mount_setattr(&mount, &[MountAttributes::READ_ONLY], false)?;
    attach(mount, target)
}

/// Opens a path below `/proc`; `None` if this kernel does not have it.
fn open_below(proc: &OwnedFd, path: &[u8]) -> Result<Option<OwnedFd>> {
    let fail = |errno| Failure::at(Step::Mask, path)(errno);
    let name = CStr::from_bytes_with_nul(path).map_err(|_| fail(Errno::INVAL))?;
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(proc, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(fail(errno)),
    }
}

/// Mounts a tmpfs on `/dev` with the six harmless devices, a devpts of its own, shared memory and
/// message queues.
///
/// A user namespace can make no device node, so the host's are attached one by one; they are
/// taken from the host's root, which no guest has touched.
pub(crate) fn make_dev(root: &OwnedFd, identities: Identities) -> Result<()> {
    let target = directory_below(root, one(b"dev\0", Step::Dev)?, Step::Dev)?;
    fill_dev(target, identities).map_err(Failure::at(Step::Dev, b"/dev"))
}

fn fill_dev(target: OwnedFd, identities: Identities) -> IoResult<()> {
    const DEVICES: [(&CStr, &CStr); 6] = [
        (c"null", c"/dev/null"),
        (c"zero", c"/dev/zero"),
        (c"full", c"/dev/full"),
        (c"random", c"/dev/random"),
        (c"urandom", c"/dev/urandom"),
        (c"tty", c"/dev/tty"),
    ];
    const LINKS: [(&CStr, &CStr); 5] = [
        (c"fd", c"/proc/self/fd"),
        (c"stdin", c"/proc/self/fd/0"),
        (c"stdout", c"/proc/self/fd/1"),
        (c"stderr", c"/proc/self/fd/2"),
        (c"ptmx", c"pts/ptmx"),
    ];
    let no_suid_no_exec = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let no_dev = no_suid_no_exec | MountAttrFlags::MOUNT_ATTR_NODEV;

    let dev =
        new_file_system(c"tmpfs", &[(c"mode", c"755"), (c"size", c"64k")], no_suid_no_exec)?;
    attach(&dev, target)?;
    for (name, of_host) in DEVICES {
        rustix::fs::mknodat(&dev, name, FileType::RegularFile, Mode::from_raw_mode(0o666), 0)?;
        let device = clone_mount(CWD, of_host)?;
        attach_at(&device, &dev, name)?;
    }
    for (name, to) in LINKS {
        rustix::fs::symlinkat(to, &dev, name)?;
    }

    let terminals: &[(&CStr, &CStr)] = match identities {
        // Group 5 is tty, in every distribution.
        Identities::Range => &[(c"ptmxmode", c"0666"), (c"mode", c"620"), (c"gid", c"5")],
        Identities::Single => &[(c"ptmxmode", c"0666"), (c"mode", c"620")],
    };
    let pts = new_file_system(c"devpts", terminals, no_suid_no_exec)?;
    let shm = new_file_system(c"tmpfs", &[(c"mode", c"1777"), (c"size", c"64m")], no_dev)?;
    let mqueue = new_file_system(c"mqueue", &[], no_dev)?;
    for (name, mount) in [(c"pts", pts), (c"shm", shm), (c"mqueue", mqueue)] {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755))?;
        attach_at(&mount, &dev, name)?;
    }
    Ok(())
}

fn attach_at(mount: &OwnedFd, directory: &OwnedFd, name: &CStr) -> IoResult<()> {
    rustix::mount::move_mount(mount, c"", directory, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn one(component: &'static [u8], step: Step) -> Result<Strings<'static>> {
    Strings::new(component).map_err(|_| Errno::INVAL).step(step)
}
