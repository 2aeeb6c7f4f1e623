//! Any bytes as values of options of `adl`: mounts, limits, sizes and times. The work is in
//! `runtime/src/bin/adl/fuzzing.rs`; these are the modules of the program that it needs.

#![no_main]
#![allow(dead_code, reason = "what the rest of the program uses")]

#[path = "../../runtime/src/bin/adl/fuzzing.rs"]
mod fuzzing;
#[path = "../../runtime/src/bin/adl/limits.rs"]
mod limits;
#[path = "../../runtime/src/bin/adl/mounts.rs"]
mod mounts;
#[path = "../../runtime/src/bin/adl/output.rs"]
mod output;
#[path = "../../runtime/src/bin/adl/ulimits.rs"]
mod ulimits;
#[path = "../../runtime/src/bin/adl/values.rs"]
mod values;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fuzzing::arguments(input);
});
