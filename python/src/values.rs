//! What callers hand over, as the library takes it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use adl_runtime::{Error, HostPath, Resource, Rlimit};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};

use crate::errors::raise;

const NO_UTF_8: &str = "it is not UTF-8";

/// Says which argument a wrong value was for.
pub(crate) fn of<T>(name: &str, value: PyResult<T>, py: Python<'_>) -> PyResult<T> {
    value.map_err(|error| {
        let text = || format!("{name}: {}", error.value(py));
        // Those of Python's own: the library's say by themselves what they are about.
        let kind = error.get_type(py);
        if error.is_instance_of::<PyUnicodeEncodeError>(py) {
            PyValueError::new_err(format!("{name}: {NO_UTF_8}"))
        } else if kind.is(py.get_type::<PyTypeError>()) {
            PyTypeError::new_err(text())
        } else if kind.is(py.get_type::<PyValueError>())
            || kind.is(py.get_type::<PyOverflowError>())
        {
            PyValueError::new_err(text())
        } else {
            error
        }
    })
}

/// Takes each option of a call; `None` is an option that was not set.
pub(crate) fn each<'py>(
    options: &Bound<'py, PyDict>,
    mut take: impl FnMut(&str, &Bound<'py, PyAny>) -> PyResult<bool>,
) -> PyResult<()> {
    for (key, value) in options {
        let key = key.cast_into::<PyString>()?;
        let key = key.to_cow()?;
        if value.is_none() {
            continue;
        }
        if !of(&key, take(&key, &value), options.py())? {
            return Err(PyTypeError::new_err(format!("there is no option {key:?}")));
        }
    }
    Ok(())
}

/// A string of the kernel's: a `str`, as `os.fsencode` has it, or `bytes`, or a path.
pub(crate) fn os_string(value: &Bound<'_, PyAny>) -> PyResult<OsString> {
    if let Ok(text) = value.cast::<PyString>() {
        return text.extract();
    }
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(OsString::from_vec(bytes.as_bytes().to_vec()));
    }
    if value.hasattr("__fspath__")? {
        return os_string(&value.call_method0("__fspath__")?);
    }
    let kind = value.get_type().name()?;
    Err(PyTypeError::new_err(format!("expected str, bytes or os.PathLike, not {kind}")))
}

pub(crate) fn path(value: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    os_string(value).map(PathBuf::from)
}

/// A path of the host's: a path, or `(base, path)`.
pub(crate) fn host_path(value: &Bound<'_, PyAny>) -> PyResult<HostPath> {
    match value.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>() {
        Ok((base, below)) if !value.is_instance_of::<PyString>() => {
            Ok(HostPath::beneath(named(&base)?, named(&below)?))
        }
        _ => named(value).map(HostPath::from),
    }
}

/// A path that the kernel can be asked for.
fn named(value: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    path(value).and_then(without_zero)
}

/// A path, unless it has a zero byte, which none has for the kernel.
pub(crate) fn without_zero(path: PathBuf) -> PyResult<PathBuf> {
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        let why = format!("{path:?} has a zero byte");
        return Err(raise(Error::Invalid { what: "path", why }));
    }
    Ok(path)
}

/// A name, or other text that is no path.
pub(crate) fn text(what: &'static str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    let Ok(text) = value.cast::<PyString>() else {
        let kind = value.get_type().name()?;
        return Err(PyTypeError::new_err(format!("{what}: expected str, not {kind}")));
    };
    let no_utf_8 = |_| raise(Error::Invalid { what, why: NO_UTF_8.to_owned() });
    text.to_cow().map(|text| text.into_owned()).map_err(no_utf_8)
}

/// Seconds, or a `timedelta`; infinity is no end.
pub(crate) fn duration(value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let seconds: f64 = if value.hasattr("total_seconds")? {
        value.call_method0("total_seconds")?.extract()?
    } else {
        value.extract()?
    };
    if seconds == f64::INFINITY {
        return Ok(Duration::MAX);
    }
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err(format!("{seconds} is no number of seconds to wait")))
}

/// A time to wait, in seconds, as it is taken wherever something waits.
#[pyfunction]
pub(crate) fn seconds(duration: &Bound<'_, PyAny>) -> PyResult<f64> {
    Ok(self::duration(duration)?.as_secs_f64())
}

/// A number of `resource.RLIMIT_…`, or its name in lower case, as `nofile`.
fn resource(value: &Bound<'_, PyAny>) -> PyResult<Resource> {
    const ALL: [(&str, Resource); 16] = [
        ("cpu", Resource::Cpu),
        ("fsize", Resource::FileSize),
        ("data", Resource::Data),
        ("stack", Resource::Stack),
        ("core", Resource::Core),
        ("rss", Resource::ResidentSet),
        ("nproc", Resource::Processes),
        ("nofile", Resource::OpenFiles),
        ("memlock", Resource::LockedMemory),
        ("as", Resource::AddressSpace),
        ("locks", Resource::FileLocks),
        ("sigpending", Resource::PendingSignals),
        ("msgqueue", Resource::MessageQueues),
        ("nice", Resource::Nice),
        ("rtprio", Resource::RealtimePriority),
        ("rttime", Resource::RealtimeTime),
    ];
    let found = if let Ok(number) = value.extract::<u32>() {
        ALL.iter().find(|(_, resource)| *resource as u32 == number)
    } else {
        let name: String = value.extract()?;
        ALL.iter().find(|(known, _)| *known == name)
    };
    let unknown = || {
        let names: Vec<_> = ALL.iter().map(|(name, _)| *name).collect();
        let text = value.repr().map(|text| text.to_string()).unwrap_or_default();
        PyValueError::new_err(format!("{text} is no resource: takes {}", names.join(", ")))
    };
    found.map(|(_, resource)| *resource).ok_or_else(unknown)
}

/// Resource limits: a mapping to a limit, or to `(soft, hard)`; -1 is none.
pub(crate) fn rlimits(value: &Bound<'_, PyAny>) -> PyResult<Vec<Rlimit>> {
    let one = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    let items = value.call_method0("items")?;
    let mut all = Vec::new();
    for item in items.try_iter()? {
        let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item?.extract()?;
        let resource = resource(&key)?;
        let (soft, hard) = match value.extract::<i64>() {
            Ok(both) => (both, both),
            Err(_) => value.extract::<(i64, i64)>()?,
        };
        all.push(Rlimit { resource, soft: one(soft), hard: one(hard) });
    }
    Ok(all)
}

/// The pairs of a mapping.
pub(crate) fn pairs<'py>(
    value: &Bound<'py, PyAny>,
) -> PyResult<Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>> {
    if !value.hasattr("items")? {
        let kind = value.get_type().name()?;
        return Err(PyTypeError::new_err(format!("expected a mapping, not {kind}")));
    }
    value.call_method0("items")?.try_iter()?.map(|item| item?.extract()).collect()
}

/// One of a few words.
pub(crate) fn word<T: Clone>(value: &Bound<'_, PyAny>, words: &[(&str, T)]) -> PyResult<T> {
    let text: String = value.extract()?;
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, meaning)| meaning.clone()).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        PyValueError::new_err(format!("{text:?} is not one of {}", words.join(", ")))
    })
}
