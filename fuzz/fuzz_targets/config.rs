//! Any bytes as a configuration in JSON: mounts, limits and defaults.
//! The work is in `runtime/src/fuzzing/mod.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| adl_runtime::fuzz_one("config", input));
