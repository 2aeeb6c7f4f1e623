//! The program `adl`: its modules and its exit statuses.

#![deny(clippy::print_stdout, clippy::print_stderr, reason = "they panic: see output.rs")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod bases;
mod bench;
mod cli;
mod command;
mod copies;
mod docker;
mod doctor;
mod environment;
#[cfg(test)]
mod fuzzing;
mod gc;
mod image;
mod in_order;
mod inside;
mod keep;
mod limits;
mod manual;
mod mounts;
mod options;
mod output;
mod ports;
mod progress;
mod result;
mod run;
mod sections;
mod session;
mod snapshot;
mod streams;
mod sys;
mod ulimits;
mod values;

use std::io::ErrorKind;
use std::process::ExitCode;

use adl_runtime::Error;

use crate::output::{Unwritten, say};

/// What adl exits with for errors of its own, as `docker run` and `timeout` do.
const OWN_ERROR: u8 = 125;

/// What adl exits with when a command's time was up, as `timeout` does.
const TIMED_OUT: u8 = 124;
/// As a shell says of SIGKILL.
const KILLED: u8 = 128 + 9;

/// As a shell says of SIGPIPE: no one reads what adl prints, as with `adl … | head -1`.
const UNREAD: u8 = 128 + 13;

fn main() -> ExitCode {
    cli::main(std::env::args_os().collect()).unwrap_or_else(|error| {
        if error.downcast_ref::<Unwritten>().is_some_and(Unwritten::is_unread) {
            return ExitCode::from(UNREAD);
        }
        say(text_of(error.as_ref()));
        ExitCode::from(OWN_ERROR)
    })
}

/// What is said of an error, with what to type about it.
fn text_of(error: &(dyn std::error::Error + 'static)) -> String {
    match error.downcast_ref().and_then(advice) {
        Some(advice) => format!("{error}; {advice}"),
        None => error.to_string(),
    }
}

/// What to type about an error of the library, which does not know this program.
fn advice(error: &Error) -> Option<&'static str> {
    match error {
        Error::NoImage { .. } => Some("`adl image ls` lists them"),
        Error::NoSnapshot { .. } => Some("`adl snapshot ls` lists them"),
        Error::Unsupported { what, .. } if what == "a limit of disk space" => {
            Some("that is `--upper memory:SIZE`")
        }
        Error::Unsupported { what, .. }
            if what.starts_with("a limit by ")
                || matches!(&**what, "a limit of processes" | "a limit of CPU time") =>
        {
            Some("what there is without cgroups, for each process: --ulimit cpu=, data=, nproc=")
        }
        Error::Invalid { what: "swap limit", .. } => Some("as --memory 512m --swap 1g"),
        Error::Setup { source, .. } | Error::Io { source, .. }
            if source.kind() == ErrorKind::StorageFull =>
        {
            Some(
                "`adl gc` may make room, and `adl snapshot ls` lists what `adl snapshot rm` can \
                 remove; --state-dir names another place",
            )
        }
        _ => None,
    }
}
