//! `adl gc`: removes what dead programs left behind.

use std::process::ExitCode;

use crate::OWN_ERROR;
use crate::output::{print, say};
use crate::values::CliResult;

pub(crate) fn main() -> CliResult<ExitCode> {
    let (removed, errors) = match adl_runtime::collect_garbage(None) {
        Err(adl_runtime::Error::Uncollected { removed, errors }) => (removed, errors),
        collected => (collected?, Vec::new()),
    };
    for error in &errors {
        say(error);
    }
    print(removed.iter().map(|name| format!("{name}\n")).collect::<String>())?;
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(OWN_ERROR) })
}
