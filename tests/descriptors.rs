//! What becomes of a caller that may have few descriptors.

use std::fs::File;
use std::path::Path;

use adl_runtime::{Config, Sandbox};
use nix::sys::resource::{Resource, setrlimit};

use crate::harness::{Home, needs, shell};
use crate::helper::Helper;

#[test]
fn removals_that_wait_take_no_descriptors_from_what_is_made_next() {
    if needs(&[]) {
        let home = Home::new();
        Helper::start("cycle-with-few-descriptors", &home.state()).finish();
        assert_eq!(home.left(), [""; 0]);
    }
}

/// The helper of the test above.
pub(crate) fn cycle_with_few_descriptors(state: &Path) {
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
    let config = || Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let alive = Sandbox::create(config()).unwrap();
    for number in 0..100 {
        let sandbox = Sandbox::create(config()).unwrap_or_else(|e| panic!("{number}: {e}"));
        shell(&sandbox, "mkdir /root/a; for i in 1 2 3 4 5 6 7 8 9; do echo > /root/a/$i; done");
        sandbox.delete().unwrap();
    }
    adl_runtime::finish_removals();
    // With none left, the error says which limit that is.
    let mut files = Vec::new();
    let error = loop {
        match File::open("/dev/null") {
            Ok(file) => files.push(file),
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(24));
    for left in 0..files.len() {
        match Sandbox::create(config()) {
            Ok(sandbox) => {
                assert!(left > 2, "with {left} descriptors");
                sandbox.delete().unwrap();
                break;
            }
            Err(error) => assert!(error.to_string().contains("RLIMIT_NOFILE"), "{left}: {error:?}"),
        }
        files.pop();
    }
    // A command takes more than a create may.
    files.truncate(files.len().saturating_sub(16));
    assert_eq!(shell(&alive, "echo alive"), "alive\n");
    drop(files);
    alive.delete().unwrap();
    adl_runtime::finish_removals();
}
