//! The files that a sandbox has of its own in `/etc`: which, and what is in them.

use std::ffi::CStr;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use crate::config::{EtcFiles, Network};
use crate::error::{Error, Result, found};
use crate::image::is_opaque;
use crate::root::host::etc::public_content;
use crate::root::stack::{Layer, Stack};
use crate::store::name::{HOSTNAME, HOSTS, RESOLV_CONF};
use crate::store::subordinate::{Subordinate, as_owner};
use crate::sys::id_ranges::Ids;
use crate::sys::open::{self, Mounts, Purpose};

/// What a `hosts` begins with.
const HOSTS_BEGIN: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// The longest `resolv.conf` of the host's that is taken, and the longest `hosts`, in bytes.
const LONGEST: usize = 16 << 10;
const LONGEST_HOSTS: usize = 128 << 10;

/// The names of those that a sandbox has of its own, on top of a root.
///
/// What snapshots have kept does not count as the image's: such files are made anew in each life.
pub(crate) fn names(
    which: EtcFiles,
    network: &Network,
    root: Option<&Stack>,
) -> Result<Vec<&'static CStr>> {
    let Some(root) = root.filter(|_| which != EtcFiles::None) else { return Ok(Vec::new()) };
    let mut names = vec![HOSTS, HOSTNAME];
    if *network != Network::None {
        names.push(RESOLV_CONF);
    }
    if which == EtcFiles::Missing {
        let mut found = Vec::new();
        let layers = root.layers.iter().filter(|layer| matches!(layer, Layer::Image(_)));
        let mut layers = layers.peekable();
        while let Some(layer) = layers.next() {
            if names.iter().all(|name| found.iter().any(|(other, _)| other == name)) {
                break;
            }
            let layer = layer.open()?;
            let failed = |errno| Error::at("look for files of /etc in", &layer.path)(errno);
            // Most of many layers have none.
            let Some(etc) = open_etc(layer.as_fd()).map_err(failed)? else { continue };
            for &name in &names {
                // The topmost counts.
                if found.iter().all(|(other, _)| *other != name)
                    && let Some(has_content) = look(layer.as_fd(), name).map_err(failed)?
                {
                    found.push((name, has_content));
                }
            }
            if layers.peek().is_none() || hides_below(layer.as_fd(), &etc).map_err(failed)? {
                break;
            }
        }
        names.retain(|name| !found.contains(&(name, true)));
    }
    Ok(names)
}

/// Opens what a layer has as `/etc`, if it has that.
fn open_etc(layer: impl AsFd) -> nix::Result<Option<OwnedFd>> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(layer, c"etc", flags, Mode::empty()) {
        Ok(etc) => Ok(Some(etc)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whether nothing shows of the `/etc` of the layers below.
fn hides_below(layer: impl AsFd, etc: &OwnedFd) -> nix::Result<bool> {
    if kind(&fstat(etc)?) != SFlag::S_IFDIR {
        return Ok(true);
    }
    Ok(is_opaque(open::entry(layer, c"etc", Purpose::List, Mounts::Entered)?.as_fd()))
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
        (hostname, network): (&str, &Network),
        ids: Ids,
        subordinate: Option<Subordinate>,
    ) -> Result<Self> {
        let mut this = Self::default();
        let Some(root) = root.filter(|_| !names.is_empty()) else { return Ok(this) };
        let Some(attributes) = attributes(root, ids, subordinate)? else { return Ok(this) };
        this.attributes = attributes;
        for &name in names {
            let content = if name == HOSTS {
                let of_host = match network {
                    Network::Host | Network::Join(_) => {
                        content_of_host("/etc/hosts", LONGEST_HOSTS)?
                    }
                    Network::None => Vec::new(),
                };
                hosts(of_host, hostname)
            } else if name == HOSTNAME {
                format!("{hostname}\n").into_bytes()
            } else {
                resolv_conf(network)?
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
            open_etc(layer.as_fd()).map_err(Error::at("look for /etc in", &layer.path))
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

/// What knows localhost, a host name, and what the host's file has.
fn hosts(of_host: Vec<u8>, hostname: &str) -> Vec<u8> {
    let has = |name: &str| {
        let mut lines = of_host.split(|byte| *byte == b'\n');
        lines.any(|line| {
            let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
            let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            words.next();
            words.any(|word| word == name.as_bytes())
        })
    };
    let (has_localhost, has_hostname) = (has("localhost"), has(hostname));
    let mut content = if has_localhost { Vec::new() } else { HOSTS_BEGIN.as_bytes().to_owned() };
    content.extend(of_host);
    if !content.ends_with(b"\n") {
        content.push(b'\n');
    }
    if !has_hostname {
        content.extend_from_slice(format!("127.0.0.1\t{hostname}\n").as_bytes());
    }
    content
}

/// Whom the host asks for names. Where it asks a resolver of its own on a loopback address alone,
/// which is another's in another network, that tells whom it asks.
fn resolv_conf(network: &Network) -> Result<Vec<u8>> {
    const OF_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
    let content = content_of_host("/etc/resolv.conf", LONGEST)?;
    if matches!(network, Network::Join(_)) && asks_loopback_alone(&content) {
        let other = content_of_host(OF_RESOLVED, LONGEST)?;
        if !other.is_empty() {
            return Ok(other);
        }
    }
    Ok(content)
}

fn asks_loopback_alone(content: &[u8]) -> bool {
    let text = String::from_utf8_lossy(content);
    let mut servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == "nameserver")?;
        words.next()?.split('%').next()?.parse::<IpAddr>().ok()
    });
    let first = servers.next();
    first.is_some_and(|first| first.is_loopback()) && servers.all(|server| server.is_loopback())
}

/// What a file of the host's says, wherever that is, if anyone may read it and it is not too long;
/// nothing otherwise.
fn content_of_host(path: &str, longest: usize) -> Result<Vec<u8>> {
    let path = Path::new(path);
    let content = found(public_content(path)).map_err(Error::at("read", path))?.flatten();
    let fits = |content: &Vec<u8>| content.len() <= longest && !content.contains(&0);
    Ok(content.filter(fits).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{HOSTS_BEGIN, asks_loopback_alone, hosts};

    #[test]
    fn a_resolver_on_loopback_alone_is_told() {
        for (content, is_so) in [
            ("nameserver 127.0.0.53\noptions edns0\n", true),
            ("# nameserver 192.0.2.1\nnameserver ::1\nnameserver\t127.0.0.1\n", true),
            ("nameserver 127.0.0.53\nnameserver 192.0.2.1\n", false),
            ("nameserver fe80::1%eth0\n", false),
            ("search example\n", false),
            ("", false),
        ] {
            assert_eq!(asks_loopback_alone(content.as_bytes()), is_so, "{content}");
        }
    }

    #[test]
    fn hosts_know_localhost_and_the_own_name_whatever_the_hosts_file_has() {
        let of = |of_host: &str| String::from_utf8(hosts(of_host.into(), "box")).unwrap();
        assert_eq!(of(""), format!("{HOSTS_BEGIN}127.0.0.1\tbox\n"));
        let name = "192.0.2.7 db.internal";
        assert_eq!(of(name), format!("{HOSTS_BEGIN}{name}\n127.0.0.1\tbox\n"));
        let known = "127.0.0.1\tlocalhost\n192.0.2.7 db # box\n";
        assert_eq!(of(known), format!("{known}127.0.0.1\tbox\n"));
        let all = "127.0.0.1 localhost\n127.0.1.1 host box\n";
        assert_eq!(of(all), all);
    }
}
