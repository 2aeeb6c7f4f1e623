//! A sandbox: its creation, its jobs, its end.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};

use adl_protocol::limits;

use crate::background::Job;
use crate::command::Command;
use crate::config::{Config, Upper};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::files::Files;
use crate::ids::{self, IdRange};
use crate::image::Tree;
use crate::instance::Instance;
use crate::state::{SandboxDirectory, State};

/// The longest name, in bytes: it must be a host name, too.
const LONGEST_NAME: usize = limits::MAX_HOSTNAME;

/// A running sandbox.
///
/// All methods take `&self`, and any number of jobs may run at once, started from any threads.
/// When it is dropped, or the process that made it ends in whatever way, all processes in it are
/// killed and the kernel takes back all that they had.
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    config: Config,
    state: State,
    trees: Vec<Tree>,
    instance: Instance,
}

impl Sandbox {
    /// Builds a sandbox and returns when it is ready to run commands.
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::Io`] for what is wrong with `config` and its paths;
    /// [`Error::Unsupported`] for what this machine can't give; [`Error::Setup`] where building
    /// failed. Whatever the error, nothing is left behind.
    pub fn create(config: Config) -> Result<Self> {
        if let Some(name) = &config.name {
            check_name("name", name)?;
        }
        if let Some(hostname) = &config.hostname {
            check_name("hostname", hostname)?;
        }
        let state = State::open(config.state_directory.as_deref())?;
        collect_once(&state);
        let trees = config.image.open(&state, config.network)?;

        // The order is that of what takes time: while the child becomes init, the rest is made
        // ready. From here on, dropping `instance` undoes everything.
        let mut instance = Instance::start(&config, fresh_ids()?)?;
        let directory = make_directory(&state, config.name.as_deref(), overlays(&config, &trees))?;
        let name = directory.name().to_owned();
        let hostname = config.hostname.as_deref().unwrap_or(&name);
        instance.set_up(&config, hostname, &trees, directory)?;
        Ok(Self { name, config, state, trees, instance })
    }

    /// Makes it as new: the same name, ids and configuration, and nothing of what was before in
    /// it: no process, file, shared memory, message queue, socket or host name. It takes as long
    /// as [`Sandbox::create`], whatever was done inside; what was written to disk is removed soon
    /// after, as by [`Sandbox::delete`].
    ///
    /// Commands that run are killed, and their ends are told as [`Error::SandboxDied`].
    /// A sandbox that has died is alive again after it.
    ///
    /// ```no_run
    /// # use adl_runtime::{Config, Sandbox};
    /// let mut sandbox = Sandbox::create(Config::default())?;
    /// sandbox.shell("rm -rf /usr; sleep inf &").status()?;
    /// sandbox.reset()?;
    /// assert!(sandbox.command("true").status()?.success());
    /// # Ok::<(), adl_runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Sandbox::create`] and [`Sandbox::delete`]. The sandbox is dead then, and can be reset
    /// again or deleted.
    pub fn reset(&mut self) -> Result<()> {
        if !self.instance.is_own() {
            return Err(Error::invalid("reset", "called by a fork of the process that made it"));
        }
        // They end while the next ones are made.
        self.instance.kill()?;
        let ids = match self.instance.ids() {
            Some(ids) => Some(Arc::clone(ids)),
            None => fresh_ids()?,
        };
        let mut next = Instance::start(&self.config, ids)?;
        let directory = self.state.make_aside(overlays(&self.config, &self.trees))?;
        let hostname = self.config.hostname.as_deref().unwrap_or(&self.name);
        next.set_up(&self.config, hostname, &self.trees, directory)?;
        // No command can come to the next before this has returned, so there is no moment at
        // which both do something.
        self.instance.end_processes()?;
        if let Some(directory) = next.directory() {
            directory.take_name(&self.name, self.instance.directory())?;
        }
        std::mem::replace(&mut self.instance, next).end()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id of its init, as the host sees it.
    pub fn init_pid(&self) -> i32 {
        self.instance.init_pid()
    }

    /// The ids outside that the ids from 0 on inside are, if the sandbox has a range of its own:
    /// the first one and their number.
    pub fn id_range(&self) -> Option<(u32, u32)> {
        self.instance.ids().map(|range| (range.base(), ids::LENGTH))
    }

    /// Prepares a command: a program of the sandbox, started without a shell. A name without a
    /// slash is looked for in the `PATH` of the command's environment.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command<'_> {
        Command::new(self, &[program.as_ref()])
    }

    /// Prepares a script: for bash if the sandbox has it, else for sh.
    pub fn shell(&self, script: impl AsRef<std::ffi::OsStr>) -> Command<'_> {
        let mut command = Command::new(self, &["/bin/bash".as_ref(), "/bin/sh".as_ref()]);
        command.arg("-c").arg(script);
        command
    }

    /// Reads, writes and copies its files.
    pub fn files(&self) -> Files<'_> {
        Files::new(self)
    }

    /// Ends all its processes and gives back all that it had. What it has written is removed, and
    /// what it had mounted let go of, soon after; see [`crate::finish_removals`]. Dropping does the same, but can't tell what
    /// went wrong.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the kernel could not end a process, as when it waits for a device
    /// that does not answer; [`Error::Io`] where a file could not be removed. `adl gc` removes what is
    /// left once the calling process has ended.
    pub fn delete(mut self) -> Result<()> {
        self.instance.end()
    }

    /// The jobs in the background ([`Command::background`]), the oldest first: those that run,
    /// and those that have ended and that no one has waited for yet.
    pub fn jobs(&self) -> Vec<Job> {
        self.control().jobs().clone()
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        self.instance.control()
    }
}

/// Readable when the sandbox has died, or was ended: for `poll(2)` and event loops.
impl AsFd for Sandbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.instance.as_fd()
    }
}

/// A number that no other call in this process has returned.
pub(crate) fn unique_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A range of ids, for who can map them.
fn fresh_ids() -> Result<Option<Arc<IdRange>>> {
    Ok(if ids::caller_may_map() { Some(Arc::new(IdRange::take()?)) } else { None })
}

/// How many overlays have their uppers on disk.
fn overlays(config: &Config, trees: &[Tree]) -> usize {
    match config.upper {
        Upper::Disk => trees.len(),
        Upper::Memory { .. } => 0,
    }
}

fn make_directory(state: &State, name: Option<&str>, overlays: usize) -> Result<SandboxDirectory> {
    if let Some(name) = name {
        return state.make_sandbox(name, overlays);
    }
    loop {
        // In use only where an earlier process of the same pid has left it.
        let name = format!("sb-{}-{}", std::process::id(), unique_number());
        match state.make_sandbox(&name, overlays) {
            Err(Error::NameInUse { .. }) => {}
            made => return made,
        }
    }
}

/// Removes what owners that have ended left behind, once in a process, beside its first creation.
fn collect_once(state: &State) {
    static COLLECTED: Once = Once::new();
    COLLECTED.call_once(|| {
        if state.is_surely_empty() {
            return;
        }
        let Ok(state) = state.try_clone() else { return };
        // Whatever goes wrong here is not the caller's business; `adl gc` tells it.
        let _ = std::thread::Builder::new()
            .name("adl-collect".to_owned())
            .spawn(move || state.collect());
    });
}

fn check_name(what: &'static str, name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let why = if name.is_empty() {
        "empty".to_owned()
    } else if name.len() > LONGEST_NAME {
        format!("longer than {LONGEST_NAME} bytes")
    } else if !name.chars().all(allowed) {
        format!("{name:?} has characters other than letters, digits, '.', '_' and '-'")
    } else if name.starts_with(['.', '-']) {
        format!("{name:?} starts with '.' or '-'")
    } else {
        return Ok(());
    };
    Err(Error::invalid(what, why))
}
