//! Decoders of outside bytes, for fuzzing and for the test that replays what fuzzing found.

use bytes::Bytes;

use crate::{
    policy::{Policy, PolicyName},
    request::{Caller, Remote, Request, Via},
    store::{Entry, snapshot::Item},
};

/// The text of a policy, HCL or JSON. Whether it is one.
pub fn policy(text: &str) -> bool {
    PolicyName::parse("fuzz").is_ok_and(|name| Policy::parse(name, text).is_ok())
}

/// A request: the first line is method and path, the second the content type, the rest the body.
/// Whether it is one.
pub fn request(bytes: &[u8]) -> bool {
    let mut lines = bytes.splitn(3, |byte| *byte == b'\n');
    let line = |lines: &mut dyn Iterator<Item = &[u8]>| {
        String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned()
    };
    let (first, kind) = (line(&mut lines), line(&mut lines));
    let (method, uri) = first.split_once(' ').unwrap_or(("GET", &first));
    let body = Bytes::copy_from_slice(lines.next().unwrap_or_default());
    let request = http::Request::builder()
        .method(method)
        .uri(uri)
        .header(http::header::CONTENT_TYPE, kind)
        .body(body);
    let caller = Caller {
        remote: Remote::Unix,
        spiffe: None,
        via: Via::Embedded,
    };
    request.is_ok_and(|request| Request::parse(&request, caller).is_ok())
}

/// One entry of the ledger. Whether it is one.
pub fn entry(bytes: &[u8]) -> bool {
    Entry::decode(&Bytes::copy_from_slice(bytes)).is_some_and(|(entry, _)| {
        let mut again = Vec::new();
        entry.encode(&mut again);
        assert_eq!(again, bytes, "what was decoded encodes to the same bytes");
        entry.commitments_hold()
    })
}

/// A snapshot file, of a ledger or of a fold. Whether it is a whole one.
pub fn snapshot(bytes: &[u8]) -> bool {
    let Ok(mut reader) = crate::store::snapshot::Reader::open(bytes) else {
        return false;
    };
    loop {
        match reader.next() {
            Ok(Some(Item::Entry(found))) => {
                entry(&found);
            }
            Ok(Some(Item::Record(found))) => {
                crate::store::local::is_record(&found);
            }
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// A segment of the log. Whether it is whole.
pub fn segment(bytes: &[u8]) -> bool {
    crate::store::local::is_segment(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn the_seeds_of_the_store_are_whole_and_nothing_near_them() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/vault_store");
        let read = |name: &str| fs::read(corpus.join(name)).unwrap();
        assert!(super::snapshot(&read("snapshot")));
        assert!(super::segment(&read("segment")));
        for seed in [read("snapshot"), read("segment")] {
            for at in 0..seed.len() {
                let mut bad = seed.clone();
                bad[at] ^= 0xff;
                assert!(!super::snapshot(&bad) && !super::segment(&bad), "byte {at}");
            }
        }
    }

    /// Every seed as it is, cut off after every byte, and with every byte inverted: nothing may panic.
    #[test]
    fn the_corpus_panics_nowhere() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/vault");
        let (mut policies, mut requests) = (0, 0);
        for seed in fs::read_dir(corpus).unwrap() {
            let seed = fs::read(seed.unwrap().path()).unwrap();
            let feed = |bytes: &[u8]| {
                super::entry(bytes);
                let policy = std::str::from_utf8(bytes).is_ok_and(super::policy);
                (policy, super::request(bytes))
            };
            let (policy, request) = feed(&seed);
            policies += usize::from(policy);
            requests += usize::from(request);
            for at in 0..seed.len() {
                feed(&seed[..at]);
                let mut inverted = seed.clone();
                inverted[at] ^= 0xff;
                feed(&inverted);
            }
        }
        assert!(
            policies >= 2 && requests >= 3,
            "{policies} policies, {requests} requests"
        );
    }
}
