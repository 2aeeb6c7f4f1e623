//! Images in layers: fetched, imported, listed and removed.

use std::path::PathBuf;
use std::time::Duration;

use adl_runtime::{self as adl, ImageCaps, ImageConfig, ImageInfo, Progress, PullOptions};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::errors::{raise, raised};
use crate::results::since_1970;
use crate::values::{duration, each, host_path, text};
use crate::wait::interruptible;

/// What names of images are called in errors.
const NAME: &str = "image name";

/// The images in layers of a state directory.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug)]
pub(crate) struct Images {
    state_directory: Option<PathBuf>,
}

/// How an image is fetched, apart from who hears of it.
#[derive(Debug, Default, Clone)]
struct Options {
    timeout: Option<Duration>,
    insecure: bool,
    ids: Option<u32>,
    caps: ImageCaps,
}

impl Options {
    fn new(options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let mut this = Self::default();
        each(options, |name, value| {
            match name {
                "timeout" => this.timeout = Some(duration(value)?),
                "insecure" => this.insecure = value.extract()?,
                "ids" => this.ids = Some(value.extract()?),
                "max_size" => this.caps.size = value.extract()?,
                "max_files" => this.caps.entries = value.extract()?,
                "max_depth" => this.caps.depth = value.extract()?,
                "max_ratio" => this.caps.ratio = value.extract()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(this)
    }

    fn with<'a>(&self, progress: &'a dyn Fn(&Progress)) -> PullOptions<'a> {
        let mut options = PullOptions::default();
        options.timeout = self.timeout.unwrap_or(options.timeout);
        options.insecure = self.insecure;
        options.ids = self.ids;
        options.caps = self.caps;
        options.progress = Some(progress);
        options
    }
}

/// Fetches or unpacks images, and tells how far that is and what was not kept.
fn long<T: Send + 'static>(
    py: Python<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(&dyn Fn(&Progress)) -> adl::Result<T> + Send + 'static,
) -> PyResult<T> {
    let work = |tell: &dyn Fn(Progress)| work(&|how_far| tell(*how_far));
    let heard = |how_far| match (progress, fields(&how_far)) {
        (Some(progress), Some(fields)) => progress.call1(fields).map(drop),
        _ => Ok(()),
    };
    interruptible(py, "adl-pull", work, heard)?.map_err(raise)
}

/// The phase, the layer, how many there are, and numbers: `(bytes, of)`, or of what was not kept
/// `(owners, nodes, attributes)`.
fn fields(progress: &Progress) -> Option<(&'static str, usize, usize, Vec<u64>)> {
    match *progress {
        Progress::Fetching { layers, of_layers, bytes, of } => {
            Some(("fetching", layers, of_layers, vec![bytes, of]))
        }
        Progress::Unpacking { layer, layers, bytes, of } => {
            Some(("unpacking", layer, layers, vec![bytes, of]))
        }
        Progress::NotKept { layer, layers, owners, nodes, attributes } => {
            Some(("not kept", layer, layers, vec![owners, nodes, attributes]))
        }
        // One that is newer than this crate.
        _ => None,
    }
}

#[pymethods]
impl Images {
    #[new]
    fn new(py: Python<'_>, state_directory: Option<PathBuf>) -> PyResult<Self> {
        let this = Self { state_directory };
        py.detach(|| this.open()).map_err(raise)?;
        Ok(this)
    }

    #[pyo3(signature = (name, options, progress))]
    fn pull<'py>(
        &self,
        py: Python<'py>,
        name: &Bound<'py, PyAny>,
        options: &Bound<'py, PyDict>,
        progress: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (name, options) = (text(NAME, name)?, Options::new(options)?);
        let images = self.open().map_err(raise)?;
        let pulled = long(py, progress, move |tell| images.pull(&name, &options.with(tell)))?;
        info(py, &pulled)
    }

    #[pyo3(signature = (name, options, progress))]
    fn pull_if_missing<'py>(
        &self,
        py: Python<'py>,
        name: &Bound<'py, PyAny>,
        options: &Bound<'py, PyDict>,
        progress: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        self.fetch(py, text(NAME, name)?, Options::new(options)?, progress)
    }

    #[pyo3(signature = (path, which, name, options, progress))]
    fn import_image<'py>(
        &self,
        path: &Bound<'py, PyAny>,
        which: Option<Bound<'py, PyAny>>,
        name: Option<Bound<'py, PyAny>>,
        options: &Bound<'py, PyDict>,
        progress: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let py = path.py();
        let (path, options) = (host_path(path)?, Options::new(options)?);
        let which = which.map(|which| text("which", &which)).transpose()?;
        let name = name.map(|name| text(NAME, &name)).transpose()?;
        let images = self.open().map_err(raise)?;
        let imported = long(py, progress, move |tell| {
            images.import(path, which.as_deref(), name.as_deref(), &options.with(tell))
        })?;
        info(py, &imported)
    }

    #[pyo3(signature = (name, ids))]
    fn is_there(&self, name: &Bound<'_, PyAny>, ids: Option<u32>) -> PyResult<bool> {
        let (py, name) = (name.py(), text(NAME, name)?);
        py.detach(|| self.open()?.is_there(&name, ids)).map_err(raise)
    }

    /// Those that can be read, and of the others why not.
    fn all<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyList>)> {
        let (read, unread) = (PyList::empty(py), PyList::empty(py));
        for image in py.detach(|| self.open()?.list()).map_err(raise)? {
            match image {
                Ok(image) => read.append(info(py, &image)?)?,
                Err(error) => unread.append(raised(&error).into_value(py))?,
            }
        }
        Ok((read, unread))
    }

    /// `(name, size, last_used)` of each.
    fn made(&self, py: Python<'_>) -> PyResult<Vec<(String, u64, Option<f64>)>> {
        let made = py.detach(|| self.open()?.made()).map_err(raise)?;
        let plain = |it: adl::MadeImage| (it.name, it.size, it.last_used.and_then(since_1970));
        Ok(made.into_iter().map(plain).collect())
    }

    fn get<'py>(&self, name: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
        let (py, name) = (name.py(), text(NAME, name)?);
        info(py, &py.detach(|| self.open()?.get(&name)).map_err(raise)?)
    }

    fn documents<'py>(
        &self,
        name: &Bound<'py, PyAny>,
    ) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let (py, name) = (name.py(), text(NAME, name)?);
        let [manifest, config] = py.detach(|| self.open()?.documents(&name)).map_err(raise)?;
        Ok((PyBytes::new(py, &manifest), PyBytes::new(py, &config)))
    }

    fn remove(&self, name: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
        let (py, name) = (name.py(), text(NAME, name)?);
        py.detach(|| self.open()?.remove(&name)).map_err(raise)
    }

    fn prune(&self, unused_for: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
        let (py, unused_for) = (unused_for.py(), duration(unused_for)?);
        py.detach(|| self.open()?.prune(unused_for)).map_err(raise)
    }
}

impl Images {
    /// Fetches an image where it is not there.
    fn fetch(
        &self,
        py: Python<'_>,
        name: String,
        options: Options,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let images = self.open().map_err(raise)?;
        if py.detach(|| images.is_there(&name, options.ids)).map_err(raise)? {
            return Ok(());
        }
        long(py, progress, move |tell| images.pull_if_missing(&name, &options.with(tell)))
    }

    fn open(&self) -> adl::Result<adl::Images> {
        adl::Images::open(self.state_directory.as_deref())
    }
}

/// Fetches the image that a sandbox is to be made of, where it is not there, so that the wait for
/// that can be interrupted.
pub(crate) fn fetch(py: Python<'_>, name: &str, settings: &adl::Config) -> PyResult<()> {
    let images = Images { state_directory: settings.state_directory.clone() };
    let options = Options { ids: settings.ids, ..Options::default() };
    images.fetch(py, name.to_owned(), options, None)
}

/// The fields of `adl.ImageInfo`.
fn info<'py>(py: Python<'py>, info: &ImageInfo) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    fields.set_item("names", &info.names)?;
    fields.set_item("digest", &info.digest)?;
    fields.set_item("layers", &info.layers)?;
    fields.set_item("size", info.size)?;
    fields.set_item("last_used", info.last_used.and_then(since_1970))?;
    fields.set_item("config", config(py, &info.config)?)?;
    Ok(fields)
}

/// The fields of `adl.ImageConfig`.
pub(crate) fn config<'py>(py: Python<'py>, says: &ImageConfig) -> PyResult<Bound<'py, PyDict>> {
    let fields = PyDict::new(py);
    let env = PyDict::new(py);
    for (name, value) in &says.env {
        env.set_item(name, value)?;
    }
    fields.set_item("env", env)?;
    fields.set_item("working_dir", says.working_dir.as_ref().map(|path| path.as_os_str()))?;
    fields.set_item("user", &says.user)?;
    fields.set_item("entrypoint", &says.entrypoint)?;
    fields.set_item("cmd", &says.cmd)?;
    fields.set_item("stop_signal", &says.stop_signal)?;
    fields.set_item("labels", &says.labels)?;
    fields.set_item("exposed_ports", &says.exposed_ports)?;
    fields.set_item("created", &says.created)?;
    Ok(fields)
}
