//! A mount namespace that is nearly empty, to clone inits from.
//!
//! What clones from the caller's pays for what the machine is: all mounts are copied, and to leave
//! them by `pivot_root(2)` the kernel looks at every thread there is. From this one it costs the
//! same wherever it is done. Nothing of the host is in it, so that nothing has to be left: init
//! mounts its root on top. In it are
//!
//! - `/proc`, whole, of a PID namespace that has ended, and `/sys`: the kernel mounts a file system
//!   of these kinds in a user namespace only where it sees a whole one already. Init covers both.
//! - `/dev/null`; an ordinary user's has the six nodes of every sandbox, which are the host's.
//! - `/scratch`, where init gathers what the root is made of.
//!
//! The tmpfs that these lie on is read-only. `/proc` is not: else no other could be mounted that is
//! not. It is made once in a process, for its second sandbox: one alone would pay more than it
//! saves. An ordinary user's belongs to a user namespace that is made with it, in which the user's
//! ids are what they are outside (`own_namespaces.rs`).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use adl_protocol::{DEVICE_NODES, DeviceNode};
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat, mknodat, umask};

use super::child::{end_with, in_child};
use crate::sys::owner::PerProcess;

/// A mount namespace that is nearly empty.
#[derive(Debug)]
pub(crate) struct EmptyNamespace {
    /// The user namespace that it belongs to, where that is not the caller's.
    user: Option<OwnedFd>,
    namespace: OwnedFd,
    has_sysfs: bool,
}

/// Whose it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose {
    Root,
    /// With these ids.
    User(u32, u32),
}

static WAS_ASKED: PerProcess<AtomicBool> = PerProcess::new();

impl EmptyNamespace {
    /// Has the first call make one, too: there will be more.
    pub(crate) fn expect() {
        WAS_ASKED.get().store(true, Ordering::Relaxed);
    }

    /// That of the calling process, unless there can be none, or none that does: `with_sysfs` says
    /// whether there has to be a sysfs. The first call makes none.
    pub(crate) fn of_process(with_sysfs: bool) -> Option<&'static Self> {
        static NAMESPACE: PerProcess<Option<EmptyNamespace>> = PerProcess::new();
        let this = once(&NAMESPACE, || Self::make(Whose::Root))?;
        (this.has_sysfs || !with_sysfs).then_some(this)
    }

    pub(super) fn make(whose: Whose) -> io::Result<Self> {
        let flags = match whose {
            Whose::Root => libc::CLONE_NEWNS,
            Whose::User(..) => libc::CLONE_NEWUSER | libc::CLONE_NEWNS,
        };
        in_child(flags, end_with, || build(whose))?
    }

    /// The user namespace to enter before it.
    pub(super) fn user(&self) -> Option<BorrowedFd<'_>> {
        self.user.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn has_sysfs(&self) -> bool {
        self.has_sysfs
    }
}

/// What a process makes for its second sandbox, and has from then on; `None` for the first, and
/// where it can't be had.
pub(super) fn once<T: Send + Sync + 'static>(
    place: &'static PerProcess<Option<T>>,
    make: impl FnOnce() -> io::Result<T>,
) -> Option<&'static T> {
    if !WAS_ASKED.get().swap(true, Ordering::Relaxed) || !children_are_in_own_namespace() {
        return None;
    }
    let made = place.get_or_try(|| match make() {
        Ok(made) => Ok(Some(made)),
        Err(error) => match error.raw_os_error() {
            // May be had later.
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN | libc::ENOSPC) => {
                Err(error)
            }
            _ => Ok(None),
        },
    });
    made.ok()?.as_ref()
}

impl AsFd for EmptyNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// Whether what this thread clones is in its own PID namespace (`pid_namespaces(7)`). Else what it
/// clones next may be the first of another, which ends with it.
fn children_are_in_own_namespace() -> bool {
    let link = |name| fs::read_link(format!("/proc/thread-self/ns/{name}"));
    match (link("pid"), link("pid_for_children")) {
        (Ok(own), Ok(of_children)) => own == of_children,
        _ => false,
    }
}

/// Makes a mount namespace the empty one, in a process that is in a new copy of the caller's.
fn build(whose: Whose) -> io::Result<EmptyNamespace> {
    const NONE: Option<&str> = None;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    umask(Mode::empty());
    let user = match whose {
        Whose::Root => None,
        Whose::User(uid, gid) => {
            // The kernel asks for `deny` before a user without privilege may map a group.
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("{uid} {uid} 1\n"))?;
            fs::write("/proc/self/gid_map", format!("{gid} {gid} 1\n"))?;
            Some(OwnedFd::from(File::open("/proc/self/ns/user")?))
        }
    };
    // Without this, the caller would see what is done here.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let namespace = OwnedFd::from(File::open("/proc/self/ns/mnt")?);
    // Where there is a directory on every host.
    mount(Some("tmpfs"), "/proc", Some("tmpfs"), MsFlags::empty(), Some("mode=0555,size=64k"))?;
    nix::unistd::chdir("/proc")?;
    for name in ["proc", "sys", "dev", "scratch"] {
        mkdirat(AT_FDCWD, name, Mode::from_bits_truncate(0o555))?;
    }
    let mode = Mode::from_bits_truncate(0o666);
    match user {
        None => mknodat(AT_FDCWD, "dev/null", SFlag::S_IFCHR, mode, makedev(1, 3))?,
        Some(_) => bind_devices(mode)?,
    }
    in_child(libc::CLONE_NEWPID, end_with, || {
        mount(Some("proc"), "proc", Some("proc"), flags, NONE)
    })??;
    let mount_sysfs = || {
        let read_only = flags | MsFlags::MS_RDONLY;
        mount(Some("sysfs"), "sys", Some("sysfs"), read_only, NONE)
    };
    let mounted = match user {
        None => mount_sysfs(),
        // It shows a network, which has to be the user namespace's own.
        Some(_) => in_child(libc::CLONE_NEWNET, end_with, mount_sysfs)?,
    };
    let has_sysfs = match mounted {
        Ok(()) => true,
        // As in a container, where parts of the host's are covered.
        Err(Errno::EPERM) => false,
        Err(errno) => return Err(errno.into()),
    };
    // The old root comes to lie on top of the new one (pivot_root(2)), and is detached with all that
    // is below it.
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    let here = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    let restricted = here | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(NONE, "/", NONE, restricted, NONE)?;
    Ok(EmptyNamespace { user, namespace, has_sysfs })
}

/// Has the host's nodes be in `dev`, since who is no root can make none.
fn bind_devices(mode: Mode) -> nix::Result<()> {
    const NONE: Option<&str> = None;
    for DeviceNode { name, .. } in DEVICE_NODES {
        let name = name.to_string_lossy();
        let (host, place) = (format!("/dev/{name}"), format!("dev/{name}"));
        mknodat(AT_FDCWD, place.as_str(), SFlag::S_IFREG, mode, 0)?;
        mount(Some(host.as_str()), place.as_str(), NONE, MsFlags::MS_BIND, NONE)?;
    }
    Ok(())
}
