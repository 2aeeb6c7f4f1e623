//! Keeping what a command has written, as a snapshot with a name.

use adl_runtime::{
    Config, Error, IfRunning, ReplaceError, Sandbox, Snapshot, SnapshotOptions, Upper,
};
use clap::Args;

use crate::output::say;
use crate::values::CliResult;

// When a snapshot is made. (A doc comment would be help.)
#[derive(Args)]
pub(crate) struct KeepOptions {
    /// When the command has exited with 0, keep the files as a snapshot of this name, for
    /// `--image snapshot:NAME`. What it has left running is killed first
    #[arg(long, value_name = "NAME")]
    snapshot: Option<String>,

    /// Make the snapshot also where the command has failed, or its time was up; not where it was
    /// not started
    #[arg(long, requires = "snapshot")]
    snapshot_always: bool,

    /// Take the name from the snapshot that has it. That one is removed, or stays without a name
    /// for as long as the new one lies on it
    #[arg(long, requires = "snapshot")]
    replace: bool,
}

/// The snapshot that is to be made, where one can be.
pub(crate) struct Keep<'a> {
    name: Option<&'a str>,
    options: &'a KeepOptions,
}

impl KeepOptions {
    /// Makes sure that a snapshot can be made when the command has done its work.
    pub(crate) fn check(&self, config: &Config) -> CliResult<Keep<'_>> {
        let keep = Keep { name: self.snapshot.as_deref(), options: self };
        let Some(name) = keep.name else { return Ok(keep) };
        if let Upper::Memory { .. } = config.upper {
            return Err("--snapshot needs an --upper that is on disk".into());
        }
        match Snapshot::open(config.state_directory.as_deref(), name) {
            Err(Error::NoSnapshot { .. }) => Ok(keep),
            Ok(_) if self.replace => Ok(keep),
            Ok(_) => Err(format!(
                "the name {name:?} is in use: `adl snapshot rm {name}` removes the snapshot that has \
                 it, --replace gives it to the new one"
            )
            .into()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Keep<'_> {
    /// Makes the snapshot, if there is to be one, and ends the sandbox. Returns why there is none
    /// that was to be.
    pub(crate) fn keep(
        &self,
        sandbox: Sandbox,
        was_started: bool,
        has_succeeded: bool,
    ) -> CliResult<Result<(), String>> {
        let is_wanted = has_succeeded || was_started && self.options.snapshot_always;
        let made = match self.name {
            Some(name) if is_wanted => make(&sandbox, name, self.options.replace),
            Some(name) => {
                let how = match was_started {
                    true => "has failed; with --snapshot-always there would be one",
                    false => "was not started",
                };
                say(format_args!("--snapshot {name}: there is none: the command {how}"));
                Ok(None)
            }
            None => Ok(None),
        };
        sandbox.delete()?;
        // A sandbox that lies on it would be in the way.
        let named = made.map_err(Into::into).and_then(|made| match (made, self.name) {
            (Some(snapshot), Some(name)) => snapshot.replace(name).map(drop).or_else(keep_aside),
            _ => Ok(()),
        });
        let name = self.name.unwrap_or_default();
        Ok(named.map_err(|error| format!("--snapshot {name}: {error}")))
    }
}

/// Gives one that did not get the name that was asked for another: the work is done, and is kept.
fn keep_aside(failed: ReplaceError) -> CliResult<()> {
    let ReplaceError { error, snapshot } = failed;
    let name = format!("kept-{}", std::process::id());
    match snapshot.map(|it| it.replace(&name)) {
        Some(Ok(_)) => {
            Err(format!("{error}; what the command has written is the snapshot {name:?}").into())
        }
        Some(Err(_)) | None => Err(error.into()),
    }
}

/// Makes a snapshot; returns it where it is still to get its name.
fn make(sandbox: &Sandbox, name: &str, replaces: bool) -> adl_runtime::Result<Option<Snapshot>> {
    let name = (!replaces).then(|| name.to_owned());
    let is_named = name.is_some();
    let snapshot = sandbox.snapshot_with(&SnapshotOptions { name, running: IfRunning::End })?;
    Ok((!is_named).then_some(snapshot))
}
