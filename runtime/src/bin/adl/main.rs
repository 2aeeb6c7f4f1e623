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
mod gc;
mod image;
mod in_order;
mod inside;
mod limits;
mod manual;
mod mounts;
mod options;
mod output;
mod run;
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
        match error.downcast_ref().and_then(advice) {
            Some(advice) => say(format_args!("{error}; {advice}")),
            None => say(error),
        }
        ExitCode::from(OWN_ERROR)
    })
}

/// What to type about an error of the library, which does not know this program.
fn advice(error: &Error) -> Option<&'static str> {
    match error {
        Error::NoImage { .. } => Some("`adl image ls` lists them"),
        Error::NoSnapshot { .. } => Some("`adl snapshot ls` lists them"),
        Error::Unsupported { what, .. } if what == "a limit of disk space" => {
            Some("that is `--upper memory:SIZE`")
        }
        Error::Invalid { what: "swap limit", .. } => Some("as --memory 512m --swap 1g"),
        Error::Setup { source, .. } | Error::Io { source, .. }
            if source.kind() == ErrorKind::StorageFull =>
        {
            Some("`adl gc` may make room, or ADL_STATE_DIR name another place")
        }
        _ => None,
    }
}
