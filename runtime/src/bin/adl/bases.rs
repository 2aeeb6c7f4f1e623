//! Paths of this machine, as options name them, where guests may have written on the way.
//!
//! What an option names is the caller's word, and followed, links and all, until the way comes to a
//! directory that a guest may write or has written. From there on no link is followed.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use adl_runtime::{Access, Config, Error, HostPath, Image, Mount, Network};
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

use crate::values::CliResult;

/// The most links on a way, as in the kernel.
const MOST_LINKS: u32 = 40;

/// What options say of paths, until all of them are known.
#[derive(Default)]
pub(crate) struct Named {
    /// The path of a directory or an archive that is the image.
    pub(crate) image: Option<PathBuf>,
    /// Directories that a guest has written.
    pub(crate) beneath: Vec<PathBuf>,
}

impl Named {
    /// Completes a configuration. Guests may write its volumes that are read-write, and `targets`.
    pub(crate) fn settle<'a>(
        &self,
        config: &mut Config,
        targets: impl IntoIterator<Item = &'a Path>,
    ) -> CliResult<Bases> {
        for directory in &self.beneath {
            let why = |error: Error| format!("--beneath {}: {error}", directory.display());
            drop(HostPath::from(directory).open_dir().map_err(why)?);
        }
        let bases = Bases::of(&self.beneath, &config.mounts, targets);
        for mount in &mut config.mounts {
            if let Mount::Volume { source, .. } | Mount::Device { source, .. } = mount {
                *source = bases.place(source.path())?;
            }
        }
        if let Network::Join(path) = &mut config.network {
            *path = bases.place(path.path())?;
        }
        if let Some(image) = &self.image {
            config.image = image_at(bases.place(image)?)?;
        }
        Ok(bases)
    }
}

/// A directory, one with an image in layers, or else an archive.
fn image_at(path: HostPath) -> CliResult<Image> {
    let name = path.full_path();
    match path.open_dir() {
        Ok(directory) if holds_layers(directory.as_fd()) => Ok(Image::layers(path, None)),
        Ok(_) => Ok(Image::directory(path)),
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotADirectory => {
            Ok(Image::archive(path))
        }
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            let why = "there is no such directory or file";
            Err(format!("the image {}: {why}", name.display()).into())
        }
        Err(error) => Err(format!("the image {}: {error}", name.display()).into()),
    }
}

/// Whether it is no root file system, but what is to be unpacked to one.
fn holds_layers(directory: BorrowedFd<'_>) -> bool {
    let has = |name: &str| fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok();
    !has("usr") && !has("bin") && (has("index.json") || has("manifest.json"))
}

/// Directories that guests may write or have written, by their file systems and numbers there: one
/// has any number of paths.
#[derive(Default)]
pub(crate) struct Bases(HashSet<(u64, u64)>);

impl Bases {
    /// Directories that guests have written, and what they may write: volumes and `targets`.
    pub(crate) fn of<'a>(
        beneath: &[PathBuf],
        mounts: &[Mount],
        targets: impl IntoIterator<Item = &'a Path>,
    ) -> Self {
        let mut bases = Self::default();
        // Below what is not there, nothing is: no error.
        for directory in beneath {
            let _ = bases.add(directory);
        }
        for mount in mounts {
            if let Mount::Volume { source, access: Access::ReadWrite, .. } = mount {
                let _ = bases.add(source.path());
            }
        }
        for directory in targets {
            let _ = bases.add(directory);
        }
        bases
    }

    /// Whether a file is one of them, or the way to it leads through one.
    pub(crate) fn are_on_the_way_to(&self, path: &Path) -> CliResult<bool> {
        let is_one = |metadata: fs::Metadata| self.0.contains(&(metadata.dev(), metadata.ino()));
        Ok(self.place(path)?.base().is_some() || fs::metadata(path).is_ok_and(is_one))
    }

    fn add(&mut self, directory: &Path) -> std::io::Result<()> {
        let metadata = fs::metadata(directory)?;
        self.0.insert((metadata.dev(), metadata.ino()));
        Ok(())
    }

    fn holds(&self, directory: &Path) -> bool {
        fs::symlink_metadata(directory)
            .is_ok_and(|metadata| self.0.contains(&(metadata.dev(), metadata.ino())))
    }

    /// Says of a path from where on it is not to be followed, if the way leads through one of the
    /// directories. What changes on the way before that is in no guest's hands, and what is after
    /// that is not looked at here.
    pub(crate) fn place(&self, path: &Path) -> CliResult<HostPath> {
        let followed = || Ok(HostPath::from(path));
        if self.0.is_empty() {
            return followed();
        }
        // As far as it has been followed: without links.
        let mut here = PathBuf::from("/");
        let mut rest = names(&std::path::absolute(path)?);
        let mut links = 0;
        loop {
            let Some(name) = rest.pop() else { return followed() };
            if name == ".." {
                here.pop();
                continue;
            }
            if self.holds(&here) {
                rest.push(name);
                return Ok(HostPath::beneath(here, rest.iter().rev().collect::<PathBuf>()));
            }
            let next = here.join(name);
            // What is not there is told by who opens it.
            let Ok(metadata) = fs::symlink_metadata(&next) else { return followed() };
            if !metadata.is_symlink() {
                here = next;
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                return followed();
            }
            let target = fs::read_link(&next)?;
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            rest.extend(names(&target));
        }
    }
}

/// The names on a path, the first one last.
fn names(path: &Path) -> Vec<OsString> {
    let names = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::{Bases, HostPath, PathBuf};

    #[test]
    fn a_path_is_followed_up_to_where_guests_write() {
        let top = std::env::temp_dir().join(format!("adl-bases-{}", std::process::id()));
        let at = |name: &str| top.join(name);
        fs::create_dir_all(at("guest/sub/deep")).unwrap();
        let top = fs::canonicalize(&top).unwrap();
        let at = |name: &str| top.join(name);
        symlink("guest", at("alias")).unwrap();
        symlink(at("guest/sub"), at("into")).unwrap();
        symlink("..", at("guest/up")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let mut bases = Bases::default();
        assert_eq!(bases.place(&at("guest/sub")).unwrap(), HostPath::from(at("guest/sub")));
        bases.add(&at("alias")).unwrap();
        let guest = at("guest");
        for (path, below) in [
            ("guest/sub", "sub"),
            ("guest//sub/./deep/", "sub/deep"),
            ("alias/sub/deep", "sub/deep"),
            ("into/deep", "sub/deep"),
            ("into", "sub"),
            ("guest/up/guest/sub", "up/guest/sub"),
            ("guest/sub/../../x", "sub/../../x"),
            ("guest/absent/x", "absent/x"),
            ("guest/../guest/sub", "sub"),
        ] {
            let placed = bases.place(&at(path)).unwrap();
            assert_eq!(placed, HostPath::beneath(&guest, below), "{path}");
        }
        for path in ["", "guest", "alias", "guest/..", "guest/../x", "absent", "loop", "loop/x"] {
            let path: PathBuf = at(path);
            assert_eq!(bases.place(&path).unwrap(), HostPath::from(&path), "{path:?}");
        }
        fs::remove_dir_all(top).unwrap();
    }
}
