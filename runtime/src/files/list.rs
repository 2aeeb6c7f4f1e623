//! Listing a directory, page by page.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use adl_protocol::{FileAction, Listing, limits};

use super::call::Streams;
use super::{Cursor, DirEntry, FileKind, Files, TIMEOUT};
use crate::config::defaults::Defaults;
use crate::error::{Error, Result};
use crate::job::life::Lives;
use crate::wait::Deadline;
use crate::wire;

impl Files {
    /// The entries of a directory, in no order.
    ///
    /// The names come in pages, and `path` is looked up for each: someone inside who lets it lead
    /// to another directory meanwhile gets the names of both into the list.
    ///
    /// # Errors
    /// See [`Files::read_file`]; [`Error::TooLarge`] beyond [`Files::entry_limit`].
    pub fn list_dir(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>> {
        let path = path.as_ref();
        let started = Instant::now();
        let (mut entries, mut from) = (Vec::new(), None);
        // A reset between two pages is an error, and not a list of both.
        let timeout = self.timeout.unwrap_or(TIMEOUT);
        let late = |error| match error {
            Error::TimedOut { .. } => {
                Error::TimedOut { what: "a file call to end", after: timeout }
            }
            error => error,
        };
        let life = self.lives.begin(Deadline::after(timeout)).map_err(late)?;
        let of_this_life =
            Self { lives: Lives::new(life, Defaults::default(), false), ..self.clone() };
        loop {
            let left = self.entry_limit.saturating_sub(entries.len() as u64);
            let most = u32::try_from(left.saturating_add(1)).unwrap_or(u32::MAX);
            let mut rest = of_this_life.clone();
            // All pages together have the time of one call.
            rest.timeout = Some(timeout.saturating_sub(started.elapsed()));
            let next = rest.page(path, from, most, &mut entries).map_err(late)?;
            if entries.len() as u64 > self.entry_limit {
                let limit = self.entry_limit;
                return Err(Error::TooLarge { what: "the number of entries", limit });
            }
            match next {
                Some(next) => from = Some(next),
                None => return Ok(entries),
            }
        }
    }

    /// At most `most` entries of a directory, from its beginning or from where another page has
    /// ended, and where the next one begins, if there may be more.
    ///
    /// # Errors
    /// See [`Files::read_file`].
    pub fn list_dir_page(
        &self,
        path: impl AsRef<Path>,
        from: Option<Cursor>,
        most: u32,
    ) -> Result<(Vec<DirEntry>, Option<Cursor>)> {
        let mut entries = Vec::new();
        let next = self.page(path.as_ref(), from, most, &mut entries)?;
        Ok((entries, next))
    }

    fn page(
        &self,
        path: &Path,
        from: Option<Cursor>,
        most: u32,
        entries: &mut Vec<DirEntry>,
    ) -> Result<Option<Cursor>> {
        let most = most.clamp(1, limits::MAX_STRINGS as u32);
        let action = FileAction::List { start: from.map_or(0, |cursor| cursor.0), most };
        let longest = limits::MAX_FRAME as u64;
        let (call, ends) = self.start("list", path, longest, action, Streams::Output)?;
        let answer = call.answer(ends, longest)?;
        read_page(&answer, most, entries)
    }
}

/// Takes the entries out of what a job has told, no more than were asked for; returns where the
/// next page begins, if there may be one.
pub(crate) fn read_page(
    answer: &[u8],
    most: u32,
    entries: &mut Vec<DirEntry>,
) -> Result<Option<Cursor>> {
    let Listing { names, kinds, next } = wire::decode_frame(answer)?;
    if names.len() != kinds.len() || kinds.len() > most as usize {
        return Err(Error::Protocol { why: "a listing that does not add up" });
    }
    entries.reserve(kinds.len());
    for (name, kind) in names.iter().zip(kinds) {
        let name = name.strip_suffix(b"\0").unwrap_or(name);
        let kind = FileKind::ALL.get(usize::from(*kind));
        if !adl_protocol::is_plain_name(name) {
            return Err(Error::refused("a name that no directory can have"));
        }
        entries.push(DirEntry {
            name: OsStr::from_bytes(name).to_owned(),
            kind: *kind.ok_or(Error::Protocol { why: "an unknown kind of file" })?,
        });
    }
    Ok(next.filter(|_| !kinds.is_empty()).map(Cursor))
}
