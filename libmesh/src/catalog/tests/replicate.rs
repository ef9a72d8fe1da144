//! What one node believes of another: signatures, rights, poison, liveness, mass events, restarts.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::catalog::log::{Delta, Head, Item};
use crate::catalog::record::{self, Key};
use crate::catalog::testing::TestNode;
use crate::catalog::{Inherited, LocalLog, Outcome, Rejection, fuzz_message, wire};
use crate::model::Liveness;

pub(super) fn test_node(n: u8, clock: &TestClock) -> TestNode {
    let clock = clock.options().clock;
    TestNode::with_clock(
        &format!("node{n}"),
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)),
        clock,
    )
}

pub(super) fn pair() -> (TestClock, TestNode, TestNode) {
    let clock = TestClock::at(1_000_000_000);
    let (a, b) = (test_node(1, &clock), test_node(2, &clock));
    (clock, a, b)
}

/// A message of `node` with one more item, signed by it.
pub(super) fn forged(node: &TestNode, key: &[u8], body: Option<&[u8]>) -> Bytes {
    let log = node.catalog.inner.state.lock().own_log.head();
    let item = Item {
        key: Bytes::copy_from_slice(key),
        version: log.head + 1,
        body: body.map(Bytes::copy_from_slice),
    };
    let delta = Delta {
        node: node.id(),
        epoch: log.epoch,
        from: log.head,
        to: log.head + 1,
        part: 0,
        parts: 1,
        items: vec![item],
    };
    wire::encode(&delta, &**node.catalog.inner.signer.as_ref().unwrap())
}

#[test]
fn what_one_node_registers_the_other_finds() {
    let (_, a, b) = pair();
    a.local().put_service(instance("web", 80)).unwrap();
    a.local()
        .put_check(check("c", Some(&instance("web", 80)), Health::Warning))
        .unwrap();
    assert!(b.catalog.service("web").is_none());
    a.send_to(&b.catalog);
    let web = b.catalog.service("web").unwrap();
    assert_eq!(
        (
            web.instances[0].node.record.name.as_str(),
            web.instances[0].health
        ),
        ("node1", Health::Warning)
    );
    assert_eq!(b.catalog.nodes().len(), 2);

    a.local().remove_service(&instance("web", 80).id);
    a.local().put_service(instance("db", 1)).unwrap();
    a.send_to(&b.catalog);
    assert!(b.catalog.service("web").is_none() && b.catalog.service("db").is_some());
    assert_eq!(
        a.catalog.heads()[0].content,
        b.catalog
            .heads()
            .iter()
            .find(|l| l.node == a.id())
            .unwrap()
            .content
    );
}

#[test]
fn records_that_arrive_before_membership_are_shown_when_it_speaks() {
    let (_, a, b) = pair();
    a.local().put_service(instance("web", 80)).unwrap();
    for message in a.catalog.messages_since(a.id(), Head::default()) {
        assert_eq!(b.catalog.apply(message), Outcome::Applied);
    }
    assert!(b.catalog.service("web").is_none());
    b.catalog.set_liveness(a.id(), Liveness::Alive);
    assert!(b.catalog.service("web").is_some());
}

#[test]
fn a_third_node_learns_it_from_the_second() {
    let (clock, a, b) = pair();
    let c = test_node(3, &clock);
    a.local().put_service(instance("web", 80)).unwrap();
    a.send_to(&b.catalog);
    a.local().put_service(instance("web", 81)).unwrap();
    a.send_to(&b.catalog);
    for message in b.catalog.messages_since(a.id(), Head::default()) {
        assert_eq!(c.catalog.apply(message), Outcome::Applied);
    }
    c.catalog.set_liveness(a.id(), Liveness::Alive);
    assert_eq!(c.catalog.service("web").unwrap().instances.len(), 2);
}

#[test]
fn a_changed_byte_is_rejected_and_changes_nothing() {
    let (_, a, b) = pair();
    a.local().put_service(instance("web", 80)).unwrap();
    b.catalog.set_liveness(a.id(), Liveness::Alive);
    let good = a.catalog.messages_since(a.id(), Head::default()).remove(0);
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 1;
        let outcome = b.catalog.apply(Bytes::from(bad));
        assert!(
            matches!(
                outcome,
                Outcome::Rejected(_) | Outcome::Pull(_) | Outcome::Staged
            ),
            "byte {at}: {outcome:?}"
        );
    }
    assert!(b.catalog.services().is_empty() && b.catalog.rejected_messages() > 0);
    assert_eq!(
        b.catalog.inner.state.lock().nodes.len(),
        2,
        "nothing is kept of what nobody signed"
    );
}

#[test]
fn nobody_speaks_for_another() {
    let (_, a, b) = pair();
    let log = b.catalog.inner.state.lock().own_log.head();
    let key = Key::Certificate.encode();
    let certificate = record::encode_chain(&b.certificate.chain());
    let item = Item {
        key,
        version: 1,
        body: Some(certificate),
    };
    let delta = Delta {
        node: b.id(),
        epoch: log.epoch,
        from: 0,
        to: 9,
        part: 0,
        parts: 1,
        items: vec![item],
    };
    let signed_by_a = wire::encode(&delta, &**a.catalog.inner.signer.as_ref().unwrap());
    let c = test_node(3, &TestClock::at(1));
    assert_eq!(
        c.catalog.apply(signed_by_a),
        Outcome::Rejected(Rejection::Signature { node: b.id() })
    );

    let with_own_certificate = Item {
        body: Some(record::encode_chain(&a.certificate.chain())),
        ..delta.items[0].clone()
    };
    let delta = Delta {
        items: vec![with_own_certificate],
        ..delta
    };
    let message = wire::encode(&delta, &**a.catalog.inner.signer.as_ref().unwrap());
    assert!(matches!(
        c.catalog.apply(message),
        Outcome::Rejected(Rejection::Certificate { .. })
    ));
}

#[test]
fn an_expired_certificate_is_not_believed() {
    let (clock, mut a, b) = pair();
    a.certificate.not_after = 2_000;
    a.publish().unwrap();
    a.send_to(&b.catalog);
    clock.advance(Duration::from_secs(1_001));
    let late = forged(&a, b"x", None);
    assert_eq!(
        b.catalog.apply(late),
        Outcome::Rejected(Rejection::Expired { node: a.id() })
    );
    a.certificate.not_after = 9_000;
    a.publish().unwrap();
    a.send_to(&b.catalog);
}

#[test]
fn publish_rights_are_checked_at_apply_and_again_with_a_new_certificate() {
    let (_, mut a, b) = pair();
    a.local().put_service(instance("web", 80)).unwrap();
    a.local().put_service(instance("db", 1)).unwrap();
    a.send_to(&b.catalog);
    assert_eq!(b.catalog.services().len(), 2);

    // Less rights: what was believed is believed no longer.
    a.certificate.publish = vec!["web".to_owned()];
    a.publish().unwrap();
    let refused = a.local().put_service(instance("db", 2)).unwrap_err();
    assert_eq!(
        refused,
        crate::catalog::LocalError::NotPermitted {
            service: service("db")
        }
    );
    a.send_to(&b.catalog);
    assert!(b.catalog.service("db").is_none() && b.catalog.service("web").is_some());
    assert_eq!(b.catalog.quarantined().len(), 1);
    assert!(
        b.catalog.quarantined()[0]
            .reason
            .contains("no right to publish service db")
    );

    // More rights: what was quarantined is shown.
    a.certificate.publish = vec!["web".to_owned(), "db".to_owned()];
    a.publish().unwrap();
    a.send_to(&b.catalog);
    assert!(b.catalog.service("db").is_some() && b.catalog.quarantined().is_empty());

    // A node that does not check itself is not believed either.
    let key = Key::Instance(instance("pay", 1).id.as_str()).encode();
    let body = record::encode_instance(&instance("pay", 1));
    assert_eq!(
        b.catalog.apply(forged(&a, &key, Some(&body))),
        Outcome::Applied
    );
    assert!(b.catalog.service("pay").is_none());
    assert_eq!(b.catalog.quarantined().len(), 1);
}

#[test]
fn one_poison_record_stops_nobody() {
    let (_, a, b) = pair();
    a.local().put_service(instance("web", 80)).unwrap();
    a.send_to(&b.catalog);
    let poison: [(&[u8], &[u8]); 4] = [
        (&[9, 9, 9], b"an unknown kind of record"),
        (
            &Key::Instance(instance("x", 1).id.as_str()).encode(),
            b"\xff\xff\xff\xff",
        ),
        (&Key::Check("x").encode(), b"\xff"),
        (
            &Key::Instance(instance("web", 80).id.as_str()).encode(),
            b"bad",
        ),
    ];
    let head = a.catalog.inner.state.lock().own_log.head();
    let items: Vec<_> = poison
        .iter()
        .zip(head.head + 1..)
        .map(|((key, body), version)| Item {
            key: Bytes::copy_from_slice(key),
            version,
            body: Some(Bytes::copy_from_slice(body)),
        })
        .chain(std::iter::once(Item {
            key: Key::Instance(instance("good", 1).id.as_str()).encode(),
            version: head.head + 5,
            body: Some(record::encode_instance(&instance("good", 1))),
        }))
        .collect();
    let delta = Delta {
        node: a.id(),
        epoch: head.epoch,
        from: head.head,
        to: head.head + 5,
        part: 0,
        parts: 1,
        items,
    };
    let message = wire::encode(&delta, &**a.catalog.inner.signer.as_ref().unwrap());
    assert_eq!(b.catalog.apply(message), Outcome::Applied);
    assert!(
        b.catalog.service("good").is_some(),
        "what comes with poison is read"
    );
    assert!(
        b.catalog.service("web").is_none(),
        "its owner no longer says what it said before"
    );
    assert_eq!(b.catalog.quarantined().len(), 4);
    // It is passed on like everything else, so that all replicas are equal.
    let (_, _, c) = pair();
    for message in b.catalog.messages_since(a.id(), Head::default()) {
        assert_eq!(c.catalog.apply(message), Outcome::Applied);
    }
    assert_eq!(c.catalog.quarantined().len(), 4);
}

#[test]
fn node_names_are_bound_to_their_certificate() {
    let (_, mut a, b) = pair();
    a.record.name = NodeName::parse("node2").unwrap();
    a.publish().unwrap();
    a.send_to(&b.catalog);
    assert!(b.catalog.node_by_id(&a.id()).is_none());
    assert!(
        b.catalog.quarantined()[0]
            .reason
            .contains("describes itself as node2")
    );
}

#[test]
fn what_records_have_in_common_is_in_a_message_once() {
    let (_, a, _) = pair();
    let long = "x".repeat(100);
    for port in 0..100 {
        let mut web = instance("web", port);
        web.tags = vec![Arc::from(long.as_str())];
        a.local().put_service(web.clone()).unwrap();
        let id = format!("service:{}", web.id);
        let passing = check(&id, Some(&web), Health::Passing);
        a.local().put_check(passing).unwrap();
    }
    let messages = a.catalog.messages_since(a.id(), Head::default());
    let bytes: usize = messages.iter().map(Bytes::len).sum();
    assert!(bytes < 7_000, "{bytes}");
}

#[test]
fn an_unchanged_snapshot_wakes_nobody() {
    let (_, a, b) = pair();
    a.local().put_service(instance("web", 80)).unwrap();
    a.send_to(&b.catalog);
    let before = b.catalog.service("web").unwrap();
    // Restarted after a crash: the same records in a new epoch.
    let restarted = Catalog::restore(a.id(), options_of(&a), &a.catalog.save(false)).unwrap();
    assert!(restarted.heads()[0].at.epoch > a.catalog.heads()[0].at.epoch);
    for message in restarted.messages_since(a.id(), a.catalog.heads()[0].at) {
        assert_eq!(b.catalog.apply(message), Outcome::Applied);
    }
    assert!(Arc::ptr_eq(&before, &b.catalog.service("web").unwrap()));
}

pub(super) fn options_of(node: &TestNode) -> Options {
    let inner = &node.catalog.inner;
    Options {
        verifier: inner.verifier.clone(),
        signer: inner.signer.clone(),
        clock: Arc::clone(&inner.clock),
        quota: inner.quota,
    }
}

#[test]
fn a_clean_stop_keeps_the_epoch_and_a_lost_state_outranks_it() {
    let (clock, a, b) = pair();
    a.local().put_service(instance("web", 80)).unwrap();
    a.local().put_service(instance("old", 1)).unwrap();
    a.send_to(&b.catalog);
    let at = a.catalog.heads()[0].at;
    let saved = a.catalog.save(true);
    let again = Catalog::restore(a.id(), options_of(&a), &saved).unwrap();
    assert_eq!(again.heads()[0].at, at);
    assert!(again.service("web").is_some());
    assert!(again.messages_since(a.id(), at).is_empty());

    assert!(Catalog::restore(b.id(), options_of(&b), &saved).is_err());
    assert!(Catalog::restore(a.id(), options_of(&a), &saved[..saved.len() - 1]).is_err());

    // All lost, and the clock is wrong: the peers' copy tells, and a greater epoch follows.
    clock.0.store(5, Ordering::SeqCst);
    let lost = Catalog::open(a.id(), options_of(&a));
    lost.local()
        .set_certificate(&a.certificate.chain())
        .unwrap();
    lost.local().put_node(a.record.clone()).unwrap();
    lost.local().put_service(instance("web", 80)).unwrap();
    assert!(lost.heads()[0].at < at);
    let mut own_head = lost.local().watch();
    own_head.mark_unchanged();
    for message in b
        .catalog
        .messages_since(a.id(), lost.lacks(&a.id(), at).unwrap())
    {
        lost.apply(message);
    }
    assert!(lost.heads()[0].at > at && own_head.has_changed().unwrap());
    for message in lost.messages_since(a.id(), at) {
        assert_eq!(b.catalog.apply(message), Outcome::Applied);
    }
    assert!(b.catalog.service("web").is_some() && b.catalog.service("old").is_none());
}

#[test]
fn what_nobody_says_again_after_a_restart_is_settled() {
    let (_, a, _) = pair();
    let (web, old, late) = (instance("web", 80), instance("old", 1), instance("late", 2));
    for it in [&web, &old, &late] {
        a.local().put_service(it.clone()).unwrap();
        let id = format!("c-{}", it.id);
        a.local()
            .put_check(check(&id, Some(it), Health::Passing))
            .unwrap();
    }
    let second = check("second", Some(&web), Health::Passing);
    a.local().put_check(second).unwrap();
    for id in ["node", "maintenance"] {
        a.local()
            .put_check(check(id, None, Health::Passing))
            .unwrap();
    }
    let again = Catalog::restore(a.id(), options_of(&a), &a.catalog.save(true)).unwrap();
    let local = again.local();
    local.put_service(web.clone()).unwrap();
    local
        .put_check(check("c-web-80", Some(&web), Health::Passing))
        .unwrap();
    let left = |local: &LocalLog| {
        let services = local
            .services()
            .iter()
            .map(|i| i.service.to_string())
            .collect::<Vec<_>>();
        let checks = local
            .checks()
            .iter()
            .map(|c| c.id.to_string())
            .collect::<Vec<_>>();
        (services.join(" "), checks.join(" "))
    };
    let expect = |services: &str, checks: &str| (services.to_owned(), checks.to_owned());
    local.settle(|record| match record {
        Inherited::Instance(instance) => instance.id == late.id,
        Inherited::Check(check) => &*check.id == "maintenance",
    });
    assert_eq!(
        left(&local),
        expect("late web", "c-late-2 c-web-80 maintenance")
    );
    local.settle(|_| false);
    assert_eq!(left(&local), expect("web", "c-web-80"));
}

#[test]
fn a_down_node_is_hidden_returns_at_once_and_is_reaped_after_72_h() {
    let (clock, a, b) = pair();
    a.local().put_service(instance("web", 80)).unwrap();
    a.send_to(&b.catalog);
    b.catalog.set_liveness(a.id(), Liveness::Down);
    assert!(b.catalog.service("web").is_none());
    clock.advance(Duration::from_secs(72 * 3600));
    b.catalog.tick();
    b.catalog.set_liveness(a.id(), Liveness::Alive);
    assert!(b.catalog.service("web").is_some(), "kept for its return");

    b.catalog.set_liveness(a.id(), Liveness::Down);
    clock.advance(Duration::from_secs(72 * 3600 + 60));
    b.catalog.tick();
    assert!(b.catalog.node("node1").is_none());
    assert_eq!(
        b.catalog.lacks(&a.id(), a.catalog.heads()[0].at),
        None,
        "not asked for while it is away"
    );
    b.catalog.set_liveness(a.id(), Liveness::Alive);
    assert_eq!(
        b.catalog.lacks(&a.id(), a.catalog.heads()[0].at),
        Some(Head::default())
    );
    a.send_to(&b.catalog);
    assert!(b.catalog.service("web").is_some());
}

#[test]
fn many_down_at_once_are_kept_as_stale() {
    let clock = TestClock::at(1_000_000_000);
    let b = test_node(1, &clock);
    let others: Vec<_> = (2..=10).map(|n| test_node(n, &clock)).collect();
    for other in &others {
        other.local().put_service(instance("web", 80)).unwrap();
        other.send_to(&b.catalog);
    }
    b.catalog.set_liveness(others[0].id(), Liveness::Down);
    b.catalog.set_liveness(others[1].id(), Liveness::Down);
    assert_eq!(b.catalog.service("web").unwrap().instances.len(), 7);
    clock.advance(Duration::from_secs(20));
    b.catalog.set_liveness(others[2].id(), Liveness::Down);
    let web = b.catalog.service("web").unwrap();
    assert_eq!(web.instances.len(), 9);
    assert_eq!(
        web.instances
            .iter()
            .filter(|instance| instance.stale)
            .count(),
        3
    );
    assert_eq!(web.usable().count(), 6);
    let alarms = b.catalog.mass_events();
    assert_eq!((alarms.len(), alarms[0].nodes.len()), (1, 3));
    assert_eq!((&*alarms[0].zone, alarms[0].since), ("dc1", 1_000_000_000));

    // Most are back: the one that is really gone is hidden.
    b.catalog.set_liveness(others[0].id(), Liveness::Alive);
    let web = b.catalog.service("web").unwrap();
    assert_eq!(web.instances.len(), 7);
    assert!(web.instances.iter().all(|instance| !instance.stale));
    assert!(b.catalog.mass_events().is_empty());
    b.catalog.set_liveness(others[1].id(), Liveness::Alive);
    assert_eq!(b.catalog.service("web").unwrap().instances.len(), 8);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzz_message(&bytes);
        let mut framed = vec![2; 65];
        framed.extend(bytes);
        fuzz_message(&framed);
    }

    #[test]
    fn damaged_messages_are_survived(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut message = SAMPLE.with(Vec::clone);
        for (at, byte) in flips {
            let at = at.index(message.len());
            message[at] = byte;
        }
        fuzz_message(&message);
    }
}

thread_local! {
    static SAMPLE: Vec<u8> = {
        let (_, a, _) = pair();
        a.local().put_service(instance("web", 80)).unwrap();
        a.local().put_check(check("c", None, Health::Passing)).unwrap();
        a.catalog.messages_since(a.id(), Head::default()).remove(0).to_vec()
    };
}
