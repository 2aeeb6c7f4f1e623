//! Options of the command that `adl run` and `adl shell` start.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use adl_runtime::Config;
use clap::{Args, ValueHint};

use crate::bases::Bases;
use crate::copies::{CopyOptions, Transfer};
use crate::environment::{self, Variable};
use crate::options::SandboxOptions;
use crate::ulimits::{Ulimit, ulimit};
use crate::values::{CliResult, duration, of_bytes};

#[derive(Args)]
#[command(next_help_heading = "Command")]
pub(crate) struct CommandOptions {
    /// Take stdin from here, as is done without it too; it is read ahead of the command
    #[arg(short, long)]
    interactive: bool,

    /// Give it a terminal of the sandbox's own, joined to this one, which has to be stdin; what is
    /// typed, as Ctrl-C, goes there, and TERM is this one's
    #[arg(short, long)]
    pub(crate) tty: bool,

    /// Kill it, and all that it has started, after so long: seconds, or with units, as 500ms, 1.5s,
    /// 10m, 1h30m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,

    /// Kill it, and all that it has started, when they have used so much CPU time together
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) cpu_time: Option<Duration>,

    /// Set an environment variable; NAME alone takes this one's value
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = of_bytes(environment::variable))]
    env: Vec<Option<Variable>>,

    /// Set those of a file, one on each line, as for --env, which comes first; lines that are empty
    /// or begin with # are left out
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

    /// Remove the sandbox when it has ended, as is done without it too
    #[arg(long)]
    rm: bool,

    /// Have a PID 1 that reaps and passes signals on, as is done without it too
    #[arg(long)]
    init: bool,

    /// When it has ended, print to stderr what it has used
    #[arg(long)]
    pub(crate) stats: bool,

    /// When it has ended, and what it has left running was killed, keep the files as NAME, for
    /// --image snapshot:NAME
    #[arg(long, value_name = "NAME")]
    pub(crate) snapshot: Option<String>,

    #[command(flatten, next_help_heading = "Copies")]
    pub(crate) copies: CopyOptions,

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
    pub(crate) fn settle(&self) -> CliResult<Settled> {
        let targets = self.copies.copy_out.iter().map(Transfer::target);
        let (mut config, bases) = self.sandbox.settle(targets)?;
        config.limits.accounting = self.stats;
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

/// Reads an OOM score. Below 0 no sandbox may go.
fn oom_score(text: &str) -> Result<i16, &'static str> {
    let score = text.parse().ok().filter(|score| (0..=1000).contains(score));
    score.ok_or("takes a whole number from 0 to 1000: what is inside is not spared")
}
