//! What copies have no content of: devices, FIFOs and sockets, made anew in the copy of an image.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fstat, futimens, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, geteuid};

use crate::error::{Error, Result};
use crate::image::view::View;
use crate::sys;
use crate::sys::open::{DIRECTORY, Purpose, beneath};
use crate::transfer::CopyReport;

/// Makes what a copy of an image has skipped, as it is in `image`. A device is left out where the
/// calling user may make none, as it is of archives.
///
/// # Errors
/// [`Error::TooLarge`] where more was skipped than the report tells of; [`Error::Io`] of what can't
/// be made.
pub(super) fn make(target: &Path, image: &View, report: &CopyReport, owners: bool) -> Result<()> {
    if report.more_skipped > 0 {
        let limit = report.skipped.len() as u64;
        return Err(Error::TooLarge { what: "the devices and FIFOs of an image to copy", limit });
    }
    if report.skipped.is_empty() {
        return Ok(());
    }
    let top = nix::fcntl::open(target, DIRECTORY, Mode::empty());
    let top = top.map_err(Error::at("open", target))?;
    for skipped in &report.skipped {
        let path = &skipped.path;
        let failed = |errno| Error::at("make a special file at", &target.join(path))(errno);
        let stat = image.stat(path).map_err(failed)?;
        if let Some(stat) = stat.filter(|stat| kind_of(stat).is_some()) {
            make_one(&top, path, &stat, owners).map_err(failed)?;
        }
    }
    Ok(())
}

/// What it is, if it is something to be made. To an overlay, a device 0/0 is a mark.
fn kind_of(stat: &FileStat) -> Option<SFlag> {
    let kind = SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT);
    match kind {
        SFlag::S_IFCHR if stat.st_rdev == 0 => None,
        SFlag::S_IFCHR | SFlag::S_IFBLK | SFlag::S_IFIFO | SFlag::S_IFSOCK => Some(kind),
        _ => None,
    }
}

fn make_one(top: &OwnedFd, path: &Path, stat: &FileStat, owners: bool) -> nix::Result<()> {
    let (Some(kind), Some(name)) = (kind_of(stat), path.file_name()) else { return Ok(()) };
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    let directory = beneath(top, above.unwrap_or(Path::new(".")), Purpose::Pass)?;
    let before = fstat(&directory)?;
    let mode = Mode::from_bits_truncate(before.st_mode);
    let is_closed = !geteuid().is_root() && !mode.contains(Mode::S_IRWXU);
    if is_closed {
        sys::change_mode(&directory, mode | Mode::S_IRWXU)?;
    }
    let made = mknodat(&directory, name, kind, Mode::S_IRUSR | Mode::S_IWUSR, stat.st_rdev);
    let finish = || {
        if owners {
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            fchownat(&directory, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        let node = beneath(&directory, name, Purpose::Look)?;
        sys::change_mode(&node, Mode::from_bits_truncate(stat.st_mode))?;
        let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(&directory, name, &TimeSpec::UTIME_OMIT, &modified, flags)?;
        // What is made in a directory changes its time.
        let modified = TimeSpec::new(before.st_mtime, before.st_mtime_nsec);
        let listed = File::from(beneath(&directory, ".", Purpose::List)?);
        futimens(listed.as_fd(), &TimeSpec::UTIME_OMIT, &modified)
    };
    let done = match made {
        // An ordinary user, or root of a container.
        Err(Errno::EPERM) if kind != SFlag::S_IFIFO => Ok(()),
        made => made.and_then(|()| finish()),
    };
    if is_closed {
        sys::change_mode(&directory, mode)?;
    }
    done
}
