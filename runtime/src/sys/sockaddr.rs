//! Addresses of sockets as the kernel takes them, and what it says of a socket.

use std::ffi::c_int;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr, accept4, getpeername,
    getsockname, socket,
};

/// `AF_INET` or `AF_INET6`.
pub(crate) fn family(address: SocketAddr) -> c_int {
    match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    }
}

/// A `struct sockaddr_in` or `struct sockaddr_in6`.
pub(crate) fn bytes(address: SocketAddr) -> Vec<u8> {
    let family = (family(address) as libc::sa_family_t).to_ne_bytes();
    let mut bytes = [family, address.port().to_be_bytes()].concat();
    match address {
        SocketAddr::V4(address) => {
            bytes.extend_from_slice(&address.ip().octets());
            bytes.resize(size_of::<libc::sockaddr_in>(), 0);
        }
        SocketAddr::V6(address) => {
            bytes.extend_from_slice(&address.flowinfo().to_ne_bytes());
            bytes.extend_from_slice(&address.ip().octets());
            bytes.extend_from_slice(&address.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// A TCP socket of an address's family that does not block.
pub(crate) fn tcp_socket(address: SocketAddr) -> nix::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointer.
    let fd = Errno::result(unsafe { libc::socket(family(address), kind, libc::IPPROTO_TCP) })?;
    // SAFETY: the kernel made it, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A TCP socket that listens and does not block. It takes the port also where connections of an
/// earlier one are at their end.
pub(crate) fn tcp_listener(address: SocketAddr, backlog: c_int) -> nix::Result<OwnedFd> {
    let socket = tcp_socket(address)?;
    set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, [1])?;
    bind(socket.as_fd(), address)?;
    // SAFETY: takes no pointer.
    Errno::result(unsafe { libc::listen(socket.as_raw_fd(), backlog) })?;
    Ok(socket)
}

/// Takes the next connection of a listener that does not block, as a socket that does not, either.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: the kernel made it, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whom a TCP socket is connected to.
pub(crate) fn peer_address(socket: BorrowedFd<'_>) -> nix::Result<SocketAddr> {
    getpeername(socket.as_raw_fd()).and_then(|address| address_of(&address))
}

/// The address of a TCP socket itself.
pub(crate) fn own_address(socket: BorrowedFd<'_>) -> nix::Result<SocketAddr> {
    getsockname(socket.as_raw_fd()).and_then(|address| address_of(&address))
}

fn address_of(address: &SockaddrStorage) -> nix::Result<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    let v6 = || address.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into());
    v4.or_else(v6).ok_or(Errno::EAFNOSUPPORT)
}

/// Gives a socket its own address.
pub(crate) fn bind(socket: BorrowedFd<'_>, address: SocketAddr) -> nix::Result<()> {
    let address = bytes(address);
    let length = address.len() as libc::socklen_t;
    // SAFETY: an address of that length.
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr().cast(), length) })
        .map(drop)
}

/// Has a socket connect. One that does not block has begun to where this is `EINPROGRESS`.
pub(crate) fn connect(socket: BorrowedFd<'_>, address: SocketAddr) -> nix::Result<()> {
    let address = bytes(address);
    let length = address.len() as libc::socklen_t;
    // SAFETY: an address of that length.
    Errno::result(unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), length) })
        .map(drop)
}

/// How many bytes wait in a TCP socket until the other end has taken them (`SIOCOUTQ`, tcp(7)); its
/// end is none.
pub(crate) fn unsent(socket: BorrowedFd<'_>) -> usize {
    let mut count: c_int = 0;
    // SAFETY: the kernel writes an int.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) == 0 };
    usize::try_from(count).unwrap_or(0).saturating_sub(1) * usize::from(done)
}

/// An option of `SOL_SOCKET` that is a number.
pub(crate) fn option(socket: BorrowedFd<'_>, option: c_int) -> nix::Result<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most an int, and its length, both of which outlive the call.
    let result = unsafe {
        let value = (&raw mut value).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, &raw mut length)
    };
    Errno::result(result).map(|_| value)
}

/// Sets an option that consists of so many numbers.
pub(crate) fn set_option<const COUNT: usize>(
    socket: BorrowedFd<'_>,
    level: c_int,
    option: c_int,
    values: [c_int; COUNT],
) -> nix::Result<()> {
    let length = size_of_val(&values) as libc::socklen_t;
    // SAFETY: reads as many ints as are said.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, values.as_ptr().cast(), length)
    };
    Errno::result(result).map(drop)
}

/// The cookie of the network namespace that a socket was made in: of no other, before or after, as
/// long as the machine runs (`SO_NETNS_COOKIE`, Linux 5.14).
pub(crate) fn network_cookie(socket: BorrowedFd<'_>) -> nix::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes a u64, and its length, both of which outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map(|_| cookie)
}

/// The cookie of the network namespace that the calling thread is in.
pub(crate) fn own_network_cookie() -> nix::Result<u64> {
    let own = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    network_cookie(own.as_fd())
}

/// Whether a Unix socket is connected.
pub(crate) fn is_connected(socket: BorrowedFd<'_>) -> nix::Result<bool> {
    match getpeername::<UnixAddr>(socket.as_raw_fd()) {
        Ok(_) => Ok(true),
        Err(Errno::ENOTCONN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::{bytes, network_cookie, option, own_network_cookie};

    #[test]
    fn an_address_has_the_bytes_that_the_kernel_takes() {
        let v4 = [2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(bytes("127.0.0.1:80".parse().unwrap()), v4);
        let mut v6 = vec![10, 0, 1, 2, 0, 0, 0, 0, 0xfe, 0x80];
        v6.extend([0; 13]);
        v6.extend([1, 3, 0, 0, 0]);
        assert_eq!(bytes("[fe80::1%3]:258".parse().unwrap()), v6);
    }

    #[test]
    fn all_sockets_of_a_namespace_have_its_cookie() {
        let own = own_network_cookie().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (one, _other) = UnixStream::pair().unwrap();
        for socket in [listener.as_fd(), stream.as_fd(), one.as_fd()] {
            assert_eq!(network_cookie(socket).unwrap(), own);
        }
        let listens = |socket| option(socket, libc::SO_ACCEPTCONN).unwrap();
        assert_eq!((listens(listener.as_fd()), listens(stream.as_fd())), (1, 0));
        let no_socket = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(network_cookie(no_socket.as_fd()), Err(nix::errno::Errno::ENOTSOCK));
    }
}
