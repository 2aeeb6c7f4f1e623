//! `/proc` with its dangerous parts covered, and a `/dev` of our own.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use adl_protocol::{
    DEV_INODES, DEVICE_NODES, DeviceNode, Identities, Origin, Setup, Step, Strings,
};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::{Errno, Result as IoResult};
use rustix::mount::MountFlags;

use crate::setup::failure::{Failure, InStep, Result};
use crate::setup::mounts::{
    BLANK_DIRECTORY, BLANK_FILE, BOOT_ID, PROC_FLAGS, attach_as, directory_in_root, make_blanks,
    mount_procfs,
};
use crate::text::text;

/// Where the procfs of this PID namespace is until it comes to the root.
const fn place_of_proc(origin: Origin) -> &'static CStr {
    match origin {
        // On the scratch.
        Origin::Caller => c"proc",
        // There is one already.
        Origin::Empty => c"/proc",
    }
}

/// Where `/dev` is until then: on the scratch.
const DEV: &CStr = c"dev";

/// Puts both into the root, with all that is mounted in them.
pub(crate) fn put_in_root(origin: Origin) -> Result<()> {
    directory_in_root(one(b"proc\0", Step::Proc)?, Step::Proc)?;
    rustix::mount::mount_move(place_of_proc(origin), c"m0/proc").step(Step::Proc)?;
    directory_in_root(one(b"dev\0", Step::Dev)?, Step::Dev)?;
    rustix::mount::mount_move(DEV, c"m0/dev").map_err(Failure::at(Step::Dev, b"/dev"))
}

/// Mounts a procfs of this PID namespace, sets the kernel parameters of the namespaces, covers what
/// is not for a guest, and has the rest of it be read-only.
pub(crate) fn mount_proc(setup: &Setup<'_>) -> Result<()> {
    let proc = place_of_proc(setup.origin);
    if setup.origin == Origin::Caller {
        let made = rustix::fs::mkdirat(CWD, proc, Mode::from_raw_mode(0o755));
        made.and_then(|()| mount_procfs(proc)).step(Step::Proc)?;
    }

    // Before it can't be written to any more.
    let mut sysctls = setup.sysctls.iter();
    while let (Some(name), Some(value)) = (sysctls.next(), sysctls.next()) {
        let fail = Failure::at(Step::Sysctl, name.strip_suffix(b"\0").unwrap_or(name));
        set_sysctl(proc, name, value).map_err(fail)?;
    }
    let mut boot_id = [0; 37];
    let boot_id = read_boot_id(proc, &mut boot_id).map_err(Failure::at(Step::Proc, UUID))?;
    make_blanks(boot_id).step(Step::Mask)?;
    // In this order: what is covered may lie in what is read-only.
    for name in setup.read_only.iter() {
        on_part(proc, name, |path| {
            rustix::mount::mount_bind(path, path)?;
            let flags = PROC_FLAGS | MountFlags::BIND | MountFlags::RDONLY;
            rustix::mount::mount_remount(path, flags, c"")
        })?;
    }
    for name in setup.masked.iter() {
        let blank = match name {
            b"sys/kernel/random/boot_id\0" => BOOT_ID,
            name if name.ends_with(b"/\0") => BLANK_DIRECTORY,
            _ => BLANK_FILE,
        };
        on_part(proc, name, |path| rustix::mount::mount_bind(blank, path))?;
    }
    Ok(())
}

/// Gives out another random UUID each time that it is read.
const UUID: &[u8] = b"sys/kernel/random/uuid";

fn read_boot_id<'a>(proc: &CStr, content: &'a mut [u8]) -> IoResult<&'a [u8]> {
    let path = [proc.to_bytes(), b"/", UUID, b"\0"].concat();
    let path = CStr::from_bytes_with_nul(&path).map_err(|_| Errno::INVAL)?;
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let length = rustix::io::read(file, &mut *content)?;
    content.get(..length).ok_or(Errno::IO)
}

/// Writes a kernel parameter, by a path below `/proc/sys`; both end in a NUL.
fn set_sysctl(proc: &CStr, name: &[u8], value: &[u8]) -> IoResult<()> {
    let path = [proc.to_bytes(), b"/sys/", name].concat();
    let path = CStr::from_bytes_with_nul(&path).map_err(|_| Errno::INVAL)?;
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let value = value.strip_suffix(b"\0").unwrap_or(value);
    match rustix::io::write(&file, value)? == value.len() {
        true => Ok(()),
        false => Err(Errno::INVAL),
    }
}

/// Does something to a part of `/proc`, if this kernel has it.
fn on_part(proc: &CStr, name: &[u8], act: impl Fn(&CStr) -> IoResult<()>) -> Result<()> {
    let fail = |errno| Failure::at(Step::Mask, name.strip_suffix(b"\0").unwrap_or(name))(errno);
    let mut path = Vec::from(proc.to_bytes());
    path.push(b'/');
    path.extend_from_slice(name);
    let path = CStr::from_bytes_with_nul(&path).map_err(|_| fail(Errno::INVAL))?;
    match act(path) {
        Err(Errno::NOENT) => Ok(()),
        done => done.map_err(fail),
    }
}

/// Puts together `/dev`: the six harmless devices, a devpts of its own, shared memory and message
/// queues.
///
/// `file_system` is a tmpfs with the devices, which the host has made for this sandbox alone: what
/// is known of a node (who opens it, its locks, its times) is known of an inode, and so of all who
/// share it. A user namespace can make none, so without the host's help its own are bound one by
/// one; they are taken from the host's root, which no guest has touched.
pub(crate) fn make_dev(file_system: Option<OwnedFd>, setup: &Setup<'_>) -> Result<()> {
    let terminals = match setup.identities {
        // Group 5 is tty, in every distribution.
        Identities::Range => c"ptmxmode=0666,mode=620,gid=5,max=64",
        Identities::Single { .. } => c"ptmxmode=0666,mode=620,max=64",
    };
    let made = match file_system {
        Some(file_system) => attach_as(file_system, "dev"),
        None => bind_devices(setup.dev_size),
    };
    made.and_then(|()| fill_dev(terminals)).map_err(Failure::at(Step::Dev, b"/dev"))
}

const DEV_FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);

fn bind_devices(size: u64) -> IoResult<()> {
    let path = |directory: &str, name: &CStr| {
        let mut path = Vec::from(directory.as_bytes());
        path.extend_from_slice(name.to_bytes());
        CString::new(path).map_err(|_| Errno::INVAL)
    };
    const INODES: &str = match DEV_INODES.to_str() {
        Ok(inodes) => inodes,
        Err(_) => panic!("digits"),
    };
    let options = text!("mode=755,size=", size, ",nr_inodes=", INODES);
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::fs::mkdirat(CWD, DEV, Mode::from_raw_mode(0o755))?;
    rustix::mount::mount(c"tmpfs", DEV, c"tmpfs", DEV_FLAGS, Some(options.as_c_str()))?;
    for DeviceNode { name, .. } in DEVICE_NODES {
        let place = path("dev/", name)?;
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(CWD, &place, FileType::RegularFile, mode, 0)?;
        rustix::mount::mount_bind(path("/dev/", name)?, &place)?;
    }
    Ok(())
}

fn fill_dev(terminals: &CStr) -> IoResult<()> {
    const LINKS: [(&CStr, &CStr); 7] = [
        (c"dev/fd", c"/proc/self/fd"),
        (c"dev/stdin", c"/proc/self/fd/0"),
        (c"dev/stdout", c"/proc/self/fd/1"),
        (c"dev/stderr", c"/proc/self/fd/2"),
        (c"dev/ptmx", c"pts/ptmx"),
        // The terminal of whoever opens it, if that has one.
        (c"dev/console", c"tty"),
        // Covered there.
        (c"dev/core", c"/proc/kcore"),
    ];
    for (path, to) in LINKS {
        rustix::fs::symlinkat(to, CWD, path)?;
    }
    // What is in /dev/shm is on the tmpfs of /dev, too: one mount less, and its size holds for
    // both.
    rustix::fs::mkdirat(CWD, c"dev/shm", Mode::from_raw_mode(0o1777))?;
    // The machine has 4,096 terminals for all (kernel.pty.max); `max` is what one guest may take.
    for (path, kind, flags, options) in [
        (c"dev/pts", c"devpts", DEV_FLAGS, terminals),
        (c"dev/mqueue", c"mqueue", DEV_FLAGS | MountFlags::NODEV, c""),
    ] {
        rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755))?;
        rustix::mount::mount(kind, path, kind, flags, Some(options))?;
    }
    Ok(())
}

fn one(component: &'static [u8], step: Step) -> Result<Strings<'static>> {
    Strings::new(component).map_err(|_| Errno::INVAL).step(step)
}
