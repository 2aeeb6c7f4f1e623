//! From a command to the request by which init starts it.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use adl_protocol::{
    Identity, JobStdio, Program, Request, Spawn, StdioSource, Strings, Task, limits,
};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::Command;
use crate::config::defaults::check_umask;
use crate::error::traced::traced;
use crate::error::{Error, Result};
use crate::exit::EndReason;
use crate::job::child::{Child, Collection};
use crate::job::collect::{Collector, Written};
use crate::job::life::Life;
use crate::job::relay::Which;
use crate::job::relay::{Input, Relay, Sink};
use crate::job::running::Running;
use crate::job::stdio::{Kind, Stream};
use crate::job::user;
use crate::job::watch::{Watch, job_span};
use crate::wait::Deadline;

impl Command {
    /// The life that it begins in, and when its time is up.
    pub(super) fn begin(&self) -> Result<(Life, Deadline)> {
        let deadline = self.timeout.map_or(Deadline::NEVER, Deadline::after);
        Ok((self.lives.begin(deadline)?, deadline))
    }

    pub(super) fn start_now(&self, default: &Kind) -> Result<Child> {
        let (life, deadline) = self.begin()?;
        self.start_child(&life, deadline, default)
    }

    pub(super) fn start_child(
        &self,
        life: &Life,
        deadline: Deadline,
        default: &Kind,
    ) -> Result<Child> {
        let (notice, notice_theirs) = pipe2(OFlag::O_CLOEXEC).map_err(Error::io("pipe"))?;
        let started = self.start(life, deadline, default, Some(notice_theirs))?;
        let (stdin, collection) = self.split(life, started)?;
        Child::started(stdin, collection, notice, self.kill_on_drop)
    }

    /// What moves the bytes of a command, and the stdin that no one here writes to.
    pub(super) fn split(
        &self,
        life: &Life,
        started: Started,
    ) -> Result<(Option<OwnedFd>, Collection)> {
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
    pub(super) fn start(
        &self,
        life: &Life,
        deadline: Deadline,
        default: &Kind,
        notice: Option<OwnedFd>,
    ) -> Result<Started> {
        let program = PathBuf::from(self.programs.first().map_or(OsStr::new(""), |p| p));
        let span = job_span(&life.sandbox, &program);
        let started = traced(&span, || self.try_start(life, deadline, default, notice, program))?;
        started.running.watch(Watch::job(span));
        Ok(started)
    }

    fn try_start(
        &self,
        life: &Life,
        deadline: Deadline,
        default: &Kind,
        notice: Option<OwnedFd>,
        program: PathBuf,
    ) -> Result<Started> {
        let control = &life.control;
        let streams = self.streams(default)?;
        self.check_bounds(&streams)?;
        self.environment.check()?;
        let umask = check_umask(self.umask)?;
        let names = strings("program", self.programs.iter().map(|p| p.as_bytes()))?;
        let arguments = strings("argument", self.arguments.iter().map(|a| a.as_bytes()))?;
        let directory = strings("directory", [self.directory.as_os_str().as_bytes()].into_iter())?;
        let names = Strings::new(&names).map_err(too_many)?;
        let arguments = Strings::new(&arguments).map_err(too_many)?;
        let directory = Strings::new(&directory).map_err(too_many)?;
        // Nothing was asked of the sandbox until now.
        let (identity, entry) = self
            .run_as
            .find(control.ids(), |path| (self.read)(life, path, user::LONGEST, deadline))?;
        // A guest may have held up the look-up, and a reset the beginning: all take no longer.
        let timeout = deadline.left();
        let owner = control.pipe_owner(identity.uid, identity.gid);
        streams.iter().try_for_each(|stream| stream.give_to(owner))?;
        let on_terminal = self.terminal.is_some();
        let (environment, login) = self.environment.block(entry.as_ref(), on_terminal)?;

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
            names,
            arguments,
            environment: Strings::new(&environment).map_err(too_many)?,
            login,
        };
        let spawn = Spawn {
            task: Task::Program(program_to_run),
            directory,
            identity: identity.clone(),
            umask,
            rlimits: self.rlimits.clone(),
            nice: self.nice,
            oom_score_adj: self.oom_score_adj,
            stdio,
            cgroups: join_files.count(),
            cgroup_namespace: control.has_cgroup_namespaces(),
            start_notice: notice.is_some(),
            cpu_limit,
            timeout_us: timeout.map(|t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX)),
            leftovers: self.leftovers.to_wire(),
        };
        let running = Running::new(program, channel, control.init(), timeout)
            .in_directory(Arc::clone(&self.directory))
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

    fn streams<'s>(&'s self, default: &'s Kind) -> Result<[Stream<'s>; 3]> {
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
        let is_counted = self.bounds.name().is_some();
        let stdin = Stream::new(stdin, Which::Stdin, is_counted)?;
        let stdout = Stream::new(stdout, Which::Stdout, is_counted)?;
        let stderr = Stream::new(stderr, Which::Stderr, is_counted)?.beside(&stdout);
        if matches!(stdin.source, StdioSource::Previous)
            || matches!(stdout.source, StdioSource::Previous)
        {
            return Err(Error::invalid("stdio", "only stderr can go where stdout goes"));
        }
        Ok([stdin, stdout, stderr])
    }
}
/// A command that init was asked to start.
pub(super) struct Started {
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
