//! Creates that take a blank.

use adl_runtime::{Config, Network, Sandbox, blanks_ready, keep_blanks};

use super::pool::until;
use super::{Rows, Times};
use crate::values::CliResult;

/// The row of creates that take a blank, where there are blanks.
pub(super) fn creates(config: &Config, count: usize, rows: &mut Rows) -> CliResult<()> {
    if count != 0 && are_there(config)? {
        let mut times = Times::default();
        measure(config, count, &mut times)?;
        rows.insert("create_of_blank", times.row(None));
    }
    Ok(())
}

/// See [`keep_blanks`]: there are none for an ordinary user, who has no range of ids, and none with
/// a `/sys` and the host's network.
pub(super) fn are_there(config: &Config) -> CliResult<bool> {
    let sandbox = Sandbox::create(config.clone())?;
    let are_there = sandbox.id_range().is_some() && config.network != Network::Host;
    sandbox.delete()?;
    Ok(are_there)
}

/// Creates so many sandboxes while a blank is ready, and nothing else goes on.
pub(super) fn measure(config: &Config, count: usize, times: &mut Times) -> CliResult<()> {
    keep_blanks(1);
    Sandbox::create(config.clone())?.delete()?;
    for _ in 0..count {
        adl_runtime::finish_removals();
        until("a blank", || blanks_ready() == 1)?;
        times.measure(|| Sandbox::create(config.clone()))?.delete()?;
    }
    keep_blanks(0);
    adl_runtime::finish_removals();
    Ok(())
}
