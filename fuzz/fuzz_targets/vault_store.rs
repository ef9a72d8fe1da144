//! What lies on the disk of a store and in a snapshot that an operator restores: segments and snapshots.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vault_kv::fuzz;

fuzz_target!(|bytes: &[u8]| {
    fuzz::segment(bytes);
    fuzz::snapshot(bytes);
});
