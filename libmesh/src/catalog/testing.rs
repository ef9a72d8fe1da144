//! Nodes for tests and benchmarks, without certificates and network (feature `sim`).
//!
//! A [`TestNode`] is a real [`Catalog`] with a real key; only its "certificate" is a plain list of what a real one
//! says, and the [`TestVerifier`] believes every such list.

use std::net::IpAddr;
use std::sync::Arc;

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};

use super::log::Head;
use super::{Catalog, Clock, LocalError, LocalLog, Options, Outcome, VerifiedNode, Verifier};
use crate::model::{Liveness, NodeId, NodeName, NodeRecord, ServiceName};

/// What stands for a certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TestCertificate {
    /// Raw Ed25519 public key.
    pub public_key: [u8; 32],
    /// Node name.
    pub name: NodeName,
    /// Services that may be published; `*` = all.
    pub publish: Vec<String>,
    /// It is for a node that is no member.
    pub external: bool,
    /// Unix seconds.
    pub not_after: u64,
}

impl TestCertificate {
    /// As a chain for [`LocalLog::set_certificate`].
    pub fn chain(&self) -> Vec<Vec<u8>> {
        vec![postcard::to_stdvec(self).expect("plain data always encodes")]
    }
}

/// Believes every [`TestCertificate`].
#[derive(Debug, Clone, Copy)]
pub struct TestVerifier;

impl Verifier for TestVerifier {
    fn verify(&self, chain: &[Vec<u8>]) -> Result<VerifiedNode, String> {
        let certificate: TestCertificate =
            postcard::from_bytes(&chain[0]).map_err(|error| error.to_string())?;
        let publish = certificate.publish;
        Ok(VerifiedNode {
            id: NodeId::from_public_key(&certificate.public_key),
            name: certificate.name,
            public_key: certificate.public_key,
            external: certificate.external,
            not_after: certificate.not_after,
            may_publish: Arc::new(move |service: &ServiceName| {
                publish
                    .iter()
                    .any(|pattern| pattern == "*" || service == pattern.as_str())
            }),
        })
    }
}

/// A node with its own catalog.
#[derive(Debug)]
pub struct TestNode {
    /// Its catalog.
    pub catalog: Catalog,
    /// What stands for its certificate; published by [`new`](Self::new).
    pub certificate: TestCertificate,
    /// What it says about itself; published by [`new`](Self::new).
    pub record: NodeRecord,
}

impl TestNode {
    /// A node that may publish everything, by the system's clock.
    ///
    /// # Panics
    /// When `name` is no node name.
    pub fn new(name: &str, address: IpAddr) -> Self {
        Self::with_clock(name, address, Options::default().clock)
    }

    /// The same, by another clock.
    ///
    /// # Panics
    /// When `name` is no node name.
    pub fn with_clock(name: &str, address: IpAddr, clock: Clock) -> Self {
        let name = NodeName::parse(name).expect("a node name");
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .expect("the system has random numbers");
        let key = Ed25519KeyPair::from_pkcs8(key.as_ref()).expect("just made");
        let mut public_key = [0; 32];
        public_key.copy_from_slice(key.public_key().as_ref());
        let id = NodeId::from_public_key(&public_key);
        let certificate = TestCertificate {
            public_key,
            name: name.clone(),
            publish: vec!["*".to_owned()],
            external: false,
            not_after: u64::MAX,
        };
        let options = Options {
            verifier: Some(Arc::new(TestVerifier)),
            signer: Some(Arc::new(key)),
            clock,
            ..Options::default()
        };
        let catalog = Catalog::open(id, options);
        let record = NodeRecord::new(id, name, address, 8301);
        let node = Self {
            catalog,
            certificate,
            record,
        };
        node.publish().expect("well formed");
        node
    }

    /// Publishes the certificate and the node record anew.
    ///
    /// # Errors
    /// [`LocalError`].
    pub fn publish(&self) -> Result<(), LocalError> {
        self.local().set_certificate(&self.certificate.chain())?;
        self.local().put_node(self.record.clone())
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.catalog.own()
    }

    /// Write access to its records.
    pub fn local(&self) -> LocalLog {
        self.catalog.local()
    }

    /// Tells `other` everything, as an alive node.
    ///
    /// # Panics
    /// When `other` does not believe it.
    pub fn send_to(&self, other: &Catalog) {
        other.set_liveness(self.id(), Liveness::Alive);
        let mut have = other
            .heads()
            .iter()
            .find(|log| log.node == self.id())
            .map_or(Head::default(), |log| log.at);
        for _ in 0..2 {
            for message in self.catalog.messages_since(self.id(), have) {
                match other.apply(message) {
                    Outcome::Rejected(rejection) => panic!("{rejection}"),
                    Outcome::Pull(from) => have = from,
                    Outcome::Applied | Outcome::Known | Outcome::Staged => {}
                }
            }
        }
    }
}
