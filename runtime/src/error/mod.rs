//! The one error type, by what a caller can do about it.

pub(crate) mod traced;
mod words;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use self::words::{Count, Listed, NotBuilt, NotStarted, Of, Remedy, Unanswered};
use crate::exit::ExitStatus;
use crate::mirror::mirror;

/// What this library's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something was not done.
///
/// Its text tells the kernel's answer, too, and so [`std::error::Error::source`] is `None`: nothing
/// is printed twice. That answer is the field `source` of the variants that have one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What was asked for makes no sense, here or anywhere; nothing was started.
    #[error("invalid {what}: {why}")]
    Invalid {
        /// The option or argument.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// This machine, or this user, can't give what was asked for.
    #[error("{what} is not available here: {why}; {fix}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What stands in the way.
        why: String,
        /// What an administrator or the caller can do about it.
        fix: String,
    },
    /// A step of building the sandbox failed; all of it is undone.
    #[error("{}", NotBuilt(.path, *.step, .source))]
    Setup {
        /// The step.
        step: Step,
        /// What it was done to, empty if the step says it all. Bytes from inside.
        path: PathBuf,
        /// The kernel's answer.
        r#source: io::Error,
    },
    /// A command was not started; the sandbox and its other jobs are as before.
    #[error("{}", NotStarted(.program, *.stage, .source))]
    Start {
        /// What was to be run; the user or the working directory, where that is what is wrong.
        program: PathBuf,
        /// How far it came. [`Stage::Directory`] with `NotFound` is the working directory's
        /// absence, [`Stage::Exec`] with `NotFound` that of the program or its interpreter.
        stage: Stage,
        /// The kernel's answer.
        r#source: io::Error,
    },
    /// Something could not be done with a file of the sandbox.
    #[error("could not {operation} {path:?} in the sandbox: {source}")]
    File {
        /// What was to be done.
        operation: &'static str,
        /// The file, as it was named, or one below it. It may hold bytes that a guest chose.
        path: PathBuf,
        /// The kernel's answer, to what the user that was asked for may do inside.
        r#source: io::Error,
    },
    /// A TCP socket could not be had: in the sandbox or, for a port that leads into it, on the host.
    #[error("could not {operation} {address}{}", Unanswered(.source, *.is_inside))]
    Socket {
        /// What was to be done.
        operation: &'static str,
        /// The address.
        address: SocketAddr,
        /// Whether that is one of the sandbox's, and not of the host's.
        is_inside: bool,
        /// The kernel's answer.
        r#source: io::Error,
    },
    /// Where a regular file was expected, there is something else that must not be read or written
    /// as one: a FIFO, a socket, a device, or a file of `/proc`.
    #[error("{path:?} in the sandbox is not a regular file, and is not read or written")]
    NotRegular {
        /// The path, as it was named.
        path: PathBuf,
    },
    /// There is more than the call may move or tell.
    #[error("{what} is larger than {limit}, the limit of this call")]
    TooLarge {
        /// What there is too much of, with its unit.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// What came out of the sandbox, or of an archive, would have harmed the host, as a name with a
    /// `/` in it: it was refused, and nothing was made of it.
    #[error("refused, since it might harm the host: {why}")]
    Refused {
        /// What was wrong.
        why: String,
    },
    /// The sandbox has died, or another thread has reset it meanwhile or made a snapshot of it:
    /// what was asked for, or a part of it, was not done.
    /// [`Sandbox::is_alive`](crate::Sandbox::is_alive) tells whether the call can be made again, or
    /// a reset is due.
    #[error("the sandbox has died, or was reset meanwhile")]
    SandboxDied,
    /// The sandbox was deleted.
    #[error("the sandbox was deleted: create another")]
    Deleted,
    /// The pool was closed.
    #[error("the pool was closed: make another")]
    PoolClosed,
    /// A pool could not make a sandbox. It goes on trying, with pauses between.
    #[error("the pool could not make a sandbox: {why}")]
    Pool {
        /// What went wrong the last time.
        why: Arc<Error>,
    },
    /// What prepares or checks the sandboxes of a pool
    /// ([`PoolBuilder::prepare`](crate::PoolBuilder::prepare)) has refused a new one, or has
    /// panicked. The sandbox was deleted.
    #[error("could not prepare a new sandbox: {why}")]
    Prepare {
        /// What it returned, or what it panicked with.
        why: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A sandbox, or a snapshot, of this name exists.
    #[error("the name {name:?} is in use: choose another, or remove what has it")]
    NameInUse {
        /// The name.
        name: String,
    },
    /// There is no snapshot of this name.
    #[error("there is no snapshot named {name:?} in the state directory")]
    NoSnapshot {
        /// The name.
        name: String,
    },
    /// There is no image of this name in the state directory, and none could be fetched.
    #[error(
        "there is no image {image} in the state directory, and {program} can't fetch it: {why}"
    )]
    Pull {
        /// The whole name of the image: the registry, where it is looked for, comes first.
        image: String,
        /// What was to fetch it.
        program: &'static str,
        /// What that says, shortened to its cause, and what to do about it where that is known.
        why: String,
    },
    /// There is no image of this name in the state directory.
    #[error("there is no image {name:?} in the state directory")]
    NoImage {
        /// The name, or a digest.
        name: String,
    },
    /// It belongs to another process, of which the calling one is a fork; nothing was done. A fork
    /// makes sandboxes of its own, or asks its parent. Pipes and terminals of commands are
    /// descriptors, which it shares as any others.
    #[error(
        "{what} belongs to another process, of which this one is a fork: use it there, or make \
         another here"
    )]
    ForkedProcess {
        /// What the other process has made.
        what: &'static str,
    },
    /// It is used by something else; nothing was done.
    #[error("{what} is in use by {by}")]
    Busy {
        /// What can't be had, or removed.
        what: String,
        /// Who has it.
        by: String,
    },
    /// The other side did not answer in time.
    #[error("waited {after:?} for {what}, and gave up")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// A command has ended, and not all went between it and a stream of the caller's
    /// ([`Stdio`](crate::Stdio)) that was to: that failed, or did not take it in time.
    #[error("the command ended ({status}), but not all of its streams was passed on: {why}")]
    Undelivered {
        /// How it ended.
        status: Box<ExitStatus>,
        /// What happened to the stream.
        why: Arc<Error>,
    },
    /// The other side sent something that the protocol does not allow.
    #[error("the init of the sandbox broke the protocol: {why}")]
    Protocol {
        /// What was wrong.
        why: &'static str,
    },
    /// Some of what was left behind could not be removed; the rest was.
    #[error("{} could not be removed: {}", Count(.errors), Listed(.errors))]
    Uncollected {
        /// The names of what was removed.
        removed: Vec<String>,
        /// What was not, each with its path.
        errors: Vec<Error>,
    },
    /// An operation on the host failed.
    #[error("{operation}{}: {source}{}", Of(.path), Remedy(operation, .source))]
    Io {
        /// The operation, as a system call or in words.
        operation: &'static str,
        /// What it was done to, empty if nothing has a name.
        path: PathBuf,
        /// The kernel's answer.
        r#source: io::Error,
    },
}

mirror! {
/// The stages of a start. A program's come about in this order, but its streams are put in place
/// before its identity, and once more after its terminal; and how many files it may have open is
/// set last before it is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Read the request and its descriptors.
    Request,
    /// Make the process.
    Fork,
    /// Join its cgroups.
    Cgroup,
    /// Make its session.
    Session,
    /// Set its resource limits.
    Rlimit,
    /// Set its niceness.
    Nice,
    /// Set what the kernel thinks of it when memory runs out.
    OomScore,
    /// Take on its groups and ids.
    Identity,
    /// Give up capabilities.
    Capabilities,
    /// Make its terminal.
    Terminal,
    /// Put its standard descriptors in place and close all others.
    Stdio,
    /// Enter its working directory.
    Directory,
    /// Run the program.
    Exec,
    /// Find the file, or make it.
    File,
    /// See whether it is a regular file. The error number says nothing more.
    Kind,
    /// Move bytes.
    Copy,
    /// Make a socket, give it its address or have it connect.
    Socket,
}
}

mirror! {
/// The steps of building a sandbox. Some come about more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Read the request.
    Protocol,
    /// Become root of the user namespace.
    Identity,
    /// Set the host name.
    Hostname,
    /// Bring the loopback device up.
    Loopback,
    /// Cut the mount namespace off from the host's.
    Propagation,
    /// Mount the file system that the layers are gathered on.
    Scratch,
    /// Attach a read-only layer.
    Layer,
    /// Attach or mount the writable layer.
    Upper,
    /// Mount an overlay.
    Overlay,
    /// Make the sandbox's own files in `/etc`.
    Etc,
    /// Mount `/proc`.
    Proc,
    /// Set a kernel parameter.
    Sysctl,
    /// Cover a path below `/proc`, or make it read-only.
    Mask,
    /// Make `/dev`.
    Dev,
    /// Make `/sys`.
    Sys,
    /// Put a volume, a tmpfs or a device in its place.
    Mount,
    /// Make the assembled tree the root, and let go of the host's.
    Pivot,
    /// Set init's own limits.
    Limits,
    /// Give up all capabilities that are not needed.
    Capabilities,
    /// Install the system call filters.
    Seccomp,
}
}

/// What can be done about an error, told by [`Error::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The call asks for what can't be. Change the call.
    Invalid,
    /// This machine, or this user, can't give what was asked for. The error says what an
    /// administrator can do.
    Unsupported,
    /// Something is in use, full or late. The same call may succeed later.
    Temporary,
    /// The sandbox has died, or was reset meanwhile. If [`Sandbox::is_alive`] says so, the call can
    /// be made again; else reset it first, or make another.
    ///
    /// [`Sandbox::is_alive`]: crate::Sandbox::is_alive
    Died,
    /// What was tried inside failed by the rights, files and programs there. Tell whoever asked for
    /// it.
    Inside,
    /// What came out of the sandbox, or of an archive, breaks the rules. Don't trust what is inside.
    Violation,
    /// An operation of the host failed. Tell an administrator.
    Host,
}

impl Error {
    /// What can be done about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. }
            | Self::ForkedProcess { .. }
            | Self::Deleted
            | Self::PoolClosed
            | Self::NameInUse { .. }
            | Self::NoSnapshot { .. }
            | Self::NoImage { .. } => ErrorKind::Invalid,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Busy { .. } | Self::TimedOut { .. } => ErrorKind::Temporary,
            Self::Undelivered { why, .. } | Self::Pool { why } => why.kind(),
            Self::Prepare { why } => {
                why.downcast_ref::<Self>().map_or(ErrorKind::Inside, Self::kind)
            }
            Self::SandboxDied => ErrorKind::Died,
            Self::Start {
                stage:
                    Stage::Fork | Stage::Cgroup | Stage::Identity | Stage::Directory | Stage::Terminal,
                source,
                ..
            } if is_short(source) => ErrorKind::Temporary,
            Self::Socket { source, .. } if is_short(source) => ErrorKind::Temporary,
            Self::Start { .. }
            | Self::File { .. }
            | Self::Socket { is_inside: true, .. }
            | Self::NotRegular { .. }
            | Self::TooLarge { .. } => ErrorKind::Inside,
            Self::Protocol { .. } | Self::Refused { .. } => ErrorKind::Violation,
            Self::Io { source, .. } | Self::Setup { source, .. } if is_short(source) => {
                ErrorKind::Temporary
            }
            Self::Io { .. }
            | Self::Socket { .. }
            | Self::Setup { .. }
            | Self::Uncollected { .. }
            | Self::Pull { .. } => ErrorKind::Host,
        }
    }

    /// One that several are told of, for the next of them: what comes of moving bytes.
    pub(crate) fn again(&self) -> Self {
        let copy = |error: &io::Error| match error.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(error.kind(), error.to_string()),
        };
        match self {
            Self::Undelivered { status, why } => {
                Self::Undelivered { status: status.clone(), why: Arc::clone(why) }
            }
            Self::Start { program, stage, source } => {
                Self::Start { program: program.clone(), stage: *stage, source: copy(source) }
            }
            Self::Io { operation, path, source } => {
                Self::Io { operation, path: path.clone(), source: copy(source) }
            }
            Self::TimedOut { what, after } => Self::TimedOut { what, after: *after },
            Self::Protocol { why } => Self::Protocol { why },
            Self::SandboxDied => Self::SandboxDied,
            other => Self::io("move what the command writes")(io::Error::other(other.to_string())),
        }
    }

    pub(crate) fn invalid(what: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { what, why: why.into() }
    }

    pub(crate) fn refused(why: impl Into<String>) -> Self {
        Self::Refused { why: why.into() }
    }

    /// Whether a disk, or a limit on it, is full.
    pub(crate) fn is_no_space(&self) -> bool {
        let (Self::Io { source, .. } | Self::Setup { source, .. }) = self else { return false };
        matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
    }

    /// Whether the caller has not the rights for it.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::File { source, .. } => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            _ => false,
        }
    }

    /// Whether there was not enough memory, or there were too many processes, for an init to be
    /// started, to go on, or to do anything in time.
    pub(crate) fn is_exhausted(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Setup { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM))
            }
            Self::SandboxDied | Self::TimedOut { .. } => true,
            _ => false,
        }
    }

    /// Whether there were no descriptors left, of the process or of the machine.
    pub(crate) fn is_no_descriptors(&self) -> bool {
        let (Self::Io { source, .. } | Self::Setup { source, .. }) = self else { return false };
        matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
    }

    /// For `map_err`, on what has no path.
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        Self::at(operation, Path::new(""))
    }

    /// For `map_err`.
    pub(crate) fn at<E: Into<io::Error>>(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source: source.into() }
    }

    /// For `map_err` of a change of owner. `EINVAL` is the kernel's word for ids that a user
    /// namespace has not.
    pub(crate) fn at_chown(path: &Path, [uid, gid]: [u32; 2]) -> impl FnOnce(Errno) -> Self {
        move |errno| match errno {
            Errno::EINVAL => Self::Unsupported {
                what: format!("the owner {uid}:{gid} of {path:?}"),
                why: "the calling user has no such ids".to_owned(),
                fix: "give the user longer ranges in /etc/subuid and /etc/subgid, or unpack it as \
                      root or without `ids` (adl run --ids)"
                    .to_owned(),
            },
            errno => Self::at("chown", path)(errno),
        }
    }
}

/// Whether the machine or the process was short of something, so that later it may go well.
fn is_short(error: &io::Error) -> bool {
    use libc::{EAGAIN, EDQUOT, EINTR, EMFILE, ENFILE, ENOMEM, ENOSPC};
    let errno = error.raw_os_error();
    matches!(errno, Some(EAGAIN | EDQUOT | EINTR | EMFILE | ENFILE | ENOMEM | ENOSPC))
}

/// What a look has found, and nothing where it was refused or nothing is there. Who was short of
/// something does not know.
pub(crate) fn found<T>(look: io::Result<T>) -> io::Result<Option<T>> {
    match look {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_short(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// The kernel's error number as an error. A number that is none, which only a broken init sends,
/// becomes one that says so.
pub(crate) fn error_of(errno: i32) -> io::Error {
    if (1..4096).contains(&errno) {
        io::Error::from_raw_os_error(errno)
    } else {
        io::Error::other(format!("error number {errno}"))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{Error, ErrorKind, found};

    #[test]
    fn who_is_short_of_something_has_not_found_that_there_is_nothing() {
        let of = |errno| found::<()>(Err(io::Error::from_raw_os_error(errno)));
        for errno in [libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::EINTR, libc::EAGAIN] {
            assert_eq!(of(errno).unwrap_err().raw_os_error(), Some(errno));
        }
        for errno in [libc::ENOENT, libc::EACCES, libc::EPERM, libc::EROFS, libc::ELOOP] {
            assert!(of(errno).unwrap().is_none(), "{errno}");
        }
        assert_eq!(found(Ok(1)).unwrap(), Some(1));
    }

    #[test]
    fn what_can_be_done_about_an_error_is_told() {
        let io = |errno| Error::io("open")(io::Error::from_raw_os_error(errno));
        assert_eq!(io(libc::EMFILE).kind(), ErrorKind::Temporary);
        assert_eq!(io(libc::EINTR).kind(), ErrorKind::Temporary);
        assert_eq!(io(libc::EPERM).kind(), ErrorKind::Host);
        assert_eq!(Error::invalid("name", "empty").kind(), ErrorKind::Invalid);
        assert_eq!(Error::SandboxDied.kind(), ErrorKind::Died);
        assert_eq!(Error::Protocol { why: "" }.kind(), ErrorKind::Violation);
    }
}
