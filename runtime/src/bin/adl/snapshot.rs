//! `adl snapshot`: lists, exports and removes snapshots.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use adl_runtime::{ChangeKind, Error, Export, Snapshot};
use clap::Subcommand;

use crate::output::{Unwritten, print};
use crate::values::CliResult;

const HELP: &str = "\
`adl run --snapshot NAME` makes one, and `--image snapshot:NAME` makes a sandbox of it.";

#[derive(Subcommand)]
#[command(arg_required_else_help = false)]
#[command(after_help = HELP)]
pub(crate) enum Commands {
    /// List the snapshots
    Ls,
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
    /// Remove snapshots
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

pub(crate) fn main(command: &Commands) -> CliResult<ExitCode> {
    match command {
        Commands::Ls => {
            let names = Snapshot::list(None)?;
            print(names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
        }
        Commands::Changes { name } => {
            let mut out = io::BufWriter::new(io::stdout().lock());
            for change in Snapshot::open(None, name)?.changes()? {
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
            let snapshot = Snapshot::open(None, name)?;
            let out = io::BufWriter::with_capacity(1 << 20, io::stdout());
            snapshot.export(what, out).map_err(|error| match error {
                // Of stdout: adl reads from no pipe here.
                Error::Io { source, .. } if source.kind() == ErrorKind::BrokenPipe => {
                    Unwritten(source).into()
                }
                error => Box::<dyn std::error::Error>::from(error),
            })?;
        }
        Commands::Rm { names } => {
            for name in names {
                Snapshot::remove(None, name)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
