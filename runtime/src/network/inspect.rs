//! What a socket is that init has handed out, by what the kernel says of it alone.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use crate::sys::sockaddr::{self, option, set_option};
use crate::wire::control::NetworkNamespace;

/// Which socket was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// One that connects to this address.
    Stream(SocketAddr),
    /// One that listens on this address.
    Listener(SocketAddr),
    /// A connected one of a Unix socket.
    Unix,
}

/// Whether it is of that kind, in the sandbox's network namespace and in no other. If it is, what
/// its maker may have set is set to what a new one has.
///
/// Whether a TCP socket is connected, and to what, is looked at when it has connected.
pub(super) fn is_as_expected(
    socket: BorrowedFd<'_>,
    kind: Kind,
    network: NetworkNamespace,
) -> io::Result<bool> {
    match try_is_as_expected(socket, kind, network) {
        Ok(is) => Ok(is),
        // No socket; one without a file; one that knows no such option.
        Err(Errno::ENOTSOCK | Errno::EBADF | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn try_is_as_expected(
    socket: BorrowedFd<'_>,
    kind: Kind,
    network: NetworkNamespace,
) -> nix::Result<bool> {
    let (family, protocol, listens) = match kind {
        Kind::Stream(address) => (sockaddr::family(address), libc::IPPROTO_TCP, false),
        Kind::Listener(address) => (sockaddr::family(address), libc::IPPROTO_TCP, true),
        Kind::Unix => (libc::AF_UNIX, 0, false),
    };
    let is = option(socket, libc::SO_DOMAIN)? == family
        && option(socket, libc::SO_TYPE)? == libc::SOCK_STREAM
        && option(socket, libc::SO_PROTOCOL)? == protocol
        && option(socket, libc::SO_ACCEPTCONN)? == i32::from(listens)
        && is_in(socket, network)?;
    if !is {
        return Ok(false);
    }
    if let Kind::Unix = kind {
        // What a guest sends is not to bring descriptors along, which whoever reads would close;
        // older kernels have no say in that.
        let _ = set_option(socket, libc::SOL_SOCKET, SO_PASSRIGHTS, [0]);
        return sockaddr::is_connected(socket);
    }
    // A close of it waits for nothing, a read for a byte, and no time is told with one.
    set_option(socket, libc::SOL_SOCKET, libc::SO_LINGER, [0, 0])?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, [1])?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, [0])?;
    Ok(true)
}

/// Linux 6.16.
const SO_PASSRIGHTS: i32 = 83;

/// Whether a socket is of the sandbox's network namespace. Whatever init has said of it before any
/// guest ran: where the sandbox has one of its own, that is not the one that the caller is in.
fn is_in(socket: BorrowedFd<'_>, network: NetworkNamespace) -> nix::Result<bool> {
    let cookie = sockaddr::network_cookie(socket)?;
    let is_callers = || sockaddr::own_network_cookie().map(|own| own == cookie);
    Ok(cookie == network.cookie && !(network.is_own && is_callers()?))
}
