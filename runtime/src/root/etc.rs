//! The files that a sandbox has of its own in `/etc`: which, and what is in them.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use crate::config::{EtcFiles, Network};
use crate::error::{Error, Result};
use crate::root::host::etc::public_content;
use crate::root::stack::{Layer, Stack};
use crate::store::subordinate::{Subordinate, as_owner};
use crate::sys::id_ranges::Ids;
use crate::sys::open;

const HOSTS: &CStr = c"hosts";
const HOSTNAME: &CStr = c"hostname";
const RESOLV_CONF: &CStr = c"resolv.conf";

/// What a `hosts` begins with.
const HOSTS_BEGIN: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// The longest `resolv.conf`, in bytes.
const LONGEST: usize = 16 << 10;

/// The names of those that a sandbox has of its own, on top of a root.
///
/// What snapshots have kept does not count as the image's: such files are made anew in each life.
pub(crate) fn names(
    which: EtcFiles,
    network: Network,
    root: Option<&Stack>,
) -> Result<Vec<&'static CStr>> {
    let Some(root) = root.filter(|_| which != EtcFiles::None) else { return Ok(Vec::new()) };
    let mut names = vec![HOSTS, HOSTNAME];
    if network == Network::Host {
        names.push(RESOLV_CONF);
    }
    if which == EtcFiles::Missing {
        let mut found = Vec::new();
        for layer in root.layers.iter().filter(|layer| matches!(layer, Layer::Image(_))) {
            let layer = layer.open()?;
            for &name in &names {
                // The topmost counts.
                if found.iter().all(|(other, _)| *other != name)
                    && let Some(has_content) = look(layer.as_fd(), name)
                        .map_err(Error::at("look for files of /etc in", &layer.path))?
                {
                    found.push((name, has_content));
                }
            }
        }
        names.retain(|name| !found.contains(&(name, true)));
    }
    Ok(names)
}

/// Whether a file of an image holds anything; `None` if there is none. A link leads where it would
/// lead inside.
fn look(image: impl AsFd, name: &CStr) -> nix::Result<Option<bool>> {
    let path = [b"etc/", name.to_bytes()].concat();
    match open::in_root(image, path.as_slice()) {
        Ok(file) => {
            let stat = fstat(file)?;
            // The mark of an overlay for what is not there.
            Ok(Some(!is_whiteout(&stat) && (kind(&stat) != SFlag::S_IFREG || stat.st_size != 0)))
        }
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

/// The contents of files, as init takes them.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Mode, owner and group of the directory.
    pub(crate) attributes: [u32; 3],
    /// In turn a name and what is in it.
    pub(crate) files: Vec<u8>,
}

impl Contents {
    /// What is in the files of these names, in one life of a sandbox. There are none where `/etc`
    /// is no directory: a guest may have put a link there before a snapshot.
    pub(crate) fn new(
        names: &[&CStr],
        root: Option<&Stack>,
        hostname: &str,
        ids: Ids,
        subordinate: Option<Subordinate>,
    ) -> Result<Self> {
        let mut this = Self::default();
        let Some(root) = root.filter(|_| !names.is_empty()) else { return Ok(this) };
        let Some(attributes) = attributes(root, ids, subordinate)? else { return Ok(this) };
        this.attributes = attributes;
        for &name in names {
            let content = if name == HOSTS {
                format!("{HOSTS_BEGIN}127.0.0.1\t{hostname}\n").into_bytes()
            } else if name == HOSTNAME {
                format!("{hostname}\n").into_bytes()
            } else {
                resolver()
            };
            // What no such file has.
            if !content.is_empty() && !content.contains(&0) {
                this.files.extend_from_slice(name.to_bytes_with_nul());
                this.files.extend_from_slice(&content);
                this.files.push(0);
            }
        }
        Ok(this)
    }
}

/// Mode, owner and group of `/etc`; `None` if that is no directory.
fn attributes(
    root: &Stack,
    ids: Ids,
    subordinate: Option<Subordinate>,
) -> Result<Option<[u32; 3]>> {
    let new = match ids {
        Ids::Range(_) => [0o755, 0, 0],
        Ids::One { uid, gid } => [0o755, uid, gid],
    };
    for layer in &root.layers {
        // Looked at from here, where owners are those outside, however it was opened.
        let etc = as_owner(|| {
            let layer = layer.open()?;
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            match openat(layer.as_fd(), c"etc", flags, Mode::empty()) {
                Ok(etc) => Ok(Some(etc)),
                Err(Errno::ENOENT) => Ok(None),
                Err(errno) => Err(Error::at("look for /etc in", &layer.path)(errno)),
            }
        })?;
        let Some(etc) = etc else { continue };
        let stat = fstat(&etc).map_err(Error::io("stat of /etc"))?;
        if kind(&stat) != SFlag::S_IFDIR {
            return Ok(is_whiteout(&stat).then_some(new));
        }
        let [uid, gid] = match (ids, subordinate) {
            (Ids::Range(length), None) => [stat.st_uid, stat.st_gid].map(|id| inside(id, length)),
            (Ids::Range(length), Some(subordinate)) => {
                subordinate.inside(stat.st_uid, stat.st_gid, length)
            }
            (Ids::One { uid, gid }, _) => [uid, gid],
        };
        return Ok(Some([stat.st_mode & 0o7777, uid, gid]));
    }
    Ok(Some(new))
}

/// An owner as it shows inside.
fn inside(id: u32, length: u32) -> u32 {
    /// The kernel's for what is not mapped.
    const OVERFLOW: u32 = 65_534;
    if id < length { id } else { OVERFLOW }
}

/// How the host resolves names: what is in its file, wherever that is, if anyone may read it.
/// Nothing otherwise.
fn resolver() -> Vec<u8> {
    let content = public_content(Path::new("/etc/resolv.conf")).ok().flatten();
    content.filter(|content| content.len() <= LONGEST).unwrap_or_default()
}
