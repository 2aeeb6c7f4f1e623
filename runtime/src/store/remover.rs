//! Removal of what sandboxes leave on disk, by a thread beside the callers.
//!
//! How long it takes is up to the guest: it may have made a million files. So it is no part of
//! the time of a delete. The thread starts with the first removal of a process and is bounded: a
//! caller that is too far ahead of it removes for itself, and so does one that has no descriptors
//! left, of which each removal that waits has some.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::Empty;

use crate::error::Result;
use crate::error::traced::{span, traced};
use crate::store::directory::SandboxDirectory;
use crate::sys;
use crate::sys::lock::lock;
use crate::sys::owner::PerProcess;

/// How many removals may wait before callers do their own: what a burst of deletes leaves, and no
/// more disk than that.
const BACKLOG: usize = 64;

/// Of how many descriptors that the process may have a removal may have one: it has three.
const DESCRIPTORS: u64 = 32;

/// How many removals may wait in this process.
fn backlog() -> usize {
    usize::try_from(sys::most_descriptors() / DESCRIPTORS).unwrap_or(BACKLOG).min(BACKLOG)
}

/// What is left of a sandbox whose processes have ended.
pub(crate) struct Removal {
    /// Let go of before the directory is removed: what the kernel still knows of the files is
    /// forgotten with it.
    mounts: Option<OwnedFd>,
    /// `None` where that has become a snapshot.
    directory: Option<SandboxDirectory>,
}

impl Removal {
    pub(crate) fn new(mounts: Option<OwnedFd>, directory: Option<SandboxDirectory>) -> Self {
        Self { mounts, directory }
    }

    fn remove(&mut self) -> Result<()> {
        let span = span!(DEBUG, "remove", directory = Empty,);
        if let Some(directory) = &self.directory {
            span.record("directory", directory.name());
        }
        self.mounts = None;
        traced(&span, || self.try_to_remove())
    }

    fn try_to_remove(&self) -> Result<()> {
        self.directory.as_ref().map_or(Ok(()), SandboxDirectory::remove)
    }
}

/// What this process has to remove. A fork has none of it, and its own thread.
static REMOVER: PerProcess<Remover> = PerProcess::new();

#[derive(Default)]
struct Remover {
    state: Mutex<State>,
    /// Something of the state has changed.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// With their numbers, in the order of these.
    waiting: VecDeque<(u64, Removal)>,
    /// The numbers of those that are being removed.
    in_hand: Vec<u64>,
    /// What could not be removed, as when the process had no descriptors left: tried again with
    /// each next one. In the end it stays, without a lock, for `adl gc`, which tells why.
    failed: Vec<(u64, Removal)>,
    /// How many of those are being tried again.
    retried: usize,
    /// Someone waits for that to be done now, with nothing next.
    is_asked_again: bool,
    /// The number of the next.
    next: u64,
    /// How many were removed.
    done: u64,
    has_thread: bool,
}

impl State {
    /// How many that were handed over before a number could not be removed.
    fn failed(&self, before: u64) -> usize {
        self.failed.iter().filter(|(number, _)| *number < before).count()
    }

    /// Whether all before a number were dealt with.
    fn is_done(&self, before: u64) -> bool {
        let mut all = self.waiting.iter().map(|(number, _)| number).chain(&self.in_hand);
        all.all(|number| *number >= before) && !self.is_asked_again && self.retried == 0
    }
}

impl Remover {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits until something has changed, or the time is up; without one, as long as it takes.
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        end: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        match end {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(end) => {
                let left = end.saturating_duration_since(Instant::now());
                let waited = self.changed.wait_timeout(state, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Hands something to the thread, if there is one, or can be, and it is not too far behind.
    fn hand_over(&'static self, removal: Removal) -> std::result::Result<(), Removal> {
        let mut state = self.state();
        if state.waiting.len() + state.failed.len() >= backlog() || !self.has_thread(&mut state) {
            return Err(removal);
        }
        let number = state.next;
        state.next += 1;
        state.waiting.push_back((number, removal));
        self.changed.notify_all();
        Ok(())
    }

    /// Removes something for its caller. What can't be removed now is tried again later.
    fn remove_now(&self, mut removal: Removal) -> Result<()> {
        let removed = removal.remove();
        if removed.is_ok() {
            self.state().done += 1;
        }
        removed.inspect_err(|_| {
            let mut state = self.state();
            if state.failed.len() < BACKLOG {
                let number = state.next;
                state.next += 1;
                state.failed.push((number, removal));
            }
        })
    }

    fn has_thread(&'static self, state: &mut State) -> bool {
        if !state.has_thread {
            let thread = std::thread::Builder::new().name("adl-remover".to_owned());
            state.has_thread = thread.spawn(|| self.work()).is_ok();
            // A fork has it registered already.
            static AT_EXIT_REGISTERED: AtomicBool = AtomicBool::new(false);
            if state.has_thread && !AT_EXIT_REGISTERED.swap(true, Ordering::Relaxed) {
                sys::at_exit(finish_at_exit);
            }
        }
        state.has_thread
    }

    fn work(&self) {
        // It is nothing that anyone waits for.
        sys::lower_priority();
        loop {
            let mut state = self.state();
            while state.waiting.is_empty() && !state.is_asked_again {
                state = self.wait(state, None);
            }
            drop(state);
            self.remove_one();
        }
    }

    /// Removes one that waits, and tries those again that could not be removed before.
    fn remove_one(&self) {
        let mut state = self.state();
        state.is_asked_again = false;
        let mut failed = std::mem::take(&mut state.failed);
        let tried = failed.len();
        state.retried += tried;
        let next = state.waiting.pop_front();
        let number = next.as_ref().map(|(number, _)| *number);
        state.in_hand.extend(number);
        drop(state);
        failed.extend(next);
        let all = failed.len();
        // A caller's subscriber may panic: it is a failure like any other.
        failed.retain_mut(|(_, removal)| {
            let removed = catch_unwind(AssertUnwindSafe(|| removal.remove()));
            removed.map_or(true, |removed| removed.is_err())
        });
        let mut state = self.state();
        state.done += (all - failed.len()) as u64;
        state.retried -= tried;
        state.in_hand.retain(|other| Some(*other) != number);
        state.failed.extend(failed);
        state.failed.truncate(BACKLOG);
        self.changed.notify_all();
    }

    /// Waits until all that was handed over until now was dealt with, and what could not be removed
    /// was tried once more.
    fn finish(&self, end: Option<Instant>) {
        let mut state = self.state();
        let before = state.next;
        while !state.is_done(before) && end.is_none_or(|end| Instant::now() < end) {
            state = self.wait(state, end);
        }
        if state.failed.is_empty() {
            return;
        }
        if !state.has_thread {
            drop(state);
            return self.remove_one();
        }
        state.is_asked_again = true;
        self.changed.notify_all();
        while !state.is_done(before) && end.is_none_or(|end| Instant::now() < end) {
            state = self.wait(state, end);
        }
    }

    /// Removes what waits now beside the thread, which has the lowest priority.
    fn help(&self) {
        let before = self.state().next;
        while self.state().waiting.front().is_some_and(|(number, _)| *number < before) {
            self.remove_one();
        }
    }

    /// Sees to it that something is removed that was handed over before a number; `false` if there
    /// is nothing that can be.
    fn make_room(&self, before: u64) -> bool {
        let state = self.state();
        if state.waiting.front().is_some_and(|(number, _)| *number < before) {
            drop(state);
            // If it can't be removed, it has one descriptor less.
            self.remove_one();
            return true;
        }
        if !state.is_done(before) {
            drop(self.wait(state, None));
            return true;
        }
        let failed = state.failed(before);
        drop(state);
        if failed != 0 {
            self.remove_one();
        }
        self.state().failed(before) < failed
    }
}

/// The number of sandboxes that this process has deleted or reset and whose files are not all
/// removed yet: by a thread, which has at most 64 waiting. Where it does not go down, what is left
/// can't be removed; `adl gc` tells why.
pub fn pending_removals() -> usize {
    let state = REMOVER.get().state();
    state.waiting.len() + state.in_hand.len() + state.failed.len() + state.retried
}

/// How many this process has removed.
pub(crate) fn removals_done() -> u64 {
    REMOVER.get().state().done
}

/// Whether this process has removed anything.
pub(crate) fn has_removed() -> bool {
    REMOVER.get().state().next != 0
}

/// Removes what a sandbox has left soon, and gives its name free now.
pub(crate) fn remove_later(mut removal: Removal) -> Result<()> {
    if let Some(directory) = &mut removal.directory
        && directory.move_aside().is_err()
    {
        // As on a full disk of btrfs, where only what is removed makes room. So that comes first.
        return REMOVER.get().remove_now(removal);
    }
    let remover = REMOVER.get();
    remover.hand_over(removal).or_else(|removal| remover.remove_now(removal))
}

/// Does something that takes descriptors; and where there are none, once more as long as removals
/// that wait have some. What an attempt leaves to be removed itself is none of those.
pub(crate) fn with_descriptors<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let remover = REMOVER.get();
    let before = remover.state().next;
    loop {
        match attempt() {
            Err(error) if error.is_no_descriptors() && remover.make_room(before) => {}
            attempted => return attempted,
        }
    }
}

/// Waits until the files of all sandboxes that this process has deleted are gone.
///
/// Deleting a sandbox gives back at once all but the disk space of what it has written, which a
/// thread of this library removes. A process that ends normally waits for that, for at most ten
/// seconds ([`wait_at_exit`]); after any other end, [`crate::collect_garbage`] of another does the
/// rest.
pub fn finish_removals() {
    let remover = REMOVER.get();
    remover.help();
    remover.finish(None);
}

/// Waits for that no longer than so.
pub(crate) fn finish_within(limit: Duration) {
    REMOVER.get().finish(Some(Instant::now() + limit));
}

/// How long the end of the process may be held up, in milliseconds.
static AT_EXIT: AtomicU64 = AtomicU64::new(10_000);

/// Sets how long a normal end of this process (`exit(3)`) waits until the files of all sandboxes
/// that it has deleted are gone: ten seconds by default, and with [`Duration::ZERO`] not at all.
/// What is left then is removed by [`crate::collect_garbage`] of another process.
///
/// ```
/// adl_runtime::wait_at_exit(std::time::Duration::ZERO);
/// ```
pub fn wait_at_exit(limit: Duration) {
    AT_EXIT.store(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

extern "C" fn finish_at_exit() {
    let limit = Duration::from_millis(AT_EXIT.load(Ordering::Relaxed));
    if limit != Duration::ZERO {
        let end = Instant::now().checked_add(limit);
        REMOVER.get().finish(end);
    }
}
