//! What calls return, as plain values that `adl` makes its classes of.

use std::time::{Duration, SystemTime};

use adl_runtime::{Change, CopyReport, EndReason, ExitStatus, FileKind, Metadata, Output, Stats};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};

use crate::network;

/// The name of a variant, as Python writes it.
pub(crate) fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

/// How a command ended: `(returncode, reason, duration, usage, core_dumped, survivors)`.
pub(crate) fn status<'py>(py: Python<'py>, status: &ExitStatus) -> PyResult<Bound<'py, PyTuple>> {
    let returncode = match (status.code(), status.signal()) {
        (Some(code), _) => i32::from(code),
        (None, signal) => -i32::from(signal.unwrap_or(9)),
    };
    let usage = status.usage();
    let usage = (
        usage.user_time.as_secs_f64(),
        usage.system_time.as_secs_f64(),
        usage.max_resident,
        usage.minor_faults,
        usage.major_faults,
        usage.read,
        usage.written,
        usage.voluntary_switches,
        usage.involuntary_switches,
    );
    let reason = match status.reason() {
        // Not to be put together each time.
        EndReason::Exited => PyString::new(py, "exited"),
        other => PyString::new(py, &snake_case(&format!("{other:?}"))),
    };
    let seconds = status.wall_time().as_secs_f64();
    (returncode, reason, seconds, usage, status.core_dumped(), status.survivors()).into_pyobject(py)
}

/// What a command left: `(status, stdout, stderr, stdout_dropped, stderr_dropped, stdio_open)`.
pub(crate) fn output<'py>(py: Python<'py>, output: &Output) -> PyResult<Bound<'py, PyTuple>> {
    (
        status(py, &output.status)?,
        PyBytes::new(py, &output.stdout),
        PyBytes::new(py, &output.stderr),
        output.stdout_dropped,
        output.stderr_dropped,
        output.stdio_open,
    )
        .into_pyobject(py)
}

/// The fields of `adl.Stats`.
pub(crate) fn stats<'py>(py: Python<'py>, stats: &Stats) -> PyResult<Bound<'py, PyDict>> {
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    let fields = PyDict::new(py);
    fields.set_item("cpu_time", seconds(stats.cpu_time))?;
    fields.set_item("throttled", seconds(stats.throttled))?;
    fields.set_item("memory", stats.memory)?;
    fields.set_item("memory_peak", stats.memory_peak)?;
    fields.set_item("oom_kills", stats.oom_kills)?;
    fields.set_item("pids", stats.pids)?;
    fields.set_item("pids_peak", stats.pids_peak)?;
    fields.set_item("pids_refused", stats.pids_refused)?;
    fields.set_item("read_bytes", stats.read_bytes)?;
    fields.set_item("write_bytes", stats.write_bytes)?;
    fields.set_item("cpu_pressure", seconds(stats.cpu_pressure))?;
    fields.set_item("memory_pressure", seconds(stats.memory_pressure))?;
    fields.set_item("io_pressure", seconds(stats.io_pressure))?;
    let connections = stats.connections.as_ref().map(|stats| network::stats(py, stats));
    fields.set_item("connections", connections.transpose()?)?;
    Ok(fields)
}

pub(crate) fn kind(kind: FileKind) -> String {
    snake_case(&format!("{kind:?}"))
}

/// Seconds since 1970.
pub(crate) fn since_1970(time: SystemTime) -> Option<f64> {
    time.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs_f64())
}

/// Nanoseconds since 1970, before which they are negative.
fn nanoseconds(time: SystemTime) -> i128 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i128::try_from(after.as_nanos()).unwrap_or(i128::MAX),
        Err(before) => i128::try_from(before.duration().as_nanos()).map_or(i128::MIN, |ns| -ns),
    }
}

/// The fields of `os.stat_result` that are known.
pub(crate) fn metadata<'py>(py: Python<'py>, told: &Metadata) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("kind", kind(told.kind))?;
    fields.set_item("mode", told.mode)?;
    fields.set_item("uid", told.uid)?;
    fields.set_item("gid", told.gid)?;
    fields.set_item("size", told.size)?;
    fields.set_item("blocks", told.blocks)?;
    fields.set_item("nlink", told.links)?;
    fields.set_item("ino", told.inode)?;
    fields.set_item("atime_ns", nanoseconds(told.accessed))?;
    fields.set_item("mtime_ns", nanoseconds(told.modified))?;
    fields.set_item("ctime_ns", nanoseconds(told.changed))?;
    Ok(fields)
}

/// The fields of `adl.CopyReport`.
pub(crate) fn report<'py>(py: Python<'py>, report: &CopyReport) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    let skipped: Vec<_> = report
        .skipped
        .iter()
        .map(|skipped| (skipped.path.as_os_str().to_owned(), kind(skipped.kind)))
        .collect();
    let cut_off: Vec<_> = report.cut_off.iter().map(|path| path.as_os_str()).collect();
    fields.set_item("files", report.files)?;
    fields.set_item("directories", report.directories)?;
    fields.set_item("symbolic_links", report.symbolic_links)?;
    fields.set_item("hard_links", report.hard_links)?;
    fields.set_item("bytes", report.bytes)?;
    fields.set_item("skipped", skipped)?;
    fields.set_item("more_skipped", report.more_skipped)?;
    fields.set_item("cut_off", cut_off)?;
    fields.set_item("more_cut_off", report.more_cut_off)?;
    Ok(fields)
}

/// Paths, each with what became of it.
pub(crate) fn changes(changes: Vec<Change>) -> Vec<(std::ffi::OsString, String)> {
    changes
        .into_iter()
        .map(|change| (change.path.into_os_string(), snake_case(&format!("{:?}", change.kind))))
        .collect()
}
