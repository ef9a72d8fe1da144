//! User events, as agents tell each other of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sidecar::fuzz::event_message(bytes);
});
