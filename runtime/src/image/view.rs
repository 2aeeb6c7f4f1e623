//! What is at a path of an image in layers, found without mounting it.
//!
//! Every step is one name below an open directory, and links are followed by their text within the
//! image: what it holds leads nowhere else.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, fstat, fstatat};

use crate::error::{Error, Result};
use crate::image::mark::{Like, like};
use crate::sys;
use crate::sys::open::{self, DIRECTORY, Purpose};

/// How many links are followed, as the kernel has it.
const MOST_LINKS: usize = 40;

/// Marks of a directory that hides what is below it.
const OPAQUE: [&std::ffi::CStr; 2] = [c"user.overlay.opaque", c"trusted.overlay.opaque"];

/// Layers as one tree.
#[derive(Debug)]
pub(crate) struct View {
    /// The topmost first.
    layers: Arc<Vec<OwnedFd>>,
}

/// A directory of it: those of one name in several layers, the topmost first.
pub(super) type Directory = Arc<Vec<OwnedFd>>;

/// What a name stands for.
enum Node {
    Directory(Directory),
    File(Option<OwnedFd>),
    Link(OsString),
}

/// The directories down a path, the names that are left, and the file that the last name is.
type Walked = (Vec<(OsString, Directory)>, VecDeque<OsString>, Option<OwnedFd>);

/// How far there is something at a path.
#[derive(Debug)]
pub(super) struct Reached {
    /// The way to the deepest directory that is there, through no link.
    pub(super) names: Vec<OsString>,
    /// What each of them is like, that of the top first.
    pub(super) attributes: Vec<Like>,
    /// The names below it that are not there.
    pub(super) missing: Vec<OsString>,
}

impl View {
    pub(crate) fn open(layers: &[PathBuf]) -> Result<Self> {
        let open = |path: &PathBuf| {
            nix::fcntl::open(path, DIRECTORY, nix::sys::stat::Mode::empty())
                .map_err(Error::at("open", path))
        };
        Ok(Self::of(layers.iter().map(open).collect::<Result<_>>()?))
    }

    /// Of opened ones, the topmost first.
    pub(crate) fn of(layers: Vec<OwnedFd>) -> Self {
        Self { layers: Arc::new(layers) }
    }

    /// What is at a path that leads through no link; `None` if there is nothing.
    pub(crate) fn stat(&self, path: &Path) -> nix::Result<Option<FileStat>> {
        let Some(name) = path.file_name() else { return Ok(None) };
        let way = self.way(path.parent().unwrap_or(Path::new("")))?;
        let Some((_, layers)) = way.last() else { return Ok(None) };
        if way.len() != path.components().count() {
            return Ok(None);
        }
        for layer in layers.iter() {
            match fstatat(layer, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(Errno::ENOENT) => {}
                found => return found.map(Some),
            }
        }
        Ok(None)
    }

    /// Finds how far there is something at a path; `None` where a file is in the way, or links
    /// lead round and round.
    pub(super) fn reach(&self, path: &Path) -> nix::Result<Option<Reached>> {
        let Some((way, rest, file)) = self.walk_directories(path)? else { return Ok(None) };
        if file.is_some() {
            return Ok(None);
        }
        let attributes = way.iter().map(|(_, directory)| like(directory)?.ok_or(Errno::ENOENT));
        Ok(Some(Reached {
            attributes: attributes.collect::<nix::Result<_>>()?,
            names: way.into_iter().skip(1).map(|(name, _)| name).collect(),
            missing: rest.into(),
        }))
    }

    /// The directories down a path as far as there are some, that of the top first, each as it is in
    /// several layers.
    pub(super) fn way(&self, path: &Path) -> nix::Result<Vec<(OsString, Directory)>> {
        Ok(self.walk_directories(path)?.map_or(Vec::new(), |(way, ..)| way))
    }

    /// Reads a file of so many bytes at most; `None` if there is none.
    ///
    /// # Errors
    /// `EFBIG` of a longer one, `EISDIR` of a directory, `ENXIO` of what else is no regular file,
    /// `ELOOP` where links lead round and round.
    pub(super) fn read(&self, path: &Path, longest: u64) -> nix::Result<Option<Vec<u8>>> {
        let Some((_, rest, file)) = self.walk(path)? else { return Ok(None) };
        if !rest.is_empty() {
            return Ok(None);
        }
        let file = file.ok_or(Errno::EISDIR)?;
        if fstat(&file)?.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Errno::ENXIO);
        }
        let mut bytes = Vec::new();
        let read = File::from(file).take(longest + 1).read_to_end(&mut bytes);
        let count = read.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        if count as u64 > longest {
            return Err(Errno::EFBIG);
        }
        Ok(Some(bytes))
    }

    /// As [`Self::walk`]; `None`, too, where what is at the end can't be opened.
    fn walk_directories(&self, path: &Path) -> nix::Result<Option<Walked>> {
        match self.walk(path) {
            Err(Errno::ELOOP | Errno::ENXIO) => Ok(None),
            walked => walked,
        }
    }

    /// Goes down a path as far as there are directories: these, the names that are left, and the
    /// file that the last of them is, if it is one. `None` where a file is in the way.
    ///
    /// # Errors
    /// `ENXIO` where the last is neither, `ELOOP` where links lead round and round.
    fn walk(&self, path: &Path) -> nix::Result<Option<Walked>> {
        let mut way = vec![(OsString::new(), Arc::clone(&self.layers))];
        let mut rest = names(path);
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                way.truncate((way.len() - 1).max(1));
                continue;
            }
            let Some((_, directory)) = way.last() else { return Ok(None) };
            match child(directory, &name)? {
                None => {
                    rest.push_front(name);
                    // What is not there has nothing above it but what is.
                    return Ok((!rest.iter().any(|name| name == "..")).then_some((way, rest, None)));
                }
                Some(Node::Directory(directory)) => way.push((name, directory)),
                Some(Node::File(file)) if rest.is_empty() => {
                    return file.map(|file| Some((way, rest, Some(file)))).ok_or(Errno::ENXIO);
                }
                Some(Node::File(_)) => return Ok(None),
                Some(Node::Link(target)) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::ELOOP);
                    }
                    let target = Path::new(&target);
                    if target.is_absolute() {
                        way.truncate(1);
                    }
                    let mut all = names(target);
                    all.append(&mut rest);
                    rest = all;
                }
            }
        }
        Ok(Some((way, rest, None)))
    }
}

fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect()
}

/// What a name stands for in a directory.
fn child(directory: &Directory, name: &OsStr) -> nix::Result<Option<Node>> {
    let mut found = Vec::new();
    for layer in directory.iter() {
        let stat = match fstatat(layer, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(errno),
        };
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => {
                let opened = open::beneath(layer, name, Purpose::List)?;
                let hides = is_opaque(opened.as_fd());
                found.push(opened);
                if hides {
                    break;
                }
            }
            // Below a directory, it is hidden.
            _ if !found.is_empty() => break,
            libc::S_IFCHR if stat.st_rdev == 0 => return Ok(None),
            libc::S_IFLNK => {
                return Ok(Some(Node::Link(readlinkat(layer, name)?)));
            }
            libc::S_IFREG => {
                return Ok(Some(Node::File(Some(open::beneath(layer, name, Purpose::Read)?))));
            }
            _ => return Ok(Some(Node::File(None))),
        }
    }
    Ok((!found.is_empty()).then(|| Node::Directory(Arc::new(found))))
}

/// Whether a directory hides all of its name in what is below.
pub(crate) fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    OPAQUE.iter().any(|name| {
        let mut buffer = [0; 8];
        let value = sys::extended_attribute(directory, name, &mut buffer);
        value.is_ok_and(|value| value.is_some_and(|value| value.starts_with(b"y")))
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::{Path, PathBuf};

    use nix::errno::Errno;
    use nix::sys::stat::{Mode, SFlag, mknod};

    use super::View;

    fn temporary() -> PathBuf {
        let path = std::env::temp_dir().join(format!("adl-view-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn layers_are_seen_as_an_overlay_shows_them() {
        let top = temporary();
        let [upper, lower] = ["upper", "lower"].map(|name| top.join(name));
        for directory in ["etc", "opaque", "hidden", "both/lower", "file"] {
            fs::create_dir_all(lower.join(directory)).unwrap();
        }
        for directory in ["etc", "opaque", "both/upper"] {
            fs::create_dir_all(upper.join(directory)).unwrap();
        }
        for (path, content) in [
            (lower.join("etc/passwd"), "below"),
            (lower.join("etc/group"), "below"),
            (lower.join("opaque/x"), "below"),
            (lower.join("hidden/x"), "below"),
            (upper.join("etc/passwd"), "above"),
            (upper.join("file"), "above"),
            (upper.join("long"), "7 bytes"),
            (top.join("secret"), "secret"),
        ] {
            fs::write(path, content).unwrap();
        }
        mknod(&upper.join("hidden"), SFlag::S_IFCHR, Mode::S_IRWXU, 0).unwrap();
        mknod(&upper.join("fifo"), SFlag::S_IFIFO, Mode::S_IRWXU, 0).unwrap();
        let opaque = fs::File::open(upper.join("opaque")).unwrap();
        crate::sys::set_extended_attribute(
            std::os::fd::AsFd::as_fd(&opaque),
            c"user.overlay.opaque",
            b"y",
        )
        .unwrap();
        for (target, link) in [
            ("/etc/passwd", "absolute"),
            ("../../../secret", "out"),
            ("etc", "directory"),
            ("loop", "loop"),
            ("/both/../both/lower", "winding"),
        ] {
            symlink(target, upper.join(link)).unwrap();
        }
        fs::set_permissions(upper.join("both"), Permissions::from_mode(0o711)).unwrap();
        let view = View::open(&[upper, lower]).unwrap();
        let read = |path: &str| view.read(Path::new(path), 6).unwrap();
        for path in [
            "etc/passwd",
            "/etc/passwd",
            "absolute",
            "directory/passwd",
            "etc/../etc/passwd",
            "file",
        ] {
            assert_eq!(read(path).as_deref(), Some(&b"above"[..]), "{path}");
        }
        assert_eq!(read("directory/group").as_deref(), Some(&b"below"[..]));
        for path in ["opaque/x", "hidden/x", "out", "absent", "file/x", "../secret"] {
            assert_eq!(read(path), None, "{path}");
        }
        for (path, errno) in [
            ("loop", Errno::ELOOP),
            ("etc", Errno::EISDIR),
            ("directory", Errno::EISDIR),
            ("fifo", Errno::ENXIO),
            ("long", Errno::EFBIG),
        ] {
            assert_eq!(view.read(Path::new(path), 6), Err(errno), "{path}");
        }
        let reach = |path: &str| view.reach(Path::new(path)).unwrap();
        let reached = reach("winding/a/b").unwrap();
        assert_eq!(
            (&reached.names[..], &reached.missing[..]),
            (&["both".into(), "lower".into()][..], &["a".into(), "b".into()][..])
        );
        assert_eq!(reached.attributes[1].0.st_mode & 0o7777, 0o711);
        assert_eq!(reach("both/upper").unwrap().missing.len(), 0);
        for path in ["file/x", "file", "loop/x", "loop", "fifo", "a/../b"] {
            assert!(reach(path).is_none(), "{path}");
        }
        fs::remove_dir_all(top).unwrap();
    }
}
