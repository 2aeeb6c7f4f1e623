//! Spans for `tracing`, and what they say of how their work has ended.
//!
//! What a span holds goes wherever the caller's program sends it. So of an error there are only
//! words of this library's own, and no text that came from elsewhere.

use tracing::Span;
use tracing::field::debug;

use crate::error::{Error, Result};

/// A span of the target `adl`, with the fields that an error fills.
macro_rules! span {
    ($level:ident, $name:literal, $($fields:tt)*) => {
        tracing::span!(
            target: "adl",
            tracing::Level::$level,
            $name,
            $($fields)*
            error = tracing::field::Empty,
            at = tracing::field::Empty,
            errno = tracing::field::Empty,
        )
    };
}
pub(crate) use span;

/// Does something in a span, which says whether it has failed.
pub(crate) fn traced<T>(span: &Span, work: impl FnOnce() -> Result<T>) -> Result<T> {
    span.in_scope(work).inspect_err(|error| note(span, error))
}

/// Has a span say with what its work has failed.
pub(crate) fn note(span: &Span, error: &Error) {
    if span.is_disabled() {
        return;
    }
    span.record("error", debug(error.kind()));
    match error {
        Error::Setup { step, .. } => span.record("at", debug(step)),
        Error::Start { stage, .. } => span.record("at", debug(stage)),
        other => span.record("at", other.words()),
    };
    if let Some(errno) = error.errno() {
        span.record("errno", errno);
    }
}

impl Error {
    /// What it says that was not put together for it.
    fn words(&self) -> &'static str {
        match self {
            Self::Invalid { what, .. }
            | Self::TooLarge { what, .. }
            | Self::ForkedProcess { what }
            | Self::TimedOut { what, .. } => what,
            Self::File { operation, .. }
            | Self::Socket { operation, .. }
            | Self::Io { operation, .. } => operation,
            Self::Protocol { why } => why,
            Self::Pull { program, .. } => program,
            Self::Pool { why } | Self::Undelivered { why, .. } => why.words(),
            Self::Unsupported { .. } => "what is not available here",
            Self::Setup { .. } => "set-up",
            Self::Start { .. } => "start",
            Self::NotRegular { .. } => "not a regular file",
            Self::Refused { .. } => "refused",
            Self::SandboxDied => "the sandbox has died",
            Self::Deleted => "the sandbox was deleted",
            Self::PoolClosed => "the pool was closed",
            Self::Prepare { .. } => "prepare",
            Self::NameInUse { .. } => "the name is in use",
            Self::NoSnapshot { .. } => "no such snapshot",
            Self::NoImage { .. } => "no such image",
            Self::Busy { .. } => "in use",
            Self::Uncollected { .. } => "not removed",
        }
    }

    /// The kernel's answer, if it is one.
    fn errno(&self) -> Option<i32> {
        match self {
            Self::Setup { source, .. }
            | Self::Start { source, .. }
            | Self::File { source, .. }
            | Self::Io { source, .. } => source.raw_os_error(),
            Self::Pool { why } | Self::Undelivered { why, .. } => why.errno(),
            _ => None,
        }
    }
}
