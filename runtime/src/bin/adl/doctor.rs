//! `adl doctor`: what this machine can do.

use std::process::ExitCode;

use adl_runtime::doctor::{Verdict, examine};
use clap::Args;

use crate::values::CliResult;

const HELP: &str = "\
Tries what a sandbox is made of, as the calling user, and says what to do about what is \
missing. Exits with 0 if sandboxes work, else with 1.";

#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct DoctorOptions {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(options: &DoctorOptions) -> CliResult<ExitCode> {
    let checks = examine(None);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        for check in &checks {
            let verdict = match check.verdict {
                Verdict::Good => "good",
                Verdict::Limited => "limited",
                Verdict::Missing => "MISSING",
            };
            println!("{verdict:<8} {}: {}", check.what, check.detail);
            if let Some(remedy) = &check.remedy {
                println!("         to have it: {remedy}");
            }
        }
    }
    let works = checks.iter().all(|check| check.verdict != Verdict::Missing);
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
