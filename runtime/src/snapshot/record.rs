//! What there is to know of a snapshot, in a file of its directory.
//!
//! No guest can write one, but what is read is looked at as if one had: whose the file is and of
//! which kind, how much there is of it, and that it says what is written here and nothing else.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use adl_protocol::limits;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat, fstatat};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::config::host_path::HostPath;
use crate::config::image::ImageSays;
use crate::error::{Error, Result};
use crate::root::source::Source;
use crate::root::stack::{Layer, Stack, StackKind};
use crate::store::directories::Directories;
use crate::store::directory::SandboxDirectory;
use crate::store::name::{PartName, SnapshotName};
use crate::store::own_file::{check_own, open_own_file};
use crate::store::{IMAGES, State};
use crate::sys::open::DIRECTORY;

/// The file that a snapshot's record is in, in its directory.
const RECORD: &str = "snapshot.json";

/// Of another form of record, nothing can be made.
const FORM: u32 = 1;

/// The longest record, in bytes: a hundred times what one with all the layers that there can be
/// takes.
const LONGEST: u64 = 8 << 20;

/// What there is to know of a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    form: u32,
    /// Of the sandbox that it was made of, without a name.
    pub(super) config: Config,
    /// What the image that it lies on says of commands in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) says: Option<ImageSays>,
    #[serde(rename = "trees")]
    stacks: Vec<StackRecord>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct StackRecord {
    #[serde(with = "crate::config::bytes")]
    at: PathBuf,
    /// The topmost, which is the snapshot's own, first; then those of the snapshots that it lies
    /// on, and last the directories under all of them.
    layers: Vec<LayerRecord>,
    changed: usize,
    is_volume: bool,
    is_subvolume: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LayerRecord {
    /// A part of a snapshot.
    Snapshot { name: SnapshotName, part: PartName },
    /// A directory; a relative path is one in the state directory.
    Directory { path: HostPath },
}

impl Record {
    /// Of what a sandbox has written on top of stacks, each in the part that is named, under the
    /// name of the snapshot.
    fn new(
        state: &State,
        config: &Config,
        says: Option<&ImageSays>,
        stacks: &[(&Stack, PartName)],
        name: &SnapshotName,
    ) -> Self {
        let stacks = stacks.iter().map(|(stack, part)| {
            let own = LayerRecord::Snapshot { name: name.clone(), part: part.clone() };
            let below = stack.layers.iter().map(|layer| match layer {
                Layer::Snapshot { snapshot, part, .. } => {
                    LayerRecord::Snapshot { name: snapshot.clone(), part: part.clone() }
                }
                Layer::Image(source) => directory(state, source.host_path()),
                Layer::Volume(path) => directory(state, path.clone()),
            });
            StackRecord {
                at: stack.at.clone(),
                layers: [own].into_iter().chain(below).collect(),
                changed: stack.changed + 1,
                is_volume: stack.is_volume,
                is_subvolume: stack.kind == StackKind::Subvolume,
            }
        });
        let config = Config { name: None, state_directory: None, ..config.clone() };
        Self { form: FORM, config, says: says.cloned(), stacks: stacks.collect() }
    }

    /// Whether its root is a subvolume.
    pub(super) fn is_on_btrfs(&self) -> bool {
        self.stacks.iter().any(|stack| stack.is_subvolume)
    }

    /// The snapshot that it lies on directly. That lies on all others that this one lies on.
    pub(super) fn below(&self) -> Option<&SnapshotName> {
        self.stacks.first()?.snapshots().nth(1)
    }

    /// All that it lies on, the topmost first.
    pub(super) fn all_below(&self) -> Vec<SnapshotName> {
        self.stacks.first().map_or(Vec::new(), |root| root.snapshots().skip(1).cloned().collect())
    }

    /// Whether it lies on a snapshot, directly or not.
    pub(super) fn lies_on(&self, name: &SnapshotName) -> bool {
        self.stacks.iter().any(|stack| stack.snapshots().skip(1).any(|below| below == name))
    }

    /// Gives its own parts, the topmost, the name that it has, whichever it had when it was written
    /// down.
    pub(super) fn own_parts_are_of(&mut self, own: &SnapshotName) {
        for stack in &mut self.stacks {
            if let Some(LayerRecord::Snapshot { name, .. }) = stack.layers.first_mut() {
                own.clone_into(name);
            }
        }
    }

    /// Its name is that of one that it lies on from now on, and that one has this one's.
    pub(super) fn exchange(&mut self, from: &SnapshotName, to: &SnapshotName) {
        for layer in self.stacks.iter_mut().flat_map(|stack| stack.layers.iter_mut().skip(1)) {
            if let LayerRecord::Snapshot { name, .. } = layer
                && *name == *to
            {
                from.clone_into(name);
            }
        }
        self.own_parts_are_of(to);
    }

    /// The images of the state directory that it lies on, by the names of their directories.
    pub(super) fn images(&self) -> impl Iterator<Item = &OsStr> {
        let layers = self.stacks.iter().flat_map(|stack| &stack.layers);
        layers.filter_map(|layer| match layer {
            LayerRecord::Directory { path } if is_image(path.path()) => path.path().iter().nth(1),
            _ => None,
        })
    }

    /// Opens its stacks, but the sources of volumes and the parts of snapshots.
    pub(super) fn open(&self, state: &Path, directories: &Arc<Directories>) -> Result<Vec<Stack>> {
        let open = |stack: &StackRecord| {
            let layers =
                stack.layers.iter().map(|layer| layer.open(state, directories, stack.is_volume));
            Ok(Stack {
                at: stack.at.clone(),
                layers: layers.collect::<Result<_>>()?,
                changed: stack.changed,
                kind: if stack.is_subvolume { StackKind::Subvolume } else { StackKind::Overlay },
                is_volume: stack.is_volume,
            })
        };
        self.stacks.iter().map(open).collect()
    }

    /// Refuses what is not as [`Record::new`] makes it; `own` is the snapshot whose it is.
    fn check(&self, own: &SnapshotName) -> std::result::Result<(), &'static str> {
        let Some(root) = self.stacks.first() else { return Err("no root") };
        if self.form != FORM {
            return Err("of another version of adl");
        }
        if self.stacks.len() > limits::MAX_DESCRIPTORS {
            return Err("more stacks than there can be");
        }
        if !root.at.as_os_str().is_empty() || root.is_volume {
            return Err("the first stack is not the root");
        }
        for stack in &self.stacks {
            stack.check(own)?;
            // The root lies on all of them, which is what keeps them there.
            if !stack.snapshots().all(|name| root.snapshots().any(|other| other == name)) {
                return Err("a stack on a snapshot that the root does not lie on");
            }
        }
        Ok(())
    }
}

impl StackRecord {
    fn snapshots(&self) -> impl Iterator<Item = &SnapshotName> {
        self.layers.iter().filter_map(|layer| match layer {
            LayerRecord::Snapshot { name, .. } => Some(name),
            LayerRecord::Directory { .. } => None,
        })
    }

    fn check(&self, own: &SnapshotName) -> std::result::Result<(), &'static str> {
        if !is_plain(&self.at) || self.at.as_os_str().len() > limits::MAX_PATH {
            return Err("a stack with a place that leads elsewhere");
        }
        let is_part = |layer: &&LayerRecord| matches!(layer, LayerRecord::Snapshot { .. });
        let (parts, directories) =
            self.layers.split_at(self.layers.iter().take_while(is_part).count());
        if directories.is_empty() {
            return Err("a stack that lies on no directory");
        }
        for directory in directories {
            self.check_directory(directory)?;
        }
        if !self.is_subvolume && self.layers.len() > limits::MAX_LAYERS {
            return Err("more layers than there can be");
        }
        if self.changed == 0 || self.changed > parts.len() {
            return Err("more changes than layers");
        }
        for (number, part) in parts.iter().enumerate() {
            let LayerRecord::Snapshot { name, part } = part else { continue };
            if part.is_subvolume() != self.is_subvolume {
                return Err("a part of another kind");
            }
            if (name == own) != (number == 0) {
                return Err("its own part is not on top");
            }
        }
        Ok(())
    }
}

impl StackRecord {
    fn check_directory(&self, layer: &LayerRecord) -> std::result::Result<(), &'static str> {
        let LayerRecord::Directory { path } = layer else {
            return Err("a directory on top of a snapshot");
        };
        let is_good = match self.is_volume {
            // It is compared with what the caller names, and not opened.
            true => is_plain(path.path()),
            false => is_image(path.path()),
        };
        let is_named = path.full_path().is_absolute();
        if !is_named && (path.base().is_some() || !is_good) {
            return Err("a directory that leads out of the images");
        }
        Ok(())
    }
}

impl LayerRecord {
    fn open(&self, state: &Path, directories: &Arc<Directories>, is_volume: bool) -> Result<Layer> {
        Ok(match self {
            Self::Snapshot { name, part } => Layer::Snapshot {
                directories: Arc::clone(directories),
                snapshot: name.clone(),
                part: part.clone(),
            },
            Self::Directory { path } if is_volume => Layer::Volume(path.below(state)),
            // What its caller has named.
            Self::Directory { path } if path.full_path().is_absolute() => {
                Layer::Image(Source::directory("open image", path)?)
            }
            Self::Directory { path } => {
                let at = Source::directory("open", &state.into())?;
                let (path, shown) = (path.path(), state.join(path.path()));
                Layer::Image(Source::beneath("open image", at.as_fd(), path, shown)?)
            }
        })
    }
}

/// A directory; an image of adl's own moves with the state directory.
fn directory(state: &State, path: HostPath) -> LayerRecord {
    let of_state = match path.base() {
        None => path.path().strip_prefix(state.path()).ok().filter(|path| is_image(path)),
        Some(_) => None,
    };
    LayerRecord::Directory { path: of_state.map(HostPath::from).unwrap_or(path) }
}

/// Whether a path leads nowhere but down.
fn is_plain(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whether a path in the state directory is that of an image, or of a part of one.
fn is_image(path: &Path) -> bool {
    path.components().count() >= 2 && path.starts_with(IMAGES) && is_plain(path)
}

/// Opens the directory of a snapshot, or what is in its place.
///
/// # Errors
/// ENOENT and ENOTDIR if there is none.
pub(super) fn open_directory(
    directories: &Directories,
    name: &SnapshotName,
) -> nix::Result<OwnedFd> {
    openat(directories.as_fd(), name.as_str(), DIRECTORY, Mode::empty())
}

/// Opens the record of a snapshot; `None` if there is no snapshot of that name.
///
/// # Errors
/// [`Error::Io`] for what is none of adl's.
pub(super) fn open_record(directories: &Directories, name: &SnapshotName) -> Result<Option<File>> {
    let path = path(directories, name);
    let directory = match open_directory(directories, name) {
        Ok(directory) => directory,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(errno) => return Err(Error::at("open", &path)(errno)),
    };
    check_own(directory.as_fd(), libc::S_IFDIR).map_err(Error::at("open", &path))?;
    match open_own_file(directory.as_fd(), RECORD, LONGEST) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::at("open", &path)(error)),
    }
}

/// The names of all snapshots.
pub(super) fn names(directories: &Directories) -> Result<Vec<SnapshotName>> {
    let names = directories.entries()?.into_iter();
    let names = names.filter_map(|name| SnapshotName::parse(name.to_str()?).ok());
    // What has no record is not one yet, or is being removed; one that can't be looked at is one.
    Ok(names.filter(|name| !matches!(open_record(directories, name), Ok(None))).collect())
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Where the record of a snapshot is, for errors.
pub(super) fn path(directories: &Directories, name: &SnapshotName) -> PathBuf {
    directories.path(Path::new(name.as_str()).join(RECORD))
}

/// Whether a record is still that of the snapshot of this name.
pub(super) fn is_there(directories: &Directories, name: &SnapshotName, record: &File) -> bool {
    let path = Path::new(name.as_str()).join(RECORD);
    match (fstatat(directories.as_fd(), &path, AtFlags::AT_SYMLINK_NOFOLLOW), fstat(record)) {
        (Ok(there), Ok(own)) => (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino),
        _ => false,
    }
}

/// Reads the record of a snapshot.
pub(super) fn read(file: &File, own: &SnapshotName) -> io::Result<Record> {
    parse(&read_text(file)?, own)
}

fn read_text(file: &File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    match file.take(LONGEST + 1).read_to_end(&mut text)? as u64 {
        0..=LONGEST => Ok(text),
        _ => Err(invalid("longer than any record")),
    }
}

fn parse(text: &[u8], own: &SnapshotName) -> io::Result<Record> {
    let mut record: Record = serde_json::from_slice(text)?;
    record.own_parts_are_of(own);
    record.check(own).map_err(invalid)?;
    Ok(record)
}

/// Whether the snapshot `own`, whose record this is, lies on another. Of a form that is not known,
/// it does if it names that anywhere; of what is no record at all, as a crash may leave one,
/// nothing is known to lie on anything.
pub(super) fn lies_on(file: &File, own: &SnapshotName, other: &SnapshotName) -> bool {
    fn names(value: &serde_json::Value, name: &str) -> bool {
        match value {
            serde_json::Value::String(text) => text == name,
            serde_json::Value::Array(values) => values.iter().any(|value| names(value, name)),
            serde_json::Value::Object(map) => map.values().any(|value| names(value, name)),
            _ => false,
        }
    }
    let Ok(text) = read_text(file) else { return true };
    match parse(&text, own) {
        Ok(record) => record.lies_on(other),
        Err(_) => serde_json::from_slice(&text).is_ok_and(|value| names(&value, other.as_str())),
    }
}

/// Writes a record anew, into its file, whose lock and inode are kept.
pub(super) fn rewrite(mut file: &File, record: &Record) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(record).map_err(io::Error::from)?;
    file.rewind()?;
    file.write_all(&text)?;
    file.set_len(text.len() as u64)
}

/// Writes down, in a sandbox's directory, what that is to become; the file is locked with others.
pub(super) fn write_record(
    state: &State,
    directory: &SandboxDirectory,
    config: &Config,
    says: Option<&ImageSays>,
    stacks: &[(&Stack, PartName)],
    name: &SnapshotName,
) -> Result<(Record, File)> {
    let record = Record::new(state, config, says, stacks, name);
    let path = directory.path().join(RECORD);
    let text = serde_json::to_vec_pretty(&record)
        .map_err(|error| Error::at("write", &path)(io::Error::from(error)))?;
    if text.len() as u64 > LONGEST {
        return Err(Error::TooLarge { what: "the record of a snapshot, in bytes", limit: LONGEST });
    }
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
