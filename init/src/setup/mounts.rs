//! Assembles the root file system out of layers, volumes and the rest, and makes it the root.
//!
//! All of it happens in init's own mount namespace. The layers are gathered on a small tmpfs, the
//! scratch, under short names, so that no path of the host shows in what the guest can read of
//! its mounts, and no character in a path can break the options of overlayfs. The scratch is the
//! working directory meanwhile, and paths are relative to it. What lies in a root file system made
//! from an image is reached by descriptor, with no symbolic link followed ([`directory_in_root`])
//! or none that leads out ([`target`]): the host's root is still there to be reached.

use alloc::collections::VecDeque;
use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec::{self, Vec};
use core::ffi::CStr;

use adl_protocol::{
    Access, Identities, Layer, Mount, Mounts, Origin, Setup, Step, Strings, Upper, What, limits,
};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, StatVfsMountFlags};
use rustix::io::{Errno, Result as IoResult};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{Gid, Uid};
use rustix::thread::CapabilitySet;

use crate::setup::failure::{Failure, InStep, Result};
use crate::sys::{self, Restriction};
use crate::text::text;

/// Where the root file system is on the scratch.
pub(crate) const ROOT: &CStr = c"m0";

/// What the mounts lie on, opened.
pub(crate) struct Layers {
    upper: Option<OwnedFd>,
    /// In the order in which they are named.
    others: Vec<OwnedFd>,
    /// How many overlays are to be made of them.
    overlays: usize,
}

/// The mounts of a sandbox, while they are made.
pub(crate) struct Assembly<'a> {
    identities: Identities,
    mounts: &'a Mounts<'a>,
    layers: vec::IntoIter<OwnedFd>,
    /// How many overlays there are so far.
    overlays: usize,
    /// Mounts that can be written to until all are made, since others may lie in them.
    read_only: Vec<OwnedFd>,
}

impl Layers {
    pub(crate) fn open(mounts: &Mounts<'_>, descriptors: &mut VecDeque<OwnedFd>) -> Result<Self> {
        let upper = match &mounts.upper {
            Upper::Disk(layer) => {
                Some(open_layer(layer, OpenTreeFlags::empty(), descriptors, Step::Upper)?)
            }
            Upper::Memory { .. } => None,
        };
        let mut others = Vec::new();
        let mut overlays = 0;
        for mount in &mounts.mounts {
            match &mount.what {
                What::Overlay(lowers) => {
                    overlays += 1;
                    for layer in lowers {
                        let flags = OpenTreeFlags::empty();
                        others.push(open_layer(layer, flags, descriptors, Step::Layer)?);
                    }
                }
                What::Volume(layer) | What::Device(layer) => {
                    let flags = OpenTreeFlags::AT_RECURSIVE;
                    others.push(open_layer(layer, flags, descriptors, Step::Mount)?);
                }
                What::Tmpfs { .. } => {}
            }
        }
        Ok(Self { upper, others, overlays })
    }
}

impl<'a> Assembly<'a> {
    /// Makes the root.
    pub(crate) fn begin(
        identities: Identities,
        mounts: &'a Mounts<'a>,
        layers: Layers,
    ) -> Result<Self> {
        let Layers { upper, others, overlays } = layers;
        make_upper(&mounts.upper, upper, overlays).step(Step::Upper)?;
        let layers = others.into_iter();
        let mut this = Self { identities, mounts, layers, overlays: 0, read_only: Vec::new() };
        let root = mounts.mounts.first().ok_or(Failure::new(Step::Overlay, Errno::INVAL))?;
        this.make(root, "m0")?;
        Ok(this)
    }

    /// Makes the others, on what is there then.
    pub(crate) fn finish(mut self) -> Result<()> {
        let root = open_directory(CWD, ROOT).step(Step::Mount)?;
        for (number, mount) in self.mounts.mounts.iter().enumerate().skip(1) {
            let fail = |errno| Failure::at(Step::Mount, mount.at)(errno);
            let name = text!("m", number);
            let made = self.make(mount, &name)?;
            let is_directory = is_directory(&rustix::fs::fstat(&made).map_err(fail)?);
            let target = target(&root, mount.at, is_directory).map_err(fail)?;
            let flags =
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            rustix::mount::move_mount(&made, c"", &target, c"", flags).map_err(fail)?;
        }
        for mount in &self.read_only {
            sys::restrict_mount(mount, Restriction::ReadOnly).step(Step::Mount)?;
        }
        Ok(())
    }

    /// Makes a mount, under a name on the scratch if it has to be somewhere.
    fn make(&mut self, mount: &Mount<'_>, name: &str) -> Result<OwnedFd> {
        let fail = |errno| Failure::at(Step::Mount, mount.at)(errno);
        let is_root = mount.at.is_empty();
        let (mounts, identities) = (self.mounts, self.identities);
        let made = match &mount.what {
            What::Overlay(lowers) => {
                let number = self.overlays;
                self.overlays += 1;
                if is_root {
                    put_in_upper(mounts, identities).step(Step::Etc)?;
                }
                let layers = self.layers.by_ref().take(lowers.len());
                mount_overlay(number, layers, name, identities)?
            }
            What::Tmpfs { size } => mount_tmpfs(*size, "mode=1777", name).map_err(fail)?,
            What::Volume(_) => {
                let made = self.layers.next().ok_or(fail(Errno::BADF))?;
                let restriction = match mount.access {
                    // Nothing could be mounted in a root that is read-only already.
                    Access::ReadOnly if !is_root => Restriction::ReadOnlyData,
                    _ => Restriction::Data,
                };
                sys::restrict_mount(&made, restriction).map_err(fail)?;
                if !is_root {
                    return Ok(made);
                }
                attach_as(&made, name).map_err(fail)?;
                put_in_root(mounts.etc).step(Step::Etc)?;
                made
            }
            What::Device(layer) => {
                let made = self.layers.next().ok_or(fail(Errno::BADF))?;
                let made = match layer {
                    Layer::Descriptor if identities == Identities::Range => {
                        device_on(made, name).map_err(fail)?
                    }
                    _ => made,
                };
                sys::restrict_mount(&made, Restriction::Device).map_err(fail)?;
                return Ok(made);
            }
        };
        if mount.access == Access::ReadOnly {
            self.read_only.push(made.try_clone().map_err(|_| fail(Errno::MFILE))?);
        }
        Ok(made)
    }
}

/// Puts files of the sandbox's own into the upper of the root, while no one sees that: in a
/// directory that is to be what the image's was.
fn put_in_upper(mounts: &Mounts<'_>, identities: Identities) -> IoResult<()> {
    const PLACE: &CStr = c"s/0.upper/etc";
    if mounts.etc.is_empty() {
        return Ok(());
    }
    let [mode, uid, gid] = mounts.etc_attributes;
    rustix::fs::mkdirat(CWD, PLACE, Mode::from_raw_mode(mode))?;
    if identities == Identities::Range && (uid, gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(CWD, PLACE, Some(uid), Some(gid), AtFlags::empty())?;
        // The change of owner may have taken bits of it.
        rustix::fs::chmodat(CWD, PLACE, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    put_files(&open_directory(CWD, PLACE)?, mounts.etc)
}

/// Puts them into a root that can be written to itself, in the place of what it has there. Whatever
/// that is, nothing in it is followed.
fn put_in_root(etc: Strings<'_>) -> IoResult<()> {
    const PLACE: &CStr = c"m0/etc";
    if etc.is_empty() {
        return Ok(());
    }
    match open_directory(CWD, PLACE) {
        Err(Errno::NOENT) => {
            rustix::fs::mkdirat(CWD, PLACE, Mode::from_raw_mode(0o755))?;
            put_files(&open_directory(CWD, PLACE)?, etc)
        }
        opened => put_files(&opened?, etc),
    }
}

fn put_files(place: &OwnedFd, etc: Strings<'_>) -> IoResult<()> {
    let mut etc = etc.iter();
    while let (Some(name), Some(content)) = (etc.next(), etc.next()) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
        let content = content.strip_suffix(b"\0").unwrap_or(content);
        let open = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(place, name, flags, Mode::from_raw_mode(0o644))
        };
        let file = match open() {
            Err(Errno::EXIST) => match rustix::fs::unlinkat(place, name, AtFlags::empty()) {
                // A directory, which a guest had made there before a snapshot, stays.
                Err(Errno::ISDIR) => continue,
                removed => removed.and_then(|()| open())?,
            },
            opened => opened?,
        };
        if rustix::io::write(&file, content)? != content.len() {
            return Err(Errno::NOSPC);
        }
    }
    Ok(())
}

/// The node on a file system that the host has made for it alone. That is attached first: of what
/// is mounted nowhere, older kernels clone no part.
fn device_on(file_system: OwnedFd, name: &str) -> IoResult<OwnedFd> {
    attach_as(file_system, name)?;
    let node = text!(name, "/", adl_protocol::DEVICE);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, node, flags)
}

/// Opens the place of a mount in the root file system, and makes what is missing of it. Symbolic
/// links lead where they would lead a program inside.
fn target(root: &OwnedFd, at: &[u8], is_directory: bool) -> IoResult<OwnedFd> {
    let open = |path: &[u8]| {
        let path = CString::new(path).map_err(|_| Errno::INVAL)?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        // The host renames files, too.
        crate::path::patiently(|| {
            rustix::fs::openat2(root, path.as_c_str(), flags, Mode::empty(), resolve)
        })
    };
    // As much of it as there is.
    let mut end = at.len();
    let mut place = loop {
        let there = at.get(..end).unwrap_or_default();
        match open(if there.is_empty() { b"." } else { there }) {
            Err(Errno::NOENT) if end != 0 => {
                end = there.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            }
            opened => break opened?,
        }
    };
    let rest = at.get(end..).unwrap_or_default();
    let mut missing = rest.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).peekable();
    while let Some(name) = missing.next() {
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        if is_directory || missing.peek().is_some() {
            rustix::fs::mkdirat(&place, &name, Mode::from_raw_mode(0o755))?;
        } else {
            let mode = Mode::from_raw_mode(0o644);
            rustix::fs::mknodat(&place, &name, FileType::RegularFile, mode, 0)?;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        place = rustix::fs::openat(&place, &name, flags, Mode::empty())?;
    }
    // What a sandbox can't do without is not covered, whatever links lead there: the root, /dev,
    // and all of /proc, of which parts lie on the scratch themselves.
    let stat = rustix::fs::fstat(&place)?;
    for kept in [ROOT, c"m0/dev"] {
        if identity(&stat) == identity(&rustix::fs::stat(kept)?) {
            return Err(Errno::BUSY);
        }
    }
    for kept in [c".", c"m0/proc", c"m0/dev/pts"] {
        if stat.st_dev == rustix::fs::stat(kept)?.st_dev {
            return Err(Errno::BUSY);
        }
    }
    // The kernel says EINVAL, which may mean much else.
    match (FileType::from_raw_mode(stat.st_mode) == FileType::Directory) == is_directory {
        true => Ok(place),
        false => Err(Errno::NOTDIR),
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Finds out what the mounts were copied from. Where that was the empty namespace, this mounts a
/// procfs of this PID namespace on `/proc`.
pub(crate) fn origin() -> IoResult<Origin> {
    // In a procfs of another PID namespace, no process is this one.
    match rustix::fs::access(c"/proc/self", rustix::fs::Access::EXISTS) {
        Ok(()) => Ok(Origin::Caller),
        Err(Errno::NOENT) => mount_procfs(c"/proc").map(|()| Origin::Empty),
        Err(errno) => Err(errno),
    }
}

/// How a procfs is mounted.
pub(crate) const PROC_FLAGS: MountFlags =
    MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Mounts a procfs of this PID namespace.
pub(crate) fn mount_procfs(place: &CStr) -> IoResult<()> {
    rustix::mount::mount(c"proc", place, c"proc", PROC_FLAGS, None)
}

/// Makes the root file system the root of the process and its mount namespace. Nothing of what was
/// there before can be reached after this.
pub(crate) fn change_root(setup: &Setup<'_>) -> IoResult<()> {
    // Who may unmount what is on top would see what is below, and whom no filter keeps from
    // `statmount(2)` can ask it, in a namespace of its own, where that comes from.
    let may_unmount =
        CapabilitySet::from_bits_truncate(setup.capabilities).contains(CapabilitySet::SYS_ADMIN);
    match setup.origin {
        Origin::Empty if setup.is_filtered && !may_unmount => put_on_top(),
        Origin::Empty | Origin::Caller => pivot(),
    }
}

/// Mounts the root file system on top of the empty namespace's: that spares `pivot_root(2)`'s look
/// at every thread of the machine.
///
/// The scratch stays below, with the layers and the upper, which overlays have anyway: where it is
/// unmounted, the kernel waits for every processor (`synchronize_rcu_expedited`), 0.1 ms and more.
/// No path begins or leads there, and who may unmount nothing here can't come to it; in a namespace
/// of a guest's own, what is on top stays there.
fn put_on_top() -> IoResult<()> {
    // Of whole ones that can be seen here, a user namespace of a guest's could mount others, without
    // what covers parts of this sandbox's (`mnt_already_visible` in the kernel's fs/namespace.c).
    // It can't take this cover away: what is copied to it from here stays together.
    for whole in [c"/proc", c"/sys"] {
        rustix::mount::mount_bind(BLANK_DIRECTORY, whole)?;
    }
    let root = open_directory(CWD, ROOT)?;
    rustix::mount::mount_move(ROOT, c"/")?;
    rustix::process::fchdir(&root)?;
    rustix::process::chroot(c".")
}

/// Leaves the caller's mounts.
fn pivot() -> IoResult<()> {
    rustix::process::chdir(ROOT)?;
    let own = identity(&rustix::fs::stat(c".")?);
    // The old root comes to lie on top of the new one, from where it can be detached without a
    // directory to put it in (pivot_root(2)), and with it all that is mounted below it.
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")?;
    // Were anything of the host left above, this is how a guest would get to it.
    if identity(&rustix::fs::stat(c"/")?) != own || identity(&rustix::fs::stat(c"/..")?) != own {
        return Err(Errno::XDEV);
    }
    Ok(())
}

/// Makes sure that `components` name a directory below the root file system, making those that
/// are missing. A symbolic link in the way is refused.
pub(crate) fn directory_in_root(components: Strings<'_>, step: Step) -> Result<OwnedFd> {
    let mut at = open_directory(CWD, ROOT).step(step)?;
    for component in components.iter() {
        let fail =
            |errno| Failure::at(step, component.strip_suffix(b"\0").unwrap_or(component))(errno);
        let name = CStr::from_bytes_with_nul(component).map_err(|_| fail(Errno::INVAL))?;
        at = match open_directory(&at, name) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)).map_err(fail)?;
                open_directory(&at, name).map_err(fail)?
            }
            opened => opened.map_err(fail)?,
        };
    }
    Ok(at)
}

pub(crate) fn open_directory(at: impl AsFd, name: &CStr) -> IoResult<OwnedFd> {
    rustix::fs::openat2(
        at,
        name,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Names of an empty directory and an empty file on the scratch that no one can change, nor what
/// is bound from them, since that is read-only as they are.
pub(crate) const BLANK_DIRECTORY: &CStr = c"blank/directory";
/// See [`BLANK_DIRECTORY`].
pub(crate) const BLANK_FILE: &CStr = c"blank/file";
/// A file there that tells the sandbox's own boot apart from any other.
pub(crate) const BOOT_ID: &CStr = c"blank/boot_id";

/// Makes them.
pub(crate) fn make_blanks(boot_id: &[u8]) -> IoResult<()> {
    rustix::fs::mkdirat(CWD, c"blank", Mode::from_raw_mode(0o755))?;
    rustix::fs::mkdirat(CWD, BLANK_DIRECTORY, Mode::empty())?;
    rustix::fs::mknodat(CWD, BLANK_FILE, FileType::RegularFile, Mode::empty(), 0)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o444);
    rustix::io::write(rustix::fs::open(BOOT_ID, flags, mode)?, boot_id)?;
    rustix::mount::mount_bind(c"blank", c"blank")?;
    rustix::mount::mount_remount(
        c"blank",
        MountFlags::BIND
            | MountFlags::RDONLY
            | MountFlags::NOSUID
            | MountFlags::NODEV
            | MountFlags::NOEXEC,
        c"",
    )
}

/// Where the scratch is in the empty namespace.
const SCRATCH: &CStr = c"/scratch";

/// Mounts the scratch and enters it, until [`change_root`], with which it goes.
pub(crate) fn enter_scratch(origin: Origin) -> IoResult<()> {
    let place = match origin {
        // Where there is a directory on every host, since the ids were mapped through it.
        Origin::Caller => c"/proc",
        Origin::Empty => SCRATCH,
    };
    rustix::mount::mount(c"tmpfs", place, c"tmpfs", MountFlags::empty(), Some(c"mode=0700"))?;
    rustix::process::chdir(place)
}

/// Makes a directory on the scratch and attaches a mount there.
pub(crate) fn attach_as(mount: impl AsFd, name: &str) -> IoResult<()> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    rustix::fs::mkdirat(CWD, name.as_c_str(), Mode::from_raw_mode(0o755))?;
    attach(mount, &name)
}

/// Attaches a mount at a path.
pub(crate) fn attach(mount: impl AsFd, path: &CStr) -> IoResult<()> {
    rustix::mount::move_mount(mount, c"", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn make_upper(upper: &Upper<'_>, mount: Option<OwnedFd>, overlays: usize) -> IoResult<()> {
    if let Some(mount) = mount {
        return attach_as(mount, "s");
    }
    let Upper::Memory { size } = upper else { return Err(Errno::BADF) };
    mount_tmpfs(*size, "mode=0700", "s")?;
    for number in 0..overlays {
        for name in [text!("s/", number, ".upper"), text!("s/", number, ".work")] {
            rustix::fs::mkdirat(CWD, name, Mode::from_raw_mode(0o755))?;
        }
    }
    Ok(())
}

/// Mounts a tmpfs on a new directory of the scratch.
fn mount_tmpfs(size: u64, mode: &str, name: &str) -> IoResult<OwnedFd> {
    // Inodes take memory that the size does not count, about a KiB each.
    let inodes = (size / 4096).saturating_add(1024);
    let options = text!(mode, ",size=", size, ",nr_inodes=", inodes);
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    mount_as(c"tmpfs", flags, &options, name)
}

/// Mounts a file system on a new directory of the scratch.
fn mount_as(kind: &CStr, flags: MountFlags, options: &CStr, name: &str) -> IoResult<OwnedFd> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    rustix::fs::mkdirat(CWD, name.as_c_str(), Mode::from_raw_mode(0o755))?;
    rustix::mount::mount(kind, name.as_c_str(), kind, flags, Some(options))?;
    open_directory(CWD, &name)
}

pub(crate) fn open_layer(
    layer: &Layer<'_>,
    more: OpenTreeFlags,
    descriptors: &mut VecDeque<OwnedFd>,
    step: Step,
) -> Result<OwnedFd> {
    match layer {
        Layer::Descriptor => descriptors.pop_front().ok_or(Failure::new(step, Errno::BADF)),
        Layer::Path { path, device, inode } => {
            let fail = |errno| Failure::at(step, path)(errno);
            let name = CString::new(&**path).map_err(|_| fail(Errno::INVAL))?;
            let mount = rustix::mount::open_tree(
                CWD,
                name.as_c_str(),
                OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | more,
            )
            .map_err(fail)?;
            let stat = rustix::fs::fstat(&mount).map_err(fail)?;
            if (stat.st_dev, stat.st_ino) != (*device, *inode) {
                return Err(fail(Errno::STALE));
            }
            Ok(mount)
        }
    }
}

/// The root of an overlay is that of its upper: it is to be what the image's was.
fn copy_attributes(layer: &OwnedFd, upper: &str, identities: Identities) -> IoResult<()> {
    let stat = rustix::fs::fstat(layer)?;
    rustix::fs::chmodat(CWD, upper, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    match identities {
        Identities::Range if (stat.st_uid, stat.st_gid) != (0, 0) => {
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            rustix::fs::chownat(CWD, upper, Some(uid), Some(gid), AtFlags::empty())
        }
        // The one id there is owns it already.
        Identities::Range | Identities::Single { .. } => Ok(()),
    }
}

/// Mounts one overlay on a new directory of the scratch.
fn mount_overlay(
    number: usize,
    layers: impl Iterator<Item = OwnedFd>,
    name: &str,
    identities: Identities,
) -> Result<OwnedFd> {
    let mut lowers = String::new();
    for (layer_number, mount) in layers.enumerate() {
        if layer_number == limits::MAX_LAYERS {
            return Err(Failure::new(Step::Layer, Errno::INVAL));
        }
        let name = text!(number, ".", layer_number);
        if layer_number == 0 {
            let upper = text!("s/", number, ".upper");
            copy_attributes(&mount, &upper, identities).step(Step::Upper)?;
        }
        attach_as(mount, &name).step(Step::Layer)?;
        if layer_number != 0 {
            lowers.push(':');
        }
        lowers.push_str(&name);
    }
    // redirect_dir, metacopy: a guest that forges their marks in its upper would otherwise make
    // the kernel look up other files of a layer. volatile: the upper does not outlive the sandbox,
    // so unmounting it must not wait for a disk. userxattr: what a user namespace may use.
    let options = CString::new(text!(
        "lowerdir=",
        &*lowers,
        ",upperdir=s/",
        number,
        ".upper,workdir=s/",
        number,
        ".work,userxattr,redirect_dir=nofollow,metacopy=off,index=off,xino=off,volatile"
    ))
    .map_err(|_| Errno::INVAL)
    .step(Step::Overlay)?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    let overlay = mount_as(c"overlay", flags, &options, name).step(Step::Overlay)?;
    check_writable(&overlay, number).step(Step::Overlay)?;
    Ok(overlay)
}

/// Makes sure that an overlay can be written to. Where the kernel can't make its own directory in
/// the work directory, as on a full disk, it mounts one that can't, and says so in its log alone.
fn check_writable(overlay: &OwnedFd, number: usize) -> IoResult<()> {
    let is_read_only =
        |fd| Ok(rustix::fs::fstatvfs(fd)?.f_flag.contains(StatVfsMountFlags::RDONLY));
    if !is_read_only(overlay)? {
        return Ok(());
    }
    // What kept the kernel from it tells why.
    let probe = text!("s/", number, ".work/probe");
    rustix::fs::mkdirat(CWD, &probe, Mode::empty())?;
    Err(Errno::ROFS)
}
