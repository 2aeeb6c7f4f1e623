//! The row of a reset after which much is to be removed.

use adl_runtime::{Config, Sandbox};

use super::{Rows, Times};
use crate::options::CliResult;

/// How often it is reset.
const RESETS: usize = 10;

/// Makes 100,000 files in 1,000 directories. As many as that at once is what `touch` is for.
const MAKE: &str = "cd /tmp && seq -f d%g 1000 | xargs mkdir && \
    for d in d*; do (cd $d && seq 100 | xargs touch) || exit; done";

pub(super) fn large(config: &Config, rows: &mut Rows) -> CliResult<()> {
    let mut sandbox = Sandbox::create(config.clone())?;
    let mut reset = Times::default();
    for _ in 0..RESETS {
        let made = sandbox.shell(MAKE).status()?;
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
