//! The root file system of one sandbox: all that it is put together from, opened.

use std::path::PathBuf;
use std::sync::Arc;

use adl_protocol::limits;

use crate::config::image::Kind;
use crate::config::mount::Access;
use crate::config::{Config, RootAccess, Upper};
use crate::error::{Error, Result};
use crate::root::image::OpenedImage;
use crate::root::mounts::{self, OpenedWhat};
use crate::root::source::Source;
use crate::root::stack::{Layer, Tree, TreeKind};
use crate::snapshot::{self, Lease};
use crate::store::State;
use crate::store::directory::Layout;
use crate::store::name::PartName;

/// One mount of a root file system.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Tree { tree: Tree, access: adl_protocol::Access },
    Mount { at: PathBuf, what: Mounted },
}

/// What is mounted as it is.
#[derive(Debug, Clone)]
pub(crate) enum Mounted {
    Volume { source: Source, access: adl_protocol::Access },
    Tmpfs { size: u64 },
    Device(Source),
}

/// A root file system: all that it is put together from, and what keeps that from going away.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    /// In the order of mounting; the first is the root itself.
    pub(crate) parts: Vec<Part>,
    /// The topmost snapshot among the layers; the others can't go before it.
    pub(crate) lease: Option<Arc<Lease>>,
}

impl Root {
    /// Checks and opens all that a configuration names.
    pub(crate) fn open(config: &Config, state: &State) -> Result<Self> {
        let (opened, lease) = open_image(config, state)?;
        let access = match config.root {
            RootAccess::ReadWrite => adl_protocol::Access::ReadWrite,
            RootAccess::ReadOnly => adl_protocol::Access::ReadOnly,
        };
        let of_image = opened.trees.into_iter();
        let mut parts: Vec<Part> = of_image.map(|tree| Part::Tree { tree, access }).collect();
        for mount in mounts::open(&config.mounts)? {
            let at = mount.at;
            parts.push(match mount.what {
                OpenedWhat::Volume { source, access: Access::CopyOnWrite } => {
                    let tree = Tree::of_volume(at, source, &opened.volumes)?;
                    Part::Tree { tree, access: adl_protocol::Access::ReadWrite }
                }
                OpenedWhat::Volume { source, access } => {
                    let access = match access {
                        Access::ReadOnly => adl_protocol::Access::ReadOnly,
                        Access::ReadWrite | Access::CopyOnWrite => adl_protocol::Access::ReadWrite,
                    };
                    Part::Mount { at, what: Mounted::Volume { source, access } }
                }
                OpenedWhat::Tmpfs { size } => Part::Mount { at, what: Mounted::Tmpfs { size } },
                OpenedWhat::Device(source) => Part::Mount { at, what: Mounted::Device(source) },
            });
        }
        let this = Self { parts, lease };
        this.check_size(config)?;
        this.check_layers(0)?;
        Ok(this)
    }

    /// All trees.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &Tree> {
        self.parts.iter().filter_map(|part| match part {
            Part::Tree { tree, .. } => Some(tree),
            Part::Mount { .. } => None,
        })
    }

    /// The names, in a sandbox's directory, of what holds the changes of each tree.
    pub(crate) fn uppers(&self) -> impl Iterator<Item = (&Tree, PartName)> {
        let mut overlays = 0..;
        self.trees().map(move |tree| {
            let name = match tree.kind {
                TreeKind::Subvolume => PartName::subvolume(),
                TreeKind::Overlay => PartName::upper(overlays.next().unwrap_or_default()),
            };
            (tree, name)
        })
    }

    /// What a sandbox needs on disk.
    pub(crate) fn layout(&self, config: &Config) -> Result<Layout> {
        let overlays = self.trees().filter(|tree| tree.kind == TreeKind::Overlay).count();
        let (overlays, size) = match config.upper {
            Upper::Memory { .. } => (0, None),
            Upper::Disk { size } | Upper::Btrfs { size } => (overlays, size),
        };
        let root = self.trees().find(|tree| tree.kind == TreeKind::Subvolume);
        let subvolume = root.and_then(|tree| tree.layers.first()).map(Layer::open).transpose()?;
        let subvolume = subvolume.map(|source| source.fd);
        let is_btrfs = matches!(config.upper, Upper::Btrfs { .. });
        Ok(Layout { overlays, subvolume, size, is_btrfs })
    }

    /// A root on top of what a snapshot has kept of this one.
    pub(crate) fn on_top(&self, snapshot: Arc<Lease>) -> Self {
        let mut next = self.clone();
        let names: Vec<PartName> = self.uppers().map(|(_, name)| name).collect();
        let trees = next.parts.iter_mut().filter_map(|part| match part {
            Part::Tree { tree, .. } => Some(tree),
            Part::Mount { .. } => None,
        });
        for (tree, name) in trees.zip(names) {
            tree.layers.insert(0, snapshot.layer(name));
            tree.changed += 1;
        }
        next.lease = Some(snapshot);
        next
    }

    /// More layers than the kernel takes, or than go to init at once, with so many more in each
    /// tree.
    pub(crate) fn check_layers(&self, more: usize) -> Result<()> {
        // The owner's, that of /dev, and the directory's.
        let mut descriptors = 3;
        for part in &self.parts {
            let count = match part {
                Part::Tree { tree, .. } if tree.kind == TreeKind::Overlay => {
                    tree.layers.len() + more
                }
                _ => 1,
            };
            if count > limits::MAX_LAYERS {
                let why = format!("more than {} layers", limits::MAX_LAYERS);
                return Err(Error::invalid("image", why));
            }
            descriptors += count;
        }
        if descriptors > limits::MAX_DESCRIPTORS {
            let why = format!("more than {} layers and mounts", limits::MAX_DESCRIPTORS);
            return Err(Error::invalid("image", why));
        }
        Ok(())
    }

    /// How many descriptors it takes at once to set up an instance with one layer more in each
    /// tree: each layer and each mount is opened and mounted, and there is what goes along.
    pub(crate) fn descriptors_to_set_up(&self) -> usize {
        const OTHERS: usize = 8;
        let layers = self.parts.iter().map(|part| match part {
            Part::Tree { tree, .. } => tree.layers.len() + 1,
            Part::Mount { .. } => 1,
        });
        2 * layers.sum::<usize>() + OTHERS
    }

    /// A size that would not hold for all that can be written.
    fn check_size(&self, config: &Config) -> Result<()> {
        match config.upper {
            Upper::Disk { size: None } | Upper::Btrfs { size: None } => return Ok(()),
            Upper::Disk { size: Some(size) } | Upper::Memory { size } => {
                return mounts::check_size("upper", size);
            }
            Upper::Btrfs { size: Some(size) } => mounts::check_size("upper", size)?,
        }
        if self.trees().all(|tree| tree.kind == TreeKind::Subvolume) {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: "a size of a btrfs upper".to_owned(),
            why: "the host image and volumes that are copied on write have overlays of their own, \
                  which a quota group does not count"
                .to_owned(),
            fix: "use an image of one directory or archive and other volumes, or the upper `disk` \
                  on a file system with project quotas"
                .to_owned(),
        })
    }
}

/// Opens the image, and the snapshot that it is.
fn open_image(config: &Config, state: &State) -> Result<(OpenedImage, Option<Arc<Lease>>)> {
    let upper = config.upper;
    let opened = match &config.image.0 {
        Kind::Snapshot(name) => {
            let (opened, lease) = snapshot::open_image(state, name, upper)?;
            return Ok((opened, Some(lease)));
        }
        Kind::Directory(path) => OpenedImage::directory(state, path, upper)?,
        Kind::Archive(path) => OpenedImage::archive(state, path, upper)?,
        Kind::Host => OpenedImage::host(state, config.network, upper)?,
    };
    Ok((opened, None))
}
