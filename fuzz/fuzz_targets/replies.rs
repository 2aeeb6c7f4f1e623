//! Any bytes as what the host reads of init and of jobs: messages, answers, the tree of a copy.
//! The work is in `runtime/src/fuzzing/mod.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| adl_runtime::fuzz_one("replies", input));
