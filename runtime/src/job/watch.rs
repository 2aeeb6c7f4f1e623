//! What is told of a job, or of a file call, beside its caller: its span, and that it is counted.

use std::path::Path;

use adl_protocol::Stage;
use tracing::Span;
use tracing::field::{Empty, debug};

use crate::error::traced::{note, span};
use crate::error::{Error, ErrorKind};
use crate::exit::ExitStatus;
use crate::job::counts::{self, Counted};

/// How a job has ended, as far as that is known.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    Exit(ExitStatus),
    NotStarted { stage: Stage, errno: i32 },
}

/// What watches one that init was asked to start, until its end was told.
#[derive(Debug)]
pub(crate) struct Watch {
    span: Span,
    is_job: bool,
}

/// The span of a job. Of what is run there is the program alone: an argument may be a secret.
pub(crate) fn job_span(sandbox: &str, program: &Path) -> Span {
    span!(
        INFO,
        "job",
        sandbox = sandbox,
        program = %program.display(),
        pid = Empty,
        reason = Empty,
        code = Empty,
        signal = Empty,
    )
}

/// The span of a file call. The path is that which the caller has named.
pub(crate) fn file_span(operation: &'static str, path: &Path) -> Span {
    span!(DEBUG, "file", sandbox = Empty, operation = operation, path = %path.display(),)
}

impl Watch {
    /// Watches a job that init was asked to start.
    pub(crate) fn job(span: Span) -> Self {
        counts::add(Counted::Started);
        Self { span, is_job: true }
    }

    /// Watches a file call.
    pub(crate) fn file(span: Span) -> Self {
        Self { span, is_job: false }
    }

    pub(crate) fn started(&self, pid: i32) {
        self.span.record("pid", pid);
    }

    /// Tells with what it has failed for its caller, who learns of no other end.
    pub(crate) fn failed(&self, error: &Error) {
        if self.is_job {
            counts::add(match error {
                Error::Start { .. } => Counted::NotStarted,
                _ => Counted::Unwatched,
            });
        }
        note(&self.span, error);
    }

    /// Tells its end, or that no one will learn of it.
    pub(crate) fn ended(&self, end: Option<End>) {
        if self.is_job {
            counts::add(match end {
                Some(End::Exit(status)) => Counted::Ended(status.reason()),
                Some(End::NotStarted { .. }) => Counted::NotStarted,
                None => Counted::Unwatched,
            });
        }
        match end {
            Some(End::Exit(status)) if self.is_job => {
                self.span.record("reason", debug(status.reason()));
                status.code().map(|code| self.span.record("code", code));
                status.signal().map(|signal| self.span.record("signal", signal));
            }
            Some(End::Exit(status)) if !status.success() => {
                self.span.record("error", debug(ErrorKind::Inside));
                self.span.record("at", debug(status.reason()));
            }
            Some(End::NotStarted { stage, errno }) => {
                self.span.record("error", debug(ErrorKind::Inside));
                self.span.record("at", debug(stage));
                self.span.record("errno", errno);
            }
            Some(End::Exit(_)) | None => {}
        }
    }
}
