//! Makes the calling thread another user while it clones, to whom the kernel counts the sandbox.
//!
//! What the kernel counts by user namespace (inotify instances and watches, pending signals and
//! timers, bytes in message queues, locked memory) it also counts to the maker of that, whatever
//! ids run inside. So that no sandbox takes another's, or root's own, each is made by an id of its
//! own.

use std::io;
use std::ptr;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::per_process::PerProcess;
use super::raw;
use crate::sys::lock::lock;

/// What a change of ids takes with it, and what they were.
struct Before {
    ids: [u32; 3],
    file_system_id: usize,
    capabilities: [u32; 6],
    /// What signal this thread gets when its parent ends.
    death_signal: i32,
}

const CAPABILITY_VERSION_3: [u32; 2] = [0x2008_0522, 0];
/// For setfsuid(2): no change, and so the question.
const NO_ID: usize = u32::MAX as usize;

/// For how long it is tried to become again who it was, while the kernel is out of memory.
const RESTORING: Duration = Duration::from_secs(5);
/// How long that is waited for, each time.
const PAUSE: Duration = Duration::from_millis(1);

/// Whether the process can be traced is not a thread's own, and each change of ids takes it: the
/// last of the threads that are someone else at a time leaves it as the first has found it.
static OTHERS: PerProcess<Mutex<Others>> = PerProcess::new();

/// The threads that are someone else.
#[derive(Default)]
struct Others {
    count: usize,
    /// Whether the process could be traced and dumped before there were any.
    dumpable: usize,
}

/// That this thread is one of them, or is about to be. It is not held meanwhile: to make the
/// namespaces takes most of a create, and other threads' would wait for it.
#[derive(Debug)]
struct Counted(());

impl Counted {
    fn begin() -> Result<Self, i32> {
        let mut others = lock(OTHERS.get());
        if others.count == 0 {
            // SAFETY: takes no pointer.
            others.dumpable =
                unsafe { raw(libc::SYS_prctl, [libc::PR_GET_DUMPABLE as usize, 0, 0, 0, 0])? };
        }
        others.count += 1;
        Ok(Self(()))
    }
}

impl Drop for Counted {
    /// This thread is who it was.
    fn drop(&mut self) {
        let mut others = lock(OTHERS.get());
        others.count -= 1;
        // Any other is what a change of ids makes of it (`fs.suid_dumpable`), and can't be set.
        if let (0, 0 | 1) = (others.count, others.dumpable) {
            let (option, value) = (libc::PR_SET_DUMPABLE as usize, others.dumpable);
            // What is set is one of the two values that there are.
            // SAFETY: takes no pointer.
            let _ = unsafe { raw(libc::SYS_prctl, [option, value, 0, 0, 0]) };
        }
    }
}

/// That no one of lesser rights traces this process or reads its memory, until it is dropped: a
/// child that shares the memory is in a user namespace in which others may have all rights.
#[derive(Debug)]
pub(super) struct Untraceable(Counted);

impl Untraceable {
    pub(super) fn begin() -> io::Result<Self> {
        let begin = || {
            let counted = Counted::begin()?;
            // SAFETY: takes no pointer.
            unsafe { raw(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 0, 0, 0, 0])? };
            Ok(Self(counted))
        };
        begin().map_err(io::Error::from_raw_os_error)
    }
}

/// Has this thread, and no other, be the user `id` while `make` runs; it keeps all its
/// capabilities.
///
/// # Errors
/// If it can't become that user, before `make` is called.
///
/// # Aborts
/// If it can't become again who it was.
pub(super) fn as_user<T>(id: u32, make: impl FnOnce() -> T) -> io::Result<T> {
    let _no_signals = NoSignals::begin().map_err(io::Error::from_raw_os_error)?;
    let _counted = Counted::begin().map_err(io::Error::from_raw_os_error)?;
    let before = Before::look().map_err(io::Error::from_raw_os_error)?;
    // 0 is left in the third, and with it the capabilities that the thread may have.
    let changed = set_ids([id, id, 0]).and_then(|()| set_capabilities(&before.capabilities));
    let made = changed.map(|()| make());
    if while_out_of_memory(RESTORING, || before.restore()).is_err() {
        // It would go on with the rights of another.
        std::process::abort();
    }
    made.map_err(io::Error::from_raw_os_error)
}

/// Tries again what fails because the kernel is out of memory for a moment, and nothing else.
fn while_out_of_memory(
    limit: Duration,
    mut attempt: impl FnMut() -> Result<(), i32>,
) -> Result<(), i32> {
    let begin = Instant::now();
    loop {
        match attempt() {
            Err(libc::ENOMEM | libc::EAGAIN) if begin.elapsed() < limit => thread::sleep(PAUSE),
            other => return other,
        }
    }
}

/// The signals that this thread has blocked, until this is dropped: all. The C library leaves out,
/// in its own calls, those by which it has every thread change its ids when one does (nptl(7)):
/// what that one wants would be undone here, and so waits.
struct NoSignals(u64);

impl NoSignals {
    fn begin() -> Result<Self, i32> {
        set_signal_mask(u64::MAX).map(Self)
    }
}

impl Drop for NoSignals {
    fn drop(&mut self) {
        // What it was before is no error.
        let _ = set_signal_mask(self.0);
    }
}

/// Blocks these signals and no others; returns which were blocked.
fn set_signal_mask(mask: u64) -> Result<u64, i32> {
    let mut old = 0_u64;
    let (new, old_at) = (ptr::from_ref(&mask) as usize, ptr::from_mut(&mut old) as usize);
    let how = libc::SIG_SETMASK as usize;
    // SAFETY: two sets of the size that is said, which outlive the call.
    unsafe { raw(libc::SYS_rt_sigprocmask, [how, new, old_at, size_of::<u64>(), 0]) }.map(|_| old)
}

impl Before {
    fn look() -> Result<Self, i32> {
        let mut ids = [0_u32; 3];
        let mut capabilities = [0; 6];
        let mut death_signal = 0;
        let [real, effective, saved] = ids.each_mut().map(|id| ptr::from_mut(id) as usize);
        // SAFETY: each pointer is to memory of the size that the call writes, and outlives it.
        unsafe {
            raw(libc::SYS_getresuid, [real, effective, saved, 0, 0])?;
            let header = CAPABILITY_VERSION_3;
            let (header, data) = (header.as_ptr() as usize, capabilities.as_mut_ptr() as usize);
            raw(libc::SYS_capget, [header, data, 0, 0, 0])?;
            let (option, to) = (libc::PR_GET_PDEATHSIG, &raw mut death_signal);
            raw(libc::SYS_prctl, [option as usize, to as usize, 0, 0, 0])?;
            let file_system_id = raw(libc::SYS_setfsuid, [NO_ID, 0, 0, 0, 0])?;
            Ok(Self { ids, file_system_id, capabilities, death_signal })
        }
    }

    fn restore(&self) -> Result<(), i32> {
        set_ids(self.ids)?;
        // SAFETY: takes no pointer.
        unsafe { raw(libc::SYS_setfsuid, [self.file_system_id, 0, 0, 0, 0])? };
        set_capabilities(&self.capabilities)?;
        let signal = usize::try_from(self.death_signal).unwrap_or(0);
        // SAFETY: takes no pointer.
        unsafe { raw(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, signal, 0, 0, 0]) }
            .map(drop)
    }
}

/// Sets the real, effective and saved ids of this thread alone, which the C library would set for
/// all.
fn set_ids(ids: [u32; 3]) -> Result<(), i32> {
    let [real, effective, saved] = ids.map(|id| id as usize);
    // SAFETY: takes no pointer.
    unsafe { raw(libc::SYS_setresuid, [real, effective, saved, 0, 0]) }.map(drop)
}

fn set_capabilities(sets: &[u32; 6]) -> Result<(), i32> {
    let header = CAPABILITY_VERSION_3;
    // SAFETY: a header of version 3 with the six words that belong to it.
    unsafe {
        let (header, data) = (header.as_ptr() as usize, sets.as_ptr() as usize);
        raw(libc::SYS_capset, [header, data, 0, 0, 0])
    }
    .map(drop)
}

/// For a test that looks at what the process is while others' threads are someone else.
#[cfg(test)]
pub(super) fn undisturbed<T>(look: impl FnOnce() -> T) -> T {
    loop {
        let others = lock(OTHERS.get());
        if others.count == 0 {
            return look();
        }
        drop(others);
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For tests that change what threads are, one at a time: `seteuid` of the C library sets the
    /// ids of all.
    static ALONE: Mutex<()> = Mutex::new(());

    /// All that the kernel tells of this thread's ids and capabilities.
    fn told() -> Vec<String> {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let is_meant = |line: &&str| {
            ["Uid", "Gid", "Groups", "Cap", "NoNew"].iter().any(|name| line.starts_with(name))
        };
        status.lines().filter(is_meant).map(str::to_owned).collect()
    }

    fn prctl(option: i32, argument: usize) -> usize {
        // SAFETY: the options of this test take a number or none.
        unsafe { raw(libc::SYS_prctl, [option as usize, argument, 0, 0, 0]) }.unwrap()
    }

    #[test]
    fn a_thread_is_afterwards_who_it_was() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let _alone = lock(&ALONE);
        const ID: u32 = 0x7000_0000;
        // As a file server's thread that works for a user. A change of ids takes the rest with it.
        // SAFETY: takes no pointer.
        unsafe { raw(libc::SYS_setfsuid, [1000, 0, 0, 0, 0]) }.unwrap();
        prctl(libc::PR_SET_PDEATHSIG, 10);
        let look =
            || undisturbed(|| (told(), Before::look().unwrap(), prctl(libc::PR_GET_DUMPABLE, 0)));
        undisturbed(|| prctl(libc::PR_SET_DUMPABLE, 1));
        let before = look();
        let during = as_user(ID, || {
            let others = std::thread::spawn(told).join().unwrap();
            (told(), others)
        });
        let after = look();
        let (during, of_new) = during.unwrap();
        let uid = |lines: &[String]| lines.iter().find(|l| l.starts_with("Uid")).cloned().unwrap();
        assert_eq!(uid(&during), format!("Uid:\t{ID}\t{ID}\t0\t{ID}"));
        // Like every thread, a new one is as the one that starts it.
        assert_eq!(uid(&of_new), uid(&during));
        let sets = |lines: &[String]| -> Vec<String> {
            lines.iter().filter(|line| line.starts_with("Cap")).cloned().collect()
        };
        assert_eq!(sets(&during), sets(&before.0));
        assert_eq!(after.0, before.0);
        assert_eq!(after.1.death_signal, 10);
        assert_eq!(after.1.file_system_id, 1000);
        assert_eq!((before.2, after.2), (1, 1));
    }

    #[test]
    fn threads_are_others_at_a_time_and_the_last_leaves_the_process_as_it_was() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let _alone = lock(&ALONE);
        undisturbed(|| prctl(libc::PR_SET_DUMPABLE, 1));
        let all_in = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for number in 0..3 {
                let all_in = &all_in;
                scope.spawn(move || {
                    let before = told();
                    // None could come here if one waited for another.
                    as_user(0x7000_0000 + number, || all_in.wait()).unwrap();
                    assert_eq!(told(), before);
                });
            }
        });
        assert_eq!(undisturbed(|| prctl(libc::PR_GET_DUMPABLE, 0)), 1);
    }

    #[test]
    fn who_changes_the_ids_of_all_threads_waits() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let _alone = lock(&ALONE);
        const ID: u32 = 0x7000_0000;
        let before = told();
        let (begin, begun) = std::sync::mpsc::channel();
        // Of no consequence to any other thread: it is 0 already.
        let other = std::thread::spawn(move || {
            begun.recv().unwrap();
            nix::unistd::seteuid(0.into()).unwrap();
        });
        as_user(ID, || {
            begin.send(()).unwrap();
            let is_asked = || {
                let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
                let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:\t"));
                // Signal 33, as bit 32.
                u64::from_str_radix(pending.unwrap(), 16).unwrap() & 1 << 32 != 0
            };
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while !is_asked() {
                assert!(std::time::Instant::now() < deadline, "{:?}", told());
                std::thread::yield_now();
            }
            assert!(told().contains(&format!("Uid:\t{ID}\t{ID}\t0\t{ID}")), "{:?}", told());
        })
        .unwrap();
        other.join().unwrap();
        assert_eq!(told(), before);
    }

    #[test]
    fn only_what_is_out_of_memory_is_tried_again_and_not_for_ever() {
        const LIMIT: Duration = Duration::from_millis(20);
        let mut tried = 0;
        let mut fail = |errno| {
            tried = 0;
            let failed = while_out_of_memory(LIMIT, || {
                tried += 1;
                Err(errno)
            });
            (failed, tried)
        };
        assert_eq!(fail(libc::EPERM), (Err(libc::EPERM), 1));
        let begin = Instant::now();
        for errno in [libc::ENOMEM, libc::EAGAIN] {
            let (failed, tried) = fail(errno);
            assert_eq!(failed, Err(errno));
            // With pauses.
            assert!((2..=21).contains(&tried), "{tried}");
        }
        assert!(begin.elapsed() >= 2 * LIMIT);
        let mut left = 3;
        let comes = while_out_of_memory(Duration::from_secs(60), || {
            left -= 1;
            if left == 0 { Ok(()) } else { Err(libc::ENOMEM) }
        });
        assert_eq!((comes, left), (Ok(()), 0));
    }

    #[test]
    fn what_is_made_may_fail_and_the_thread_is_who_it_was() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let _alone = lock(&ALONE);
        let before = told();
        let made = as_user(0x7000_0000, || Err::<(), _>("no"));
        assert_eq!(made.unwrap(), Err("no"));
        assert_eq!(told(), before);
    }
}
