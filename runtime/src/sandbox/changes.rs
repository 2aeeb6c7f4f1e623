//! What a sandbox has written, told and written out.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::root::etc;
use crate::root::stack::{Layer, Stack, StackKind};
use crate::sandbox::{Sandbox, alive};
use crate::snapshot::Snapshot;
use crate::store::subordinate::{self, Subordinate, as_owner};
use crate::sys::id_ranges;
use crate::sys::open::{Purpose, beneath};
use crate::transfer::{
    self, Change, ChangeForm, ChangeKind, CopyOptions, CopyReport, Export, OpenedStack,
};
use crate::wait::Deadline;

impl Sandbox {
    /// Lists what it has written so far that differs from its image: all that was added, modified
    /// or deleted, sorted. A file that was opened for writing counts as modified, whatever was
    /// written; a directory that a mount lies on is none, and what is in volumes is no matter of
    /// the image.
    ///
    /// What runs in it goes on, so the list may show things as they were one after the other.
    ///
    /// # Errors
    /// [`Error::Deleted`]; [`Error::SandboxDied`] if it is reset, made into a snapshot or deleted
    /// meanwhile; [`Error::Unsupported`] with [`Upper::Memory`](crate::Upper::Memory);
    /// [`Error::File`] with `ESTALE` where a directory was moved while it was looked at, for the
    /// caller to try again; [`Error::TooLarge`] above a million changes.
    pub fn changes(&self) -> Result<Vec<Change>> {
        let mut guard = self.now()?;
        if alive(&mut guard)?.image.memory().is_some() {
            return Err(Error::Unsupported {
                what: "the changes of the sandbox".to_owned(),
                why: "what it has written is in memory, and no one outside can see it".to_owned(),
                fix: "make the sandbox with the upper `disk` or `btrfs`".to_owned(),
            });
        }
        let this = &alive(&mut guard)?.instance;
        let (Some(root), Some(directory)) = (this.root(), this.directory()) else {
            return Err(Error::SandboxDied);
        };
        let own = root.etc.clone();
        let layers = as_owner(|| {
            let uppers = root.uppers().filter(|(stack, _)| !stack.is_volume);
            let layers = uppers.map(|(stack, name)| {
                let mut opened = Layers::open(stack)?;
                let path = directory.path().join(name.as_str());
                opened.changed.insert(0, open(directory.as_fd(), Path::new(name.as_str()), &path)?);
                Ok(opened)
            });
            layers.collect::<Result<Vec<_>>>()
        })?;
        // What it lies on stays, whatever becomes of the sandbox; what it has written may be
        // removed meanwhile, and then nothing that is found counts.
        let (_root, control) = (Arc::clone(root), Arc::clone(this.control()));
        drop(guard);
        let changes = changes_of(&layers, &own, self.plan.config());
        if self.lives.is_whole(&control) { changes } else { Err(Error::SandboxDied) }
    }
}

impl Snapshot {
    /// Lists what differs from the image that the sandbox was made of, which for a fork is the
    /// snapshot that it is a fork of; see [`Sandbox::changes`].
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] for what can't be read, [`Error::TooLarge`] above a
    /// million changes.
    pub fn changes(&self) -> Result<Vec<Change>> {
        changes_of(&as_owner(|| self.layers())?, &self.own_files()?, &self.config())
    }

    /// Writes a tar archive: of the whole root file system, for [`crate::Image::archive`], or of
    /// what differs from the image, as a layer of an OCI image. Volumes are not in it, nor are
    /// devices, FIFOs and sockets, which the report names.
    ///
    /// ```no_run
    /// # use adl_runtime::{Config, Export, Sandbox};
    /// # let sandbox = Sandbox::create(Config::default())?;
    /// let file = std::fs::File::create("layer.tar").expect("a new file");
    /// sandbox.snapshot()?.export(Export::Layer, std::io::BufWriter::new(file))?;
    /// # Ok::<(), adl_runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Snapshot::changes`], [`Error::Io`] of `to`, and [`Error::Refused`] where a layer can't
    /// say it: a file inside has the name of a mark of OCI's, `.wh.…`.
    pub fn export(&self, what: Export, mut to: impl Write + Send) -> Result<CopyReport> {
        let layers = as_owner(|| self.layers())?;
        let namespace = Subordinate::asked_for(self.config().ids)?;
        let namespace = namespace.map(|_| subordinate::namespace()).transpose()?;
        let options = CopyOptions {
            owners: has_owners(&self.config()),
            set_ids: true,
            extended: true,
            limit: u64::MAX,
            entries: u64::MAX,
        };
        let own = self.own_files()?;
        let stacks = stacks(&layers, &own, options.owners);
        let within = namespace.as_ref().map(AsFd::as_fd);
        let report = transfer::export(&stacks, what, &mut to, &options, within, Deadline::NEVER)?;
        to.flush().map_err(Error::io("write the archive"))?;
        Ok(report)
    }

    /// The files in `/etc` that were the sandbox's own.
    fn own_files(&self) -> Result<Vec<&'static CStr>> {
        let (config, stacks) = (self.config(), self.lease().stacks()?);
        as_owner(|| etc::names(config.etc_files, &config.network, stacks.first()))
    }

    fn layers(&self) -> Result<Vec<Layers>> {
        let stacks = self.lease().stacks()?;
        stacks.iter().filter(|stack| !stack.is_volume).map(Layers::open).collect()
    }
}

fn changes_of(layers: &[Layers], own: &[&'static CStr], config: &Config) -> Result<Vec<Change>> {
    let stacks = stacks(layers, own, has_owners(config));
    let mut changes = as_owner(|| transfer::changes(&stacks))?;
    // Where the image has no place for a mount, adl has made it.
    let is_place = |path: &Path| {
        ["/proc", "/dev", "/sys"].map(Path::new).contains(&path)
            || config.mounts.iter().any(|mount| mount.target() == path)
    };
    changes.retain(|change| change.kind != ChangeKind::Added || !is_place(&change.path));
    // So it has for its own files.
    let is_in_etc = |change: &Change| change.path.starts_with("/etc");
    if changes.iter().filter(|change| is_in_etc(change)).count() == 1 {
        let is_alone = |change: &Change| change.path == Path::new("/etc");
        changes.retain(|change| change.kind != ChangeKind::Added || !is_alone(change));
    }
    Ok(changes)
}

/// Whether files have other owners inside than one.
fn has_owners(config: &Config) -> bool {
    config.ids.is_some() || id_ranges::caller_may_map()
}

/// The directories of a stack, opened to be read.
struct Layers {
    at: PathBuf,
    kind: ChangeForm,
    changed: Vec<OwnedFd>,
    image: Vec<OwnedFd>,
}

impl Layers {
    fn open(stack: &Stack) -> Result<Self> {
        let open = |layer: &Layer| {
            let source = layer.open()?;
            open(source.as_fd(), Path::new("."), &source.path)
        };
        let (changed, image) = stack.layers.split_at(stack.changed.min(stack.layers.len()));
        let (kind, most) = match stack.kind {
            StackKind::Overlay => (ChangeForm::Whiteouts, usize::MAX),
            // Each is a whole one.
            StackKind::Subvolume => (ChangeForm::WholeCopy, 1),
        };
        Ok(Self {
            at: stack.at.clone(),
            kind,
            changed: changed.iter().take(most).map(open).collect::<Result<_>>()?,
            image: image.iter().take(most).map(open).collect::<Result<_>>()?,
        })
    }
}

fn open(at: impl AsFd, name: &Path, path: &Path) -> Result<OwnedFd> {
    beneath(at, name, Purpose::List).map_err(Error::at("open", path))
}

fn stacks<'a>(
    layers: &'a [Layers],
    own: &'a [&'static CStr],
    has_owners: bool,
) -> Vec<OpenedStack<'a>> {
    layers
        .iter()
        .map(|layers| {
            let most = match layers.kind {
                ChangeForm::WholeCopy => 1,
                ChangeForm::Whiteouts => usize::MAX,
            };
            OpenedStack {
                at: layers.at.clone(),
                changed: layers.changed.iter().take(most).map(AsFd::as_fd).collect(),
                image: layers.image.iter().map(AsFd::as_fd).collect(),
                kind: layers.kind,
                has_owners,
                own: if layers.at.as_os_str().is_empty() { own } else { &[] },
            }
        })
        .collect()
}
