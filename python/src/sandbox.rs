//! `Sandbox`: its life, and what is run in it.

use std::mem;
use std::ops::Deref;
use std::os::fd::IntoRawFd;
use std::sync::{Arc, Mutex};

use adl_runtime::{self as adl, IfRunning, PooledSandbox, SnapshotOptions, Stdio};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::command::{bytes, check_spawned, command};
use crate::config::{Config, limits};
use crate::errors::raise;
use crate::files::Files;
use crate::images;
use crate::job::{Child, Job, Pending, lock, run_beside};
use crate::network::{self, Ends, Port, address};
use crate::results;
use crate::snapshot::Snapshot;
use crate::sys::{self as lent, Lent};
use crate::values::{duration, of, path, text, word};
use crate::wait::is_main_thread;

/// A sandbox.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug)]
pub(crate) struct Sandbox(Held);

/// Whose it is.
#[derive(Debug)]
enum Held {
    /// `None` when this is dropped.
    Own(Option<Box<adl::Sandbox>>),
    /// A pool's, until it is given back.
    Pooled(Mutex<Pooled>),
    /// Another caller's, who has it prepared or checked.
    Lent(Arc<Lent<adl::Sandbox>>),
}

#[derive(Debug)]
enum Pooled {
    Acquired(Arc<PooledSandbox>),
    /// Another takes its place.
    InReset,
    /// It had this name.
    GivenBack(String),
}

/// A sandbox while something is asked of it.
enum InUse<'a> {
    Own(&'a adl::Sandbox),
    Pooled(Arc<PooledSandbox>),
    Lent(lent::InUse<adl::Sandbox>),
}

impl Deref for InUse<'_> {
    type Target = adl::Sandbox;

    fn deref(&self) -> &adl::Sandbox {
        match self {
            Self::Own(sandbox) => sandbox,
            Self::Pooled(sandbox) => sandbox,
            Self::Lent(sandbox) => sandbox,
        }
    }
}

/// Its end takes as long as the kernel does: other threads go on meanwhile.
impl Drop for Sandbox {
    fn drop(&mut self) {
        let held = mem::replace(&mut self.0, Held::Own(None));
        let end = move || drop(held);
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
    pub(crate) fn pooled(sandbox: PooledSandbox) -> Self {
        Self(Held::Pooled(Mutex::new(Pooled::Acquired(Arc::new(sandbox)))))
    }

    pub(crate) fn lent(sandbox: &Arc<Lent<adl::Sandbox>>) -> Self {
        Self(Held::Lent(Arc::clone(sandbox)))
    }

    fn look(&self) -> adl::Result<InUse<'_>> {
        match &self.0 {
            Held::Own(Some(sandbox)) => Ok(InUse::Own(sandbox)),
            Held::Own(None) => Err(adl::Error::Deleted),
            Held::Pooled(pooled) => match &*lock(pooled) {
                Pooled::Acquired(sandbox) => Ok(InUse::Pooled(Arc::clone(sandbox))),
                Pooled::InReset => Err(adl::Error::SandboxDied),
                Pooled::GivenBack(_) => Err(adl::Error::Deleted),
            },
            Held::Lent(lent) => lent.get().map(InUse::Lent).ok_or(adl::Error::Deleted),
        }
    }

    fn get(&self) -> PyResult<InUse<'_>> {
        self.look().map_err(raise)
    }

    fn detached<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&adl::Sandbox) -> adl::Result<T> + Send,
    ) -> PyResult<T> {
        // It is let go of without the interpreter, too.
        py.detach(|| work(&*self.look()?)).map_err(raise)
    }
}

/// Puts another sandbox of the pool in the place of one.
fn reset_pooled(pooled: &Mutex<Pooled>) -> adl::Result<()> {
    let busy = || adl::Error::Busy { what: "the sandbox".into(), by: "another thread".into() };
    let mut held = lock(pooled);
    let name = match &*held {
        Pooled::Acquired(sandbox) => sandbox.name().to_owned(),
        Pooled::InReset => return Err(busy()),
        Pooled::GivenBack(_) => return Err(adl::Error::Deleted),
    };
    let Pooled::Acquired(sandbox) = mem::replace(&mut *held, Pooled::InReset) else {
        return Err(busy());
    };
    let mut sandbox = match Arc::try_unwrap(sandbox) {
        Ok(sandbox) => sandbox,
        Err(in_use) => {
            *held = Pooled::Acquired(in_use);
            return Err(busy());
        }
    };
    // To prepare another may take the interpreter, which may wait for this lock.
    drop(held);
    let reset = sandbox.reset();
    let mut held = lock(pooled);
    match &*held {
        Pooled::InReset => *held = Pooled::Acquired(Arc::new(sandbox)),
        // It was given back meanwhile.
        _ => *held = Pooled::GivenBack(name),
    }
    reset
}

/// Has the pool delete a sandbox.
fn give_back(pooled: &Mutex<Pooled>) {
    let before = {
        let mut held = lock(pooled);
        let name = match &*held {
            Pooled::Acquired(sandbox) => sandbox.name().to_owned(),
            Pooled::InReset => String::new(),
            Pooled::GivenBack(_) => return,
        };
        mem::replace(&mut *held, Pooled::GivenBack(name))
    };
    drop(before);
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
        Ok(Self(Held::Own(Some(Box::new(made)))))
    }

    #[getter]
    fn name(&self) -> PyResult<String> {
        if let Held::Pooled(pooled) = &self.0
            && let Pooled::GivenBack(name) = &*lock(pooled)
        {
            return Ok(name.clone());
        }
        Ok(self.get()?.name().to_owned())
    }

    #[getter]
    fn init_pid(&self) -> PyResult<i32> {
        Ok(self.get()?.init_pid())
    }

    #[getter]
    fn is_alive(&self) -> bool {
        self.look().is_ok_and(|sandbox| sandbox.is_alive())
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
        match &self.0 {
            Held::Pooled(pooled) => py.detach(|| reset_pooled(pooled)).map_err(raise),
            _ => self.detached(py, adl::Sandbox::reset),
        }
    }

    fn delete(&self, py: Python<'_>) -> PyResult<()> {
        match &self.0 {
            Held::Pooled(pooled) => {
                py.detach(|| give_back(pooled));
                Ok(())
            }
            _ => self.detached(py, adl::Sandbox::delete),
        }
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
        let command = command(&*self.get()?, args, options)?;
        let output = if is_main_thread() {
            Pending::run(py, command)?
        } else {
            py.detach(move || { command }.output()).map_err(raise)?
        };
        results::output(py, &output)
    }

    /// Runs one with streams of the caller's to its end.
    fn run_beside<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'_, PyAny>,
        options: &Bound<'_, PyDict>,
        input: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let mut command = command(&*self.get()?, args, options)?;
        let input = input.map(bytes).transpose()?;
        if input.is_some() {
            if options.get_item("stdin")?.is_some_and(|stdin| !stdin.is_none()) {
                let why = "stdin was set, too: set one of them".to_owned();
                return Err(raise(adl::Error::Invalid { what: "input", why }));
            }
            command.stdin(Stdio::piped());
        }
        results::output(py, &run_beside(py, command, input)?)
    }

    fn begin(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyAny>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Pending> {
        let mut command = command(&*self.get()?, args, options)?;
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
        let mut command = command(&sandbox, args, options)?;
        let pidfd = sandbox.pidfd().map_err(raise)?;
        py.detach(|| command.spawn()).map(|child| Child::new(child, pidfd)).map_err(raise)
    }

    fn background(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyAny>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Job> {
        let mut command = command(&*self.get()?, args, options)?;
        py.detach(|| command.background()).map(Job).map_err(raise)
    }

    fn jobs(&self) -> PyResult<Vec<Job>> {
        Ok(self.get()?.jobs().into_iter().map(Job).collect())
    }

    fn job(&self, number: u64) -> PyResult<Option<Job>> {
        Ok(self.get()?.job(number).map(Job))
    }

    fn connect(
        &self,
        py: Python<'_>,
        to: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<i32> {
        let (to, timeout) = (address(to)?, of("timeout", duration(timeout), py)?);
        self.detached(py, |sandbox| sandbox.connect_timeout(to, timeout)).map(network::given)
    }

    fn connect_unix(
        &self,
        py: Python<'_>,
        at: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<i32> {
        let (at, timeout) = (path(at)?, of("timeout", duration(timeout), py)?);
        let connect = |sandbox: &adl::Sandbox| sandbox.files().timeout(timeout).connect_unix(&at);
        self.detached(py, connect).map(network::given)
    }

    fn listen(&self, py: Python<'_>, at: &Bound<'_, PyAny>) -> PyResult<i32> {
        let at = address(at)?;
        self.detached(py, |sandbox| sandbox.listen(at)).map(network::given)
    }

    fn publish(&self, py: Python<'_>, fields: &Bound<'_, PyAny>) -> PyResult<Port> {
        let publish = network::publish(fields)?;
        self.detached(py, |sandbox| sandbox.publish(&publish)).map(Port)
    }

    fn forward(&self, py: Python<'_>, fields: &Bound<'_, PyAny>) -> PyResult<Port> {
        let forward = network::forward(fields)?;
        self.detached(py, |sandbox| sandbox.forward(&forward)).map(Port)
    }

    fn ports(&self, py: Python<'_>) -> PyResult<Vec<Port>> {
        let ports = self.detached(py, |sandbox| Ok(sandbox.ports()))?;
        Ok(ports.into_iter().map(Port).collect())
    }

    fn close_port(&self, py: Python<'_>, port: &Port) -> PyResult<()> {
        self.detached(py, |sandbox| sandbox.close_port(&port.0))
    }

    fn watch_connections(&self, py: Python<'_>) -> PyResult<Ends> {
        let (tell, ends) = network::ends();
        self.detached(py, |sandbox| sandbox.watch_connections(tell))?;
        Ok(ends)
    }
}
