//! `adl doctor`: what this machine can do.

use std::path::Path;
use std::process::ExitCode;

use adl_runtime::doctor::{Check, Verdict, examine};
use clap::Args;

use crate::output::print;
use crate::values::CliResult;

const HELP: &str = "\
Tries what a sandbox is made of, as the calling user, and says what to do about what is \
missing. Exits with 0 if sandboxes work, else with 1. It leaves nothing but what the first sandbox \
leaves in the state directory for the next: the host image.";

#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct DoctorOptions {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(options: &DoctorOptions, state: Option<&Path>) -> CliResult<ExitCode> {
    let checks = examine(state);
    print(match options.json {
        true => serde_json::to_string_pretty(&checks)? + "\n",
        false => report(&checks),
    })?;
    let works = checks.iter().all(|check| check.verdict != Verdict::Missing);
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A line for each thing, and what they come to.
fn report(checks: &[Check]) -> String {
    let mut report = String::new();
    for Check { what, verdict, detail, remedy, .. } in checks {
        let verdict = match verdict {
            Verdict::Good => "good",
            Verdict::Limited => "limited",
            Verdict::Missing => "MISSING",
        };
        report += &format!("{verdict:<8} {what}: {detail}\n");
        if let Some(remedy) = remedy {
            report += &format!("         to have it: {remedy}\n");
        }
    }
    let of = |verdict| {
        let found = checks.iter().filter(|check| check.verdict == verdict);
        found.map(|check| check.what).collect::<Vec<_>>().join("; ")
    };
    let user = if nix::unistd::geteuid().is_root() { "root" } else { "an ordinary user" };
    let (missing, limited) = (of(Verdict::Missing), of(Verdict::Limited));
    report
        + &match (&*missing, &*limited) {
            ("", "") => format!("adl can run here, as {user}, with all that it has\n"),
            ("", limited) => format!("adl can run here, as {user}; limited: {limited}\n"),
            (missing, _) => format!("adl can't run here, as {user}, without: {missing}\n"),
        }
}
