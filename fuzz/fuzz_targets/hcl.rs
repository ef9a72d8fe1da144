//! HCL 1: configuration of Consul's, and policies.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vault_kv::fuzz;

fuzz_target!(|text: &str| {
    fuzz::hcl(text);
    fuzz::policy(text);
});
