//! Errors of the library, as the exceptions of `adl._errors`.

use std::io;
use std::path::Path;

use adl_runtime::Error;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::pool::Raised;
use crate::results;

/// The module that has the classes; Python keeps it, and a fork of Python's has it, too.
fn classes(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import("adl._errors")
}

/// The exception that tells of an error.
pub(crate) fn raised(error: &Error) -> PyErr {
    Python::attach(|py| build(py, error).map_or_else(|failed| failed, PyErr::from_value))
}

/// For `map_err`.
#[allow(clippy::needless_pass_by_value, reason = "that is what `map_err` hands over")]
pub(crate) fn raise(error: Error) -> PyErr {
    raised(&error)
}

fn build<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    let path = |path: &Path| path.as_os_str().to_owned();
    let kernel = |source: &io::Error| -> PyResult<()> {
        fields.set_item("errno", source.raw_os_error())?;
        fields.set_item("strerror", strerror(source))
    };
    let name = match error {
        Error::Invalid { what, why } => {
            fields.set_item("what", what)?;
            fields.set_item("why", why)?;
            "InvalidError"
        }
        Error::Unsupported { what, why, fix } => {
            fields.set_item("what", what)?;
            fields.set_item("why", why)?;
            fields.set_item("fix", fix)?;
            "UnsupportedError"
        }
        Error::Setup { step, path: at, source } => {
            fields.set_item("step", results::snake_case(&format!("{step:?}")))?;
            fields.set_item("path", path(at))?;
            kernel(source)?;
            "SetupError"
        }
        Error::Start { program, stage, source } => {
            fields.set_item("program", path(program))?;
            fields.set_item("stage", results::snake_case(&format!("{stage:?}")))?;
            kernel(source)?;
            "StartError"
        }
        Error::File { operation, path: at, source } => {
            fields.set_item("operation", operation)?;
            fields.set_item("path", path(at))?;
            kernel(source)?;
            "FileError"
        }
        Error::Socket { operation, address, source, .. } => {
            fields.set_item("operation", operation)?;
            fields.set_item("address", (address.ip().to_string(), address.port()))?;
            kernel(source)?;
            "SocketError"
        }
        Error::NotRegular { path: at } => {
            fields.set_item("path", path(at))?;
            "NotRegularError"
        }
        Error::TooLarge { what, limit } => {
            fields.set_item("what", what)?;
            fields.set_item("limit", limit)?;
            "TooLargeError"
        }
        Error::Refused { why } => {
            fields.set_item("why", why)?;
            "RefusedError"
        }
        Error::SandboxDied => "SandboxDiedError",
        Error::Deleted => "DeletedError",
        Error::NameInUse { name } => {
            fields.set_item("name", name)?;
            "NameInUseError"
        }
        Error::NoSnapshot { name } => {
            fields.set_item("name", name)?;
            "NoSnapshotError"
        }
        Error::Pull { image, program, why } => {
            fields.set_item("image", image)?;
            fields.set_item("program", program)?;
            fields.set_item("why", why)?;
            "PullError"
        }
        Error::NoImage { name } => {
            fields.set_item("name", name)?;
            "NoImageError"
        }
        Error::PoolClosed => "PoolClosedError",
        Error::Pool { why } => {
            fields.set_item("why", build(py, why)?)?;
            "PoolError"
        }
        Error::Prepare { why } => {
            fields.set_item("why", refusal(py, why.as_ref())?)?;
            "PrepareError"
        }
        Error::ForkedProcess { what } => {
            fields.set_item("what", what)?;
            "ForkedProcessError"
        }
        Error::Busy { what, by } => {
            fields.set_item("what", what)?;
            fields.set_item("by", by)?;
            "BusyError"
        }
        Error::TimedOut { what, after } => {
            fields.set_item("what", what)?;
            fields.set_item("after", after.as_secs_f64())?;
            "TimedOutError"
        }
        Error::Undelivered { status, why } => {
            fields.set_item("status", results::status(py, status)?)?;
            fields.set_item("why", build(py, why)?)?;
            "UndeliveredError"
        }
        Error::Protocol { why } => {
            fields.set_item("why", why)?;
            "ProtocolError"
        }
        Error::Uncollected { removed, errors } => {
            let errors: Vec<_> =
                errors.iter().map(|error| build(py, error)).collect::<PyResult<_>>()?;
            fields.set_item("removed", removed)?;
            fields.set_item("errors", PyList::new(py, errors)?)?;
            "UncollectedError"
        }
        Error::Io { operation, path: at, source } => {
            fields.set_item("operation", operation)?;
            fields.set_item("path", path(at))?;
            kernel(source)?;
            "IoError"
        }
        // One that is newer than this crate.
        _ => "Error",
    };
    let kind = results::snake_case(&format!("{:?}", error.kind()));
    classes(py)?.call_method1("_make", (name, error.to_string(), kind, fields))
}

/// What the caller's code has raised, or why it was not asked.
fn refusal<'py>(
    py: Python<'py>,
    why: &(dyn std::error::Error + Send + Sync + 'static),
) -> PyResult<Bound<'py, PyAny>> {
    if let Some(raised) = why.downcast_ref::<Raised>() {
        return Ok(raised.error.value(py).clone().into_any());
    }
    if let Some(error) = why.downcast_ref::<Error>() {
        return build(py, error);
    }
    Ok(PyRuntimeError::new_err(why.to_string()).into_value(py).into_bound(py).into_any())
}

/// What the kernel's answer means, without its number.
fn strerror(source: &io::Error) -> String {
    let text = source.to_string();
    match text.find(" (os error") {
        Some(end) => text.get(..end).unwrap_or(&text).to_owned(),
        None => text,
    }
}

/// What an error that came through `io::Error` was: the library's own, or Python's.
pub(crate) fn of_io(error: io::Error) -> PyErr {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(ours) => raised(ours),
        None => error.into(),
    }
}
