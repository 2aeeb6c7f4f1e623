//! A step of set-up that failed.

use alloc::vec::Vec;

use adl_protocol::{SetupFailure, Step, limits};
use rustix::io::Errno;

/// A step that failed, and what it was done to.
#[derive(Debug)]
pub(crate) struct Failure {
    step: Step,
    errno: Errno,
    path: Vec<u8>,
}

impl Failure {
    pub(crate) fn new(step: Step, errno: Errno) -> Self {
        Self { step, errno, path: Vec::new() }
    }

    pub(crate) fn at(step: Step, path: &[u8]) -> impl FnOnce(Errno) -> Self {
        let path = path.iter().copied().take(limits::MAX_PATH).collect();
        move |errno| Self { step, errno, path }
    }

    pub(crate) fn as_message(&self) -> SetupFailure<'_> {
        SetupFailure { step: self.step, errno: self.errno.raw_os_error(), path: &self.path }
    }
}

pub(crate) type Result<T> = core::result::Result<T, Failure>;

/// Names the step in the error of what it does.
pub(crate) trait InStep<T> {
    fn step(self, step: Step) -> Result<T>;
}

impl<T> InStep<T> for rustix::io::Result<T> {
    fn step(self, step: Step) -> Result<T> {
        self.map_err(|errno| Failure::new(step, errno))
    }
}
