//! A file or a tree, from the host to the sandbox.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::mem::take;

use adl_protocol::{Attributes, Entry, Stage, Strings, is_plain_name};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags, fsetxattr};
use rustix::io::Errno;

use super::content::{fill, make_temporary};
use super::directory::{LISTED, Walk, below_top, without_slashes};
use super::stream::Input;
use super::table::Table;
use super::{owner, place, rename, stat_entry, tell_where, timestamps};
use crate::failure::Failure;
use crate::path::{DIRECTORY, open_in_root};

/// Until it has its own mode.
const MADE: Mode = Mode::RWXU;
/// The mode of a directory of which nothing is said.
const USUAL: Mode = Mode::from_raw_mode(0o755);

/// Makes what comes from the host.
pub(super) fn run(
    path: &CStr,
    owners: bool,
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
) -> Result<(), Failure> {
    let (directory, name) = place(path)?;
    let name = without_slashes(name)?;
    let mut input = Input::new(stdin);
    let walk = Walk::new(directory);
    let (made, at) = (Table::default(), Vec::new());
    let extended = Vec::new();
    let mut import = Import { walk, top: None, path, name, owners, made, at, extended };
    loop {
        if let Err(errno) = import.step(&mut input) {
            let names = if import.at.is_empty() { &import.walk.names } else { &import.at };
            tell_where(below_top(names), stdout);
            return Err(Failure(Stage::File, errno));
        }
        if import.walk.depth() == 0 && import.extended.is_empty() {
            return Ok(());
        }
    }
}

struct Import<'a> {
    /// From the directory that the top is in.
    walk: Walk<Option<(Attributes, Extended)>>,
    /// The top, if it is a directory.
    top: Option<OwnedFd>,
    /// The path of the top, and its last name.
    path: &'a CStr,
    name: CString,
    owners: bool,
    /// The directories that were made.
    made: Table<()>,
    /// The names down to what could not be made.
    at: Vec<u8>,
    /// The extended attributes of what comes next.
    extended: Extended,
}

/// Names and values.
type Extended = Vec<(CString, Vec<u8>)>;

impl Import<'_> {
    /// Makes one entry.
    fn step(&mut self, input: &mut Input<'_>) -> rustix::io::Result<()> {
        match input.entry()? {
            Entry::Attribute { name, value } => {
                let name = name.single().ok_or(Errno::PROTO)?;
                self.extended.push((name.to_owned(), value.to_owned()));
                Ok(())
            }
            Entry::Directory { name, attributes } => {
                let name = self.name_of(&name)?;
                let made = self.make_directory(&name);
                let (directory, is_new) = self.noting(&name, made)?;
                if self.top.is_none() {
                    self.top = Some(rustix::io::fcntl_dupfd_cloexec(&directory, 3)?);
                }
                let stat = rustix::fs::fstat(&directory)?;
                let file = (stat.st_dev, stat.st_ino);
                if is_new {
                    // One too many is not known again if it comes again, and keeps what it gets
                    // now.
                    self.made.insert(file, ());
                }
                if is_new && attributes.is_none() {
                    rustix::fs::fchmod(&directory, USUAL)?;
                }
                // What was there before stays as it is.
                let is_made = is_new || self.made.get(file).is_some();
                let extended = take(&mut self.extended);
                let attributes = attributes.filter(|_| is_made);
                self.walk.down(directory, &name, attributes.map(|it| (it, extended)))
            }
            Entry::Leave => {
                // Up first: it may be one in which its own owner may do nothing.
                let (directory, _, attributes) = self.walk.up()?.ok_or(Errno::PROTO)?;
                attributes.map_or(Ok(()), |(it, extended)| self.finish(&directory, &it, &extended))
            }
            Entry::File { name, attributes, size: _ } => {
                let name = self.name_of(&name)?;
                let made = self.file(&name, &attributes, input);
                self.noting(&name, made)
            }
            Entry::SymbolicLink { name, target, attributes } => {
                let name = self.name_of(&name)?;
                let target = target.single().ok_or(Errno::PROTO)?;
                let made = self.make_symbolic_link(&name, target, &attributes);
                self.noting(&name, made)
            }
            Entry::HardLink { name, target } => {
                let name = self.name_of(&name)?;
                let made = self.make_hard_link(&name, &target);
                self.noting(&name, made)
            }
            // The host knows.
            Entry::Skipped { .. } => Ok(()),
            Entry::Failed { .. } => Err(Errno::PROTO),
        }
    }

    /// The name of an entry; that of the top is what its path says.
    fn name_of(&self, name: &Strings<'_>) -> rustix::io::Result<CString> {
        let name = name.single().ok_or(Errno::PROTO)?;
        match (self.walk.depth(), name.is_empty()) {
            (0, true) => Ok(self.name.clone()),
            (1.., false) if is_plain_name(name.to_bytes()) => Ok(name.to_owned()),
            _ => Err(Errno::PROTO),
        }
    }

    /// Remembers what it was that could not be made.
    fn noting<T>(&mut self, name: &CStr, made: rustix::io::Result<T>) -> rustix::io::Result<T> {
        made.inspect_err(|_| self.at = self.walk.names_of(name))
    }

    /// Makes something, and as often as something else is there, removes that.
    fn make<T>(
        &self,
        name: &CStr,
        make: impl Fn(&OwnedFd) -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        const ATTEMPTS: u32 = 16;
        let directory = &self.walk.directory;
        for _ in 0..ATTEMPTS {
            match make(directory) {
                Err(Errno::EXIST) => {}
                made => return made,
            }
            match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EXIST)
    }

    /// Makes a directory, or opens the one that is there; whether it is new.
    fn make_directory(&self, name: &CStr) -> rustix::io::Result<(OwnedFd, bool)> {
        if self.walk.depth() == 0
            && let Ok(directory) = open_in_root(self.path, LISTED)
        {
            return Ok((directory, false));
        }
        let above = &self.walk.directory;
        let is_new = match rustix::fs::mkdirat(above, name, MADE) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno),
        };
        let flags = LISTED | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(above, name, flags, Mode::empty()) {
            // A link, which may lead to one, is not removed for it either.
            Err(Errno::LOOP) => Err(Errno::NOTDIR),
            opened => Ok((opened?, is_new)),
        }
    }

    /// Makes a regular file, also in place of what is there, all at once: whoever looks sees no
    /// half of it, and none is left where this job is killed.
    fn file(
        &mut self,
        name: &CStr,
        attributes: &Attributes,
        input: &mut Input<'_>,
    ) -> rustix::io::Result<()> {
        let extended = take(&mut self.extended);
        let directory = &self.walk.directory;
        let (file, temporary) = make_temporary(directory, MADE)?;
        let made = fill(input, file.as_fd())
            .and_then(|()| self.finish(&file, attributes, &extended))
            .and_then(|()| rename(directory, temporary.as_c_str(), directory, name));
        if made.is_err() {
            let _ = rustix::fs::unlinkat(directory, temporary.as_c_str(), AtFlags::empty());
        }
        made
    }

    fn make_symbolic_link(
        &self,
        name: &CStr,
        target: &CStr,
        attributes: &Attributes,
    ) -> rustix::io::Result<()> {
        self.make(name, |above| rustix::fs::symlinkat(target, above, name))?;
        let directory = &self.walk.directory;
        if self.owners {
            let (uid, gid) = owner(attributes.uid, attributes.gid);
            rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let times = timestamps(attributes.modified);
        rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// `target` leads down from the top.
    fn make_hard_link(&self, name: &CStr, target: &Strings<'_>) -> rustix::io::Result<()> {
        let mut directory =
            rustix::io::fcntl_dupfd_cloexec(self.top.as_ref().ok_or(Errno::PROTO)?, 3)?;
        let mut names = target.iter().peekable();
        while let Some(step) = names.next() {
            let step = CStr::from_bytes_with_nul(step).map_err(|_| Errno::PROTO)?;
            if !is_plain_name(step.to_bytes()) {
                return Err(Errno::PROTO);
            }
            if names.peek().is_none() {
                let of = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
                let there = stat_entry(&self.walk.directory, name).map(of);
                if there.is_ok() && there == stat_entry(&directory, step).map(of) {
                    // It has this name already, if only because it is its own.
                    return Ok(());
                }
                return self.make(name, |above| {
                    rustix::fs::linkat(&directory, step, above, name, AtFlags::empty())
                });
            }
            let flags = DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            directory = rustix::fs::openat(&directory, step, flags, Mode::empty())?;
        }
        Err(Errno::PROTO)
    }

    /// Gives what was made its owner, mode, extended attributes and time, in this order: each changes
    /// those after it.
    fn finish(
        &self,
        file: &OwnedFd,
        attributes: &Attributes,
        extended: &Extended,
    ) -> rustix::io::Result<()> {
        if self.owners {
            let (uid, gid) = owner(attributes.uid, attributes.gid);
            rustix::fs::fchown(file, uid, gid)?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode))?;
        for (name, value) in extended {
            match fsetxattr(file, name.as_c_str(), value, XattrFlags::empty()) {
                // By who may not, or on a file system that has none.
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) => {}
                set => set?,
            }
        }
        rustix::fs::futimens(file, &timestamps(attributes.modified))
    }
}
