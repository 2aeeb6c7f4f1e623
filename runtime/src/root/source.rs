//! A file or directory of the host, opened once, for an image, a volume or a device.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::host_path::HostPath;
use crate::error::{Error, Result};
use crate::store::uses::Use;
use crate::sys::open::{self, Purpose};
use crate::sys::shared::shared;

/// A file or directory of the host, opened once: what is mounted later is what was opened here.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// All of it, absolute.
    pub(crate) path: PathBuf,
    /// Where no link is followed below, if there is such a directory.
    pub(crate) base: Option<PathBuf>,
    pub(crate) fd: Arc<OwnedFd>,
    /// What keeps it there, if adl has made it.
    _held: Option<Arc<Use>>,
}

impl Source {
    /// What lies there, whatever it is.
    pub(crate) fn open(operation: &'static str, path: &HostPath) -> Result<Self> {
        Self::open_for(operation, path, Purpose::Look)
    }

    pub(crate) fn directory(operation: &'static str, path: &HostPath) -> Result<Self> {
        Self::open_for(operation, path, Purpose::Pass)
    }

    fn open_for(operation: &'static str, path: &HostPath, purpose: Purpose) -> Result<Self> {
        let path = path.absolute()?;
        let fd = path.locate()?.open(operation, purpose)?;
        let base = path.base().map(Path::to_owned);
        Ok(Self { path: path.full_path(), base, fd: Arc::new(fd), _held: None })
    }

    /// What is opened already, as a path says.
    pub(crate) fn opened(path: PathBuf, fd: OwnedFd) -> Self {
        Self { path, base: None, fd: Arc::new(fd), _held: None }
    }

    /// An image that adl has made, or what is below it.
    pub(crate) fn held(path: &Path, used: &Arc<Use>) -> Result<Self> {
        let this = Self::directory("open image", &path.into())?.shared();
        Ok(Self { _held: Some(Arc::clone(used)), ..this })
    }

    /// This by the descriptor that other sandboxes have of it: for what is adl's or the host's own.
    pub(crate) fn shared(self) -> Self {
        match Arc::try_unwrap(self.fd) {
            Ok(fd) => Self { fd: shared(fd), ..self },
            Err(fd) => Self { fd, ..self },
        }
    }

    /// A directory below one of adl's own, through no link.
    pub(crate) fn beneath(
        operation: &'static str,
        at: BorrowedFd<'_>,
        path: &Path,
        shown: PathBuf,
    ) -> Result<Self> {
        let fd = open::beneath(at, path, Purpose::Pass).map_err(Error::at(operation, &shown))?;
        Ok(Self { path: shown, base: None, fd: Arc::new(fd), _held: None })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where it can be opened once more, as it was.
    pub(crate) fn host_path(&self) -> HostPath {
        match &self.base {
            None => HostPath::from(&self.path),
            Some(base) => {
                HostPath::beneath(base, self.path.strip_prefix(base).unwrap_or(&self.path))
            }
        }
    }
}
