//! Bodies of the anti-entropy routes: digests and pulls.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| libmesh::sync::fuzz_frames(bytes));
