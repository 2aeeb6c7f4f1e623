//! Sockets in and out of a sandbox, and its ports.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use adl_runtime::{
    self as adl, ConnectionEnd, ConnectionEndReason, ConnectionLimits, ConnectionStats, Error,
    Forward, Publish,
};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::errors::raise;
use crate::job::lock;
use crate::results::snake_case;
use crate::values::each;

/// An address, as Python's sockets have them.
type Address = (String, u16);

fn told(address: SocketAddr) -> Address {
    (address.ip().to_string(), address.port())
}

/// A port of a sandbox.
#[pyclass(frozen, eq, module = "adl._adl")]
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Port(pub(crate) adl::Port);

#[pymethods]
impl Port {
    #[getter]
    fn address(&self) -> Address {
        told(self.0.address())
    }

    #[getter]
    fn published(&self) -> Option<u16> {
        self.0.published()
    }

    #[getter]
    fn forwarded_to(&self) -> Vec<Address> {
        self.0.forwarded_to().iter().copied().map(told).collect()
    }
}

/// Ends of connections. While one is not taken, the next is not told: the sandbox keeps those that
/// wait, and counts what is too much.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug)]
pub(crate) struct Ends(Arc<Slot>);

#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    end: Option<ConnectionEnd>,
    /// No one tells or takes any more.
    is_closed: bool,
}

impl Slot {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }

    /// Waits until something holds.
    fn when(&self, holds: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let wait = self.changed.wait_while(lock(&self.state), |state| !holds(state));
        wait.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes when it is dropped: the sandbox has no more to tell.
struct Closes(Arc<Slot>);

impl Drop for Closes {
    fn drop(&mut self) {
        self.0.change(|state| state.is_closed = true);
    }
}

#[pymethods]
impl Ends {
    /// The fields of the next one; `None` when there will be no more.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let end = py.detach(|| {
            let mut state = self.0.when(|state| state.end.is_some() || state.is_closed);
            let end = state.end.take();
            drop(state);
            self.0.changed.notify_all();
            end
        });
        end.map(|end| fields_of(py, end)).transpose()
    }

    /// Has `next` return.
    fn close(&self) {
        self.0.change(|state| state.is_closed = true);
    }
}

/// Where a sandbox tells of ends, and who takes them.
pub(crate) fn ends() -> (impl FnMut(ConnectionEnd) + Send + 'static, Ends) {
    let slot = Arc::new(Slot::default());
    let closes = Closes(Arc::clone(&slot));
    let tell = move |end| {
        let mut state = closes.0.when(|state| state.end.is_none() || state.is_closed);
        state.end = Some(end);
        drop(state);
        closes.0.changed.notify_all();
    };
    (tell, Ends(slot))
}

/// The fields of `adl.ConnectionEnd`.
fn fields_of(py: Python<'_>, end: ConnectionEnd) -> PyResult<Bound<'_, PyDict>> {
    let (reason, errno) = match end.reason {
        ConnectionEndReason::Refused(errno) => ("refused".to_owned(), Some(errno)),
        other => (snake_case(&format!("{other:?}")), None),
    };
    let fields = PyDict::new(py);
    fields.set_item("port", Bound::new(py, Port(end.port))?)?;
    fields.set_item("peer", told(end.peer))?;
    fields.set_item("reason", reason)?;
    fields.set_item("errno", errno)?;
    fields.set_item("bytes_in", end.bytes_in)?;
    fields.set_item("bytes_out", end.bytes_out)?;
    fields.set_item("duration", end.lasted.as_secs_f64())?;
    fields.set_item("untold", end.untold)?;
    Ok(fields)
}

/// The fields of `adl.ConnectionStats`.
pub(crate) fn stats<'py>(py: Python<'py>, stats: &ConnectionStats) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("open", stats.open)?;
    fields.set_item("begun", stats.begun)?;
    fields.set_item("failed", stats.failed)?;
    fields.set_item("bytes_in", stats.bytes_in)?;
    fields.set_item("bytes_out", stats.bytes_out)?;
    fields.set_item("untold", stats.untold)?;
    Ok(fields)
}

/// `"127.0.0.1:80"`, `"[::1]:80"`, or what Python's sockets call an address: a host and a port.
pub(crate) fn address(value: &Bound<'_, PyAny>) -> PyResult<SocketAddr> {
    let invalid = |what: String| {
        let why = format!(
            "{what} is none: takes an IP address and a port, as \"127.0.0.1:80\", \"[::1]:80\" or \
             (\"127.0.0.1\", 80)"
        );
        raise(Error::Invalid { what: "address", why })
    };
    if let Ok(text) = value.cast::<PyString>() {
        let text = text.to_string_lossy();
        return text.parse().map_err(|_| invalid(format!("{text:?}")));
    }
    let pair = value.get_item(0).and_then(|host| Ok((host, value.get_item(1)?)));
    let pair = pair.and_then(|(host, port)| Ok((host.extract()?, port.extract()?)));
    let Ok((host, port)): PyResult<(String, i64)> = pair else {
        let kind = value.get_type().name()?;
        let why = format!("an address is a str, or a pair of a str and an int, not {kind}");
        return Err(PyTypeError::new_err(why));
    };
    match (host.parse::<IpAddr>(), u16::try_from(port)) {
        (Ok(ip), Ok(port)) => Ok((ip, port).into()),
        _ => Err(invalid(format!("({host:?}, {port})"))),
    }
}

/// The fields of `adl.Publish`.
pub(crate) fn publish(value: &Bound<'_, PyAny>) -> PyResult<Publish> {
    let mut publish = Publish::new(([127, 0, 0, 1], 0), 0);
    each(value.cast::<PyDict>()?, |name, value| {
        match name {
            "address" => publish.address = address(value)?,
            "port" => publish.port = value.extract()?,
            "limits" => publish.limits = limits(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(publish)
}

/// The fields of `adl.Forward`, with all the addresses that it leads to.
pub(crate) fn forward(value: &Bound<'_, PyAny>) -> PyResult<Forward> {
    let mut forward = Forward::new(0, ([127, 0, 0, 1], 0));
    each(value.cast::<PyDict>()?, |name, value| {
        match name {
            "address" => forward.address = address(value)?,
            "to" => {
                forward.to =
                    value.try_iter()?.map(|one| address(&one?)).collect::<PyResult<_>>()?;
            }
            "limits" => forward.limits = limits(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(forward)
}

/// The fields of `adl.ConnectionLimits`.
fn limits(value: &Bound<'_, PyAny>) -> PyResult<ConnectionLimits> {
    let mut limits = ConnectionLimits::default();
    each(value.cast::<PyDict>()?, |name, value| {
        match name {
            "connections" => limits.connections = Some(value.extract()?),
            "connections_per_second" => limits.connections_per_second = Some(value.extract()?),
            "bytes_per_second" => limits.bytes_per_second = Some(value.extract()?),
            "bytes" => limits.bytes = Some(value.extract()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(limits)
}

/// A socket whose owner is Python from here on.
pub(crate) fn given(socket: impl Into<OwnedFd>) -> i32 {
    socket.into().into_raw_fd()
}
