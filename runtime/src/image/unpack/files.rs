//! Files, links and devices of an archive.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use adl_protocol::FileKind;
use adl_protocol::limits::MAX_PATH;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, makedev, mknodat};
use nix::unistd::{ftruncate, linkat, symlinkat};

use super::metadata::Attributes;
use super::{Unpacker, is_directory, is_whiteout};
use crate::error::{Error, Result};
use crate::store::contents::remove_entry;
use crate::sys;
use crate::sys::open::{Purpose, beneath, create_beneath};
use crate::transfer::tar::Map;
use crate::transfer::tar::reader::{Reader, names_of};

/// What content takes on disk is a multiple of this, in bytes, on most file systems.
const BLOCK: u64 = 4096;

impl Unpacker<'_> {
    /// Removes what has the name of something new.
    fn make_way(&self, name: &CStr) -> Result<()> {
        let name = OsStr::from_bytes(name.to_bytes());
        remove_entry(self.here(), name)
            .map_err(|error| Error::at("remove", &self.target.join(name))(error))
    }

    /// Makes something new, also in the place of something else.
    fn make<T>(
        &self,
        operation: &'static str,
        name: &CStr,
        make: impl Fn() -> nix::Result<T>,
    ) -> Result<T> {
        match make() {
            Err(Errno::EEXIST) => {
                self.make_way(name)?;
                make()
            }
            made => made,
        }
        .map_err(|errno| self.failed(operation, name, errno))
    }

    pub(super) fn file(
        &mut self,
        name: &CStr,
        attributes: Attributes,
        map: &Map,
        archive: &mut Reader<impl Read>,
    ) -> Result<()> {
        if map.size > self.caps.size {
            // With its holes, so that it is no way to make a few bytes look like a whole disk.
            let what = "a file of the image, in bytes,";
            return Err(Error::TooLarge { what, limit: self.caps.size });
        }
        if map.size > self.longest {
            return Err(self.failed("write", name, Errno::EFBIG));
        }
        let file = self.make("create", name, || create_beneath(self.here(), name))?;
        let file = File::from(file);
        let mut end = 0;
        for (offset, length) in &map.pieces {
            self.take_room(*length)?;
            let mut at = *offset;
            end = offset.saturating_add(*length);
            while at < end {
                let bytes = archive.content(end - at)?;
                file.write_all_at(bytes, at)
                    .map_err(|error| Error::at("write", &self.path(name))(error))?;
                at += bytes.len() as u64;
            }
        }
        if end < map.size {
            ftruncate(&file, i64::try_from(map.size).unwrap_or(i64::MAX))
                .map_err(|errno| self.failed("ftruncate", name, errno))?;
        }
        self.set_attributes(file.as_fd(), name, &attributes)
    }

    /// Counts what a piece of content takes on disk.
    fn take_room(&mut self, length: u64) -> Result<()> {
        self.size = self.size.saturating_add(length.next_multiple_of(BLOCK));
        // The end of each file takes a part of a block more than the archive has.
        let limit = self.caps.size;
        if self.size > limit.saturating_add(self.unpacked.entries.saturating_mul(BLOCK)) {
            return Err(Error::TooLarge { what: "the content of the image, in bytes,", limit });
        }
        Ok(())
    }

    pub(super) fn symbolic_link(
        &mut self,
        name: &CStr,
        attributes: &Attributes,
        to: &[u8],
    ) -> Result<()> {
        let is_target = !to.is_empty() && to.len() <= MAX_PATH;
        let to = CString::new(to).ok().filter(|_| is_target);
        let to = to.ok_or_else(|| Error::refused("a symbolic link that no directory can have"))?;
        self.make("symlink", name, || symlinkat(&*to, self.here(), name))?;
        self.set_owner_of_name(name, attributes)?;
        self.unpacked.attributes_left_out += attributes.extended.len() as u64;
        self.set_time_of_name(name, attributes)
    }

    pub(super) fn hard_link(&mut self, name: &CStr, to: &[u8]) -> Result<()> {
        let names = names_of(to)?;
        let (last, way) = match names.strip_suffix(b"\0") {
            Some(names) => match names.iter().rposition(|byte| *byte == 0) {
                Some(end) => (names.get(end + 1..), names.get(..end)),
                None => (Some(names), None),
            },
            None => (None, None),
        };
        let last = CString::new(last.unwrap_or_default())
            .ok()
            .filter(|last| !last.is_empty())
            .ok_or_else(|| Error::refused("a hard link to the top"))?;
        let way: Vec<u8> =
            way.unwrap_or(b".").iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect();
        let directory = match beneath(&self.top, way.as_slice(), Purpose::Pass) {
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                return Err(Error::refused("a hard link through what is no directory"));
            }
            Err(Errno::ENOENT | Errno::ENAMETOOLONG) => return Err(not_there()),
            opened => opened.map_err(|errno| self.failed("open for a link", name, errno))?,
        };
        let stat = match fstatat(&directory, &*last, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if is_directory(&stat) => {
                return Err(Error::refused("a hard link to a directory"));
            }
            Ok(stat) if !is_whiteout(&stat) => stat,
            Ok(_) | Err(Errno::ENOENT) => return Err(not_there()),
            Err(errno) => return Err(self.failed("stat for a link", name, errno)),
        };
        let is_it = |other: FileStat| (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino);
        if self.stat(name).is_ok_and(is_it) {
            return Ok(());
        }
        self.make("link", name, || {
            // Not what a symbolic link leads to: a further name of the link.
            match linkat(&directory, &*last, self.here(), name, AtFlags::empty()) {
                // It was in a directory that has made way.
                Err(Errno::ENOENT) => Err(Errno::ESTALE),
                made => made,
            }
        })
        .map_err(|error| match error {
            Error::Io { source, .. } if source.raw_os_error() == Some(libc::ESTALE) => not_there(),
            other => other,
        })
    }

    pub(super) fn special(
        &mut self,
        name: &CStr,
        attributes: Attributes,
        kind: FileKind,
        (major, minor): (u32, u32),
    ) -> Result<()> {
        let device = makedev(major.into(), minor.into());
        let (kind, device) = match kind {
            FileKind::CharacterDevice => (SFlag::S_IFCHR, device),
            FileKind::BlockDevice => (SFlag::S_IFBLK, device),
            _ => (SFlag::S_IFIFO, 0),
        };
        // To an overlay, the first is a mark that hides a file.
        if kind == SFlag::S_IFCHR && device == 0 || self.squashes && kind != SFlag::S_IFIFO {
            self.unpacked.left_out += 1;
            return self.make_way(name);
        }
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let made = self.make("mknod", name, || {
            match mknodat(self.here(), name, kind, mode, device) {
                // Root of a container, who may make none.
                Err(Errno::EPERM) if kind != SFlag::S_IFIFO => Ok(false),
                made => made.map(|()| true),
            }
        })?;
        if !made {
            self.unpacked.left_out += 1;
            return Ok(());
        }
        self.set_owner_of_name(name, &attributes)?;
        let node = beneath(self.here(), name, Purpose::Look)
            .map_err(|errno| self.failed("open", name, errno))?;
        sys::change_mode(&node, self.mode(&attributes))
            .map_err(|errno| self.failed("chmod", name, errno))?;
        self.unpacked.attributes_left_out += attributes.extended.len() as u64;
        self.set_time_of_name(name, &attributes)
    }
}

fn not_there() -> Error {
    Error::refused("a hard link to what was not before it in the archive")
}
