//! `adl snapshot`: lists, exports and removes snapshots.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use adl_runtime::{ChangeKind, Error, Export, Snapshot};
use clap::Subcommand;

use crate::OWN_ERROR;
use crate::output::{Unwritten, print, say};
use crate::values::CliResult;

const HELP: &str = "\
`adl run --snapshot NAME` makes one, and `--image snapshot:NAME` makes a sandbox of it.";

#[derive(Subcommand)]
#[command(arg_required_else_help = false)]
#[command(after_help = HELP)]
pub(crate) enum Commands {
    /// List the snapshots: name, when it was made, what it lies on
    Ls {
        /// Print the names alone
        #[arg(short, long)]
        quiet: bool,
    },
    /// List what differs from the image: A, C or D, for added, changed and deleted, and the path
    Changes {
        /// Its name
        name: String,
    },
    /// Write its files to stdout as a tar archive
    Export {
        /// Only what differs from the image, as a layer of an OCI image, and not all of the root
        /// file system
        #[arg(long)]
        layer: bool,
        /// Its name
        name: String,
    },
    /// Remove snapshots, each after those that lie on it
    Rm {
        /// Remove all that have a name
        #[arg(long, conflicts_with = "names")]
        all: bool,
        /// Their names
        #[arg(required_unless_present = "all", value_name = "NAME")]
        names: Vec<String>,
    },
}

pub(crate) fn main(command: &Commands, state: Option<&Path>) -> CliResult<ExitCode> {
    match command {
        Commands::Ls { quiet } => {
            let names = Snapshot::list(state)?;
            print(match quiet {
                true => names.iter().map(|name| format!("{name}\n")).collect(),
                false => table(&names, state),
            })?;
        }
        Commands::Changes { name } => {
            let mut out = io::BufWriter::new(io::stdout().lock());
            for change in Snapshot::open(state, name)?.changes()? {
                let letter = match change.kind {
                    ChangeKind::Added => 'A',
                    ChangeKind::Modified => 'C',
                    ChangeKind::Deleted => 'D',
                    _ => '?',
                };
                // A name may hold anything that a guest likes: on a terminal, or in lines, no more
                // than what it reads like.
                let path = change.path.as_os_str().as_bytes().escape_ascii();
                writeln!(out, "{letter} {path}").map_err(Unwritten)?;
            }
            out.flush().map_err(Unwritten)?;
        }
        Commands::Export { layer, name } => {
            if io::stdout().is_terminal() {
                return Err("stdout is a terminal, and an archive is nothing to read".into());
            }
            let what = if *layer { Export::Layer } else { Export::Tree };
            let snapshot = Snapshot::open(state, name)?;
            let out = io::BufWriter::with_capacity(1 << 20, io::stdout());
            snapshot.export(what, out).map_err(|error| match error {
                // Of stdout: adl reads from no pipe here.
                Error::Io { source, .. } if source.kind() == ErrorKind::BrokenPipe => {
                    Unwritten(source).into()
                }
                error => Box::<dyn std::error::Error>::from(error),
            })?;
        }
        Commands::Rm { all: true, .. } => return remove(Snapshot::list(state)?, state),
        Commands::Rm { names, .. } => return remove(names.clone(), state),
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes all that can be, those that others of them lie on last, and tells of the rest.
fn remove(mut names: Vec<String>, state: Option<&Path>) -> CliResult<ExitCode> {
    names.sort_unstable();
    names.dedup();
    let mut code = ExitCode::SUCCESS;
    let mut fail = |error: Error| {
        say(crate::text_of(&error));
        code = ExitCode::from(OWN_ERROR);
    };
    loop {
        let mut busy = Vec::new();
        let before = names.len();
        for name in names {
            match Snapshot::remove(state, &name) {
                Ok(()) => {}
                Err(error @ Error::Busy { .. }) => busy.push((name, error)),
                Err(error) => fail(error),
            }
        }
        if busy.len() == before {
            busy.into_iter().for_each(|(_, error)| fail(error));
            return Ok(code);
        }
        names = busy.into_iter().map(|(name, _)| name).collect();
    }
}

/// A line for each snapshot, and one above them.
fn table(names: &[String], state: Option<&Path>) -> String {
    let width = names.iter().map(String::len).max().unwrap_or_default().max(16);
    let mut table = format!("{:<width$}  {:<20}  LIES ON\n", "NAME", "MADE AT (UTC)");
    for name in names {
        // What can't be read is there all the same, and can be removed.
        let snapshot = Snapshot::open(state, name);
        let made_at = snapshot.as_ref().ok().and_then(Snapshot::made_at).map(utc);
        let below = match snapshot.as_ref().map(Snapshot::lies_on) {
            Ok(Some(below)) if below.starts_with('.') => "a snapshot without a name".to_owned(),
            Ok(Some(below)) => format!("snapshot:{below}"),
            Ok(None) => "its image".to_owned(),
            Err(error) => error.to_string(),
        };
        let made_at = made_at.unwrap_or_else(|| "?".to_owned());
        table += &format!("{name:<width$}  {made_at:<20}  {below}\n");
    }
    table
}

/// A time as year, month, day, hours, minutes and seconds.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since the first of March of the year 0, in eras of 400 years, which all have as many.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::utc;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, told) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_709_251_199, "2024-02-29 23:59:59"),
            (1_709_251_200, "2024-03-01 00:00:00"),
            (1_795_920_628, "2026-11-29 02:50:28"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), told);
        }
    }
}
