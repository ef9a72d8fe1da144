//! What somebody without a certificate may send, and what a joiner is told: tokens, requests, replies.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libmesh::join::{JoinReply, JoinRequest, JoinToken};

fuzz_target!(|bytes: &[u8]| {
    JoinRequest::decode(bytes);
    JoinReply::decode(bytes);
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(token) = text.parse::<JoinToken>()
    {
        let again: JoinToken = token.reveal().parse().expect("its own text form");
        assert_eq!(
            (again.id(), again.secret(), again.ca_hash()),
            (token.id(), token.secret(), token.ca_hash())
        );
    }
});
