//! Opens paths of a guest inside its root, through no magic link.

use core::ffi::CStr;

use rustix::event::Timespec;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A path on which only names hang, as a directory that is worked in.
pub(crate) const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// Opens a path of the guest's; one that leads out of its root, or through a magic link of
/// `/proc`, is refused.
pub(crate) fn open_in_root(path: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    open_or_make_in_root(path, flags, Mode::empty())
}

/// Opens a path of the guest's, with the mode of what is made with [`OFlags::CREATE`].
pub(crate) fn open_or_make_in_root(
    path: &CStr,
    flags: OFlags,
    new: Mode,
) -> rustix::io::Result<OwnedFd> {
    let root = rustix::fs::open(c"/", DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mode = if flags.contains(OFlags::CREATE) { new } else { Mode::empty() };
    patiently(|| rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, mode, resolve))
}

/// Tries again what a guest holds up: by renaming what lies on the path (openat2(2)), which is
/// seldom in the way twice, or by a lease, for which it may have a moment to give it up.
pub(crate) fn patiently<T>(
    mut open: impl FnMut() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    const AT_ONCE: u32 = 64;
    const SLOWLY: u32 = 20;
    let pause = Timespec { tv_sec: 0, tv_nsec: 500_000 };
    for attempt in 0..AT_ONCE + SLOWLY {
        match open() {
            Err(Errno::AGAIN) if attempt < AT_ONCE => {}
            Err(Errno::AGAIN) => drop(rustix::thread::nanosleep(&pause)),
            result => return result,
        }
    }
    open()
}
