//! What lies on `/usr` where an ordinary user makes the sandbox: the directories of `/usr/local`,
//! as that user's own.
//!
//! With one id inside, what belongs to the host's root belongs to no one there, and root inside may
//! not write to it. Directories of one name are one in an overlay, with the owner of the topmost.

use std::fs::{self, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::Mode;

use crate::error::{Error, Result};
use crate::store::State;
use crate::store::contents::entries;
use crate::store::once::{self, Held, OWN};
use crate::sys::open::{self, DIRECTORY, Mounts, Purpose};
use crate::sys::stamp::{Stamp, seen};

const TOP: &str = "usr/local";
/// How far down, which is where package managers of languages put what they install:
/// `lib/python3/dist-packages`, `share/man/man1`.
const DEEPEST: usize = 4;
/// The most directories.
const MOST: usize = 10_000;

/// The layer; `None` if there is no `/usr/local`.
pub(super) fn layer(state: &State) -> Result<Option<Held>> {
    let Some(sign) = sign()? else { return Ok(None) };
    let name = format!("{OWN}{sign:016x}");
    let fill = |at: &Path| fill(at).map_err(Error::at("make directories of /usr/local in", at));
    once::make_and_hold(state, &name, fill).map(Some)
}

/// Changes when a directory is made in `/usr/local`, or in one at its top; `None` if there is none,
/// or a file system of its own, which is not inside.
fn sign() -> Result<Option<u64>> {
    let look = |path: &Path| {
        let stamp = Stamp::of(AT_FDCWD, path).map_err(Error::at("stat", path))?;
        Ok::<_, Error>(stamp.filter(Stamp::is_own_directory))
    };
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    let top = Path::new("/").join(TOP);
    let Some(stamp) = look(&top)? else { return Ok(None) };
    stamp.hash(&mut hasher);
    for name in ["bin", "etc", "include", "lib", "sbin", "share", "src"] {
        look(&top.join(name))?.hash(&mut hasher);
    }
    Ok(Some(hasher.finish()))
}

fn fill(at: &Path) -> io::Result<()> {
    make(&at.join("usr"))?;
    let top = nix::fcntl::open(&Path::new("/").join(TOP), DIRECTORY, Mode::empty())?;
    let mut left = vec![(PathBuf::new(), 0)];
    let mut count = 0;
    while let Some((directory, depth)) = left.pop() {
        make(&at.join(TOP).join(&directory))?;
        count += 1;
        let path = if depth == 0 { Path::new(".") } else { &directory };
        let opened = open::entry(&top, path, Purpose::List, Mounts::Refused);
        // One that is not public is as it is: no one inside may look into it.
        let Some(opened) = seen(opened)? else { continue };
        for name in entries(opened.as_fd())? {
            let stamp = Stamp::of(&opened, Path::new(&name))?.filter(Stamp::is_own_directory);
            let is_public = stamp.is_some_and(|stamp| stamp.may(0o005));
            if is_public && depth < DEEPEST && count + left.len() < MOST {
                left.push((directory.join(name), depth + 1));
            }
        }
    }
    Ok(())
}

fn make(directory: &Path) -> io::Result<()> {
    fs::create_dir(directory)?;
    fs::set_permissions(directory, Permissions::from_mode(0o755))
}
