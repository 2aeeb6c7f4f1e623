//! Where the standard streams of a command lead.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use adl_protocol::StdioSource;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::error::{Error, Result};

/// Where one of the standard streams of a command leads.
#[derive(Debug)]
pub struct Stdio(pub(crate) Kind);

#[derive(Debug)]
pub(crate) enum Kind {
    Null,
    Piped,
    Inherit,
    Descriptor(OwnedFd),
    SameAsStdout,
}

impl Stdio {
    /// `/dev/null`; the default, where nothing else is said.
    pub fn null() -> Self {
        Self(Kind::Null)
    }

    /// A new pipe, whose other end is in the [`Child`](crate::Child).
    pub fn piped() -> Self {
        Self(Kind::Piped)
    }

    /// The calling program's own, under the conditions of [`Stdio::from`]. What comes out is
    /// printed as it is, terminal escapes and all.
    pub fn inherit() -> Self {
        Self(Kind::Inherit)
    }

    pub(crate) fn is_piped(&self) -> bool {
        matches!(self.0, Kind::Piped)
    }

    /// For stderr: whatever stdout is, so that the two come in the order in which they were
    /// written.
    pub fn same_as_stdout() -> Self {
        Self(Kind::SameAsStdout)
    }
}

/// A file, socket or pipe of the caller's. The command can lock the file, move its position or set
/// `O_NONBLOCK`, and everyone who has the same open file sees that.
///
/// [`Error::Invalid`] is what comes of a directory, which would let it out of the sandbox; of a
/// terminal, whose settings and input it could change after its end
/// ([`Command::terminal`](crate::Command::terminal) gives it one of its own); and, as stdin, of a
/// file or disk that is open for writing.
impl From<OwnedFd> for Stdio {
    fn from(fd: OwnedFd) -> Self {
        Self(Kind::Descriptor(fd))
    }
}

/// A file of the caller's.
impl From<std::fs::File> for Stdio {
    fn from(file: std::fs::File) -> Self {
        OwnedFd::from(file).into()
    }
}

/// Which of the three a stream is.
#[derive(Clone, Copy)]
pub(crate) enum Which {
    Stdin,
    Stdout,
    Stderr,
}

/// One stream while it is being made: what init is told, and the two ends.
pub(crate) struct Stream<'a> {
    pub(crate) source: StdioSource,
    pub(crate) ours: Option<OwnedFd>,
    pub(crate) theirs: Theirs<'a>,
}

pub(crate) enum Theirs<'a> {
    None,
    Owned(OwnedFd),
    Borrowed(BorrowedFd<'a>),
    /// One of the calling program's standard streams, which are there for as long as it runs.
    Standard(RawFd),
}

impl Theirs<'_> {
    pub(crate) fn raw(&self) -> Option<RawFd> {
        match self {
            Self::None => None,
            Self::Owned(fd) => Some(fd.as_raw_fd()),
            Self::Borrowed(fd) => Some(fd.as_raw_fd()),
            Self::Standard(fd) => Some(*fd),
        }
    }
}

impl<'a> Stream<'a> {
    /// One that is not there.
    pub(crate) fn none() -> Self {
        Self { source: StdioSource::Null, ours: None, theirs: Theirs::None }
    }

    pub(crate) fn new(kind: &'a Kind, which: Which) -> Result<Self> {
        let (source, ours, theirs) = match kind {
            Kind::Null => (StdioSource::Null, None, Theirs::None),
            Kind::SameAsStdout => (StdioSource::Previous, None, Theirs::None),
            Kind::Piped => {
                let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::io("pipe"))?;
                let (ours, theirs) = match which {
                    Which::Stdin => (write, read),
                    Which::Stdout | Which::Stderr => (read, write),
                };
                (StdioSource::Descriptor, Some(ours), Theirs::Owned(theirs))
            }
            Kind::Inherit => {
                let fd = match which {
                    Which::Stdin => lendable(&std::io::stdin(), which)?,
                    Which::Stdout => lendable(&std::io::stdout(), which)?,
                    Which::Stderr => lendable(&std::io::stderr(), which)?,
                };
                (StdioSource::Descriptor, None, Theirs::Standard(fd))
            }
            Kind::Descriptor(fd) => {
                lendable(fd, which)?;
                (StdioSource::Descriptor, None, Theirs::Borrowed(fd.as_fd()))
            }
        };
        Ok(Self { source, ours, theirs })
    }
}

/// The number of a descriptor of the host that a command may have.
fn lendable(stream: &(impl AsFd + AsRawFd), which: Which) -> Result<RawFd> {
    let stat = nix::sys::stat::fstat(stream).map_err(Error::io("fstat"))?;
    let why = match stat.st_mode & libc::S_IFMT {
        // openat(2) would lead out of the sandbox.
        libc::S_IFDIR => Some("a directory of the host"),
        // Its mode, its owner and what is typed are everyone's who has it open.
        libc::S_IFCHR
            if nix::unistd::isatty(stream).unwrap_or_else(|errno| errno == Errno::EIO) =>
        {
            Some(
                "a terminal of the host: give it one of its own, or a pipe whose other end you move",
            )
        }
        libc::S_IFREG | libc::S_IFBLK
            if matches!(which, Which::Stdin) && is_open_for_writing(stream)? =>
        {
            Some("stdin is open for writing: open the file for reading alone")
        }
        _ => None,
    };
    why.map_or_else(|| Ok(stream.as_raw_fd()), |why| Err(Error::invalid("stdio", why)))
}

fn is_open_for_writing(file: &impl AsFd) -> Result<bool> {
    use nix::fcntl::{FcntlArg, fcntl};
    let flags = fcntl(file, FcntlArg::F_GETFL).map_err(Error::io("fcntl"))?;
    Ok(flags & libc::O_ACCMODE != libc::O_RDONLY)
}
