//! Sockets on which init may send descriptors, and a look at what they are.
//!
//! To close a file may take as long as whoever made it likes, as that of a connection with
//! `SO_LINGER`, or of a file system whose server does not answer. And so may reading what came with
//! such a descriptor, if the kernel has to drop that, and closing the socket on which it waits.

use std::ffi::c_int;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, shutdown, socketpair,
};

use crate::sys::owner::Owner;

/// The stack of a thread that does nothing but close, in bytes.
const STACK: usize = 64 << 10;

/// Our end of a pair of stream sockets, of which the other is for init. Whatever init has sent to
/// it, dropping it holds no one up.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: ManuallyDrop<OwnedFd>,
    /// Whether descriptors may wait on it.
    may_hold_descriptors: AtomicBool,
    owner: Owner,
}

impl Socket {
    /// A pair: ours, to which all may be sent, and the other side's.
    pub(crate) fn pair() -> nix::Result<(Self, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
        let fd = ManuallyDrop::new(ours);
        let may_hold_descriptors = AtomicBool::new(true);
        Ok((Self { fd, may_hold_descriptors, owner: Owner::this_process() }, theirs))
    }

    /// Takes no descriptors, from its beginning on. Where the kernel can't see to that, it has to
    /// be looked at before it is read.
    pub(crate) fn refusing_descriptors(self) -> nix::Result<Self> {
        match pass_rights(&self, false) {
            Ok(()) => self.may_hold_descriptors.store(false, Ordering::Relaxed),
            Err(_) => take_out_of_band_inline(&self)?,
        }
        Ok(self)
    }

    /// Takes descriptors, until [`Self::refuse_descriptors`]: before it is read, it has to be
    /// looked at.
    pub(crate) fn take_descriptors(&self) -> nix::Result<()> {
        self.may_hold_descriptors.store(true, Ordering::Relaxed);
        // Where it is not known, they are taken in any case.
        let _ = pass_rights(self, true);
        take_out_of_band_inline(self)
    }

    /// Takes no more of them, where the kernel can see to that. Some may have come.
    pub(crate) fn refuse_descriptors(&self) {
        let _ = pass_rights(self, false);
    }

    pub(crate) fn may_hold_descriptors(&self) -> bool {
        self.may_hold_descriptors.load(Ordering::Relaxed)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: not used any more after this.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        // A fork has a copy, which is not for it to shut.
        if self.may_hold_descriptors() && self.owner.is_this_process() && has_something(&fd) {
            close_elsewhere(fd);
        }
    }
}

/// Whether something waits on a socket, to which nothing more can come from here on.
fn has_something(socket: &OwnedFd) -> bool {
    if shutdown(socket.as_raw_fd(), Shutdown::Read).is_err() {
        return true;
    }
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    // ECONNRESET: nothing waits here, but did at the other end when that was closed.
    !matches!(recv(socket.as_raw_fd(), &mut [0], flags), Ok(0) | Err(Errno::ECONNRESET))
}

/// Closes what may take long to close, in a thread of its own. It stays open if there can be none:
/// better than to be held up.
pub(crate) fn close_elsewhere(what: impl Send + 'static) {
    let what = ManuallyDrop::new(what);
    let close = move || drop(ManuallyDrop::into_inner(what));
    let thread = std::thread::Builder::new().name("adl-close".to_owned()).stack_size(STACK);
    drop(thread.spawn(close));
}

/// Has the kernel refuse, or not, whatever descriptors are sent to a socket: the sender gets EPERM
/// (`SO_PASSRIGHTS`, Linux 6.16). Those that were sent before stay.
///
/// # Errors
/// ENOPROTOOPT where the kernel does not know that.
fn pass_rights(socket: impl AsFd, passed: bool) -> nix::Result<()> {
    const SO_PASSRIGHTS: c_int = 83;
    set_option(socket, SO_PASSRIGHTS, passed)
}

/// Has a byte that is sent out of band, which may have descriptors, be one among the others:
/// else reading would drop it unseen.
fn take_out_of_band_inline(socket: impl AsFd) -> nix::Result<()> {
    set_option(socket, libc::SO_OOBINLINE, true)
}

fn set_option(socket: impl AsFd, option: c_int, value: bool) -> nix::Result<()> {
    let value = c_int::from(value);
    // SAFETY: reads an int of the length that is said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

/// How many descriptors a peek has room for: one is taken, and that there is another is seen.
const ROOM: usize = 2;

/// What waits on a socket. Nothing of it was taken from there: its descriptors, of which these are
/// copies, are still open where they wait.
#[derive(Debug)]
pub(crate) struct Peeked {
    /// In bytes.
    pub(crate) count: usize,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Whether there are more.
    pub(crate) more: bool,
}

/// Looks at what waits on a stream socket, up to the end of the first part of it that came with
/// descriptors (`MSG_PEEK`). Without `descriptors`, `more` tells of any.
pub(crate) fn peek(
    socket: impl AsFd,
    bytes: &mut [u8],
    flags: c_int,
    descriptors: bool,
) -> nix::Result<Peeked> {
    receive::<ROOM>(socket, bytes, flags | libc::MSG_PEEK, descriptors)
}

fn receive<const ROOM: usize>(
    socket: impl AsFd,
    bytes: &mut [u8],
    flags: c_int,
    descriptors: bool,
) -> nix::Result<Peeked> {
    #[repr(C)]
    struct Control<const ROOM: usize> {
        header: libc::cmsghdr,
        descriptors: [RawFd; ROOM],
    }
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: both are plain C structs, for which zero is a value.
    let (mut control, mut message): (Control<ROOM>, libc::msghdr) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if descriptors {
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<Control<ROOM>>();
    }
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` describes `bytes` and `control`, which outlive the call.
    let count = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
    let count = usize::try_from(count).map_err(|_| Errno::last())?;
    let is_rights = message.msg_controllen >= size_of::<libc::cmsghdr>()
        && control.header.cmsg_level == libc::SOL_SOCKET
        && control.header.cmsg_type == libc::SCM_RIGHTS;
    let length = control.header.cmsg_len.saturating_sub(size_of::<libc::cmsghdr>());
    let came = if is_rights { length / size_of::<RawFd>() } else { 0 };
    let descriptors = control.descriptors.iter().take(came);
    Ok(Peeked {
        count,
        // SAFETY: the kernel has just made them for us.
        descriptors: descriptors.map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect(),
        more: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Receives one message with the descriptors that came with it, at most four. Where there was no
/// room for all of them in this process, `more` is set.
pub(crate) fn receive_descriptors(socket: impl AsFd, bytes: &mut [u8]) -> nix::Result<Peeked> {
    receive::<4>(socket, bytes, libc::MSG_DONTWAIT, true)
}

/// Whether it is a mount namespace, and not the caller's own.
///
/// Its name tells, which no one but the kernel gives without a slash in front (`proc_pid_fd(5)`,
/// namespaces(7)): to ask a file what it is, its file system would be asked, and may not answer.
///
/// # Errors
/// If its name can't be read, for whatever reason but that it is too long, as init may send it:
/// that is no namespace's.
pub(crate) fn is_other_mount_namespace(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let its = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let its = match its {
        Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => return Ok(false),
        its => its?,
    };
    let own = std::fs::read_link("/proc/self/ns/mnt")?;
    Ok(its.as_os_str().as_encoded_bytes().starts_with(b"mnt:[") && its != own)
}

/// Whether it is the master side of a terminal, and not some other file that a guest would like
/// to have taken for one.
pub(crate) fn is_terminal_master(fd: BorrowedFd<'_>) -> bool {
    let fd = fd.as_raw_fd();
    // SAFETY: a plain C struct, for which zero is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    // Without asking a server of files, who may not answer (FUSE).
    // SAFETY: an empty, NUL-ended path, and a struct statx to be written.
    let done =
        unsafe { libc::statx(fd, c"".as_ptr(), flags, libc::STATX_TYPE, &raw mut stat) == 0 };
    let is_ptmx = done
        && u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFCHR
        && (stat.stx_rdev_major, stat.stx_rdev_minor) == (5, 2);
    let mut number: c_int = 0;
    // SAFETY: TIOCGPTN writes an int; no other driver knows it (ioctl_tty(2)).
    is_ptmx && unsafe { libc::ioctl(fd, libc::TIOCGPTN, &raw mut number) == 0 }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use nix::fcntl::OFlag;
    use nix::fcntl::{open, openat};
    use nix::sys::stat::{Mode, mkdirat};

    use super::is_other_mount_namespace;

    #[test]
    fn what_has_a_name_too_long_to_be_read_is_no_namespace() {
        let home = std::env::temp_dir().join(format!("adl-too-long-{}", std::process::id()));
        std::fs::create_dir(&home).unwrap();
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut at = open(&home, flags, Mode::empty()).unwrap();
        let name = "d".repeat(250);
        for _ in 0..20 {
            mkdirat(&at, name.as_str(), Mode::S_IRWXU).unwrap();
            at = openat(&at, name.as_str(), flags, Mode::empty()).unwrap();
        }
        // Control: it is a name that can't be read.
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&at));
        assert_eq!(std::fs::read_link(link).unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
        assert!(!is_other_mount_namespace(at.as_fd()).unwrap());
        let own = File::open("/proc/self/ns/mnt").unwrap();
        assert!(!is_other_mount_namespace(own.as_fd()).unwrap());
        std::fs::remove_dir_all(home).unwrap();
    }
}
