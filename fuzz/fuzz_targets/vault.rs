//! What clients and operators send to the store, and what lies on its disk: requests, policies, entries.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vault_kv::fuzz;

fuzz_target!(|bytes: &[u8]| {
    fuzz::entry(bytes);
    fuzz::request(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        fuzz::policy(text);
    }
});
