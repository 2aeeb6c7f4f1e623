//! Where the standard streams of a command lead.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use adl_protocol::StdioSource;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{fchown, pipe2};

use crate::error::{Error, Result};
use crate::job::child::{ChildStderr, ChildStdin, ChildStdout};
use crate::job::relay::{Relay, Which};
use crate::wire::control::PipeOwner;

/// Where one of the standard streams of a command leads.
#[derive(Debug)]
pub struct Stdio(pub(crate) Kind);

#[derive(Debug)]
pub(crate) enum Kind {
    Null,
    Piped,
    Inherit,
    Relayed(OwnedFd),
    Direct(OwnedFd),
    SameAsStdout,
}

impl Stdio {
    /// `/dev/null`; the default, where nothing else is said.
    pub fn null() -> Self {
        Self(Kind::Null)
    }

    /// A new pipe, whose other end is in the [`Child`](crate::Child). Inside, it belongs to the
    /// user of the command, who may open it again by `/dev/stdout` and its like.
    pub fn piped() -> Self {
        Self(Kind::Piped)
    }

    /// The calling program's own, through a pipe, as with [`Stdio::from`]. What comes out is
    /// printed as it is, terminal escapes and all.
    pub fn inherit() -> Self {
        Self(Kind::Inherit)
    }

    /// This descriptor itself, with nothing between. The command can lock its file, move its
    /// position or set `O_NONBLOCK`, and everyone who has the same open file sees that. Inside, it
    /// belongs to whom it belongs outside: where root makes the sandbox, no one there can open it
    /// again by `/dev/stdout` and its like.
    ///
    /// [`Error::Invalid`] is what comes of a directory, which would let it out of the sandbox; of
    /// a terminal, whose settings and input it could change after its end
    /// ([`Command::terminal`](crate::Command::terminal) gives it one of its own); and, as stdin, of
    /// a file or disk that is open for writing.
    pub fn direct(fd: impl Into<OwnedFd>) -> Self {
        Self(Kind::Direct(fd.into()))
    }

    pub(crate) fn is_piped(&self) -> bool {
        matches!(self.0, Kind::Piped)
    }

    /// Whether someone here moves what goes through it to a descriptor of the caller's.
    pub(crate) fn is_relayed(&self) -> bool {
        matches!(self.0, Kind::Inherit | Kind::Relayed(_))
    }

    /// For stderr: whatever stdout is, so that the two come in the order in which they were
    /// written.
    pub fn same_as_stdout() -> Self {
        Self(Kind::SameAsStdout)
    }
}

/// A file, socket, pipe or terminal of the caller's, through a pipe of the library's own. So the
/// command holds nothing of the caller's, and can open its stream again by `/dev/stdin` and its
/// like. `/dev/null` is that of the sandbox; a directory is [`Error::Invalid`].
///
/// Stdout and stderr that lead to one file, pipe or terminal are one pipe, so that the two come in
/// the order in which they were written.
///
/// [`Command::output`](crate::Command::output) and its like move the bytes while they wait; after
/// [`Command::spawn`](crate::Command::spawn) a thread does. Input is read ahead of the command, as
/// much as its pipe holds: 64 KiB. What it has not read of a file when it ends, the next reader of
/// that file gets; of a pipe or a terminal it is lost. For the descriptor itself, see
/// [`Stdio::direct`].
///
/// A terminal is read while the calling program has it: as a job in the background of a shell, it
/// waits and is not stopped. What it writes there then stops it where the terminal says so
/// (`stty tostop`), as any program.
impl From<OwnedFd> for Stdio {
    fn from(fd: OwnedFd) -> Self {
        Self(Kind::Relayed(fd))
    }
}

/// A file of the caller's, through a pipe.
impl From<std::fs::File> for Stdio {
    fn from(file: std::fs::File) -> Self {
        OwnedFd::from(file).into()
    }
}

macro_rules! direct {
    ($name:ident) => {
        /// A pipe of another command's, itself.
        impl From<$name> for Stdio {
            fn from(stream: $name) -> Self {
                Self::direct(stream)
            }
        }
    };
}

direct!(ChildStdin);
direct!(ChildStdout);
direct!(ChildStderr);

/// One stream while it is being made: what init is told, and the two ends.
pub(crate) struct Stream<'a> {
    pub(crate) source: StdioSource,
    pub(crate) ours: Option<OwnedFd>,
    pub(crate) theirs: Theirs<'a>,
    /// What of the caller's our end is joined to.
    pub(crate) relay: Option<Relay>,
}

pub(crate) enum Theirs<'a> {
    None,
    Owned(OwnedFd),
    Borrowed(BorrowedFd<'a>),
}

impl Theirs<'_> {
    pub(crate) fn raw(&self) -> Option<RawFd> {
        match self {
            Self::None => None,
            Self::Owned(fd) => Some(fd.as_raw_fd()),
            Self::Borrowed(fd) => Some(fd.as_raw_fd()),
        }
    }
}

impl<'a> Stream<'a> {
    /// One that is not there.
    pub(crate) fn none() -> Self {
        Self::of(StdioSource::Null)
    }

    fn of(source: StdioSource) -> Self {
        Self { source, ours: None, theirs: Theirs::None, relay: None }
    }

    /// `is_counted` is for one of which it matters how much goes through, wherever it leads.
    pub(crate) fn new(kind: &'a Kind, which: Which, is_counted: bool) -> Result<Self> {
        let relay = match kind {
            Kind::Null => return Ok(Self::of(StdioSource::Null)),
            Kind::SameAsStdout => return Ok(Self::of(StdioSource::Previous)),
            Kind::Direct(fd) => {
                check_lendable(fd, which)?;
                let theirs = Theirs::Borrowed(fd.as_fd());
                return Ok(Self { theirs, ..Self::of(StdioSource::Descriptor) });
            }
            Kind::Piped => None,
            Kind::Relayed(fd) => Some(Relay::of(fd.as_fd(), which)?),
            Kind::Inherit => Some(match which {
                Which::Stdin => Relay::of(std::io::stdin().as_fd(), which)?,
                Which::Stdout => Relay::of(std::io::stdout().as_fd(), which)?,
                Which::Stderr => Relay::of(std::io::stderr().as_fd(), which)?,
            }),
        };
        if !is_counted && relay.as_ref().is_some_and(Relay::is_null) {
            return Ok(Self::of(StdioSource::Null));
        }
        Self::pipe(relay, which)
    }

    /// Has its user inside be one who may open a pipe again.
    pub(crate) fn give_to(&self, owner: PipeOwner) -> Result<()> {
        // Both ends are one file.
        let Some(pipe) = &self.ours else { return Ok(()) };
        match owner {
            PipeOwner::Caller => Ok(()),
            PipeOwner::Other(user, group) => {
                fchown(pipe, Some(user), Some(group)).map_err(Error::io("fchown"))
            }
            PipeOwner::Anyone => {
                fchmod(pipe, Mode::from_bits_truncate(0o666)).map_err(Error::io("fchmod"))
            }
        }
    }

    /// Has it be the one before it, where both are joined to one place of the caller's: so the two
    /// come in the order in which they were written.
    pub(crate) fn beside(self, previous: &Self) -> Self {
        match (&self.relay, &previous.relay) {
            (Some(own), Some(other)) if own.is_same(other) => Self::of(StdioSource::Previous),
            _ => self,
        }
    }

    fn pipe(mut relay: Option<Relay>, which: Which) -> Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::io("pipe"))?;
        let (ours, theirs) = match which {
            Which::Stdin => (write, read),
            Which::Stdout | Which::Stderr => (read, write),
        };
        if let (Which::Stdin, Some(relay)) = (which, &mut relay) {
            relay.count_by(&theirs)?;
        }
        let (ours, theirs) = (Some(ours), Theirs::Owned(theirs));
        Ok(Self { source: StdioSource::Descriptor, ours, theirs, relay })
    }
}

/// Refuses a descriptor of the host that no command may have.
fn check_lendable(stream: &OwnedFd, which: Which) -> Result<()> {
    let stat = nix::sys::stat::fstat(stream).map_err(Error::io("fstat"))?;
    let why = match stat.st_mode & libc::S_IFMT {
        // openat(2) would lead out of the sandbox.
        libc::S_IFDIR => Some("a directory of the host"),
        // Its mode, its owner and what is typed are everyone's who has it open.
        libc::S_IFCHR
            if nix::unistd::isatty(stream).unwrap_or_else(|errno| errno == Errno::EIO) =>
        {
            Some("a terminal of the host: give it one of its own, or a stream that adl moves")
        }
        libc::S_IFREG | libc::S_IFBLK
            if matches!(which, Which::Stdin) && is_open_for_writing(stream)? =>
        {
            Some("stdin is open for writing: open the file for reading alone")
        }
        _ => None,
    };
    why.map_or(Ok(()), |why| Err(Error::invalid("stdio", why)))
}

fn is_open_for_writing(file: &impl AsFd) -> Result<bool> {
    use nix::fcntl::{FcntlArg, fcntl};
    let flags = fcntl(file, FcntlArg::F_GETFL).map_err(Error::io("fcntl"))?;
    Ok(flags & libc::O_ACCMODE != libc::O_RDONLY)
}
