//! What a Unix socket is that init has handed out, by what the kernel says of it alone.

use std::io;
use std::os::fd::BorrowedFd;

use adl_protocol::NetworkOrigin;
use nix::errno::Errno;

use crate::sys::sockaddr::{self, option, set_option};

/// Whether it is a connected stream, of the sandbox's network namespace: what `cookie` says of that
/// was said before any guest ran.
pub(super) fn is_as_expected(
    socket: BorrowedFd<'_>,
    network: NetworkOrigin,
    cookie: u64,
) -> io::Result<bool> {
    match try_is_as_expected(socket, network, cookie) {
        Ok(is) => Ok(is),
        // No socket; one without a file; one that knows no such option.
        Err(Errno::ENOTSOCK | Errno::EBADF | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn try_is_as_expected(
    socket: BorrowedFd<'_>,
    network: NetworkOrigin,
    cookie: u64,
) -> nix::Result<bool> {
    let is = option(socket, libc::SO_DOMAIN)? == libc::AF_UNIX
        && option(socket, libc::SO_TYPE)? == libc::SOCK_STREAM
        && option(socket, libc::SO_PROTOCOL)? == 0
        && option(socket, libc::SO_ACCEPTCONN)? == 0
        && is_in(socket, network, cookie)?;
    if !is {
        return Ok(false);
    }
    // What a guest sends is not to bring descriptors along, which whoever reads would close; older
    // kernels have no say in that.
    let _ = set_option(socket, libc::SOL_SOCKET, SO_PASSRIGHTS, [0]);
    sockaddr::is_connected(socket)
}

/// Linux 6.16.
const SO_PASSRIGHTS: i32 = 83;

/// Whether a socket is of the sandbox's network namespace. Whatever was said of it: where the
/// sandbox has one of its own, that is not the one that the caller is in.
fn is_in(socket: BorrowedFd<'_>, network: NetworkOrigin, cookie: u64) -> nix::Result<bool> {
    let is_own = network == NetworkOrigin::New;
    let is_callers = || sockaddr::own_network_cookie().map(|own| own == cookie);
    Ok(sockaddr::network_cookie(socket)? == cookie && !(is_own && is_callers()?))
}
