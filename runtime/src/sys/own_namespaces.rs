//! What an ordinary user's process has once, so that its sandboxes need not begin in a copy of all
//! that is mounted on the machine.
//!
//! - A user namespace, in which the user's ids are what they are outside.
//! - The empty mount namespace (`empty_namespace.rs`), which belongs to that.
//! - A copy of the caller's mounts, which belongs to it, too. Nothing of the caller's own can be
//!   mounted elsewhere without privilege, but parts of this copy can. What is mounted in the place
//!   of a descriptor of the caller's is found in it by path, through no link, and must be the same.
//!
//! The copy is made again when anything was mounted, unmounted or remounted where the caller is: it
//! would be missing. What can't be found in it is left to init, in a copy of its own.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::fstat;

use super::child::in_time;
use super::empty_namespace::{EmptyNamespace, Whose, once};
use super::mount::{Below, detached_mount, make_private};
use super::open::exactly;
use super::per_process::PerProcess;
use super::user_namespace::enter;
use super::{check, poll_now, proc};
use crate::sys::lock::lock;

/// The namespaces of an ordinary user's process.
#[derive(Debug)]
pub(crate) struct OwnNamespaces {
    empty: EmptyNamespace,
    made_by: Caller,
    copy: Mutex<Option<Copy>>,
}

/// A copy of the caller's mounts.
#[derive(Debug)]
struct Copy {
    namespace: Arc<OwnedFd>,
    /// The caller's table of mounts, by which the kernel tells that it has changed
    /// (`proc_pid_mounts(5)`).
    original: File,
}

/// How long it may take to find what is to be mounted, and mount it: thousands of times what it
/// needs. What takes longer is left to init, which has longer.
const TO_CLONE: Duration = Duration::from_secs(5);

/// Something of the host's that is to be mounted elsewhere.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) file: OwnedFd,
    pub(crate) below: Below,
}

/// Where something is, and what it is.
struct Place {
    path: CString,
    identity: [u64; 2],
    below: Below,
}

impl OwnNamespaces {
    /// Those of the calling process, unless there can be none, or none that do: `with_sysfs` says
    /// whether there has to be a sysfs. The first call makes none.
    pub(crate) fn of_process(with_sysfs: bool) -> Option<&'static Self> {
        static NAMESPACES: PerProcess<Option<OwnNamespaces>> = PerProcess::new();
        let this = once(&NAMESPACES, Self::make)?;
        let does = this.empty.has_sysfs() || !with_sysfs;
        (does && Caller::look().ok()? == this.made_by).then_some(this)
    }

    fn make() -> io::Result<Self> {
        let made_by = Caller::look()?;
        let (uid, gid) = made_by.ids;
        if uid == 0 || !are_allowed()? {
            return Err(Errno::EPERM.into());
        }
        let empty = EmptyNamespace::make(Whose::User(uid, gid))?;
        Ok(Self { empty, made_by, copy: Mutex::default() })
    }

    pub(crate) fn empty(&self) -> &EmptyNamespace {
        &self.empty
    }

    /// Detached mounts of these, in their order, with what is mounted in each where that is wanted.
    ///
    /// # Errors
    /// Where one of them can't be had; or is not, by its path, what it is by its descriptor.
    pub(crate) fn clone_mounts(&self, wanted: &[Wanted]) -> io::Result<Vec<OwnedFd>> {
        let places: Vec<_> = wanted.iter().map(Place::of).collect::<io::Result<_>>()?;
        let namespace = self.copy_of_now()?;
        // The caller's: a child that is killed gives nothing back.
        let mut cloned = Cloned { found: None, mounts: Vec::with_capacity(places.len()) };
        self.within(|| {
            setns(&*namespace, CloneFlags::CLONE_NEWNS)?;
            in_time(TO_CLONE, || cloned.add_all(&places))?
        })?;
        Ok(cloned.mounts)
    }

    /// The copy of the caller's mounts as they are. No one waits meanwhile for a file system that
    /// does not answer: others wait for the lock.
    fn copy_of_now(&self) -> io::Result<Arc<OwnedFd>> {
        let mut copy = lock(&self.copy);
        if let Some(now) = &*copy
            && !now.is_old()?
        {
            return Ok(Arc::clone(&now.namespace));
        }
        // What it kept busy is free while the next one is made.
        *copy = None;
        // Before it is made: what changes meanwhile makes it an old one.
        let original = File::open("/proc/thread-self/mountinfo")?;
        let namespace = self.within(|| {
            // What others come to see of the caller's mounts, this does, too; so it keeps nothing
            // busy that is unmounted for all of them.
            unshare(CloneFlags::CLONE_NEWNS)?;
            Ok(OwnedFd::from(File::open("/proc/self/ns/mnt")?))
        })?;
        let namespace = Arc::new(namespace);
        *copy = Some(Copy { namespace: Arc::clone(&namespace), original });
        Ok(namespace)
    }

    /// Has work done in the user namespace.
    fn within<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let user = self.empty.user().ok_or(Errno::EINVAL)?;
        enter(user, work)?
    }
}

impl Copy {
    /// Whether the caller's mounts have changed since it was made, or since this was asked last.
    fn is_old(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.original.as_fd(), PollFlags::POLLPRI)];
        poll_now(&mut fds)?;
        let [original] = fds;
        Ok(original.revents() != Some(PollFlags::empty()))
    }
}

impl Place {
    fn of(wanted: &Wanted) -> io::Result<Self> {
        let path = proc::path_of(wanted.file.as_fd())?;
        let path = CString::new(path.as_os_str().as_bytes())?;
        Ok(Self { path, identity: identity(wanted.file.as_fd())?, below: wanted.below })
    }
}

/// The mounts that are made, and what the next one is made of.
struct Cloned {
    found: Option<OwnedFd>,
    mounts: Vec<OwnedFd>,
}

impl Cloned {
    /// Makes those of all places, for which there is room. Allocates nothing: see [`in_time`].
    fn add_all(&mut self, places: &[Place]) -> io::Result<()> {
        for place in places {
            // Where this is killed after it has closed one, that is not there any more.
            drop(self.found.take());
            let found: &OwnedFd = self.found.insert(exactly(&place.path)?);
            if identity(found.as_fd())? != place.identity {
                return Err(Errno::ESTALE.into());
            }
            self.mounts.push(detached_mount(found.as_fd(), place.below)?);
            // Or what the host mounts in it later would come along.
            let mount = self.mounts.last().ok_or(Errno::EINVAL)?;
            make_private(mount.as_fd(), place.below)?;
        }
        Ok(())
    }
}

fn identity(file: BorrowedFd<'_>) -> io::Result<[u64; 2]> {
    let stat = fstat(file)?;
    Ok([stat.st_dev, stat.st_ino])
}

/// How many namespaces of each kind the user must be allowed, so that there can be some more than
/// there are sandboxes.
const LEAST_NAMESPACES: u64 = 256;

/// Whether the user is allowed as many of each kind that these take: the `/proc` of the empty
/// namespace keeps a PID namespace, and a network namespace is made for its `/sys`.
fn are_allowed() -> io::Result<bool> {
    for kind in ["mnt", "net", "pid", "user"] {
        let text = std::fs::read_to_string(format!("/proc/sys/user/max_{kind}_namespaces"))?;
        let most: u64 = text.trim_end().parse().map_err(io::Error::other)?;
        if most < LEAST_NAMESPACES {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What of a caller such namespaces hold on to: who makes sandboxes from them must be as who has
/// made them was.
#[derive(Debug, PartialEq, Eq)]
struct Caller {
    ids: (u32, u32),
    /// The soft limits that are a user namespace's ceilings (`create_user_ns` in the kernel).
    limits: [u64; 4],
    /// The mount namespace, and the root directory: that is another in a chroot, where the kernel
    /// makes no user namespace.
    place: [[u64; 3]; 2],
}

impl Caller {
    fn look() -> io::Result<Self> {
        let ids = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        const CEILINGS: [libc::__rlimit_resource_t; 4] = [
            libc::RLIMIT_NPROC,
            libc::RLIMIT_MSGQUEUE,
            libc::RLIMIT_SIGPENDING,
            libc::RLIMIT_MEMLOCK,
        ];
        let mut limits = [0; 4];
        for (limit, resource) in limits.iter_mut().zip(CEILINGS) {
            let mut both = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: getrlimit writes a struct rlimit.
            check(unsafe { libc::getrlimit(resource, &raw mut both) }.into())?;
            *limit = both.rlim_cur;
        }
        let place = [mount_and_inode(c"/proc/thread-self/ns/mnt")?, mount_and_inode(c"/")?];
        Ok(Self { ids, limits, place })
    }
}

/// The mount that a path leads to, the device and the inode.
fn mount_and_inode(path: &std::ffi::CStr) -> io::Result<[u64; 3]> {
    // SAFETY: a plain C struct, for which zero is a value.
    let mut all: libc::statx = unsafe { std::mem::zeroed() };
    let mask = libc::STATX_INO | libc::STATX_MNT_ID;
    // SAFETY: a NUL-ended path, and a struct statx, which outlives the call.
    check(unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, mask, &raw mut all) }.into())?;
    let device = u64::from(all.stx_dev_major) << 32 | u64::from(all.stx_dev_minor);
    Ok([all.stx_mnt_id, device, all.stx_ino])
}
