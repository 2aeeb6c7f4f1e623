//! Assembles the root file system out of layers, and makes it the root.
//!
//! All of it happens in init's own mount namespace. The layers are gathered on a small tmpfs, the
//! scratch, under short names, so that no path of the host shows in what the guest can read of
//! its mounts, and no character in a path can break the options of overlayfs.

use alloc::collections::VecDeque;
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;

use adl_protocol::{Layer, Overlay, Setup, Step, Strings, Upper, limits};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result as IoResult};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use crate::setup::{Failure, InStep, Result};
use crate::sys::{self, MountAttributes};

/// Assembles all overlays and returns the root of the first, still below the host's root.
/// The working directory is the scratch from here to [`pivot`].
pub(crate) fn assemble(setup: &Setup<'_>, descriptors: &mut VecDeque<OwnedFd>) -> Result<OwnedFd> {
    // Without this, mounts of the host would go on to appear here.
    rustix::mount::mount_change(
        c"/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .step(Step::Propagation)?;
    enter_scratch().step(Step::Scratch)?;
    attach_upper(&setup.upper, setup.overlays.len(), descriptors)?;

    let mut root = None;
    for (number, overlay) in setup.overlays.iter().enumerate() {
        let mounted = mount_overlay(number, overlay, descriptors)?;
        match &root {
            None => root = Some(mounted),
            Some(root) => {
                let target = directory_below(root, overlay.at, Step::Overlay)?;
                attach(&mounted, &target).step(Step::Overlay)?;
            }
        }
    }
    root.ok_or(Failure::new(Step::Overlay, Errno::INVAL))
}

/// Makes `root` the root of the process and its mount namespace; the host's is gone after this.
pub(crate) fn pivot(root: &OwnedFd) -> IoResult<()> {
    rustix::process::fchdir(root)?;
    // The old root comes to lie on top of the new one, from where it can be detached without a
    // directory to put it in (pivot_root(2)). On top of it lies the scratch, so that goes first.
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")?;
    // Were anything of the host left above, this is how a guest would get to it.
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let own = identity(rustix::fs::fstat(root)?);
    if identity(rustix::fs::stat(c"/")?) != own || identity(rustix::fs::stat(c"/..")?) != own {
        return Err(Errno::XDEV);
    }
    Ok(())
}

/// Mounts a new file system, attached nowhere yet.
pub(crate) fn new_file_system(
    kind: &core::ffi::CStr,
    options: &[(&core::ffi::CStr, &core::ffi::CStr)],
    attributes: MountAttrFlags,
) -> IoResult<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Attaches a detached mount to a directory or file.
pub(crate) fn attach(mount: impl AsFd, target: impl AsFd) -> IoResult<()> {
    rustix::mount::move_mount(
        mount,
        c"",
        target,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// A second, detached mount of what `path` below `directory` names; not of what is mounted below.
pub(crate) fn clone_mount(directory: impl AsFd, path: &core::ffi::CStr) -> IoResult<OwnedFd> {
    rustix::mount::open_tree(
        directory,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW,
    )
}

/// Opens the directory that `components` name below `root`, making those that are missing.
/// A symbolic link in the way is refused: the image may be hostile, and the host's root is still
/// there to be reached.
pub(crate) fn directory_below(
    root: &OwnedFd,
    components: Strings<'_>,
    step: Step,
) -> Result<OwnedFd> {
    let mut at = rustix::io::fcntl_dupfd_cloexec(root, 3).step(step)?;
    for component in components.iter() {
        let fail = |errno| Failure::at(step, component.strip_suffix(b"\0").unwrap_or(component))(errno);
        let name = core::ffi::CStr::from_bytes_with_nul(component)
            .map_err(|_| fail(Errno::INVAL))?;
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

fn open_directory(at: &OwnedFd, name: &core::ffi::CStr) -> IoResult<OwnedFd> {
    rustix::fs::openat2(
        at,
        name,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Something empty and unchangeable to cover other things with.
pub(crate) struct Blank {
    directory: OwnedFd,
    file: OwnedFd,
}

impl Blank {
    /// Makes both on the scratch.
    pub(crate) fn new() -> IoResult<Self> {
        const NAME_OF_DIRECTORY: &core::ffi::CStr = c"blank-directory";
        const NAME_OF_FILE: &core::ffi::CStr = c"blank-file";
        rustix::fs::mkdirat(CWD, NAME_OF_DIRECTORY, Mode::empty())?;
        rustix::fs::mknodat(CWD, NAME_OF_FILE, rustix::fs::FileType::RegularFile, Mode::empty(), 0)?;
        let of = |name| {
            let mount = clone_mount(CWD, name)?;
            let nothing = [
                MountAttributes::READ_ONLY,
                MountAttributes::NO_SUID,
                MountAttributes::NO_DEV,
                MountAttributes::NO_EXEC,
            ];
            sys::mount_setattr(&mount, &nothing, false)?;
            // A detached mount can't be cloned before Linux 6.15, so it has to be somewhere.
            let place = rustix::fs::openat(CWD, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            attach(&mount, place)?;
            Ok(mount)
        };
        Ok(Self { directory: of(NAME_OF_DIRECTORY)?, file: of(NAME_OF_FILE)? })
    }

    /// Covers a directory or file, whichever `target` is.
    pub(crate) fn cover(&self, target: &OwnedFd) -> IoResult<()> {
        let stat = rustix::fs::fstat(target)?;
        let blank = match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::Directory => &self.directory,
            _ => &self.file,
        };
        attach(clone_mount(blank, c"")?, target)
    }
}

/// Mounts the scratch and makes it the working directory. It lies on top of the host's root,
/// where no path leads to it, and goes when that does.
fn enter_scratch() -> IoResult<()> {
    let scratch = new_file_system(c"tmpfs", &[(c"mode", c"0700")], MountAttrFlags::empty())?;
    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    attach(&scratch, root)?;
    rustix::process::fchdir(scratch)
}

/// Makes a directory on the scratch and attaches a mount there.
fn attach_as(mount: impl AsFd, name: &str) -> IoResult<()> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    rustix::fs::mkdirat(CWD, name.as_c_str(), Mode::from_raw_mode(0o755))?;
    rustix::mount::move_mount(
        mount,
        c"",
        CWD,
        name.as_c_str(),
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

fn attach_upper(
    upper: &Upper<'_>,
    overlays: usize,
    descriptors: &mut VecDeque<OwnedFd>,
) -> Result<()> {
    match upper {
        Upper::Disk(layer) => {
            let mount = open_layer(layer, descriptors, Step::Upper)?;
            attach_as(mount, "s").step(Step::Upper)
        }
        Upper::Memory { size } => {
            let size = CString::new(format!("{size}")).map_err(|_| Errno::INVAL).step(Step::Upper)?;
            let options = [(c"mode", c"0700"), (c"size", size.as_c_str())];
            let tmpfs = new_file_system(c"tmpfs", &options, MountAttrFlags::empty());
            attach_as(tmpfs.step(Step::Upper)?, "s").step(Step::Upper)?;
            for number in 0..overlays {
                for name in [format!("s/{number}.upper"), format!("s/{number}.work")] {
                    rustix::fs::mkdirat(CWD, name, Mode::from_raw_mode(0o755)).step(Step::Upper)?;
                }
            }
            Ok(())
        }
    }
}

fn open_layer(
    layer: &Layer<'_>,
    descriptors: &mut VecDeque<OwnedFd>,
    step: Step,
) -> Result<OwnedFd> {
    match layer {
        Layer::Descriptor => descriptors.pop_front().ok_or(Failure::new(step, Errno::BADF)),
        Layer::Path { path, device, inode } => {
            let fail = |errno| Failure::at(step, path)(errno);
            let name = CString::new(*path).map_err(|_| fail(Errno::INVAL))?;
            let mount = clone_mount(CWD, &name).map_err(fail)?;
            let stat = rustix::fs::fstat(&mount).map_err(fail)?;
            if (stat.st_dev, stat.st_ino) != (*device, *inode) {
                return Err(fail(Errno::STALE));
            }
            Ok(mount)
        }
    }
}

/// Mounts one overlay and returns it, detached unless it is the first.
fn mount_overlay(
    number: usize,
    overlay: &Overlay<'_>,
    descriptors: &mut VecDeque<OwnedFd>,
) -> Result<OwnedFd> {
    if overlay.lowers.is_empty() || overlay.lowers.len() > limits::MAX_LAYERS {
        return Err(Failure::new(Step::Layer, Errno::INVAL));
    }
    let mut lowers = String::new();
    for (layer_number, layer) in overlay.lowers.iter().enumerate() {
        let mount = open_layer(layer, descriptors, Step::Layer)?;
        let name = format!("{number}.{layer_number}");
        attach_as(mount, &name).step(Step::Layer)?;
        if layer_number != 0 {
            lowers.push(':');
        }
        lowers.push_str(&name);
    }
    // redirect_dir, metacopy: a guest that forges their marks in its upper would otherwise make
    // the kernel look up other files of a layer. volatile: the upper does not outlive the sandbox,
    // so unmounting it must not wait for a disk. userxattr: what a user namespace may use.
    let options = format!(
        "lowerdir={lowers},upperdir=s/{number}.upper,workdir=s/{number}.work,userxattr,\
         redirect_dir=nofollow,metacopy=off,index=off,xino=off,volatile"
    );
    let target = format!("m{number}");
    rustix::fs::mkdirat(CWD, &target, Mode::from_raw_mode(0o755)).step(Step::Overlay)?;
    rustix::mount::mount(
        c"overlay",
        &target,
        c"overlay",
        MountFlags::NODEV | MountFlags::NOSUID,
        Some(CString::new(options).map_err(|_| Errno::INVAL).step(Step::Overlay)?.as_c_str()),
    )
    .step(Step::Overlay)?;
    rustix::fs::openat(
        CWD,
        target,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .step(Step::Overlay)
}
