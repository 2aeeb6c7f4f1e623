//! The commands of `adl`, as clap reads them; help, completions and manual pages are made of them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueHint};

use crate::output::print;
use crate::values::CliResult;
use crate::{bench, docker, doctor, gc, image, manual, run, sections, snapshot};

/// What help of adl itself ends with.
fn help() -> String {
    let more = "`adl COMMAND --help` tells the options of a command, with examples.";
    format!("{more}\n\n{}", sections::help(""))
}

/// Run commands in sandboxes
#[derive(Parser)]
#[command(name = "adl", bin_name = "adl", version, max_term_width = 100)]
// Of an option that is given twice the last one counts, if it has one value only.
#[command(args_override_self = true, arg_required_else_help = false)]
#[command(after_help = help())]
pub(crate) struct Cli {
    /// Keep what is on disk of sandboxes, and snapshots, in DIR instead of the default
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    state_dir: Option<PathBuf>,

    #[command(subcommand)]
    command: Commands,
}

// A variant is a command: its name, its help and its options; `run` below says what it does. Only
// the options of the command that is given are made.
#[derive(Subcommand)]
#[command(defer = true, arg_required_else_help = false)]
enum Commands {
    /// Run a command in a new sandbox
    Run(Box<run::RunOptions>),
    /// Run a shell in a new sandbox
    Shell(Box<run::ShellOptions>),
    /// Fetch, import, list and remove images in layers
    #[command(subcommand)]
    Image(image::Commands),
    /// List, export and remove what was kept of sandboxes
    #[command(subcommand)]
    Snapshot(snapshot::Commands),
    /// Measure this machine
    Bench(Box<bench::BenchOptions>),
    /// Say what this machine can do
    Doctor(doctor::DoctorOptions),
    /// Remove what dead programs left behind
    Gc,
    /// Print a script by which a shell completes adl's command lines
    Completions(manual::CompletionsOptions),
    /// Print a manual page
    Man(manual::ManOptions),
}

impl Commands {
    fn run(self, state: Option<&Path>) -> CliResult<ExitCode> {
        match self {
            Self::Run(options) => run::main(*options, state),
            Self::Shell(options) => run::shell(*options, state),
            Self::Image(command) => image::main(&command, state),
            Self::Snapshot(command) => snapshot::main(&command, state),
            Self::Bench(options) => bench::main(&options, state),
            Self::Doctor(options) => doctor::main(&options, state),
            Self::Gc => gc::main(state),
            Self::Completions(options) => manual::completions(&options, Cli::command()),
            Self::Man(options) => manual::page(&options, Cli::command()),
        }
    }
}

/// Does what a command line says.
pub(crate) fn main(arguments: Vec<OsString>) -> CliResult<ExitCode> {
    let mut command = Cli::command();
    let is_run = arguments.get(1).is_some_and(|name| name == "run");
    let names_a_host = gives_h_a_value(&arguments);
    // As docker does.
    if arguments.len() == 1 {
        print(command.render_help().to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let matches = command.try_get_matches_from_mut(&arguments);
    match matches.and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches)) {
        Ok(mut cli) => {
            if let Commands::Run(options) = &mut cli.command {
                options.look_at(&arguments);
            }
            cli.command.run(cli.state_dir.as_deref())
        }
        // Help or the version, which was asked for.
        Err(message) if message.kind() == ErrorKind::DisplayHelp && names_a_host => {
            Err("-h is for help, alone; the host name is set by `--hostname NAME`".into())
        }
        Err(message) if !message.use_stderr() => {
            print(message.to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        Err(mut error) => {
            if let Some(hint) = docker::hint(&error, is_run) {
                return Err(hint.into());
            }
            complete(&mut error, &command);
            // What is no option of `adl run` is no program either.
            if is_run {
                error.remove(ContextKind::Suggested);
            }
            let told = error.format(&mut command).to_string();
            Err(told.strip_prefix("error: ").unwrap_or(&told).trim_end().into())
        }
    }
}

/// Whether the first `-h` of `adl run` or `adl shell` has a value, as that of docker: help would be
/// printed, and nothing run, where a host name was meant.
fn gives_h_a_value(arguments: &[OsString]) -> bool {
    let mut rest = arguments.iter().skip(1).map(|argument| argument.as_encoded_bytes());
    if !matches!(rest.next(), Some(b"run" | b"shell")) {
        return false;
    }
    while let Some(argument) = rest.next() {
        // As in -ith.
        let flags = argument.strip_prefix(b"-").unwrap_or_default();
        let letters = flags.iter().take_while(|letter| matches!(letter, b'i' | b't')).count();
        match flags.get(letters..) {
            Some([b'h']) => return rest.next().is_some_and(|value| !value.starts_with(b"-")),
            Some([b'h', ..]) => return true,
            _ if argument == b"--help" => return false,
            _ => {}
        }
    }
    false
}

/// Says of a command that is not there which is like it, where clap finds none since it is short.
fn complete(error: &mut clap::Error, command: &Command) {
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) else {
        return;
    };
    let names = command.get_subcommands().map(Command::get_name);
    let near: Vec<_> =
        names.filter(|other| is_one_edit_away(name, other)).map(str::to_owned).collect();
    if error.get(ContextKind::SuggestedSubcommand).is_none() && !near.is_empty() {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(near));
    }
}

/// Whether one character was left out, put in, changed, or exchanged with the next.
fn is_one_edit_away(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    while let (Some((first, one_rest)), Some((second, other_rest))) =
        (one.split_first(), other.split_first())
        && first == second
    {
        (one, other) = (one_rest, other_rest);
    }
    while let (Some((last, one_rest)), Some((second, other_rest))) =
        (one.split_last(), other.split_last())
        && last == second
    {
        (one, other) = (one_rest, other_rest);
    }
    match (one, other) {
        ([a, b], [c, d]) => (a, b) == (d, c),
        (one, other) => one.len().max(other.len()) <= 1,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::is_one_edit_away;

    #[test]
    fn what_is_mistyped_by_one_character_is_found() {
        for near in ["rn", "ru", "urn", "runn", "ran", "run", "rnu"] {
            assert!(is_one_edit_away(near, "run"), "{near}");
        }
        for far in ["", "r", "nur", "ruin2", "urnn", "gc"] {
            assert!(!is_one_edit_away(far, "run"), "{far}");
        }
    }

    #[test]
    fn the_commands_fit_together() {
        super::Cli::command().debug_assert();
    }
}
