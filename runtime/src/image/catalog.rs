//! What is known of each image in layers, in files of the state directory: its catalog.
//!
//! - `image-ALGORITHM-HEX.json`: an image, by the digest of its manifest. Who uses it has it locked
//!   with others, and who removes it alone; its time of change is that of the last use.
//! - `name-HEX.json`: a name that leads to one.
//! - `blob-ALGORITHM-HEX`: the manifest and the configuration, as they came.
//! - `fetch-HEX`: what is being fetched for a name, a directory that is locked by who does.
//! - `lock`: locked with others by who adds an image, while that has layers and no record, and
//!   alone by who removes some.
//!
//! Each file is written aside and renamed. What is read is looked at as if a guest had written it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::lock::{LOOKING, Lease, Lock, Sharing, lock_until};
use crate::image::name::Name;
use crate::image::record::{FORM, Record, invalid};
use crate::store::State;
use crate::store::contents::{entries, remove_entry};
use crate::store::own_file::{make_private, open_own_file};
use crate::sys::open::DIRECTORY;
use crate::sys::unique::unique_name;
use crate::wait::Deadline;

/// Where it is, in the state directory.
const CATALOG: &str = "catalog";
/// The longest file, in bytes: what a configuration takes that is as long as one can be, written
/// down again.
const LONGEST: u64 = 16 << 20;

const LOCK: &str = "lock";
/// What the names of files begin with until they are whole.
const UNFINISHED: &str = ".new-";
const IMAGE: &str = "image-";
const NAME: &str = "name-";
const BLOB: &str = "blob-";
const FETCH: &str = "fetch-";
const JSON: &str = ".json";

/// How long it is waited for who removes images.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
struct NameRecord {
    form: u32,
    name: String,
    image: Digest,
}

/// An image, as it is known.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) record: Record,
    pub(crate) last_used: Option<SystemTime>,
}

/// What was read of many, and what could not be.
#[derive(Debug)]
pub(crate) struct All<T> {
    pub(crate) read: Vec<T>,
    pub(crate) unread: Vec<Unread>,
}

impl<T> Default for All<T> {
    fn default() -> Self {
        Self { read: Vec::new(), unread: Vec::new() }
    }
}

/// A file that can't be read.
#[derive(Debug)]
pub(crate) struct Unread {
    file_name: String,
    pub(crate) error: Error,
}

impl Unread {
    /// Whether it may be of an image that is there, and that someone lies on.
    pub(crate) fn is_image(&self) -> bool {
        self.file_name.starts_with(IMAGE)
    }

    /// What it is called where it is told.
    pub(crate) fn name(&self) -> &str {
        self.file_name.trim_end_matches(JSON)
    }
}

/// The digest that the name of an image's file has.
fn digest_of(file_name: &str) -> Option<Digest> {
    let hex = file_name.strip_prefix(IMAGE)?.strip_suffix(JSON)?.replacen('-', ":", 1);
    Digest::parse(&hex).ok()
}

fn image_name(digest: &Digest) -> String {
    format!("{IMAGE}{}{JSON}", digest.file_name())
}

fn blob_name(digest: &Digest) -> String {
    format!("{BLOB}{}", digest.file_name())
}

/// A name as a part of a file's name: it has slashes, and may be long.
fn hashed(name: &str) -> String {
    Digest::of(name.as_bytes()).file_name()
}

/// The catalog of images in layers.
#[derive(Debug)]
pub(crate) struct Catalog {
    path: PathBuf,
    fd: OwnedFd,
}

impl Catalog {
    /// Opens it, making it if need be.
    pub(crate) fn open(state: &State) -> Result<Self> {
        let path = state.path().join(CATALOG);
        make_private(&path)?;
        let fd =
            nix::fcntl::open(&path, DIRECTORY, Mode::empty()).map_err(Error::at("open", &path))?;
        Ok(Self { path, fd })
    }

    /// Opens it, if there was any.
    pub(crate) fn open_if_any(state: &State) -> Result<Option<Self>> {
        let is_there = state.path().join(CATALOG).symlink_metadata().is_ok();
        is_there.then(|| Self::open(state)).transpose()
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The image of a name.
    pub(crate) fn named(&self, name: &str) -> Result<Option<Arc<Lease>>> {
        match self.digest_of(name)? {
            Some(digest) => self.image(&digest),
            None => Ok(None),
        }
    }

    /// The digest that a name leads to.
    pub(crate) fn digest_of(&self, name: &str) -> Result<Option<Digest>> {
        let file_name = format!("{NAME}{}{JSON}", hashed(name));
        let found = self.read_name(&file_name)?;
        Ok(found.filter(|found| found.name == name).map(|found| found.image))
    }

    fn read_name(&self, file_name: &str) -> Result<Option<NameRecord>> {
        let Some((_, text)) = self.read(file_name)? else { return Ok(None) };
        let parse = || -> io::Result<NameRecord> {
            let record: NameRecord = serde_json::from_slice(&text)?;
            if record.form != FORM { Err(invalid("of another version of adl")) } else { Ok(record) }
        };
        parse().map(Some).map_err(Error::at("read", &self.path(file_name)))
    }

    /// The image of a digest.
    pub(crate) fn image(&self, digest: &Digest) -> Result<Option<Arc<Lease>>> {
        let name = image_name(digest);
        let path = self.path(&name);
        loop {
            let file = match open_own_file(self.as_fd(), &name, LONGEST) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::at("open", &path)(error)),
            };
            let locked = lock_until(&file, Sharing::WithOthers, Deadline::after(LOOKING));
            if !locked.map_err(Error::at("flock", &path))? {
                return Err(Error::Busy {
                    what: format!("the image {digest}"),
                    by: "who removes it".to_owned(),
                });
            }
            // It may have been removed, and another may have come in its place, since it was
            // opened.
            if fstat(&file).map_err(Error::at("stat", &path))?.st_nlink == 0 {
                continue;
            }
            let record = read_all(&file).and_then(|text| Record::parse(&text, digest));
            let record = record.map_err(Error::at("read", &path))?;
            return Ok(Some(Arc::new(Lease::new(record, file))));
        }
    }

    fn read(&self, name: &str) -> Result<Option<(File, Vec<u8>)>> {
        let read = || -> io::Result<_> {
            let file = open_own_file(self.as_fd(), name, LONGEST)?;
            let text = read_all(&file)?;
            Ok((file, text))
        };
        match read() {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::at("read", &self.path(name))(error)),
        }
    }

    /// A manifest or a configuration, as it came.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let Some((_, bytes)) = self.read(&blob_name(digest))? else { return Ok(None) };
        if !digest.is_of(&bytes) {
            let path = self.path(blob_name(digest));
            return Err(Error::at("read", &path)(invalid("other bytes than it is named by")));
        }
        Ok(Some(bytes))
    }

    pub(crate) fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        self.write(&blob_name(digest), bytes, RenameFlags::empty())
    }

    /// Writes an image down. One that is there stays as it is, since it may be in use, unless that
    /// can't be read.
    pub(crate) fn put_image(&self, record: &Record, replaces: bool) -> Result<()> {
        // One that could not be read again would be in the way of all others.
        record.check(&record.digest).map_err(|why| Error::invalid("image", why))?;
        let how = if replaces { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
        self.write_json(&image_name(&record.digest), record, how)
    }

    /// Has a name lead to an image.
    pub(crate) fn put_name(&self, name: &Name, image: &Digest) -> Result<()> {
        let record = NameRecord { form: FORM, name: name.to_string(), image: image.clone() };
        let file_name = format!("{NAME}{}{JSON}", hashed(name.as_str()));
        self.write_json(&file_name, &record, RenameFlags::empty())
    }

    fn write_json(&self, name: &str, value: &impl Serialize, how: RenameFlags) -> Result<()> {
        let text = serde_json::to_vec(value)
            .map_err(|error| Error::at("write", &self.path(name))(io::Error::from(error)))?;
        if text.len() as u64 > LONGEST {
            return Err(Error::TooLarge {
                what: "the record of an image, in bytes",
                limit: LONGEST,
            });
        }
        self.write(name, &text, how)
    }

    fn write(&self, name: &str, bytes: &[u8], how: RenameFlags) -> Result<()> {
        let aside = unique_name(UNFINISHED);
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let write = || -> io::Result<()> {
            File::from(openat(&self.fd, aside.as_str(), flags, mode)?).write_all(bytes)?;
            Ok(renameat2(&self.fd, aside.as_str(), &self.fd, name, how)?)
        };
        let written = write();
        if written.is_err() {
            let _ = self.unlink(&aside);
        }
        match written {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            written => written.map_err(Error::at("write", &self.path(name))),
        }
    }

    fn unlink(&self, name: &str) -> Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(Error::at("unlink", &self.path(name))(errno)),
        }
    }

    /// Lets a name lead nowhere.
    pub(crate) fn remove_name(&self, name: &str) -> Result<()> {
        self.unlink(&format!("{NAME}{}{JSON}", hashed(name)))
    }

    /// Forgets an image, and the blobs that are no other's.
    pub(crate) fn remove_image(&self, record: &Record, others: &All<Known>) -> Result<()> {
        self.unlink(&image_name(&record.digest))?;
        // What can't be read may have it, too.
        let is_used = |digest: &Digest| {
            others.unread.iter().any(Unread::is_image)
                || others.read.iter().any(|other| other.record.config_digest == *digest)
        };
        for digest in [&record.digest, &record.config_digest] {
            if !is_used(digest) {
                self.unlink(&blob_name(digest))?;
            }
        }
        Ok(())
    }

    /// The names of files that begin and end so.
    fn files(&self, beginning: &str, ending: &str) -> Result<Vec<String>> {
        let names = entries(self.as_fd()).map_err(Error::at("read", &self.path))?;
        let names = names.into_iter().filter_map(|name| name.into_string().ok());
        Ok(names.filter(|name| name.starts_with(beginning) && name.ends_with(ending)).collect())
    }

    /// All names, each with the digest that it leads to, sorted; one that can't be read holds up
    /// no other.
    pub(crate) fn names(&self) -> Result<All<(String, Digest)>> {
        let mut all = All::default();
        for file_name in self.files(NAME, JSON)? {
            match self.read_name(&file_name) {
                Ok(found) => all.read.extend(found.map(|record| (record.name, record.image))),
                Err(error) => all.unread.push(Unread { file_name, error }),
            }
        }
        all.read.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(all)
    }

    /// All images, as they are known now; one that can't be read holds up no other. None is opened
    /// for longer than it is read: there may be more than a process may have descriptors. Each may
    /// be gone a moment later, but for who has the catalog locked.
    pub(crate) fn images(&self) -> Result<All<Known>> {
        let mut all = All::default();
        for file_name in self.files(IMAGE, JSON)? {
            match digest_of(&file_name).map(|digest| self.record(&digest)) {
                Some(Ok(found)) => all.read.extend(found),
                Some(Err(error)) => all.unread.push(Unread { file_name, error }),
                None => {
                    let error = invalid("a name that no image has");
                    let error = Error::at("read", &self.path(&file_name))(error);
                    all.unread.push(Unread { file_name, error });
                }
            }
        }
        Ok(all)
    }

    fn record(&self, digest: &Digest) -> Result<Option<Known>> {
        let name = image_name(digest);
        let Some((file, text)) = self.read(&name)? else { return Ok(None) };
        let record = Record::parse(&text, digest).map_err(Error::at("read", &self.path(&name)))?;
        let last_used = file.metadata().and_then(|metadata| metadata.modified()).ok();
        Ok(Some(Known { record, last_used }))
    }

    /// Removes a file that can't be read, and that no one has used for so long or uses now; whether
    /// it was. What it says is lost by then.
    pub(crate) fn remove_unread(&self, unread: &Unread, unused_for: Duration) -> Result<bool> {
        let Unread { file_name, .. } = unread;
        let at = |errno: Errno| Error::at("open", &self.path(file_name))(errno);
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match openat(&self.fd, file_name.as_str(), flags, Mode::empty()) {
            Ok(fd) => {
                let file = Lock(File::from(fd));
                let metadata = file.0.metadata().map_err(Error::io("stat"))?;
                let last = metadata.modified().map_err(Error::io("stat"))?;
                let is_old = last.elapsed().is_ok_and(|unused| unused >= unused_for);
                if !is_old || !metadata.is_file() || file.0.try_lock().is_err() {
                    return Ok(false);
                }
            }
            // A link, which adl has not made.
            Err(Errno::ELOOP | Errno::ENXIO) => return Ok(false),
            Err(Errno::ENOENT) => return Ok(true),
            Err(errno) => return Err(at(errno)),
        }
        // It may have been that there was nothing left to read it with.
        let is_read = match digest_of(file_name) {
            Some(digest) => matches!(self.record(&digest), Ok(Some(_))),
            None => matches!(self.read_name(file_name), Ok(Some(_))),
        };
        if is_read {
            return Ok(false);
        }
        self.unlink(file_name).map(|()| true)
    }

    /// Removes manifests and configurations that are no one's.
    pub(crate) fn remove_blobs_but(&self, images: &[Known]) -> Result<()> {
        let used = images
            .iter()
            .flat_map(|known| [&known.record.digest, &known.record.config_digest].map(blob_name));
        let used: BTreeSet<String> = used.collect();
        self.files(BLOB, "")?
            .iter()
            .filter(|name| !used.contains(*name))
            .try_for_each(|name| self.unlink(name))
    }

    /// Holds up who removes, for who adds by that deadline.
    pub(crate) fn lock_with_others(&self, deadline: Deadline) -> Result<Lock> {
        let until = Deadline::after(PATIENCE).min(deadline);
        self.lock(Sharing::WithOthers, until)?.ok_or_else(|| match deadline.passed() {
            true => Error::TimedOut { what: "who removes images", after: deadline.length() },
            false => is_busy("who removes images"),
        })
    }

    /// Holds up who adds and who removes.
    pub(crate) fn lock_alone(&self) -> Result<Lock> {
        let lock = self.lock(Sharing::Alone, Deadline::after(LOOKING))?;
        lock.ok_or_else(|| is_busy("who adds an image just now"))
    }

    fn lock(&self, sharing: Sharing, deadline: Deadline) -> Result<Option<Lock>> {
        self.try_lock(sharing, deadline).map_err(Error::at("flock", &self.path(LOCK)))
    }

    fn try_lock(&self, sharing: Sharing, deadline: Deadline) -> io::Result<Option<Lock>> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.fd, LOCK, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        Ok(lock_until(&file, sharing, deadline)?.then_some(Lock(file)))
    }

    /// Makes and locks the directory that is fetched to for a name; `None` where another process
    /// has it for as long as one would wait.
    pub(crate) fn fetch(&self, name: &str, deadline: Deadline) -> Result<Option<Fetch>> {
        let name = format!("{FETCH}{}", hashed(name));
        let path = self.path(&name);
        loop {
            match nix::sys::stat::mkdirat(&self.fd, name.as_str(), Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(Error::at("mkdir", &path)(errno)),
            }
            let file = match openat(&self.fd, name.as_str(), DIRECTORY, Mode::empty()) {
                Ok(fd) => File::from(fd),
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(Error::at("open", &path)(errno)),
            };
            let locked = lock_until(&file, Sharing::Alone, deadline);
            if !locked.map_err(Error::at("flock", &path))? {
                return Ok(None);
            }
            // Who had it has removed it.
            if fstat(&file).map_err(Error::at("stat", &path))?.st_nlink != 0 {
                return Ok(Some(Fetch { name, path, lock: Lock(file) }));
            }
        }
    }

    /// Removes what is fetched to.
    pub(crate) fn remove_fetch(&self, fetch: &Fetch) -> Result<()> {
        remove_entry(self.as_fd(), fetch.name.as_ref()).map_err(Error::at("remove", &fetch.path))
    }

    /// Removes what was fetched by who has ended, and files that were not written to their end.
    pub(crate) fn collect(&self) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        for name in self.files(FETCH, "")? {
            let Ok(fd) = openat(&self.fd, name.as_str(), DIRECTORY, Mode::empty()) else {
                continue;
            };
            let lock = Lock(File::from(fd));
            if lock.0.try_lock().is_ok() {
                remove_entry(self.as_fd(), name.as_ref())
                    .map_err(Error::at("remove", &self.path(&name)))?;
                removed.push(name);
            }
        }
        Ok(removed)
    }

    /// Removes files that were not written to their end, for who has it locked alone.
    pub(crate) fn remove_unfinished(&self, _lock: &Lock) -> Result<()> {
        self.files(UNFINISHED, "")?.iter().try_for_each(|name| self.unlink(name))
    }

    /// Locks it alone, unless someone else has it.
    pub(crate) fn try_alone(&self) -> Result<Option<Lock>> {
        self.lock(Sharing::Alone, Deadline::after(Duration::ZERO))
    }
}

fn is_busy(by: &str) -> Error {
    Error::Busy { what: "the catalog of images".to_owned(), by: by.to_owned() }
}

/// A directory that is fetched to.
#[derive(Debug)]
pub(crate) struct Fetch {
    name: String,
    pub(crate) path: PathBuf,
    lock: Lock,
}

impl Fetch {
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.0.as_fd()
    }
}

fn read_all(mut file: &File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    match Read::take(&mut file, LONGEST + 1).read_to_end(&mut text)? as u64 {
        0..=LONGEST => Ok(text),
        _ => Err(invalid("longer than any record")),
    }
}
