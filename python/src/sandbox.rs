//! `Sandbox`: its life, and what is run in it.

use std::os::fd::IntoRawFd;
use std::sync::Arc;

use adl_runtime::{self as adl, IfRunning, SnapshotOptions};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::command::{check_spawned, command};
use crate::config::{Config, limits};
use crate::errors::raise;
use crate::files::Files;
use crate::images;
use crate::job::{Child, Job, Pending};
use crate::results;
use crate::snapshot::Snapshot;
use crate::values::{text, word};
use crate::wait::is_main_thread;

/// A sandbox.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug)]
pub(crate) struct Sandbox(Option<Arc<adl::Sandbox>>);

/// Its end takes as long as the kernel does: other threads go on meanwhile.
impl Drop for Sandbox {
    fn drop(&mut self) {
        let sandbox = self.0.take();
        let end = move || drop(sandbox);
        // At the end of the interpreter there is none to let go of.
        let mut end = Some(end);
        let ended = Python::try_attach(|py| {
            if let Some(end) = end.take() {
                py.detach(end);
            }
        });
        if ended.is_none() {
            drop(end);
        }
    }
}

impl Sandbox {
    fn get(&self) -> PyResult<&Arc<adl::Sandbox>> {
        self.0.as_ref().ok_or_else(|| raise(adl::Error::Deleted))
    }

    fn detached<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&adl::Sandbox) -> adl::Result<T> + Send,
    ) -> PyResult<T> {
        let sandbox = self.get()?;
        py.detach(|| work(sandbox)).map_err(raise)
    }
}

#[pymethods]
impl Sandbox {
    #[new]
    fn new(py: Python<'_>, config: &Config) -> PyResult<Self> {
        let settings = config.settings.clone();
        if let Some(name) = &config.reference {
            images::fetch(py, name, &settings)?;
        }
        let made = py.detach(|| adl::Sandbox::create(settings)).map_err(raise)?;
        Ok(Self(Some(Arc::new(made))))
    }

    #[getter]
    fn name(&self) -> PyResult<&str> {
        Ok(self.get()?.name())
    }

    #[getter]
    fn init_pid(&self) -> PyResult<i32> {
        Ok(self.get()?.init_pid())
    }

    #[getter]
    fn is_alive(&self) -> bool {
        self.0.as_ref().is_some_and(|sandbox| sandbox.is_alive())
    }

    #[getter]
    fn id_range(&self) -> PyResult<Option<(u32, u32)>> {
        Ok(self.get()?.id_range())
    }

    #[getter]
    fn image_config<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        self.get()?.image_config().map(|says| images::config(py, says)).transpose()
    }

    fn pidfd(&self) -> PyResult<i32> {
        Ok(self.get()?.pidfd().map_err(raise)?.into_raw_fd())
    }

    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, adl::Sandbox::reset)
    }

    fn delete(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, adl::Sandbox::delete)
    }

    fn kill_all(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, adl::Sandbox::kill_all)
    }

    fn freeze(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, adl::Sandbox::freeze)
    }

    fn thaw(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, adl::Sandbox::thaw)
    }

    fn set_limits(&self, py: Python<'_>, fields: &Bound<'_, PyAny>) -> PyResult<()> {
        let limits = limits(fields)?;
        self.detached(py, |sandbox| sandbox.set_limits(limits))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.detached(py, adl::Sandbox::stats)?;
        results::stats(py, &stats)
    }

    fn changes(&self, py: Python<'_>) -> PyResult<Vec<(std::ffi::OsString, String)>> {
        self.detached(py, adl::Sandbox::changes).map(results::changes)
    }

    #[pyo3(signature = (name, running))]
    fn snapshot(
        &self,
        py: Python<'_>,
        name: Option<&Bound<'_, PyAny>>,
        running: &Bound<'_, PyAny>,
    ) -> PyResult<Snapshot> {
        let name = name.map(|name| text("snapshot name", name)).transpose()?;
        let running = word(running, &[("refuse", IfRunning::Refuse), ("end", IfRunning::End)])?;
        let options = SnapshotOptions { name, running };
        self.detached(py, |sandbox| sandbox.snapshot_with(&options)).map(Snapshot::new)
    }

    fn files(&self, options: &Bound<'_, PyDict>) -> PyResult<Files> {
        Files::new(self.get()?.files(), options)
    }

    /// Runs a command to its end. In the main thread it is ended when a signal handler raises.
    fn run<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'_, PyAny>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let command = command(self.get()?, args, options)?;
        let output = if is_main_thread() {
            Pending::run(py, command)?
        } else {
            py.detach(move || { command }.output()).map_err(raise)?
        };
        results::output(py, &output)
    }

    fn begin(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyAny>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Pending> {
        let mut command = command(self.get()?, args, options)?;
        py.detach(|| command.begin_output()).map(Pending::new).map_err(raise)
    }

    fn spawn(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyAny>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Child> {
        check_spawned(options)?;
        let sandbox = self.get()?;
        let mut command = command(sandbox, args, options)?;
        let pidfd = sandbox.pidfd().map_err(raise)?;
        py.detach(|| command.spawn()).map(|child| Child::new(child, pidfd)).map_err(raise)
    }

    fn background(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyAny>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Job> {
        let mut command = command(self.get()?, args, options)?;
        py.detach(|| command.background()).map(Job).map_err(raise)
    }

    fn jobs(&self) -> PyResult<Vec<Job>> {
        Ok(self.get()?.jobs().into_iter().map(Job).collect())
    }

    fn job(&self, number: u64) -> PyResult<Option<Job>> {
        Ok(self.get()?.job(number).map(Job))
    }
}
