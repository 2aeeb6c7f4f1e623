//! Where the standard streams of a command lead.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use adl_protocol::StdioSource;
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

    /// The calling program's own. What comes out is printed as it is, terminal escapes and all.
    pub fn inherit() -> Self {
        Self(Kind::Inherit)
    }

    /// For stderr: whatever stdout is, so that the two come in the order in which they were
    /// written.
    pub fn same_as_stdout() -> Self {
        Self(Kind::SameAsStdout)
    }
}

/// A file, socket or pipe of the caller's. The command can do with it whatever the descriptor
/// allows: a directory would let it out of the sandbox, and is refused.
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
                    Which::Stdin => no_directory(&std::io::stdin())?,
                    Which::Stdout => no_directory(&std::io::stdout())?,
                    Which::Stderr => no_directory(&std::io::stderr())?,
                };
                (StdioSource::Descriptor, None, Theirs::Standard(fd))
            }
            Kind::Descriptor(fd) => {
                no_directory(fd)?;
                (StdioSource::Descriptor, None, Theirs::Borrowed(fd.as_fd()))
            }
        };
        Ok(Self { source, ours, theirs })
    }
}

/// The number of a descriptor that is no directory: with one of the host, `openat(2)` would lead
/// out of the sandbox.
fn no_directory(stream: &(impl AsFd + AsRawFd)) -> Result<RawFd> {
    let stat = nix::sys::stat::fstat(stream).map_err(Error::io("fstat"))?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(Error::invalid("stdio", "a directory of the host"));
    }
    Ok(stream.as_raw_fd())
}
