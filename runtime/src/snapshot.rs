//! What a sandbox had written, kept on disk for others to begin with.
//!
//! A snapshot is the directory that a sandbox had, moved to another shelf of the state directory,
//! with a record of what it lies on. The record is also its lock: who uses the snapshot, or one
//! that lies on it, has locked it with others, and who removes it has locked it alone.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Upper};
use crate::error::{Error, Result};
use crate::image::{Image, OpenedImage};
use crate::owner::Owner;
use crate::remove::{Remains, entries, remove_later};
use crate::root::{Layer, Part, Root, Source, Tree, TreeKind};
use crate::sandbox::{check_name, unique_name};
use crate::state::{SandboxDirectory, Shelf, State};

/// How [`crate::Sandbox::snapshot_with`] makes a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// Its name, unique in the state directory, by the rules of [`Config::name`]. By default it has
    /// none, and is removed when neither a [`Snapshot`] nor a sandbox or snapshot on it is there
    /// any more.
    pub name: Option<String>,
    /// What becomes of the processes in the sandbox.
    pub running: Running,
}

/// What becomes of processes that run in a sandbox of which a snapshot is made: they could be in
/// the middle of what they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Running {
    /// There is no snapshot, but [`Error::Busy`].
    #[default]
    Refuse,
    /// They are killed first.
    End,
}

/// What a sandbox had written at a moment, on disk, as the image of others.
///
/// It holds all that was changed of the root file system and of volumes that are copied on write,
/// and nothing that was in memory: no process, `/dev/shm` or tmpfs. It lies on the image, and on
/// earlier snapshots, which must stay as they are; snapshots it lies on can't be deleted.
///
/// ```no_run
/// use adl_runtime::{Config, Sandbox};
///
/// let mut sandbox = Sandbox::create(Config::default())?;
/// sandbox.shell("install-what-takes-long").status()?;
/// let snapshot = sandbox.snapshot()?;
/// let forks: Vec<Sandbox> =
///     (0..100).map(|_| Sandbox::create(snapshot.config())).collect::<Result<_, _>>()?;
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Debug)]
pub struct Snapshot {
    this: Arc<Held>,
    /// What it lies on.
    below: Vec<Arc<Held>>,
}

impl Snapshot {
    /// Opens the snapshot of a name; `state_directory` is as in [`Config`].
    ///
    /// # Errors
    /// [`Error::NoSnapshot`] if there is none, [`Error::Io`] if it can't be read.
    pub fn open(state_directory: Option<&Path>, name: &str) -> Result<Self> {
        check_name("snapshot", name)?;
        let state = State::open(state_directory)?;
        let this = Held::open(&state, name)?;
        let below = this.hold_below(&state)?;
        Ok(Self { this, below })
    }

    /// The names of all snapshots that have one, sorted.
    ///
    /// # Errors
    /// [`Error::Io`] if the state directory can't be read.
    pub fn list(state_directory: Option<&Path>) -> Result<Vec<String>> {
        let mut names = names(&State::open(state_directory)?)?;
        names.retain(|name| !name.starts_with('.'));
        names.sort_unstable();
        Ok(names)
    }

    /// Its name; one that was given to it if it begins with a dot.
    pub fn name(&self) -> &str {
        &self.this.name
    }

    /// The configuration of the sandbox that it was made of, without its name and with the snapshot
    /// as its image: what [`crate::Sandbox::create`] makes a fork of.
    pub fn config(&self) -> Config {
        Config {
            image: self.image(),
            state_directory: Some(self.this.state.clone()),
            ..self.this.record.config.clone()
        }
    }

    /// It as an image.
    pub fn image(&self) -> Image {
        Image::snapshot(self.name())
    }

    /// Removes it: its name at once, what is on disk soon after, as with
    /// [`crate::Sandbox::delete`].
    ///
    /// # Errors
    /// [`Error::Busy`] if a sandbox or another snapshot lies on it; it stays then.
    pub fn delete(self) -> Result<()> {
        let Self { this, below } = self;
        let state = State::open(Some(&this.state))?;
        // What this handle holds is in no one's way; what a sandbox of this process does, is.
        let Some(mut this) = Arc::into_inner(this) else {
            return Err(Error::Busy {
                what: "the snapshot".to_owned(),
                by: "a sandbox".to_owned(),
            });
        };
        this.owner = None;
        let name = std::mem::take(&mut this.name);
        drop(this);
        let removed = remove(&state, &name);
        // The last one on those without a name, perhaps.
        drop(below);
        removed
    }

    pub(crate) fn held(&self) -> &Arc<Held> {
        &self.this
    }
}

/// The file that a snapshot's record is in, in its directory.
const RECORD: &str = "snapshot.json";

/// Of another form of record, nothing can be made.
const FORM: u32 = 1;

/// What there is to know of a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    form: u32,
    /// Of the sandbox that it was made of, without a name.
    config: Config,
    trees: Vec<TreeRecord>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct TreeRecord {
    #[serde(with = "crate::bytes")]
    at: PathBuf,
    /// The topmost, which is the snapshot's own, first.
    layers: Vec<LayerRecord>,
    changed: usize,
    is_volume: bool,
    is_subvolume: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LayerRecord {
    /// A part of a snapshot.
    Snapshot { name: String, part: String },
    /// A directory; a relative path is one in the state directory.
    Directory {
        #[serde(with = "crate::bytes")]
        path: PathBuf,
    },
}

impl Record {
    /// Of what a sandbox has written on top of `root`, under the name of the snapshot.
    fn new(state: &State, config: &Config, root: &Root, name: &str) -> Self {
        let is_volume = root.parts.iter().filter_map(|part| match part {
            Part::Tree { is_volume, .. } => Some(*is_volume),
            Part::Mount { .. } => None,
        });
        let trees = root.uppers().zip(is_volume).map(|((tree, part), is_volume)| {
            let own = LayerRecord::Snapshot { name: name.to_owned(), part };
            let below = tree.layers.iter().map(|layer| match layer {
                Layer::Snapshot { snapshot, part, .. } => {
                    LayerRecord::Snapshot { name: snapshot.clone(), part: part.clone() }
                }
                Layer::Image(Source { path, .. }) => {
                    let path = path.strip_prefix(state.path()).unwrap_or(path).to_owned();
                    LayerRecord::Directory { path }
                }
            });
            TreeRecord {
                at: tree.at.clone(),
                layers: [own].into_iter().chain(below).collect(),
                changed: tree.changed + 1,
                is_volume,
                is_subvolume: tree.kind == TreeKind::Subvolume,
            }
        });
        let config = Config { name: None, state_directory: None, ..config.clone() };
        Self { form: FORM, config, trees: trees.collect() }
    }

    /// The snapshots that it lies on.
    fn below(&self, own: &str) -> impl Iterator<Item = &str> {
        let mut names: Vec<&str> = self
            .trees
            .iter()
            .flat_map(|tree| &tree.layers)
            .filter_map(|layer| match layer {
                LayerRecord::Snapshot { name, .. } if name != own => Some(name.as_str()),
                _ => None,
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter()
    }

    /// Opens its trees; those of volumes without what is the volume itself.
    pub(crate) fn open(&self, state: &State, with_volumes: bool) -> Result<Vec<(Tree, bool)>> {
        let mut trees = Vec::new();
        for tree in &self.trees {
            let without = usize::from(tree.is_volume && !with_volumes);
            let count = tree.layers.len().saturating_sub(without);
            let layers = tree.layers.iter().take(count).map(|layer| layer.open(state));
            let kind = if tree.is_subvolume { TreeKind::Subvolume } else { TreeKind::Overlay };
            let opened = Tree {
                at: tree.at.clone(),
                layers: layers.collect::<Result<_>>()?,
                changed: tree.changed,
                kind,
            };
            trees.push((opened, tree.is_volume));
        }
        Ok(trees)
    }
}

impl LayerRecord {
    fn open(&self, state: &State) -> Result<Layer> {
        Ok(match self {
            Self::Snapshot { name, part } => Layer::Snapshot {
                path: state.snapshots()?.path(name).join(part),
                snapshot: name.clone(),
                part: part.clone(),
            },
            Self::Directory { path } => {
                Layer::Image(Source::directory("open image", &state.path().join(path))?)
            }
        })
    }
}

/// Opens a snapshot as the image of a sandbox with such an upper.
pub(crate) fn open_image(state: &State, name: &str, upper: Upper) -> Result<OpenedImage> {
    if !is_own_name(name) {
        check_name("snapshot", name)?;
    }
    let this = Held::open(state, name)?;
    let is_btrfs = this.record.trees.iter().any(|tree| tree.is_subvolume);
    if is_btrfs != matches!(upper, Upper::Btrfs { .. }) {
        let why = "it was made of a sandbox with the upper `btrfs`, or this one is to have that; \
                   both must or neither";
        return Err(Error::invalid("snapshot", format!("{name:?}: {why}")));
    }
    let mut opened = OpenedImage { held: this.hold_below(state)?, ..OpenedImage::default() };
    for (mut tree, is_volume) in this.record.open(state, false)? {
        // What changes from now on are changes to this snapshot.
        tree.changed = 0;
        if is_volume { opened.volumes.push(tree) } else { opened.trees.push(tree) }
    }
    opened.held.push(this);
    Ok(opened)
}

/// A snapshot that can't be removed for as long as this is there. A process has one of each at most.
#[derive(Debug)]
pub(crate) struct Held {
    name: String,
    /// The state directory.
    state: PathBuf,
    /// The snapshot's own directory.
    path: PathBuf,
    record: Record,
    /// Its record's file, locked together with others.
    file: File,
    /// Who drops it as the last one removes a snapshot without a name.
    owner: Option<Owner>,
}

/// Those that there are in this process, by the paths of their directories.
static HELD: Mutex<BTreeMap<PathBuf, Weak<Held>>> = Mutex::new(BTreeMap::new());

impl Held {
    fn open(state: &State, name: &str) -> Result<Arc<Self>> {
        let shelf = state.snapshots()?;
        let path = shelf.path(name);
        let mut all = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(&path).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| known.owner.is_some_and(Owner::is_this_process)) {
            return Ok(known);
        }
        let none = || Error::NoSnapshot { name: name.to_owned() };
        let file = match open_record(&shelf, name) {
            Ok(file) => file,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(none()),
            Err(errno) => return Err(Error::at("open", &path.join(RECORD))(errno)),
        };
        match file.try_lock_shared() {
            Ok(()) => {}
            // It is being removed.
            Err(TryLockError::WouldBlock) => return Err(none()),
            Err(TryLockError::Error(error)) => return Err(Error::at("flock", &path)(error)),
        }
        // Since it was opened it may have been removed, or moved aside to be.
        let is_there = || {
            let own = file.metadata()?;
            let there = open_record(&shelf, name)?.metadata()?;
            Ok::<_, io::Error>((own.dev(), own.ino()) == (there.dev(), there.ino()))
        };
        if !is_there().unwrap_or(false) {
            return Err(none());
        }
        let record = read(&file).map_err(Error::at("read", &path.join(RECORD)))?;
        let this = Self::new(state, name, &path, record, file);
        all.insert(path, Arc::downgrade(&this));
        Ok(this)
    }

    fn new(state: &State, name: &str, path: &Path, record: Record, file: File) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            state: state.path().to_owned(),
            path: path.to_owned(),
            record,
            file,
            owner: Some(Owner::this_process()),
        })
    }

    /// The state directory.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Holds all that it lies on.
    fn hold_below(&self, state: &State) -> Result<Vec<Arc<Self>>> {
        self.record.below(&self.name).map(|name| Self::open(state, name)).collect()
    }

    /// A part of it, as a layer.
    pub(crate) fn layer(&self, part: String) -> Layer {
        Layer::Snapshot { path: self.path.join(&part), snapshot: self.name.clone(), part }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A lock belongs to the open file, which a fork's copy shares.
        if !is_own_name(&self.name) || !self.owner.is_some_and(Owner::is_this_process) {
            return;
        }
        if self.file.unlock().is_ok()
            && let Ok(state) = State::open(Some(&self.state))
        {
            // Where it can't be removed, someone uses it, or the collector will say why.
            let _ = remove(&state, &self.name);
        }
    }
}

fn read(mut file: &File) -> io::Result<Record> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    parse(&text)
}

fn parse(text: &[u8]) -> io::Result<Record> {
    let record: Record = serde_json::from_slice(text)?;
    if record.form != FORM {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "of another version of adl"));
    }
    Ok(record)
}

fn open_record(shelf: &Shelf, name: &str) -> nix::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(shelf.as_fd(), &Path::new(name).join(RECORD), flags, Mode::empty()).map(File::from)
}

fn is_own_name(name: &str) -> bool {
    name.starts_with(OWN)
}

/// What names begin with that a snapshot has of its own, and that a caller can't give.
const OWN: &str = ".unnamed-";

/// The names of all snapshots.
fn names(state: &State) -> Result<Vec<String>> {
    let shelf = state.snapshots()?;
    let entries = entries(shelf.as_fd()).map_err(Error::at("read", &shelf.path("")))?;
    let names = entries.into_iter().filter_map(|name| name.into_string().ok());
    // What has no record is not one yet, or is being removed.
    let is_one = |name: &String| shelf.path(name).join(RECORD).exists();
    Ok(names.filter(|name| !name.starts_with('.') || is_own_name(name)).filter(is_one).collect())
}

/// Removes a snapshot that nothing lies on.
fn remove(state: &State, name: &str) -> Result<()> {
    let shelf = state.snapshots()?;
    let busy = |by: String| Error::Busy { what: format!("the snapshot {name:?}"), by };
    let record = match open_record(&shelf, name) {
        Ok(record) => record,
        Err(Errno::ENOENT | Errno::ENOTDIR) => {
            return Err(Error::NoSnapshot { name: name.to_owned() });
        }
        Err(errno) => return Err(Error::at("open", &shelf.path(name).join(RECORD))(errno)),
    };
    match record.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy("a sandbox".to_owned())),
        Err(TryLockError::Error(error)) => {
            return Err(Error::at("flock", &shelf.path(name))(error));
        }
    }
    for other in names(state)?.iter().filter(|other| *other != name) {
        // One that can't be read is one that may lie on it.
        let lies_on_it = match open_record(&shelf, other) {
            Ok(file) => {
                read(&file).map_or(true, |record| record.below(other).any(|below| below == name))
            }
            Err(errno) => errno != Errno::ENOENT,
        };
        // What a process that has died left without a name is no reason.
        if lies_on_it && !collect_one(state, other)? {
            return Err(busy(format!("the snapshot {other:?}")));
        }
    }
    match shelf.take(name)? {
        Some(directory) => remove_later(Remains::new(None, Some(directory)))?,
        None => return Err(busy("another process, which removes it".to_owned())),
    }
    // What it lay on may have been there for it alone. One that can't be read says nothing of that.
    if let Ok(own) = read(&record) {
        for below in own.below(name) {
            collect_one(state, below)?;
        }
    }
    Ok(())
}

/// Removes a snapshot without a name, unless something lies on it, and a name that someone has
/// reserved who has died since.
pub(crate) fn collect_one(state: &State, name: &str) -> Result<bool> {
    if !is_own_name(name) {
        let shelf = state.snapshots()?;
        if shelf.path(name).join(RECORD).exists() || shelf.reserve(name)?.is_none() {
            return Ok(false);
        }
        shelf.give_up(name);
        return Ok(true);
    }
    match remove(state, name) {
        Ok(()) => Ok(true),
        Err(Error::Busy { .. } | Error::NoSnapshot { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A snapshot that is being made.
pub(crate) struct Making {
    state: State,
    shelf: Shelf,
    name: String,
    /// Keeps the name; `None` where that is one of its own, and once it is a snapshot's.
    reserved: Option<OwnedFd>,
    record: Record,
    file: File,
}

impl Making {
    /// Writes down what a sandbox's directory is to become, while it is that still.
    pub(crate) fn begin(
        state: &State,
        directory: &SandboxDirectory,
        config: &Config,
        root: &Root,
        name: Option<&str>,
    ) -> Result<Self> {
        let shelf = state.snapshots()?;
        let (name, reserved) = match name {
            None => (unique_name(OWN), None),
            Some(name) => match shelf.reserve(name)? {
                None => return Err(Error::NameInUse { name: name.to_owned() }),
                reserved => (name.to_owned(), reserved),
            },
        };
        match write_record(state, directory, config, root, &name) {
            Ok((record, file)) => {
                let state = state.try_clone().map_err(Error::at("dup", state.path()))?;
                Ok(Self { state, shelf, name, reserved, record, file })
            }
            Err(error) => {
                if reserved.is_some() {
                    shelf.give_up(&name);
                }
                Err(error)
            }
        }
    }

    /// Makes a snapshot of the directory, of which nothing is used any more.
    pub(crate) fn publish(
        mut self,
        mut directory: SandboxDirectory,
        root: &Root,
    ) -> Result<Snapshot> {
        directory.move_to(&self.shelf, &self.name)?;
        self.reserved = None;
        let file = self.file.try_clone().map_err(Error::at("dup", directory.path()))?;
        let this = Held::new(&self.state, &self.name, directory.path(), self.record.clone(), file);
        let mut all = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, held| held.strong_count() != 0);
        all.insert(directory.path().to_owned(), Arc::downgrade(&this));
        Ok(Snapshot { this, below: root.held.clone() })
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if self.reserved.is_some() {
            self.shelf.give_up(&self.name);
        }
    }
}

fn write_record(
    state: &State,
    directory: &SandboxDirectory,
    config: &Config,
    root: &Root,
    name: &str,
) -> Result<(Record, File)> {
    let record = Record::new(state, config, root, name);
    let path = directory.path().join(RECORD);
    let text = serde_json::to_vec_pretty(&record)
        .map_err(|error| Error::at("write", &path)(io::Error::from(error)))?;
    // One that failed may have left one.
    let flags =
        OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let mut file = openat(directory.as_fd(), RECORD, flags, mode)
        .map(File::from)
        .map_err(Error::at("open", &path))?;
    file.write_all(&text).map_err(Error::at("write", &path))?;
    file.lock_shared().map_err(Error::at("flock", &path))?;
    Ok((record, file))
}
