//! `adl snapshot`: what was kept of sandboxes.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use adl_runtime::{ChangeKind, Export, Snapshot};
use lexopt::{Arg, ValueExt as _};

use crate::values::CliResult;

const HELP: &str = "\
Usage: adl snapshot ls                     list the snapshots
       adl snapshot changes NAME           list what differs from the image: A, C or D, for what was
                                           added, changed and deleted, and its path
       adl snapshot export [--layer] NAME  write its files to stdout as a tar archive: all of the
                                           root file system, or, with --layer, what differs from
                                           the image, as a layer of an OCI image
       adl snapshot rm NAME…               remove snapshots

`adl run --snapshot NAME` makes one, and `--image snapshot:NAME` makes a sandbox of it.
";

pub(crate) fn main(arguments: Vec<OsString>) -> CliResult<ExitCode> {
    let mut what = Export::Tree;
    let mut values: Vec<String> = Vec::new();
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => {
                print!("{HELP}");
                return Ok(ExitCode::SUCCESS);
            }
            Arg::Long("layer") => what = Export::Layer,
            Arg::Value(value) => values.push(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    match &*values {
        ["ls"] => {
            for name in Snapshot::list(None)? {
                println!("{name}");
            }
        }
        ["changes", name] => {
            let mut out = io::stdout().lock();
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
                writeln!(out, "{letter} {path}")?;
            }
        }
        ["export", name] => {
            if io::stdout().is_terminal() {
                return Err("stdout is a terminal, and an archive is nothing to read".into());
            }
            let snapshot = Snapshot::open(None, name)?;
            snapshot.export(what, io::BufWriter::with_capacity(1 << 20, io::stdout()))?;
        }
        ["rm", names @ ..] if !names.is_empty() => {
            for name in names {
                Snapshot::remove(None, name)?;
            }
        }
        _ => return Err("takes ls, changes, export or rm; try `adl snapshot --help`".into()),
    }
    Ok(ExitCode::SUCCESS)
}
