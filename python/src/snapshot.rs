//! Snapshots, and what concerns the state directory as a whole.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use adl_runtime::{self as adl, Export};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::raise;
use crate::files::PythonFile;
use crate::results;
use crate::values::{duration, of, text, word};

/// What a sandbox had written at a moment.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug)]
pub(crate) struct Snapshot {
    name: String,
    /// Until it was deleted.
    held: Mutex<Option<adl::Snapshot>>,
}

impl Snapshot {
    pub(crate) fn new(snapshot: adl::Snapshot) -> Self {
        Self { name: snapshot.name().to_owned(), held: Mutex::new(Some(snapshot)) }
    }

    fn with<T>(&self, work: impl FnOnce(&adl::Snapshot) -> adl::Result<T>) -> adl::Result<T> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = || adl::Error::NoSnapshot { name: self.name.clone() };
        work(held.as_ref().ok_or_else(gone)?)
    }

    fn take(&self) -> adl::Result<adl::Snapshot> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.take().ok_or_else(|| adl::Error::NoSnapshot { name: self.name.clone() })
    }

    fn put_back(&self, snapshot: Option<adl::Snapshot>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// The configuration of a fork.
    pub(crate) fn settings(&self) -> PyResult<adl::Config> {
        self.with(|snapshot| Ok(snapshot.config())).map_err(raise)
    }
}

#[pymethods]
impl Snapshot {
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    #[getter]
    fn lies_on(&self) -> PyResult<Option<String>> {
        self.with(|snapshot| Ok(snapshot.lies_on().map(str::to_owned))).map_err(raise)
    }

    /// Seconds since 1970.
    #[getter]
    fn made_at(&self) -> PyResult<Option<f64>> {
        let made_at = self.with(|snapshot| Ok(snapshot.made_at())).map_err(raise)?;
        Ok(made_at.and_then(results::since_1970))
    }

    fn changes(&self, py: Python<'_>) -> PyResult<Vec<(OsString, String)>> {
        let changes = py.detach(|| self.with(adl::Snapshot::changes)).map_err(raise)?;
        Ok(results::changes(changes))
    }

    fn export<'py>(
        &self,
        what: &Bound<'_, PyAny>,
        archive: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let what = word(what, &[("layer", Export::Layer), ("tree", Export::Tree)])?;
        let mut file = PythonFile::new(archive);
        let py = archive.py();
        let report = py.detach(|| self.with(|snapshot| snapshot.export(what, &mut file)));
        file.report(py, report)
    }

    fn delete(&self, py: Python<'_>) -> PyResult<()> {
        let delete = || {
            let snapshot = self.take()?;
            let state_directory = snapshot.config().state_directory;
            snapshot.delete().inspect_err(|_| {
                // It stays, and so does what is known of it; one without a name goes with its users.
                self.put_back(adl::Snapshot::open(state_directory.as_deref(), &self.name).ok());
            })
        };
        py.detach(delete).map_err(raise)
    }

    fn replace(&self, name: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (py, name) = (name.py(), text("snapshot name", name)?);
        let replace = || {
            self.take()?.replace(&name).map_err(|failed| {
                self.put_back(failed.snapshot);
                failed.error
            })
        };
        py.detach(replace).map(Self::new).map_err(raise)
    }
}

#[pyfunction]
pub(crate) fn open_snapshot(
    state_directory: Option<PathBuf>,
    name: &Bound<'_, PyAny>,
) -> PyResult<Snapshot> {
    let (py, name) = (name.py(), text("snapshot name", name)?);
    let opened = py.detach(|| adl::Snapshot::open(state_directory.as_deref(), &name));
    opened.map(Snapshot::new).map_err(raise)
}

#[pyfunction]
pub(crate) fn list_snapshots(
    py: Python<'_>,
    state_directory: Option<PathBuf>,
) -> PyResult<Vec<String>> {
    py.detach(|| adl::Snapshot::list(state_directory.as_deref())).map_err(raise)
}

#[pyfunction]
pub(crate) fn remove_snapshot(
    state_directory: Option<PathBuf>,
    name: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (py, name) = (name.py(), text("snapshot name", name)?);
    py.detach(|| adl::Snapshot::remove(state_directory.as_deref(), &name)).map_err(raise)
}

#[pyfunction]
pub(crate) fn collect_garbage(
    py: Python<'_>,
    state_directory: Option<PathBuf>,
) -> PyResult<Vec<String>> {
    py.detach(|| adl::collect_garbage(state_directory.as_deref())).map_err(raise)
}

#[pyfunction]
pub(crate) fn finish_removals(py: Python<'_>) {
    py.detach(adl::finish_removals);
}

#[pyfunction]
pub(crate) fn keep_blanks(py: Python<'_>, most: &Bound<'_, PyAny>) -> PyResult<()> {
    let most = of("most", most.extract::<usize>(), py)?;
    py.detach(|| adl::keep_blanks(most));
    Ok(())
}

#[pyfunction]
pub(crate) fn blanks_ready() -> usize {
    adl::blanks_ready()
}

/// As JSON.
#[pyfunction]
pub(crate) fn metrics(py: Python<'_>) -> PyResult<String> {
    // A thread of a pool may have its lock and wait for the interpreter.
    let metrics = py.detach(adl::metrics);
    serde_json::to_string(&metrics).map_err(|error| PyRuntimeError::new_err(error.to_string()))
}

#[pyfunction]
pub(crate) fn pending_removals() -> usize {
    adl::pending_removals()
}

#[pyfunction]
pub(crate) fn wait_at_exit(limit: &Bound<'_, PyAny>) -> PyResult<()> {
    let limit: Duration = duration(limit)?;
    adl::wait_at_exit(limit);
    Ok(())
}

/// `(what, verdict, detail, remedy)` of each check.
type Check = (String, String, String, Option<String>);

#[pyfunction]
pub(crate) fn examine(py: Python<'_>, state_directory: Option<PathBuf>) -> Vec<Check> {
    let checks = py.detach(|| adl::doctor::examine(state_directory.as_deref()));
    checks
        .into_iter()
        .map(|check| {
            let verdict = results::snake_case(&format!("{:?}", check.verdict));
            (check.what.to_owned(), verdict, check.detail, check.remedy)
        })
        .collect()
}
