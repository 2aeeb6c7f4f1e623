//! Descriptors that Python names by their numbers, and what is lent to it: all unsafe code of this
//! crate.

use std::fmt;
use std::ops::Deref;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// A copy of a descriptor that the caller has.
pub(crate) fn duplicate(number: i32) -> PyResult<OwnedFd> {
    if number < 0 {
        return Err(PyValueError::new_err(format!("{number} is no descriptor")));
    }
    // SAFETY: it is used for no longer than this call, and a number that is not open is an error of
    // the kernel's. Only -1 is not allowed.
    #[allow(unsafe_code)]
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(borrowed.try_clone_to_owned()?)
}

/// A reference that can be used for as long as `lend` runs, by whoever has kept it.
pub(crate) struct Lent<T: 'static> {
    state: Mutex<State<T>>,
    /// Told when no one uses it any more.
    unused: Condvar,
}

struct State<T: 'static> {
    value: Option<&'static T>,
    users: usize,
}

impl<T: 'static> Lent<T> {
    /// It, if it has not been taken back.
    pub(crate) fn get(self: &Arc<Self>) -> Option<InUse<T>> {
        let mut state = self.state();
        let value = state.value?;
        state.users += 1;
        Some(InUse { value, lent: Arc::clone(self) })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when no one uses it, and no one will.
    fn take_back(&self) {
        let mut state = self.state();
        state.value = None;
        while state.users > 0 {
            state = self.unused.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T: 'static> fmt::Debug for Lent<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("users", &self.state().users).finish_non_exhaustive()
    }
}

/// A use of what is lent.
pub(crate) struct InUse<T: 'static> {
    value: &'static T,
    lent: Arc<Lent<T>>,
}

impl<T: 'static> Deref for InUse<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value
    }
}

impl<T: 'static> Drop for InUse<T> {
    fn drop(&mut self) {
        self.lent.state().users -= 1;
        self.lent.unused.notify_all();
    }
}

/// Lends a value for as long as `work` runs. It returns when no one uses it any more.
pub(crate) fn lend<T: Sync + 'static, R>(value: &T, work: impl FnOnce(&Arc<Lent<T>>) -> R) -> R {
    struct TakenBack<T: 'static>(Arc<Lent<T>>);

    impl<T: 'static> Drop for TakenBack<T> {
        fn drop(&mut self) {
            self.0.take_back();
        }
    }

    // SAFETY: the reference is used through `InUse` alone. `take_back`, before this returns or
    // unwinds, waits for the end of each, and there is none after it.
    #[allow(unsafe_code)]
    let value: &'static T = unsafe { &*std::ptr::from_ref(value) };
    let state = Mutex::new(State { value: Some(value), users: 0 });
    let lent = TakenBack(Arc::new(Lent { state, unused: Condvar::new() }));
    work(&lent.0)
}
