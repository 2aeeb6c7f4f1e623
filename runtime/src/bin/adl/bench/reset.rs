//! The rows of a reset after which much is to be removed, and of snapshots of much.

use adl_runtime::{Config, Sandbox, Upper};

use super::{LeftOut, Rows, Times};
use crate::values::CliResult;

/// Makes 100,000 files in 1,000 directories.
const MAKE: &str =
    "cd /tmp && mkdir d{1..1000} && printf '%s\\n' d{1..1000}/{1..100} | xargs touch";

/// Measures snapshots of sandboxes that have written 1 MiB and `large` bytes, in turns, and forks
/// of them.
pub(super) fn snapshots(
    config: &Config,
    count: usize,
    large: u64,
    rows: &mut Rows,
) -> CliResult<()> {
    const ROWS: &str = "snapshot_1m, snapshot_large, fork_1m, fork_large";
    if count == 0 {
        return Ok(());
    }
    if matches!(config.upper, Upper::Memory { .. }) {
        let why = "what is in memory can't be kept".to_owned();
        return Err(LeftOut { rows: ROWS, why }.into());
    }
    let sizes = [1 << 20, large];
    let mut times = sizes.map(|_| (Times::default(), Times::default()));
    for _ in 0..count {
        for (size, (snapshot, fork)) in sizes.into_iter().zip(&mut times) {
            let sandbox = Sandbox::create(config.clone())?;
            let write = format!("head -c {size} /dev/zero > /root/file && sync /root/file");
            let written = sandbox.command("/bin/bash").args(["-c", &write]).status()?;
            LeftOut::unless_made(ROWS, &format!("{size} bytes"), written)?;
            // What takes seconds to write leaves cold caches, which is nothing that a snapshot
            // does.
            Sandbox::create(config.clone())?.delete()?;
            let made = snapshot.measure(|| sandbox.snapshot())?;
            for _ in 0..FORKS {
                let other = fork.measure(|| Sandbox::create(made.config()))?;
                if other.files().metadata("/root/file")?.size != size {
                    return Err("a file is not whole in a fork".into());
                }
                other.delete()?;
                adl_runtime::finish_removals();
            }
            sandbox.delete()?;
            drop(made);
            adl_runtime::finish_removals();
        }
    }
    let names = [("snapshot_1m", "fork_1m"), ("snapshot_large", "fork_large")];
    for ((snapshot, fork), (of_snapshot, of_fork)) in times.iter().zip(names) {
        rows.insert(of_snapshot, snapshot.row(None));
        rows.insert(of_fork, fork.row(None));
    }
    Ok(())
}

/// How many of each snapshot.
const FORKS: usize = 5;

pub(super) fn large(config: &Config, resets: usize, rows: &mut Rows) -> CliResult<()> {
    if resets == 0 {
        return Ok(());
    }
    let sandbox = Sandbox::create(config.clone())?;
    let mut reset = Times::default();
    for _ in 0..resets {
        let made = sandbox.command("/bin/bash").args(["-c", MAKE]).status()?;
        LeftOut::unless_made("reset_100k", "100,000 files", made)?;
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
