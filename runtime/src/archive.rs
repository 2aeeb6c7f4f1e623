//! Archives as images: unpacked once, into the state directory.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufReader;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::pipe2;

use crate::error::{Error, Result};
use crate::remove::{remove_contents, remove_empty};
use crate::state::{DIRECTORY, State};
use crate::tree::{self, CopyOptions, CopyReport, Incoming, Outgoing};
use crate::wire::Deadline;

/// Where an archive is unpacked until it is whole. Whoever holds the lock on the directory that it
/// is in may do so; what is there then is of one who did not come to the end.
const ASIDE: &str = ".unpacking";

/// The directory that an archive has been unpacked to, now or before.
///
/// # Errors
/// [`Error::Invalid`] for what is no archive, [`Error::Refused`] for one that leads out of itself,
/// [`Error::Io`] for what could not be read or made. Nothing of it is left then.
pub(crate) fn unpacked(state: &State, archive: &Path) -> Result<PathBuf> {
    let images = state.images()?;
    let file = File::open(archive).map_err(Error::at("open image", archive))?;
    let metadata = file.metadata().map_err(Error::at("stat", archive))?;
    if !metadata.is_file() {
        return Err(Error::invalid("image", format!("{archive:?} is no regular file")));
    }
    let place = images.join(format!("tar-{:016x}", fingerprint(&metadata)));
    if place.is_dir() {
        return Ok(place);
    }
    let lock = File::open(&images).map_err(Error::at("open", &images))?;
    lock.lock().map_err(Error::at("flock", &images))?;
    if !place.is_dir() {
        let aside = images.join(ASIDE);
        remove(&images).map_err(Error::at("remove", &aside))?;
        if let Err(error) = unpack(file, &aside) {
            // The error that is told is the first one.
            let _ = remove(&images);
            return Err(error);
        }
        fs::rename(&aside, &place).map_err(Error::at("rename", &aside))?;
    }
    Ok(place)
}

/// Changes when the archive does.
fn fingerprint(of: &fs::Metadata) -> u64 {
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), of.dev(), of.ino(), of.size()).hash(&mut hasher);
    (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()).hash(&mut hasher);
    hasher.finish()
}

fn remove(images: &Path) -> std::io::Result<()> {
    let images = nix::fcntl::open(images, DIRECTORY, Mode::empty())?;
    match nix::fcntl::openat(&images, ASIDE, DIRECTORY, Mode::empty()) {
        Ok(aside) => remove_contents(aside.as_fd())?,
        Err(nix::errno::Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    }
    remove_empty(images.as_fd(), OsStr::new(ASIDE))
}

/// As a copy out of a sandbox does, since an archive is trusted as little.
fn unpack(archive: File, target: &Path) -> Result<()> {
    let mut archive = BufReader::with_capacity(1 << 20, archive);
    let options = CopyOptions {
        owners: nix::unistd::geteuid().is_root(),
        set_ids: true,
        limit: u64::MAX,
        entries: u64::MAX,
    };
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::io("pipe"))?;
    let mut from = Incoming::new(read, Deadline::NEVER)?;
    let mut to = Outgoing::new(write, Deadline::NEVER)?;
    std::thread::scope(|scope| {
        let made = std::thread::Builder::new()
            .name("adl-unpack".to_owned())
            .spawn_scoped(scope, move || {
                tree::receive(&mut from, target, &options, &mut CopyReport::default())
            })
            .map_err(Error::io("start of a thread"))?;
        let sent = tree::from_tar(&mut archive, &mut to, &options, &mut CopyReport::default());
        drop(to);
        let made = made.join().unwrap_or(Err(Error::Protocol { why: "a copy that panicked" }));
        match sent {
            // Who made it has stopped, and says why.
            Err(Error::Protocol { .. }) => made,
            sent => sent.and(made),
        }
    })
}
