//! `adl doctor`: what this machine can do.

use std::ffi::OsString;
use std::process::ExitCode;

use adl_runtime::doctor::{Verdict, examine};
use lexopt::Arg;

use crate::values::CliResult;

const HELP: &str = "\
Usage: adl doctor [--json]

Tries what a sandbox is made of, as the calling user, and says what to do about what is missing.
Exits with 0 if sandboxes work, else with 1.
";

pub(crate) fn main(arguments: Vec<OsString>) -> CliResult<ExitCode> {
    let mut json = false;
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => {
                print!("{HELP}");
                return Ok(ExitCode::SUCCESS);
            }
            Arg::Long("json") => json = true,
            other => return Err(other.unexpected().into()),
        }
    }
    let checks = examine(None);
    if json {
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
