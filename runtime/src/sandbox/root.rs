//! The root file system of one sandbox: all that it is put together from, opened.

use std::ffi::CStr;
use std::sync::Arc;

use adl_protocol::{Access, limits};

use crate::config::image::{ImageSays, Kind};
use crate::config::{Config, RootAccess, Upper};
use crate::error::{Error, Result};
use crate::image;
use crate::root::image::OpenedImage;
use crate::root::mounts::{self, OpenedMount};
use crate::root::stack::{Layer, Stack, StackKind};
use crate::root::{etc, form};
use crate::snapshot::{self, Lease};
use crate::store::State;
use crate::store::directory::Layout;
use crate::store::name::PartName;
use crate::store::subordinate::{Subordinate, as_owner};

/// What to do where snapshots of snapshots have become too many layers.
const NEW_BASE: &str = "export a snapshot as a tree, and begin again with that archive as image";

/// A root file system: all that it is put together from, and what keeps that from going away.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    /// In the order of mounting; the first is the root itself.
    pub(crate) mounts: Vec<OpenedMount>,
    /// Where what is written goes.
    upper: Upper,
    /// The files in `/etc` that are the sandbox's own.
    pub(crate) etc: Vec<&'static CStr>,
    /// The topmost snapshot among the layers; the others can't go before it.
    pub(crate) lease: Option<Arc<Lease>>,
    /// The image in layers that it lies on.
    _image: Option<Arc<image::Lease>>,
    /// What that says of commands in it, or what the snapshot has kept of that.
    pub(crate) says: Option<Arc<ImageSays>>,
}

impl Root {
    /// Checks and opens all that a configuration names.
    pub(crate) fn open(config: &Config, state: &State) -> Result<Self> {
        let Opening { opened, lease, image, says } = open_image(config, state)?;
        let root = opened.stacks.first();
        let etc = as_owner(|| etc::names(config.etc_files, &config.network, root))?;
        let access = match config.root {
            RootAccess::ReadWrite => Access::ReadWrite,
            RootAccess::ReadOnly => Access::ReadOnly,
        };
        let of_image = opened.stacks.into_iter();
        let mut mounts: Vec<_> =
            of_image.map(|stack| OpenedMount::Stack { stack, access }).collect();
        mounts.extend(mounts::open(&config.mounts, &opened.volumes)?);
        let upper = config.upper;
        let this = Self { mounts, upper, etc, lease, _image: image, says: says.map(Arc::new) };
        this.check_size()?;
        this.check_layers(0)?;
        Ok(this)
    }

    /// All stacks.
    pub(crate) fn stacks(&self) -> impl Iterator<Item = &Stack> {
        self.mounts.iter().filter_map(OpenedMount::stack)
    }

    /// The names, in a sandbox's directory, of what holds the changes of each stack.
    pub(crate) fn uppers(&self) -> impl Iterator<Item = (&Stack, PartName)> {
        let mut overlays = 0..;
        self.stacks().map(move |stack| {
            let name = match stack.kind {
                StackKind::Subvolume => PartName::subvolume(),
                StackKind::Overlay => PartName::upper(overlays.next().unwrap_or_default()),
            };
            (stack, name)
        })
    }

    /// What a sandbox needs on disk.
    pub(crate) fn layout(&self) -> Result<Layout> {
        let overlays = self.stacks().filter(|stack| stack.kind == StackKind::Overlay).count();
        let (overlays, size) = match self.upper {
            Upper::Memory { .. } => (0, None),
            Upper::Disk { size } | Upper::Btrfs { size } => (overlays, size),
        };
        let root = self.stacks().find(|stack| stack.kind == StackKind::Subvolume);
        let subvolume = root.and_then(|stack| stack.layers.first()).map(Layer::open).transpose()?;
        let subvolume = subvolume.map(|source| source.fd);
        let is_btrfs = matches!(self.upper, Upper::Btrfs { .. });
        Ok(Layout { overlays, subvolume, size, is_btrfs })
    }

    /// The size of the memory that what is written goes to, if it goes there.
    pub(crate) fn memory(&self) -> Option<u64> {
        match self.upper {
            Upper::Memory { size } => Some(size),
            Upper::Disk { .. } | Upper::Btrfs { .. } => None,
        }
    }

    /// Whether programs inside may make subvolumes: not where those would be out of its size.
    pub(crate) fn takes_subvolumes(&self) -> bool {
        !matches!(self.upper, Upper::Btrfs { size: Some(_) })
    }

    /// A root on top of what a snapshot has kept of this one.
    pub(crate) fn on_top(&self, snapshot: Arc<Lease>) -> Self {
        let mut next = self.clone();
        let names: Vec<PartName> = self.uppers().map(|(_, name)| name).collect();
        let stacks = next.mounts.iter_mut().filter_map(OpenedMount::stack_mut);
        for (stack, name) in stacks.zip(names) {
            stack.layers.insert(0, snapshot.layer(name));
            stack.changed += 1;
        }
        next.lease = Some(snapshot);
        next
    }

    /// More layers than the kernel takes, or than go to init at once, with so many more in each
    /// stack.
    pub(crate) fn check_layers(&self, more: usize) -> Result<()> {
        // The directory's.
        let mut descriptors = 1;
        for mount in &self.mounts {
            let count = match mount.stack() {
                Some(stack) if stack.kind == StackKind::Overlay => stack.layers.len() + more,
                _ => 1,
            };
            if count > limits::MAX_LAYERS {
                let why = format!("more than {} layers: {NEW_BASE}", limits::MAX_LAYERS);
                return Err(Error::invalid("image", why));
            }
            descriptors += count;
        }
        if descriptors > limits::MAX_DESCRIPTORS {
            let why =
                format!("more than {} layers and mounts: {NEW_BASE}", limits::MAX_DESCRIPTORS);
            return Err(Error::invalid("image", why));
        }
        Ok(())
    }

    /// How many descriptors it takes at once to set up an instance with one layer more in each
    /// stack: each layer and each mount is opened and mounted, and there is what goes along.
    pub(crate) fn descriptors_to_set_up(&self) -> usize {
        const OTHERS: usize = 8;
        let layers = self.mounts.iter().map(|mount| match mount.stack() {
            Some(stack) => stack.layers.len() + 1,
            None => 1,
        });
        2 * layers.sum::<usize>() + OTHERS
    }

    /// A size that would not hold for all that can be written.
    fn check_size(&self) -> Result<()> {
        match self.upper {
            Upper::Disk { size: None } | Upper::Btrfs { size: None } => return Ok(()),
            Upper::Disk { size: Some(size) } | Upper::Memory { size } => {
                return mounts::check_size("upper", size);
            }
            Upper::Btrfs { size: Some(size) } => mounts::check_size("upper", size)?,
        }
        if self.stacks().all(|stack| stack.kind == StackKind::Subvolume) {
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

/// An image, opened, and what keeps it there.
#[derive(Default)]
struct Opening {
    opened: OpenedImage,
    lease: Option<Arc<Lease>>,
    image: Option<Arc<image::Lease>>,
    says: Option<ImageSays>,
}

/// Opens the image, fetching it if need be.
fn open_image(config: &Config, state: &State) -> Result<Opening> {
    let Config { upper, ids, .. } = *config;
    let unpacked = match &config.image.0 {
        Kind::Snapshot(name) => {
            let (opened, lease) = snapshot::open_image(state, name, upper)?;
            let says = lease.says().cloned();
            return Ok(Opening { opened, lease: Some(lease), image: None, says });
        }
        Kind::Reference(name) => image::of_reference(state, name, ids)?,
        Kind::Local(name) => image::of_local(state, name, ids)?,
        Kind::Layers(path, which) => image::of_layers(state, path, which.as_deref(), ids)?,
        Kind::Directory(path) => {
            return Opening::plain(OpenedImage::directory(state, path, upper)?);
        }
        Kind::Archive(path) if form::is_in_layers(path)? => {
            image::of_layers(state, path, None, ids)?
        }
        Kind::Archive(path) => {
            let ids = Subordinate::asked_for(ids)?;
            return Opening::plain(OpenedImage::archive(state, path, upper, ids)?);
        }
        Kind::Host => return Opening::plain(OpenedImage::host(state, upper)?),
    };
    let image::Cached { layers, says, lease } = unpacked;
    let opened = OpenedImage::layers(state, layers, upper, Subordinate::asked_for(ids)?)?;
    Ok(Opening { opened, lease: None, image: Some(lease), says: Some(says) })
}

impl Opening {
    /// Of what says nothing of commands.
    fn plain(opened: OpenedImage) -> Result<Self> {
        Ok(Self { opened, ..Self::default() })
    }
}
