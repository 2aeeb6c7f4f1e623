//! Commands, in the idiom of `std::process::Command`.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use adl_protocol::{
    Identity, JobStdio, Program, Request, Spawn, StdioSource, Strings, Task, limits,
};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::config::defaults::{Resource, Rlimit, check_umask};
use crate::error::{Error, Result};
use crate::exit::{EndReason, ExitStatus};
use crate::job::background::Job;
use crate::job::child::{Child, Collection, Output};
use crate::job::collect::{Bounds, Caps, Collector, OutputStream, Written};
use crate::job::environment::Environment;
use crate::job::life::{Life, Lives};
use crate::job::relay::{Input, Relay, Sink};
use crate::job::running::Running;
use crate::job::stdio::{Kind, Stdio, Stream, Which};
use crate::job::user::{self, ReadFile, RunAs, run_as_methods};
use crate::mirror::mirror;
use crate::wait::Deadline;
use crate::wire::control::PipeOwner;

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
    directory: PathBuf,
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
            directory: defaults.current_dir.clone(),
            run_as: RunAs::of(defaults),
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
        self.directory = directory.as_ref().to_owned();
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
    /// killed, by its timeout or otherwise, that is a second.
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
    /// a thread that does so for all of the sandbox, and can be waited for, looked at and ended from
    /// anywhere; see [`Sandbox::jobs`](crate::Sandbox::jobs).
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

    /// The life that it begins in, and when its time is up.
    fn begin(&self) -> Result<(Life, Deadline)> {
        let deadline = self.timeout.map_or(Deadline::NEVER, Deadline::after);
        Ok((self.lives.begin(deadline)?, deadline))
    }

    fn start_now(&self, default: &Kind) -> Result<Child> {
        let (life, deadline) = self.begin()?;
        self.start_child(&life, deadline, default)
    }

    fn start_child(&self, life: &Life, deadline: Deadline, default: &Kind) -> Result<Child> {
        let (notice, notice_theirs) = pipe2(OFlag::O_CLOEXEC).map_err(Error::io("pipe"))?;
        let started = self.start(life, deadline, default, Some(notice_theirs))?;
        let (stdin, collection) = self.split(life, started)?;
        Child::started(stdin, collection, notice, self.kill_on_drop)
    }

    /// What moves the bytes of a command, and the stdin that no one here writes to.
    fn split(&self, life: &Life, started: Started) -> Result<(Option<OwnedFd>, Collection)> {
        let Started { running, stdin, pipes, relays, identity } = started;
        let [source, sinks @ ..] = relays;
        let (stdin, input) = match (stdin, source, &self.input) {
            (Some(pipe), Some(source), _) => (None, Some(Input::of_relay(pipe, source)?)),
            (Some(pipe), None, Some(bytes)) => (None, Some(Input::of_bytes(pipe, bytes.clone())?)),
            (stdin, ..) => (stdin, None),
        };
        let collector = Collector {
            running: Arc::new(running),
            input,
            pipes,
            sinks: sinks.map(|sink| sink.map(Sink::new)),
            is_stopped: false,
            failed: None,
            written: Written::default(),
            bounds: self.bounds,
            is_terminal: self.terminal.is_some(),
        };
        let control = Arc::clone(&life.control);
        Ok((
            stdin,
            Collection { collector, control, identity, caps: self.caps.unwrap_or_default() },
        ))
    }

    /// Asks init to start it. `default` is what becomes of stdout and stderr if nothing was said;
    /// `notice` is closed when the program runs, or when it can't.
    fn start(
        &self,
        life: &Life,
        deadline: Deadline,
        default: &Kind,
        notice: Option<OwnedFd>,
    ) -> Result<Started> {
        let control = &life.control;
        let program = PathBuf::from(self.programs.first().map_or(OsStr::new(""), |p| p));
        let names = strings("program", self.programs.iter().map(|p| p.as_bytes()))?;
        let arguments = strings("argument", self.arguments.iter().map(|a| a.as_bytes()))?;
        let directory = strings("directory", [self.directory.as_os_str().as_bytes()].into_iter())?;
        let (identity, entry) = self
            .run_as
            .find(control.ids(), |path| (self.read)(life, path, user::LONGEST, deadline))?;
        // A guest may have held up the look-up, and a reset the beginning: all take no longer.
        let timeout = deadline.left();
        let on_terminal = self.terminal.is_some();
        let (environment, login) = self.environment.block(entry.as_ref(), on_terminal)?;

        let owner = control.pipe_owner(identity.uid, identity.gid);
        let streams = self.streams(default, owner)?;
        self.check_bounds(&streams)?;
        let stdio = match (self.terminal, &streams) {
            (Some((rows, columns)), _) => JobStdio::Terminal { rows, columns },
            (None, streams) => JobStdio::Streams(streams.each_ref().map(|stream| stream.source)),
        };
        let (channel, channel_theirs) = control.take_channel()?;
        let mut descriptors = vec![channel_theirs.as_raw_fd()];
        descriptors.extend(notice.as_ref().map(AsRawFd::as_raw_fd));
        descriptors.extend(streams.iter().filter_map(|stream| stream.theirs.raw()));

        let cpu_time = self.cpu_time.filter(|limit| *limit != Duration::MAX);
        let is_counted = notice.is_some() || cpu_time.is_some();
        let (job_cgroup, join_files) = control.job_cgroup(is_counted)?;
        descriptors.extend(join_files.descriptors());
        let cpu_limit = cpu_time.map(|limit| control.cpu_limit(job_cgroup.as_deref(), limit));
        let (cpu_file, cpu_limit) = cpu_limit.transpose()?.unzip();
        descriptors.extend(cpu_file.as_ref().map(AsRawFd::as_raw_fd));

        let program_to_run = Program {
            names: Strings::new(&names).map_err(too_many)?,
            arguments: Strings::new(&arguments).map_err(too_many)?,
            environment: Strings::new(&environment).map_err(too_many)?,
            login,
        };
        let spawn = Spawn {
            task: Task::Program(program_to_run),
            directory: Strings::new(&directory).map_err(too_many)?,
            identity: identity.clone(),
            umask: check_umask(self.umask)?,
            rlimits: self.rlimits.clone(),
            nice: self.nice,
            oom_score_adj: self.oom_score_adj,
            stdio,
            cgroups: join_files.count(),
            start_notice: notice.is_some(),
            cpu_limit,
            timeout_us: timeout.map(|t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX)),
            leftovers: self.leftovers.to_wire(),
        };
        let running = Running::new(program, channel, control.init(), timeout, life.beginning())
            .in_directory(self.directory.clone())
            .with_cgroup(job_cgroup);
        if self.terminal.is_some() {
            running.messages().expect_descriptor()?;
        }
        control.add_waited_for(running.messages());
        let asked = control.request_by(running.overdue(), &Request::Spawn(spawn), &descriptors);
        if let Err(error) = asked {
            // Init may have a part of the request, and get the rest: it is no one's then.
            let _ = running.end(EndReason::Signaled);
            return Err(error);
        }
        running.mark_requested();
        control.prepare_next();
        let [mut stdin, mut stdout, mut stderr] = streams;
        let relays = [&mut stdin, &mut stdout, &mut stderr].map(|stream| stream.relay.take());
        let (stdin, pipes) = (stdin.ours, [stdout.ours, stderr.ours]);
        Ok(Started { running, stdin, pipes, relays, identity })
    }

    /// Refuses bounds of what no one here would read.
    fn check_bounds(&self, [_, stdout, stderr]: &[Stream<'_>; 3]) -> Result<()> {
        let is_read = self.terminal.is_some() || stdout.ours.is_some() || stderr.ours.is_some();
        match self.bounds.name() {
            Some(name) if !is_read => {
                Err(Error::invalid(name, "nothing that it writes is read: use `output`, or a pipe"))
            }
            _ => Ok(()),
        }
    }

    /// `owner` is who pipes belong to.
    fn streams<'s>(&'s self, default: &'s Kind, owner: PipeOwner) -> Result<[Stream<'s>; 3]> {
        if self.terminal.is_some() {
            if self.stdin.is_some() || self.stdout.is_some() || self.stderr.is_some() {
                return Err(Error::invalid(
                    "stdio",
                    "a command on a terminal has no others: set none",
                ));
            }
            if self.input.is_some() {
                return Err(Error::invalid(
                    "input",
                    "a command on a terminal takes none: write to the terminal",
                ));
            }
            return Ok([Stream::none(), Stream::none(), Stream::none()]);
        }
        let stdin = match (&self.stdin, &self.input) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid("input", "stdin was set, too: set one of them"));
            }
            (None, Some(_)) => &Kind::Piped,
            (stdin, None) => stdin.as_ref().map_or(&Kind::Null, |s| &s.0),
        };
        let [stdout, stderr] =
            [&self.stdout, &self.stderr].map(|said| said.as_ref().map_or(default, |s| &s.0));
        let stdin = Stream::new(stdin, Which::Stdin, owner)?;
        let stdout = Stream::new(stdout, Which::Stdout, owner)?;
        let stderr = Stream::new(stderr, Which::Stderr, owner)?.beside(&stdout);
        if matches!(stdin.source, StdioSource::Previous)
            || matches!(stdout.source, StdioSource::Previous)
        {
            return Err(Error::invalid("stdio", "only stderr can go where stdout goes"));
        }
        Ok([stdin, stdout, stderr])
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

/// A command that init was asked to start.
struct Started {
    running: Running,
    stdin: Option<OwnedFd>,
    pipes: [Option<OwnedFd>; 2],
    /// What of the caller's each stream is joined to.
    relays: [Option<Relay>; 3],
    identity: Identity,
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
