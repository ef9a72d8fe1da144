//! What lies on the disk of a store: the wrapped keyring.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vault_kv::fuzz;

fuzz_target!(|bytes: &[u8]| {
    fuzz::keyring(bytes);
});
