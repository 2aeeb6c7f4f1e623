//! A sandbox: its creation, its jobs, its end.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use adl_protocol::limits;
use nix::poll::{PollFd, PollFlags};

use crate::background::Job;
use crate::command::Command;
use crate::config::{Config, Upper};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::files::Files;
use crate::ids::{self, IdRange};
use crate::launch::{self, Plan};
use crate::owner::Owner;
use crate::remove::remove_later;
use crate::state::{SandboxDirectory, State};
use crate::sys::{self, Process};
use crate::wire::{self, Deadline};

/// How long the kernel may take to end all processes of a sandbox.
const END: Duration = Duration::from_secs(10);

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
    init: Process,
    control: Arc<Control>,
    directory: Option<SandboxDirectory>,
    ids: Option<IdRange>,
    owner: Owner,
    ended: bool,
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
        // ready. From here on, dropping `this` undoes everything.
        let mut this = Self::start(&config)?;
        let overlays = match config.upper {
            Upper::Disk => trees.len(),
            Upper::Memory { .. } => 0,
        };
        let directory = make_directory(&state, config.name.as_deref(), overlays)?;
        directory.name().clone_into(&mut this.name);
        let plan = Plan {
            config: &config,
            hostname: config.hostname.as_deref().unwrap_or(&this.name),
            trees: &trees,
            directory: this.directory.insert(directory),
            ids: this.ids.as_ref(),
        };
        launch::set_up(&this.init, &this.control.socket(), &plan)?;
        this.init.launched();
        Ok(this)
    }

    /// Starts init. It does nothing until it is told what to set up.
    fn start(config: &Config) -> Result<Self> {
        let ids = if ids::caller_may_map() { Some(IdRange::take()?) } else { None };
        let (init, control) = launch::start(config, ids.is_some())?;
        Ok(Self {
            name: String::new(),
            init,
            control: Control::new(control),
            directory: None,
            ids,
            owner: Owner::this_process(),
            ended: false,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id of its init, as the host sees it.
    pub fn init_pid(&self) -> i32 {
        self.init.pid
    }

    /// The ids outside that the ids from 0 on inside are, if the sandbox has a range of its own:
    /// the first one and their number.
    pub fn id_range(&self) -> Option<(u32, u32)> {
        self.ids.as_ref().map(|range| (range.base(), ids::LENGTH))
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

    /// Ends all its processes and gives back all that it had. What it has written to disk is
    /// removed soon after; see [`crate::finish_removals`]. Dropping does the same, but can't tell what
    /// went wrong.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the kernel could not end a process, as when it waits for a device
    /// that does not answer; [`Error::Io`] where a file could not be removed. `adl gc` removes what is
    /// left once the calling process has ended.
    pub fn delete(mut self) -> Result<()> {
        self.end()
    }

    /// The jobs in the background ([`Command::background`]), the oldest first: those that run,
    /// and those that have ended and that no one has waited for yet.
    pub fn jobs(&self) -> Vec<Job> {
        self.control.jobs().clone()
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    fn end(&mut self) -> Result<()> {
        if self.ended || !self.owner.is_this_process() {
            // Of a fork's copy nothing may be undone, its parent's lock on the ids least of all.
            std::mem::forget(self.ids.take());
            return Ok(());
        }
        self.ended = true;
        // They hold on to the control socket, which holds on to them.
        self.control.jobs().clear();
        if let Err(error) = self.end_processes() {
            self.end_late();
            return Err(error);
        }
        match self.directory.take() {
            Some(directory) => remove_later(directory),
            None => Ok(()),
        }
    }

    /// Leaves to a thread what could not be waited for: the kernel may have millions of a guest's
    /// files to forget. Until it is done, the ids are no one else's.
    fn end_late(&mut self) {
        // Lost, if there can be no thread: better than given to a sandbox beside what still runs.
        let ids = ManuallyDrop::new(self.ids.take());
        let directory = self.directory.take();
        let pidfd = self.init.pidfd.try_clone();
        let wait = move || {
            let is_over = pidfd.map_err(Error::io("dup")).and_then(|pidfd| {
                let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                wire::wait_ready(&mut fds, Deadline::NEVER)?;
                sys::reap(pidfd.as_fd()).map_err(Error::io("waitid"))
            });
            match (is_over, directory) {
                // The caller was told already that something went wrong.
                (Ok(()), directory) => {
                    drop(ManuallyDrop::into_inner(ids));
                    drop(directory.map(remove_later));
                }
                (Err(_), _) => {}
            }
        };
        drop(std::thread::Builder::new().name("adl-end".to_owned()).spawn(wait));
    }

    /// Kills init and waits until it is gone, which it is when every process of its PID namespace
    /// is.
    fn end_processes(&self) -> Result<()> {
        sys::kill(&self.init).map_err(Error::io("pidfd_send_signal"))?;
        let mut fds = [PollFd::new(self.init.pidfd.as_fd(), PollFlags::POLLIN)];
        if !wire::wait_ready(&mut fds, Deadline::after(END))? {
            return Err(Error::TimedOut { what: "the sandbox's processes to end", after: END });
        }
        sys::reap(self.init.pidfd.as_fd()).map_err(Error::io("waitid"))
    }
}

/// Readable when the sandbox has died, or was ended: for `poll(2)` and event loops.
impl AsFd for Sandbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.init.pidfd.as_fd()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // There is no one to tell; what is left is for the collector.
        let _ = self.end();
    }
}

/// A number that no other call in this process has returned.
pub(crate) fn unique_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
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
