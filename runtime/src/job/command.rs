//! Commands, in the idiom of `std::process::Command`.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::config::defaults::{Resource, Rlimit};
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::job::background::Job;
use crate::job::captures::{Caps, OutputStream};
use crate::job::child::{Child, Collection, Output};
use crate::job::collect::Bounds;
use crate::job::environment::Environment;
use crate::job::life::Lives;
use crate::job::pending::PendingOutput;
use crate::job::stdio::{Kind, Stdio};
use crate::job::user::{ReadFile, RunAs, run_as_methods};
use crate::mirror::mirror;

mod start;

/// A command to be run in a sandbox, made by
/// [`Sandbox::command`](crate::Sandbox::command).
///
/// Nothing of the calling program's environment, directory or descriptors reaches it. It starts
/// from [`Config::defaults`](crate::Config::defaults): as root of the sandbox in `/` where those
/// say nothing else. Each stream is `/dev/null`, except that [`Command::output`] collects stdout
/// and stderr.
///
/// Its environment is `PATH`, `LANG=C.UTF-8`, on a terminal `TERM=xterm`, and `HOME`, `USER`,
/// `LOGNAME` and `SHELL` as the sandbox's own `/etc/passwd` has them for its user: by the name, or
/// by the number in the first entry that has it. A user without an entry has `HOME=/` and none of
/// the others.
#[derive(Debug)]
pub struct Command {
    lives: Arc<Lives>,
    read: ReadFile,
    programs: Vec<OsString>,
    arguments: Vec<OsString>,
    environment: Environment,
    /// Each command that is started has it, for an error.
    directory: Arc<Path>,
    run_as: RunAs,
    umask: u32,
    rlimits: Vec<adl_protocol::Rlimit>,
    nice: i8,
    oom_score_adj: i16,
    timeout: Option<Duration>,
    cpu_time: Option<Duration>,
    bounds: Bounds,
    caps: Option<Caps>,
    leftovers: Leftovers,
    kill_on_drop: bool,
    terminal: Option<(u16, u16)>,
    input: Option<Vec<u8>>,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
}

impl Command {
    /// `read` is how the files of the sandbox's users are read.
    pub(crate) fn new(lives: &Arc<Lives>, read: ReadFile, programs: &[&OsStr]) -> Self {
        let defaults = lives.defaults();
        let mut this = Self {
            lives: Arc::clone(lives),
            read,
            programs: programs.iter().map(OsString::from).collect(),
            arguments: Vec::new(),
            environment: Environment::new(&defaults.env),
            directory: defaults.current_dir.as_path().into(),
            run_as: RunAs::of(defaults, lives.user_is_of_image()),
            umask: defaults.umask,
            rlimits: Vec::new(),
            nice: 0,
            oom_score_adj: 0,
            timeout: defaults.timeout,
            cpu_time: defaults.cpu_time,
            bounds: Bounds::default(),
            caps: None,
            leftovers: Leftovers::Keep,
            kill_on_drop: false,
            terminal: None,
            input: None,
            stdin: None,
            stdout: None,
            stderr: None,
        };
        for Rlimit { resource, soft, hard } in &defaults.rlimits {
            this.rlimit(*resource, *soft, *hard);
        }
        this
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
        self.environment.set(name.as_ref(), value.as_ref());
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

    /// Removes an environment variable, also one that every command has.
    pub fn env_remove(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.environment.remove(name.as_ref());
        self
    }

    /// Removes all environment variables, those that every command has too.
    pub fn env_clear(&mut self) -> &mut Self {
        self.environment.clear();
        self
    }

    /// Sets the working directory: a path in the sandbox, relative to its root.
    pub fn current_dir(&mut self, directory: impl AsRef<Path>) -> &mut Self {
        self.directory = directory.as_ref().into();
        self
    }

    run_as_methods! {}

    /// Sets the file mode creation mask (`umask(2)`), `0o022` by default.
    pub fn umask(&mut self, umask: u32) -> &mut Self {
        self.umask = umask;
        self
    }

    /// Sets a resource limit (`setrlimit(2)`), soft and hard, in the unit of the resource;
    /// `u64::MAX` is none. What the kernel refuses is [`Error::Start`] with [`Stage::Rlimit`].
    ///
    /// [`Stage::Rlimit`]: crate::Stage::Rlimit
    pub fn rlimit(&mut self, resource: Resource, soft: u64, hard: u64) -> &mut Self {
        self.rlimits.retain(|limit| limit.resource != resource as u32);
        self.rlimits.push(adl_protocol::Rlimit { resource: resource as u32, soft, hard });
        self
    }

    /// Sets the niceness, from 0 to 19: how much it stands back for others (`nice(2)`). Less than
    /// 0 needs a right that no sandbox has.
    pub fn nice(&mut self, nice: i8) -> &mut Self {
        self.nice = nice;
        self
    }

    /// Sets how much sooner than others it is killed when memory runs out, from 0 to 1000
    /// (`proc_pid_oom_score_adj(5)`). It can't be lowered without a right that no sandbox has.
    pub fn oom_score_adj(&mut self, score: i16) -> &mut Self {
        self.oom_score_adj = score;
        self
    }

    /// Ends it, and all that it has started, when it has not ended by itself after so long. What
    /// it wrote is kept, the reason is [`EndReason::TimedOut`], and the sandbox goes on.
    ///
    /// This is time on the clock; see also [`Command::cpu_time`].
    ///
    /// Where processes are started faster than they can be ended, all processes of the sandbox are
    /// stopped for a moment. A shell with job control shows that of its children.
    ///
    /// [`EndReason::TimedOut`]: crate::EndReason::TimedOut
    pub fn timeout(&mut self, timeout: Duration) -> &mut Self {
        self.timeout = Some(timeout);
        self
    }

    /// Ends it, and all that it has started, when all of them together have used so much CPU time:
    /// those that have ended, and those that have left its session, among them. What it wrote is
    /// kept, the reason is [`EndReason::CpuTimedOut`], also where it ended by itself before that was
    /// noticed, and the sandbox goes on.
    ///
    /// The kernel's cgroups count. The tree is looked at every 10 ms when the time may be up, so it
    /// uses up to 50 ms more for each processor that it keeps busy. After its end, what it has left
    /// behind is not limited. For the CPU time of one process there is [`Resource::Cpu`], whose end
    /// is signal 24 (`SIGXCPU`), and which a fork begins anew.
    ///
    /// Running it is [`Error::Unsupported`] where its sandbox has no cgroup that counts CPU time:
    /// [`Defaults::cpu_time`](crate::Defaults::cpu_time) and
    /// [`Limits::accounting`](crate::Limits::accounting) make one.
    ///
    /// [`EndReason::CpuTimedOut`]: crate::EndReason::CpuTimedOut
    pub fn cpu_time(&mut self, limit: Duration) -> &mut Self {
        self.cpu_time = Some(limit);
        self
    }

    /// Ends it, and all that it has started, when it has written nothing for so long. The reason is
    /// [`EndReason::Idle`].
    ///
    /// This is for [`Command::output`], [`Command::background`] and [`Child::wait_with_output`],
    /// which read what it writes. Where nothing of that is read, it is [`Error::Invalid`].
    ///
    /// [`EndReason::Idle`]: crate::EndReason::Idle
    pub fn idle_timeout(&mut self, timeout: Duration) -> &mut Self {
        self.bounds.idle = Some(timeout);
        self
    }

    /// Ends it, and all that it has started, when it has written more than so many bytes, to both
    /// streams together. What it wrote until then is kept, which may be some more. The reason is
    /// [`EndReason::OutputLimit`] even when the command ended by itself before the library noticed.
    ///
    /// Only bytes that this library reads count, as for [`Command::idle_timeout`]. Of a [`Child`]
    /// whose pipes you read yourself, none do, and [`Child::wait`] is [`Error::Invalid`].
    ///
    /// [`EndReason::OutputLimit`]: crate::EndReason::OutputLimit
    pub fn output_limit(&mut self, bytes: u64) -> &mut Self {
        self.bounds.total = Some(bytes);
        self
    }

    /// Sets how much of its output is kept where this library reads it. The library keeps the first
    /// `head` and the last `tail` bytes of each stream, 8 MiB each by default. It counts the bytes
    /// between and drops them; the command never waits for that.
    pub fn keep_output(&mut self, head: usize, tail: usize) -> &mut Self {
        self.caps = Some(Caps { head, tail });
        self
    }

    /// Sets what becomes of the processes that it has started and that outlive it. By default they
    /// live on.
    pub fn leftovers(&mut self, leftovers: Leftovers) -> &mut Self {
        self.leftovers = leftovers;
        self
    }

    /// Kills it, and all that it has started, when its [`Child`] is dropped before its end was told
    /// ([`Child::try_wait`]). By default it runs on. What it has left behind, once it has ended, is
    /// not touched: [`Leftovers::End`] is for that.
    pub fn kill_on_drop(&mut self, kill: bool) -> &mut Self {
        self.kill_on_drop = kill;
        self
    }

    /// Writes these bytes to its stdin and closes it, with [`Command::output`],
    /// [`Command::status`] and [`Command::background`]. That it ends without having read all of
    /// them is no error.
    pub fn input(&mut self, bytes: impl Into<Vec<u8>>) -> &mut Self {
        self.input = Some(bytes.into());
        self
    }

    /// Gives it a terminal of the sandbox's own, of so many characters, that is its stdin, stdout
    /// and stderr and controls its session; see [`Child::terminal`].
    pub fn terminal(&mut self, rows: u16, columns: u16) -> &mut Self {
        self.terminal = Some((rows, columns));
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
    /// would take, before anything is asked of the sandbox; [`Error::SandboxDied`];
    /// [`Error::Deleted`]; [`Error::Busy`] where the sandbox is frozen; [`Error::TimedOut`] where
    /// another thread resets the sandbox, or makes a snapshot of it, for longer than
    /// [`Command::timeout`] says.
    pub fn spawn(&mut self) -> Result<Child> {
        if self.input.is_some() {
            return Err(Error::invalid(
                "input",
                "`spawn` takes none: write to the stdin of the child",
            ));
        }
        if let Some(name) = self.bounds.name()
            && [&self.stdout, &self.stderr].into_iter().flatten().any(Stdio::is_relayed)
        {
            return Err(Error::invalid(
                name,
                "`spawn` counts nothing that goes to a stream of the caller's: use `status`",
            ));
        }
        let mut child = self.start_now(&Kind::Null)?;
        child.start_relay()?;
        Ok(child)
    }

    /// Runs the command to its end and collects its stdout and stderr.
    ///
    /// Returns when the command's own process has ended, with all that it wrote; a background
    /// process that it has left behind holds nothing up, and goes on: what it writes from then on
    /// is dropped.
    ///
    /// # Errors
    /// As [`Command::spawn`]; [`Error::Undelivered`], which has the status, if a stream of the
    /// caller's ([`Stdio`]) failed, or did not take what was written in time: where the command was
    /// ended, by its timeout, a signal that was sent to it, or otherwise, that is a second.
    pub fn output(&mut self) -> Result<Output> {
        self.check_no_child()?;
        self.collect(&Kind::Piped, Collection::output)
    }

    /// Runs the command to its end and passes its output on in chunks, as it comes: which stream,
    /// and up to 64 KiB of it. Nothing is kept. It returns as [`Command::output`] does, with all
    /// that the command wrote passed on.
    ///
    /// `each` is called by the calling thread. While it works, the command is not read from, and
    /// waits when its pipe is full. [`ControlFlow::Break`] kills the command with all that it has
    /// started, as [`EndReason::Stopped`]; no chunk comes after that. So does a panic, which goes
    /// on when they have ended.
    ///
    /// ```no_run
    /// # use adl_runtime::{Config, OutputStream, Sandbox};
    /// use std::ops::ControlFlow;
    ///
    /// let sandbox = Sandbox::create(Config::default())?;
    /// let status = sandbox.shell("make 2>&1").output_with(|stream, bytes| {
    ///     println!("{stream:?}: {}", String::from_utf8_lossy(bytes));
    ///     if bytes.contains(&7) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    /// })?;
    /// # Ok::<(), adl_runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Command::output`].
    ///
    /// [`EndReason::Stopped`]: crate::EndReason::Stopped
    pub fn output_with(
        &mut self,
        each: impl FnMut(OutputStream, &[u8]) -> ControlFlow<()>,
    ) -> Result<ExitStatus> {
        self.check_no_child()?;
        self.check_nothing_kept("`output_with`")?;
        self.collect(&Kind::Piped, |collection| collection.pass_on(each))
    }

    /// Runs the command to its end.
    ///
    /// # Errors
    /// As [`Command::output`].
    pub fn status(&mut self) -> Result<ExitStatus> {
        self.check_no_child()?;
        self.check_nothing_kept("`status`")?;
        // It may have been given pipes, which are read then.
        self.collect(&Kind::Null, |collection| collection.pass_on(|_, _| ControlFlow::Continue(())))
    }

    /// Starts the command and returns at once. Its output is collected as by [`Command::output`],
    /// but by whoever waits for it, as in an event loop: see [`PendingOutput`].
    ///
    /// # Errors
    /// As [`Command::spawn`]. That its program could not be run is told by
    /// [`PendingOutput::advance`].
    pub fn begin_output(&mut self) -> Result<PendingOutput> {
        self.check_no_child()?;
        if [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().any(Stdio::is_relayed) {
            let why =
                "`begin_output` moves nothing to or from a stream of the caller's: use `spawn`";
            return Err(Error::invalid("stdio", why));
        }
        self.collect(&Kind::Piped, PendingOutput::new)
    }

    /// Starts it, and does the rest with what moves its bytes.
    fn collect<T>(&self, default: &Kind, work: impl FnOnce(Collection) -> Result<T>) -> Result<T> {
        if self.terminal.is_some() {
            return work(self.start_now(default)?.take_collection()?);
        }
        let (life, deadline) = self.begin()?;
        let started = self.start(&life, deadline, default, None)?;
        work(self.split(&life, started)?.1)
    }

    /// Refuses what only means something for a [`Child`].
    fn check_no_child(&self) -> Result<()> {
        if self.kill_on_drop {
            return Err(Error::invalid("kill on drop", "only what `spawn` returns can be dropped"));
        }
        if self.input.is_none() && self.stdin.as_ref().is_some_and(Stdio::is_piped) {
            let why = "no one writes to that pipe: use `input`, or `spawn`";
            return Err(Error::invalid("stdin", why));
        }
        Ok(())
    }

    /// Refuses to say how much is kept of what is not.
    fn check_nothing_kept(&self, by: &str) -> Result<()> {
        match self.caps {
            None => Ok(()),
            Some(_) => Err(Error::invalid("keep output", format!("{by} keeps none: use `output`"))),
        }
    }

    /// Starts the command and returns once its program runs. It is read from in the background, by
    /// a thread that does so for all of the sandbox, and can be waited for, looked at and ended
    /// from anywhere; see [`Sandbox::jobs`](crate::Sandbox::jobs).
    ///
    /// # Errors
    /// As [`Command::spawn`]; [`Error::Io`] if there can be no thread.
    pub fn background(&mut self) -> Result<Job> {
        if self.terminal.is_some() {
            return Err(Error::invalid(
                "terminal",
                "a command in the background can have none: use `spawn`",
            ));
        }
        self.check_no_child()?;
        let (life, deadline) = self.begin()?;
        let mut child = self.start_child(&life, deadline, &Kind::Piped)?;
        let collection = child.take_collection()?;
        Job::start(&life.jobs, collection, child.handle(), child.id())
    }
}

mirror! {
/// What becomes of the processes that a command has started and that outlive it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Leftovers {
    /// They live on, as a server that `server &` has started must.
    #[default]
    Keep,
    /// They are killed, all of them, before the command's end is told.
    End,
}
}
