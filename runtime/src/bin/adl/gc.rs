//! `adl gc`: removes what dead programs left behind.

use std::path::Path;
use std::process::ExitCode;

use crate::OWN_ERROR;
use crate::output::{print, say};
use crate::values::CliResult;

pub(crate) fn main(state: Option<&Path>) -> CliResult<ExitCode> {
    let (removed, errors) = match adl_runtime::collect_garbage(state) {
        Err(adl_runtime::Error::Uncollected { removed, errors }) => (removed, errors),
        collected => (collected?, Vec::new()),
    };
    for error in &errors {
        say(error);
    }
    if removed.is_empty() && errors.is_empty() {
        say("nothing was left behind");
    }
    print(removed.iter().map(|name| format!("{name}\n")).collect::<String>())?;
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(OWN_ERROR) })
}
