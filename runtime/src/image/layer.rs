//! Layers of images in the state directory: each unpacked once, and called by its digest.

use std::io::Read;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

use super::ahead::{Ahead, Progress, read_ahead};
use super::compression::{Plain, Whole};
use super::digest::{Digest, Hasher};
use super::options::Caps;
use super::unpack::{self, Form, Unpacked};
use crate::error::{Error, Result};
use crate::store::subordinate::{Subordinate, with_ids};
use crate::store::{IMAGES, State, once};
use crate::transfer::tar::reader::End;
use crate::wait::Deadline;

/// A layer as it is packed.
pub(crate) struct Blob<'a> {
    /// That of the bytes as they come.
    pub(crate) digest: Digest,
    pub(crate) size: Option<u64>,
    /// That of the plain archive.
    pub(crate) diff_id: Option<Digest>,
    /// Reads it. A read that waits is not cut short by the deadline.
    pub(crate) bytes: Box<dyn Read + Send + 'a>,
}

/// How something is unpacked.
#[derive(Clone, Copy)]
pub(crate) struct UnpackOptions<'a> {
    pub(crate) caps: Caps,
    /// Hears of how many bytes of the blob have been read, in the calling thread.
    pub(crate) progress: Option<&'a dyn Fn(u64)>,
    /// Hears of what was made, if it was not there before.
    pub(crate) report: Option<&'a dyn Fn(&Unpacked)>,
    pub(crate) deadline: Deadline,
    /// Those that owners are to be of, where an ordinary user has them.
    pub(crate) ids: Option<Subordinate>,
}

impl Default for UnpackOptions<'_> {
    fn default() -> Self {
        Self {
            caps: Caps::default(),
            progress: None,
            report: None,
            deadline: Deadline::NEVER,
            ids: None,
        }
    }
}

/// The directory of a layer, if there is one. It costs one call.
pub(crate) fn find(state: &State, diff_id: &Digest, ids: Option<Subordinate>) -> Option<PathBuf> {
    let place = state.path().join(IMAGES).join(of_ids(&name(diff_id), ids));
    place.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()).then_some(place)
}

/// What the directory of a layer is called.
pub(crate) fn name(diff_id: &Digest) -> String {
    format!("{}{}", once::LAYER, diff_id.file_name())
}

/// What it is called where owners are of some ids: who has no such ids, or others, can't do with
/// what belongs to these.
pub(crate) fn of_ids(name: &str, ids: Option<Subordinate>) -> String {
    match ids.map(Subordinate::firsts) {
        Some((uid, gid)) => format!("{name}{OF_IDS}{uid}-{gid}"),
        None => name.to_owned(),
    }
}

/// What comes before the ids in such a name.
const OF_IDS: &str = "-ids-";

/// What it is called without ids.
pub(crate) fn without_ids(name: &str) -> &str {
    name.split_once(OF_IDS).map_or(name, |(name, _)| name)
}

/// The directory of a layer, unpacked now or before: one that can be a lower one of an overlay.
///
/// Of those who need the same one at once, one unpacks it, and the others wait.
///
/// # Errors
/// [`Error::Invalid`] of what is not what its digests say, or damaged, or no archive;
/// [`Error::Refused`] of what leads out; [`Error::TooLarge`] by the caps; [`Error::TimedOut`];
/// [`Error::Io`] of what could not be read or made. Nothing of it is left then.
pub(crate) fn layer(state: &State, blob: Blob<'_>, options: &UnpackOptions<'_>) -> Result<PathBuf> {
    let shown = blob.digest.to_string();
    let called = |diff_id: &Digest| of_ids(&name(diff_id), options.ids);
    let made = match blob.diff_id.clone() {
        Some(diff_id) => once::make_once_by(state, &called(&diff_id), options.deadline, |aside| {
            unpack_blob(aside, blob, options).map(drop)
        }),
        // Only when all was read is it known what it is called.
        None => once::make_and_name(state, &called(&blob.digest), options.deadline, |aside| {
            unpack_blob(aside, blob, options).map(|diff_id| called(&diff_id))
        }),
    };
    made.map_err(|error| about(&format!("layer {shown}"), error))
}

/// Looks whether a blob has the digests that are said of it, and makes nothing of it.
///
/// # Errors
/// As [`layer`].
pub(crate) fn check(blob: Blob<'_>, options: &UnpackOptions<'_>) -> Result<()> {
    let shown = blob.digest.to_string();
    let checked = check_blob(blob, options, |_| Ok(Unpacked::default()));
    checked.map(drop).map_err(|error| about(&format!("layer {shown}"), error))
}

/// Says of what it is.
fn about(what: &str, error: Error) -> Error {
    match error {
        Error::Invalid { what: "image" | "archive", why } => {
            Error::invalid("image", format!("{what}: {why}"))
        }
        Error::Refused { why } => Error::refused(format!("{what}: {why}")),
        other => other,
    }
}

/// Unpacks a layer, and returns the digest of the plain archive.
fn unpack_blob(target: &Path, blob: Blob<'_>, options: &UnpackOptions<'_>) -> Result<Digest> {
    let caps = options.caps;
    let unpack =
        |ahead: &mut Ahead<'_>| unpack::unpack(ahead, End::MarkedOrNot, target, Form::Layer, caps);
    let (plain, unpacked) = check_blob(blob, options, unpack)?;
    if let Some(report) = options.report {
        report(&unpacked);
    }
    Ok(plain)
}

/// Has a blob read to its end, and looks whether it has the digests that are said of it; that of
/// the plain archive.
fn check_blob(
    blob: Blob<'_>,
    options: &UnpackOptions<'_>,
    unpack: impl FnOnce(&mut Ahead<'_>) -> Result<Unpacked> + Send,
) -> Result<(Digest, Unpacked)> {
    let hashers = (Hasher::like(Some(&blob.digest)), Hasher::like(blob.diff_id.as_ref()));
    let (whole, unpacked) = unpack_bytes(blob.bytes, hashers, options, unpack)?;
    let differs = |what: &str, is: String, said: String| {
        let why = format!("its {what} is {is}, and was said to be {said}");
        if is == said { Ok(()) } else { Err(Error::invalid("image", why)) }
    };
    if let Some(size) = blob.size {
        differs("size", whole.size.to_string(), size.to_string())?;
    }
    let shown = |digest: &Option<Digest>| digest.as_ref().map(Digest::to_string);
    let unknown = || Error::invalid("image", "no digest was made of it");
    differs("digest", shown(&whole.digest).ok_or_else(unknown)?, blob.digest.to_string())?;
    let plain = whole.plain.ok_or_else(unknown)?;
    if let Some(diff_id) = blob.diff_id {
        differs("diff id", plain.to_string(), diff_id.to_string())?;
    }
    Ok((plain, unpacked))
}

/// Unpacks an archive of one root file system, compressed or not, into a directory that is empty.
/// `check` sees the beginning of the plain archive before anything is made.
///
/// # Errors
/// As [`layer`], and those of `check`. What was made by then stays.
pub(crate) fn flat<'a>(
    target: &Path,
    bytes: Box<dyn Read + Send + 'a>,
    options: &UnpackOptions<'_>,
    check: impl FnOnce(&[u8]) -> Result<()> + Send,
) -> Result<Unpacked> {
    let hashers = (Hasher::None, Hasher::None);
    let caps = options.caps;
    let (_, unpacked) = unpack_bytes(bytes, hashers, options, |ahead| {
        check(ahead.peek()?)?;
        unpack::unpack(ahead, End::Marked, target, Form::Root, caps)
    })?;
    Ok(unpacked)
}

fn unpack_bytes<'a>(
    bytes: Box<dyn Read + Send + 'a>,
    hashers: (Hasher, Hasher),
    options: &UnpackOptions<'_>,
    unpack: impl FnOnce(&mut Ahead<'_>) -> Result<Unpacked> + Send,
) -> Result<(Whole, Unpacked)> {
    let read = AtomicU64::new(0);
    let mut plain = Plain::new(bytes, hashers, &read, options.caps, options.deadline)?;
    let UnpackOptions { ids, deadline, .. } = *options;
    let (tell, told) = mpsc::channel();
    let work = || {
        let progress = Progress { hears: tell, read: &read };
        read_ahead(&mut plain, progress, deadline, |ahead| {
            let all = || {
                let unpacked = unpack(ahead)?;
                ahead.drain().map(|()| unpacked)
            };
            if ids.is_some() { with_ids(all) } else { all() }
        })
    };
    // What a caller does to tell of progress is done in the caller's thread, with no other rights.
    let unpacked = std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name("adl-unpack".to_owned());
        let worker = worker.spawn_scoped(scope, work).map_err(Error::io("start of a thread"))?;
        for count in told {
            if let Some(hears) = options.progress {
                hears(count);
            }
        }
        worker.join().unwrap_or_else(|panic| resume_unwind(panic))
    })?;
    Ok((plain.finish()?, unpacked))
}
