//! What the files of a sandbox lie on: stacks of directories, and what can be written to on top.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::host_path::HostPath;
use crate::error::{Error, Result};
use crate::root::source::Source;
use crate::store::directories::Directories;
use crate::store::name::{PartName, SnapshotName};

/// A directory that files of a sandbox lie in, which it does not change.
#[derive(Debug, Clone)]
pub(crate) enum Layer {
    Image(Source),
    /// A part of a snapshot that is held. It takes no descriptor of its own, since there may be
    /// many.
    Snapshot {
        directories: Arc<Directories>,
        snapshot: SnapshotName,
        part: PartName,
    },
    /// The source of a volume whose changes a snapshot has kept, not opened.
    Volume(HostPath),
}

impl Layer {
    pub(crate) fn open(&self) -> Result<Source> {
        match self {
            Self::Image(source) => Ok(source.clone()),
            Self::Snapshot { directories, snapshot, part } => {
                let path = Path::new(snapshot.as_str()).join(part.as_str());
                Source::beneath(
                    "open snapshot",
                    directories.as_fd(),
                    &path,
                    directories.path(&path),
                )
            }
            Self::Volume(path) => Source::directory("open volume", path),
        }
    }
}

/// Files of a sandbox that it can change.
#[derive(Debug, Clone)]
pub(crate) struct Stack {
    /// Where it lies below the root; empty for the root itself.
    pub(crate) at: PathBuf,
    /// The topmost first.
    pub(crate) layers: Vec<Layer>,
    /// How many of the layers, from the top, hold changes since the image.
    pub(crate) changed: usize,
    pub(crate) kind: StackKind,
    /// Whether it is a volume that is copied on write, and not of the image.
    pub(crate) is_volume: bool,
}

/// How changes are kept apart from the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StackKind {
    /// By an overlay, which has an upper for them.
    Overlay,
    /// By btrfs: what can be written to is a snapshot of the topmost layer.
    Subvolume,
}

impl Stack {
    pub(crate) fn of_image(at: impl Into<PathBuf>, directory: Source) -> Self {
        let layers = vec![Layer::Image(directory)];
        Self { at: at.into(), layers, changed: 0, kind: StackKind::Overlay, is_volume: false }
    }

    /// Files of a volume that is copied on write, with what a snapshot has kept of it.
    pub(crate) fn of_volume(at: PathBuf, source: Source, saved: &[Stack]) -> Result<Self> {
        let Some(saved) = saved.iter().find(|saved| saved.at == at) else {
            return Ok(Self { is_volume: true, ..Self::of_image(at, source) });
        };
        let mut stack = saved.clone();
        match stack.layers.last_mut() {
            Some(Layer::Volume(path)) if path.full_path() == source.path => {
                if let Some(last) = stack.layers.last_mut() {
                    *last = Layer::Image(source);
                }
                Ok(stack)
            }
            // What was written would come to lie on files that it has nothing to do with.
            _ => Err(Error::invalid(
                "mount",
                format!("{at:?}: the snapshot has kept changes to another source there"),
            )),
        }
    }
}
