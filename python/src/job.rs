//! Commands that run: collected by an event loop, beside the caller, in the background.

use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use adl_runtime::{
    self as adl, Command, ExitStatus, Handle, Output, OutputCursor, PendingOutput, Scope,
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::errors::raise;
use crate::results;
use crate::values::{duration, word};
use crate::wait::{AT_ONCE, TICK, Until, begin, readable};

pub(crate) fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

fn until(timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Until> {
    Ok(Until::after(timeout.map(duration).transpose()?))
}

fn scope(value: &Bound<'_, PyAny>) -> PyResult<Scope> {
    word(value, &[("process", Scope::Process), ("group", Scope::Group), ("tree", Scope::Tree)])
}

/// A number of a signal, or one of `signal.Signals`.
fn signal(value: &Bound<'_, PyAny>) -> PyResult<u8> {
    let number: i64 = value.extract()?;
    let invalid =
        || adl::Error::Invalid { what: "signal", why: format!("{number} is not from 1 to 64") };
    u8::try_from(number).map_err(|_| raise(invalid()))
}

/// A command whose output is collected step by step.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug)]
pub(crate) struct Pending {
    output: Mutex<PendingOutput>,
    handle: Handle,
}

impl Pending {
    pub(crate) fn new(output: PendingOutput) -> Self {
        let handle = output.handle();
        Self { output: Mutex::new(output), handle }
    }

    /// Runs a command to its end. Where a signal handler raises, it is killed first.
    pub(crate) fn run(py: Python<'_>, mut command: Command) -> PyResult<Output> {
        let begun = py.detach(|| {
            let mut pending = command.begin_output()?;
            let ended = pending.advance_within(AT_ONCE)?;
            Ok((pending, ended))
        });
        let (mut pending, mut ended) = begun.map_err(raise)?;
        let mut raised = None;
        loop {
            if let Some(output) = ended {
                return raised.map_or(Ok(output), Err);
            }
            if let Err(error) = py.check_signals() {
                py.detach(|| pending.handle().kill()).map_err(raise)?;
                raised.get_or_insert(error);
            }
            ended = py.detach(|| pending.advance_within(AT_ONCE)).map_err(raise)?;
        }
    }
}

#[pymethods]
impl Pending {
    fn fileno(&self) -> PyResult<i32> {
        Ok(lock(&self.output).watch().map_err(raise)?.as_raw_fd())
    }

    fn wait_at_most(&self) -> Option<f64> {
        lock(&self.output).wait_at_most().map(|most| most.as_secs_f64())
    }

    fn advance<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let advanced = py.detach(|| lock(&self.output).advance()).map_err(raise)?;
        advanced.map(|output| results::output(py, &output)).transpose()
    }

    fn kill(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.handle.kill()).map_err(raise)
    }
}

/// Runs a command to its end, in a thread that moves what streams of the caller's take. Where a
/// signal handler raises, it is killed first.
pub(crate) fn run_beside(
    py: Python<'_>,
    mut command: Command,
    input: Option<Vec<u8>>,
) -> PyResult<Output> {
    let mut child = py.detach(|| command.spawn()).map_err(raise)?;
    let handle = child.handle();
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // Beside what is read, or one could wait for the other. What no one reads is no error.
        let feed = move || drop(stdin.write_all(&input));
        thread::Builder::new().name("adl-feed".to_owned()).spawn(feed)?;
    }
    let wait = move |_: &dyn Fn(())| child.wait_with_output();
    let ended = begin("adl-run", wait)?;
    match ended.wait(py, Ok) {
        Ok(output) => output.map_err(raise),
        Err(raised) => {
            py.detach(|| handle.kill()).map_err(raise)?;
            // It is gone when this returns, or in a moment.
            ended.wait_within(py, AT_ONCE);
            Err(raised)
        }
    }
}

/// A command that runs beside the caller.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug)]
pub(crate) struct Child {
    child: Mutex<adl::Child>,
    handle: Handle,
    /// Of the sandbox's init.
    pidfd: OwnedFd,
}

impl Child {
    pub(crate) fn new(child: adl::Child, pidfd: OwnedFd) -> Self {
        let handle = child.handle();
        Self { child: Mutex::new(child), handle, pidfd }
    }
}

/// Descriptors that are the caller's now.
type Taken = (Option<i32>, Option<i32>, Option<i32>, Option<i32>);

#[pymethods]
impl Child {
    #[getter]
    fn pid(&self) -> i32 {
        lock(&self.child).id().as_raw()
    }

    /// Takes the pipes and the terminal: `(stdin, stdout, stderr, terminal)`.
    fn take(&self) -> PyResult<Taken> {
        let mut child = lock(&self.child);
        let stdin = child.stdin.take().map(|pipe| OwnedFd::from(pipe).into_raw_fd());
        let stdout = child.stdout.take().map(|pipe| OwnedFd::from(pipe).into_raw_fd());
        let stderr = child.stderr.take().map(|pipe| OwnedFd::from(pipe).into_raw_fd());
        // Another stays here, to set its size.
        let terminal = child.terminal.as_ref().map(adl::Terminal::try_clone);
        let terminal = terminal.transpose().map_err(raise)?;
        Ok((stdin, stdout, stderr, terminal.map(|it| OwnedFd::from(it).into_raw_fd())))
    }

    fn resize(&self, rows: u16, columns: u16) -> PyResult<()> {
        let child = lock(&self.child);
        let no_terminal = || {
            let why = "the command has none: say terminal=(rows, columns)".to_owned();
            raise(adl::Error::Invalid { what: "terminal", why })
        };
        child.terminal.as_ref().ok_or_else(no_terminal)?.resize(rows, columns).map_err(raise)
    }

    /// Lets go of the terminal: where the caller has no other of it, what runs there gets SIGHUP.
    fn close_terminal(&self) {
        drop(lock(&self.child).terminal.take());
    }

    /// How it has ended, if it has.
    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let ended = py.detach(|| self.handle.try_wait()).map_err(raise)?;
        ended.map(|status| results::status(py, &status)).transpose()
    }

    /// Waits for its end; `None` if it goes on after `timeout`.
    #[pyo3(signature = (timeout))]
    fn wait<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let until = until(timeout)?;
        let ended: Option<ExitStatus> = loop {
            if py.detach(|| self.handle.try_wait()).map_err(raise)?.is_some() {
                // What it wrote to streams of the caller's may be on its way.
                let delivered = py.detach(|| self.handle.wait_timeout(TICK.min(until.left())));
                if let Some(status) = delivered.map_err(raise)? {
                    break Some(status);
                }
                py.check_signals()?;
            }
            if until.has_passed() {
                break None;
            }
            readable(py, &[self.handle.as_fd(), self.pidfd.as_fd()], until.left())?;
        };
        ended.map(|status| results::status(py, &status)).transpose()
    }

    /// A new descriptor that is readable when it may have ended.
    fn watch(&self) -> PyResult<i32> {
        let failed = |errno| PyErr::from(std::io::Error::from(errno));
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        for fd in [self.handle.as_fd(), self.pidfd.as_fd()] {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)).map_err(failed)?;
        }
        Ok(epoll.0.into_raw_fd())
    }

    fn kill(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.handle.kill()).map_err(raise)
    }

    fn send_signal(
        &self,
        py: Python<'_>,
        number: &Bound<'_, PyAny>,
        to: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (number, to) = (signal(number)?, scope(to)?);
        py.detach(|| self.handle.signal(number, to)).map_err(raise)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = py.detach(|| self.handle.stats()).map_err(raise)?;
        results::stats(py, &stats)
    }
}

/// A place in the output of a command in the background.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug, Default)]
pub(crate) struct Cursor(OutputCursor);

#[pymethods]
impl Cursor {
    #[new]
    fn new() -> Self {
        Self::default()
    }
}

/// A command in the background.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug)]
pub(crate) struct Job(pub(crate) adl::Job);

/// `(stdout, stderr, stdout_dropped, stderr_dropped, cursor)`.
type Since<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>, u64, u64, Cursor);

#[pymethods]
impl Job {
    #[getter]
    fn id(&self) -> u64 {
        self.0.id().as_u64()
    }

    #[getter]
    fn pid(&self) -> i32 {
        self.0.pid().as_raw()
    }

    #[getter]
    fn program(&self) -> std::ffi::OsString {
        self.0.program().as_os_str().to_owned()
    }

    fn fileno(&self) -> i32 {
        self.0.as_fd().as_raw_fd()
    }

    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let ended = self.0.try_wait().map_err(raise)?;
        ended.map(|status| results::status(py, &status)).transpose()
    }

    #[pyo3(signature = (timeout))]
    fn wait<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let until = until(timeout)?;
        loop {
            let ended = py.detach(|| self.0.wait_timeout(Duration::ZERO)).map_err(raise)?;
            if let Some(output) = ended {
                return results::output(py, &output).map(Some);
            }
            if until.has_passed() {
                return Ok(None);
            }
            readable(py, &[self.0.as_fd()], until.left())?;
        }
    }

    fn output_since<'py>(&self, py: Python<'py>, cursor: &Cursor) -> Since<'py> {
        let (output, next) = py.detach(|| self.0.output_since(cursor.0));
        (
            PyBytes::new(py, &output.stdout),
            PyBytes::new(py, &output.stderr),
            output.stdout_dropped,
            output.stderr_dropped,
            Cursor(next),
        )
    }

    #[pyo3(signature = (cursor, timeout))]
    fn wait_output(
        &self,
        py: Python<'_>,
        cursor: &Cursor,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let until = until(timeout)?;
        loop {
            let most = TICK.min(until.left());
            let waited = py.detach(|| {
                let has_more = self.0.wait_output(cursor.0, most)?;
                Ok((has_more, self.0.try_wait().is_ok_and(|status| status.is_none())))
            });
            let (has_more, goes_on) = waited.map_err(raise)?;
            if has_more || !goes_on || until.has_passed() {
                return Ok(has_more);
            }
            py.check_signals()?;
        }
    }

    fn kill(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.kill()).map_err(raise)
    }

    fn send_signal(
        &self,
        py: Python<'_>,
        number: &Bound<'_, PyAny>,
        to: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (number, to) = (signal(number)?, scope(to)?);
        py.detach(|| self.0.signal(number, to)).map_err(raise)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = py.detach(|| self.0.handle().stats()).map_err(raise)?;
        results::stats(py, &stats)
    }
}
