//! Images, opened: a list of stacks of layers, the root's first.

use std::path::PathBuf;

use crate::config::Upper;
use crate::config::host_path::HostPath;
use crate::error::{Error, Result};
use crate::image::OpenedLayer;
use crate::root::source::Source;
use crate::root::stack::{Layer, Stack, StackKind};
use crate::root::{host, unpack};
use crate::store::State;
use crate::store::subordinate::Subordinate;

/// An image, opened.
#[derive(Debug, Default)]
pub(crate) struct OpenedImage {
    /// The first is the root.
    pub(crate) stacks: Vec<Stack>,
    /// What a snapshot has kept of volumes that are copied on write, without the volumes.
    pub(crate) volumes: Vec<Stack>,
}

impl OpenedImage {
    /// The programs of the host.
    pub(crate) fn host(state: &State, upper: Upper) -> Result<Self> {
        Self::of_stacks(state, host::open(state)?, upper)
    }

    pub(crate) fn directory(state: &State, path: &HostPath, upper: Upper) -> Result<Self> {
        let root = Stack::of_image("", Source::directory("open image", path)?);
        Self::of_stacks(state, vec![root], upper)
    }

    /// `ids` are those of the sandbox that its owners are to be of, where an ordinary user has them.
    pub(crate) fn archive(
        state: &State,
        path: &HostPath,
        upper: Upper,
        ids: Option<Subordinate>,
    ) -> Result<Self> {
        let made = unpack::archive(state, path, ids)?;
        let root = Stack::of_image("", Source::held(&made.path, &made.used)?);
        Self::of_stacks(state, vec![root], upper)
    }

    /// Directories on one another, the topmost first.
    pub(crate) fn layers(
        state: &State,
        layers: Vec<OpenedLayer>,
        upper: Upper,
        ids: Option<Subordinate>,
    ) -> Result<Self> {
        let sources = if matches!(upper, Upper::Btrfs { .. }) && layers.len() > 1 {
            let paths: Vec<_> = layers.into_iter().map(|layer| layer.path).collect();
            vec![unpack::flattened(state, &paths, ids)?]
        } else {
            let layers = layers.into_iter();
            layers.map(|layer| Source::opened(layer.path, layer.directory)).collect()
        };
        let layers: Vec<_> = sources.into_iter().map(Layer::Image).collect();
        if layers.is_empty() {
            return Err(Error::invalid("image", "it has no layers"));
        }
        let kind = StackKind::Overlay;
        let root = Stack { at: PathBuf::new(), layers, changed: 0, kind, is_volume: false };
        Self::of_stacks(state, vec![root], upper)
    }

    fn of_stacks(state: &State, mut stacks: Vec<Stack>, upper: Upper) -> Result<Self> {
        if let (Upper::Btrfs { .. }, Some(root)) = (upper, stacks.first_mut()) {
            for layer in &mut root.layers {
                *layer = Layer::Image(unpack::subvolume(state, &layer.open()?)?);
            }
            root.kind = StackKind::Subvolume;
        }
        Ok(Self { stacks, volumes: Vec::new() })
    }
}
