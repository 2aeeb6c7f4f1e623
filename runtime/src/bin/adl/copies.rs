//! Copies into the sandbox before a command runs, and out of it afterwards.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use adl_runtime::{CopyReport, Error, FileKind, Files};
use clap::{Args, ValueHint};
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

use crate::bases::Bases;
use crate::output::say;
use crate::result::Outcome;
use crate::values::{CliResult, of_bytes};

/// What help says of copies beside their options.
pub(crate) const HELP: &str = "\
A copy is called TO, or, if that ends with a slash, has its old name in TO. Directories that are \
there are added to, those above TO inside are made. The path inside can't have a `:`. What is \
copied out is made by this user, without set-user-id bits. A file that is copied out to a directory \
that is there is put in it, under its old name; else the directory that TO is in has to be there \
before the command runs. A symbolic link in it is copied as a link, \
which leads where the sandbox wants; FROM itself is followed, inside. FIFOs, sockets and devices are left \
out. Inside, copies are done with the rights of --user.";

#[derive(Args)]
pub(crate) struct CopyOptions {
    /// Before the command runs, copy a file or directory of this machine to the path TO inside
    #[arg(long, value_name = "FROM:TO", value_hint = ValueHint::AnyPath)]
    #[arg(value_parser = of_bytes(Transfer::into_sandbox))]
    pub(crate) copy_in: Vec<Transfer>,

    /// When the command has ended, however it did, copy what is at the path FROM inside to this
    /// machine
    #[arg(long, value_name = "FROM:TO", value_hint = ValueHint::AnyPath)]
    #[arg(value_parser = of_bytes(Transfer::out_of_sandbox))]
    pub(crate) copy_out: Vec<Transfer>,
}

/// One copy.
#[derive(Clone)]
pub(crate) struct Transfer {
    from: PathBuf,
    to: PathBuf,
}

/// What `-` is with docker, and in many programs.
const NO_STREAM: &str = "stdin and stdout are the command's: for a tar archive run tar inside, as \
                         `adl run -- tar -cf - DIR > x.tar`; a file of the name `-` is ./-";

impl Transfer {
    /// Reads `FROM:TO`, of which FROM is on this machine.
    fn into_sandbox(text: &OsStr) -> Result<Self, &'static str> {
        Self::parse(text, text.as_bytes().iter().rposition(|byte| *byte == b':'))
    }

    /// Reads `FROM:TO`, of which TO is on this machine.
    fn out_of_sandbox(text: &OsStr) -> Result<Self, &'static str> {
        Self::parse(text, text.as_bytes().iter().position(|byte| *byte == b':'))
    }

    fn parse(text: &OsStr, colon: Option<usize>) -> Result<Self, &'static str> {
        let bytes = text.as_bytes();
        let parts = colon.and_then(|at| Some((bytes.get(..at)?, bytes.get(at + 1..)?)));
        match parts {
            Some((from, to)) if !from.is_empty() && !to.is_empty() => {
                let from = PathBuf::from(OsStr::from_bytes(from));
                let mut to: PathBuf = OsStr::from_bytes(to).into();
                if from.as_os_str() == "-" || to.as_os_str() == "-" {
                    return Err(NO_STREAM);
                }
                if bytes.ends_with(b"/") {
                    to.push(from.file_name().ok_or("FROM has no name to keep")?);
                }
                Ok(Self { from, to })
            }
            _ => Err("takes FROM:TO"),
        }
    }

    /// The path that is copied to.
    pub(crate) fn target(&self) -> &Path {
        &self.to
    }

    /// Copies into the sandbox.
    pub(crate) fn copy_in(&self, files: &Files, bases: &Bases) -> CliResult<()> {
        let copied = self.try_copy_in(files, bases);
        copied.map_err(|error| format!("--copy-in {self}: {error}").into())
    }

    fn try_copy_in(&self, files: &Files, bases: &Bases) -> CliResult<()> {
        if let Some(above) = self.to.parent().filter(|above| !above.as_os_str().is_empty()) {
            files.create_dir_all(above)?;
        }
        let report = files.copy_in(bases.place(&self.from)?, &self.to)?;
        tell(&self.from, &report);
        Ok(())
    }
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.from.display(), self.to.display())
    }
}

/// A copy out of the sandbox, and the directory that it goes to. That was opened before the command
/// ran, so that no link leads elsewhere which the command has made, or a copy before this one.
pub(crate) struct CopyOut<'a> {
    transfer: &'a Transfer,
    directory: OwnedFd,
    name: &'a OsStr,
    /// Where TO is a directory: that, and the name that a file has in it.
    inside: Option<(OwnedFd, &'a OsStr)>,
}

impl<'a> CopyOut<'a> {
    pub(crate) fn open_all(transfers: &'a [Transfer], bases: &Bases) -> CliResult<Vec<Self>> {
        let open = |transfer| {
            Self::open(transfer, bases)
                .map_err(|why| format!("--copy-out {transfer}: {why}").into())
        };
        transfers.iter().map(open).collect()
    }

    fn open(transfer: &'a Transfer, bases: &Bases) -> CliResult<Self> {
        let to = &transfer.to;
        let (directory, name) = match (to.parent(), to.file_name()) {
            (Some(parent), Some(name)) if parent.as_os_str().is_empty() => (Path::new("."), name),
            (Some(parent), Some(name)) => (parent, name),
            _ => (to.as_path(), OsStr::new(".")),
        };
        let inside = match transfer.from.file_name() {
            // What is no directory is told by what is made in its place.
            Some(name) => bases.place(to)?.open_dir().ok().map(|directory| (directory, name)),
            None => None,
        };
        let opened = bases.place(directory)?.open_dir().map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
                format!("there is no directory {directory:?}; make it before the command runs")
            }
            error => error.to_string(),
        })?;
        Ok(Self { transfer, directory: opened, name, inside })
    }

    /// Whether it may make or replace a file, which is known by its device and inode.
    pub(crate) fn leads_to(&self, place: (u64, u64)) -> bool {
        let is_at = |(directory, name): (&OwnedFd, &OsStr)| {
            fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == place)
        };
        let inside = self.inside.as_ref().map(|(directory, name)| (directory, *name));
        is_at((&self.directory, self.name)) || inside.is_some_and(is_at)
    }

    fn copy(&self, files: &Files) -> Result<(), CopyError> {
        let from = &self.transfer.from;
        let is_directory =
            || files.metadata(from).map(|metadata| metadata.kind == FileKind::Directory);
        let report = match &self.inside {
            Some((directory, name)) if !is_directory()? => {
                files.copy_out_at(from, directory, name)?
            }
            _ => files.copy_out_at(from, &self.directory, self.name)?,
        };
        // Nothing at all was there to be copied.
        if let Some(skipped) = report.skipped.iter().find(|it| it.path.as_os_str().is_empty()) {
            return Err(CopyError::Skipped(skipped.kind));
        }
        tell(from, &report);
        Ok(())
    }
}

/// Why there is no copy.
enum CopyError {
    Failed(Error),
    /// What was asked for has nothing to copy.
    Skipped(FileKind),
}

impl From<Error> for CopyError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::Skipped(kind) => write!(f, "not copied, since it has no content: {kind:?}"),
        }
    }
}

/// Copies all out that is to be, whatever becomes of each; whether all were copied.
pub(crate) fn copy_all_out(copies: &[CopyOut<'_>], files: &Files, outcome: &mut Outcome) -> bool {
    let mut is_all = true;
    for copy in copies {
        if let Err(error) = copy.copy(files) {
            outcome.fail(format!("--copy-out {}: {error}", copy.transfer));
            is_all = false;
            if matches!(error, CopyError::Failed(Error::SandboxDied)) {
                break;
            }
        }
    }
    is_all
}

/// Says what of a tree is not in its copy.
fn tell(top: &Path, report: &CopyReport) {
    for skipped in &report.skipped {
        say(format_args!("not copied: {:?}, {:?}", path_of(top, &skipped.path), skipped.kind));
    }
    for path in &report.cut_off {
        say(format_args!("shorter than it was: {:?}", path_of(top, path)));
    }
    let more = report.more_skipped + report.more_cut_off;
    if more != 0 {
        say(format_args!("and {more} more"));
    }
}

fn path_of(top: &Path, below: &Path) -> OsString {
    if below.as_os_str().is_empty() { top.into() } else { top.join(below).into() }
}
