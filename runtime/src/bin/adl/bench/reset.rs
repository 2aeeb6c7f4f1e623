//! The row of a reset after which much is to be removed.

use adl_runtime::{Config, Sandbox};

use super::{Rows, Times};
use crate::options::CliResult;

/// Makes 100,000 files in 1,000 directories.
const MAKE: &str =
    "cd /tmp && mkdir d{1..1000} && printf '%s\\n' d{1..1000}/{1..100} | xargs touch";

pub(super) fn large(config: &Config, resets: usize, rows: &mut Rows) -> CliResult<()> {
    if resets == 0 {
        return Ok(());
    }
    let mut sandbox = Sandbox::create(config.clone())?;
    let mut reset = Times::default();
    for _ in 0..resets {
        let made = sandbox.command("/bin/bash").args(["-c", MAKE]).status()?;
        if !made.success() {
            return Err(format!("100,000 files in the sandbox: {made}").into());
        }
        reset.measure(|| sandbox.reset())?;
        if sandbox.files().exists("/tmp/d1")? {
            return Err("a file is there after a reset".into());
        }
        adl_runtime::finish_removals();
    }
    sandbox.delete()?;
    rows.insert("reset_100k", reset.row(None));
    Ok(())
}
