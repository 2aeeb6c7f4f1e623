//! What a process has of its own, and a fork of it has not.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Memory that the kernel wipes in a child of fork(2) (`MADV_WIPEONFORK`, Linux 4.14), with the
/// token of the process in it.
static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// What [`PAGE`] is where there is no such memory.
static NO_PAGE: AtomicU64 = AtomicU64::new(0);

/// A number that the calling process has drawn, and that no other process has.
///
/// A process id would not do: it comes again, and a child in another PID namespace may have that of
/// its parent. Nothing is registered with the C library, so it holds for a child of clone(2), too.
/// A child that shares the caller's memory, as that of vfork(2), is the caller.
pub(crate) fn token() -> u64 {
    let Some(token) = page() else {
        // Out of memory. A child in another PID namespace may then be taken for its parent.
        return u64::from(std::process::id());
    };
    match token.load(Ordering::Relaxed) {
        0 => {
            // 0 is what the kernel leaves.
            let drawn = random() | 1;
            let drawn_before =
                token.compare_exchange(0, drawn, Ordering::Relaxed, Ordering::Relaxed);
            drawn_before.err().unwrap_or(drawn)
        }
        token => token,
    }
}

fn page() -> Option<&'static AtomicU64> {
    let mut page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        let made = make_page().unwrap_or((&raw const NO_PAGE).cast_mut());
        let set = PAGE.compare_exchange(page, made, Ordering::AcqRel, Ordering::Acquire);
        // Of a thread that came first. This one's page stays, which is seldom, and once.
        page = set.err().unwrap_or(made);
    }
    // SAFETY: it is a page that stays mapped, or a static. All that anyone does with it is atomic.
    (page.cast_const() != &raw const NO_PAGE).then(|| unsafe { &*page })
}

fn make_page() -> Option<*mut AtomicU64> {
    const LENGTH: usize = 4096;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, at a place that the kernel chooses.
    let page = unsafe { libc::mmap(ptr::null_mut(), LENGTH, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the mapping that was just made.
    let wiped = unsafe { libc::madvise(page, LENGTH, libc::MADV_WIPEONFORK) };
    (wiped == 0).then_some(page.cast())
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: a buffer with its length. So few bytes come whole, once the kernel has any.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    u64::from_ne_bytes(bytes)
}

/// A value that each process makes for itself, when it first asks for it.
///
/// A child of fork(2) makes its own. What it has a copy of is its parent's, with each lock as some
/// thread of that held it at that moment: it is neither looked at nor dropped.
#[derive(Debug)]
pub(crate) struct PerProcess<T> {
    current: AtomicPtr<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    token: u64,
    value: T,
}

impl<T: Send + Sync + 'static> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self { current: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The value of the calling process.
    pub(crate) fn get(&self) -> &'static T
    where
        T: Default,
    {
        self.get_or(T::default)
    }

    /// The value of the calling process. Of several threads that make one, all get the same.
    pub(crate) fn get_or(&self, make: impl FnOnce() -> T) -> &'static T {
        let made = self.get_or_try(|| Ok::<_, std::convert::Infallible>(make()));
        match made {
            Ok(value) => value,
        }
    }

    /// The value of the calling process, unless it can't be made.
    pub(crate) fn get_or_try<E>(
        &self,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<&'static T, E> {
        let token = token();
        let before = self.current.load(Ordering::Acquire);
        // SAFETY: what is there was made below and is never freed, also in a fork.
        if let Some(entry) = unsafe { before.as_ref() }
            && entry.token == token
        {
            return Ok(&entry.value);
        }
        let made = Box::into_raw(Box::new(Entry { token, value: make()? }));
        let set = self.current.compare_exchange(before, made, Ordering::AcqRel, Ordering::Acquire);
        let current = match set {
            Ok(_) => made,
            Err(other) => {
                // SAFETY: `made` is no one else's. Another thread of this process came first.
                drop(unsafe { Box::from_raw(made) });
                other
            }
        };
        // SAFETY: as above.
        Ok(unsafe { &(*current).value })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::{Arc, Barrier, Mutex};

    use super::{PerProcess, token};
    use crate::sys::in_fork;

    #[test]
    fn a_fork_has_another_token_and_keeps_it() {
        let (ours, again) = (token(), token());
        assert_eq!(ours, again);
        let sees_another = || {
            let its = token();
            its != ours
                && its != 0
                && its == token()
                && in_fork(|| token() != its && token() != ours)
        };
        assert!(in_fork(sees_another));
        assert_eq!(token(), ours);
    }

    #[test]
    fn all_threads_of_a_process_get_one_value() {
        static VALUE: PerProcess<AtomicU32> = PerProcess::new();
        let begin = Arc::new(Barrier::new(8));
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let begin = Arc::clone(&begin);
                std::thread::spawn(move || {
                    begin.wait();
                    std::ptr::from_ref(VALUE.get_or(|| AtomicU32::new(number))).addr()
                })
            })
            .collect();
        let places: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
    }

    #[test]
    fn a_fork_does_not_wait_for_a_lock_that_its_parent_holds() {
        static VALUE: PerProcess<Mutex<u32>> = PerProcess::new();
        let mut ours = VALUE.get().lock().unwrap();
        *ours = 7;
        // With its own lock, and nothing of its parent's in it.
        assert!(in_fork(|| VALUE.get().try_lock().is_ok_and(|its| *its == 0)));
        assert_eq!(*ours, 7);
    }

    #[test]
    fn what_cannot_be_made_is_tried_again() {
        static VALUE: PerProcess<u32> = PerProcess::new();
        assert_eq!(VALUE.get_or_try(|| Err("no")), Err("no"));
        assert_eq!(VALUE.get_or_try(|| Ok::<_, &str>(3)), Ok(&3));
        assert_eq!(VALUE.get_or_try(|| Err("no")), Ok(&3));
    }
}
