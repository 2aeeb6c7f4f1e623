//! A step of a job that failed, before its program or in place of one.

use adl_protocol::{JobEvent, Stage};
use rustix::io::Errno;

/// How far a child came, and what the kernel said.
pub(crate) struct Failure(pub(crate) Stage, pub(crate) Errno);

impl Failure {
    /// What the host is told of it.
    pub(crate) fn event(&self) -> JobEvent {
        JobEvent::Failed { stage: self.0, errno: self.1.raw_os_error() }
    }
}

pub(crate) trait InStage<T> {
    fn stage(self, stage: Stage) -> Result<T, Failure>;
}

impl<T> InStage<T> for rustix::io::Result<T> {
    fn stage(self, stage: Stage) -> Result<T, Failure> {
        self.map_err(|errno| Failure(stage, errno))
    }
}
