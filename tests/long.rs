//! What other tests do a few times, done until it takes minutes.
//!
//! `cargo test --package adl-tests -- --ignored long::`

use std::time::Duration;

use crate::harness::Home;
use crate::{file_attacks, reset};

#[test]
#[ignore = "takes minutes"]
fn the_tree_is_that_of_the_image_a_thousand_times_beside_writers() {
    reset::sums_are_the_same(1000);
}

#[test]
#[ignore = "takes minutes"]
fn no_race_of_a_hundred_thousand_leads_a_call_to_the_host() {
    let home = || Home::of_a_test_that_takes(Duration::from_secs(1200));
    file_attacks::races::calls_withstand_races(100_000, home);
}
