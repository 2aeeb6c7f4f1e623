//! The row of creates that take a blank.

use adl_runtime::{Config, Network, Sandbox, blanks_ready, keep_blanks};

use super::pool::until;
use super::{Rows, Times};
use crate::values::CliResult;

/// Creates sandboxes while a blank is ready, and nothing else goes on.
pub(super) fn creates(config: &Config, count: usize, rows: &mut Rows) -> CliResult<()> {
    if count == 0 {
        return Ok(());
    }
    let sandbox = Sandbox::create(config.clone())?;
    // See `keep_blanks`: there are none for an ordinary user, who has no range of ids, and none
    // with a `/sys` and the host's network.
    let has_none = sandbox.id_range().is_none() || config.network == Network::Host;
    sandbox.delete()?;
    if has_none {
        return Ok(());
    }
    keep_blanks(1);
    Sandbox::create(config.clone())?.delete()?;
    let mut times = Times::default();
    for _ in 0..count {
        adl_runtime::finish_removals();
        until("a blank", || blanks_ready() == 1)?;
        times.measure(|| Sandbox::create(config.clone()))?.delete()?;
    }
    keep_blanks(0);
    adl_runtime::finish_removals();
    rows.insert("create_of_blank", times.row(None));
    Ok(())
}
