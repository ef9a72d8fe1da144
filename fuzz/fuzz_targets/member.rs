//! Bodies of membership's streams, the saved candidates and the keyring.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libmesh::member::keyring::{Keyring, Opener};
use libmesh::member::{decode_candidates, stream::fuzz};

fuzz_target!(|bytes: &[u8]| {
    fuzz::state(bytes);
    fuzz::ping(bytes);
    decode_candidates(bytes);
    if let Ok(keyring) = Keyring::from_bytes(bytes) {
        let mut opener = Opener::new(keyring, b"fuzz");
        assert!(opener.open(&mut bytes.to_vec()).is_err());
    }
});
