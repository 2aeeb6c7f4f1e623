//! `adl run` and `adl shell`: one command in a new sandbox.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use adl_runtime::{
    Command, EndReason, Error, ExitStatus, Image, ImageConfig, Sandbox, Stage, Upper,
};
use clap::{Args, ValueHint};
use nix::poll::PollTimeout;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::command::{CommandOptions, Settled};
use crate::copies::{self, CopyOut};
use crate::environment::Variable;
use crate::output::say;
use crate::result::{Outcome, ResultFile};
use crate::ulimits::Ulimit;
use crate::values::{CliResult, take_any_value};
use crate::{image, limits, options, ports, sections, session, streams, sys};

const RUN_USAGE: &str = "\
adl run [OPTIONS] IMAGE [COMMAND [ARGUMENT]...]
       adl run [OPTIONS] --image IMAGE [COMMAND [ARGUMENT]...]
       adl run [OPTIONS] -- COMMAND [ARGUMENT]...";

#[derive(Args)]
#[command(mut_args = take_any_value)]
#[command(override_usage = RUN_USAGE)]
#[command(after_help = sections::help("run"))]
pub(crate) struct RunOptions {
    /// The image, as --image takes it; then COMMAND, a program with all that follows as its
    /// arguments, options among them. Without it, what the image says is run. After --image or a --
    /// there is COMMAND alone
    #[arg(value_name = "IMAGE", trailing_var_arg = true)]
    #[arg(value_hint = ValueHint::AnyPath)]
    words: Vec<OsString>,

    /// Whether a `--` comes before these, so that no image does.
    #[arg(skip)]
    is_command: bool,

    /// Run PROGRAM in place of what the image says, with what follows the image as its arguments
    #[arg(long, value_name = "PROGRAM", help_heading = "Command")]
    entrypoint: Option<OsString>,

    #[command(flatten)]
    options: CommandOptions,
}

#[derive(Args)]
#[command(mut_args = take_any_value)]
#[command(override_usage = "adl shell [OPTIONS] [-- ARGUMENT...]")]
#[command(after_help = sections::help("shell"))]
pub(crate) struct ShellOptions {
    /// Arguments of the shell
    #[arg(value_name = "ARGUMENT", trailing_var_arg = true)]
    arguments: Vec<OsString>,

    #[command(flatten)]
    options: CommandOptions,
}

/// The shells that there may be, the best first.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

impl RunOptions {
    /// Looks whether a `--` comes before what is no option. These are the last arguments.
    pub(crate) fn look_at(&mut self, arguments: &[OsString]) {
        let before = arguments.len().checked_sub(self.words.len() + 1);
        let before = before.and_then(|at| arguments.get(at));
        self.is_command = !self.words.is_empty() && before.is_some_and(|before| before == "--");
    }
}

/// What is to be run.
enum Program<'a> {
    /// What the image says, or `words`; the image comes before them or is named by an option.
    OfImage { words: &'a [OsString], is_first: bool },
    /// The first of these that there is, with arguments.
    Named(&'a [&'a OsStr], &'a [OsString]),
}

impl Program<'_> {
    /// The programs, of which the first that there is is run, and its arguments, as docker has it.
    fn settle(&self, image: Option<&ImageConfig>) -> CliResult<(Vec<OsString>, Vec<OsString>)> {
        let given = match *self {
            Self::Named(programs, arguments) => {
                let programs = programs.iter().map(|program| (*program).to_owned());
                return Ok((programs.collect(), arguments.to_vec()));
            }
            Self::OfImage { words, .. } => words,
        };
        let of = |words: &[String]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let (mut all, cmd) =
            image.map(|image| (of(&image.entrypoint), of(&image.cmd))).unwrap_or_default();
        all.extend(if given.is_empty() { cmd } else { given.to_vec() });
        let mut all = all.into_iter();
        match all.next() {
            Some(program) => Ok((vec![program], all.collect())),
            None => Err("no command to run: the image says none, so name one behind it".into()),
        }
    }
}

/// `adl run`
pub(crate) fn main(mut options: RunOptions, state: Option<&Path>) -> CliResult<ExitCode> {
    let mut words = std::mem::take(&mut options.words);
    let mut is_first = false;
    if !options.options.sandbox.names_image() && !options.is_command && !words.is_empty() {
        let name = words.remove(0);
        options.options.sandbox.set_image(options::image(&name)?);
        is_first = true;
        // What is behind it is no option of adl's in any case.
        if words.first().is_some_and(|word| word == "--") {
            words.remove(0);
        }
    }
    let has_image = options.options.sandbox.names_image();
    if !has_image && words.is_empty() && options.entrypoint.is_none() {
        return Err("no image and no command to run; try `adl run --help`".into());
    }
    match &options.entrypoint {
        // As with docker, an empty one is none.
        Some(program) if program.is_empty() => match words.split_first() {
            Some((program, arguments)) => {
                run(&options.options, &Program::Named(&[program], arguments), state)
            }
            None => Err("no command to run; try `adl run --help`".into()),
        },
        Some(program) => run(&options.options, &Program::Named(&[program], &words), state),
        None => run(&options.options, &Program::OfImage { words: &words, is_first }, state),
    }
}

/// `adl shell`
pub(crate) fn shell(mut options: ShellOptions, state: Option<&Path>) -> CliResult<ExitCode> {
    options.options.tty |= io::stdin().is_terminal();
    run(&options.options, &Program::Named(&SHELLS.map(OsStr::new), &options.arguments), state)
}

/// Runs a program, and writes the result where one is asked for.
fn run(
    options: &CommandOptions,
    program: &Program<'_>,
    state: Option<&Path>,
) -> CliResult<ExitCode> {
    let mut outcome = Outcome::default();
    let Some(path) = &options.result else {
        let code = run_told(options, program, state, None, &mut outcome)?;
        return Ok(ExitCode::from(code));
    };
    let mut file = ResultFile::open(path, &options.bases())?;
    let place = file.place()?;
    let ended = run_told(options, program, state, Some(place), &mut outcome);
    if let Err(error) = &ended {
        outcome.failed(crate::text_of(error.as_ref()));
    }
    let code = *ended.as_ref().unwrap_or(&super::OWN_ERROR);
    if let Err(error) = file.write(&outcome, code) {
        say(error);
        return ended.map(|code| ExitCode::from(if code == 0 { super::OWN_ERROR } else { code }));
    }
    ended.map(ExitCode::from)
}

/// Runs a program, and keeps what is to be told of it. `result` is the file that no copy may
/// replace.
fn run_told(
    options: &CommandOptions,
    program: &Program<'_>,
    state: Option<&Path>,
    result: Option<(u64, u64)>,
    outcome: &mut Outcome,
) -> CliResult<u8> {
    let Settled { mut config, bases, environment } = options.settle()?;
    config.state_directory = state.map(Path::to_owned);
    if options.tty && !io::stdin().is_terminal() {
        return Err("the input device is not a terminal, so there can be no --tty".into());
    }
    if options.tty && (options.output_limit.is_some() || options.idle_timeout.is_some()) {
        const WHY: &str = "--output-limit and --idle-timeout are not for --tty: what a terminal \
                           shows is not counted";
        return Err(WHY.into());
    }
    let keep = options.keep.check(&config)?;
    if let Some(name) = options.sandbox.reference() {
        image::fetch(name, options.pull, options.pull_timeout, &config).map_err(|error| {
            match program {
                Program::OfImage { words, is_first: true } => image::no_program(name, words, error),
                _ => error,
            }
        })?;
        if options.pull == image::Pull::Never {
            // It may go meanwhile.
            config.image = Image::local(name);
        }
    }
    // Blocked and read below, so that the sandbox is taken down in order whatever ends us, and the
    // terminal is left as it was. A size that changes after it was first read is told.
    let mut mask: SigSet = FORWARDED.into_iter().collect();
    if options.tty {
        mask.extend(session::SIGNALS);
    }
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    let copies_out = CopyOut::open_all(&options.copies.copy_out, &bases)?;
    if result.is_some_and(|place| copies_out.iter().any(|copy| copy.leads_to(place))) {
        return Err("--copy-out would replace the file of --result: name another".into());
    }
    let upper = config.upper;
    let sandbox = Sandbox::create(config).map_err(|error| not_created(error, upper))?;
    options.ports.tell(&sandbox);
    let mut files = sandbox.files();
    if let Some(user) = &options.user {
        files.user(user);
    }
    if let Some(directory) = &options.workdir {
        files.current_dir(directory);
    }
    // A copy may take long. Whoever interrupts it ends adl, and what is left on disk is removed by
    // the next one.
    if !options.copies.copy_in.is_empty() {
        mask.thread_unblock()?;
        for transfer in &options.copies.copy_in {
            transfer.copy_in(&files, &bases)?;
        }
        mask.thread_block()?;
    }
    let (programs, arguments) = program.settle(sandbox.image_config())?;
    let stop = sandbox.image_config().and_then(ImageConfig::stop_signal_number);
    let stop = stop.map_or_else(|| u8::try_from(libc::SIGTERM), Ok)?;
    let prepare = |command: &mut Command| prepare(command.args(&arguments), options, &environment);
    let ended = if options.tty {
        // Where its time is up, and nothing tells of its end, it is asked for that.
        let pause = options.timeout.map_or(PollTimeout::NONE, |_| BETWEEN_LOOKS.into());
        let child = start(&sandbox, &programs, prepare, Command::spawn)?;
        let run = |mut child| session::run(&mut child, &sandbox, &signals, stop, pause);
        child.map(|child| run(child).map(|status| (status, None)))
    } else {
        let job = start(&sandbox, &programs, prepare, Command::background)?;
        job.map(|job| streams::run(&job, &signals, stop))
    };
    let mut has_succeeded = false;
    let mut code = match ended {
        Ok(ended) => {
            let (status, undelivered) = ended?;
            outcome.ended(status, undelivered.is_none());
            has_succeeded = status.success();
            if let Some(why) = &undelivered {
                outcome.fail(why.to_string());
            }
            let code = exit_code(status, options)?;
            if undelivered.is_none() { code } else { super::OWN_ERROR }
        }
        Err(error) => {
            outcome.not_started(&error);
            say(&error);
            let code = exit_code_of(&error);
            if code == NOT_FOUND && options.sandbox.has_host_image() && is_no_path(&programs) {
                say(
                    "the programs are those of this machine; an image comes first: `adl run IMAGE`",
                );
            }
            code
        }
    };
    let was_started = outcome.was_started();
    if options.stats || options.result.is_some() {
        match sandbox.stats() {
            Ok(stats) => {
                if options.stats {
                    limits::print(&stats);
                }
                outcome.used(stats);
            }
            Err(error) if options.stats => outcome.fail(format!("--stats: {error}")),
            // Without a cgroup there are none.
            Err(_) => {}
        }
    }
    if !copies_out.is_empty() {
        mask.thread_unblock()?;
        if !copies::copy_all_out(&copies_out, &files, outcome) && code == 0 {
            code = super::OWN_ERROR;
        }
        mask.thread_block()?;
    }
    drop(files);
    if let Err(why) = keep.keep(sandbox, was_started, has_succeeded)? {
        outcome.fail(why);
        code = if code == 0 { super::OWN_ERROR } else { code };
    }
    // Who does not want to wait for the removal of what was written ends adl here.
    mask.thread_unblock()?;
    tell_of_removals();
    Ok(code)
}

/// Says of memory for what is written that it is too small, and of a port that it can't be had,
/// where that is so.
fn not_created(error: Error, upper: Upper) -> Box<dyn std::error::Error> {
    if let Some(told) = ports::not_had(&error) {
        return told.into();
    }
    match (&error, upper) {
        (Error::Setup { source, .. }, Upper::Memory { size })
            if source.kind() == ErrorKind::StorageFull =>
        {
            format!("{error}; --upper memory:{size} is too small to begin with: say more, as 64m")
                .into()
        }
        _ => error.into(),
    }
}

/// After how long the end of adl is a wait that someone wonders about.
const A_WHILE: Duration = Duration::from_secs(1);

/// Says on a terminal what adl is still there for, if it is.
fn tell_of_removals() {
    if adl_runtime::pending_removals() == 0 || !io::stderr().is_terminal() {
        return;
    }
    let tell = || {
        std::thread::sleep(A_WHILE);
        say("removing what was written in the sandbox; Ctrl-C leaves that to `adl gc`");
    };
    // It ends with adl. Where there can be none, nothing is told.
    let _ = std::thread::Builder::new().name("adl-tell".to_owned()).spawn(tell);
}

/// Whether what was to be run may have been the name of an image.
fn is_no_path(programs: &[impl AsRef<OsStr>]) -> bool {
    let first = programs.first().map(|program| program.as_ref().as_encoded_bytes());
    first.is_some_and(|name| !name.starts_with(b"/") && !name.starts_with(b"."))
}

/// Starts the first of some programs that there is.
fn start<T>(
    sandbox: &Sandbox,
    programs: &[impl AsRef<OsStr>],
    prepare: impl Fn(&mut Command) -> CliResult<()>,
    start: impl Fn(&mut Command) -> adl_runtime::Result<T>,
) -> CliResult<adl_runtime::Result<T>> {
    let mut programs = programs.iter().peekable();
    loop {
        let Some(program) = programs.next() else { return Err("no command to run".into()) };
        let mut command = sandbox.command(program);
        prepare(&mut command)?;
        match start(&mut command) {
            Err(Error::Start { stage: Stage::Exec, source, .. })
                if source.kind() == ErrorKind::NotFound && programs.peek().is_some() => {}
            started => return Ok(started),
        }
    }
}

fn prepare(
    command: &mut Command,
    options: &CommandOptions,
    environment: &[Variable],
) -> CliResult<()> {
    if options.tty {
        let (rows, columns) = sys::window_size(io::stdin())?;
        command.terminal(rows, columns);
        if let Some(term) = std::env::var_os("TERM") {
            command.env("TERM", term);
        }
    } else {
        streams::prepare(command);
    }
    for (name, value) in environment {
        command.env(name, value);
    }
    if let Some(directory) = &options.workdir {
        command.current_dir(directory);
    }
    if let Some(user) = &options.user {
        command.user(user);
    }
    if let Some(timeout) = options.timeout {
        command.timeout(timeout);
    }
    if let Some(timeout) = options.idle_timeout {
        command.idle_timeout(timeout);
    }
    if let Some(limit) = options.output_limit {
        command.output_limit(limit);
    }
    if let Some(score) = options.oom_score_adj {
        command.oom_score_adj(score);
    }
    for Ulimit { resource, soft, hard } in &options.ulimit {
        command.rlimit(*resource, *soft, *hard);
    }
    Ok(())
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
fn exit_code(status: ExitStatus, options: &CommandOptions) -> CliResult<u8> {
    match (status.reason(), status.code(), status.signal()) {
        (EndReason::SandboxDied, ..) => Err(Error::SandboxDied.into()),
        (EndReason::TimedOut, ..) => {
            let timeout = options.timeout.unwrap_or_default();
            say(format_args!("the command was killed: it ran for longer than {timeout:?}"));
            Ok(super::TIMED_OUT)
        }
        (EndReason::CpuTimedOut, ..) => {
            let limit = options.cpu_time.unwrap_or_default();
            say(format_args!("the command was killed: it used more CPU time than {limit:?}"));
            Ok(super::TIMED_OUT)
        }
        (EndReason::Idle, ..) => {
            let limit = options.idle_timeout.unwrap_or_default();
            say(format_args!("the command was killed: it wrote nothing for {limit:?}"));
            Ok(super::TIMED_OUT)
        }
        (EndReason::OutOfMemory, ..) => {
            say(format_args!("the command was killed: memory ran out"));
            Ok(super::KILLED)
        }
        (EndReason::OutputLimit, ..) => {
            let limit = options.output_limit.unwrap_or_default();
            say(format_args!("the command was killed: it wrote more than {limit} bytes"));
            Ok(super::KILLED)
        }
        (_, Some(code), _) => Ok(code),
        (_, None, signal) => {
            if signal == Some(SIGSYS) {
                say("the command was killed by SIGSYS, as are 32-bit programs: adl runs none");
            }
            Ok(signal.unwrap_or(0).saturating_add(128))
        }
    }
}

/// By which the filter ends what makes system calls of another architecture.
const SIGSYS: u8 = 31;

/// As a shell says of a command that there is not.
const NOT_FOUND: u8 = 127;

/// What to exit with for a command that was not started, as shells do.
fn exit_code_of(error: &Error) -> u8 {
    match error {
        Error::Start { stage: Stage::Exec, source, .. } => match source.kind() {
            ErrorKind::NotFound => NOT_FOUND,
            _ => 126,
        },
        _ => super::OWN_ERROR,
    }
}
