//! Config bundles, signed and opened, as peers relay them and as the cache file holds them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libmesh::bundle::{ConfigBundle, SignedBundle};

fuzz_target!(|bytes: &[u8]| {
    let _ = postcard::from_bytes::<SignedBundle>(bytes);
    if let Ok(bundle) = postcard::from_bytes::<ConfigBundle>(bytes) {
        let encoded = postcard::to_stdvec(&bundle).expect("plain types encode");
        assert_eq!(
            postcard::from_bytes::<ConfigBundle>(&encoded).expect("its own form"),
            bundle
        );
    }
});
