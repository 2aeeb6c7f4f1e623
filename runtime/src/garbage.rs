//! What is left on disk by who has died, and its removal.

use std::path::Path;

use crate::config::name::check_name;
use crate::error::Result;
use crate::images;
use crate::snapshot;
use crate::store::State;
use crate::store::collected::{Collected, no_place};
use crate::store::directories::Directories;
use crate::store::directory::is_aside;
use crate::store::once;

/// Removes what was left on disk by who has died, and returns the names of that: sandboxes,
/// snapshots without a name that no one uses any more, images that were not made to their end.
///
/// Safe beside anything else that uses the same state directory, and when interrupted anywhere:
/// each is taken only when its lock can be had, which its owner holds for as long as it lives, and
/// its init has ended, for which it is waited for up to two seconds. For one that was made in
/// another PID namespace, where that can't be seen, for ten. `state_directory` is as in
/// [`crate::Config`].
///
/// # Errors
/// [`Error::Uncollected`](crate::Error::Uncollected) with all that could not be removed, each with
/// its path, and with what was: nothing waits for whoever mends that. What adl has not made, as a
/// file among the directories of sandboxes, is one of these.
pub fn collect_garbage(state_directory: Option<&Path>) -> Result<Vec<String>> {
    collect(&State::open(state_directory)?)
}

/// Removes the directories of sandboxes whose owner has ended, and snapshots and images that are no
/// one's, and says which.
pub(crate) fn collect(state: &State) -> Result<Vec<String>> {
    let mut collected = Collected::default();
    collect_sandboxes(state.sandboxes(), &mut collected);
    snapshot::collect(state, &mut collected);
    images::collect(state, &mut collected);
    once::collect(state, &mut collected);
    collected.finish_pass();
    collected.done()
}

fn collect_sandboxes(directories: &Directories, collected: &mut Collected) {
    let found = match directories.entries() {
        Ok(found) => found,
        Err(error) => return collected.failed(error),
    };
    for entry in found {
        let is_ours = |name: &&str| is_aside(name) || check_name("name", name).is_ok();
        match entry.to_str().filter(is_ours) {
            Some(name) if collected.is_directory(directories, &entry) => {
                collected.directory(directories, name);
            }
            Some(_) => {}
            None => collected.failed(no_place(&directories.path(&entry))),
        }
    }
}
