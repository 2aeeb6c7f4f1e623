//! What is opened on the host, made into what init can mount.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use adl_protocol::{Access, DEV_INODES, DEV_SIZE, DEVICE, DEVICE_NODES, DeviceNode, Layer, Mount};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchownat};

use crate::error::{Error, Result};
use crate::root::source::Source;
use crate::root::stack::TreeKind;
use crate::sandbox::root::{Mounted, Part, Root};
use crate::store::directory::SandboxDirectory;
use crate::store::name::SUBVOLUME;
use crate::sys;
use crate::sys::open::{Purpose, beneath};

/// A part of a root file system with all that it lies on.
pub(crate) struct OpenedPart {
    at: PathBuf,
    access: Access,
    what: What,
}

enum What {
    Overlay(Vec<Source>),
    Volume(Source),
    Device(Source),
    Tmpfs { size: u64 },
}

impl OpenedPart {
    /// Opens the parts of a sandbox that has a directory.
    pub(crate) fn all(root: &Root, directory: &SandboxDirectory) -> Result<Vec<Self>> {
        root.parts.iter().map(|part| Self::open(part, directory)).collect()
    }

    fn open(part: &Part, directory: &SandboxDirectory) -> Result<Self> {
        let (at, access, what) = match part {
            Part::Tree { tree, access, .. } => {
                let what = match tree.kind {
                    TreeKind::Overlay => {
                        let layers = tree.layers.iter().map(crate::root::stack::Layer::open);
                        What::Overlay(layers.collect::<Result<_>>()?)
                    }
                    TreeKind::Subvolume => {
                        let path = directory.path().join(SUBVOLUME);
                        let fd = beneath(directory.as_fd(), SUBVOLUME, Purpose::List)
                            .map_err(Error::at("open", &path))?;
                        What::Volume(Source { path, base: None, fd: fd.into() })
                    }
                };
                (&tree.at, *access, what)
            }
            Part::Mount { at, what } => match what {
                Mounted::Volume { source, access } => (at, *access, What::Volume(source.clone())),
                Mounted::Device(source) => (at, Access::ReadWrite, What::Device(source.clone())),
                Mounted::Tmpfs { size } => (at, Access::ReadWrite, What::Tmpfs { size: *size }),
            },
        };
        Ok(Self { at: at.clone(), access, what })
    }
}

/// The descriptors of what init is to mount, in the order in which they are named.
pub(crate) struct Layers {
    user_namespace: Option<OwnedFd>,
    /// The id outside that is 0 inside, where there is a range of them.
    base: Option<u32>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Layers {
    pub(crate) fn new(user_namespace: Option<OwnedFd>, base: Option<u32>) -> Self {
        Self { user_namespace, base, descriptors: Vec::new() }
    }

    /// Names a part to init.
    pub(crate) fn mount<'a>(&mut self, part: &'a OpenedPart) -> Result<Mount<'a>> {
        let what = match &part.what {
            What::Overlay(layers) => adl_protocol::What::Overlay(
                layers
                    .iter()
                    .map(|layer| self.add(layer.as_fd(), &layer.path))
                    .collect::<Result<_>>()?,
            ),
            What::Volume(source) => adl_protocol::What::Volume(self.add_with(
                source.as_fd(),
                &source.path,
                sys::Below::Included,
            )?),
            What::Device(source) => adl_protocol::What::Device(self.device(source)?),
            What::Tmpfs { size } => adl_protocol::What::Tmpfs { size: *size },
        };
        Ok(Mount { at: part.at.as_os_str().as_bytes(), access: part.access, what })
    }

    /// As root: a detached mount in which the ids of files are those of the sandbox, whatever
    /// they are on disk. Otherwise the path, to be opened by init in a mount namespace of its own.
    pub(crate) fn add<'a>(&mut self, fd: BorrowedFd<'_>, path: &'a Path) -> Result<Layer<'a>> {
        self.add_with(fd, path, sys::Below::LeftOut)
    }

    fn add_with<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &'a Path,
        below: sys::Below,
    ) -> Result<Layer<'a>> {
        let Some(user_namespace) = &self.user_namespace else { return by_path(fd, path) };
        let mount = sys::detached_mount(fd, below).map_err(Error::at("open_tree", path))?;
        sys::map_ids(mount.as_fd(), user_namespace.as_fd(), below)
            .map_err(|error| no_id_mapping(path, error))?;
        self.descriptors.push(mount);
        Ok(Layer::Descriptor)
    }

    /// As root: a node of the same device that belongs to root inside, since the host's file system
    /// of devices can't map ids. Otherwise the path.
    fn device<'a>(&mut self, source: &'a Source) -> Result<Layer<'a>> {
        let Some(base) = self.base else { return by_path(source.as_fd(), &source.path) };
        let stat = fstat(&source.fd).map_err(Error::at("stat", &source.path))?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let mode = Mode::from_bits_truncate(stat.st_mode);
        let make = || {
            let options = [(c"size", c"4096"), (c"nr_inodes", c"4"), (c"mode", c"0711")];
            let place = sys::detached_tmpfs(&options)?;
            make_node(&place, DEVICE, (kind, mode), stat.st_rdev, base)?;
            Ok::<_, io::Error>(place)
        };
        self.descriptors.push(make().map_err(Error::at("make a node of", &source.path))?);
        Ok(Layer::Descriptor)
    }
}

/// The file system of `/dev` of one sandbox, with its device nodes; it belongs to root inside.
pub(crate) fn dev(base: u32) -> Result<OwnedFd> {
    // The owner is none of the options, which show inside.
    let options = [
        (c"source", c"tmpfs"),
        (c"size", DEV_SIZE),
        (c"nr_inodes", DEV_INODES),
        (c"mode", c"0755"),
    ];
    let make = || {
        let dev = sys::detached_tmpfs(&options)?;
        let (uid, gid) = (Uid::from_raw(base), Gid::from_raw(base));
        fchownat(&dev, c"", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?;
        let mode = (SFlag::S_IFCHR, Mode::from_bits_truncate(0o666));
        for DeviceNode { name, major, minor } in DEVICE_NODES {
            make_node(&dev, name, mode, makedev(major.into(), minor.into()), base)?;
        }
        Ok::<_, io::Error>(dev)
    };
    make().map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => Error::Unsupported {
            what: "a /dev of the sandbox's own".to_owned(),
            why: format!("making device nodes on a tmpfs: {source}"),
            fix:
                "run as root with CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER and CAP_MKNOD, or as an \
                  ordinary user"
                    .to_owned(),
        },
        _ => Error::io("make a tmpfs with device nodes for")(source),
    })
}

/// Makes a device node that belongs to root inside.
fn make_node<P: ?Sized + nix::NixPath>(
    at: &OwnedFd,
    name: &P,
    (kind, mode): (SFlag, Mode),
    device: u64,
    base: u32,
) -> nix::Result<()> {
    mknodat(at, name, kind, mode, device)?;
    let (uid, gid) = (Uid::from_raw(base), Gid::from_raw(base));
    fchownat(at, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    // Whatever the caller's umask.
    fchmodat(at, name, mode, FchmodatFlags::FollowSymlink)
}

fn by_path<'a>(fd: BorrowedFd<'_>, path: &'a Path) -> Result<Layer<'a>> {
    let stat = fstat(fd).map_err(Error::at("stat", path))?;
    let path = path.as_os_str().as_bytes();
    Ok(Layer::Path { path, device: stat.st_dev, inode: stat.st_ino })
}

fn no_id_mapping(path: &Path, source: io::Error) -> Error {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EINVAL | Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
            Error::Unsupported {
                what: format!("an id-mapped mount of {path:?}"),
                why: format!("mount_setattr: {source}"),
                fix:
                    "put it on a file system that can map ids: ext4, xfs or btrfs on Linux 5.19 or \
                      later, tmpfs from 6.3 on"
                        .to_owned(),
            }
        }
        _ => Error::at("mount_setattr", path)(source),
    }
}
