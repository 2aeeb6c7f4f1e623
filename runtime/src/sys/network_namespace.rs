//! Work in another network namespace.
//!
//! A socket belongs to the network namespace that its maker was in, for as long as it lives, and to
//! no one but who has a descriptor of it. So the host makes those of a sandbox itself, by a process
//! that shares its memory and its descriptors, enters the namespace, and ends (`child.rs`). Nothing
//! inside ever has them, nor any flag or option of theirs.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::child::in_child;
use super::creator::Untraceable;
use super::{owned, raw};

/// A network namespace that can be entered.
#[derive(Debug)]
pub(crate) struct NetworkNamespace {
    network: OwnedFd,
    /// The user namespace that it belongs to, in which whoever made that may do all. `None` where
    /// the kernel does not tell: the caller has no part in it.
    user: Option<OwnedFd>,
    /// Whether it is someone else's than a sandbox's, too, who may see the processes of the host.
    is_shared: bool,
}

impl NetworkNamespace {
    /// That of a socket.
    ///
    /// # Errors
    /// EPERM where the caller has no rights over it.
    pub(crate) fn of(socket: BorrowedFd<'_>, is_shared: bool) -> io::Result<Self> {
        const SIOCGSKNS: libc::Ioctl = 0x894c;
        // SAFETY: a valid descriptor, and a request that takes no pointer.
        let network = owned(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) }.into())?;
        const NS_GET_USERNS: libc::Ioctl = 0xb701;
        // SAFETY: as above.
        let user = owned(unsafe { libc::ioctl(network.as_raw_fd(), NS_GET_USERNS) }.into()).ok();
        Ok(Self { network, user, is_shared })
    }

    /// Its descriptors: itself and, if that is known, its user namespace.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.network), self.user.as_ref()].into_iter().flatten().map(AsFd::as_fd)
    }

    /// What [`NetworkNamespace::descriptors`] were, in their order.
    pub(crate) fn from_descriptors(
        all: impl IntoIterator<Item = OwnedFd>,
        is_shared: bool,
    ) -> Option<Self> {
        let mut all = all.into_iter();
        let network = all.next()?;
        Some(Self { network, user: all.next(), is_shared })
    }

    /// Has work done in it, which is to be short and to wait for nothing: the calling thread waits
    /// for it, with all signals blocked. What it opens, the caller has.
    ///
    /// # Errors
    /// If it can't be entered.
    pub(crate) fn enter<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        // A child that has entered the user namespace shares this memory.
        let _untraceable = self.is_shared.then(Untraceable::begin).transpose()?;
        let network = self.network.as_raw_fd() as usize;
        let user = self.user.as_ref().map(|user| user.as_raw_fd() as usize);
        let enter = |namespace: usize, kind: libc::c_int| {
            // SAFETY: takes no pointer.
            unsafe { raw(libc::SYS_setns, [namespace, kind as usize, 0, 0, 0]) }.map(drop)
        };
        let begin = |_parent| match (enter(network, libc::CLONE_NEWNET), user) {
            // Only who has rights in their own user namespace, too, may enter it from there.
            (Err(libc::EPERM), Some(user)) => {
                enter(user, libc::CLONE_NEWUSER)?;
                enter(network, libc::CLONE_NEWNET)
            }
            (entered, _) => entered,
        };
        in_child(0, begin, work)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use nix::sched::CloneFlags;

    use super::NetworkNamespace;
    use crate::sys::sockaddr::{network_cookie, own_network_cookie};

    /// A listener in a network namespace that a thread has made, if this user may.
    fn listener_elsewhere() -> Option<TcpListener> {
        let make = || {
            let both = CloneFlags::CLONE_NEWNET;
            nix::sched::unshare(both).ok()?;
            Some(TcpListener::bind("0.0.0.0:0").unwrap())
        };
        std::thread::spawn(make).join().unwrap()
    }

    #[test]
    fn what_is_made_there_belongs_there_and_the_caller_stays() {
        let Some(elsewhere) = listener_elsewhere() else {
            assert!(!nix::unistd::geteuid().is_root());
            return;
        };
        let own = own_network_cookie().unwrap();
        let theirs = network_cookie(elsewhere.as_fd()).unwrap();
        assert_ne!(own, theirs);
        let namespace = NetworkNamespace::of(elsewhere.as_fd(), true).unwrap();
        let copies = namespace.descriptors().map(|fd| fd.try_clone_to_owned().unwrap());
        let copy = NetworkNamespace::from_descriptors(copies.collect::<Vec<_>>(), false).unwrap();
        for namespace in [namespace, copy] {
            let made = namespace.enter(|| TcpListener::bind("0.0.0.0:0").unwrap()).unwrap();
            assert_eq!(network_cookie(made.as_fd()).unwrap(), theirs);
            assert_eq!(own_network_cookie().unwrap(), own);
        }
    }
}
