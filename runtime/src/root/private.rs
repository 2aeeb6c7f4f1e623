//! What of the host's programs is not for everyone to read: the host image is without it.
//!
//! Files of root's belong to root inside, who may read them whatever their mode says. So what no
//! ordinary user of the host could read is hidden, by a layer of whiteouts on top of `/usr`.

use std::fs::{self, File, Metadata, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, SFlag, mknod};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::root::host::{etc, rule};
use crate::store::once::{self, PRIVATE};
use crate::store::{State, ids};
use crate::sys;
use crate::sys::id_ranges;
use crate::sys::lock::lock;
use crate::sys::owner::PerProcess;
use crate::sys::unique::unique_name;

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
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// When the list was looked at, and what it said.
type Seen = (Instant, Arc<Found>);

/// The layer that hides what is private in `trees`, directories below `/`; `None` if nothing is.
pub(crate) fn layer(state: &State, trees: &[&str]) -> Result<Option<PathBuf>> {
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
    once::make_once(state, &name, fill).map(Some)
}

/// Where links of `trees` lead below `/etc`.
pub(super) fn links(trees: &[&str]) -> Result<Vec<PathBuf>> {
    if id_ranges::caller_may_map() {
        return Ok(found(trees)?.links.iter().map(|link| link.0.clone()).collect());
    }
    let top = Path::new("/");
    find_links(top, trees).map_err(Error::at("look for links in", top))
}

/// Where links lead of another root's trees.
pub(super) fn find_links(root: &Path, trees: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut found = Found::default();
    for tree in trees {
        find(root, &root.join(tree), false, &mut found)?;
    }
    found.settle();
    Ok(found.links.into_iter().map(|link| link.0).collect())
}

/// Changes when [`links`] may be others.
pub(super) fn links_sign(trees: &[&str]) -> Result<u64> {
    if !id_ranges::caller_may_map() {
        return Ok(sign(trees));
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
    let sign = sign(trees);
    let path = ids::directory()?.join(LIST);
    if let Some(list) = read(&path).filter(|list| list.sign == sign) {
        return Ok(list.found);
    }
    let mut found = Found::default();
    for tree in trees {
        let root = Path::new("/");
        let top = root.join(tree);
        find(root, &top, true, &mut found).map_err(Error::at("look for private files in", &top))?;
    }
    found.settle();
    let list = List { sign, found };
    // Whoever comes next looks again, if it can't be written.
    let _ = write(&path, &list);
    Ok(list.found)
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

    /// Remembers where a link leads, which lies in a directory of a root.
    fn add_link(&mut self, root: &Path, directory: &Path, path: &Path) -> io::Result<()> {
        let Some(text) = unless_gone(fs::read_link(path))? else { return Ok(()) };
        let parent = Path::new("/").join(directory.strip_prefix(root).unwrap_or(directory));
        let target = etc::target(&parent, &text);
        // What is taken anyway would make the list long.
        if etc::is_taken_from(&target) && !rule::is_named(&target) {
            self.links.push(Link(target));
        }
        Ok(())
    }
}

/// Finds where links lead and, if that is asked for, what others than its owner and group can't
/// read: files, and directories as a whole. `root` is where `top` is below.
fn find(root: &Path, top: &Path, private: bool, found: &mut Found) -> io::Result<()> {
    let mut left = vec![top.to_owned()];
    while let Some(directory) = left.pop() {
        let listing = match fs::read_dir(&directory) {
            // Nor may anyone else: there is nothing in it for a guest.
            Err(error) if !private && error.kind() == io::ErrorKind::PermissionDenied => continue,
            listing => unless_gone(listing)?,
        };
        for entry in listing.into_iter().flatten() {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_symlink() {
                found.add_link(root, &directory, &entry.path())?;
                continue;
            }
            if !private {
                left.extend(kind.is_dir().then(|| entry.path()));
                continue;
            }
            let Some(metadata) = unless_gone(entry.metadata())? else { continue };
            let needed = match () {
                () if metadata.is_dir() => 0o005,
                () if metadata.is_file() => 0o004,
                () => continue,
            };
            if metadata.mode() & needed == needed {
                left.extend(metadata.is_dir().then(|| entry.path()));
                continue;
            }
            add(&entry.path(), None, &mut found.entries);
            for above in directory.ancestors().filter(|above| above.parent().is_some()) {
                let Some(metadata) = unless_gone(fs::symlink_metadata(above))? else { continue };
                add(above, Some(&metadata), &mut found.entries);
            }
        }
    }
    Ok(())
}

fn add(path: &Path, above: Option<&Metadata>, found: &mut Vec<Entry>) {
    let path = path.strip_prefix("/").unwrap_or(path).to_owned();
    let above =
        above.map(|of| Attributes { mode: of.mode() & 0o7777, uid: of.uid(), gid: of.gid() });
    found.push(Entry { path, above });
}

/// Programs are removed while they are looked through.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
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
    use std::os::unix::fs::{FileTypeExt, symlink};

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
        let mut found = Found::default();
        find(Path::new("/"), &of(""), true, &mut found).unwrap();
        found.settle();
        assert_eq!(found.links, [Link("/etc/shadow".into())]);
        let entries = &found.entries;
        let hidden: Vec<_> =
            entries.iter().filter(|entry| entry.above.is_none()).map(|entry| &entry.path).collect();
        let expected = ["bin", "open/below/private", "shut"]
            .map(|name| of(name).strip_prefix("/").unwrap().to_owned());
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
        let above = fs::metadata(layer.join(of("open/below").strip_prefix("/").unwrap())).unwrap();
        assert_eq!((above.mode() & 0o7777, above.uid(), above.gid()), (0o1777, 3, 4));
        fs::remove_dir_all(top).unwrap();
    }
}
