//! Archives unpacked, and trees copied to btrfs.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::config::host_path::HostPath;
use crate::error::{Error, Result};
use crate::image::layer::{UnpackOptions, flat};
use crate::root::form;
use crate::root::source::Source;
use crate::store::once::{Held, make_and_hold};
use crate::store::subordinate::{Subordinate, with_ids};
use crate::store::{State, btrfs};
use crate::sys::open::{self, Location, Purpose};
use crate::transfer::{self, CopyOptions, CopyReport, Incoming, Outgoing};
use crate::wait::Deadline;

/// The directory that a tar archive has been unpacked to, now or before: by root, and by an
/// ordinary user who has `ids`, with its owners.
///
/// # Errors
/// [`Error::Invalid`] for what is no archive, [`Error::Refused`] for one that leads out of itself,
/// [`Error::TooLarge`] for a bomb, [`Error::Io`] for what could not be read or made. Nothing of it
/// is left then.
pub(crate) fn archive(state: &State, archive: &HostPath, ids: Option<Subordinate>) -> Result<Held> {
    let file = File::from(archive.locate()?.open_file("image")?);
    let archive = &archive.full_path();
    let metadata = file.metadata().map_err(Error::at("stat", archive))?;
    let mut name = format!("tar-{:016x}", fingerprint(&metadata, Path::new("")));
    if let Some((uid, gid)) = ids.map(Subordinate::firsts) {
        // Who has no such ids, or others, can't do with what belongs to these.
        name = format!("{name}-{uid}-{gid}");
    }
    make_and_hold(state, &name, |aside| {
        let options = UnpackOptions { ids, ..UnpackOptions::default() };
        flat(aside, Box::new(file), &options, |beginning| form::check(archive, beginning))
            .map(drop)
            .map_err(|error| no_archive(archive, error))
    })
}

/// Says of which file it is, and what may be the matter.
fn no_archive(path: &Path, error: Error) -> Error {
    const KNOWN: &str = "is not a tar archive, plain or compressed by gzip or zstd";
    match error {
        Error::Invalid { what: "archive", why } => {
            Error::invalid("image", format!("{path:?} {KNOWN}: {why}"))
        }
        Error::Refused { why } => Error::refused(format!("{path:?}: {why}")),
        other => other,
    }
}

/// A subvolume with what is in a directory: itself if it is one on the state directory's file
/// system, else a copy that is made now or was made before.
///
/// # Errors
/// [`Error::Unsupported`] where the state directory is not on btrfs, and as [`archive`].
pub(crate) fn subvolume(state: &State, source: &Source) -> Result<Source> {
    let images = state.images()?;
    let at = File::open(&images).map_err(Error::at("open", &images))?;
    if !btrfs::is_btrfs(at.as_fd()) {
        return Err(Error::Unsupported {
            what: "a btrfs upper".to_owned(),
            why: format!("{images:?} is not on btrfs"),
            fix: "put the state directory on a btrfs, or use the upper `disk`".to_owned(),
        });
    }
    // Opened for more than its path: the ioctls take no O_PATH.
    let opened = open::beneath(source.as_fd(), ".", Purpose::List)
        .map_err(Error::at("open image", &source.path))?;
    if btrfs::is_subvolume(&opened) && btrfs::is_same_file_system(&opened, &at) {
        return Ok(source.clone());
    }
    let opened = File::from(opened);
    let metadata = opened.metadata().map_err(Error::at("stat", &source.path))?;
    let location = Location::beneath(opened.into(), Path::new(""), source.path.clone())?;
    let name = format!("copy-{:016x}", fingerprint(&metadata, &source.path));
    let place = make_and_hold(state, &name, |aside| {
        copy(aside, None, |to, options, report| transfer::send(&location, to, options, report))
    })?;
    Source::held(&place.path, &place.used)
}

/// Changes when what an image is made of does, as far as one can see at a glance.
fn fingerprint(of: &fs::Metadata, path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), of.dev(), of.ino(), of.size(), path).hash(&mut hasher);
    (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()).hash(&mut hasher);
    hasher.finish()
}

/// Copies what is sent into a directory, as out of a sandbox, since images are trusted as little.
fn copy(
    target: &Path,
    ids: Option<Subordinate>,
    send: impl FnOnce(&mut Outgoing, &CopyOptions, &mut CopyReport) -> Result<()>,
) -> Result<()> {
    let options = CopyOptions {
        owners: ids.is_some() || nix::unistd::geteuid().is_root(),
        set_ids: true,
        limit: u64::MAX,
        entries: u64::MAX,
    };
    let target = Location::followed(target.to_owned());
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::io("pipe"))?;
    let mut from = Incoming::new(read, Deadline::NEVER)?;
    let mut to = Outgoing::new(write, Deadline::NEVER)?;
    std::thread::scope(|scope| {
        let made = std::thread::Builder::new()
            .name("adl-unpack".to_owned())
            .spawn_scoped(scope, move || {
                let mut report = CopyReport::default();
                let mut receive =
                    || transfer::receive_as_top(&mut from, &target, &options, &mut report);
                if ids.is_some() { with_ids(receive) } else { receive() }
            })
            .map_err(Error::io("start of a thread"))?;
        let sent = send(&mut to, &options, &mut CopyReport::default());
        drop(to);
        let panicked = || Error::io("copy")(std::io::Error::other("its thread has panicked"));
        let made = made.join().unwrap_or_else(|_| Err(panicked()));
        match sent {
            // Who made it has stopped, and says why.
            Err(Error::Protocol { .. }) => made,
            sent => sent.and(made),
        }
    })
}
