//! What commands and file calls of a sandbox start from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adl_protocol::limits;
use serde::{Deserialize, Serialize};

use crate::config::bytes;
use crate::error::{Error, Result};

/// What commands of a sandbox start from, and file calls by the directory, the user and the umask;
/// each of them can say otherwise.
///
/// ```no_run
/// use adl_runtime::{Config, Defaults, Sandbox};
///
/// let sandbox = Sandbox::create(Config {
///     defaults: Defaults {
///         env: vec![("STAGE".into(), "test".into())],
///         user: Some("1000".to_owned()),
///         current_dir: "/tmp".into(),
///         ..Defaults::default()
///     },
///     ..Config::default()
/// })?;
/// let output = sandbox.shell("pwd; echo $STAGE").output()?;
/// assert_eq!(output.stdout, b"/tmp\ntest\n");
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Defaults {
    /// Environment variables, beside those that every command has ([`crate::Command`]). Of two with
    /// one name the last counts; those of the image
    /// ([`ImageConfig`](crate::ImageConfig)) come before all of them. The record of a snapshot keeps
    /// them, in a file that only the caller's user can read: what is secret is better given to each
    /// command.
    #[serde(with = "bytes::pairs")]
    pub env: Vec<(OsString, OsString)>,
    /// Where commands start, and what relative paths of file calls lead from: a path in the
    /// sandbox. It is not made. An empty one, which is the default, is that of the image
    /// ([`ImageConfig`](crate::ImageConfig)), or `/`.
    #[serde(with = "bytes")]
    pub current_dir: PathBuf,
    /// Who runs commands and makes file calls, as [`crate::Command::user`] takes it. By default
    /// the user of the image, or root of the sandbox. Where an ordinary user makes the sandbox, a
    /// number here is the one id that there is inside, and no one is root.
    pub user: Option<String>,
    /// The supplementary groups of that user, as [`crate::Command::groups`] takes them. A command
    /// or file call that says another user or group has none of these. By default those that the
    /// sandbox's own files give a user by name; where the user is the image's, or root of an image
    /// in layers, those that docker gives it.
    pub groups: Option<Vec<u32>>,
    /// The file mode creation mask (`umask(2)`), 0o022 by default.
    pub umask: u32,
    /// Resource limits of commands (`setrlimit(2)`).
    pub rlimits: Vec<Rlimit>,
    /// The longest that a command may run, as [`crate::Command::timeout`]. By default there is no
    /// end. A command that says [`Duration::MAX`] has none.
    pub timeout: Option<Duration>,
    /// The CPU time that a command may use with all that it starts, as
    /// [`crate::Command::cpu_time`]. By default there is no end. The sandbox has cgroups to count it
    /// then; where there can be none, it is not created. A command that says [`Duration::MAX`] has
    /// no limit.
    pub cpu_time: Option<Duration>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            env: Vec::new(),
            current_dir: PathBuf::new(),
            user: None,
            groups: None,
            umask: 0o022,
            rlimits: Vec::new(),
            timeout: None,
            cpu_time: None,
        }
    }
}

/// A resource limit of one process (`setrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// What is limited.
    pub resource: Resource,
    /// The soft limit, in the unit of the resource; `u64::MAX` is none.
    pub soft: u64,
    /// The hard limit, in the unit of the resource; `u64::MAX` is none.
    pub hard: u64,
}

/// A resource that can be limited (`setrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
#[repr(u32)]
pub enum Resource {
    /// CPU time of one process, in seconds.
    Cpu = 0,
    /// The size of a file, in bytes.
    FileSize = 1,
    /// The size of the data segment, in bytes.
    Data = 2,
    /// The size of the stack, in bytes.
    Stack = 3,
    /// The size of a core dump, in bytes. The default 1 means no dump. With any other value, 0 too,
    /// the kernel gives a dump to the program that `kernel.core_pattern` names. The guest can't
    /// change it.
    Core = 4,
    /// Memory that a process has in use, in bytes. Linux does not hold it.
    ResidentSet = 5,
    /// The number of processes and threads of the user.
    Processes = 6,
    /// The largest number of a descriptor, plus one.
    OpenFiles = 7,
    /// Memory that may be locked, in bytes.
    LockedMemory = 8,
    /// The size of the address space of one process, in bytes.
    AddressSpace = 9,
    /// The number of file locks. Linux does not hold it.
    FileLocks = 10,
    /// The number of signals that may be pending for the user.
    PendingSignals = 11,
    /// Bytes in POSIX message queues of the user; no more than 819,200.
    MessageQueues = 12,
    /// 20 less the lowest niceness; no more than 0 (see `docs/inheritance.md`).
    Nice = 13,
    /// The highest real-time priority; no more than 0.
    RealtimePriority = 14,
    /// CPU time of a real-time process without a blocking call, in microseconds.
    RealtimeTime = 15,
}

impl Defaults {
    /// Refuses what no command could start from.
    pub(crate) fn check(&self) -> Result<()> {
        for (name, value) in &self.env {
            check_variable(name.as_encoded_bytes(), value.as_encoded_bytes())?;
        }
        let directory = self.current_dir.as_os_str().as_encoded_bytes();
        if directory.contains(&0) || directory.len() > limits::MAX_PATH {
            let why = format!("{:?} is no path: a byte 0 in it, or too long", self.current_dir);
            return Err(Error::invalid("directory", why));
        }
        check_umask(self.umask)?;
        for Rlimit { resource, soft, hard } in &self.rlimits {
            if soft > hard {
                let why =
                    format!("{resource:?}: the soft limit {soft} is above the hard one, {hard}");
                return Err(Error::invalid("resource limit", why));
            }
        }
        Ok(())
    }
}

impl Defaults {
    /// Has commands start in the image's directory, or at the top, unless the caller said where.
    pub(crate) fn settle_directory(&mut self, of_image: Option<&Path>) {
        if self.current_dir.as_os_str().is_empty() {
            self.current_dir = Path::new("/").join(of_image.unwrap_or(Path::new("")));
        }
    }
}

/// Refuses what is no file mode creation mask.
pub(crate) fn check_umask(umask: u32) -> Result<u32> {
    if umask > 0o777 {
        return Err(Error::invalid("umask", format!("{umask:#o}: takes 0 to 0o777")));
    }
    Ok(umask)
}

/// Refuses what can be no variable of an environment.
pub(crate) fn check_variable(name: &[u8], value: &[u8]) -> Result<()> {
    let why = match name {
        [] => "the name is empty",
        name if name.contains(&b'=') => "there is a = in the name",
        name if name.contains(&0) || value.contains(&0) => "there is a byte 0 in it",
        _ => return Ok(()),
    };
    let name = String::from_utf8_lossy(name);
    Err(Error::invalid("environment", format!("the variable {name:?}: {why}")))
}
