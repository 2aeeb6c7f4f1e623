//! Any bytes as what init reads of the host: requests, and entries of a tree.
//! The work is in `runtime/src/fuzzing/mod.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| adl_runtime::fuzz_one("requests", input));
