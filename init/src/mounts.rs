//! Assembles the root file system out of layers, and makes it the root.
//!
//! All of it happens in init's own mount namespace. The layers are gathered on a small tmpfs, the
//! scratch, under short names, so that no path of the host shows in what the guest can read of
//! its mounts, and no character in a path can break the options of overlayfs. The scratch is the
//! working directory meanwhile, and paths are relative to it. Where such a path leads into a root
//! file system made from an image, the components that come from the image are checked first to
//! be no symbolic links ([`directory_in_root`]): the host's root is still there to be reached.

use alloc::collections::VecDeque;
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use core::ffi::CStr;

use adl_protocol::{Identities, Layer, Overlay, Setup, Step, Strings, Upper, limits};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result as IoResult};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{Gid, Uid};

use crate::setup::{Failure, InStep, Result};

/// Where the root file system is on the scratch.
pub(crate) const ROOT: &CStr = c"m0";

/// Assembles all overlays. The working directory is the scratch from here to [`pivot`].
pub(crate) fn assemble(setup: &Setup<'_>, descriptors: &mut VecDeque<OwnedFd>) -> Result<()> {
    enter_scratch().step(Step::Scratch)?;
    attach_upper(&setup.upper, setup.overlays.len(), descriptors)?;
    for (number, overlay) in setup.overlays.iter().enumerate() {
        mount_overlay(number, overlay, setup.identities, descriptors)?;
    }
    Ok(())
}

/// Makes the root file system the root of the process and its mount namespace; the host's is gone
/// after this.
pub(crate) fn pivot() -> IoResult<()> {
    rustix::process::chdir(ROOT)?;
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let own = identity(rustix::fs::stat(c".")?);
    // The old root comes to lie on top of the new one, from where it can be detached without a
    // directory to put it in (pivot_root(2)), and with it all that is mounted below it.
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")?;
    // Were anything of the host left above, this is how a guest would get to it.
    if identity(rustix::fs::stat(c"/")?) != own || identity(rustix::fs::stat(c"/..")?) != own {
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

fn open_directory(at: impl AsFd, name: &CStr) -> IoResult<OwnedFd> {
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

/// Makes them.
pub(crate) fn make_blanks() -> IoResult<()> {
    rustix::fs::mkdirat(CWD, c"blank", Mode::from_raw_mode(0o755))?;
    rustix::fs::mkdirat(CWD, BLANK_DIRECTORY, Mode::empty())?;
    rustix::fs::mknodat(CWD, BLANK_FILE, FileType::RegularFile, Mode::empty(), 0)?;
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

/// Mounts the scratch, anywhere below the host's root, and enters it. It goes when that does.
fn enter_scratch() -> IoResult<()> {
    // Where there is a directory on every host, since the ids were mapped through it.
    const PLACE: &CStr = c"/proc";
    rustix::mount::mount(c"tmpfs", PLACE, c"tmpfs", MountFlags::empty(), Some(c"mode=0700"))?;
    rustix::process::chdir(PLACE)
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
            // Inodes take memory that the size does not count, about a KiB each.
            let inodes = (size / 4096).saturating_add(1024);
            let options = CString::new(format!("mode=0700,size={size},nr_inodes={inodes}"));
            let options = options.map_err(|_| Errno::INVAL).step(Step::Upper)?;
            rustix::fs::mkdirat(CWD, c"s", Mode::from_raw_mode(0o700)).step(Step::Upper)?;
            let flags = MountFlags::empty();
            rustix::mount::mount(c"tmpfs", c"s", c"tmpfs", flags, Some(options.as_c_str()))
                .step(Step::Upper)?;
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
            let mount = rustix::mount::open_tree(
                CWD,
                name.as_c_str(),
                OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
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
        Identities::Range | Identities::Single => Ok(()),
    }
}

/// Mounts one overlay: the first as the root, the others in it.
fn mount_overlay(
    number: usize,
    overlay: &Overlay<'_>,
    identities: Identities,
    descriptors: &mut VecDeque<OwnedFd>,
) -> Result<()> {
    if overlay.lowers.is_empty() || overlay.lowers.len() > limits::MAX_LAYERS {
        return Err(Failure::new(Step::Layer, Errno::INVAL));
    }
    let mut lowers = String::new();
    for (layer_number, layer) in overlay.lowers.iter().enumerate() {
        let mount = open_layer(layer, descriptors, Step::Layer)?;
        let name = format!("{number}.{layer_number}");
        if layer_number == 0 {
            let upper = format!("s/{number}.upper");
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
    let options = CString::new(format!(
        "lowerdir={lowers},upperdir=s/{number}.upper,workdir=s/{number}.work,userxattr,\
         redirect_dir=nofollow,metacopy=off,index=off,xino=off,volatile"
    ))
    .map_err(|_| Errno::INVAL)
    .step(Step::Overlay)?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    let mount = |target: &CStr| {
        rustix::mount::mount(c"overlay", target, c"overlay", flags, Some(options.as_c_str()))
    };
    if number == 0 {
        rustix::fs::mkdirat(CWD, ROOT, Mode::from_raw_mode(0o755)).step(Step::Overlay)?;
        return mount(ROOT).step(Step::Overlay);
    }
    directory_in_root(overlay.at, Step::Overlay)?;
    let mut target = ROOT.to_bytes().to_vec();
    for component in overlay.at.iter() {
        target.push(b'/');
        target.extend(component.strip_suffix(b"\0").unwrap_or(component));
    }
    let target = CString::new(target).map_err(|_| Errno::INVAL).step(Step::Overlay)?;
    mount(&target).step(Step::Overlay)
}
