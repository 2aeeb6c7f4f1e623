//! Files of a sandbox.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};

use adl_runtime::{self as adl, CopyReport, WriteMode, WriteOptions};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::command::bytes;
use crate::config::user;
use crate::errors::{of_io, raise};
use crate::results;
use crate::values::{duration, each, host_path, path, word};

/// File calls, by the rights of one user.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug)]
pub(crate) struct Files(adl::Files);

impl Files {
    pub(crate) fn new(mut files: adl::Files, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        each(options, |name, value| set(&mut files, name, value))?;
        Ok(Self(files))
    }

    fn detached<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&adl::Files) -> adl::Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| work(&self.0)).map_err(raise)
    }
}

fn set(files: &mut adl::Files, name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    match name {
        "user" => files.user(user(value)?),
        "uid" => files.uid(value.extract()?),
        "gid" => files.gid(value.extract()?),
        "groups" => files.groups(value.extract::<Vec<u32>>()?),
        "cwd" => files.current_dir(path(value)?),
        "umask" => files.umask(value.extract()?),
        "timeout" => files.timeout(duration(value)?),
        "limit" => files.limit(value.extract()?),
        "entry_limit" => files.entry_limit(value.extract()?),
        "keep_owners" => files.keep_owners(value.extract()?),
        "keep_set_ids" => files.keep_set_ids(value.extract()?),
        _ => return Ok(false),
    };
    Ok(true)
}

/// How a file is written, its mode, and its owner.
fn write_options(
    how: &Bound<'_, PyAny>,
    mode: Option<u32>,
    owner: Option<(u32, u32)>,
) -> PyResult<WriteOptions> {
    let words = [
        ("replace", WriteMode::Replace),
        ("new", WriteMode::CreateNew),
        ("truncate", WriteMode::Truncate),
        ("append", WriteMode::Append),
    ];
    let mut options = WriteOptions::new().how(word(how, &words)?);
    if let Some(mode) = mode {
        options = options.mode(mode);
    }
    if let Some((uid, gid)) = owner {
        options = options.owner(uid, gid);
    }
    Ok(options)
}

#[pymethods]
impl Files {
    /// Others, that differ in these options.
    fn with_options(&self, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        Self::new(self.0.clone(), options)
    }

    fn read<'py>(&self, at: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let (py, at) = (at.py(), path(at)?);
        let read = self.detached(py, |files| files.read_file(at))?;
        Ok(PyBytes::new(py, &read))
    }

    fn read_range<'py>(
        &self,
        at: &Bound<'py, PyAny>,
        offset: u64,
        length: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (py, at) = (at.py(), path(at)?);
        let read = self.detached(py, |files| files.read_range(at, offset, length))?;
        Ok(PyBytes::new(py, &read))
    }

    #[pyo3(signature = (at, data, how, mode, owner))]
    fn write(
        &self,
        at: &Bound<'_, PyAny>,
        data: &Bound<'_, PyAny>,
        how: &Bound<'_, PyAny>,
        mode: Option<u32>,
        owner: Option<(u32, u32)>,
    ) -> PyResult<()> {
        let (py, at, options) = (at.py(), path(at)?, write_options(how, mode, owner)?);
        // What can't change meanwhile is not copied.
        if let Ok(data) = data.cast::<PyBytes>() {
            let data = data.as_bytes();
            return self.detached(py, |files| files.write_with(at, data, options));
        }
        let data = bytes(data)?;
        self.detached(py, |files| files.write_with(at, data, options))
    }

    fn open_read(&self, at: &Bound<'_, PyAny>) -> PyResult<FileReader> {
        let (py, at) = (at.py(), path(at)?);
        let reader = self.detached(py, |files| files.open_read(at))?;
        Ok(FileReader(Mutex::new(Some(reader))))
    }

    #[pyo3(signature = (at, how, mode, owner))]
    fn open_write(
        &self,
        at: &Bound<'_, PyAny>,
        how: &Bound<'_, PyAny>,
        mode: Option<u32>,
        owner: Option<(u32, u32)>,
    ) -> PyResult<FileWriter> {
        let (py, at, options) = (at.py(), path(at)?, write_options(how, mode, owner)?);
        let writer = self.detached(py, |files| files.open_write(at, options))?;
        Ok(FileWriter(Mutex::new(Some(writer))))
    }

    fn stat<'py>(&self, at: &Bound<'py, PyAny>, follow: bool) -> PyResult<Bound<'py, PyDict>> {
        let (py, at) = (at.py(), path(at)?);
        let told = self.detached(py, |files| {
            if follow { files.metadata(at) } else { files.symlink_metadata(at) }
        })?;
        results::metadata(py, &told)
    }

    fn exists(&self, at: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (py, at) = (at.py(), path(at)?);
        self.detached(py, |files| files.exists(at))
    }

    fn scandir(&self, at: &Bound<'_, PyAny>) -> PyResult<Vec<(OsString, String)>> {
        let (py, at) = (at.py(), path(at)?);
        let entries = self.detached(py, |files| files.list_dir(at))?;
        Ok(entries.into_iter().map(|entry| (entry.name, results::kind(entry.kind))).collect())
    }

    fn makedirs(&self, at: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, at) = (at.py(), path(at)?);
        self.detached(py, |files| files.create_dir_all(at))
    }

    fn remove(&self, at: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, at) = (at.py(), path(at)?);
        self.detached(py, |files| files.remove_file(at))
    }

    fn rmtree(&self, at: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, at) = (at.py(), path(at)?);
        self.detached(py, |files| files.remove_dir_all(at))
    }

    fn rename(&self, from: &Bound<'_, PyAny>, to: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, from, to) = (from.py(), path(from)?, path(to)?);
        self.detached(py, |files| files.rename(from, to))
    }

    fn symlink(&self, target: &Bound<'_, PyAny>, at: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, target, at) = (at.py(), path(target)?, path(at)?);
        self.detached(py, |files| files.symlink(target, at))
    }

    fn readlink(&self, at: &Bound<'_, PyAny>) -> PyResult<OsString> {
        let (py, at) = (at.py(), path(at)?);
        self.detached(py, |files| files.read_link(at)).map(OsString::from)
    }

    fn chmod(&self, at: &Bound<'_, PyAny>, mode: u32) -> PyResult<()> {
        let (py, at) = (at.py(), path(at)?);
        self.detached(py, |files| files.set_permissions(at, mode))
    }

    #[pyo3(signature = (at, uid, gid, follow))]
    fn chown(
        &self,
        at: &Bound<'_, PyAny>,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: bool,
    ) -> PyResult<()> {
        let (py, at) = (at.py(), path(at)?);
        self.detached(py, |files| {
            if follow { files.chown(at, uid, gid) } else { files.lchown(at, uid, gid) }
        })
    }

    fn copy_in<'py>(
        &self,
        from: &Bound<'py, PyAny>,
        to: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (py, from, to) = (from.py(), host_path(from)?, path(to)?);
        let report = self.detached(py, |files| files.copy_in(from, to))?;
        results::report(py, &report)
    }

    fn copy_out<'py>(
        &self,
        from: &Bound<'py, PyAny>,
        to: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (py, from, to) = (from.py(), path(from)?, host_path(to)?);
        let report = self.detached(py, |files| files.copy_out(from, to))?;
        results::report(py, &report)
    }

    fn import_tar<'py>(
        &self,
        archive: &Bound<'py, PyAny>,
        to: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (py, to) = (archive.py(), path(to)?);
        let mut file = PythonFile::new(archive);
        let report = py.detach(|| self.0.import_tar(&mut file, to));
        file.report(py, report)
    }

    fn export_tar<'py>(
        &self,
        from: &Bound<'_, PyAny>,
        archive: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (py, from) = (archive.py(), path(from)?);
        let mut file = PythonFile::new(archive);
        let report = py.detach(|| self.0.export_tar(from, &mut file));
        file.report(py, report)
    }
}

/// A file of Python's, for the library.
pub(crate) struct PythonFile {
    file: Py<PyAny>,
    /// What it has raised.
    raised: Option<PyErr>,
}

impl PythonFile {
    pub(crate) fn new(file: &Bound<'_, PyAny>) -> Self {
        Self { file: file.clone().unbind(), raised: None }
    }

    fn call<T>(&mut self, work: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>) -> io::Result<T> {
        Python::attach(|py| {
            work(self.file.bind(py)).map_err(|error| {
                let text = error.to_string();
                self.raised = Some(error);
                io::Error::other(text)
            })
        })
    }

    /// What has come of a copy; what the file has raised is raised on.
    pub(crate) fn report(
        self,
        py: Python<'_>,
        report: adl::Result<CopyReport>,
    ) -> PyResult<Bound<'_, PyDict>> {
        match (report, self.raised) {
            (Ok(report), _) => results::report(py, &report),
            (Err(_), Some(raised)) => Err(raised),
            (Err(error), None) => Err(raise(error)),
        }
    }
}

impl Read for PythonFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.call(|file| {
            let read = file.call_method1("read", (buffer.len(),))?;
            let read = read.cast::<PyBytes>()?.as_bytes();
            let place = buffer.get_mut(..read.len());
            let place = place.ok_or_else(|| PyValueError::new_err("read more than asked for"))?;
            place.copy_from_slice(read);
            Ok(read.len())
        })
    }
}

impl Write for PythonFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.call(|file| {
            let written = file.call_method1("write", (PyBytes::new(file.py(), bytes),))?;
            // A file that is not buffered may write a part.
            let written = if written.is_none() { bytes.len() } else { written.extract()? };
            match written <= bytes.len() {
                true => Ok(written),
                false => Err(PyValueError::new_err("wrote more than it was given")),
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn closed() -> PyErr {
    PyValueError::new_err("I/O operation on closed file")
}

/// A file that is being read.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug)]
pub(crate) struct FileReader(Mutex<Option<adl::FileReader>>);

#[pymethods]
impl FileReader {
    fn read<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Bound<'py, PyBytes>> {
        let read = py.detach(|| {
            let mut reader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let mut buffer = vec![0; most];
            let count = reader.as_mut().map(|reader| reader.read(&mut buffer)).transpose();
            count.map(|count| count.map(|count| (buffer, count)))
        });
        let (buffer, count) = read.map_err(of_io)?.ok_or_else(closed)?;
        Ok(PyBytes::new(py, buffer.get(..count).unwrap_or_default()))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take()));
    }
}

/// A file that is being written.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug)]
pub(crate) struct FileWriter(Mutex<Option<adl::FileWriter>>);

#[pymethods]
impl FileWriter {
    fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let (py, data) = (data.py(), bytes(data)?);
        let written = py.detach(|| {
            let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            writer.as_mut().map(|writer| writer.write(&data)).transpose()
        });
        written.map_err(of_io)?.ok_or_else(closed)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let flushed = py.detach(|| {
            let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            writer.as_mut().map(Write::flush).transpose()
        });
        flushed.map_err(of_io)?.ok_or_else(closed)
    }

    /// Puts the file in its place.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            let writer = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
            writer.map_or(Ok(()), adl::FileWriter::finish)
        })
        .map_err(raise)
    }

    /// Lets what was there stay.
    fn abandon(&self, py: Python<'_>) {
        py.detach(|| drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take()));
    }
}
