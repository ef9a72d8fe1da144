//! Decoders of outside bytes, for fuzzing and for the test that replays what fuzzing found.

use bytes::Bytes;

use base64::Engine as _;
use zeroize::Zeroizing;

use crate::{
    barrier::{self, Barrier, NONCE, Randomness, SecretKey},
    hcl,
    policy::{Policy, PolicyName},
    request::{Caller, Remote, Request, Via},
    seal::shares,
    store::{Entry, snapshot::Item},
};

/// The text of a policy, HCL or JSON. Whether it is one.
pub fn policy(text: &str) -> bool {
    PolicyName::parse("fuzz").is_ok_and(|name| Policy::parse(name, text).is_ok())
}

/// A document in HCL. Whether it is one.
pub fn hcl(text: &str) -> bool {
    let items = hcl::items(text);
    if let Ok(items) = &items {
        let offsets = items.iter().map(|item| item.offset);
        assert!(offsets.is_sorted(), "what follows stands behind");
    }
    let Ok(fields) = hcl::parse(text) else {
        return false;
    };
    assert!(items.is_ok(), "an object is made of what stands there");
    let json = serde_json::to_string(&fields).expect("JSON is written as it is");
    // Where a list came of blocks the JSON goes a level deeper, and in a template nothing is escaped.
    if !json.contains("${")
        && let Ok(again) = hcl::parse(&json[1..json.len() - 1])
    {
        assert_eq!(again, fields, "JSON without its braces is HCL");
    }
    true
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
    let caller = Caller::anonymous(Remote::Unix, Via::Embedded);
    request.is_ok_and(|request| Request::parse(&request, caller).is_ok())
}

/// One entry of the ledger. Whether it is one.
pub fn entry(bytes: &[u8]) -> bool {
    Entry::decode(&Bytes::copy_from_slice(bytes)).is_some_and(|(entry, _)| {
        let mut again = Vec::new();
        entry.encode(&mut again, |_| {});
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

/// A sealed record as it lies in storage. Whether it opens at the path `fuzz` with a key of zeros.
pub fn record(bytes: &[u8]) -> bool {
    let (barrier, _) = fixed_barrier();
    let opened = barrier.open(b"fuzz", bytes.to_vec());
    if let Ok(plain) = &opened {
        assert!(
            plain.len() < bytes.len(),
            "a record is longer than what it holds"
        );
    }
    opened.is_ok()
}

/// A keyring: wrapped by a root key of zeros, or as it is inside. Whether it is one.
pub fn keyring(bytes: &[u8]) -> bool {
    Barrier::open_keyring(SecretKey::new([0; 32]), bytes).is_ok() | barrier::is_keyring(bytes)
}

/// A share in hex or base64, as people give it. Whether it has the form of one.
pub fn share(text: &str) -> bool {
    let Some(share) = crate::http::share(text) else {
        return false;
    };
    let mut other = vec![1; share.len()];
    if let (Some(x), Some(taken)) = (other.last_mut(), share.last()) {
        *x = !taken;
    }
    let others = [share, Zeroizing::new(other)];
    shares::combine(&others).is_some() | shares::combine(&others[..1]).is_some()
}

/// A barrier whose keys are all zeros, and a record that it has sealed for the path `fuzz`; both for the corpus.
fn fixed_barrier() -> (Barrier, Vec<u8>) {
    Barrier::fixed(SecretKey::new([0; 32]))
}

/// The first corpora of [`record`], [`keyring`] and [`share`], by name.
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let (barrier, wrapped) = fixed_barrier();
    let mut record = Vec::new();
    barrier.seal(&mut Randomness::of(NONCE), b"fuzz", b"a value", &mut record);
    let (_, two_terms) = barrier.rotated(&wrapped).expect("it is its own keyring");
    let split = shares::split(&SecretKey::new([7; 32]), 3, 2);
    let hex = split[0].iter().map(|byte| format!("{byte:02x}"));
    let base64 = base64::engine::general_purpose::STANDARD.encode(&split[1][..]);
    vec![
        ("barrier_record", "value", record),
        ("keyring", "wrapped", wrapped),
        ("keyring", "two-terms", two_terms),
        ("keyring", "inside", barrier::keyring_inside()),
        ("share", "hex", hex.collect::<String>().into_bytes()),
        ("share", "base64", base64.into_bytes()),
    ]
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn the_seeds_of_the_store_are_whole_and_nothing_near_them() {
        let corpus = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
            .join("../fuzz/corpus/vault_store");
        let read = |name: &str| fs::read(corpus.join(name)).unwrap();
        assert!(super::snapshot(&read("snapshot")));
        let names = ["segment", "segment-group"];
        assert!(names.iter().all(|name| super::segment(&read(name))));
        for name in ["snapshot", "segment", "segment-group"] {
            let seed = read(name);
            for at in 0..seed.len() {
                let mut bad = seed.clone();
                bad[at] ^= 0xff;
                let whole = super::snapshot(&bad) || super::segment(&bad);
                assert!(!whole, "byte {at} of {name}");
            }
        }
    }

    /// The same for what seals and opens; every seed is what it says.
    #[test]
    fn the_corpora_of_the_seal_panic_nowhere() {
        let corpus = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
            .join("../fuzz/corpus");
        type Target = fn(&[u8]) -> bool;
        let targets: [(&str, Target); 3] = [
            ("barrier_record", super::record),
            ("keyring", super::keyring),
            ("share", |bytes| {
                std::str::from_utf8(bytes).is_ok_and(super::share)
            }),
        ];
        for (name, target) in targets {
            for seed in fs::read_dir(corpus.join(name)).unwrap() {
                let seed = fs::read(seed.unwrap().path()).unwrap();
                assert!(target(&seed), "{name}");
                for at in 0..seed.len() {
                    target(&seed[..at]);
                    let mut inverted = seed.clone();
                    inverted[at] ^= 0xff;
                    target(&inverted);
                }
            }
        }
    }

    #[test]
    fn the_corpus_of_hcl_panics_nowhere() {
        let corpus = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
            .join("../fuzz/corpus/hcl");
        for seed in fs::read_dir(corpus).unwrap() {
            let path = seed.unwrap().path();
            let seed = fs::read(&path).unwrap();
            let feed = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok_and(super::hcl);
            assert!(feed(&seed), "{}", path.display());
            for at in 0..seed.len() {
                feed(&seed[..at]);
                let mut inverted = seed.clone();
                inverted[at] ^= 0x11;
                feed(&inverted);
            }
        }
    }

    /// Every seed as it is, cut off after every byte, and with every byte inverted: nothing may panic.
    #[test]
    fn the_corpus_panics_nowhere() {
        let corpus = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
            .join("../fuzz/corpus/vault");
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
