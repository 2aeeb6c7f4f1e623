//! `adl run` and `adl shell`: one command in a new sandbox.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use adl_runtime::{
    Child, Command, Config, EndReason, Error, ExitStatus, IfRunning, Sandbox, Snapshot,
    SnapshotOptions, Stage, Upper,
};
use lexopt::{Arg, ValueExt as _};
use nix::poll::PollTimeout;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::bases::{Bases, Named};
use crate::copies::{self, CopyOut, Transfer};
use crate::environment::{self, Variable};
use crate::options::{SANDBOX_HELP, exit_code_of, sandbox_option};
use crate::values::{CliResult, duration};
use crate::{limits, mounts, session, streams, sys};

const RUN_HELP: &str = "\
Usage: adl run [options] [--] COMMAND [ARGUMENT…]

Runs COMMAND in a new sandbox and exits with its status; with 128 + N if signal N ended it, with
124 if its time was up, 125 for an error of adl's, 126 if COMMAND can't be run, 127 if there is
none. SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1 and SIGUSR2 are passed on to its process group.

  -i, --interactive        take stdin from here; so it always is, read ahead of the command
  -t, --tty                give it a terminal of the sandbox's own, joined to this one, which has to
                           be stdin; what is typed, as Ctrl-C, goes there, and TERM is this one's
";

const SHELL_HELP: &str = "\
Usage: adl shell [options] [-- ARGUMENT…]

Runs a shell in a new sandbox: bash if the image has it, else sh. Where stdin is a terminal it is
like `adl run -it`; else the shell reads its commands from there. The exit status is as with
`adl run`.

  -i, --interactive        as with `adl run`
  -t, --tty                fail where stdin is no terminal
";

const COMMAND_HELP: &str = "\
\x20     --timeout DURATION   kill it, and all that it has started, after so long: seconds, or with a
                           unit, as 500ms, 1.5s, 10m, 2h
  -e, --env NAME=VALUE     set an environment variable; NAME alone takes this one's value
      --env-file FILE      set those of a file, one on each line, as for --env, which comes first;
                           lines that are empty or begin with # are left out
  -w, --workdir DIR        working directory (default: /)
  -u, --user USER[:GROUP]  who runs it: names in the image's /etc/passwd and /etc/group, or numbers
                           (default: 0:0)
      --stats              when it has ended, print to stderr what it has used
      --snapshot NAME      when it has ended, and what it has left running was killed, keep the files
                           as NAME, for --image snapshot:NAME
";

/// The shells that there may be, the best first.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

/// What the command line asks for.
#[derive(Default)]
struct Options {
    config: Config,
    named: Named,
    /// Known when all options are.
    bases: Bases,
    tty: bool,
    timeout: Option<Duration>,
    env_files: Vec<PathBuf>,
    files: Vec<Variable>,
    environment: Vec<Variable>,
    directory: Option<OsString>,
    user: Option<String>,
    copies_in: Vec<Transfer>,
    copies_out: Vec<Transfer>,
    snapshot: Option<String>,
    stats: bool,
    /// With `adl shell`, its arguments.
    command: Vec<OsString>,
}

pub(crate) fn main(arguments: Vec<OsString>) -> CliResult<ExitCode> {
    let Some(options) = parse(arguments, "run")? else {
        print!(
            "{RUN_HELP}{COMMAND_HELP}{}{}{}{SANDBOX_HELP}",
            copies::HELP,
            mounts::HELP,
            limits::HELP
        );
        return Ok(ExitCode::SUCCESS);
    };
    let Some((program, arguments)) = options.command.split_first() else {
        return Err("no command to run; try `adl run --help`".into());
    };
    run(&options, &[program], arguments)
}

/// `adl shell`.
pub(crate) fn shell(arguments: Vec<OsString>) -> CliResult<ExitCode> {
    let Some(mut options) = parse(arguments, "shell")? else {
        print!(
            "{SHELL_HELP}{COMMAND_HELP}{}{}{}{SANDBOX_HELP}",
            copies::HELP,
            mounts::HELP,
            limits::HELP
        );
        return Ok(ExitCode::SUCCESS);
    };
    options.tty |= io::stdin().is_terminal();
    run(&options, &SHELLS.map(OsStr::new), &options.command)
}

/// Makes sure that a snapshot can be made when the command has done its work.
fn check_snapshot(name: &str, config: &Config) -> CliResult<()> {
    if let Upper::Memory { .. } = config.upper {
        return Err("--snapshot needs an --upper that is on disk".into());
    }
    match Snapshot::open(config.state_directory.as_deref(), name) {
        Err(Error::NoSnapshot { .. }) => Ok(()),
        Ok(_) => Err(Error::NameInUse { name: name.to_owned() }.into()),
        Err(error) => Err(error.into()),
    }
}

/// Runs the first of some programs that there is.
fn run(
    options: &Options,
    programs: &[impl AsRef<OsStr>],
    arguments: &[OsString],
) -> CliResult<ExitCode> {
    if options.tty && !io::stdin().is_terminal() {
        return Err("the input device is not a terminal, so there can be no --tty".into());
    }
    if let Some(name) = &options.snapshot {
        check_snapshot(name, &options.config)?;
    }
    // Blocked and read below, so that the sandbox is taken down in order whatever ends us, and the
    // terminal is left as it was. A size that changes after it was first read is told.
    let mut mask: SigSet = FORWARDED.into_iter().collect();
    if options.tty {
        mask.extend(session::SIGNALS);
    }
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    let copies_out = CopyOut::open_all(&options.copies_out, &options.bases)?;
    let sandbox = Sandbox::create(options.config.clone())?;
    let mut files = sandbox.files();
    if let Some(user) = &options.user {
        files.user(user);
    }
    if let Some(directory) = &options.directory {
        files.current_dir(directory);
    }
    // A copy may take long. Whoever interrupts it ends adl, and what is left on disk is removed by
    // the next one.
    if !options.copies_in.is_empty() {
        mask.thread_unblock()?;
        for transfer in &options.copies_in {
            transfer.copy_in(&files, &options.bases)?;
        }
        mask.thread_block()?;
    }
    let mut code = match spawn(options, &sandbox, programs, arguments)? {
        Ok(mut child) => {
            // Where its time is up, and nothing tells of its end, it is asked for that.
            let pause = options.timeout.map_or(PollTimeout::NONE, |_| BETWEEN_LOOKS.into());
            let (status, delivered) = match options.tty {
                true => (session::run(&mut child, &sandbox, &signals, pause)?, true),
                false => streams::run(&mut child, &sandbox, &signals, pause)?,
            };
            let code = exit_code(status, options)?;
            if delivered { code } else { super::OWN_ERROR }
        }
        Err(error) => {
            eprintln!("adl: {error}");
            exit_code_of(&error)
        }
    };
    if options.stats {
        match sandbox.stats() {
            Ok(stats) => limits::print(&stats),
            Err(error) => eprintln!("adl: --stats: {error}"),
        }
    }
    if !copies_out.is_empty() {
        mask.thread_unblock()?;
        if !copies::copy_all_out(&copies_out, &files) && code == 0 {
            code = super::OWN_ERROR;
        }
        mask.thread_block()?;
    }
    if let Some(name) = &options.snapshot {
        let how = SnapshotOptions { name: Some(name.clone()), running: IfRunning::End };
        if let Err(error) = sandbox.snapshot_with(&how) {
            eprintln!("adl: --snapshot {name}: {error}");
            code = if code == 0 { super::OWN_ERROR } else { code };
        }
    }
    sandbox.delete()?;
    Ok(ExitCode::from(code))
}

fn spawn(
    options: &Options,
    sandbox: &Sandbox,
    programs: &[impl AsRef<OsStr>],
    arguments: &[OsString],
) -> CliResult<Result<Child, Error>> {
    let mut programs = programs.iter().peekable();
    loop {
        let Some(program) = programs.next() else { return Err("no command to run".into()) };
        let mut command = sandbox.command(program);
        prepare(command.args(arguments), options)?;
        match command.spawn() {
            Err(Error::Start { stage: Stage::Exec, source, .. })
                if source.kind() == ErrorKind::NotFound && programs.peek().is_some() => {}
            spawned => return Ok(spawned),
        }
    }
}

fn prepare(command: &mut Command, options: &Options) -> CliResult<()> {
    if options.tty {
        let (rows, columns) = sys::window_size(io::stdin())?;
        command.terminal(rows, columns);
        if let Some(term) = std::env::var_os("TERM") {
            command.env("TERM", term);
        }
    } else {
        streams::prepare(command)?;
    }
    for (name, value) in options.files.iter().chain(&options.environment) {
        command.env(name, value);
    }
    if let Some(directory) = &options.directory {
        command.current_dir(directory);
    }
    if let Some(user) = &options.user {
        command.user(user);
    }
    if let Some(timeout) = options.timeout {
        command.timeout(timeout);
    }
    Ok(())
}

/// Reads the options of `adl run` or `adl shell`; `None` if help is asked for.
fn parse(arguments: Vec<OsString>, name: &str) -> CliResult<Option<Options>> {
    let mut options = Options::default();
    let mut parser = lexopt::Parser::from_args(arguments);
    let unknown = |option: String| format!("unknown option {option}; try `adl {name} --help`");
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Short('i') | Arg::Long("interactive") => {}
            Arg::Short('t') | Arg::Long("tty") => options.tty = true,
            Arg::Short('e') | Arg::Long("env") => {
                options.environment.extend(environment::variable(&parser.value()?)?);
            }
            Arg::Long("env-file") => {
                options.env_files.push(parser.value()?.into());
            }
            Arg::Long("timeout") => {
                let text = parser.value()?;
                let timeout = text.to_str().and_then(duration);
                options.timeout = Some(timeout.ok_or_else(|| {
                    format!("--timeout {}: takes a time, as 10, 1.5s or 2m", text.display())
                })?);
            }
            Arg::Short('w') | Arg::Long("workdir") => options.directory = Some(parser.value()?),
            Arg::Short('u') | Arg::Long("user") => options.user = Some(parser.value()?.string()?),
            Arg::Long("copy-in") => {
                options.copies_in.push(Transfer::into_sandbox(&parser.value()?)?);
            }
            Arg::Long("copy-out") => {
                options.copies_out.push(Transfer::out_of_sandbox(&parser.value()?)?);
            }
            Arg::Long("snapshot") => options.snapshot = Some(parser.value()?.string()?),
            Arg::Long("stats") => {
                options.stats = true;
                options.config.limits.accounting = true;
            }
            Arg::Short('v') => {
                let Options { config, named, .. } = &mut options;
                sandbox_option(config, named, "volume", &mut parser)?;
            }
            Arg::Value(program) => {
                // What follows is the command's, options and all.
                options.command.push(program);
                options.command.extend(parser.raw_args()?);
            }
            Arg::Long(option) => {
                let option = option.to_owned();
                let Options { config, named, .. } = &mut options;
                if !sandbox_option(config, named, &option, &mut parser)? {
                    return Err(unknown(format!("--{option}")).into());
                }
            }
            Arg::Short(letter) => return Err(unknown(format!("-{letter}")).into()),
        }
    }
    let targets = options.copies_out.iter().map(Transfer::target);
    options.bases = options.named.settle(&mut options.config, targets)?;
    for path in &options.env_files {
        options.files.extend(environment::file(path, &options.bases)?);
    }
    Ok(Some(options))
}

/// Signals that end a program by default and that others send to make it end, or to tell it of
/// something: the command decides what to make of them.
const FORWARDED: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// How often a command is looked at that has a timeout, in milliseconds.
const BETWEEN_LOOKS: u16 = 1000;

/// What to exit with. What the status alone does not tell is said.
fn exit_code(status: ExitStatus, options: &Options) -> CliResult<u8> {
    match (status.reason(), status.code(), status.signal()) {
        (EndReason::SandboxDied, ..) => Err(Error::SandboxDied.into()),
        (EndReason::TimedOut, ..) => {
            let timeout = options.timeout.unwrap_or_default();
            eprintln!("adl: the command was killed: it ran for longer than {timeout:?}");
            Ok(super::TIMED_OUT)
        }
        (EndReason::OutOfMemory, ..) => {
            eprintln!("adl: the command was killed: memory ran out");
            Ok(super::KILLED)
        }
        (_, Some(code), _) => Ok(code),
        (_, None, signal) => Ok(signal.unwrap_or(0).saturating_add(128)),
    }
}
