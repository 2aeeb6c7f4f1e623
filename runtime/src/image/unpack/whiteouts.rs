//! Marks that hide what the layers below have.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, fchmod, mknodat};

use super::{Unpacker, is_directory};
use crate::error::{Error, Result};
use crate::transfer::attributes;
use crate::transfer::tar::Member;

/// What the name of a mark begins with that hides a file of the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// What names begin with that aufs has for itself.
const OF_AUFS: &[u8] = b".wh..wh.";
/// The name of a mark that hides all that the layers below have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

impl Unpacker<'_> {
    /// Does what a mark of a layer says; whether the entry is one, or is of aufs itself.
    pub(super) fn is_done_by_mark(
        &mut self,
        parents: &[&CStr],
        name: &CStr,
        member: &Member,
    ) -> Result<bool> {
        let begins = |name: &CStr, with: &[u8]| name.to_bytes().starts_with(with);
        let is_opaque = name.to_bytes() == OPAQUE;
        if !is_opaque && parents.iter().chain([&name]).any(|name| begins(name, OF_AUFS)) {
            return Ok(true);
        }
        if parents.iter().any(|name| begins(name, WHITEOUT)) {
            return Err(Error::refused("something below a mark that hides a file"));
        }
        let Some(hidden) = name.to_bytes().strip_prefix(WHITEOUT) else { return Ok(false) };
        match self.go_to(parents, member) {
            // A file or a link in place of a directory hides by itself what was in that;
            // `umoci repack` says so again.
            Err(Error::Refused { .. }) => return Ok(true),
            gone => gone?,
        }
        let hides =
            if is_opaque { self.set_opaque(self.here(), name) } else { self.whiteout(hidden) };
        hides.map(|()| true)
    }

    /// Hides what the layers below have of a name. What this layer has of it stays.
    fn whiteout(&mut self, hidden: &[u8]) -> Result<()> {
        let name = CString::new(hidden).ok().filter(|name| {
            let name = name.to_bytes();
            !matches!(name, b"" | b"." | b"..")
        });
        let name = name.ok_or_else(|| Error::refused("a mark that hides no file"))?;
        match self.stat(&name) {
            Ok(stat) if is_directory(&stat) => {
                let (directory, stat) = self.open_directory(&name)?;
                self.set_opaque(directory.as_fd(), &name)?;
                let mode = Mode::from_bits_truncate(stat.st_mode);
                fchmod(&directory, mode).map_err(|errno| self.failed("chmod", &name, errno))
            }
            // It hides what is below, or is such a mark.
            Ok(_) => Ok(()),
            Err(Errno::ENOENT) => mknodat(self.here(), &*name, SFlag::S_IFCHR, Mode::empty(), 0)
                .map_err(|errno| self.failed("mknod", &name, errno)),
            Err(errno) => Err(self.failed("stat", &name, errno)),
        }
    }

    pub(super) fn set_opaque(&self, directory: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        attributes::set_opaque(directory).map_err(self.not_set(directory, name))
    }
}
