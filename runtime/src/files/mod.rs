//! Files of a sandbox, from outside.
//!
//! The host resolves no path of the guest's and opens no file of its: each call is a job, run by
//! init's own code in a process inside that has become the user that was asked for. So nothing
//! that a guest puts in a path leads the host anywhere, a call can do no more than a command of
//! that user could, and it ends with its deadline. What the job tells is taken as if the guest had
//! told it.

mod call;
mod connect;
mod copy;
pub(crate) mod list;
mod metadata;
mod streams;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use adl_protocol::{Chunk, FileAction, FileTask, MAX_CHUNK, Strings, WriteHow, limits};

use self::call::{Actor, Call, Ends, Purpose, Span, Streams};
pub use self::metadata::{Cursor, DirEntry, FileKind, Metadata, WriteMode, WriteOptions};
pub use self::streams::{FileReader, FileWriter};
use crate::config::defaults::{Defaults, check_umask};
use crate::error::traced::traced;
use crate::error::{Error, Result};
use crate::job::life::{Life, Lives};
use crate::job::user::{self, RunAs, run_as_methods};
use crate::job::watch::file_span;
use crate::wait::Deadline;
use crate::wire;

/// How long a call may take unless it says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a copy may take unless it says otherwise.
const COPY_TIMEOUT: Duration = Duration::from_secs(600);
/// The most that is read into memory unless a call says otherwise, in bytes.
const READ_LIMIT: u64 = 64 << 20;
/// The most that is streamed or copied unless a call says otherwise, in bytes.
const COPY_LIMIT: u64 = 64 << 30;
/// The most files in a tree, or names in a directory, unless a call says otherwise.
const ENTRY_LIMIT: u64 = 2 << 20;
/// What is written before the job exists, so that it finds all there: less than a pipe holds, which
/// may be one page where the user has many of them (`pipe(7)`).
const AT_ONCE: usize = 4096 - 2 * Chunk::HEADER;
/// The most that is appended in one piece, in bytes; see [`WriteMode::Append`].
const APPENDED_AT_ONCE: usize = 4 << 10;

/// Reads, writes and copies files of a sandbox; made by [`Sandbox::files`](crate::Sandbox::files).
///
/// Paths are those inside: relative ones start at [`Files::current_dir`], symbolic links lead to
/// what they mean there. All is done with the rights of one user. User, directory and umask are
/// those of [`Config::defaults`](crate::Config::defaults) unless others are said; whatever
/// [`Error::File`] says is what a command of that user would have met.
///
/// ```no_run
/// # use adl_runtime::{Config, Sandbox};
/// # let sandbox = Sandbox::create(Config::default())?;
/// let files = sandbox.files();
/// files.write_file("/tmp/greeting", b"hello")?;
/// assert_eq!(files.read_file("/tmp/greeting")?, b"hello");
/// for entry in files.list_dir("/tmp")? {
///     println!("{:?} {:?}", entry.kind, entry.name);
/// }
/// sandbox.files().user("1000").current_dir("/home").copy_in("project", "project")?;
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Files {
    lives: Arc<Lives>,
    run_as: RunAs,
    directory: PathBuf,
    /// What was said; else it is the default of the sandbox.
    umask: Option<u32>,
    timeout: Option<Duration>,
    limit: Option<u64>,
    entry_limit: u64,
    owners: bool,
    set_ids: bool,
}

impl Files {
    pub(crate) fn new(lives: &Arc<Lives>) -> Self {
        let defaults = lives.defaults();
        Self {
            lives: Arc::clone(lives),
            run_as: RunAs::of(defaults, lives.user_is_of_image()),
            directory: Path::new("/").join(&defaults.current_dir),
            umask: None,
            timeout: None,
            limit: None,
            entry_limit: ENTRY_LIMIT,
            owners: false,
            set_ids: false,
        }
    }

    run_as_methods! {}

    /// Sets where relative paths start: a path in the sandbox.
    pub fn current_dir(&mut self, directory: impl AsRef<Path>) -> &mut Self {
        self.directory = Path::new("/").join(directory);
        self
    }

    /// Sets the file mode creation mask (`umask(2)`), of what is made without a mode that is said.
    /// Copies and archives have modes for all that they make: with them it is [`Error::Invalid`].
    pub fn umask(&mut self, umask: u32) -> &mut Self {
        self.umask = Some(umask);
        self
    }

    /// Sets how long a call may take; by default 30 seconds, and 10 minutes for copies and
    /// archives. For [`FileReader`] and [`FileWriter`] it is how long each read or write may wait.
    pub fn timeout(&mut self, timeout: Duration) -> &mut Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the most that is read, written or copied, in bytes of content; more is
    /// [`Error::TooLarge`]. By default 64 MiB of what is read into memory, else 64 GiB.
    pub fn limit(&mut self, bytes: u64) -> &mut Self {
        self.limit = Some(bytes);
        self
    }

    /// Sets the most entries of a tree that is copied or of a directory that is listed, 2 Mi by
    /// default; more is [`Error::TooLarge`].
    pub fn entry_limit(&mut self, entries: u64) -> &mut Self {
        self.entry_limit = entries;
        self
    }

    /// Sets whether copies and archives keep owners and groups. By default what is made belongs to
    /// whoever makes it: inside the user of these calls, outside the calling program's.
    pub fn keep_owners(&mut self, keep: bool) -> &mut Self {
        self.owners = keep;
        self
    }

    /// Sets whether copies and archives keep set-user-id and set-group-id bits; by default they
    /// don't. On the host, such a file of a guest's gives whoever runs it rights that it chose.
    pub fn keep_set_ids(&mut self, keep: bool) -> &mut Self {
        self.set_ids = keep;
        self
    }

    /// Reads a regular file. A symbolic link is followed, inside.
    ///
    /// # Errors
    /// Of all calls: [`Error::File`] with the kernel's answer, as `ENOENT` or `EACCES`;
    /// [`Error::TimedOut`]; [`Error::SandboxDied`]; [`Error::Deleted`]; [`Error::Invalid`] for a
    /// path that can't be one. Here as well [`Error::NotRegular`] for a FIFO, a socket, a device or
    /// a file of `/proc`, [`Error::File`] with `EISDIR` for a directory and with `EAGAIN` where
    /// someone inside has a lease on the file (`fcntl(2)`), none of which is waited for; and
    /// [`Error::TooLarge`].
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let limit = self.limit.unwrap_or(READ_LIMIT);
        self.read(path.as_ref(), 0, limit, true)
    }

    /// Reads at most `length` bytes of a regular file, from `offset` on; fewer only at its end.
    ///
    /// # Errors
    /// As [`Files::read_file`]: [`Error::TooLarge`] if there are more than [`Files::limit`].
    pub fn read_range(&self, path: impl AsRef<Path>, offset: u64, length: u64) -> Result<Vec<u8>> {
        let limit = self.limit.unwrap_or(READ_LIMIT);
        // One byte more than there may be, to learn of it.
        let bytes = self.read(path.as_ref(), offset, length.min(limit.saturating_add(1)), false)?;
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge { what: "what is to be read, in bytes,", limit });
        }
        Ok(bytes)
    }

    fn read(&self, path: &Path, offset: u64, limit: u64, whole: bool) -> Result<Vec<u8>> {
        let action = FileAction::Read { offset, limit, whole };
        let (call, ends) = self.start("read", path, limit, action, Streams::Output)?;
        call.answer(ends, limit)
    }

    /// Opens a regular file to read it piece by piece.
    ///
    /// # Errors
    /// As [`Files::read_file`], some of them at the first read.
    pub fn open_read(&self, path: impl AsRef<Path>) -> Result<FileReader> {
        let limit = self.limit.unwrap_or(COPY_LIMIT);
        let action = FileAction::Read { offset: 0, limit, whole: true };
        let purpose =
            Purpose { span: Span::EachWait, ..self.purpose("read", path.as_ref(), limit) };
        let (call, ends) = self.start_for(purpose, action, Streams::Output, no_input)?;
        FileReader::new(call, ends, limit)
    }

    /// Writes a file, replacing what is there all at once; see [`WriteMode::Replace`].
    ///
    /// # Errors
    /// As [`Files::read_file`]; what was there is as before, or where the job was killed or its
    /// time was up, all of the new file may be in its place, never a part.
    pub fn write_file(&self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.write_with(path, bytes, WriteOptions::new())
    }

    /// Adds to the end of a file; see [`WriteMode::Append`].
    ///
    /// # Errors
    /// As [`Files::read_file`]; a part may have been written.
    pub fn append_file(&self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.write_with(path, bytes, WriteOptions::new().how(WriteMode::Append))
    }

    /// Writes a file as the options say.
    ///
    /// # Errors
    /// As [`Files::read_file`]; and [`Error::File`] with `ENOSPC` where the disk is full.
    pub fn write_with(
        &self,
        path: impl AsRef<Path>,
        bytes: impl AsRef<[u8]>,
        options: WriteOptions,
    ) -> Result<()> {
        let (path, bytes) = (path.as_ref(), bytes.as_ref());
        let limit = self.limit.unwrap_or(COPY_LIMIT);
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge { what: "what is to be written, in bytes,", limit });
        }
        let purpose = self.purpose("write", path, limit);
        if bytes.len() > AT_ONCE {
            let mut writer = self.writer(purpose, options)?;
            let at_once = match options.how {
                WriteMode::Append => APPENDED_AT_ONCE,
                _ => usize::try_from(MAX_CHUNK).unwrap_or(APPENDED_AT_ONCE),
            };
            for part in bytes.chunks(at_once) {
                writer.write_part(part)?;
            }
            return writer.finish();
        }
        let mut all = Vec::with_capacity(bytes.len() + 2 * Chunk::HEADER);
        if !bytes.is_empty() {
            all.extend_from_slice(&Chunk::Data(bytes.len() as u64).encode());
            all.extend_from_slice(bytes);
        }
        all.extend_from_slice(&Chunk::End.encode());
        let (call, _) =
            self.start_for(purpose, write_action(options)?, Streams::Input, |pipe| {
                nix::unistd::write(&pipe, &all).map_err(Error::io("write to a pipe"))?;
                Ok(None)
            })?;
        call.finish()
    }

    /// Opens a file to write it piece by piece.
    ///
    /// # Errors
    /// As [`Files::read_file`], some of them at a later write.
    pub fn open_write(&self, path: impl AsRef<Path>, options: WriteOptions) -> Result<FileWriter> {
        let limit = self.limit.unwrap_or(COPY_LIMIT);
        let purpose = self.purpose("write", path.as_ref(), limit);
        self.writer(Purpose { span: Span::EachWait, ..purpose }, options)
    }

    fn writer(&self, purpose: Purpose, options: WriteOptions) -> Result<FileWriter> {
        let limit = purpose.limit;
        let (call, ends) =
            self.start_for(purpose, write_action(options)?, Streams::Input, keep_input)?;
        FileWriter::new(call, ends, limit)
    }

    /// What is known of a file. A symbolic link is followed, inside.
    ///
    /// # Errors
    /// See [`Files::read_file`].
    pub fn metadata(&self, path: impl AsRef<Path>) -> Result<Metadata> {
        self.stat(path.as_ref(), true)
    }

    /// Tells what is at a path; of a symbolic link, of the link itself.
    ///
    /// # Errors
    /// See [`Files::read_file`].
    pub fn symlink_metadata(&self, path: impl AsRef<Path>) -> Result<Metadata> {
        self.stat(path.as_ref(), false)
    }

    fn stat(&self, path: &Path, follow: bool) -> Result<Metadata> {
        let action = FileAction::Metadata { follow };
        let (call, ends) = self.start("look at", path, LONGEST_ANSWER, action, Streams::Output)?;
        let answer = call.answer(ends, LONGEST_ANSWER)?;
        Ok(wire::decode_frame::<adl_protocol::Metadata>(&answer)?.into())
    }

    /// Whether something is there. A symbolic link is followed, inside.
    ///
    /// # Errors
    /// See [`Files::read_file`]: what can't be found out is an error, and no `false`.
    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        match self.metadata(path) {
            Ok(_) => Ok(true),
            Err(Error::File { source, .. })
                if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a directory, and those above it that are missing, each with mode 0755 as far as the
    /// umask lets it. One that exists is no error.
    ///
    /// # Errors
    /// See [`Files::read_file`].
    pub fn create_dir_all(&self, path: impl AsRef<Path>) -> Result<()> {
        let action = FileAction::CreateDirectories { mode: 0o755 };
        self.run("create the directory", path.as_ref(), action)
    }

    /// Removes a file, or anything else but a directory. A symbolic link is not followed.
    ///
    /// # Errors
    /// See [`Files::read_file`].
    pub fn remove_file(&self, path: impl AsRef<Path>) -> Result<()> {
        self.run("remove", path.as_ref(), FileAction::RemoveFile)
    }

    /// Removes a directory and all that is in it. No symbolic link is followed, and what is mounted
    /// below it is not entered but an error.
    ///
    /// # Errors
    /// See [`Files::read_file`]; the path in [`Error::File`] is of what could not be removed.
    pub fn remove_dir_all(&self, path: impl AsRef<Path>) -> Result<()> {
        let longest = LONGEST_ANSWER;
        let path = path.as_ref();
        let (call, ends) =
            self.start("remove", path, longest, FileAction::RemoveTree, Streams::Output)?;
        call.finish_telling_where(ends, longest)
    }

    /// Gives something another path, in place of what is there (`rename(2)`).
    ///
    /// # Errors
    /// See [`Files::read_file`].
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let to = self.absolute(to.as_ref())?;
        self.run("rename", from.as_ref(), FileAction::Rename { to: string(&to)? })
    }

    /// Makes a symbolic link at `path` that says `target`, whatever that may be.
    ///
    /// # Errors
    /// See [`Files::read_file`].
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let target = terminated("target", target.as_ref())?;
        self.run(
            "make a link at",
            path.as_ref(),
            FileAction::SymbolicLink { target: string(&target)? },
        )
    }

    /// What a symbolic link says: bytes that its maker chose.
    ///
    /// # Errors
    /// See [`Files::read_file`]; `EINVAL` for what is no symbolic link.
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let action = FileAction::ReadLink;
        let (call, ends) =
            self.start("read the link", path.as_ref(), LONGEST_ANSWER, action, Streams::Output)?;
        Ok(OsString::from_vec(call.answer(ends, LONGEST_ANSWER)?).into())
    }

    /// Sets permissions (`chmod(2)`). A symbolic link is followed, inside.
    ///
    /// # Errors
    /// See [`Files::read_file`].
    pub fn set_permissions(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        self.run("set the mode of", path.as_ref(), FileAction::SetMode { mode })
    }

    /// Sets owner and group, as they are inside; `None` leaves one as it is. A symbolic link is
    /// followed, inside.
    ///
    /// # Errors
    /// See [`Files::read_file`].
    pub fn chown(&self, path: impl AsRef<Path>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.set_owner(path.as_ref(), uid, gid, true)
    }

    /// Changes the owner and group of a symbolic link itself.
    ///
    /// # Errors
    /// See [`Files::read_file`].
    pub fn lchown(&self, path: impl AsRef<Path>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.set_owner(path.as_ref(), uid, gid, false)
    }

    fn set_owner(
        &self,
        path: &Path,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: bool,
    ) -> Result<()> {
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Error::invalid("owner", "id 4294967295 means no change to the kernel"));
        }
        let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
        self.run("set the owner of", path, FileAction::SetOwner { uid, gid, follow })
    }

    /// Does what tells nothing.
    fn run(&self, operation: &'static str, path: &Path, action: FileAction<'_>) -> Result<()> {
        self.start(operation, path, 0, action, Streams::None)?.0.finish()
    }

    fn start(
        &self,
        operation: &'static str,
        path: &Path,
        limit: u64,
        action: FileAction<'_>,
        streams: Streams,
    ) -> Result<(Call, Ends)> {
        self.start_for(self.purpose(operation, path, limit), action, streams, no_input)
    }

    fn purpose(&self, operation: &'static str, path: &Path, limit: u64) -> Purpose {
        let timeout = self.timeout.unwrap_or(TIMEOUT);
        Purpose { operation, path: path.to_owned(), timeout, span: Span::Call, limit }
    }

    fn start_for(
        &self,
        purpose: Purpose,
        action: FileAction<'_>,
        streams: Streams,
        prepare: impl FnOnce(OwnedFd) -> Result<Option<OwnedFd>>,
    ) -> Result<(Call, Ends)> {
        let span = file_span(purpose.operation, &purpose.path);
        traced(&span, || self.start_in(&span, purpose, action, streams, prepare))
    }

    fn start_in(
        &self,
        span: &tracing::Span,
        purpose: Purpose,
        action: FileAction<'_>,
        streams: Streams,
        prepare: impl FnOnce(OwnedFd) -> Result<Option<OwnedFd>>,
    ) -> Result<(Call, Ends)> {
        let deadline = purpose.deadline();
        let (life, actor, path) = self.settle(span, &purpose, &action)?;
        let task = FileTask { path: string(&path)?, action };
        Call::start(&life, deadline, actor, purpose, (task, span), streams, prepare)
    }

    /// The life that a call begins in, who does it, and its path.
    fn settle(
        &self,
        span: &tracing::Span,
        purpose: &Purpose,
        action: &FileAction<'_>,
    ) -> Result<(Life, Actor, Vec<u8>)> {
        let path = self.absolute(&purpose.path)?;
        // A copy sets the modes of what it makes when that is whole. Until then it is its maker's.
        let umask = match (action, self.umask) {
            (FileAction::Import { .. } | FileAction::Export, Some(_)) => {
                return Err(Error::invalid("umask", "copies and archives keep modes: set none"));
            }
            (FileAction::Import { .. }, None) => 0o077,
            (_, said) => check_umask(said.unwrap_or(self.lives.defaults().umask))?,
        };
        // A name is looked up in files that a guest may hold up, too.
        let by = Deadline::after(purpose.timeout);
        let life = self.lives.begin(by).map_err(|error| match error {
            Error::TimedOut { .. } => purpose.timed_out(),
            error => error,
        })?;
        span.record("sandbox", &*life.sandbox);
        let read = |path| read_small(&life, path, user::LONGEST, by);
        let found = self.run_as.find(life.control.ids(), read);
        let (identity, _) = found.map_err(|error| match error {
            Error::TimedOut { .. } => purpose.timed_out(),
            error => error,
        })?;
        match action {
            FileAction::SetOwner { uid, gid, .. }
            | FileAction::Write { owner: Some((uid, gid)), .. } => {
                user::check_owner(life.control.ids(), *uid, *gid)?;
            }
            _ => {}
        }
        Ok((life, Actor { identity, umask }, path))
    }

    /// A path from the root of the sandbox on, with a NUL behind it.
    fn absolute(&self, path: &Path) -> Result<Vec<u8>> {
        if path.as_os_str().is_empty() {
            return Err(Error::invalid("path", "it is empty"));
        }
        let path = self.directory.join(path);
        if path.as_os_str().len() > limits::MAX_PATH {
            let why = format!("longer than {} bytes", limits::MAX_PATH);
            return Err(Error::invalid("path", why));
        }
        terminated("path", &path)
    }
}

/// Reads a file as root of the sandbox would; an absent one is empty.
pub(crate) fn read_small(
    life: &Life,
    path: &'static str,
    limit: u64,
    deadline: Deadline,
) -> Result<Vec<u8>> {
    let mut files = Files::new(&Lives::new(life.clone(), Defaults::default(), false));
    if let Some(left) = deadline.left() {
        files.timeout(left);
    }
    match files.limit(limit).read_file(path) {
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(Vec::new())
        }
        read => read,
    }
}

/// The longest answer that is no listing, in bytes: a path, and a little.
const LONGEST_ANSWER: u64 = 8 << 10;

fn no_input(_: OwnedFd) -> Result<Option<OwnedFd>> {
    Ok(None)
}

fn keep_input(pipe: OwnedFd) -> Result<Option<OwnedFd>> {
    Ok(Some(pipe))
}

fn write_action(options: WriteOptions) -> Result<FileAction<'static>> {
    if options.owner.is_some_and(|(uid, gid)| uid == u32::MAX || gid == u32::MAX) {
        return Err(Error::invalid("owner", "id 4294967295 means no change to the kernel"));
    }
    let how = match options.how {
        WriteMode::Replace => WriteHow::Replace,
        WriteMode::CreateNew => WriteHow::CreateNew,
        WriteMode::Truncate => WriteHow::Truncate,
        WriteMode::Append => WriteHow::Append,
    };
    Ok(FileAction::Write { how, mode: options.mode, owner: options.owner })
}

fn terminated(what: &'static str, path: &Path) -> Result<Vec<u8>> {
    let mut block = Vec::new();
    Strings::append(&mut block, path.as_os_str().as_bytes())
        .map_err(|error| Error::invalid(what, error.to_string()))?;
    Ok(block)
}

fn string(block: &[u8]) -> Result<Strings<'_>> {
    Strings::new(block).map_err(|error| Error::invalid("path", error.to_string()))
}
