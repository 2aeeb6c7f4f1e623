//! Images, opened: each is an ordered stack of read-only layers.

use crate::config::host_path::HostPath;
use crate::config::{Network, Upper};
use crate::error::Result;
use crate::root::source::Source;
use crate::root::stack::{Layer, Tree, TreeKind};
use crate::root::{host, unpack};
use crate::store::State;

/// An image, opened.
#[derive(Debug, Default)]
pub(crate) struct OpenedImage {
    /// The first is the root.
    pub(crate) trees: Vec<Tree>,
    /// What a snapshot has kept of volumes that are copied on write, without the volumes.
    pub(crate) volumes: Vec<Tree>,
}

impl OpenedImage {
    /// The programs of the host.
    pub(crate) fn host(state: &State, network: Network, upper: Upper) -> Result<Self> {
        Self::of_trees(state, host::open(state, network)?, upper)
    }

    pub(crate) fn directory(state: &State, path: &HostPath, upper: Upper) -> Result<Self> {
        let root = Tree::of_image("", Source::directory("open image", path)?);
        Self::of_trees(state, vec![root], upper)
    }

    pub(crate) fn archive(state: &State, path: &HostPath, upper: Upper) -> Result<Self> {
        Self::directory(state, &unpack::archive(state, path)?.into(), upper)
    }

    fn of_trees(state: &State, mut trees: Vec<Tree>, upper: Upper) -> Result<Self> {
        if let (Upper::Btrfs { .. }, Some(root)) = (upper, trees.first_mut()) {
            for layer in &mut root.layers {
                *layer = Layer::Image(unpack::subvolume(state, &layer.open()?)?);
            }
            root.kind = TreeKind::Subvolume;
        }
        Ok(Self { trees, volumes: Vec::new() })
    }
}
