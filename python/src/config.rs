//! `Config`: how a sandbox is made, out of keyword arguments.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use adl_runtime::{
    Access, Capabilities, Config as Settings, Error, EtcFiles, HostPath, Image, IoLimit, Limits,
    Mount, Network, RootAccess, Seccomp, Sysfs, TmpfsOptions, Upper,
};
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::errors::raise;
use crate::network::{forward, publish};
use crate::snapshot::Snapshot;
use crate::values::{
    duration, each, host_path, of, os_string, pairs, path, rlimits, without_zero, word,
};

/// How a sandbox is made; plain data, for any number of them.
#[pyclass(frozen, module = "adl._adl")]
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) settings: Settings,
    /// The name of an image that may have to be fetched.
    pub(crate) reference: Option<String>,
}

#[pymethods]
impl Config {
    /// `options` are those of `adl.Sandbox`. With a snapshot as the image, the others are those of
    /// the sandbox that it was made of, unless they are said.
    #[new]
    fn new(options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let mut settings = Settings::default();
        let mut reference = None;
        if let Some(image) = options.get_item("image")? {
            if let Ok(snapshot) = image.cast::<Snapshot>() {
                settings = snapshot.get().settings()?;
            } else if let Ok((kind, name)) = image.extract::<(String, String)>()
                && kind == "reference"
            {
                reference = Some(name);
            }
        }
        each(options, |name, value| set(&mut settings, name, value))?;
        Ok(Self { settings, reference })
    }

    fn __repr__(&self) -> String {
        format!("<Config {:?}>", self.settings)
    }
}

fn set(to: &mut Settings, name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    match name {
        "image" => to.image = image(value, &to.image)?,
        "name" => to.name = Some(value.extract()?),
        "hostname" => to.hostname = Some(value.extract()?),
        "network" => to.network = network(value)?,
        "publish" => {
            to.publish = value.try_iter()?.map(|one| publish(&one?)).collect::<PyResult<_>>()?;
        }
        "forward" => {
            to.forward = value.try_iter()?.map(|one| forward(&one?)).collect::<PyResult<_>>()?;
        }
        "etc_files" => {
            let words =
                [("missing", EtcFiles::Missing), ("all", EtcFiles::All), ("none", EtcFiles::None)];
            to.etc_files = word(value, &words)?;
        }
        "sysfs" => {
            let words = [
                ("with_limits", Sysfs::WithLimits),
                ("always", Sysfs::Always),
                ("never", Sysfs::Never),
            ];
            to.sysfs = word(value, &words)?;
        }
        "shm_size" => to.shm_size = Some(value.extract()?),
        "sysctls" => {
            to.sysctls = pairs(value)?
                .iter()
                .map(|(name, value)| Ok((name.extract()?, value.str()?.extract()?)))
                .collect::<PyResult<_>>()?;
        }
        "upper" => to.upper = upper(value)?,
        "read_only" => {
            let read_only: bool = value.extract()?;
            to.root = if read_only { RootAccess::ReadOnly } else { RootAccess::ReadWrite };
        }
        "mounts" => {
            to.mounts = value.try_iter()?.map(|one| mount(&one?)).collect::<PyResult<_>>()?;
        }
        "capabilities" => to.capabilities = capabilities(value)?,
        "seccomp" => {
            let words = [("default", Seccomp::Default), ("unconfined", Seccomp::Unconfined)];
            to.seccomp = word(value, &words)?;
        }
        "limits" => to.limits = limits(value)?,
        "env" => to.defaults.env = env(value)?,
        "cwd" => to.defaults.current_dir = path(value)?,
        "user" => to.defaults.user = Some(user(value)?),
        "umask" => to.defaults.umask = value.extract()?,
        "rlimits" => to.defaults.rlimits = rlimits(value)?,
        "timeout" => to.defaults.timeout = Some(duration(value)?),
        "cpu_time" => to.defaults.cpu_time = Some(duration(value)?),
        "spare" => to.spare = value.extract()?,
        "ids" => to.ids = Some(value.extract()?),
        "cgroup_parent" => to.cgroup_parent = Some(path(value)?),
        "state_directory" => to.state_directory = Some(path(value)?),
        _ => return Ok(false),
    }
    Ok(true)
}

/// A word, or `ns:PATH`.
fn network(value: &Bound<'_, PyAny>) -> PyResult<Network> {
    let words =
        [("none", Network::None), ("host", Network::Host), ("ns:PATH", Network::join("PATH"))];
    let text = value.cast::<PyString>().ok().map(|text| text.extract::<OsString>()).transpose()?;
    match text.as_ref().and_then(|text| text.as_bytes().strip_prefix(b"ns:")) {
        Some(path) => Ok(Network::join(without_zero(OsStr::from_bytes(path).into())?)),
        None => word(value, &words),
    }
}

/// `(kind, what)`, or a snapshot, which was taken before.
fn image(value: &Bound<'_, PyAny>, of_snapshot: &Image) -> PyResult<Image> {
    if value.is_instance_of::<Snapshot>() {
        return Ok(of_snapshot.clone());
    }
    let (kind, what): (String, Bound<'_, PyAny>) = value.extract()?;
    Ok(match kind.as_str() {
        "host" => Image::host(),
        "directory" => Image::directory(host_path(&what)?),
        "archive" => Image::archive(host_path(&what)?),
        "snapshot" => Image::snapshot(what.extract::<String>()?),
        "reference" => Image::reference(what.extract::<String>()?),
        "layers" => {
            let (path, which): (Bound<'_, PyAny>, Option<String>) = what.extract()?;
            Image::layers(host_path(&path)?, which.as_deref())
        }
        "path" => at(host_path(&what)?)?,
        other => return Err(PyValueError::new_err(format!("{other:?} is no kind of image"))),
    })
}

/// A directory, one with an image in layers, or else an archive.
fn at(path: HostPath) -> PyResult<Image> {
    match path.open_dir() {
        Ok(directory) if holds_layers(directory.as_fd()) => Ok(Image::layers(path, None)),
        Ok(_) => Ok(Image::directory(path)),
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotADirectory => {
            Ok(Image::archive(path))
        }
        Err(error) => Err(raise(error)),
    }
}

/// Whether it is no root file system, but what is to be unpacked to one.
fn holds_layers(directory: BorrowedFd<'_>) -> bool {
    let has = |name: &str| fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok();
    !has("usr") && !has("bin") && (has("index.json") || has("manifest.json"))
}

/// `(kind, size)`.
fn upper(value: &Bound<'_, PyAny>) -> PyResult<Upper> {
    let (kind, size): (String, Option<u64>) = value.extract()?;
    Ok(match (kind.as_str(), size) {
        ("disk", size) => Upper::Disk { size },
        ("btrfs", size) => Upper::Btrfs { size },
        ("memory", Some(size)) => Upper::Memory { size },
        (other, _) => return Err(PyValueError::new_err(format!("{other:?} needs a size"))),
    })
}

/// `(kind, fields)`.
fn mount(value: &Bound<'_, PyAny>) -> PyResult<Mount> {
    let (kind, fields): (String, Bound<'_, PyDict>) = value.extract()?;
    let field = |name: &str| -> PyResult<Bound<'_, PyAny>> {
        let missing = || PyTypeError::new_err(format!("a {kind} has a {name}"));
        fields.get_item(name)?.ok_or_else(missing)
    };
    let target = path(&field("target")?)?;
    Ok(match kind.as_str() {
        "volume" => {
            let words =
                [("ro", Access::ReadOnly), ("rw", Access::ReadWrite), ("cow", Access::CopyOnWrite)];
            let access = of("access", word(&field("access")?, &words), value.py())?;
            Mount::volume(host_path(&field("source")?)?, target, access)
        }
        "device" => Mount::Device { source: host_path(&field("source")?)?, target },
        _ => {
            let options = TmpfsOptions {
                mode: field("mode")?.extract()?,
                uid: field("uid")?.extract()?,
                gid: field("gid")?.extract()?,
                can_execute: field("can_execute")?.extract()?,
                can_write: field("can_write")?.extract()?,
            };
            Mount::Tmpfs { target, size: field("size")?.extract()?, options }
        }
    })
}

/// Names, as an iterable of them. `+NAME` and `-NAME` add to the default set and take from it.
fn capabilities(value: &Bound<'_, PyAny>) -> PyResult<Capabilities> {
    let names: Vec<String> = value.extract()?;
    let parse = |name: &str| name.parse::<Capabilities>().map_err(raise);
    let is_change = |name: &String| name.starts_with(['+', '-']);
    let all = |name: &str| name.eq_ignore_ascii_case("all");
    let begin = if !names.is_empty() && names.iter().all(is_change) {
        Capabilities::default()
    } else {
        Capabilities::NONE
    };
    names.iter().try_fold(begin, |set, name| {
        let bare = name.trim_start_matches(['+', '-']);
        let these = if all(bare) { Capabilities::ALL } else { parse(bare)? };
        Ok(if name.starts_with('-') { set.difference(these) } else { set.union(these) })
    })
}

/// The fields of `adl.Limits`, as a mapping.
pub(crate) fn limits(value: &Bound<'_, PyAny>) -> PyResult<Limits> {
    let fields = value.cast::<PyDict>()?;
    let mut limits = Limits::default();
    each(fields, |name, value| {
        match name {
            "cpus" => limits.cpu = Some(thousandths(value)?),
            "cpu_weight" => limits.cpu_weight = Some(value.extract()?),
            "memory" => limits.memory = Some(value.extract()?),
            "memory_high" => limits.memory_high = Some(value.extract()?),
            "swap" => limits.swap = Some(value.extract()?),
            "pids" => limits.pids = Some(value.extract()?),
            "cpuset" => limits.cpuset = Some(value.extract()?),
            "accounting" => limits.accounting = value.extract()?,
            "io" => limits.io = value.try_iter()?.map(|one| io(&one?)).collect::<PyResult<_>>()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(limits)
}

fn thousandths(value: &Bound<'_, PyAny>) -> PyResult<u32> {
    let cpus: f64 = value.extract()?;
    let thousandths = (cpus * 1000.0).round();
    if !(0.0..=f64::from(u32::MAX)).contains(&thousandths) {
        return Err(PyValueError::new_err(format!("{cpus} is no number of CPUs")));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it was compared")]
    Ok(thousandths as u32)
}

fn io(value: &Bound<'_, PyAny>) -> PyResult<IoLimit> {
    let fields = value.cast::<PyDict>()?;
    let mut limit = IoLimit::default();
    each(fields, |name, value| {
        match name {
            "device" => limit.device = path(value)?,
            "read_bytes" => limit.read_bytes = Some(value.extract()?),
            "write_bytes" => limit.write_bytes = Some(value.extract()?),
            "read_operations" => limit.read_operations = Some(value.extract()?),
            "write_operations" => limit.write_operations = Some(value.extract()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(limit)
}

fn env(value: &Bound<'_, PyAny>) -> PyResult<Vec<(OsString, OsString)>> {
    pairs(value)?.iter().map(|(name, value)| Ok((os_string(name)?, os_string(value)?))).collect()
}

/// A name, or a number.
pub(crate) fn user(value: &Bound<'_, PyAny>) -> PyResult<String> {
    match value.extract::<u32>() {
        Ok(number) => Ok(number.to_string()),
        Err(_) => value.extract(),
    }
}
