//! What something of an archive gets beside its content.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use adl_protocol::Time;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat};

use super::Unpacker;
use crate::error::{Error, Result};
use crate::transfer::attributes::{self, is_default_acl};
use crate::transfer::tar::Member;

/// What something gets beside its content.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: Option<Time>,
    /// Extended ones.
    pub(super) extended: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Default for Attributes {
    fn default() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, modified: None, extended: Vec::new() }
    }
}

impl Attributes {
    pub(super) fn of(member: &Member) -> Result<Self> {
        let Member { mode, uid, gid, modified, .. } = *member;
        // To the kernel, the highest number means none.
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Error::refused("an owner that no file can have"));
        }
        let extended = member.attributes.clone();
        Ok(Self { mode, uid, gid, modified: Some(modified), extended })
    }

    pub(super) fn time(&self) -> Option<TimeSpec> {
        // Some higher numbers mean "now" or "as it is" to the kernel.
        let nanoseconds = |time: &Time| time.nanoseconds.min(999_999_999).into();
        self.modified.as_ref().map(|time| TimeSpec::new(time.seconds, nanoseconds(time)))
    }
}

impl Unpacker<'_> {
    pub(super) fn set_owner_of_name(&mut self, name: &CStr, attributes: &Attributes) -> Result<()> {
        let Some((uid, gid)) = self.owner(attributes) else { return Ok(()) };
        fchownat(self.here(), name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| self.no_owner(name, attributes, errno))
    }

    pub(super) fn set_time_of_name(&self, name: &CStr, attributes: &Attributes) -> Result<()> {
        let Some(time) = attributes.time() else { return Ok(()) };
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(self.here(), name, &TimeSpec::UTIME_OMIT, &time, flags)
            .map_err(|errno| self.failed("set the time of", name, errno))
    }

    /// Who a file is to belong to, if it is not the calling user's anyway.
    pub(super) fn owner(&mut self, attributes: &Attributes) -> Option<(Uid, Gid)> {
        let Attributes { uid, gid, .. } = *attributes;
        if self.squashes {
            self.unpacked.squashed += u64::from((uid, gid) != (0, 0));
            return None;
        }
        Some((Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    /// A bit by which a program gets the rights of another stays only where that other stays who it
    /// was.
    pub(super) fn mode(&self, attributes: &Attributes) -> Mode {
        let mut mode = Mode::from_bits_truncate(attributes.mode);
        if self.squashes && attributes.uid != 0 {
            mode.remove(Mode::S_ISUID);
        }
        if self.squashes && attributes.gid != 0 {
            mode.remove(Mode::S_ISGID);
        }
        mode
    }

    pub(super) fn set_attributes(
        &mut self,
        file: BorrowedFd<'_>,
        name: &CStr,
        attributes: &Attributes,
    ) -> Result<()> {
        if let Some((uid, gid)) = self.owner(attributes) {
            fchown(file, Some(uid), Some(gid))
                .map_err(|errno| self.no_owner(name, attributes, errno))?;
        }
        if self.inherits {
            attributes::clear_acls(file)
                .map_err(|errno| self.failed("removexattr", name, errno))?;
        }
        // After the owner, with whom the kernel takes away the bits that set ids.
        fchmod(file, self.mode(attributes)).map_err(|errno| self.failed("chmod", name, errno))?;
        for (key, value) in &attributes.extended {
            if is_default_acl(key) {
                self.inherits = true;
            }
            let is_set = attributes::set(file, key, value, self.squashes)
                .map_err(self.not_set(file, name))?;
            self.unpacked.attributes_left_out += u64::from(!is_set);
        }
        // Last: the others change no time of content, but what wrote it did.
        let Some(time) = attributes.time() else { return Ok(()) };
        futimens(file, &TimeSpec::UTIME_OMIT, &time)
            .map_err(|errno| self.failed("set the time of", name, errno))
    }

    pub(super) fn not_set<'b>(
        &'b self,
        file: BorrowedFd<'b>,
        name: &'b CStr,
    ) -> impl FnOnce(Errno) -> Error + 'b {
        move |errno| attributes::not_set(file, &self.path(name))(errno)
    }

    pub(super) fn no_owner(&self, name: &CStr, attributes: &Attributes, errno: Errno) -> Error {
        Error::at_chown(&self.path(name), [attributes.uid, attributes.gid])(errno)
    }
}
