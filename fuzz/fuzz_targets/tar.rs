//! Any bytes as an archive that a caller sends inside.
//! The work is in `runtime/src/fuzzing/mod.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| adl_runtime::fuzz_one("tar", input));
