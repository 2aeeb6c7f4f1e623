//! Any bytes as a sandbox's `/etc/passwd` and `/etc/group`, and a user to look for.
//! The work is in `runtime/src/fuzzing/mod.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| adl_runtime::fuzz_one("users", input));
