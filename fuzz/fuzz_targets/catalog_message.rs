//! Catalog messages of other nodes: frame, delta and records.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    libmesh::catalog::fuzz::delta(bytes);
});
