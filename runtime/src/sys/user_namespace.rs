//! Work in another user namespace, and processes whose ids are to be mapped.
//!
//! A thread can't enter a user namespace by itself: who does has to be a process of one thread.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::resume_unwind;
use std::ptr;
use std::thread;

use super::child::{end_with, in_child};
use super::clone::Process;
use super::{filled_mask, pidfd, raw, unblocked_mask};

/// Has work done with all rights in a user namespace that the caller's user has made, and as the
/// user and group that the caller is there. It is not waited for without the work; where this
/// process ends, however it does, so does the work.
///
/// # Errors
/// If the namespace can't be entered.
pub(crate) fn within<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    // A thread of its own, so that the caller's goes on to answer signals.
    thread::scope(|scope| {
        let name = "adl-ids".to_owned();
        let worker =
            thread::Builder::new().name(name).spawn_scoped(scope, || enter(namespace, work))?;
        worker.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// As [`within`], for work that is done at once: the calling thread waits for it, with all signals
/// blocked.
pub(super) fn enter<T>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T) -> io::Result<T> {
    let namespace = namespace.as_raw_fd();
    let begin = move |parent| {
        let kind = libc::CLONE_NEWUSER as usize;
        // SAFETY: takes no pointer.
        unsafe { raw(libc::SYS_setns, [namespace as usize, kind, 0, 0, 0]) }?;
        // After that, since a change of rights takes it back.
        end_with(parent)
    };
    in_child(0, begin, work)
}

/// A process in a user namespace of its own that does nothing, for its ids to be mapped. When it is
/// dropped, it ends.
pub(crate) struct Waiting {
    process: Process,
    /// Dropped after it has ended.
    _stack: Box<Idle>,
}

struct Idle {
    parent: usize,
    stack: [u128; 256],
}

impl Waiting {
    pub(crate) fn start() -> io::Result<Self> {
        // SAFETY: takes no pointer, and can't fail.
        let parent = unsafe { raw(libc::SYS_getpid, [0; 5]) }.unwrap_or_default();
        let mut idle = Box::new(Idle { parent, stack: [0; 256] });
        let shared = &raw mut *idle;
        // With CLONE_FILES it holds no copy of a descriptor that the caller closes meanwhile.
        let flags = libc::CLONE_NEWUSER | libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_PIDFD;
        let mut fd: RawFd = -1;
        let mut old_mask = unblocked_mask();
        let all = filled_mask();
        // SAFETY: `all` and `old_mask` are initialised sets. The child uses `idle`, which outlives
        // it (drop), and nothing else; the top of the stack is its end, aligned to 16; CLONE_PIDFD
        // writes a descriptor to `fd`.
        let cloned = unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old_mask);
            let top = (&raw mut (*shared).stack).add(1).cast();
            let pid = libc::clone(be_idle, top, flags, shared.cast(), &raw mut fd);
            let cloned = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old_mask, ptr::null_mut());
            cloned
        };
        let pid = cloned?;
        // SAFETY: the kernel made it, for us.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { process: Process::of_child(pid, pidfd), _stack: idle })
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let killed = pidfd::kill(&*self.process.pidfd);
        if killed.and_then(|()| pidfd::reap(&*self.process.pidfd)).is_err() {
            // It runs on that.
            let unused = Box::new(Idle { parent: 0, stack: [0; 256] });
            std::mem::forget(std::mem::replace(&mut self._stack, unused));
        }
    }
}

extern "C" fn be_idle(shared: *mut c_void) -> c_int {
    // SAFETY: the parent's, which keeps it until this process has ended.
    let parent = unsafe { (*shared.cast::<Idle>()).parent };
    while end_with(parent).is_ok() {
        // SAFETY: takes no pointer. No signal but SIGKILL ends it.
        let _ = unsafe { raw(libc::SYS_pause, [0; 5]) };
    }
    // SAFETY: takes no pointer.
    let _ = unsafe { raw(libc::SYS_exit, [0; 5]) };
    0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read;
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::Mutex;

    use super::{Waiting, within};
    use crate::sys::creator::undisturbed;
    use crate::sys::{proc, raw};

    fn namespace() -> OwnedFd {
        let waiting = Waiting::start().unwrap();
        let path = proc::directory_of(waiting.process()).unwrap().join("ns/user");
        std::fs::File::open(path).unwrap().into()
    }

    fn this_process() -> usize {
        // SAFETY: takes no pointer.
        unsafe { raw(libc::SYS_getpid, [0; 5]) }.unwrap()
    }

    fn dumpable() -> usize {
        let option = libc::PR_GET_DUMPABLE as usize;
        // SAFETY: takes no pointer.
        undisturbed(|| unsafe { raw(libc::SYS_prctl, [option, 0, 0, 0, 0]) }).unwrap()
    }

    #[test]
    fn work_is_done_there_with_the_memory_and_the_descriptors_of_the_caller() {
        let namespace = namespace();
        let mut words = vec!["before".to_owned()];
        let before = dumpable();
        let (process, file, rights) = within(namespace.as_fd(), || {
            words.push("there".to_owned());
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
            let file = std::fs::File::open("/proc/self/uid_map").unwrap();
            (this_process(), file, u64::from_str_radix(rights.unwrap(), 16).unwrap())
        })
        .unwrap();
        assert_eq!(words, ["before", "there"]);
        assert_ne!(process, this_process());
        // All that there are, whatever the caller has.
        assert_eq!(rights & (rights + 1), 0);
        assert!(rights > 1 << 30);
        // Not mapped there, so that it is another one than the caller's.
        let mut map = String::new();
        { file }.read_to_string(&mut map).unwrap();
        assert_eq!(map, "");
        assert_eq!(dumpable(), before);
        // The caller is where it was.
        assert!(!std::fs::read_to_string("/proc/self/uid_map").unwrap().is_empty());
    }

    #[test]
    fn who_waits_for_ids_keeps_nothing_open() {
        let (mut read, write) = std::io::pipe().unwrap();
        let waiting = Waiting::start().unwrap();
        drop(write);
        let mut ready = libc::pollfd {
            fd: std::os::fd::AsRawFd::as_raw_fd(&read),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one initialised entry.
        let ended = unsafe { libc::poll(&raw mut ready, 1, 10_000) };
        assert_eq!((ended, ready.revents), (1, libc::POLLHUP));
        assert_eq!(read.read(&mut [0]).unwrap(), 0);
        drop(waiting);
    }

    #[test]
    fn threads_work_beside_each_other() {
        let namespace = namespace();
        let seen = Mutex::new(BTreeSet::new());
        std::thread::scope(|scope| {
            for number in 0..8_usize {
                let (namespace, seen) = (&namespace, &seen);
                scope.spawn(move || {
                    for round in 0..50 {
                        let text = within(namespace.as_fd(), || {
                            let text: Vec<String> =
                                (0..100).map(|word| format!("{number} {round} {word}")).collect();
                            seen.lock().unwrap().insert((number, round));
                            text
                        });
                        let text = text.unwrap();
                        assert_eq!(text.last(), Some(&format!("{number} {round} 99")));
                    }
                });
            }
        });
        assert_eq!(seen.lock().unwrap().len(), 400);
    }

    #[test]
    fn a_panic_of_the_work_is_the_callers() {
        let namespace = namespace();
        let panic = std::panic::catch_unwind(|| {
            within(namespace.as_fd(), || std::panic::resume_unwind(Box::new("why"))).unwrap()
        });
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"why"));
        assert_eq!(within(namespace.as_fd(), || 7).unwrap(), 7);
    }

    #[test]
    fn what_is_no_user_namespace_is_an_error() {
        let file = std::fs::File::open("/proc/self/ns/uts").unwrap();
        assert!(within(file.as_fd(), || ()).is_err());
    }

    #[test]
    fn work_ends_with_the_process_that_asked_for_it() {
        let namespace = namespace();
        let (mut read, write) = std::io::pipe().unwrap();
        // SAFETY: the child has one thread and a copy of all memory.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let _ = within(namespace.as_fd(), || {
                std::io::Write::write_all(&mut &write, b"x").unwrap();
                loop {
                    std::thread::park();
                }
            });
            std::process::abort();
        }
        drop(write);
        read.read_exact(&mut [0]).unwrap();
        let mut status = 0;
        // SAFETY: it is our child, and waitpid writes an int.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, &raw mut status, 0);
        }
        // Its end: no one else has the pipe.
        assert_eq!(read.read(&mut [0]).unwrap(), 0);
    }
}
