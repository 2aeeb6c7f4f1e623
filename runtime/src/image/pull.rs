//! Images of registries, fetched by the programs that people have configured for that.
//!
//! `skopeo` knows logins, mirrors and policies. It brings documents and blobs, and none of them is
//! believed: each is checked by its digest here, the manifest by what an index or a name says of
//! it. Where there is no skopeo, podman or docker does, and writes an archive; a name with a digest
//! leads to what is in that only where the digest is that of a document in it.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::symlinkat;

use crate::config::host_path::HostPath;
use crate::error::traced::{span, traced};
use crate::error::{Error, Result};
use crate::image::bounds;
use crate::image::cache::{self, Cached, add};
use crate::image::catalog::{self, Catalog, Fetch};
use crate::image::digest::Digest;
use crate::image::layer;
use crate::image::layout::{self, Whole};
use crate::image::lock::Lease;
use crate::image::manifest::{self, Document, LONGEST, Manifest};
use crate::image::name::Name;
use crate::image::options::{Progress, PullOptions};
use crate::image::place::Place;
use crate::image::program::{Ended, last_lines, run};
use crate::image::reference::Reference;
use crate::image::refusal;
use crate::store::State;
use crate::store::contents::{entries, remove_contents, remove_entry};
use crate::store::subordinate::Subordinate;
use crate::sys::open::{DIRECTORY, Purpose, beneath};
use crate::wait::Deadline;

/// How deep indexes may lie in one another.
const DEEPEST: usize = 4;
/// Where skopeo puts an image, in the directory that is fetched to.
const LAYOUT: &str = "image";
/// What the others write.
const ARCHIVE: &str = "image.tar";
/// What the names begin with of files in the place of layers that are there.
const PLACEHOLDER: &str = "placeholder-";
/// Where blobs are.
const SHA256: &str = "image/blobs/sha256";
const SHA512: &str = "image/blobs/sha512";
/// What a program may write beside the blobs of an image, in bytes.
const BESIDE: u64 = 64 << 20;

/// Whether what is in the catalog is what a registry is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is, whatever the registry has by now.
    Suffices,
    /// The registry is asked.
    IsOld,
}

/// The image of a name, fetched if it is not there.
pub(crate) fn of_reference(state: &State, name: &str, ids: Option<u32>) -> Result<Cached> {
    let reference = Reference::parse(name)?;
    let options = PullOptions { ids, ..PullOptions::default() };
    let ids = Subordinate::asked_for(ids)?;
    if let Some(found) = cache::find(state, &reference.to_string(), ids)? {
        return Ok(found);
    }
    let lease = pull(state, &reference, &options, Known::Suffices)?;
    cache::cached(state, lease, ids)?.ok_or_else(|| cache::gone(name))
}

/// The image of a name, if it is there.
pub(crate) fn of_local(state: &State, name: &str, ids: Option<u32>) -> Result<Cached> {
    let whole = Reference::parse(name)?.to_string();
    let found = cache::find(state, &whole, Subordinate::asked_for(ids)?)?;
    found.ok_or(Error::NoImage { name: whole })
}

/// Fetches an image and unpacks it. Of those who want the same one at once, one fetches it, and
/// the others wait.
pub(crate) fn pull(
    state: &State,
    reference: &Reference,
    options: &PullOptions<'_>,
    known: Known,
) -> Result<Arc<Lease>> {
    let span = span!(INFO, "pull", image = %reference,);
    traced(&span, || try_to_pull(state, reference, options, known))
}

fn try_to_pull(
    state: &State,
    reference: &Reference,
    options: &PullOptions<'_>,
    known: Known,
) -> Result<Arc<Lease>> {
    let ids = Subordinate::asked_for(options.ids)?;
    let catalog = Catalog::open(state)?;
    let name = reference.to_string();
    let deadline = Deadline::after(options.timeout);
    let late =
        || Error::TimedOut { what: "another process that fetches it", after: options.timeout };
    let before = catalog.digest_of(&name).unwrap_or_default();
    let fetch = catalog.fetch(&name, deadline)?.ok_or_else(late)?;
    let this = Pull { state, catalog: &catalog, reference, options, ids, deadline, fetch: &fetch };
    // Another may have fetched it meanwhile.
    let now = catalog.digest_of(&name).unwrap_or_default();
    if (known == Known::Suffices || now != before)
        && let Ok(Some(lease)) = catalog.named(&name)
        && lease.record().open_layers(state, ids)?.is_some()
    {
        catalog.remove_fetch(&fetch)?;
        return Ok(lease);
    }
    let pulled = this.pull();
    match &pulled {
        // What skopeo has brought so far is there for the next attempt.
        Err(Error::Pull { .. } | Error::TimedOut { .. } | Error::Busy { .. })
            if this.layout().is_ok() => {}
        _ => catalog.remove_fetch(&fetch)?,
    }
    pulled
}

/// One attempt.
struct Pull<'a> {
    state: &'a State,
    catalog: &'a Catalog,
    reference: &'a Reference,
    options: &'a PullOptions<'a>,
    ids: Option<Subordinate>,
    deadline: Deadline,
    fetch: &'a Fetch,
}

impl Pull<'_> {
    fn pull(&self) -> Result<Arc<Lease>> {
        let mut seen = Vec::new();
        if let Some((bytes, manifest)) = self.manifest(self.reference, DEEPEST, &mut seen)? {
            let name = self.name(&seen)?;
            let digest = Digest::of(&bytes);
            // What can't be read is written anew.
            if let Ok(Some(lease)) = self.catalog.image(&digest)
                && lease.record().open_layers(self.state, self.ids)?.is_some()
            {
                // It has a new name, or none but that.
                self.catalog.put_name(&name, &digest)?;
                return Ok(lease);
            }
            // As it was asked for: a registry knows it by no other digest.
            let _lent = self.copy(seen.last().unwrap_or(&digest), &manifest)?;
            let place = self.layout()?;
            let whole = layout::of_manifest(&place, bytes, &self.reference.to_string())?;
            return add(
                self.state,
                self.catalog,
                &place,
                &whole,
                &[name],
                self.options,
                self.deadline,
            );
        }
        let (place, whole) = self.save()?;
        let names = [self.name(&whole.seen)?];
        add(self.state, self.catalog, &place, &whole, &names, self.options, self.deadline)
    }

    /// The name that was asked for, of what has these digests.
    fn name(&self, seen: &[Digest]) -> Result<Name> {
        Name::fetched(self.reference, seen).ok_or_else(|| Error::Unsupported {
            what: format!("the image {}", self.reference),
            why: "what podman or docker has saved of it has no manifest with this digest, so that \
                  it could be another image"
                .to_owned(),
            fix: "install skopeo, which brings images as they are: apt-get install skopeo"
                .to_owned(),
        })
    }

    /// Asks the registry for the manifest for this machine; `None` where there is no skopeo.
    /// The digests of what has led there are added to `seen`, its own last.
    fn manifest(
        &self,
        of: &Reference,
        depth: usize,
        seen: &mut Vec<Digest>,
    ) -> Result<Option<(Vec<u8>, Manifest)>> {
        let mut skopeo = self.skopeo();
        skopeo.args(["inspect", "--raw", "--no-tags"]);
        if self.options.insecure {
            skopeo.arg("--tls-verify=false");
        }
        skopeo.arg(format!("docker://{}", of.to_fetch()));
        let what = "a registry to tell of the image";
        let Some(ended) = run(&mut skopeo, what, LONGEST, self.deadline, || Ok(()))? else {
            return Ok(None);
        };
        self.check("skopeo", &ended)?;
        let bytes = ended.stdout;
        if of.digest().is_some_and(|digest| !digest.is_of(&bytes)) {
            let why = format!("the manifest that {} sent has another digest", of.registry());
            return Err(Error::invalid("image", format!("{of}: {why}")));
        }
        seen.push(of.digest().cloned().unwrap_or_else(|| Digest::of(&bytes)));
        let index = match Document::parse(&bytes, "")? {
            Document::Manifest(manifest) => return Ok(Some((bytes, manifest))),
            Document::Index(index) => index,
        };
        let best = manifest::for_this_machine(index, &self.reference.to_string())?;
        let (Some(best), Some(depth)) = (best.first(), depth.checked_sub(1)) else {
            let why = format!("{of}: indexes in one another too deep");
            return Err(Error::invalid("image", why));
        };
        self.manifest(&of.at(&best.digest), depth, seen)
    }

    fn skopeo(&self) -> Command {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--override-os", "linux"]).current_dir(&self.fetch.path);
        skopeo
    }

    /// Has skopeo bring the configuration and the layers of a manifest, but those that are there
    /// unpacked; these stay for as long as what is returned.
    fn copy(&self, digest: &Digest, manifest: &Manifest) -> Result<Vec<Arc<Lease>>> {
        let most = self.options.caps.size;
        let all = manifest.layers.iter().map(|layer| layer.size);
        let all = bounds::check_sizes(all.chain([manifest.config.size]), most)?;
        let Placed { missing, lent } = self.put_placeholders(manifest)?;
        let mut skopeo = self.skopeo();
        // As they are: compressed anew, they would have other digests.
        skopeo.args(["copy", "--quiet", "--dest-oci-accept-uncompressed-layers"]);
        if self.options.insecure {
            skopeo.arg("--src-tls-verify=false");
        }
        skopeo.arg(format!("docker://{}", self.reference.at(digest).to_fetch()));
        skopeo.arg(format!("oci:{LAYOUT}:fetched"));
        let of = bounds::check_sizes(missing.iter().map(|(_, size)| *size), most)?;
        let layers = manifest.layers.len();
        let told = Cell::new(None);
        let look = || {
            let (there, bytes) = self.fetched(&missing);
            let layers = (layers + there).saturating_sub(missing.len());
            let progress = Progress::Fetching {
                layers,
                of_layers: manifest.layers.len(),
                bytes: bytes.min(of),
                of,
            };
            if told.replace(Some(progress)) != Some(progress) {
                self.options.tell(&progress);
            }
            self.check_size(&[LAYOUT, SHA256, SHA512], all)
        };
        look()?;
        let ended = run(&mut skopeo, "an image to be fetched", LONGEST, self.deadline, look)?;
        self.check("skopeo", &ended.ok_or_else(|| self.unsupported())?)?;
        Ok(lent)
    }

    /// Puts something in the place of layers that are there unpacked, so that they are not fetched
    /// again. It is a link, which skopeo takes for a file of the right size, and which nothing here
    /// follows: no one can take it for a layer, and an attempt that was interrupted leaves nothing
    /// that could be.
    fn put_placeholders(&self, manifest: &Manifest) -> Result<Placed> {
        // Where one can't be read, its layers are fetched.
        let known = self.catalog.images().unwrap_or_default().read;
        let make = || -> io::Result<Placed> {
            let mut placed = Placed { missing: Vec::new(), lent: Vec::new() };
            let is_of_it = |name: &OsStr| {
                let digests = manifest.layers.iter().chain([&manifest.config]);
                let mut paths = digests.map(|blob| layout::blob(&blob.digest));
                paths.any(|path| Path::new(&path).file_name() == Some(name))
            };
            remove_but(&make_directories(self.fetch, &[])?, |name| name == "blobs")?;
            for algorithm in ["sha256", "sha512"] {
                let blobs = make_directories(self.fetch, &["blobs", algorithm])?;
                remove_but(&blobs, is_of_it)?;
            }
            let layout = beneath(self.fetch.as_fd(), LAYOUT, Purpose::Pass)?;
            let mut different = HashSet::new();
            for layer in manifest.layers.iter().filter(|layer| different.insert(&layer.digest)) {
                let Some(lease) = self.lend(&known, &layer.digest) else {
                    placed.missing.push((layer.digest.clone(), layer.size));
                    continue;
                };
                placed.lent.push(lease);
                let name = format!("{PLACEHOLDER}{}", layer.digest.file_name());
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mode = Mode::S_IRUSR | Mode::S_IWUSR;
                let file = openat(self.fetch.as_fd(), name.as_str(), flags, mode)?;
                File::from(file).set_len(layer.size)?;
                let path = layout::blob(&layer.digest);
                match symlinkat(format!("../../../{name}").as_str(), &layout, path.as_str()) {
                    // It was fetched before.
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Ok(placed)
        };
        make().map_err(|error| Error::at("write", &self.fetch.path.join(LAYOUT))(error))
    }

    /// An image that is there and has a layer unpacked.
    fn lend(&self, known: &[catalog::Known], digest: &Digest) -> Option<Arc<Lease>> {
        known.iter().filter(|known| known.record.layer(digest).is_some()).find_map(|known| {
            // It may be gone, or another, by now.
            let lease = self.catalog.image(&known.record.digest).ok().flatten()?;
            let layer = lease.record().layer(digest)?;
            layer::find(self.state, &layer.diff_id, self.ids).is_some().then_some(lease)
        })
    }

    /// Looks whether files in some directories have more bytes than `most` together: what is
    /// fetched is checked by its digest when it is whole, and may be without end.
    fn check_size(&self, directories: &[&str], most: u64) -> Result<()> {
        let sizes = |name: &&str| -> io::Result<Vec<u64>> {
            let directory = beneath(self.fetch.as_fd(), *name, Purpose::List)?;
            let names = entries(directory.as_fd())?.into_iter();
            let look = |name: OsString| {
                fstatat(&directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok()
            };
            Ok(names.filter_map(look).map(|stat| stat.st_size.unsigned_abs()).collect())
        };
        // What is not there takes no room.
        let all = directories.iter().filter_map(|name| sizes(name).ok()).flatten();
        let limit = most.saturating_add(BESIDE);
        bounds::check_sizes(all, limit).map(drop).map_err(|_| Error::TooLarge {
            what: "what was fetched of an image, with more than it says of itself, in bytes,",
            limit,
        })
    }

    /// How many of some blobs are there, and how many bytes were fetched so far.
    fn fetched(&self, blobs: &[(Digest, u64)]) -> (usize, u64) {
        let Ok(layout) = beneath(self.fetch.as_fd(), LAYOUT, Purpose::List) else { return (0, 0) };
        let size = |name: &std::ffi::OsStr| {
            let stat = fstatat(layout.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW);
            stat.map(|stat| stat.st_size.unsigned_abs()).ok()
        };
        let there = blobs.iter().filter_map(|(digest, _)| size(layout::blob(digest).as_ref()));
        let there: Vec<u64> = there.collect();
        // What is on its way is aside, under names of skopeo's own.
        let names = entries(layout.as_fd()).unwrap_or_default();
        let aside =
            names.iter().filter(|name| name.as_encoded_bytes().starts_with(b"oci-put-blob"));
        let aside: u64 = aside.filter_map(|name| size(name)).sum();
        (there.len(), there.iter().sum::<u64>() + aside)
    }

    fn layout(&self) -> Result<Place> {
        let shown = self.fetch.path.join(LAYOUT);
        let directory = beneath(self.fetch.as_fd(), LAYOUT, Purpose::Pass);
        let directory = directory.map_err(Error::at("open", &shown))?;
        Ok(Place::directory(directory, shown, self.deadline))
    }

    /// Has podman or docker fetch the image and write it to an archive.
    fn save(&self) -> Result<(Place, Whole)> {
        let name = self.reference.to_fetch();
        for program in ["podman", "docker"] {
            let mut pull = Command::new(program);
            pull.arg("pull");
            if self.options.insecure && program == "podman" {
                pull.arg("--tls-verify=false");
            }
            let what = "an image to be fetched";
            let look = || self.check_size(&["."], self.options.caps.size);
            let run = |command: &mut Command| run(command, what, LONGEST, self.deadline, look);
            let Some(ended) = run(pull.arg(&name))? else { continue };
            self.check(program, &ended)?;
            remove_contents(self.fetch.as_fd())
                .map_err(Error::at("remove what is in", &self.fetch.path))?;
            let mut save = Command::new(program);
            save.current_dir(&self.fetch.path).args(["save", "-o", ARCHIVE]).arg(&name);
            let Some(ended) = run(&mut save)? else { continue };
            self.check(program, &ended)?;
            let place = Place::open(
                &HostPath::beneath(&self.fetch.path, ARCHIVE),
                &self.fetch.path,
                self.options.caps,
                self.deadline,
            )?;
            let chosen = layout::choose(&place, layout::images(&place)?, None)?;
            let whole = layout::read(&place, &chosen, &self.reference.to_string())?;
            return Ok((place, whole));
        }
        Err(self.unsupported())
    }

    fn unsupported(&self) -> Error {
        Error::Unsupported {
            what: format!("the image {}", self.reference),
            why: "it is not in the state directory, and there is no skopeo, podman or docker to \
                  fetch it"
                .to_owned(),
            fix: "install one: apt-get install skopeo".to_owned(),
        }
    }

    fn check(&self, program: &'static str, ended: &Ended) -> Result<()> {
        if ended.status.success() {
            return Ok(());
        }
        let said = last_lines(&ended.stderr);
        let why = refusal::sentence(program, self.reference.registry(), &said);
        Err(Error::Pull { image: self.reference.to_string(), program, why })
    }
}

/// What is in the place of layers that are there.
struct Placed {
    /// The others, with their sizes.
    missing: Vec<(Digest, u64)>,
    /// The images whose layers they are.
    lent: Vec<Arc<Lease>>,
}

/// Removes what an earlier attempt has left in the place of layers that were there, and what is of
/// no use to this one, as the beginning of a blob.
fn remove_but(directory: &OwnedFd, stays: impl Fn(&OsStr) -> bool) -> io::Result<()> {
    for name in entries(directory.as_fd())? {
        let stat = fstatat(directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let is_link = stat.st_mode & libc::S_IFMT == libc::S_IFLNK;
        if is_link || !stays(&name) {
            remove_entry(directory.as_fd(), &name)?;
        }
    }
    Ok(())
}

/// Makes directories in one another, in the layout that is fetched to; the last of them.
fn make_directories(fetch: &Fetch, names: &[&str]) -> io::Result<OwnedFd> {
    let mut at = fetch.as_fd().try_clone_to_owned()?;
    for name in [LAYOUT].iter().chain(names) {
        match mkdirat(&at, *name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        at = openat(&at, *name, DIRECTORY, Mode::empty())?;
    }
    Ok(at)
}
