//! `adl run`: one command in a new sandbox.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::process::ExitCode;

use adl_runtime::{Child, Config, ExitStatus, Sandbox, Scope, Stdio};
use lexopt::{Arg, ValueExt as _};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::options::{CliResult, SANDBOX_HELP, exit_code_of, sandbox_option};

const HELP: &str = "\
Usage: adl run [options] [--] COMMAND [ARGUMENT…]

Runs COMMAND in a new sandbox and exits with its status; with 128 + N if signal N ended it, with
125 for an error of adl's, 126 if COMMAND can't be run, 127 if there is none.

  -e, --env NAME=VALUE     set an environment variable; NAME alone takes this one's value
  -w, --workdir DIR        working directory (default: /)
  -u, --user UID[:GID]     ids inside (default: 0:0)
";

/// What the command line asks for.
#[derive(Default)]
struct Options {
    config: Config,
    environment: Vec<(OsString, OsString)>,
    directory: Option<OsString>,
    user: Option<(u32, u32)>,
    command: Vec<OsString>,
}

pub(crate) fn main(arguments: Vec<OsString>) -> CliResult<ExitCode> {
    let Some(options) = parse(arguments)? else {
        print!("{HELP}{SANDBOX_HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    let Some((program, arguments)) = options.command.split_first() else {
        return Err("no command to run; try `adl run --help`".into());
    };

    // Blocked and read below, so that the sandbox is taken down in order whatever ends us.
    let signals = forwarded();
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    let sandbox = Sandbox::create(options.config)?;
    let mut command = sandbox.command(program);
    command.args(arguments).envs(options.environment);
    if let Some(directory) = options.directory {
        command.current_dir(directory);
    }
    if let Some((uid, gid)) = options.user {
        command.uid(uid).gid(gid);
    }
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let code = match command.spawn() {
        Ok(child) => exit_code(wait(child, &signals)?),
        Err(error) => {
            eprintln!("adl: {error}");
            exit_code_of(&error)
        }
    };
    sandbox.delete()?;
    Ok(ExitCode::from(code))
}

fn parse(arguments: Vec<OsString>) -> CliResult<Option<Options>> {
    let mut options = Options::default();
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            Arg::Short('e') | Arg::Long("env") => {
                options.environment.extend(variable(parser.value()?.string()?)?);
            }
            Arg::Short('w') | Arg::Long("workdir") => options.directory = Some(parser.value()?),
            Arg::Short('u') | Arg::Long("user") => {
                options.user = Some(user(&parser.value()?.string()?)?);
            }
            Arg::Value(program) => {
                // What follows is the command's, options and all.
                options.command.push(program);
                options.command.extend(parser.raw_args()?);
            }
            Arg::Long(name) => {
                let name = name.to_owned();
                if !sandbox_option(&mut options.config, &name, &mut parser)? {
                    return Err(format!("unknown option --{name}; try `adl run --help`").into());
                }
            }
            Arg::Short(letter) => {
                return Err(format!("unknown option -{letter}; try `adl run --help`").into());
            }
        }
    }
    Ok(Some(options))
}

fn variable(text: String) -> CliResult<Option<(OsString, OsString)>> {
    match text.split_once('=') {
        Some(("", _)) => Err(format!("--env {text}: no name").into()),
        Some((name, value)) => Ok(Some((name.into(), value.into()))),
        None => Ok(std::env::var_os(&text).map(|value| (text.into(), value))),
    }
}

fn user(text: &str) -> CliResult<(u32, u32)> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    match (uid.parse(), gid.parse()) {
        (Ok(uid), Ok(gid)) => Ok((uid, gid)),
        _ => Err(format!("--user {text}: takes UID or UID:GID, as numbers").into()),
    }
}

/// Signals that end a program by default and that others send to make it end, or to tell it of
/// something: the command decides what to make of them.
fn forwarded() -> SigSet {
    [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ]
    .into_iter()
    .collect()
}

/// Waits for the command, passing on signals to its process group meanwhile.
fn wait(mut child: Child, signals: &SignalFd) -> CliResult<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let mut fds = [
            PollFd::new(child.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        while let Some(signal) = signals.read_signal()? {
            child.signal(u8::try_from(signal.ssi_signo)?, Scope::Group)?;
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, signal) => signal.unwrap_or(0).saturating_add(128),
    }
}
