//! The fuzz corpora, replayed on stable through what `fuzz/fuzz_targets` calls: every seed as it is, cut off after
//! every byte, and with every byte inverted. No decoder of outside bytes may panic.

use std::{fs, path::Path};

use libmesh::{
    bundle::{ConfigBundle, SignedBundle},
    catalog,
    identity::{Leaf, PublishRights, SpiffeId},
    join::{JoinReply, JoinRequest, JoinToken},
    member::{
        decode_candidates,
        keyring::{Keyring, Opener},
        stream::fuzz,
        wire::Identity,
    },
    sync,
};

/// Feeds every seed of a corpus and its mutants to `target`; how many unchanged seeds it understood.
fn replay(corpus: &str, target: impl Fn(&[u8]) -> bool) -> usize {
    let directory = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join("../fuzz/corpus");
    let seeds = fs::read_dir(directory.join(corpus)).unwrap();
    let mut understood = 0;
    for seed in seeds {
        let seed = fs::read(seed.unwrap().path()).unwrap();
        understood += usize::from(target(&seed));
        for at in 0..seed.len() {
            target(&seed[..at]);
            let mut inverted = seed.clone();
            inverted[at] ^= 0xff;
            target(&inverted);
        }
    }
    understood
}

#[test]
fn certificate() {
    let understood = replay("certificate", |bytes| {
        let leaf = Leaf::parse(bytes).is_ok();
        let _ = PublishRights::from_certificate(bytes);
        let rights = PublishRights::from_extension(bytes);
        if let Ok(rights) = &rights {
            let again = PublishRights::from_extension(&rights.to_extension().1).unwrap();
            assert_eq!(again.patterns(), rights.patterns());
        }
        let id = std::str::from_utf8(bytes).map(SpiffeId::parse);
        if let Ok(Ok(id)) = &id {
            assert_eq!(SpiffeId::parse(&id.to_string()).unwrap(), *id);
        }
        leaf || rights.is_ok() || matches!(id, Ok(Ok(_)))
    });
    assert!(understood >= 4, "{understood}");
}

#[test]
fn config_bundle() {
    let understood = replay("config_bundle", |bytes| {
        let signed = postcard::from_bytes::<SignedBundle>(bytes);
        let opened = postcard::from_bytes::<ConfigBundle>(bytes);
        if let Ok(bundle) = &opened {
            let encoded = postcard::to_stdvec(bundle).unwrap();
            assert_eq!(
                postcard::from_bytes::<ConfigBundle>(&encoded).unwrap(),
                *bundle
            );
        }
        signed.is_ok() || opened.is_ok()
    });
    assert!(understood >= 2, "{understood}");
}

#[test]
fn join() {
    let understood = replay("join", |bytes| {
        let request = JoinRequest::decode(bytes).is_some();
        let reply = JoinReply::decode(bytes).is_some();
        let token = std::str::from_utf8(bytes).map(str::parse::<JoinToken>);
        if let Ok(Ok(token)) = &token {
            let again: JoinToken = token.reveal().parse().unwrap();
            assert_eq!(
                (again.id(), again.secret(), again.ca_hash()),
                (token.id(), token.secret(), token.ca_hash())
            );
        }
        request || reply || matches!(token, Ok(Ok(_)))
    });
    assert!(understood >= 3, "{understood}");
}

#[test]
fn member() {
    let understood = replay("member", |bytes| {
        let decoders = [fuzz::state, fuzz::ping];
        let decoded = decoders.map(|decode| decode(bytes)).contains(&true);
        decode_candidates(bytes);
        let keyring = Keyring::from_bytes(bytes);
        let understood = decoded || keyring.is_ok();
        if let Ok(keyring) = keyring {
            let mut opener = Opener::new(keyring, b"fuzz");
            assert!(opener.open(&mut bytes.to_vec()).is_err());
        }
        understood
    });
    assert!(understood >= 5, "{understood}");
}

#[test]
fn identity() {
    let understood = replay("identity", |bytes| {
        let decoded = Identity::decode(&mut &*bytes);
        if let Ok(identity) = &decoded {
            let mut encoded = Vec::new();
            identity.encode(&mut encoded);
            assert_eq!(Identity::decode(&mut &*encoded).as_ref(), Ok(identity));
        }
        decoded.is_ok()
    });
    assert!(understood >= 1, "{understood}");
}

#[test]
fn datagram() {
    let understood = replay("datagram", |bytes| {
        fuzz::datagram(bytes);
        fuzz::packet(bytes)
    });
    assert!(understood >= 1, "{understood}");
}

#[test]
fn snapshot() {
    let understood = replay("snapshot", catalog::fuzz::snapshot);
    assert!(understood >= 2, "{understood}");
}

#[test]
fn catalog_message_and_sync_frames() {
    let feed = |feed: fn(&[u8])| {
        move |bytes: &[u8]| {
            feed(bytes);
            true
        }
    };
    assert!(replay("catalog_message", catalog::fuzz::delta) >= 1);
    assert!(replay("sync_frames", feed(sync::fuzz_frames)) >= 2);
}
