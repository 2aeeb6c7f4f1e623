//! A network namespace that is there before a sandbox, which is to join it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use nix::sys::stat::fstat;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::child::{end_with, in_child};
use super::open::{Location, Purpose};
use super::{check, owned, path_of};
use crate::error::{Error, Result};

/// `NS_GET_USERNS` and `NS_GET_NSTYPE` of linux/nsfs.h.
const GET_USERNS: libc::Ioctl = libc::_IO(0xb7, 0x1);
const GET_NSTYPE: libc::Ioctl = libc::_IO(0xb7, 0x3);

const WHAT: &str = "network namespace";
const RIGHTS: &str = "run as root; an ordinary user can join a network namespace of a user \
                      namespace of its own, in which the user and its group have numbers, as \
                      `unshare --user --map-root-user --net` makes one";

/// A network namespace that a sandbox is to join, open: whatever its path leads to by then, each
/// life of the sandbox is in this one.
#[derive(Debug)]
pub(crate) struct JoinedNetwork {
    namespace: OwnedFd,
    /// The user namespace that it belongs to, where the caller has the rights to join it there
    /// alone.
    owner: Option<OwnedFd>,
    identity: [u64; 2],
    /// For errors.
    shown: PathBuf,
}

impl JoinedNetwork {
    /// Opens one. What else lies there is not opened, and not waited for.
    pub(crate) fn open(location: &Location) -> Result<Self> {
        let shown = location.shown().to_owned();
        let refuse = |why: &str| Err(Error::invalid(WHAT, format!("{}: {why}", shown.display())));
        let found = location.open("open", Purpose::Look)?;
        let file_system = fstatfs(&found).map_err(Error::at("statfs", &shown))?;
        if file_system.filesystem_type() != NSFS_MAGIC {
            return refuse(
                "no namespace lies there: name one as /run/netns/NAME, /proc/PID/ns/net",
            );
        }
        let namespace = File::open(path_of(&found)).map_err(Error::at("open", &shown))?;
        let namespace = OwnedFd::from(namespace);
        let kind = kind(namespace.as_fd()).map_err(Error::at("ask for the kind of", &shown))?;
        if kind != libc::CLONE_NEWNET {
            return refuse("a namespace of another kind: name one as /proc/PID/ns/net");
        }
        let identity = identity(namespace.as_fd()).map_err(Error::at("stat", &shown))?;
        let own = own("net").map_err(Error::io("stat of /proc/thread-self/ns/net"))?;
        if identity == own {
            return refuse("the caller's own, which is the network `host`");
        }
        let owner = match may_enter().map_err(Error::io("capget"))? {
            true => None,
            false => {
                let owner = owner_to_enter(namespace.as_fd());
                Some(owner.map_err(|error| unavailable(&shown, error))?)
            }
        };
        Ok(Self { namespace, owner, identity, shown })
    }

    /// The user namespace to enter first, if one has to be.
    pub(crate) fn owner(&self) -> Option<BorrowedFd<'_>> {
        self.owner.as_ref().map(AsFd::as_fd)
    }

    /// What no other one has as long as this is open.
    pub(crate) fn identity(&self) -> [u64; 2] {
        self.identity
    }

    /// Why there is no process in it.
    pub(crate) fn refused(&self, error: io::Error) -> Error {
        unavailable(&self.shown, error)
    }
}

impl AsFd for JoinedNetwork {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

fn unavailable(path: &Path, error: io::Error) -> Error {
    Error::Unsupported {
        what: format!("the network namespace {}", path.display()),
        why: format!("to join it: {error}"),
        fix: RIGHTS.to_owned(),
    }
}

fn identity(fd: BorrowedFd<'_>) -> nix::Result<[u64; 2]> {
    fstat(fd).map(|stat| [stat.st_dev, stat.st_ino])
}

/// That of the calling thread.
fn own(kind: &str) -> io::Result<[u64; 2]> {
    let metadata = fs::metadata(Path::new("/proc/thread-self/ns").join(kind))?;
    Ok([metadata.dev(), metadata.ino()])
}

/// The kind of a namespace, as the flag of clone(2).
fn kind(namespace: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: takes no argument; whatever the descriptor is.
    check(unsafe { libc::ioctl(namespace.as_raw_fd(), GET_NSTYPE) }.into())
        .map(|kind| libc::c_int::try_from(kind).unwrap_or(0))
}

/// The user namespace that a namespace belongs to. In its own, the calling thread has no rights.
fn owner_to_enter(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: takes no argument, and makes a descriptor.
    let owner = owned(unsafe { libc::ioctl(namespace.as_raw_fd(), GET_USERNS) }.into())?;
    match identity(owner.as_fd())? == own("user")? {
        true => Err(io::Error::from_raw_os_error(libc::EPERM)),
        false => Ok(owner),
    }
}

/// Whether the calling thread has CAP_SYS_ADMIN in its own user namespace: setns(2) asks for that,
/// and for the same in the one that the network namespace belongs to.
fn may_enter() -> io::Result<bool> {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).map_err(io::Error::other)
}

/// Makes one that nothing is in, as an ordinary user in a user namespace of its own.
pub(crate) fn make() -> io::Result<OwnedFd> {
    let maps = match may_enter()? {
        true => None,
        false => Some([nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()]),
    };
    let flags = libc::CLONE_NEWNET | maps.map_or(0, |_| libc::CLONE_NEWUSER);
    in_child(flags, end_with, || {
        if let Some([uid, gid]) = maps {
            // A map of a group is taken after `deny` alone (user_namespaces(7)).
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("0 {uid} 1\n"))?;
            fs::write("/proc/self/gid_map", format!("0 {gid} 1\n"))?;
        }
        File::open("/proc/self/ns/net").map(OwnedFd::from)
    })?
}
