//! Whole trees, between the sandbox and the host.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use adl_protocol::FileAction;

use super::call::{Ends, Purpose, Span, Streams};
use super::{COPY_LIMIT, COPY_TIMEOUT, Files, LONGEST_ANSWER, keep_input, no_input};
use crate::config::host_path::HostPath;
use crate::error::{Error, Result};
use crate::sys::open::Location;
use crate::transfer::{self, CopyOptions, CopyReport, Incoming, Outgoing};

impl Files {
    /// Copies a file or a directory of the host into the sandbox, where it is called `to`, as
    /// `cp -r --no-target-directory` would. If `to` is a directory, the copy adds to it and its
    /// mode and owner stay. A file or link with the same name is replaced by a file in one step; a
    /// directory never replaces one (`ENOTDIR`). The directory that `to` is in must exist.
    ///
    /// Modes, times of modification, symbolic links as such, hard links and holes are kept; what
    /// has no content to copy (devices, FIFOs, sockets) is left out and reported. `from` is
    /// followed if it is a symbolic link, what is below it is not; of [`HostPath::beneath`] no link
    /// is.
    ///
    /// # Errors
    /// [`Error::Io`] for what can't be read on the host; [`Error::File`] with the path of what
    /// can't be made inside; [`Error::TooLarge`] and [`Error::TimedOut`]. What was copied by then
    /// stays, but no file of which a part is missing: until it is whole it has another name, which
    /// begins with `.adl-`, and stays under it where a guest kills what copies.
    pub fn copy_in(&self, from: impl Into<HostPath>, to: impl AsRef<Path>) -> Result<CopyReport> {
        self.copy_in_from(&from.into().locate()?, to.as_ref())
    }

    /// Copies what is below an open directory of the host into the sandbox; `from` is relative to
    /// it, and leads through no link and not out of it. Else as [`Files::copy_in`].
    ///
    /// # Errors
    /// [`Error::Invalid`] as with [`HostPath::beneath`], and those of [`Files::copy_in`].
    pub fn copy_in_at(
        &self,
        directory: impl AsFd,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
    ) -> Result<CopyReport> {
        self.copy_in_from(&Location::at(directory.as_fd(), from.as_ref())?, to.as_ref())
    }

    fn copy_in_from(&self, from: &Location, to: &Path) -> Result<CopyReport> {
        self.send(to, |pipe, options, report| transfer::send(from, pipe, options, report))
    }

    /// Copies a file or a directory out of the sandbox to the host, where it is called `to`; else
    /// as [`Files::copy_in`]. What comes is not trusted: nothing is made outside `to`, no symbolic
    /// link is followed there, not even one that an earlier copy has made, and no device, FIFO or
    /// socket is made. What is mounted below `from` is left out and reported.
    ///
    /// The directory that `to` is in must exist. Where a guest may have made it, as in a volume or
    /// in what another copy has made, use [`HostPath::beneath`], or open it while it is yours, for
    /// [`Files::copy_out_at`]: the way to a plain path is followed, links and all.
    ///
    /// What is made belongs to the calling program's user unless [`Files::keep_owners`] says
    /// otherwise. A symbolic link says whatever a guest wants: don't follow those you have copied.
    ///
    /// # Errors
    /// [`Error::File`] for what can't be read inside; [`Error::Io`] for what can't be made on the
    /// host; [`Error::Refused`] for what no honest sandbox sends; [`Error::TooLarge`] and
    /// [`Error::TimedOut`]. What was copied by then stays, but no file of which a part is missing:
    /// until it is whole it has another name, which begins with `.adl-`, and stays under it where
    /// the calling program is killed.
    pub fn copy_out(&self, from: impl AsRef<Path>, to: impl Into<HostPath>) -> Result<CopyReport> {
        self.copy_out_to(from.as_ref(), &to.into().locate()?)
    }

    /// Copies out of the sandbox to what is below an open directory of the host; `to` is relative
    /// to it, and leads through no link and not out of it. Else as [`Files::copy_out`].
    ///
    /// # Errors
    /// [`Error::Invalid`] as with [`HostPath::beneath`], and those of [`Files::copy_out`].
    pub fn copy_out_at(
        &self,
        from: impl AsRef<Path>,
        directory: impl AsFd,
        to: impl AsRef<Path>,
    ) -> Result<CopyReport> {
        self.copy_out_to(from.as_ref(), &Location::at(directory.as_fd(), to.as_ref())?)
    }

    fn copy_out_to(&self, from: &Path, to: &Location) -> Result<CopyReport> {
        self.receive(from, |pipe, options, report| transfer::receive(pipe, to, options, report))
    }

    /// Unpacks a tar archive (ustar, pax or GNU, not compressed) in the sandbox's directory `to`.
    /// Paths in it are taken from there, a `/` at their beginning notwithstanding; one with `..` in
    /// it is refused. The time that `archive` takes to be read counts; a read that waits is not cut
    /// short by it, and the call returns after that.
    ///
    /// # Errors
    /// [`Error::Refused`] and [`Error::Io`] for what is wrong with the archive, else as
    /// [`Files::copy_in`].
    pub fn import_tar(&self, mut archive: impl Read, to: impl AsRef<Path>) -> Result<CopyReport> {
        self.send(to.as_ref(), |pipe, options, report| {
            transfer::from_tar(&mut archive, pipe, options, report)
        })
    }

    /// Writes a directory of the sandbox as a tar archive (pax), with paths that start at
    /// `from`. Names and link targets in it are the guest's: who unpacks it should not trust them.
    ///
    /// # Errors
    /// [`Error::Io`] where `archive` can't be written to, else as [`Files::copy_out`].
    pub fn export_tar(
        &self,
        from: impl AsRef<Path>,
        mut archive: impl Write,
    ) -> Result<CopyReport> {
        self.receive(from.as_ref(), |pipe, options, report| {
            transfer::to_tar(pipe, &mut archive, options, report)
        })
    }

    fn send(
        &self,
        to: &Path,
        send: impl FnOnce(&mut Outgoing, &CopyOptions, &mut CopyReport) -> Result<()>,
    ) -> Result<CopyReport> {
        let action = FileAction::Import { owners: self.owners };
        let (call, ends) =
            self.start_for(self.copy_purpose("copy to", to), action, Streams::Both, keep_input)?;
        let Ends { input: Some(input), output } = ends else {
            return Err(Error::Protocol { why: "a copy without a pipe" });
        };
        let mut report = CopyReport::default();
        let mut pipe = Outgoing::new(input, call.deadline)?.beside(call.job());
        let sent = send(&mut pipe, &self.copy_options(), &mut report);
        // The end of what comes. Where it comes too early, the job leaves no half file.
        drop(pipe);
        if let Err(Error::TimedOut { .. }) = sent {
            return Err(call.timed_out());
        }
        let made = call.finish_telling_where(Ends { input: None, output }, LONGEST_ANSWER);
        match sent {
            Ok(()) => made.map(|()| report),
            // It has stopped reading, and says why.
            Err(error @ Error::Protocol { .. }) => Err(made.err().unwrap_or(error)),
            Err(error) => Err(error),
        }
    }

    fn receive(
        &self,
        from: &Path,
        receive: impl FnOnce(&mut Incoming, &CopyOptions, &mut CopyReport) -> Result<()>,
    ) -> Result<CopyReport> {
        let purpose = self.copy_purpose("copy", from);
        let (call, ends) =
            self.start_for(purpose, FileAction::Export, Streams::Output, no_input)?;
        let output = ends.output.ok_or(Error::Protocol { why: "a copy without a pipe" })?;
        let mut report = CopyReport::default();
        let mut pipe = Incoming::new(output, call.deadline)?.beside(call.job());
        let received = receive(&mut pipe, &self.copy_options(), &mut report).and_then(|()| {
            if pipe.is_at_end()? { Ok(()) } else { Err(Error::refused("more than one tree")) }
        });
        match received {
            Ok(()) => call.finish().map(|()| report),
            Err(Error::TimedOut { .. }) => Err(call.give_up()),
            // Of what was told inside, with the whole path.
            Err(Error::File { path, source, .. }) => {
                call.abandon();
                Err(call.error_at(&path, source))
            }
            // It has ended too early, and says why.
            Err(error @ Error::Protocol { .. }) if pipe.has_ended() => {
                Err(call.finish().err().unwrap_or(error))
            }
            Err(error) => {
                call.abandon();
                Err(error)
            }
        }
    }

    fn copy_purpose(&self, operation: &'static str, path: &Path) -> Purpose {
        let timeout: Duration = self.timeout.unwrap_or(COPY_TIMEOUT);
        let limit = self.limit.unwrap_or(COPY_LIMIT);
        Purpose { operation, path: path.to_owned(), timeout, span: Span::Call, limit }
    }

    fn copy_options(&self) -> CopyOptions {
        CopyOptions {
            owners: self.owners,
            set_ids: self.set_ids,
            extended: true,
            limit: self.limit.unwrap_or(COPY_LIMIT),
            entries: self.entry_limit,
        }
    }
}
