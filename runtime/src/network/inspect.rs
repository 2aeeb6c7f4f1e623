//! What a socket is that init has handed out, by what the kernel says of it alone.

use std::io;
use std::os::fd::BorrowedFd;

use adl_protocol::NetworkOrigin;
use nix::errno::Errno;

use crate::sys::sockaddr::{self, option, set_option};

/// Which socket was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// One that does nothing, to tell the network namespace.
    Plain,
    /// A connected one of a Unix socket.
    Unix,
}

/// Whether it is of that kind, in the sandbox's network namespace and in no other: what `cookie`
/// says of that was said before any guest ran.
pub(super) fn is_as_expected(
    socket: BorrowedFd<'_>,
    kind: Kind,
    network: NetworkOrigin,
    cookie: u64,
) -> io::Result<bool> {
    match try_is_as_expected(socket, kind, network, cookie) {
        Ok(is) => Ok(is),
        // No socket; one without a file; one that knows no such option.
        Err(Errno::ENOTSOCK | Errno::EBADF | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn try_is_as_expected(
    socket: BorrowedFd<'_>,
    kind: Kind,
    network: NetworkOrigin,
    cookie: u64,
) -> nix::Result<bool> {
    let (family, of_kind, protocol) = match kind {
        Kind::Plain => (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        Kind::Unix => (libc::AF_UNIX, libc::SOCK_STREAM, 0),
    };
    let is = option(socket, libc::SO_DOMAIN)? == family
        && option(socket, libc::SO_TYPE)? == of_kind
        && option(socket, libc::SO_PROTOCOL)? == protocol
        && option(socket, libc::SO_ACCEPTCONN)? == 0
        && is_in(socket, network, cookie)?;
    match kind {
        Kind::Unix if is => {
            // What a guest sends is not to bring descriptors along, which whoever reads would
            // close; older kernels have no say in that.
            let _ = set_option(socket, libc::SOL_SOCKET, SO_PASSRIGHTS, [0]);
            sockaddr::is_connected(socket)
        }
        _ => Ok(is),
    }
}

/// Linux 6.16.
const SO_PASSRIGHTS: i32 = 83;

/// Whether a socket is of the sandbox's network namespace. Whatever was said of it: where the
/// sandbox has one that is not the caller's, it is not that one.
fn is_in(socket: BorrowedFd<'_>, network: NetworkOrigin, cookie: u64) -> nix::Result<bool> {
    let is_callers = || sockaddr::own_network_cookie().map(|own| own == cookie);
    Ok(sockaddr::network_cookie(socket)? == cookie
        && !(network == NetworkOrigin::New && is_callers()?))
}
