//! `adl completions` and `adl man`: what is made of the commands and their help.

use std::process::ExitCode;

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell;

use crate::output::print;
use crate::sections;
use crate::values::CliResult;

const COMPLETIONS_HELP: &str = "\
For bash, in ~/.bashrc:  source <(adl completions bash)
For zsh, in a directory of $fpath:  adl completions zsh > _adl
For fish:  adl completions fish > ~/.config/fish/completions/adl.fish";

#[derive(Args)]
#[command(after_help = COMPLETIONS_HELP)]
pub(crate) struct CompletionsOptions {
    /// The shell
    shell: Shells,
}

/// The shells that adl's users have.
#[derive(Clone, Copy, ValueEnum)]
enum Shells {
    Bash,
    Fish,
    Zsh,
}

/// `adl completions`
pub(crate) fn completions(
    options: &CompletionsOptions,
    mut command: Command,
) -> CliResult<ExitCode> {
    let shell = match options.shell {
        Shells::Bash => Shell::Bash,
        Shells::Fish => Shell::Fish,
        Shells::Zsh => Shell::Zsh,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "adl", &mut script);
    print(script)?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Args)]
#[command(after_help = "To read one:  adl man run | man -l -")]
pub(crate) struct ManOptions {
    /// The command that the page is about, as `run` or `snapshot rm`: adl itself without one
    command: Vec<String>,
}

/// `adl man`
pub(crate) fn page(options: &ManOptions, mut command: Command) -> CliResult<ExitCode> {
    command.build();
    for name in &options.command {
        command = command
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| format!("there is no command {name:?}; try `adl --help`"))?;
    }
    let sections = sections::page(&options.command.join(" "));
    if sections.is_some() {
        command = sections::without_help(command);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).manual("adl").render(&mut page)?;
    if let Some(sections) = sections {
        sections.to_writer(&mut page)?;
    }
    print(page)?;
    Ok(ExitCode::SUCCESS)
}
