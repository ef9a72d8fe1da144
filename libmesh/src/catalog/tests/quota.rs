//! What is refused: too much, forged, truncated, of another version; and that it stops nobody.

use std::time::Duration;

use bytes::Bytes;

use super::replicate::{forged, pair, test_node};
use super::*;
use crate::catalog::log::Head;
use crate::catalog::record::{self, Key};
use crate::catalog::testing::{TestNode, TestVerifier};
use crate::catalog::wire::WireError;
use crate::catalog::{Limit, LocalError, Outcome, Quota, Rejection, VerifiedNode, Verifier};
use crate::model::Liveness;

fn observer(clock: &TestClock, quota: Quota) -> Catalog {
    let options = Options {
        verifier: Some(Arc::new(TestVerifier)),
        quota,
        ..clock.options()
    };
    Catalog::open(NodeId([9; 16]), options)
}

fn send(node: &TestNode, to: &Catalog) -> Vec<Outcome> {
    let heads = to.heads();
    let known = heads.iter().find(|log| log.node == node.id());
    let have = known.map_or(Head::default(), |log| log.at);
    let messages = node.catalog.messages_since(node.id(), have);
    messages
        .into_iter()
        .map(|message| to.apply(message))
        .collect()
}

fn refused(node: &TestNode, limit: Limit) -> Outcome {
    let node = node.id();
    Outcome::Rejected(Rejection::Quota { node, limit })
}

#[test]
fn the_own_log_refuses_what_is_too_much_and_says_which_limit() {
    let clock = TestClock::at(1_000_000_000);
    let quota = Quota {
        records: 5,
        record_bytes: 300,
        changes_per_second: 10,
        burst: 20,
        ..Quota::default()
    };
    let options = Options {
        quota,
        ..clock.options()
    };
    let local = Catalog::open(NodeId([1; 16]), options).local();
    local.put_node(node(1)).unwrap();
    for port in 1..=3 {
        local.put_service(instance("web", port)).unwrap();
    }
    let web = instance("web", 1);
    local
        .put_check(check("c", Some(&web), Health::Passing))
        .unwrap();
    let error = |limit, most| Err(LocalError::Quota { limit, most });
    assert_eq!(
        local.put_service(instance("web", 4)),
        error(Limit::Records, 5)
    );
    let mut long = instance("web", 3);
    long.meta.insert("a".into(), "x".repeat(300).into());
    assert_eq!(local.put_service(long), error(Limit::RecordBytes, 300));
    assert!(local.remove_service(&instance("web", 3).id));
    local.put_service(instance("web", 4)).unwrap();

    let flip = |n: u32| {
        let mut web = instance("web", 1);
        web.weights.warning = n as u16;
        local.put_service(web)
    };
    let mut taken = 0;
    while flip(taken).is_ok() {
        taken += 1;
    }
    assert!((10..=20).contains(&taken), "{taken}");
    assert_eq!(flip(taken), error(Limit::Rate, 10));
    local
        .put_check(check("c", Some(&web), Health::Critical))
        .expect("bad news is never held back");
    assert!(
        local.remove_service(&instance("web", 2).id),
        "taking away is never refused"
    );
    clock.advance(Duration::from_secs(1));
    flip(taken).unwrap();
}

#[test]
fn a_node_with_too_many_records_is_refused_until_it_has_fewer() {
    let (clock, a, _) = pair();
    let quota = Quota {
        records: 10,
        ..Quota::default()
    };
    let c = observer(&clock, quota);
    c.set_liveness(a.id(), Liveness::Alive);
    for port in 0..8 {
        a.local().put_service(instance("web", port)).unwrap();
    }
    assert_eq!(send(&a, &c), [Outcome::Applied]);
    for port in 8..20 {
        a.local().put_service(instance("web", port)).unwrap();
    }
    assert_eq!(send(&a, &c), [refused(&a, Limit::Records)]);
    assert_eq!(
        c.service("web").unwrap().instances.len(),
        8,
        "what was good stays"
    );
    let theirs = a.catalog.own_head();
    assert_eq!(
        c.lacks(&a.id(), theirs),
        None,
        "not asked for over and over"
    );

    for port in 0..15 {
        a.local().remove_service(&instance("web", port).id);
    }
    clock.advance(Duration::from_secs(31));
    let have = c.lacks(&a.id(), a.catalog.own_head()).unwrap();
    assert_eq!(have, Head::default(), "the whole map tells");
    for message in a.catalog.messages_since(a.id(), have) {
        assert_eq!(c.apply(message), Outcome::Applied);
    }
    assert_eq!(c.service("web").unwrap().instances.len(), 5);
    assert_eq!(c.refusals().quota, 1);
}

#[test]
fn a_node_that_changes_too_fast_is_refused_until_it_slows_down() {
    let (clock, a, _) = pair();
    let quota = Quota {
        changes_per_second: 5,
        burst: 10,
        ..Quota::default()
    };
    let c = observer(&clock, quota);
    c.set_liveness(a.id(), Liveness::Alive);
    let mut outcomes = Vec::new();
    for n in 0..40u16 {
        let mut web = instance("web", 1);
        web.weights.warning = n;
        a.local().put_service(web).unwrap();
        outcomes.extend(send(&a, &c));
    }
    let applied = outcomes
        .iter()
        .filter(|outcome| **outcome == Outcome::Applied);
    assert_eq!(applied.count(), 19, "others may do twice as much");
    assert_eq!(outcomes.last(), Some(&refused(&a, Limit::Rate)));
    assert_eq!(c.lacks(&a.id(), a.catalog.own_head()), None);

    clock.advance(Duration::from_secs(1));
    assert!(c.lacks(&a.id(), a.catalog.own_head()).is_some());
    assert_eq!(send(&a, &c), [Outcome::Applied]);
    let web = c.service("web").unwrap();
    assert_eq!(web.instances[0].instance.weights.warning, 39);
}

#[test]
fn a_record_that_is_too_long_is_poison_and_the_others_are_not() {
    let (clock, a, _) = pair();
    let quota = Quota {
        record_bytes: 300,
        ..Quota::default()
    };
    let c = observer(&clock, quota);
    c.set_liveness(a.id(), Liveness::Alive);
    let mut long = instance("web", 1);
    long.meta.insert("a".into(), "x".repeat(300).into());
    a.local().put_service(long).unwrap();
    a.local().put_service(instance("web", 2)).unwrap();
    assert_eq!(send(&a, &c), [Outcome::Applied]);
    assert_eq!(c.service("web").unwrap().instances.len(), 1);
    assert_eq!((c.quarantined_records(), c.quarantined().len()), (1, 1));
    a.local().remove_service(&instance("web", 1).id);
    assert_eq!(send(&a, &c), [Outcome::Applied]);
    assert_eq!((c.quarantined_records(), c.quarantined().len()), (0, 0));
}

#[test]
fn reasons_of_poison_are_bounded_and_its_count_is_not() {
    let (_, a, b) = pair();
    b.catalog.set_liveness(a.id(), Liveness::Alive);
    a.send_to(&b.catalog);
    let at = a.catalog.own_head();
    let items = (1..=500u64).map(|n| crate::catalog::log::Item {
        key: Key::Instance(&format!("bad-{n}")).encode(),
        version: at.head + n,
        body: Some(Bytes::from_static(b"\xff")),
    });
    let delta = crate::catalog::log::Delta {
        node: a.id(),
        epoch: at.epoch,
        from: at.head,
        to: at.head + 500,
        part: 0,
        parts: 1,
        items: items.collect(),
    };
    let signer = a.catalog.inner.signer.clone().unwrap();
    let message = crate::catalog::wire::encode(&delta, &*signer);
    assert_eq!(b.catalog.apply(message), Outcome::Applied);
    assert_eq!(b.catalog.quarantined_records(), 500);
    assert_eq!(b.catalog.quarantined().len(), 64);
}

/// Fails in a way that no verifier should.
struct Fragile;

impl Verifier for Fragile {
    fn verify(&self, chain: &[Vec<u8>]) -> Result<VerifiedNode, String> {
        let verified = TestVerifier.verify(chain)?;
        Ok(VerifiedNode {
            may_publish: Arc::new(|service: &ServiceName| {
                assert!(*service != "bomb", "boom");
                true
            }),
            ..verified
        })
    }
}

#[test]
fn a_panic_over_one_record_costs_that_record_only() {
    let (clock, a, _) = pair();
    let options = Options {
        verifier: Some(Arc::new(Fragile)),
        ..clock.options()
    };
    let c = Catalog::open(NodeId([9; 16]), options);
    c.set_liveness(a.id(), Liveness::Alive);
    for name in ["web", "bomb", "db"] {
        a.local().put_service(instance(name, 1)).unwrap();
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let outcomes = send(&a, &c);
    let reasons = c.quarantined();
    std::panic::set_hook(hook);
    assert_eq!(outcomes, [Outcome::Applied]);
    assert!(c.service("web").is_some() && c.service("db").is_some());
    assert!(c.service("bomb").is_none());
    assert_eq!((reasons.len(), c.quarantined_records()), (1, 1));
    a.local().put_service(instance("web", 2)).unwrap();
    assert_eq!(send(&a, &c), [Outcome::Applied]);
    assert_eq!(c.service("web").unwrap().instances.len(), 2);
}

#[test]
fn refusals_are_counted_by_reason() {
    let (_, mut a, b) = pair();
    let c = test_node(3, &TestClock::at(1_000_000_000));
    a.send_to(&b.catalog);
    a.local().put_service(instance("web", 80)).unwrap();
    let good = a
        .catalog
        .messages_since(a.id(), b.catalog.heads()[1].at)
        .remove(0);
    for end in 0..good.len() {
        let outcome = b.catalog.apply(good.slice(..end));
        assert!(
            matches!(outcome, Outcome::Rejected(_)),
            "{end}: {outcome:?}"
        );
    }
    // Cut between two items it is a message, but not the signed one.
    let cut = b.catalog.refusals();
    assert_eq!(cut.malformed + cut.signature, good.len() as u64);
    assert!(cut.signature < 10);

    let mut old = good.to_vec();
    old[0] = 1;
    let outcome = b.catalog.apply(Bytes::from(old));
    let Outcome::Rejected(Rejection::Malformed(error @ WireError::Format(1))) = outcome else {
        panic!("{outcome:?}");
    };
    let text = error.to_string();
    assert!(
        text.contains("format 1") && text.contains("format 2"),
        "{text}"
    );

    let mut unsigned = good.to_vec();
    unsigned[5] ^= 1;
    let node = a.id();
    let outcome = b.catalog.apply(Bytes::from(unsigned));
    assert_eq!(outcome, Outcome::Rejected(Rejection::Signature { node }));
    // Someone else's log, signed with the own key.
    let certificate = std::mem::replace(&mut a.certificate, c.certificate);
    let body = record::encode_chain(&a.certificate.chain());
    let outcome = b
        .catalog
        .apply(forged(&a, &Key::Certificate.encode(), Some(&body)));
    assert!(matches!(
        outcome,
        Outcome::Rejected(Rejection::Certificate { .. })
    ));
    a.certificate = certificate;
    let counts = b.catalog.refusals();
    let signature = counts.signature - cut.signature;
    assert_eq!((counts.version, signature, counts.certificate), (1, 1, 1));
    assert_eq!(counts.total(), b.catalog.rejected_messages());
    assert_eq!(
        b.catalog.apply(good),
        Outcome::Applied,
        "and nothing is lost"
    );
}

#[test]
fn an_old_epoch_and_an_old_head_change_nothing() {
    let (_, a, b) = pair();
    a.local().put_service(instance("web", 80)).unwrap();
    let old = a.catalog.messages_since(a.id(), Head::default());
    a.send_to(&b.catalog);
    a.local().remove_service(&instance("web", 80).id);
    a.send_to(&b.catalog);
    for message in &old {
        assert_eq!(b.catalog.apply(message.clone()), Outcome::Known);
    }
    assert!(b.catalog.service("web").is_none());
    a.catalog.inner.state.lock().own_log.renew(u64::MAX - 1);
    a.send_to(&b.catalog);
    for message in old {
        assert_eq!(b.catalog.apply(message), Outcome::Known);
    }
    assert!(b.catalog.service("web").is_none());
}

#[test]
fn what_a_newer_version_says_more_is_passed_over() {
    let (_, a, b) = pair();
    b.catalog.set_liveness(a.id(), Liveness::Alive);
    a.send_to(&b.catalog);
    let web = instance("web", 80);
    let mut writer = crate::catalog::fields::Writer(record::encode_instance(&web).to_vec());
    writer.text(99, "news");
    writer.number(100, 7);
    writer.bytes(101, b"more");
    writer.stamp(102, 5);
    let key = Key::Instance(web.id.as_str()).encode();
    assert_eq!(
        b.catalog.apply(forged(&a, &key, Some(&writer.0))),
        Outcome::Applied
    );
    let shown = b.catalog.service("web").unwrap();
    assert!(shown.instances[0].instance.same_as(&web));
    assert_eq!(b.catalog.quarantined_records(), 0);
}

#[test]
fn a_proxy_needs_the_right_to_what_it_speaks_for() {
    let (_, mut a, b) = pair();
    a.certificate.publish = vec!["web-proxy".to_owned()];
    a.publish().unwrap();
    a.send_to(&b.catalog);
    let proxy = Instance::builder(service("web-proxy"))
        .proxy(crate::model::Proxy::new(service("web")))
        .build()
        .unwrap();
    let refused = a.local().put_service(proxy.clone());
    assert_eq!(
        refused,
        Err(LocalError::NotPermitted {
            service: service("web")
        })
    );
    let key = Key::Instance(proxy.id.as_str()).encode();
    let body = record::encode_instance(&proxy);
    assert_eq!(
        b.catalog.apply(forged(&a, &key, Some(&body))),
        Outcome::Applied
    );
    assert!(b.catalog.service("web-proxy").is_none());
    assert!(b.catalog.quarantined()[0].reason.contains("service web"));
}
