//! Identities of members, which every packet and every member list is made of.
#![no_main]

use libmesh::member::wire::Identity;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(identity) = Identity::decode(&mut &*bytes) {
        let mut encoded = Vec::new();
        identity.encode(&mut encoded);
        assert_eq!(Identity::decode(&mut &*encoded), Ok(identity));
    }
});
