//! The layers of a root file system: what differs between them, and an export of it.
//!
//! Layers are read as overlayfs has them (`Documentation/filesystems/overlayfs.rst`), but by
//! descriptors and without a mount, since a mount that a guest writes to is not for the host to
//! look into.

mod layer_cursor;
mod walk;

#[cfg(test)]
mod tests;

use std::ffi::{CStr, CString};
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use adl_protocol::FileKind;
use nix::fcntl::OFlag;
use nix::sys::stat::FileStat;
use nix::unistd::pipe2;

use super::attributes::Extended;
use super::sender::{Sender, kind_of};
use super::{CopyOptions, CopyReport, Incoming, Outgoing, to_tar};
use crate::error::{Error, Result};
use crate::sys::user_namespace::within;
use crate::wait::Deadline;
use layer_cursor::Against;
use walk::{Item, Step, Walk, What};

/// The most changes that are told at once. Less in tests.
const MOST_CHANGES: usize = if cfg!(test) { 20_000 } else { 1 << 20 };
/// The most that their paths may take, in bytes: one of a deep tree alone may take 16 MiB.
const MOST_PATHS: usize = 256 << 20;

/// The layers that one mount of a root file system is put together from, opened.
#[derive(Debug)]
pub(crate) struct OpenedStack<'a> {
    /// Where it lies below the root: relative, and empty for the root itself.
    pub(crate) at: PathBuf,
    /// Layers that hold changes, topmost first.
    pub(crate) changed: Vec<BorrowedFd<'a>>,
    /// Layers of the image, topmost first.
    pub(crate) image: Vec<BorrowedFd<'a>>,
    pub(crate) kind: ChangeForm,
    /// Names in `/etc` that are neither the image's nor changes to that, and not looked at.
    pub(crate) own: &'a [&'static CStr],
    /// Whether a directory of another owner is another one. With one id, what others own outside
    /// has no owner inside, and all that is made has that one.
    pub(crate) has_owners: bool,
}

/// How a stack tells what was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeForm {
    /// The layers with changes are uppers of overlays, with whiteouts and opaque directories.
    Whiteouts,
    /// The one layer with changes is a whole tree that began as a btrfs snapshot of the image:
    /// what is not in it was deleted. There, guests can make what looks like a whiteout.
    WholeCopy,
}

/// One path that is not as in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The path inside, absolute. It may hold bytes that a guest chose.
    pub path: PathBuf,
    /// What became of it.
    pub kind: ChangeKind,
}

/// What became of a path of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChangeKind {
    /// The image has nothing there.
    Added,
    /// A file that was written to, or given other attributes or another name, even if all is as
    /// before in the end; a directory of other permissions or owners; or what is of another kind
    /// than in the image.
    Modified,
    /// Only the image has something there. What was in a directory is not told one by one.
    Deleted,
}

/// What an archive of a root file system holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Export {
    /// What was changed, as a layer of an OCI image: an empty file `.wh.NAME` for what was
    /// deleted, and `.wh..wh..opq` in a directory of which nothing else of the image is left.
    Layer,
    /// All there is, whichever layer it is in.
    Tree,
}

/// What is not as in the image, in the order of a walk, names sorted by their bytes.
///
/// The layers may change meanwhile: what is gone when its turn comes is not told.
///
/// # Errors
/// [`Error::File`] for what can't be read, with ESTALE for a directory that was moved meanwhile and
/// ENOENT for a stack whose place is gone, and [`Error::TooLarge`].
pub(crate) fn changes(stacks: &[OpenedStack<'_>]) -> Result<Vec<Change>> {
    let mut walk = Walk::new(stacks, Against::Image)?;
    let mut changes = Vec::new();
    let mut size = 0;
    let mut next = Some(Step::Item(walk.begin()?));
    while let Some(step) = next {
        if let Step::Item(item) = step
            && let Some(kind) = item.change
        {
            let path = walk.path(&item);
            size += path.as_os_str().len();
            if changes.len() >= MOST_CHANGES {
                let limit = MOST_CHANGES as u64;
                return Err(Error::TooLarge { what: "the number of changes", limit });
            }
            if size > MOST_PATHS {
                let limit = MOST_PATHS as u64;
                return Err(Error::TooLarge { what: "all paths of changes, in bytes,", limit });
            }
            changes.push(Change { path, kind });
        }
        next = walk.next()?;
    }
    Ok(changes)
}

/// Writes a tar archive of what the layers hold. What has nothing to copy, as a device, is not in
/// it, but in the report. The layers are read in `namespace`, and
/// owners are those that they have there.
///
/// # Errors
/// As [`changes`], those of `out`, [`Error::TimedOut`], and [`Error::Refused`] for a layer of which
/// an entry would be taken for the mark of a deletion.
pub(crate) fn export(
    stacks: &[OpenedStack<'_>],
    what: Export,
    out: &mut dyn Write,
    options: &CopyOptions,
    namespace: Option<BorrowedFd<'_>>,
    deadline: Deadline,
) -> Result<CopyReport> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::io("pipe"))?;
    let mut from = Incoming::new(read, deadline)?;
    let mut to = Outgoing::new(write, deadline)?;
    let mut report = CopyReport::default();
    std::thread::scope(|scope| {
        let sent = std::thread::Builder::new()
            .name("adl-export".to_owned())
            .spawn_scoped(scope, move || {
                let mut work = || send(stacks, what, &mut to, options, &mut CopyReport::default());
                match namespace {
                    Some(namespace) => within(namespace, work)
                        .map_err(Error::io("enter a user namespace"))
                        .flatten(),
                    None => work(),
                }
            })
            .map_err(Error::io("start of a thread"))?;
        let made = to_tar(&mut from, out, options, &mut report);
        drop(from);
        match sent.join().unwrap_or(Err(Error::Protocol { why: "a copy that panicked" })) {
            // Who made the archive has stopped, and says why.
            Err(Error::Protocol { .. }) => made,
            sent => sent.and(made),
        }
    })?;
    Ok(report)
}

/// Sends what the layers hold, as one tree.
///
/// # Errors
/// As [`export`].
pub(crate) fn send(
    stacks: &[OpenedStack<'_>],
    what: Export,
    to: &mut Outgoing,
    options: &CopyOptions,
    report: &mut CopyReport,
) -> Result<()> {
    let against = match what {
        Export::Layer => Against::Image,
        Export::Tree => Against::Nothing,
    };
    let walk = Walk::new(stacks, against)?;
    let sender = Sender::new(Path::new("/"), to, options, report);
    let exporter = Exporter { walk, sender, what, waiting: Vec::new() };
    exporter.run().map_err(|error| match error {
        Error::Io { operation, path, source } if !path.as_os_str().is_empty() => {
            Error::File { operation, path, source }
        }
        error => error,
    })
}

/// How names begin that stand for what is not there, in a layer of an OCI image.
const WHITEOUT: &[u8] = b".wh.";
/// The name that says that nothing of the layers below is in a directory.
const OPAQUE: &CStr = c".wh..wh..opq";

struct Exporter<'a> {
    walk: Walk,
    sender: Sender<'a>,
    what: Export,
    /// Directories that the walk is in and that are as in the image: they are sent when something
    /// in them is.
    waiting: Vec<(CString, FileStat, Extended)>,
}

impl Exporter<'_> {
    fn run(mut self) -> Result<()> {
        if let What::Directory(stat) = self.walk.begin()?.what {
            let extended = self.sender.extended_of(self.walk.here(), c"")?;
            self.sender.directory(c"", &stat, &extended)?;
        }
        while let Some(step) = self.walk.next()? {
            self.sender.check_time()?;
            match step {
                Step::Item(item) => self.item(item)?,
                Step::Leave => {
                    if self.waiting.pop().is_none() {
                        self.sender.leave()?;
                    }
                }
            }
        }
        self.sender.flush()
    }

    fn item(&mut self, item: Item) -> Result<()> {
        let Item { name, what, change, shines, is_covered } = item;
        match what {
            What::Directory(stat) => {
                let extended = self.sender.extended_of(self.walk.here(), &name)?;
                self.waiting.push((name, stat, extended));
                if change.is_some() || shines || is_covered {
                    self.send_waiting()?;
                }
                if shines {
                    self.sender.empty_file(OPAQUE)?;
                }
            }
            What::Other { layer, stat } => {
                self.send_waiting()?;
                self.check(&name)?;
                let is_sent = matches!(kind_of(&stat), FileKind::File | FileKind::SymbolicLink);
                if shines && !is_sent {
                    self.whiteout(&name)?;
                }
                self.sender.other(self.walk.layer(layer), &name, &stat)?;
            }
            What::Gone if shines => {
                self.send_waiting()?;
                self.check(&name)?;
                self.whiteout(&name)?;
            }
            What::Gone => {}
        }
        Ok(())
    }

    fn send_waiting(&mut self) -> Result<()> {
        for (name, stat, extended) in std::mem::take(&mut self.waiting) {
            self.check(&name)?;
            self.sender.directory(&name, &stat, &extended)?;
        }
        Ok(())
    }

    fn whiteout(&mut self, name: &CStr) -> Result<()> {
        let name = [WHITEOUT, name.to_bytes()].concat();
        if name.len() > adl_protocol::MAX_NAME {
            return Err(Error::refused("a deletion whose mark would be too long a name"));
        }
        self.sender.empty_file(&CString::new(name).unwrap_or_default())
    }

    /// The format has no way to write such names down: whoever unpacks the layer would delete
    /// something instead.
    fn check(&self, name: &CStr) -> Result<()> {
        if self.what == Export::Layer && name.to_bytes().starts_with(WHITEOUT) {
            return Err(Error::refused("a name that begins with `.wh.`, in a layer"));
        }
        Ok(())
    }
}
