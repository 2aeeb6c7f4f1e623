//! What of the host's programs is not for everyone to read: the host image is without it.
//!
//! Files of root's belong to root inside, who may read them whatever their mode says. So what no
//! ordinary user of the host could read is hidden, by a layer of whiteouts on top of `/usr`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, mknod};

use crate::error::{Error, Result};
use crate::sandbox::unique_name;
use crate::state::State;
use crate::{ids, unpack};

/// What changes when programs are installed or removed, and where administrators put their own.
const SIGNS: [&str; 14] = [
    "/usr",
    "/usr/local",
    "/usr/local/bin",
    "/usr/local/etc",
    "/usr/local/lib",
    "/usr/local/sbin",
    "/usr/local/share",
    "/lib/apk/db/installed",
    "/var/lib/dpkg/status",
    "/var/lib/pacman/local",
    // Where the directory stays as it is when the database in it changes.
    "/var/lib/rpm",
    "/var/lib/rpm/Packages",
    "/var/lib/rpm/rpmdb.sqlite",
    "/var/lib/rpm/rpmdb.sqlite-wal",
];

/// Where the list of paths is, once for all programs of the machine: to make it is to look at each
/// file of `/usr`.
const LIST: &str = "private";

/// What the names of such layers begin with, among the images.
pub(crate) const KIND: &str = "private-";

/// The layer that hides what is private in `trees`, directories below `/`; `None` if nothing is.
pub(crate) fn layer(state: &State, trees: &[&str]) -> Result<Option<PathBuf>> {
    let paths = paths(trees)?;
    if paths.is_empty() {
        return Ok(None);
    }
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), &paths).hash(&mut hasher);
    let name = format!("{KIND}{:016x}", hasher.finish());
    let hide = |at: &Path| hide(&paths, at).map_err(Error::at("hide private files in", at));
    unpack::make_once(state, &name, hide).map(Some)
}

/// The paths below `/` that not everyone may read, as of the last time that something was installed.
fn paths(trees: &[&str]) -> Result<Vec<PathBuf>> {
    let sign = sign(trees);
    let list = ids::directory()?.join(LIST);
    if let Some(paths) = read(&list, sign) {
        return Ok(paths);
    }
    let mut paths = Vec::new();
    for tree in trees {
        let top = Path::new("/").join(tree);
        find(&top, &mut paths).map_err(Error::at("look for private files in", &top))?;
    }
    paths.sort();
    // Whoever comes next looks again, if it can't be written.
    let _ = write(&list, sign, &paths);
    Ok(paths)
}

fn sign(trees: &[&str]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), trees).hash(&mut hasher);
    for path in SIGNS {
        if let Ok(metadata) = fs::metadata(path) {
            (path, metadata.dev(), metadata.ino(), metadata.size()).hash(&mut hasher);
            (metadata.ctime(), metadata.ctime_nsec()).hash(&mut hasher);
        }
    }
    hasher.finish()
}

fn read(list: &Path, sign: u64) -> Option<Vec<PathBuf>> {
    let mut bytes = Vec::new();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = File::options().read(true).custom_flags(flags).open(list).ok()?;
    file.read_to_end(&mut bytes).ok()?;
    let paths = bytes.strip_prefix(format!("{sign:016x}\0").as_bytes())?;
    let path = |path: &[u8]| Some(OsStr::from_bytes(path.strip_suffix(b"\0")?).into());
    paths.split_inclusive(|byte| *byte == 0).map(path).collect()
}

fn write(list: &Path, sign: u64, paths: &[PathBuf]) -> io::Result<()> {
    let mut bytes = format!("{sign:016x}\0").into_bytes();
    for path in paths {
        bytes.extend_from_slice(path.as_os_str().as_bytes());
        bytes.push(0);
    }
    let aside = list.with_extension(unique_name(""));
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&aside)?;
    file.write_all(&bytes)?;
    fs::rename(&aside, list)
}

/// Finds what others than its owner and group can't read: files, and directories as a whole.
fn find(top: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut left = vec![top.to_owned()];
    while let Some(directory) = left.pop() {
        let entries = match fs::read_dir(&directory) {
            // Removed meanwhile, as by a package manager.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let needed = match () {
                () if metadata.is_dir() => 0o005,
                () if metadata.is_file() => 0o004,
                () => continue,
            };
            if metadata.mode() & needed != needed {
                let path = entry.path();
                found.push(path.strip_prefix("/").unwrap_or(&path).to_owned());
            } else if metadata.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(())
}

/// Fills a directory that, as the topmost layer, hides these paths.
fn hide(paths: &[PathBuf], at: &Path) -> io::Result<()> {
    for path in paths {
        match hide_one(path, at) {
            // What is gone from the host since the list was made needs no hiding.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn hide_one(path: &Path, at: &Path) -> io::Result<()> {
    let mut place = at.to_owned();
    let mut original = PathBuf::from("/");
    let mut above: Vec<_> = path.iter().collect();
    above.pop();
    for name in above {
        place.push(name);
        original.push(name);
        let attributes = fs::symlink_metadata(&original)?;
        if !attributes.is_dir() {
            return Err(io::ErrorKind::NotFound.into());
        }
        match fs::create_dir(&place) {
            // The attributes of a directory are those of its topmost layer.
            Ok(()) => set_attributes(&place, &attributes)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    let whiteout = at.join(path);
    mknod(&whiteout, SFlag::S_IFCHR, Mode::empty(), 0)?;
    lchown(&whiteout, Some(0), Some(0))
}

fn set_attributes(to: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
}
