//! The `adl` command line.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod bases;
mod bench;
mod copies;
mod doctor;
mod environment;
mod limits;
mod mounts;
mod options;
mod run;
mod session;
mod snapshot;
mod streams;
mod sys;
mod values;

use std::ffi::OsString;
use std::process::ExitCode;

/// What adl exits with for errors of its own, as `docker run` and `timeout` do.
const OWN_ERROR: u8 = 125;

/// What adl exits with when a command's time was up, as `timeout` does.
const TIMED_OUT: u8 = 124;
/// As a shell says of SIGKILL.
const KILLED: u8 = 128 + 9;

const HELP: &str = "\
adl runs commands in sandboxes.

Usage: adl run [options] [--] COMMAND [ARGUMENT…]   run a command in a new sandbox
       adl shell [options] [-- ARGUMENT…]           a shell in a new sandbox
       adl snapshot ls|changes|export|rm            what was kept of sandboxes
       adl bench [options]                          measure this machine
       adl doctor                                   say what this machine can do
       adl gc                                       remove what dead programs left behind

`adl COMMAND --help` tells the options of a command.
";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<OsString> = arguments.collect();
    let result = match command.to_str() {
        Some("run") => run::main(rest),
        Some("shell") => run::shell(rest),
        Some("snapshot") => snapshot::main(rest),
        Some("bench") => bench::main(rest),
        Some("doctor") => doctor::main(rest),
        Some("gc") => collect_garbage(),
        Some("--help" | "-h" | "help") => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        Some("--version" | "-V") => {
            println!("adl {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Some("") => Err("no command; try `adl --help`".into()),
        _ => Err(format!("unknown command {command:?}; try `adl --help`").into()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("adl: {error}");
        ExitCode::from(OWN_ERROR)
    })
}

fn collect_garbage() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let (removed, errors) = match adl_runtime::collect_garbage(None) {
        Err(adl_runtime::Error::Uncollected { removed, errors }) => (removed, errors),
        collected => (collected?, Vec::new()),
    };
    for name in removed {
        println!("{name}");
    }
    for error in &errors {
        eprintln!("adl: {error}");
    }
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(OWN_ERROR) })
}
