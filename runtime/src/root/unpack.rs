//! Archives unpacked, and trees copied to btrfs.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::slice;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::pipe2;

use crate::config::host_path::HostPath;
use crate::error::{Error, Result};
use crate::image::layer::{UnpackOptions, flat};
use crate::image::options::LONG;
use crate::image::view::View;
use crate::root::source::Source;
use crate::root::{form, nodes};
use crate::store::once::{Held, make_and_hold};
use crate::store::subordinate::{Subordinate, with_ids};
use crate::store::{State, btrfs};
use crate::sys::open::{self, DIRECTORY, Location, Purpose};
use crate::transfer::{
    self, ChangeForm, CopyOptions, CopyReport, Export, Incoming, OpenedStack, Outgoing,
};
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
        let deadline = Deadline::after(LONG);
        let options = UnpackOptions { ids, deadline, ..UnpackOptions::default() };
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
    let at = images_on_btrfs(state)?;
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
        let top = open::beneath(source.as_fd(), ".", Purpose::List);
        let view = View::of(vec![top.map_err(Error::at("open image", &source.path))?]);
        copy(aside, &view, None, |to, options, report| {
            transfer::send(&location, to, options, report)
        })
    })?;
    Source::held(&place.path, &place.used)
}

/// The directory of images, which has to be on btrfs.
fn images_on_btrfs(state: &State) -> Result<File> {
    let images = state.images()?;
    let at = File::open(&images).map_err(Error::at("open", &images))?;
    if btrfs::is_btrfs(at.as_fd()) {
        return Ok(at);
    }
    Err(Error::Unsupported {
        what: "a btrfs upper".to_owned(),
        why: format!("{images:?} is not on btrfs"),
        fix: "put the state directory on a btrfs, or use the upper `disk`".to_owned(),
    })
}

/// A subvolume with what layers of the state directory show together, the topmost first: made now
/// or before.
///
/// # Errors
/// As [`subvolume`].
pub(crate) fn flattened(
    state: &State,
    layers: &[PathBuf],
    ids: Option<Subordinate>,
) -> Result<Source> {
    images_on_btrfs(state)?;
    // Their names say what is in them, and whose.
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    layers.iter().for_each(|layer| layer.file_name().hash(&mut hasher));
    let name = format!("flat-{:016x}", hasher.finish());
    let place = make_and_hold(state, &name, |aside| {
        let open = |path: &PathBuf| {
            nix::fcntl::open(path, DIRECTORY, Mode::empty()).map_err(Error::at("open image", path))
        };
        let opened = layers.iter().map(open).collect::<Result<Vec<_>>>()?;
        let stack = OpenedStack {
            at: PathBuf::new(),
            changed: Vec::new(),
            image: opened.iter().map(AsFd::as_fd).collect(),
            kind: ChangeForm::Whiteouts,
            own: &[],
            has_owners: true,
        };
        copy(aside, &View::open(layers)?, ids, |to, options, report| {
            let stacks = slice::from_ref(&stack);
            transfer::send_stacks(stacks, Export::Tree, to, options, report)
        })
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

/// Copies what is sent of `image` into a directory, as out of a sandbox, since images are trusted
/// as little.
fn copy(
    target: &Path,
    image: &View,
    ids: Option<Subordinate>,
    send: impl FnOnce(&mut Outgoing, &CopyOptions, &mut CopyReport) -> Result<()> + Send,
) -> Result<()> {
    let options = CopyOptions {
        owners: ids.is_some() || nix::unistd::geteuid().is_root(),
        set_ids: true,
        extended: true,
        limit: u64::MAX,
        entries: u64::MAX,
    };
    let to_top = Location::followed(target.to_owned());
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::io("pipe"))?;
    let mut from = Incoming::new(read, Deadline::NEVER)?;
    let mut to = Outgoing::new(write, Deadline::NEVER)?;
    std::thread::scope(|scope| {
        let made = std::thread::Builder::new()
            .name("adl-unpack".to_owned())
            .spawn_scoped(scope, move || {
                let mut report = CopyReport::default();
                let mut receive =
                    || transfer::receive_as_top(&mut from, &to_top, &options, &mut report);
                if ids.is_some() { with_ids(receive) } else { receive() }
            })
            .map_err(Error::io("start of a thread"))?;
        let mut skipped = CopyReport::default();
        let send = || send(&mut to, &options, &mut skipped);
        let sent = if ids.is_some() { with_ids(send) } else { send() };
        drop(to);
        let panicked = || Error::io("copy")(std::io::Error::other("its thread has panicked"));
        let made = made.join().unwrap_or_else(|_| Err(panicked()));
        match sent {
            // Who made it has stopped, and says why.
            Err(Error::Protocol { .. }) => made,
            sent => sent.and(made),
        }?;
        let nodes = || nodes::make(target, image, &skipped, options.owners);
        if ids.is_some() { with_ids(nodes) } else { nodes() }
    })
}
