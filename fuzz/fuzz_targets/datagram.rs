//! Datagrams of membership, before and after they are opened.
#![no_main]

use libmesh::member::stream::fuzz;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    fuzz::datagram(bytes);
    fuzz::packet(bytes);
});
