//! Revoked certificates: who is hidden, who comes back.

use std::collections::HashSet;

use parking_lot::Mutex;

use super::replicate::{pair, test_node};
use super::*;
use crate::catalog::log::Head;
use crate::catalog::testing::{TestNode, TestVerifier};
use crate::catalog::{Outcome, VerifiedNode, Verifier};
use crate::model::Liveness;

/// Believes all but some chains.
#[derive(Default)]
struct Picky(Mutex<HashSet<Vec<Vec<u8>>>>);

impl Verifier for Picky {
    fn verify(&self, chain: &[Vec<u8>]) -> Result<VerifiedNode, String> {
        if self.0.lock().contains(chain) {
            return Err("revoked".to_owned());
        }
        TestVerifier.verify(chain)
    }
}

fn picky(clock: &TestClock) -> (Arc<Picky>, Catalog) {
    let verifier = Arc::new(Picky::default());
    let options = Options {
        verifier: Some(Arc::clone(&verifier) as Arc<dyn Verifier>),
        ..clock.options()
    };
    (verifier, Catalog::open(NodeId([9; 16]), options))
}

fn is_shown(catalog: &Catalog, node: &TestNode) -> bool {
    let listed = catalog.nodes().iter().any(|n| n.record.id == node.id());
    let by_ip = catalog.node_by_ip(node.record.address).is_some();
    let by_id = catalog.node_by_id(&node.id()).is_some();
    let instances = catalog.service("web").is_some_and(|view| {
        let mut nodes = view.instances.iter().map(|i| i.node.record.id);
        nodes.any(|id| id == node.id())
    });
    assert_eq!([listed, by_ip, instances], [by_id; 3]);
    by_id
}

#[test]
fn a_revoked_node_is_hidden_until_the_revocation_goes() {
    let (clock, a, b) = pair();
    let (verifier, catalog) = picky(&clock);
    for node in [&a, &b] {
        node.local().put_service(instance("web", 80)).unwrap();
        node.send_to(&catalog);
    }
    assert!(catalog.reverify().is_empty());
    let revision = catalog.service_revision("web");

    verifier.0.lock().insert(a.certificate.chain());
    assert_eq!(catalog.reverify(), [a.id()]);
    assert!(!is_shown(&catalog, &a) && is_shown(&catalog, &b));
    assert!(catalog.service_revision("web") > revision);
    // Neither its liveness nor what it says brings it back, and nobody is told of it.
    catalog.set_liveness(a.id(), Liveness::Down);
    catalog.set_liveness(a.id(), Liveness::Alive);
    a.local().put_service(instance("web", 81)).unwrap();
    let news = a.catalog.messages_since(a.id(), Head::default());
    let news = news.last().unwrap().clone();
    assert!(matches!(catalog.apply(news), Outcome::Rejected(_)));
    assert!(!is_shown(&catalog, &a));
    assert!(catalog.heads().iter().all(|log| log.node != a.id()));
    assert!(catalog.messages_since(a.id(), Head::default()).is_empty());
    assert_eq!(catalog.reverify(), [a.id()]);

    verifier.0.lock().clear();
    let revision = catalog.service_revision("web");
    assert!(catalog.reverify().is_empty());
    assert!(is_shown(&catalog, &a));
    assert_eq!(catalog.instances_on(&a.id()).len(), 1);
    assert!(catalog.service_revision("web") > revision);
    a.send_to(&catalog);
    assert_eq!(catalog.instances_on(&a.id()).len(), 2);
}

#[test]
fn a_revoked_node_comes_back_with_another_certificate() {
    let (clock, mut a, _) = pair();
    let (verifier, catalog) = picky(&clock);
    a.local().put_service(instance("web", 80)).unwrap();
    a.send_to(&catalog);
    verifier.0.lock().insert(a.certificate.chain());
    catalog.reverify();
    assert!(!is_shown(&catalog, &a));

    a.certificate.not_after -= 1;
    a.publish().unwrap();
    a.send_to(&catalog);
    assert!(is_shown(&catalog, &a));
    assert!(catalog.reverify().is_empty());
}

#[test]
fn a_certificate_that_only_expired_hides_nobody() {
    let clock = TestClock::at(1_000_000_000);
    let mut a = test_node(1, &clock);
    let (verifier, catalog) = picky(&clock);
    a.certificate.not_after = clock.now() / 1_000_000;
    a.publish().unwrap();
    a.local().put_service(instance("web", 80)).unwrap();
    a.send_to(&catalog);
    verifier.0.lock().insert(a.certificate.chain());
    clock.advance(std::time::Duration::from_secs(2));
    assert!(catalog.reverify().is_empty());
    assert!(is_shown(&catalog, &a));
}
