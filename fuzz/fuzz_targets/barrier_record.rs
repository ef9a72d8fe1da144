//! What lies on the disk of a store: sealed records.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vault_kv::fuzz;

fuzz_target!(|bytes: &[u8]| {
    fuzz::record(bytes);
});
