//! Commands, in the idiom of `std::process::Command`.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use adl_protocol::{Identity, Request, Spawn, StdioSource, Strings, limits};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::child::{Child, ExitStatus, Output, Running};
use crate::error::{Error, Result};
use crate::sandbox::Sandbox;
use crate::wire::Messages;

/// What a command's environment has unless it is changed.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where one of the standard streams of a command leads.
#[derive(Debug)]
pub struct Stdio(Kind);

#[derive(Debug)]
enum Kind {
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

    /// A new pipe, whose other end is in the [`Child`].
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

/// A command to be run in a sandbox, made by [`Sandbox::command`].
///
/// Nothing of the calling program's environment, directory or descriptors reaches it. The
/// environment is `PATH` and `HOME`, the directory `/`, the user root of the sandbox, and each
/// stream `/dev/null`, except that [`Command::output`] collects stdout and stderr.
#[derive(Debug)]
pub struct Command<'a> {
    sandbox: &'a Sandbox,
    programs: Vec<OsString>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: PathBuf,
    uid: u32,
    gid: u32,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
}

impl<'a> Command<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox, programs: &[&OsStr]) -> Self {
        Self {
            sandbox,
            programs: programs.iter().map(OsString::from).collect(),
            arguments: Vec::new(),
            environment: vec![("PATH".into(), PATH.into()), ("HOME".into(), "/root".into())],
            directory: PathBuf::from("/"),
            uid: 0,
            gid: 0,
            stdin: None,
            stdout: None,
            stderr: None,
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.env_remove(&name);
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets environment variables.
    pub fn envs(
        &mut self,
        variables: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> &mut Self {
        for (name, value) in variables {
            self.env(name, value);
        }
        self
    }

    /// Removes an environment variable.
    pub fn env_remove(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.environment.retain(|(other, _)| other != name.as_ref());
        self
    }

    /// Removes all environment variables, `PATH` and `HOME` too.
    pub fn env_clear(&mut self) -> &mut Self {
        self.environment.clear();
        self
    }

    /// Sets the working directory: a path in the sandbox, relative to its root.
    pub fn current_dir(&mut self, directory: impl AsRef<Path>) -> &mut Self {
        self.directory = directory.as_ref().to_owned();
        self
    }

    /// Sets the user id, as it is inside. There are no supplementary groups.
    pub fn uid(&mut self, uid: u32) -> &mut Self {
        self.uid = uid;
        self
    }

    /// Sets the group id, as it is inside.
    pub fn gid(&mut self, gid: u32) -> &mut Self {
        self.gid = gid;
        self
    }

    /// Sets where stdin comes from.
    pub fn stdin(&mut self, stdin: impl Into<Stdio>) -> &mut Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// Sets where stdout goes.
    pub fn stdout(&mut self, stdout: impl Into<Stdio>) -> &mut Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// Sets where stderr goes.
    pub fn stderr(&mut self, stderr: impl Into<Stdio>) -> &mut Self {
        self.stderr = Some(stderr.into());
        self
    }

    /// Starts the command and returns once its program runs.
    ///
    /// # Errors
    /// [`Error::Start`] if the program could not be run; [`Error::Invalid`] for what no kernel
    /// would take, before anything is asked of the sandbox; [`Error::SandboxDied`].
    pub fn spawn(&mut self) -> Result<Child> {
        let (notice, notice_theirs) = pipe2(OFlag::O_CLOEXEC).map_err(Error::io("pipe"))?;
        let running = self.start(Kind::Null, Some(notice_theirs))?;
        Child::started(running, notice)
    }

    /// Runs the command to its end and collects its stdout and stderr.
    ///
    /// Returns when the command's own process has ended, with all that it wrote; a background
    /// process that it has left behind holds nothing up.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub fn output(&mut self) -> Result<Output> {
        self.start(Kind::Piped, None)?.output()
    }

    /// Runs the command to its end.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub fn status(&mut self) -> Result<ExitStatus> {
        Ok(self.start(Kind::Null, None)?.output()?.status)
    }

    /// Asks init to start it. `default` is what becomes of stdout and stderr if nothing was said;
    /// `notice` is closed when the program runs, or when it can't.
    fn start(&self, default: Kind, notice: Option<OwnedFd>) -> Result<Running> {
        let program = PathBuf::from(self.programs.first().map_or(OsStr::new(""), |p| p));
        let programs = strings("program", self.programs.iter().map(|p| p.as_bytes()))?;
        let arguments = strings("argument", self.arguments.iter().map(|a| a.as_bytes()))?;
        let environment = self.environment_block()?;
        let directory = self.directory.as_os_str().as_bytes();
        if directory.contains(&0) {
            return Err(Error::invalid("directory", "a NUL byte"));
        }
        if self.uid == u32::MAX || self.gid == u32::MAX {
            return Err(Error::invalid("user", "id 4294967295 means no change to the kernel"));
        }
        if (self.uid, self.gid) != (0, 0) && self.sandbox.id_range().is_none() {
            return Err(Error::Unsupported {
                what: format!("user {}:{} inside", self.uid, self.gid),
                why: "the sandbox of an ordinary user has one id, 0".to_owned(),
                fix: "make the sandbox as root".to_owned(),
            });
        }

        let (channel, channel_theirs) = self.sandbox.take_channel()?;
        let mut descriptors = vec![channel_theirs.as_raw_fd()];
        descriptors.extend(notice.as_ref().map(AsRawFd::as_raw_fd));
        let stdin = Stream::new(self.stdin.as_ref().map_or(&Kind::Null, |s| &s.0), Which::Stdin)?;
        let stdout = Stream::new(self.stdout.as_ref().map_or(&default, |s| &s.0), Which::Stdout)?;
        let stderr = Stream::new(self.stderr.as_ref().map_or(&default, |s| &s.0), Which::Stderr)?;
        if matches!(stdin.source, StdioSource::Previous)
            || matches!(stdout.source, StdioSource::Previous)
        {
            return Err(Error::invalid("stdio", "only stderr can be the same as stdout"));
        }
        for stream in [&stdin, &stdout, &stderr] {
            descriptors.extend(stream.theirs.raw());
        }

        let spawn = Spawn {
            programs: Strings::new(&programs).map_err(too_many)?,
            arguments: Strings::new(&arguments).map_err(too_many)?,
            environment: Strings::new(&environment).map_err(too_many)?,
            directory,
            identity: Identity { uid: self.uid, gid: self.gid, groups: Vec::new() },
            umask: 0o022,
            rlimits: Vec::new(),
            nice: 0,
            stdio: [stdin.source, stdout.source, stderr.source],
            start_notice: notice.is_some(),
        };
        self.sandbox.request(&Request::Spawn(spawn), &descriptors)?;
        self.sandbox.prepare_channel();
        Ok(Running {
            program,
            messages: Messages::new(channel),
            stdin: stdin.ours,
            stdout: stdout.ours,
            stderr: stderr.ours,
            exit: None,
        })
    }

    fn environment_block(&self) -> Result<Vec<u8>> {
        let mut block = Vec::new();
        for (name, value) in &self.environment {
            let name = name.as_bytes();
            if name.is_empty() || name.contains(&b'=') {
                return Err(Error::invalid(
                    "environment",
                    format!("{:?} is no name of a variable", OsStr::from_bytes(name)),
                ));
            }
            let entry = [name, b"=", value.as_bytes()].concat();
            Strings::append(&mut block, &entry)
                .map_err(|error| Error::invalid("environment", error.to_string()))?;
        }
        Ok(block)
    }
}

fn strings<'a>(what: &'static str, list: impl Iterator<Item = &'a [u8]>) -> Result<Vec<u8>> {
    let mut block = Vec::new();
    for (number, string) in list.enumerate() {
        Strings::append(&mut block, string)
            .map_err(|error| Error::invalid(what, format!("number {number}: {error}")))?;
    }
    Ok(block)
}

fn too_many(_: adl_protocol::StringsError) -> Error {
    Error::invalid("arguments", format!("more than {} strings", limits::MAX_STRINGS))
}

/// Which of the three a stream is.
#[derive(Clone, Copy)]
enum Which {
    Stdin,
    Stdout,
    Stderr,
}

/// One stream while it is being made: what init is told, and the two ends.
struct Stream<'a> {
    source: StdioSource,
    ours: Option<OwnedFd>,
    theirs: Theirs<'a>,
}

enum Theirs<'a> {
    None,
    Owned(OwnedFd),
    Borrowed(BorrowedFd<'a>),
    /// One of the calling program's standard streams, which are there for as long as it runs.
    Standard(RawFd),
}

impl Theirs<'_> {
    fn raw(&self) -> Option<RawFd> {
        match self {
            Self::None => None,
            Self::Owned(fd) => Some(fd.as_raw_fd()),
            Self::Borrowed(fd) => Some(fd.as_raw_fd()),
            Self::Standard(fd) => Some(*fd),
        }
    }
}

impl<'a> Stream<'a> {
    fn new(kind: &'a Kind, which: Which) -> Result<Self> {
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
                    Which::Stdin => libc::STDIN_FILENO,
                    Which::Stdout => libc::STDOUT_FILENO,
                    Which::Stderr => libc::STDERR_FILENO,
                };
                (StdioSource::Descriptor, None, Theirs::Standard(fd))
            }
            Kind::Descriptor(fd) => {
                refuse_directory(fd.as_fd())?;
                (StdioSource::Descriptor, None, Theirs::Borrowed(fd.as_fd()))
            }
        };
        Ok(Self { source, ours, theirs })
    }
}

/// With a directory of the host, `openat(2)` would lead out of the sandbox.
fn refuse_directory(fd: BorrowedFd<'_>) -> Result<()> {
    let stat = nix::sys::stat::fstat(fd).map_err(Error::io("fstat"))?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(Error::invalid("stdio", "a directory of the host"));
    }
    Ok(())
}
