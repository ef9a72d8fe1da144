//! Names in DNS messages, compressed or not: ours ends and reads as another decoder's does.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|octets: &[u8]| dns::fuzz::name(octets));
