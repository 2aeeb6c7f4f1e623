//! Makes detached mounts, and `/dev`, of what was opened on the host, for init to mount.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use adl_protocol::{DEV_INODES, DEVICE, DEVICE_NODES, DeviceNode, Layer, Mount, Upper, What};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchownat};

use crate::cgroup::Group;
use crate::config::mount::TmpfsOptions;
use crate::error::{Error, Result};
use crate::root::mounts::{OpenedMount, is_usual};
use crate::root::source::Source;
use crate::root::stack::StackKind;
use crate::sandbox::root::Root;
use crate::store::directory::SandboxDirectory;
use crate::store::name::SUBVOLUME;
use crate::sys;
use crate::sys::mount::{
    Below, detached_mapped_mount, detached_mount, detached_tmpfs, make_private, map_ids,
};
use crate::sys::open::{Purpose, beneath};
use crate::sys::own_namespaces::{OwnNamespaces, Wanted};

/// The descriptors of what init is to mount, in the order in which they are named.
pub(crate) struct Descriptors {
    user_namespace: Option<OwnedFd>,
    /// The id outside that is 0 inside, where there is a range of them.
    base: Option<u32>,
    /// How an ordinary user's init comes to what it has no descriptors of yet.
    sources: Sources,
    all: Vec<OwnedFd>,
}

/// How an ordinary user's init comes to what it is to mount.
enum Sources {
    /// By its path.
    Paths,
    /// It will, when the mounts of these are made.
    Wanted(Vec<Wanted>),
    /// By mounts that are made already, of what is named in the same order.
    Cloned,
}

impl Descriptors {
    pub(crate) fn new(user_namespace: Option<OwnedFd>, base: Option<u32>) -> Self {
        Self { user_namespace, base, sources: Sources::Paths, all: Vec::new() }
    }

    /// For an ordinary user, to find out which mounts there are to be.
    fn to_clone() -> Self {
        Self { sources: Sources::Wanted(Vec::new()), ..Self::new(None, None) }
    }

    /// Those that were made by [`clone_sources`].
    pub(crate) fn cloned(all: Vec<OwnedFd>) -> Self {
        Self { sources: Sources::Cloned, all, ..Self::new(None, None) }
    }

    /// Names all that the root is put together from.
    pub(crate) fn name_all<'a>(
        &mut self,
        root: &'a Root,
        directory: &SandboxDirectory,
    ) -> Result<(Upper<'static>, Vec<Mount<'a>>)> {
        let upper = match root.memory() {
            Some(size) => Upper::Memory { size },
            None => Upper::Disk(self.upper(directory)?),
        };
        let mounts = root.mounts.iter().map(|mount| self.mount(mount, directory));
        Ok((upper, mounts.collect::<Result<_>>()?))
    }

    /// As numbers, to be sent.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = RawFd> {
        self.all.iter().map(AsRawFd::as_raw_fd)
    }

    /// Names a mount to init; `directory` is the sandbox's.
    fn mount<'a>(
        &mut self,
        mount: &'a OpenedMount,
        directory: &SandboxDirectory,
    ) -> Result<Mount<'a>> {
        let what = match mount {
            OpenedMount::Stack { stack, .. } => match stack.kind {
                StackKind::Overlay => {
                    let layers = stack.layers.iter().map(|layer| self.add(&layer.open()?));
                    What::Overlay(layers.collect::<Result<_>>()?)
                }
                StackKind::Subvolume => {
                    What::Volume(self.add_with(&subvolume(directory)?, Below::Included)?)
                }
            },
            OpenedMount::Volume { source, .. } => {
                What::Volume(self.add_with(source, Below::Included)?)
            }
            OpenedMount::Device { source, .. } => What::Device(self.device(source)?),
            OpenedMount::Tmpfs { size, options, .. } => match self.base {
                Some(base) if !is_usual(*options) => {
                    let made = tmpfs(*size, *options, base);
                    let failed = || Error::at("make a tmpfs for", mount.at());
                    self.all.push(made.map_err(|error| failed()(error))?);
                    What::Volume(Layer::Descriptor)
                }
                _ => What::Tmpfs { size: *size },
            },
        };
        Ok(Mount { at: mount.at().as_os_str().as_bytes(), access: mount.access(), what })
    }

    /// Names the directory that has the uppers.
    fn upper(&mut self, directory: &SandboxDirectory) -> Result<Layer<'static>> {
        self.directory(directory.as_fd(), directory.path(), Below::LeftOut)
    }

    /// The cgroups of a sandbox, with the names that their hierarchies have in `/sys/fs/cgroup`.
    pub(crate) fn cgroups(
        &mut self,
        group: Option<&Group>,
    ) -> Result<Vec<(String, Layer<'static>)>> {
        let mut cgroups = Vec::new();
        for (names, path) in group.map(Group::views).unwrap_or_default() {
            // Made just now, where nothing but this process's user can put anything else.
            let cgroup = Source::directory("open cgroup", &path.into())?;
            let layer = match self.base {
                Some(_) => {
                    let mount = detached_mount(cgroup.as_fd(), Below::LeftOut)
                        .map_err(Error::at("open_tree", &cgroup.path))?;
                    make_private(mount.as_fd(), Below::LeftOut)
                        .map_err(Error::at("mount_setattr", &cgroup.path))?;
                    self.all.push(mount);
                    Layer::Descriptor
                }
                None => by_path(cgroup.as_fd(), &cgroup.path)?,
            };
            cgroups.push((names.join(","), layer));
        }
        Ok(cgroups)
    }

    fn add(&mut self, source: &Source) -> Result<Layer<'static>> {
        self.add_with(source, Below::LeftOut)
    }

    fn add_with(&mut self, source: &Source, below: Below) -> Result<Layer<'static>> {
        self.directory(source.as_fd(), &source.path, below)
    }

    /// As root: a detached mount in which the ids of files are those of the sandbox, whatever
    /// they are on disk.
    fn directory(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &Path,
        below: Below,
    ) -> Result<Layer<'static>> {
        let Some(user_namespace) = &self.user_namespace else {
            return self.users(fd, path, below);
        };
        let user_namespace = user_namespace.as_fd();
        let mount = match detached_mapped_mount(fd, user_namespace, below) {
            Ok(mount) => mount,
            // In two steps: on an older kernel, and to tell which of them fails.
            Err(_) => {
                let mount = detached_mount(fd, below).map_err(Error::at("open_tree", path))?;
                map_ids(mount.as_fd(), user_namespace, below).map_err(|error| {
                    let inner = match below {
                        Below::Included => self.first_unmapped(fd, user_namespace),
                        Below::LeftOut => None,
                    };
                    no_id_mapping(path, inner.as_deref(), error)
                })?;
                mount
            }
        };
        self.all.push(mount);
        Ok(Layer::Descriptor)
    }

    /// For an ordinary user: a mount that was made already or will be, or the path, to be opened by
    /// init in a mount namespace of its own.
    fn users(&mut self, fd: BorrowedFd<'_>, path: &Path, below: Below) -> Result<Layer<'static>> {
        match &mut self.sources {
            Sources::Paths => return by_path(fd, path),
            Sources::Wanted(all) => {
                let file = fd.try_clone_to_owned().map_err(Error::io("dup"))?;
                all.push(Wanted { file, below });
            }
            Sources::Cloned => {}
        }
        Ok(Layer::Descriptor)
    }

    /// The first of the mounts below a directory whose ids can't be mapped.
    fn first_unmapped(
        &self,
        directory: BorrowedFd<'_>,
        user_namespace: BorrowedFd<'_>,
    ) -> Option<PathBuf> {
        let path = sys::proc::path_of(directory).ok()?;
        let is_mapped = |mount: &Path| {
            let opened = beneath(directory, mount, Purpose::Look)?;
            let mount = detached_mount(opened.as_fd(), Below::LeftOut)?;
            map_ids(mount.as_fd(), user_namespace, Below::LeftOut)
        };
        let mounts = sys::proc::mount_points().ok()?;
        mounts.into_iter().find(|mount| {
            let below = mount.strip_prefix(&path).ok();
            // What can't be tried is not what is looked for.
            below.is_some_and(|below| {
                below != Path::new("") && is_mapped(below).is_err_and(|error| is_refusal(&error))
            })
        })
    }

    /// As root: a node of the same device that belongs to root inside, since the host's file system
    /// of devices can't map ids.
    fn device(&mut self, source: &Source) -> Result<Layer<'static>> {
        let Some(base) = self.base else {
            return self.users(source.as_fd(), &source.path, Below::LeftOut);
        };
        let stat = fstat(&source.fd).map_err(Error::at("stat", &source.path))?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let mode = Mode::from_bits_truncate(stat.st_mode);
        let make = || {
            let options = [(c"size", c"4096"), (c"nr_inodes", c"4"), (c"mode", c"0711")];
            let place = detached_tmpfs(&options, false)?;
            make_node(&place, DEVICE, (kind, mode), stat.st_rdev, base)?;
            Ok::<_, io::Error>(place)
        };
        self.all.push(make().map_err(Error::at("make a node of", &source.path))?);
        Ok(Layer::Descriptor)
    }
}

/// Makes the mounts of all that an ordinary user's root is put together from, in the order in which
/// they are named.
///
/// # Errors
/// Where one of them can't be had. Init may have it by its path.
pub(crate) fn clone_sources(
    namespaces: &OwnNamespaces,
    root: &Root,
    directory: &SandboxDirectory,
) -> Result<Vec<OwnedFd>> {
    let mut descriptors = Descriptors::to_clone();
    descriptors.name_all(root, directory)?;
    let Sources::Wanted(wanted) = descriptors.sources else { return Ok(Vec::new()) };
    namespaces.clone_mounts(&wanted).map_err(Error::io("clone what the root is made of"))
}

/// The root of a sandbox, where that is a subvolume.
fn subvolume(directory: &SandboxDirectory) -> Result<Source> {
    let path = directory.path().join(SUBVOLUME);
    let fd =
        beneath(directory.as_fd(), SUBVOLUME, Purpose::List).map_err(Error::at("open", &path))?;
    Ok(Source::opened(path, fd))
}

/// A tmpfs that is not as init makes them, with the owner that it is to have inside.
fn tmpfs(size: u64, options: TmpfsOptions, base: u32) -> io::Result<OwnedFd> {
    // Inodes take memory that the size does not count, about a KiB each.
    let inodes = (size / 4096).saturating_add(1024);
    let text = |number: String| CString::new(number).unwrap_or_default();
    let (size, inodes) = (text(size.to_string()), text(inodes.to_string()));
    let mode = text(format!("{:o}", options.mode));
    let made = detached_tmpfs(
        &[
            (c"source", c"tmpfs"),
            (c"size", size.as_c_str()),
            (c"nr_inodes", inodes.as_c_str()),
            (c"mode", mode.as_c_str()),
        ],
        options.can_execute,
    )?;
    // The owner is none of the options, which show inside.
    let id = |id: u32| base.checked_add(id).ok_or(Errno::EINVAL);
    let (uid, gid) = (Uid::from_raw(id(options.uid)?), Gid::from_raw(id(options.gid)?));
    fchownat(&made, c"", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?;
    // The change of owner may have taken bits of it.
    sys::change_mode(&made, Mode::from_bits_truncate(options.mode))?;
    Ok(made)
}

/// The file system of `/dev` of one sandbox, with its device nodes; it belongs to root inside.
pub(crate) fn dev(base: u32, size: u64) -> Result<OwnedFd> {
    let size = CString::new(size.to_string()).unwrap_or_default();
    // The owner is none of the options, which show inside.
    let options = [
        (c"source", c"tmpfs"),
        (c"size", size.as_c_str()),
        (c"nr_inodes", DEV_INODES),
        (c"mode", c"0755"),
    ];
    let make = || {
        let dev = detached_tmpfs(&options, false)?;
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
        _ => Error::io("make a tmpfs with device nodes")(source),
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

fn by_path(fd: BorrowedFd<'_>, path: &Path) -> Result<Layer<'static>> {
    let stat = fstat(fd).map_err(Error::at("stat", path))?;
    let path = path.as_os_str().as_bytes().to_owned().into();
    Ok(Layer::Path { path, device: stat.st_dev, inode: stat.st_ino })
}

/// Whether the kernel says so of what can't be mapped.
fn is_refusal(error: &io::Error) -> bool {
    use Errno::{EINVAL, ENOSYS, EOPNOTSUPP, EPERM};
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(EINVAL | EPERM | EOPNOTSUPP | ENOSYS))
}

/// `inner` is what is mounted below, if that is the matter.
fn no_id_mapping(path: &Path, inner: Option<&Path>, source: io::Error) -> Error {
    if !is_refusal(&source) {
        return Error::at("mount_setattr", path)(source);
    }
    let fix = match inner {
        None => {
            "put it on a file system that can map ids: ext4, xfs or btrfs on Linux 5.19 or later, \
             tmpfs from 6.3 on"
                .to_owned()
        }
        Some(_) => format!(
            "it is mounted below the volume {path:?}: make volumes of the directories beside it, \
             or have that copied on write, which leaves out what is mounted in it"
        ),
    };
    Error::Unsupported {
        what: format!("an id-mapped mount of {:?}", inner.unwrap_or(path)),
        why: format!("mount_setattr: {source}"),
        fix,
    }
}
