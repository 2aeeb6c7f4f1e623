//! What there is to know of a snapshot, in a file of its directory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::host_path::HostPath;
use crate::root::{Layer, Root, Source, Tree, TreeKind};
use crate::state::{SandboxDirectory, Shelf, State};

/// The file that a snapshot's record is in, in its directory.
pub(super) const RECORD: &str = "snapshot.json";

/// Of another form of record, nothing can be made.
const FORM: u32 = 1;

/// What there is to know of a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    form: u32,
    /// Of the sandbox that it was made of, without a name.
    pub(super) config: Config,
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
    Directory { path: HostPath },
}

impl Record {
    /// Of what a sandbox has written on top of `root`, under the name of the snapshot.
    fn new(state: &State, config: &Config, root: &Root, name: &str) -> Self {
        let trees = root.uppers().map(|(tree, part)| {
            let own = LayerRecord::Snapshot { name: name.to_owned(), part };
            let below = tree.layers.iter().map(|layer| match layer {
                Layer::Snapshot { snapshot, part, .. } => {
                    LayerRecord::Snapshot { name: snapshot.clone(), part: part.clone() }
                }
                Layer::Image(source) => directory(state, source.host_path()),
                Layer::Volume(path) => directory(state, path.clone()),
            });
            TreeRecord {
                at: tree.at.clone(),
                layers: [own].into_iter().chain(below).collect(),
                changed: tree.changed + 1,
                is_volume: tree.is_volume,
                is_subvolume: tree.kind == TreeKind::Subvolume,
            }
        });
        let config = Config { name: None, state_directory: None, ..config.clone() };
        Self { form: FORM, config, trees: trees.collect() }
    }

    /// Whether its root is a subvolume.
    pub(super) fn is_on_btrfs(&self) -> bool {
        self.trees.iter().any(|tree| tree.is_subvolume)
    }

    /// The snapshots that it lies on, the topmost first.
    pub(super) fn below(&self, own: &str) -> Vec<String> {
        let mut names = Vec::new();
        for layer in self.trees.iter().flat_map(|tree| &tree.layers) {
            if let LayerRecord::Snapshot { name, .. } = layer
                && name != own
                && !names.contains(name)
            {
                names.push(name.clone());
            }
        }
        names
    }

    /// Opens its trees, but the sources of volumes.
    pub(crate) fn open(&self, state: &State) -> Result<Vec<Tree>> {
        let open = |tree: &TreeRecord| {
            let layers = tree.layers.iter().map(|layer| match layer {
                LayerRecord::Directory { path } if tree.is_volume => {
                    Ok(Layer::Volume(path.below(state.path())))
                }
                other => other.open(state),
            });
            Ok(Tree {
                at: tree.at.clone(),
                layers: layers.collect::<Result<_>>()?,
                changed: tree.changed,
                kind: if tree.is_subvolume { TreeKind::Subvolume } else { TreeKind::Overlay },
                is_volume: tree.is_volume,
            })
        };
        self.trees.iter().map(open).collect()
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
                Layer::Image(Source::directory("open image", &path.below(state.path()))?)
            }
        })
    }
}

/// A directory, so that the state directory can be moved.
fn directory(state: &State, path: HostPath) -> LayerRecord {
    let below =
        path.base().is_none().then(|| path.path().strip_prefix(state.path()).ok()).flatten();
    LayerRecord::Directory { path: below.map(HostPath::from).unwrap_or(path) }
}

pub(super) fn read(mut file: &File) -> io::Result<Record> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    parse(&text)
}

/// Whether the snapshot `own`, whose record this is, lies on another. Of a form that is not known, it
/// does if it names that anywhere; of what is no record at all, as a crash may leave one, nothing
/// is known to lie on anything.
pub(super) fn lies_on(mut file: &File, own: &str, other: &str) -> bool {
    fn names(value: &serde_json::Value, name: &str) -> bool {
        match value {
            serde_json::Value::String(text) => text == name,
            serde_json::Value::Array(values) => values.iter().any(|value| names(value, name)),
            serde_json::Value::Object(map) => map.values().any(|value| names(value, name)),
            _ => false,
        }
    }
    let mut text = Vec::new();
    if file.read_to_end(&mut text).is_err() {
        return true;
    }
    match parse(&text) {
        Ok(record) => record.below(own).iter().any(|below| below == other),
        Err(_) => serde_json::from_slice(&text).is_ok_and(|value| names(&value, other)),
    }
}

fn parse(text: &[u8]) -> io::Result<Record> {
    let record: Record = serde_json::from_slice(text)?;
    if record.form != FORM {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "of another version of adl"));
    }
    Ok(record)
}

pub(super) fn open_record(shelf: &Shelf, name: &str) -> nix::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(shelf.as_fd(), &Path::new(name).join(RECORD), flags, Mode::empty()).map(File::from)
}

/// Writes down, in a sandbox's directory, what that is to become; the file is locked with others.
pub(super) fn write_record(
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
