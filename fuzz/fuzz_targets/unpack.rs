//! Any bytes as an archive: it is unpacked or refused with a typed error, and nothing beside the
//! target is touched. The work is in `runtime/src/image/fuzzing.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| adl_runtime::unpack_one(input));
