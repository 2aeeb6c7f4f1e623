//! A mount namespace that is nearly empty, to clone inits from.
//!
//! What clones from the caller's pays for what the machine is: all mounts are copied, and to leave
//! them by `pivot_root(2)` the kernel looks at every thread there is. From this one it costs the
//! same wherever it is done. Nothing of the host is in it, so that nothing has to be left: init
//! mounts its root on top. In it are
//!
//! - `/proc`, whole, of a PID namespace that has ended, and `/sys`: the kernel mounts a file system
//!   of these kinds in a user namespace only where it sees a whole one already. Init covers both.
//! - `/dev/null`.
//! - `/scratch`, where init gathers what the root is made of.
//!
//! All of it is read-only. It is made once in a process, for its second sandbox: one alone would
//! pay more than it saves.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat, mknodat, umask};

use super::child::{end_with, in_child};
use crate::sys::owner::PerProcess;

/// A mount namespace that is nearly empty.
#[derive(Debug)]
pub(crate) struct EmptyNamespace {
    namespace: OwnedFd,
    has_sysfs: bool,
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
        if !WAS_ASKED.get().swap(true, Ordering::Relaxed) || !children_are_in_own_namespace() {
            return None;
        }
        let made = NAMESPACE.get_or_try(|| match Self::make() {
            Ok(made) => Ok(Some(made)),
            Err(error) => match error.raw_os_error() {
                // May be had later.
                Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN | libc::ENOSPC) => {
                    Err(error)
                }
                _ => Ok(None),
            },
        });
        made.ok()?.as_ref().filter(|namespace| namespace.has_sysfs || !with_sysfs)
    }

    fn make() -> io::Result<Self> {
        in_child(libc::CLONE_NEWNS, end_with, build)?
    }
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
fn build() -> io::Result<EmptyNamespace> {
    const NONE: Option<&str> = None;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    umask(Mode::empty());
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
    mknodat(AT_FDCWD, "dev/null", SFlag::S_IFCHR, mode, makedev(1, 3))?;
    in_child(libc::CLONE_NEWPID, end_with, || {
        mount(Some("proc"), "proc", Some("proc"), flags, NONE)
    })??;
    let read_only = flags | MsFlags::MS_RDONLY;
    let has_sysfs = match mount(Some("sysfs"), "sys", Some("sysfs"), read_only, NONE) {
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
    Ok(EmptyNamespace { namespace, has_sysfs })
}
