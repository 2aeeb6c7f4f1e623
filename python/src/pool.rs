//! Pools of sandboxes that are ready before they are asked for.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adl_runtime::{self as adl, PoolStats};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::config::Config;
use crate::errors::raise;
use crate::images;
use crate::sandbox::Sandbox;
use crate::sys::{Lent, lend};
use crate::values::{duration, each};
use crate::wait::{interruptible, is_main_thread};

/// A pool.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug)]
pub(crate) struct Pool(Option<adl::Pool>);

/// Its threads may need the interpreter to end.
impl Drop for Pool {
    fn drop(&mut self) {
        let pool = self.0.take();
        let mut end = Some(move || drop(pool));
        Python::try_attach(|py| {
            if let Some(end) = end.take() {
                py.detach(end);
            }
        });
    }
}

impl Pool {
    fn get(&self) -> PyResult<&adl::Pool> {
        self.0.as_ref().ok_or_else(|| raise(adl::Error::PoolClosed))
    }
}

#[pymethods]
impl Pool {
    /// `prepare` and `check` are called with a native sandbox, in threads of the pool.
    #[new]
    fn new(
        py: Python<'_>,
        config: &Config,
        options: &Bound<'_, PyDict>,
        prepare: Option<Py<PyAny>>,
        check: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        if let Some(name) = &config.reference {
            images::fetch(py, name, &config.settings)?;
        }
        let mut builder = Some(adl::Pool::builder(config.settings.clone()));
        each(options, |name, value| {
            let Some(before) = builder.take() else { return Ok(false) };
            let count = value.extract()?;
            builder = Some(match name {
                "minimum" => before.minimum(count),
                "maximum" => before.maximum(count),
                "prefetch" => before.prefetch(count),
                "threads" => before.threads(count),
                _ => return Ok(false),
            });
            Ok(true)
        })?;
        let mut builder = builder.ok_or_else(|| raise(adl::Error::PoolClosed))?;
        if let Some(prepare) = prepare {
            builder = builder.prepare(move |sandbox| asked(sandbox, &prepare, |_| Ok(())));
        }
        if let Some(check) = check {
            let is_true = |answer: &Bound<'_, PyAny>| answer.is_truthy();
            // What is raised says no.
            builder =
                builder.check(move |sandbox| asked(sandbox, &check, is_true).unwrap_or(false));
        }
        py.detach(|| builder.build()).map(|pool| Self(Some(pool))).map_err(raise)
    }

    fn acquire(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Sandbox> {
        let within = timeout.map(duration).transpose()?.unwrap_or(Duration::MAX);
        let pool = self.get()?;
        let acquired = if !is_main_thread() {
            py.detach(|| pool.acquire(within))
        } else {
            match at_once(py, pool, within) {
                Some(acquired) => acquired,
                None => {
                    let (pool, gave_up) = (pool.clone(), Arc::new(AtomicBool::new(false)));
                    let told = Arc::clone(&gave_up);
                    let acquire = move |_: &dyn Fn(())| {
                        pool.acquire_while(within, || !told.load(Ordering::Relaxed))
                    };
                    let acquired = interruptible(py, "adl-acquire", acquire, Ok);
                    // Where a signal handler has raised, the thread leaves the line.
                    gave_up.store(true, Ordering::Relaxed);
                    acquired?
                }
            }
        };
        acquired.map(Sandbox::pooled).map_err(raise)
    }

    /// Waits for as long as `is_wanted` says so.
    fn acquire_while(&self, py: Python<'_>, is_wanted: Py<PyAny>) -> PyResult<Sandbox> {
        let pool = self.get()?;
        let asked = || {
            Python::try_attach(|py| is_wanted.bind(py).call0()?.is_truthy()).is_some_and(|it| {
                // What is raised says no.
                it.unwrap_or(false)
            })
        };
        let acquired = py.detach(|| pool.acquire_while(Duration::MAX, asked));
        acquired.map(Sandbox::pooled).map_err(raise)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        // A thread of the pool may have its lock and wait for the interpreter.
        let pool = self.get()?;
        fields(py, &py.detach(|| pool.stats()))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let pool = self.get()?;
        if !is_main_thread() {
            return py.detach(|| pool.close()).map_err(raise);
        }
        // Where a signal handler raises, it goes on to close.
        let pool = pool.clone();
        interruptible(py, "adl-close", move |_: &dyn Fn(())| pool.close(), Ok)?.map_err(raise)
    }
}

/// What the caller's code has raised. Its text is known, and takes no interpreter: a pool may read
/// it with a lock for which the interpreter waits.
#[derive(Debug)]
pub(crate) struct Raised {
    pub(crate) error: PyErr,
    text: String,
}

impl Raised {
    fn new(error: PyErr) -> Self {
        let text = error.to_string();
        Self { error, text }
    }
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Raised {}

/// Takes a sandbox that is there, without a thread that could be waited for.
fn at_once(
    py: Python<'_>,
    pool: &adl::Pool,
    within: Duration,
) -> Option<adl::Result<adl::PooledSandbox>> {
    const MOMENT: Duration = Duration::from_millis(100);
    let stats = py.detach(|| pool.stats());
    if within > MOMENT && (stats.idle == 0 || stats.waiting > 0) {
        return None;
    }
    match py.detach(|| pool.acquire(within.min(MOMENT))) {
        // Another was faster.
        Err(adl::Error::TimedOut { .. }) if within > MOMENT => None,
        acquired => Some(acquired),
    }
}

/// Asks the caller's code about a sandbox, which it has for as long as it runs.
fn asked<T>(
    sandbox: &adl::Sandbox,
    callback: &Py<PyAny>,
    answer: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>,
) -> Result<T, Box<dyn StdError + Send + Sync>> {
    let ask = |lent: &std::sync::Arc<Lent<adl::Sandbox>>| {
        let told = Python::try_attach(|py| {
            let told = callback.bind(py).call1((Sandbox::lent(lent),));
            told.and_then(|told| answer(&told)).map_err(Raised::new)
        });
        match told {
            Some(told) => Ok(told?),
            None => Err("the interpreter has ended".into()),
        }
    };
    lend(sandbox, ask)
}

/// The fields of `adl.PoolStats`.
fn fields<'py>(py: Python<'py>, stats: &PoolStats) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("idle", stats.idle)?;
    fields.set_item("in_use", stats.in_use)?;
    fields.set_item("making", stats.making)?;
    fields.set_item("deleting", stats.deleting)?;
    fields.set_item("waiting", stats.waiting)?;
    fields.set_item("made", stats.made)?;
    fields.set_item("failed", stats.failed)?;
    fields.set_item("acquired", stats.acquired)?;
    fields.set_item("resets", stats.resets)?;
    fields.set_item("sick", stats.sick)?;
    fields.set_item("deleted", stats.deleted)?;
    fields.set_item("timed_out", stats.timed_out)?;
    fields.set_item("waited", stats.waited.as_secs_f64())?;
    fields.set_item("waited_most", stats.waited_most.as_secs_f64())?;
    fields.set_item("last_error", &stats.last_error)?;
    Ok(fields)
}
