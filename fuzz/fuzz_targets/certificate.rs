//! Certificates, publish rights and SPIFFE IDs before anything is verified.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libmesh::identity::{Leaf, PublishRights, SpiffeId};

fuzz_target!(|bytes: &[u8]| {
    let _ = Leaf::parse(bytes);
    let _ = PublishRights::from_certificate(bytes);
    if let Ok(rights) = PublishRights::from_extension(bytes) {
        let (_, der) = rights.to_extension();
        assert_eq!(
            PublishRights::from_extension(&der)
                .expect("its own form")
                .patterns(),
            rights.patterns()
        );
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(id) = SpiffeId::parse(text)
    {
        assert_eq!(
            SpiffeId::parse(&id.to_string()).expect("its own text form"),
            id
        );
    }
});
