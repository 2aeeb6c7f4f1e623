//! Descriptors that Python names by their numbers: all unsafe code of this crate.

use std::os::fd::{BorrowedFd, OwnedFd};

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
