//! What lies on `/usr` where an ordinary user makes the sandbox: the directories of `/usr/local`,
//! as that user's own.
//!
//! With one id inside, what belongs to the host's root belongs to no one there, and root inside may
//! not write to it. Directories of one name are one in an overlay, with the owner of the topmost.

use std::fs::{self, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::store::State;
use crate::store::once::{self, OWN};

const TOP: &str = "usr/local";
/// How far down, which is where package managers of languages put what they install:
/// `lib/python3/dist-packages`, `share/man/man1`.
const DEEPEST: usize = 4;
/// The most directories.
const MOST: usize = 10_000;

/// The layer; `None` if there is no `/usr/local`.
pub(super) fn layer(state: &State) -> Result<Option<PathBuf>> {
    let Some(sign) = sign() else { return Ok(None) };
    let name = format!("{OWN}{sign:016x}");
    let fill = |at: &Path| fill(at).map_err(Error::at("make directories of /usr/local in", at));
    once::make_once(state, &name, fill).map(Some)
}

/// Changes when a directory is made in `/usr/local`, or in one at its top.
fn sign() -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    let top = Path::new("/").join(TOP);
    let metadata = fs::symlink_metadata(&top).ok().filter(fs::Metadata::is_dir)?;
    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec()).hash(&mut hasher);
    for name in ["bin", "etc", "include", "lib", "sbin", "share", "src"] {
        if let Ok(metadata) = fs::symlink_metadata(top.join(name)) {
            (name, metadata.ino(), metadata.mtime(), metadata.mtime_nsec()).hash(&mut hasher);
        }
    }
    Some(hasher.finish())
}

fn fill(at: &Path) -> io::Result<()> {
    make(&at.join("usr"))?;
    let mut left = vec![(PathBuf::from(TOP), 0)];
    let mut count = 0;
    while let Some((directory, depth)) = left.pop() {
        make(&at.join(&directory))?;
        count += 1;
        // One that is not public is as it is: no one inside may look into it.
        let Ok(entries) = fs::read_dir(Path::new("/").join(&directory)) else { continue };
        for entry in entries {
            let entry = entry?;
            let is_directory = entry
                .metadata()
                .is_ok_and(|metadata| metadata.is_dir() && metadata.mode() & 0o005 == 0o005);
            if is_directory && depth < DEEPEST && count + left.len() < MOST {
                left.push((directory.join(entry.file_name()), depth + 1));
            }
        }
    }
    Ok(())
}

fn make(directory: &Path) -> io::Result<()> {
    fs::create_dir(directory)?;
    fs::set_permissions(directory, Permissions::from_mode(0o755))
}
