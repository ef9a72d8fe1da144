//! Nodes that are no members: shown while somebody speaks for them, whatever membership thinks.

use std::time::Duration;

use super::replicate::{pair, test_node};
use super::*;
use crate::model::{External, Liveness};

#[test]
fn what_is_no_member_is_alive_without_membership() {
    let (clock, mut ext, b) = pair();
    ext.certificate.external = true;
    ext.record.external = Some(Box::new(External {
        uuid: Some([7; 16]),
        tagged_addresses: [(Arc::from("wan"), Arc::from("198.51.100.1"))].into(),
    }));
    ext.publish().unwrap();
    ext.local().put_service(instance("db", 5432)).unwrap();
    let told = |b: &Catalog| {
        for message in ext.catalog.messages_since(ext.id(), Default::default()) {
            b.apply(message);
        }
    };
    told(&b.catalog);
    let shown = b.catalog.service("db").expect("nobody said that it is up");
    assert_eq!(shown.instances[0].node.liveness, Liveness::Alive);
    let record = &b.catalog.node("node1").unwrap().record;
    assert_eq!(record.external, ext.record.external);
    assert!(!record.is_member());

    // Membership has no say, and time alone changes nothing.
    b.catalog.set_liveness(ext.id(), Liveness::Down);
    clock.advance(Duration::from_secs(100 * 3600));
    b.catalog.tick();
    assert!(b.catalog.service("db").is_some());
    // Its zone is no larger for it: three of 19 members are more than 15 %, three of 20 would not be.
    let nodes: Vec<_> = (3..=20).map(|n| test_node(n, &clock)).collect();
    for node in &nodes {
        node.local().put_service(instance("web", 80)).unwrap();
        node.send_to(&b.catalog);
    }
    b.publish().unwrap();
    for node in &nodes[..3] {
        b.catalog.set_liveness(node.id(), Liveness::Down);
    }
    assert_eq!(b.catalog.mass_events()[0].nodes.len(), 3);

    ext.local().remove_service(&instance("db", 5432).id);
    ext.local().remove_node();
    told(&b.catalog);
    assert!(b.catalog.service("db").is_none());
    assert!(b.catalog.node("node1").is_none());
    assert!(
        b.catalog
            .nodes()
            .iter()
            .all(|node| node.record.id != ext.id())
    );

    // It may come back.
    ext.publish().unwrap();
    ext.local().put_service(instance("db", 5432)).unwrap();
    told(&b.catalog);
    assert!(b.catalog.service("db").is_some() && b.catalog.node("node1").is_some());
}

#[test]
fn record_and_certificate_have_to_agree() {
    let (_, mut claims, b) = pair();
    claims.record.external = Some(Box::default());
    claims.publish().unwrap();
    claims.local().put_service(instance("db", 5432)).unwrap();
    claims.send_to(&b.catalog);
    assert!(b.catalog.node("node1").is_none(), "a member's certificate");
    assert!(b.catalog.service("db").is_none());
    let reason = &b.catalog.quarantined()[0].reason;
    assert!(reason.contains("is for a member"), "{reason}");

    let (_, mut hides, b) = pair();
    hides.certificate.external = true;
    hides.publish().unwrap();
    hides.send_to(&b.catalog);
    assert!(
        b.catalog.node("node1").is_none(),
        "says that it is a member"
    );
}
