//! The program `adl`: its modules and its exit statuses.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod bases;
mod bench;
mod cli;
mod command;
mod copies;
mod doctor;
mod environment;
mod gc;
mod in_order;
mod inside;
mod limits;
mod manual;
mod mounts;
mod options;
mod run;
mod session;
mod snapshot;
mod streams;
mod sys;
mod values;

use std::process::ExitCode;

/// What adl exits with for errors of its own, as `docker run` and `timeout` do.
const OWN_ERROR: u8 = 125;

/// What adl exits with when a command's time was up, as `timeout` does.
const TIMED_OUT: u8 = 124;
/// As a shell says of SIGKILL.
const KILLED: u8 = 128 + 9;

fn main() -> ExitCode {
    cli::main(std::env::args_os()).unwrap_or_else(|error| {
        eprintln!("adl: {error}");
        ExitCode::from(OWN_ERROR)
    })
}
