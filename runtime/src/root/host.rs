//! The host image: the programs of the host, and around them a root without any of its data.

use std::fs::{self, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::config::Network;
use crate::error::{Error, Result};
use crate::root::source::Source;
use crate::root::stack::{Layer, Stack};
use crate::root::{once, private};
use crate::store::State;
use crate::sys::id_ranges;

/// Directories of the host that the host image lies on. Where `/bin` and the others are symbolic
/// links into `/usr`, as they are in every current distribution, they are links inside too.
const PROGRAMS: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// What of the host's `/etc` is inside, as far as it is there and anyone may read it: what
/// programs in `/usr` need to start, and nothing that says who uses the host for what.
const CONFIGURATION: [&str; 7] = [
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "ssl/certs",
];

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
        "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    ),
];

/// Opens it: the root first, then what lies on it.
pub(super) fn open(state: &State, network: Network) -> Result<Vec<Stack>> {
    let name = format!("host-{:016x}", fingerprint(network));
    let skeleton = once::make_once(state, &name, |aside| {
        fill_skeleton(aside, network).map_err(Error::at("make the host image", aside))
    })?;
    let root = Source::directory("open image", &skeleton.into())?;
    let mut stacks = vec![Stack::of_image("", root)];
    let is_directory = |name: &&str| {
        fs::symlink_metadata(Path::new("/").join(name)).is_ok_and(|metadata| metadata.is_dir())
    };
    let names: Vec<&str> = PROGRAMS.into_iter().filter(is_directory).collect();
    // Whoever has one id inside may read there what they may read here.
    let private = match id_ranges::caller_may_map() {
        true => private::layer(state, &names)?,
        false => None,
    };
    for name in names {
        let of_host = Source::directory("open image", &Path::new("/").join(name).into())?;
        let mut stack = Stack::of_image(name, of_host);
        if let Some(hiding) =
            private.as_ref().map(|layer| layer.join(name)).filter(|at| at.is_dir())
        {
            let hiding = Source::directory("open image", &hiding.into())?;
            stack.layers.insert(0, Layer::Image(hiding));
        }
        stacks.push(stack);
    }
    Ok(stacks)
}

/// Changes when what the skeleton is made from does.
fn fingerprint(network: Network) -> u64 {
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), network == Network::Host, PROGRAMS, FILES).hash(&mut hasher);
    let sources = CONFIGURATION.iter().chain(resolver(network));
    for name in sources {
        if let Ok(metadata) = fs::metadata(Path::new("/etc").join(name)) {
            (name, metadata.mtime(), metadata.mtime_nsec(), metadata.size()).hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// Where to resolve names, for those that can reach it.
fn resolver(network: Network) -> Option<&'static &'static str> {
    (network == Network::Host).then_some(&"resolv.conf")
}

fn fill_skeleton(root: &Path, network: Network) -> io::Result<()> {
    for (name, mode) in EMPTY {
        let path = root.join(name);
        fs::create_dir(&path)?;
        // Whatever the caller's umask.
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    fs::set_permissions(root, Permissions::from_mode(0o755))?;
    for (name, content) in FILES {
        let path = root.join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, Permissions::from_mode(0o644))?;
    }
    symlink("../usr/lib/os-release", root.join("etc/os-release"))?;
    symlink("../proc/self/mounts", root.join("etc/mtab"))?;
    for name in PROGRAMS {
        let of_host = Path::new("/").join(name);
        match fs::symlink_metadata(&of_host) {
            Ok(metadata) if metadata.is_symlink() => {
                symlink(fs::read_link(&of_host)?, root.join(name))?;
            }
            Ok(metadata) if metadata.is_dir() => {
                fs::create_dir(root.join(name))?;
                fs::set_permissions(root.join(name), Permissions::from_mode(0o755))?;
            }
            _ => {}
        }
    }
    for name in CONFIGURATION.iter().chain(resolver(network)) {
        copy_public(&Path::new("/etc").join(name), &root.join("etc").join(name))?;
    }
    Ok(())
}

/// Copies what anyone may read: directories, links as links, files; anything else is left out.
fn copy_public(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(from) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if metadata.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if metadata.mode() & 0o004 == 0 {
        return Ok(());
    }
    if metadata.is_file() {
        fs::write(to, fs::read(from)?)?;
        fs::set_permissions(to, Permissions::from_mode(0o644))?;
    } else if metadata.is_dir() {
        fs::create_dir(to)?;
        fs::set_permissions(to, Permissions::from_mode(0o755))?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_public(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
