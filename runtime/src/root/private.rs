//! What of the host's programs is not for everyone to read: the host image is without it.
//!
//! Files of root's belong to root inside, who may read them whatever their mode says. So what no
//! ordinary user of the host could read is hidden, by a layer of whiteouts on top of `/usr`.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mknod};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::root::host::{etc, rule};
use crate::store::once::{self, Held, PRIVATE};
use crate::store::{State, ids};
use crate::sys;
use crate::sys::id_ranges;
use crate::sys::listing::{Kind, Listing};
use crate::sys::lock::lock;
use crate::sys::mount::{Below, detached_mount};
use crate::sys::open::{self, DIRECTORY, Mounts, Purpose};
use crate::sys::owner::PerProcess;
use crate::sys::stamp::Stamp;
use crate::sys::unique::unique_name;

/// Where databases of packages lie, which change when programs are installed or removed.
const PACKAGES: [&str; 8] = [
    "/lib/apk/db/installed",
    "/var/lib/dpkg/status",
    "/var/lib/pacman/local",
    // Where the directory, which may be a link, stays as it is when the database in it changes.
    "/var/lib/rpm/.",
    "/var/lib/rpm/Packages",
    "/var/lib/rpm/Packages.db",
    "/var/lib/rpm/rpmdb.sqlite",
    "/var/lib/rpm/rpmdb.sqlite-wal",
];

/// Where administrators put programs of their own, and where in it.
const OWN: &str = "/usr/local";
const IN_OWN: [&str; 5] = ["bin", "etc", "lib", "sbin", "share"];

/// The most files that are looked at: ten times what is in the `/usr` of a large host.
const MOST_FILES: usize = 10_000_000;

/// Where the list is, once for all programs of the machine: to make it is to look at each file of
/// `/usr`.
const LIST: &str = "private";

/// The longest list, in bytes.
const LONGEST: u64 = 16 << 20;

/// What the layer has at a path below `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Entry {
    #[serde(with = "crate::config::bytes")]
    path: PathBuf,
    /// Of a directory above what is hidden; `None` for that.
    above: Option<Attributes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
}

#[derive(Serialize, Deserialize)]
struct List {
    /// What tells that it is still so.
    sign: u64,
    #[serde(flatten)]
    found: Found,
}

/// What is found by a look at each file of the programs.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Found {
    /// What is private. Directories before what is in them.
    entries: Vec<Entry>,
    /// Where links lead below `/etc`, and wherever else files of that may lie.
    links: Vec<Link>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
struct Link(#[serde(with = "crate::config::bytes")] PathBuf);

/// For how long a process takes what it has seen for what is there: looking costs as much as a
/// hundredth of a create.
const FRESH: Duration = Duration::from_secs(1);

/// When the list was looked at, and what it said.
type Seen = (Instant, Arc<Found>);

/// The layer that hides what is private in `trees`, directories below `/`; `None` if nothing is.
pub(crate) fn layer(state: &State, trees: &[&str]) -> Result<Option<Held>> {
    let found = found(trees)?;
    let entries = &found.entries;
    if entries.is_empty() {
        return Ok(None);
    }
    // What it has depends on the list alone: what that names may be gone by now, or come again.
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), entries).hash(&mut hasher);
    let name = format!("{PRIVATE}{:016x}", hasher.finish());
    let fill = |at: &Path| fill(entries, at).map_err(Error::at("hide private files in", at));
    once::make_and_hold(state, &name, fill).map(Some)
}

/// Where links of `trees` lead below `/etc`.
pub(super) fn links(trees: &[&str]) -> Result<Vec<PathBuf>> {
    if id_ranges::caller_may_map() {
        return Ok(found(trees)?.links.iter().map(|link| link.0.clone()).collect());
    }
    find_links(Path::new("/"), trees)
}

/// Where links lead of another root's trees.
pub(super) fn find_links(root: &Path, trees: &[&str]) -> Result<Vec<PathBuf>> {
    Ok(find(root, trees, Looked::Links)?.links.into_iter().map(|link| link.0).collect())
}

/// Changes when [`links`] may be others.
pub(super) fn links_sign(trees: &[&str]) -> Result<u64> {
    if !id_ranges::caller_may_map() {
        return sign(trees);
    }
    let mut hasher = DefaultHasher::new();
    found(trees)?.links.hash(&mut hasher);
    Ok(hasher.finish())
}

/// What was found last, if that is a moment ago.
fn found(trees: &[&str]) -> Result<Arc<Found>> {
    static SEEN: PerProcess<Mutex<Option<Seen>>> = PerProcess::new();
    let mut seen = lock(SEEN.get());
    if let Some((at, found)) = &*seen
        && at.elapsed() < FRESH
    {
        return Ok(Arc::clone(found));
    }
    let found = Arc::new(look(trees)?);
    *seen = Some((Instant::now(), Arc::clone(&found)));
    Ok(found)
}

/// What there is, as of the last time that something was installed.
fn look(trees: &[&str]) -> Result<Found> {
    let sign = sign(trees)?;
    let path = ids::directory()?.join(LIST);
    if let Some(list) = read(&path).filter(|list| list.sign == sign) {
        return Ok(list.found);
    }
    let list = List { sign, found: find(Path::new("/"), trees, Looked::All)? };
    // Whoever comes next looks again, if it can't be written.
    let _ = write(&path, &list);
    Ok(list.found)
}

fn sign(trees: &[&str]) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), trees).hash(&mut hasher);
    let look = |path: &Path| Stamp::of(AT_FDCWD, path).map_err(Error::at("stat", path));
    look(Path::new("/usr"))?.hash(&mut hasher);
    for path in PACKAGES {
        look(Path::new(path))?.hash(&mut hasher);
    }
    // What is mounted there is not inside, and may be of a machine that does not answer.
    if let Some(own) = look(Path::new(OWN))?.filter(Stamp::is_own_directory) {
        own.hash(&mut hasher);
        for name in IN_OWN {
            let stamp = look(&Path::new(OWN).join(name))?;
            stamp.filter(Stamp::is_own_directory).hash(&mut hasher);
        }
    }
    Ok(hasher.finish())
}

fn read(path: &Path) -> Option<List> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn write(path: &Path, list: &List) -> io::Result<()> {
    let text = serde_json::to_vec(list)?;
    if text.len() as u64 > sys::longest_file() {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let aside = path.with_extension(unique_name(""));
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&aside)?;
    file.write_all(&text)?;
    fs::rename(&aside, path)
}

impl Found {
    fn settle(&mut self) {
        self.entries.sort_by(|one, other| one.path.cmp(&other.path));
        self.entries.dedup_by(|one, other| one.path == other.path);
        self.links.sort();
        self.links.dedup();
    }

    /// Remembers where a link leads, which lies in a directory below `/`.
    fn add_link(&mut self, directory: &Path, text: &OsStr) {
        let target = etc::target(&Path::new("/").join(directory), Path::new(text));
        // What is taken anyway would make the list long.
        if etc::is_taken_from(&target) && !rule::is_named(&target) {
            self.links.push(Link(target));
        }
    }

    fn add(&mut self, path: PathBuf, above: Option<&FileStat>) {
        let above = above.map(|of| Attributes {
            mode: of.st_mode & 0o7777,
            uid: of.st_uid,
            gid: of.st_gid,
        });
        self.entries.push(Entry { path, above });
    }
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looked {
    /// Where links lead.
    Links,
    /// That, and what others than its owner and group can't read: files, and directories as a
    /// whole.
    All,
}

/// Looks through the trees below a root, and enters nothing that is mounted in them: that is not
/// inside, and a network or a program that is to answer for it may never do so.
fn find(root: &Path, trees: &[&str], looked: Looked) -> Result<Found> {
    let mut search = Search { looked, left: MOST_FILES, found: Found::default() };
    for tree in trees {
        let top = root.join(tree);
        let failed = Error::at("look for private files and links in", &top);
        let searched = search.tree(&top, Path::new(tree)).map_err(failed)?;
        if searched == Searched::Part {
            return Err(Error::Unsupported {
                what: "the host image".to_owned(),
                why: format!("more than {MOST_FILES} files in {root:?}, of {trees:?}"),
                fix: "mount a part of them from a file system of its own, as /usr/local, which is \
                      then not inside, or name an image"
                    .to_owned(),
            });
        }
    }
    search.found.settle();
    Ok(search.found)
}

struct Search {
    looked: Looked,
    /// How many files may be looked at.
    left: usize,
    found: Found,
}

/// How much of a tree was looked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Searched {
    All,
    /// There is more than may be looked at.
    Part,
}

impl Search {
    /// Looks through a tree; `name` is its path below `/`.
    fn tree(&mut self, top: &Path, name: &Path) -> io::Result<Searched> {
        let mut top = nix::fcntl::open(top, DIRECTORY, Mode::empty())?;
        if self.looked == Looked::All {
            // As it is mounted inside: what is covered by a mount here is seen there.
            top = detached_mount(top.as_fd(), Below::LeftOut)?;
        }
        let mut left = vec![PathBuf::new()];
        while let Some(path) = left.pop() {
            let Some(directory) = self.open(&top, &path)? else { continue };
            let mut listing = Listing::of(&directory)?;
            while let Some((file, kind)) = listing.next()? {
                let Some(less) = self.left.checked_sub(1) else { return Ok(Searched::Part) };
                self.left = less;
                let below = path.join(OsStr::from_bytes(file.to_bytes()));
                if self.entry(&top, &directory, name, &below, kind)? {
                    left.push(below);
                }
            }
        }
        Ok(Searched::All)
    }

    /// Opens a directory; `None` if it is none any more, or not to be entered.
    fn open(&self, top: &OwnedFd, path: &Path) -> nix::Result<Option<OwnedFd>> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match open::entry(top, path, Purpose::List, Mounts::Refused) {
            // Nor may anyone else: there is nothing in it for a guest.
            Err(Errno::EACCES) if self.looked == Looked::Links => Ok(None),
            Err(Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => Ok(None),
            opened => unless_gone(opened),
        }
    }

    /// Looks at what is in a directory; whether it is one whose entries are to be looked at.
    fn entry(
        &mut self,
        top: &OwnedFd,
        directory: &OwnedFd,
        tree: &Path,
        path: &Path,
        kind: Option<Kind>,
    ) -> nix::Result<bool> {
        let name = path.file_name().unwrap_or_default();
        let stat = match kind {
            Some(Kind::Link) => None,
            // Who may read it is not asked for.
            Some(_) if self.looked == Looked::Links => None,
            _ => match unless_gone(fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW))? {
                None => return Ok(false),
                stat => stat,
            },
        };
        let format = match (stat, kind) {
            (Some(stat), _) => stat.st_mode & libc::S_IFMT,
            (None, Some(Kind::Link)) => libc::S_IFLNK,
            (None, Some(Kind::Directory)) => libc::S_IFDIR,
            (None, _) => libc::S_IFREG,
        };
        let needed = match format {
            libc::S_IFLNK => {
                if let Some(text) = unless_gone(readlinkat(directory, name))? {
                    self.found.add_link(tree.join(path).parent().unwrap_or(tree), &text);
                }
                return Ok(false);
            }
            libc::S_IFDIR => 0o005,
            libc::S_IFREG => 0o004,
            _ => return Ok(false),
        };
        let is_public = stat.is_none_or(|stat| stat.st_mode & needed == needed);
        if is_public || self.looked == Looked::Links {
            return Ok(format == libc::S_IFDIR);
        }
        self.found.add(tree.join(path), None);
        for above in path.ancestors().skip(1) {
            let at = if above.as_os_str().is_empty() { Path::new(".") } else { above };
            let stat = fstatat(top, at, AtFlags::AT_SYMLINK_NOFOLLOW);
            if let Some(stat) = unless_gone(stat)? {
                self.found.add(tree.join(above), Some(&stat));
            }
        }
        Ok(false)
    }
}

/// Programs are removed while they are looked through.
fn unless_gone<T>(result: nix::Result<T>) -> nix::Result<Option<T>> {
    match result {
        Err(Errno::ENOENT) => Ok(None),
        other => other.map(Some),
    }
}

/// Fills a directory that, as the topmost layer, hides what is private.
fn fill(entries: &[Entry], at: &Path) -> io::Result<()> {
    for Entry { path, above } in entries {
        let place = at.join(path);
        match above {
            // The attributes of a directory are those of its topmost layer.
            Some(Attributes { mode, uid, gid }) => {
                fs::create_dir(&place)?;
                chown(&place, Some(*uid), Some(*gid))?;
                fs::set_permissions(&place, Permissions::from_mode(*mode))?;
            }
            // The mark of overlayfs for what is not there.
            None => mknod(&place, SFlag::S_IFCHR, Mode::empty(), 0)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

    use super::*;

    #[test]
    fn what_not_everyone_may_read_is_found_and_hidden() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: not root");
        }
        let top = std::env::temp_dir().join(format!("adl-private-{}", std::process::id()));
        let of = |name: &str| top.join("tree").join(name);
        fs::create_dir_all(of("shut/below")).unwrap();
        fs::create_dir_all(of("open/below")).unwrap();
        for (name, mode) in [("open/public", 0o644), ("open/below/private", 0o640), ("bin", 0o711)]
        {
            fs::write(of(name), "").unwrap();
            fs::set_permissions(of(name), Permissions::from_mode(mode)).unwrap();
        }
        fs::set_permissions(of("shut"), Permissions::from_mode(0o750)).unwrap();
        fs::set_permissions(of("open/below"), Permissions::from_mode(0o1777)).unwrap();
        chown(of("open/below"), Some(3), Some(4)).unwrap();
        symlink("/etc/shadow", of("link")).unwrap();
        let found = find(&top, &["tree"], Looked::All).unwrap();
        assert_eq!(found.links, [Link("/etc/shadow".into())]);
        let entries = &found.entries;
        let hidden: Vec<_> =
            entries.iter().filter(|entry| entry.above.is_none()).map(|entry| &entry.path).collect();
        let expected = ["tree/bin", "tree/open/below/private", "tree/shut"].map(PathBuf::from);
        assert_eq!(hidden, expected.iter().collect::<Vec<_>>());

        // The list alone says what is in the layer, whatever has become of what it names.
        let text = serde_json::to_vec(&List { sign: 1, found }).unwrap();
        fs::remove_dir_all(of("")).unwrap();
        let list: List = serde_json::from_slice(&text).unwrap();
        let layer = top.join("layer");
        fs::create_dir(&layer).unwrap();
        fill(&list.found.entries, &layer).unwrap();
        for path in &expected {
            let metadata = fs::symlink_metadata(layer.join(path)).unwrap();
            assert!(metadata.file_type().is_char_device() && metadata.rdev() == 0, "{path:?}");
        }
        let above = fs::metadata(layer.join("tree/open/below")).unwrap();
        assert_eq!((above.mode() & 0o7777, above.uid(), above.gid()), (0o1777, 3, 4));
        fs::remove_dir_all(top).unwrap();
    }
}
