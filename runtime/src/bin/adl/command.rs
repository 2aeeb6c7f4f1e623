//! Options of the command that `adl run` and `adl shell` start.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use adl_runtime::Config;
use clap::{Args, ValueHint};

use crate::bases::Bases;
use crate::copies::{CopyOptions, Transfer};
use crate::environment::{self, Variable};
use crate::image::Pull;
use crate::keep::KeepOptions;
use crate::options::SandboxOptions;
use crate::ports::PortOptions;
use crate::result;
use crate::ulimits::{Ulimit, ulimit};
use crate::values::{CliResult, duration, of_bytes, size_or_zero};

#[derive(Args)]
#[command(next_help_heading = "Command")]
pub(crate) struct CommandOptions {
    /// Changes nothing: the command always reads adl's stdin, which adl reads ahead of it
    #[arg(short, long)]
    interactive: bool,

    /// Run the command on a terminal of its own, shown in the one where adl runs. adl's stdin has to
    /// be a terminal. Keys such as Ctrl-C go to the command, and TERM is set as it is here
    #[arg(short, long)]
    pub(crate) tty: bool,

    /// Kill it, and all that it has started, after so long: seconds, or with units, as 500ms, 1.5s,
    /// 10m, 1h30m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,

    /// Kill it, and all that it has started, when they have used so much CPU time together
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) cpu_time: Option<Duration>,

    /// Kill it, and all that it has started, when it has written nothing for so long
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) idle_timeout: Option<Duration>,

    /// Kill it, and all that it has started, when it has written more to stdout and stderr together
    #[arg(long, value_name = "SIZE", value_parser = size_or_zero)]
    pub(crate) output_limit: Option<u64>,

    /// Set an environment variable; NAME alone takes the value that it has here, outside
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = of_bytes(environment::variable))]
    env: Vec<Option<Variable>>,

    /// Set the variables of a file, one on each line, as --env takes them; empty lines and those
    /// that begin with # are left out. Of a variable that is in both, --env counts
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    env_file: Vec<PathBuf>,

    /// Working directory, which has to be there; by default /
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<OsString>,

    /// Who runs it: names in the image's /etc/passwd and /etc/group, or numbers; by default 0:0. For
    /// an ordinary user, numbers that are the one user and group inside. HOME, USER, LOGNAME and
    /// SHELL are as /etc/passwd has them
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,

    /// Limit a resource of each process, in docker's names and units, as nofile=1024:2048 or
    /// cpu=10; -1 is no limit. core=0, no dumps, is the default; with more, dumps go where this
    /// machine's kernel.core_pattern says
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = ulimit)]
    pub(crate) ulimit: Vec<Ulimit>,

    /// How much sooner than others its processes are killed when memory runs out, 0 to 1000
    #[arg(long, value_name = "SCORE", value_parser = oom_score)]
    pub(crate) oom_score_adj: Option<i16>,

    /// Changes nothing: the sandbox is always removed when the command has ended
    #[arg(long, value_name = "true", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = always)]
    rm: Option<bool>,

    /// Changes nothing: there is always a PID 1 that reaps, and adl passes signals on
    #[arg(long, value_name = "true", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = always)]
    init: Option<bool>,

    /// When it has ended, print to stderr what it has used
    #[arg(long)]
    pub(crate) stats: bool,

    /// Write to FILE, when all has ended, how the command ended and what it has used: one line of
    /// JSON, see below. FILE is opened before anything is run, and where the command may write it is
    /// refused; /dev/fd/3 is what was opened by 3>FILE
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(value_parser = of_bytes(result::path))]
    pub(crate) result: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) keep: KeepOptions,

    #[command(flatten, next_help_heading = "Copies")]
    pub(crate) copies: CopyOptions,

    #[command(flatten, next_help_heading = "Ports")]
    pub(crate) ports: PortOptions,

    /// When an image of a registry is fetched: `always`, as its name may stand for another by now,
    /// `missing`, where it is not there, or `never`
    #[arg(long, value_name = "WHEN", default_value = "missing", help_heading = "Sandbox")]
    #[arg(hide_possible_values = true)]
    pub(crate) pull: Pull,

    /// The longest that fetching and unpacking an image of a registry may take; an hour by default.
    /// --timeout is the command's own, and begins when the image is there
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Sandbox")]
    pub(crate) pull_timeout: Option<Duration>,

    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,
}

/// What the options come to, once all of them are known.
pub(crate) struct Settled {
    pub(crate) config: Config,
    pub(crate) bases: Bases,
    pub(crate) environment: Vec<Variable>,
}

impl CommandOptions {
    /// Where guests may write or have written, of this machine.
    pub(crate) fn bases(&self) -> Bases {
        self.sandbox.bases(self.copies.copy_out.iter().map(Transfer::target))
    }

    pub(crate) fn settle(&self) -> CliResult<Settled> {
        let targets = self.copies.copy_out.iter().map(Transfer::target);
        let (mut config, bases) = self.sandbox.settle(targets)?;
        config.limits.accounting = self.stats;
        self.ports.apply(&mut config)?;
        config.defaults.user.clone_from(&self.user);
        config.defaults.cpu_time = self.cpu_time;
        let mut environment = Vec::new();
        for path in &self.env_file {
            environment.extend(environment::file(path, &bases)?);
        }
        // Later ones count.
        environment.extend(self.env.iter().flatten().cloned());
        Ok(Settled { config, bases, environment })
    }
}

/// Reads a switch that is always on.
fn always(text: &str) -> Result<bool, &'static str> {
    let is_on = text.parse().ok().filter(|is_on| *is_on);
    is_on.ok_or("it is always so, and can't be switched off")
}

/// Reads an OOM score. Below 0 no sandbox may go.
fn oom_score(text: &str) -> Result<i16, &'static str> {
    let score = text.parse().ok().filter(|score| (0..=1000).contains(score));
    score.ok_or("takes a whole number from 0 to 1000: what is inside is not spared")
}
