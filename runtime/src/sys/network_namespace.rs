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
use super::{owned, proc, raw};

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
    /// That of a process.
    ///
    /// # Errors
    /// ESRCH where it has ended; EACCES where the caller has no rights over it.
    pub(crate) fn of(process: BorrowedFd<'_>, is_shared: bool) -> io::Result<Self> {
        Ok(Self::new(proc::network_namespace_of(process)?, is_shared))
    }

    /// That of a socket.
    ///
    /// # Errors
    /// EPERM where the caller has no rights over it.
    pub(crate) fn of_socket(socket: BorrowedFd<'_>, is_shared: bool) -> io::Result<Self> {
        const SIOCGSKNS: libc::Ioctl = 0x894c;
        // SAFETY: a valid descriptor, and a request that takes no pointer.
        let network = owned(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) }.into())?;
        Ok(Self::new(network, is_shared))
    }

    fn new(network: OwnedFd, is_shared: bool) -> Self {
        const NS_GET_USERNS: libc::Ioctl = 0xb701;
        // SAFETY: a valid descriptor, and a request that takes no pointer.
        let user = owned(unsafe { libc::ioctl(network.as_raw_fd(), NS_GET_USERNS) }.into()).ok();
        Self { network, user, is_shared }
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
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sched::{CloneFlags, unshare};

    use super::NetworkNamespace;
    use crate::sys::pidfd;
    use crate::sys::sockaddr::{network_cookie, own_network_cookie};

    #[test]
    fn what_is_made_there_belongs_there_and_the_caller_stays() {
        let mut command = Command::new("cat");
        let leave = || Ok(unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?);
        // SAFETY: one system call.
        let command = unsafe { command.pre_exec(leave) };
        let Ok(mut child) = command.stdin(Stdio::piped()).spawn() else {
            assert!(!nix::unistd::geteuid().is_root());
            return;
        };
        let process = pidfd::open(child.id().cast_signed()).unwrap();
        let own = own_network_cookie().unwrap();
        let namespace = NetworkNamespace::of(process.as_fd(), true).unwrap();
        let copies = namespace.descriptors().map(|fd| fd.try_clone_to_owned().unwrap());
        let copy = NetworkNamespace::from_descriptors(copies.collect::<Vec<_>>(), false).unwrap();
        let cookies = [&namespace, &copy].map(|namespace| {
            let made = namespace.enter(|| TcpListener::bind("0.0.0.0:0").unwrap()).unwrap();
            assert_eq!(own_network_cookie().unwrap(), own);
            network_cookie(made.as_fd()).unwrap()
        });
        assert_eq!(cookies[0], cookies[1]);
        assert_ne!(cookies[0], own);
        // Of what has ended there is none, though no one has reaped it.
        drop(child.stdin.take());
        let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).unwrap();
        assert!(NetworkNamespace::of(process.as_fd(), true).is_err());
        child.wait().unwrap();
        let error = NetworkNamespace::of(process.as_fd(), true).unwrap_err();
        assert!(error.to_string().contains("does not show"), "{error}");
    }
}
