//! Entry points for fuzzing: the decoders of what nodes say, and what follows on them. They never panic; what decodes
//! encodes and decodes to the same; what one catalog took in, another takes in from it.

use std::sync::Arc;

use bytes::Bytes;
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::log::{Delta, Head, Item};
use super::record::{self, Key};
use super::verify::{VerifiedNode, Verifier};
use super::wire::{self, Message};
use super::{Catalog, LogHead, Options};
use crate::model::{Liveness, NodeId, NodeName};

/// What stands before the body of a message: the format and a signature.
const HEADER: usize = 65;

/// One message; whether it is one.
pub fn delta(bytes: &[u8]) -> bool {
    super::fuzz_message(bytes);
    let Ok(message) = Message::decode(Bytes::copy_from_slice(bytes)) else {
        return false;
    };
    let again = wire::encode(&message.delta(), &Speaker::new().key);
    let again = Message::decode(again).expect("what was decoded encodes");
    assert_eq!(again.delta(), message.delta());
    true
}

/// What a node says one after another (each a length in two octets and the body of a message, signed here on its
/// behalf), and a log as it was saved; whether there is anything of either.
pub fn snapshot(bytes: &[u8]) -> bool {
    let speaker = Speaker::new();
    let restored = Catalog::restore(speaker.id, Options::default(), bytes);
    if let Ok(catalog) = &restored {
        let again = Catalog::restore(speaker.id, Options::default(), &catalog.save(true));
        assert_eq!(again.expect("its own form").heads(), catalog.heads());
    }

    let (near, far) = (speaker.listener(1), speaker.listener(2));
    let mut taken = false;
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (body, after) = after.split_at(length);
        rest = after;
        let raw = [&[wire::FORMAT; HEADER][..], body].concat();
        if let Ok(message) = Message::decode(raw.into()) {
            taken = true;
            speaker.says(&near, message.delta());
        }
    }
    for message in near.messages_since(speaker.id, Head::default()) {
        far.apply(message);
    }
    assert_eq!(speaker.head_in(&far), speaker.head_in(&near));
    taken || restored.is_ok()
}

/// Whose saved log [`snapshot`] takes.
pub fn speaker() -> NodeId {
    Speaker::new().id
}

/// A node with a fixed key, whose certificate is believed.
struct Speaker {
    key: Ed25519KeyPair,
    id: NodeId,
}

impl Speaker {
    fn new() -> Self {
        let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed of 32 bytes");
        let id = NodeId::from_public_key(key.public_key().as_ref());
        Self { key, id }
    }

    fn says(&self, catalog: &Catalog, delta: Delta) {
        let delta = Delta {
            node: self.id,
            ..delta
        };
        catalog.apply(wire::encode(&delta, &self.key));
    }

    /// A catalog that has this node's certificate.
    fn listener(&self, own: u8) -> Catalog {
        let mut public_key = [0; 32];
        public_key.copy_from_slice(self.key.public_key().as_ref());
        let verifier = Believes(VerifiedNode {
            id: self.id,
            name: NodeName::parse("node").expect("well formed"),
            public_key,
            external: false,
            not_after: u64::MAX,
            may_publish: Arc::new(|_| true),
        });
        let options = Options {
            verifier: Some(Arc::new(verifier)),
            signer: None,
            clock: Arc::new(|| 1),
            ..Options::default()
        };
        let catalog = Catalog::open(NodeId([own; 16]), options);
        catalog.set_liveness(self.id, Liveness::Alive);
        let certificate = Item {
            key: Key::Certificate.encode(),
            version: 1,
            body: Some(record::encode_chain(&[vec![0; 4]])),
        };
        let first = Delta {
            node: self.id,
            epoch: 1,
            from: 0,
            to: 1,
            part: 0,
            parts: 1,
            items: vec![certificate],
        };
        self.says(&catalog, first);
        assert!(
            self.head_in(&catalog).is_some(),
            "the certificate is believed"
        );
        catalog
    }

    fn head_in(&self, catalog: &Catalog) -> Option<LogHead> {
        catalog.heads().into_iter().find(|log| log.node == self.id)
    }
}

struct Believes(VerifiedNode);

impl Verifier for Believes {
    fn verify(&self, _chain: &[Vec<u8>]) -> Result<VerifiedNode, String> {
        Ok(self.0.clone())
    }
}
