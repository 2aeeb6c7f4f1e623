//! A thread with a table of descriptors of its own.
//!
//! What it opens counts for no one else and is copied to no fork. All numbers that it knows are its
//! own: nothing that was opened elsewhere may be used or closed in it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::mpsc;
use std::thread;

use super::{check, filled_mask, unblocked_mask};

/// Starts a thread that has a table of its own with `socket` in it, and nothing else. No signal is
/// handled in it: a handler would use numbers of the process's table.
///
/// # Errors
/// If there can be no thread, or none with a table of its own (`close_range(2)`, Linux 5.9).
pub(crate) fn spawn(
    name: &str,
    socket: OwnedFd,
    work: impl FnOnce(OwnedFd) + Send + 'static,
) -> io::Result<()> {
    let number = socket.as_raw_fd();
    let (tell, told) = mpsc::channel();
    let begin = move || match leave_table(number) {
        Ok(socket) => {
            let _ = tell.send(Ok(()));
            drop(tell);
            work(socket);
        }
        Err(error) => drop(tell.send(Err(error))),
    };
    let mut old_mask = unblocked_mask();
    let all = filled_mask();
    // SAFETY: initialised sets.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old_mask) };
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(begin);
    // SAFETY: what it was before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old_mask, ptr::null_mut()) };
    spawned?;
    // From then on the thread has its own, and this one is closed.
    told.recv().map_err(io::Error::other)?
}

/// Leaves the table of descriptors that the calling thread shares for one with a copy of one of
/// them, which is returned.
fn leave_table(number: RawFd) -> io::Result<OwnedFd> {
    let kept = number.unsigned_abs();
    let close = |first: u32, last: u32, flags: libc::c_uint| {
        // SAFETY: takes no pointer. What is closed is open in the table of the process still: this
        // thread has a copy, of which it uses nothing but `number`.
        check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
    };
    // What is behind it is not copied at all.
    close(kept + 1, u32::MAX, libc::CLOSE_RANGE_UNSHARE)?;
    if kept > 0 {
        close(0, kept - 1, 0)?;
    }
    // The standard streams lead nowhere: a panic that is told goes there.
    // SAFETY: take no pointer; the numbers are this thread's own, and free but for `number`.
    unsafe {
        let socket = check(libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3).into())?;
        let nothing = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        check(nothing.into())?;
        for stream in 0..3 {
            if stream != nothing {
                check(libc::dup3(nothing, stream, libc::O_CLOEXEC).into())?;
            }
        }
        if number > 2 {
            libc::close(number);
        }
        if nothing > 2 {
            libc::close(nothing);
        }
        Ok(OwnedFd::from_raw_fd(RawFd::try_from(socket).map_err(io::Error::other)?))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::spawn;

    #[test]
    fn the_thread_has_what_it_was_given_and_the_process_keeps_the_rest() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let number = file.as_raw_fd();
        spawn("table", theirs.into(), move |socket| {
            let mut socket = UnixStream::from(socket);
            let is_open = |number| nix::sys::stat::fstat(number).is_ok();
            // SAFETY: only asked whether it is open.
            let others = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
            socket.write_all(&[u8::from(is_open(others))]).unwrap();
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            socket.write_all(&byte).unwrap();
        })
        .unwrap();
        let mut bytes = [9, 9];
        ours.read_exact(&mut bytes[..1]).unwrap();
        ours.write_all(b"x").unwrap();
        ours.read_exact(&mut bytes[1..]).unwrap();
        assert_eq!(bytes, [0, b'x']);
        // Its end is seen: no copy of its socket is open here.
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        ours.shutdown(Shutdown::Both).unwrap();
        assert!(nix::sys::stat::fstat(&file).is_ok());
    }
}
