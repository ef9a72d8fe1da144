//! Snapshots as Consul's clients send them: packed with gzip, and what is in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sidecar::fuzz::snapshot_archive(bytes);
    sidecar::fuzz::snapshot_files(bytes);
});
