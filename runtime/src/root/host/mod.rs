//! The host image: the programs of the host, and around them a root without any of its data.

pub(crate) mod etc;
mod own;
pub(crate) mod rule;
mod secret;
mod seen;

use std::fs::{self, Metadata, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;

use crate::error::{Error, Result};
use crate::root::host::etc::HostImage;
use crate::root::private;
use crate::root::source::Source;
use crate::root::stack::{Layer, Stack};
use crate::store::{State, once};
use crate::sys::id_ranges;
use crate::sys::open::DIRECTORY;
use crate::sys::stamp::Stamp;

/// Directories of the host that the host image lies on. Where `/bin` and the others are symbolic
/// links into `/usr`, as they are in every current distribution, they are links inside too.
const PROGRAMS: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// What of the host's `/etc` changes while it is used: whoever makes a sandbox sees such a change
/// at once. What else is taken from there is looked at every few seconds. Where a link stands for
/// one of them, what it leads to in other distributions is named, too.
const CHANGING: [&str; 9] = [
    ".",
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "ssl/certs",
    "pki/tls/certs",
];

/// Where `ssl/certs` leads in openSUSE.
const CERTIFICATES: &str = "/var/lib/ca-certificates/pem";

const EMPTY: [(&str, u32); 16] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("etc/ssl", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

const FILES: [(&str, &str); 3] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n\
         services: files\nprotocols: files\nrpc: files\nethers: files\n",
    ),
];

/// Opens it: the root first, then what lies on it.
pub(super) fn open(state: &State) -> Result<Vec<Stack>> {
    let names = programs()?;
    let may_map = id_ranges::caller_may_map();
    let name = format!("host-{:016x}", fingerprint(state, &names)?);
    let skeleton = once::make_and_hold(state, &name, |aside| {
        let links = private::links(&names)?;
        fill(aside, &links).map_err(Error::at("make the host image", aside))
    })?;
    let root = Source::held(&skeleton.path, &skeleton.used)?;
    let mut stacks = vec![Stack::of_image("", root)];
    let above = match may_map {
        true => private::layer(state, &names)?,
        // Whoever has one id inside may read there what they may read here. But what is root's here
        // is no one's inside, so that root inside could not write there.
        false => own::layer(state)?,
    };
    for name in names {
        let of_host = Source::directory("open image", &Path::new("/").join(name).into())?;
        let mut stack = Stack::of_image(name, of_host.shared());
        if let Some(above) = &above
            && let at = above.path.join(name)
            && let Some(there) = look(&at).map_err(Error::at("stat", &at))?
            && there.is_dir()
        {
            let above = Source::held(&at, &above.used)?;
            stack.layers.insert(0, Layer::Image(above));
        }
        stacks.push(stack);
    }
    Ok(stacks)
}

impl HostImage {
    /// What a host image has of this machine beside `/usr`, and what it leaves out; `root` is `/`,
    /// or a directory with the root of another machine.
    ///
    /// # Errors
    /// [`Error::Io`] for what can't be read.
    pub fn of(root: &Path) -> Result<Self> {
        let links = private::find_links(root, &programs_in(root)?)?;
        etc::take(root, &links, None).map_err(Error::at("read", root))
    }

    /// What is taken and what never, as Markdown: the rule that [`HostImage::of`] goes by.
    pub fn rule() -> String {
        rule::as_markdown()
    }
}

/// The directories of programs that are no links.
fn programs() -> Result<Vec<&'static str>> {
    programs_in(Path::new("/"))
}

fn programs_in(root: &Path) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for name in PROGRAMS {
        let path = root.join(name);
        if look(&path).map_err(Error::at("stat", &path))?.is_some_and(|there| there.is_dir()) {
            found.push(name);
        }
    }
    Ok(found)
}

/// What is at a path, if anything is: a link itself.
fn look(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Changes when what the skeleton is made from does.
fn fingerprint(state: &State, programs: &[&str]) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), PROGRAMS, FILES).hash(&mut hasher);
    rule::hash(&mut hasher);
    private::links_sign(programs)?.hash(&mut hasher);
    let etc = Path::new("/etc");
    let etc = nix::fcntl::open(etc, DIRECTORY, Mode::empty()).map_err(Error::at("open", etc))?;
    let stamp = |name: &str| {
        let stamp = Stamp::beneath(&etc, Path::new(name));
        stamp.map_err(Error::at("stat", &Path::new("/etc").join(name)))
    };
    for name in CHANGING {
        stamp(name)?.hash(&mut hasher);
    }
    let certificates = Path::new(CERTIFICATES);
    let of_certificates = Stamp::of(&etc, certificates);
    of_certificates.map_err(Error::at("stat", certificates))?.hash(&mut hasher);
    let others = || {
        let mut hasher = DefaultHasher::new();
        for name in rule::TAKEN.iter().flat_map(|(_, names)| *names).filter(|n| !n.contains('*')) {
            stamp(name)?.hash(&mut hasher);
        }
        Ok(hasher.finish())
    };
    seen::others(state, hasher.finish(), others)?.hash(&mut hasher);
    Ok(hasher.finish())
}

fn fill(root: &Path, links: &[PathBuf]) -> io::Result<()> {
    for (name, mode) in EMPTY {
        let path = root.join(name);
        fs::create_dir(&path)?;
        // Whatever the caller's umask.
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    fs::set_permissions(root, Permissions::from_mode(0o755))?;
    for (name, content) in FILES {
        write(&root.join(name), content.as_bytes())?;
    }
    symlink("../usr/lib/os-release", root.join("etc/os-release"))?;
    symlink("../proc/self/mounts", root.join("etc/mtab"))?;
    for name in PROGRAMS {
        let of_host = Path::new("/").join(name);
        match look(&of_host)? {
            Some(metadata) if metadata.is_symlink() => {
                symlink(fs::read_link(&of_host)?, root.join(name))?;
            }
            Some(metadata) if metadata.is_dir() => {
                fs::create_dir(root.join(name))?;
                fs::set_permissions(root.join(name), Permissions::from_mode(0o755))?;
            }
            _ => {}
        }
    }
    etc::take(Path::new("/"), links, Some(root)).map(drop)
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::write(path, content)?;
    fs::set_permissions(path, Permissions::from_mode(0o644))
}
