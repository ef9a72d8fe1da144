//! What a node says one after another, snapshots in parts among it, and a log as it was saved.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    libmesh::catalog::fuzz::snapshot(bytes);
});
