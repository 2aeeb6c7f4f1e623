//! Paths of the host, as callers name them.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys::open::{Location, Purpose};

/// A path of the host, and how far what lies there is trusted.
///
/// Any path can be used as a `HostPath`. The library then trusts it and follows its symbolic
/// links. Where a guest, or a tenant of the caller's, had a hand in what lies there or in the path
/// itself, as in what was copied out of a sandbox or in a volume that one may write,
/// [`HostPath::beneath`] says from where on nothing is trusted.
///
/// ```no_run
/// use adl_runtime::{Access, Config, HostPath, Image, Mount, Sandbox};
///
/// let tenant = "/srv/tenants/7";
/// let sandbox = Sandbox::create(Config {
///     image: Image::directory(HostPath::beneath(tenant, "root")),
///     mounts: vec![Mount::volume(HostPath::beneath(tenant, "data"), "/data", Access::ReadOnly)],
///     ..Config::default()
/// })?;
/// sandbox.files().copy_in(HostPath::beneath(tenant, "work/result"), "/tmp/result")?;
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Form", into = "Form")]
pub struct HostPath {
    base: Option<PathBuf>,
    path: PathBuf,
}

/// As it is written down: a path, or two.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Beneath {
        #[serde(with = "crate::config::bytes")]
        base: PathBuf,
        #[serde(with = "crate::config::bytes")]
        path: PathBuf,
    },
    Plain(#[serde(with = "crate::config::bytes")] PathBuf),
}

impl From<Form> for HostPath {
    fn from(form: Form) -> Self {
        match form {
            Form::Plain(path) => path.into(),
            Form::Beneath { base, path } => Self::beneath(base, path),
        }
    }
}

impl From<HostPath> for Form {
    fn from(HostPath { base, path }: HostPath) -> Self {
        match base {
            None => Self::Plain(path),
            Some(base) => Self::Beneath { base, path },
        }
    }
}

impl<T: AsRef<Path> + ?Sized> From<&T> for HostPath {
    fn from(path: &T) -> Self {
        path.as_ref().to_owned().into()
    }
}

impl From<PathBuf> for HostPath {
    fn from(path: PathBuf) -> Self {
        Self { base: None, path }
    }
}

impl From<String> for HostPath {
    fn from(path: String) -> Self {
        PathBuf::from(path).into()
    }
}

impl From<OsString> for HostPath {
    fn from(path: OsString) -> Self {
        PathBuf::from(path).into()
    }
}

impl HostPath {
    /// What is below a directory. The way to `base` is the caller's word; below it no symbolic link
    /// is followed, and nothing leads out. `path` is relative to `base`, without `..`; an empty one
    /// means `base` itself.
    ///
    /// Whatever opens it fails with [`Error::Invalid`] where `path` is another, and where a
    /// symbolic link is on the way.
    pub fn beneath(base: impl Into<PathBuf>, path: impl Into<PathBuf>) -> Self {
        Self { base: Some(base.into()), path: path.into() }
    }

    /// The directory below which nothing is trusted, if there is one.
    pub fn base(&self) -> Option<&Path> {
        self.base.as_deref()
    }

    /// The path, relative to [`HostPath::base`] if there is one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole path, for messages: to open it so is to follow what is on the way.
    pub fn full_path(&self) -> PathBuf {
        match &self.base {
            None => self.path.clone(),
            Some(base) if self.path.as_os_str().is_empty() => base.clone(),
            Some(base) => base.join(&self.path),
        }
    }

    /// Opens a regular file for reading. Anything else, as a FIFO or a device, is not opened and
    /// not waited for.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else, and [`Error::Io`].
    pub fn open_file(&self) -> Result<File> {
        self.locate()?.open_file("file").map(File::from)
    }

    /// Opens a directory, with `O_PATH`: for calls that take one, as
    /// [`Files::copy_out_at`](crate::Files::copy_out_at), which then mean this one whatever becomes
    /// of its path.
    ///
    /// # Errors
    /// [`Error::Invalid`] as with [`HostPath::beneath`], and [`Error::Io`].
    pub fn open_dir(&self) -> Result<OwnedFd> {
        self.locate()?.open("open", Purpose::Pass)
    }

    /// Opens its base, if it has one.
    pub(crate) fn locate(&self) -> Result<Location> {
        let Some(base) = &self.base else { return Ok(Location::followed(self.path.clone())) };
        let opened = Location::followed(base.clone()).open("open", Purpose::Pass)?;
        Location::beneath(opened, &self.path, self.full_path())
    }

    /// It, where a relative one is below a directory.
    pub(crate) fn below(&self, directory: &Path) -> Self {
        match &self.base {
            None => directory.join(&self.path).into(),
            Some(base) => Self::beneath(directory.join(base), &self.path),
        }
    }

    /// It, as seen from any directory.
    pub(crate) fn absolute(&self) -> Result<Self> {
        let absolute =
            |path: &Path| std::path::absolute(path).map_err(Error::at("getcwd for", path));
        Ok(match &self.base {
            None => absolute(&self.path)?.into(),
            Some(base) => Self::beneath(absolute(base)?, &self.path),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::{HostPath, Path};

    #[test]
    fn it_is_written_as_a_path_and_with_its_base_where_it_has_one() {
        let odd = Path::new(OsStr::from_bytes(b"/\xff"));
        for (path, text) in [
            (HostPath::from("/a"), r#""/a""#),
            (HostPath::from(odd), "[47,255]"),
            (HostPath::beneath("/a", "b"), r#"{"base":"/a","path":"b"}"#),
            (HostPath::beneath(odd, ""), r#"{"base":[47,255],"path":""}"#),
        ] {
            assert_eq!(serde_json::to_string(&path).unwrap(), text);
            assert_eq!(serde_json::from_str::<HostPath>(text).unwrap(), path);
        }
    }
}
