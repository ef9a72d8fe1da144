use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::catalog::strings::Strings;
use crate::model::{
    CheckRecord, Class, Host, Instance, InstanceId, Kind, Locality, NamedPort, NodeId, NodeName,
    NodeRecord, Proxy, Roles, ServiceName, TaggedAddress, Weights,
};

/// Texts that are allowed, and now and then some that are not.
fn text() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![
        8 => "[a-z][a-z0-9-]{0,9}",
        1 => Just(String::new()),
        1 => "[a-zA-Z é\u{1}]{1,6}",
        1 => Just("x".repeat(300)),
    ]
    .prop_map(Arc::from)
}

fn host() -> impl Strategy<Value = Host> {
    prop_oneof![
        any::<IpAddr>().prop_map(Host::Ip),
        text().prop_map(Host::Name),
    ]
}

fn locality() -> impl Strategy<Value = Locality> {
    (text(), text()).prop_map(|(region, zone)| Locality { region, zone })
}

fn name() -> impl Strategy<Value = ServiceName> {
    "[a-z0-9][a-z0-9.-]{0,8}".prop_map(|text| ServiceName::parse(&text).unwrap())
}

fn instance_id() -> impl Strategy<Value = InstanceId> {
    "[a-zA-Z0-9 :/é]{1,12}".prop_map(|text| InstanceId::parse(&text).unwrap())
}

fn proxy() -> impl Strategy<Value = Proxy> {
    let parts = (
        name(),
        prop::option::of(instance_id()),
        prop::option::of(host()),
        any::<u16>(),
    );
    parts.prop_map(|(service, instance, address, port)| Proxy {
        service,
        instance,
        address,
        port,
    })
}

fn any_instance() -> impl Strategy<Value = Instance> {
    let named = (text(), any::<u16>()).prop_map(|(name, port)| NamedPort { name, port });
    let tagged = (text(), host(), any::<u16>());
    let tagged = tagged.prop_map(|(tag, host, port)| TaggedAddress { tag, host, port });
    let first = (
        instance_id(),
        name(),
        prop::collection::vec(text(), 0..4),
        prop::collection::vec((text(), text()), 0..4),
        prop::option::of(host()),
        prop::collection::vec(tagged, 0..2),
        any::<u16>(),
        prop::collection::vec(named, 0..2),
    );
    let second = (
        prop::option::of(any::<u16>()),
        prop::option::of(text()),
        prop::option::of(locality()),
        prop::sample::select(vec![Kind::Typical, Kind::ConnectProxy, Kind::ApiGateway]),
        prop::option::weighted(0.3, proxy()),
        any::<[bool; 3]>(),
        (1..=u16::MAX, any::<u16>()),
        (any::<u32>(), any::<u32>()),
    );
    (first, second).prop_map(|(first, second)| {
        let (id, service, tags, meta, address, tagged_addresses, port, ports) = first;
        let (mesh_port, version, locality, kind, proxy, flags, weights, stamps) = second;
        Instance {
            id,
            service,
            tags,
            meta: meta.into_iter().collect(),
            address,
            tagged_addresses,
            port,
            ports,
            mesh_port,
            version,
            locality,
            kind,
            proxy: proxy.map(Arc::new),
            class: if flags[0] { Class::Pet } else { Class::Cattle },
            external: flags[1],
            weights: Weights {
                passing: weights.0,
                warning: weights.1,
            },
            enable_tag_override: flags[2],
            create_stamp: stamps.0.into(),
            modify_stamp: u64::from(stamps.0) + u64::from(stamps.1),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_instance_is_read_as_it_was_written_and_held_to_the_rules_of_the_model(it in any_instance()) {
        let body = encode_instance(&it);
        let key = Key::Instance(it.id.as_str());
        let checked = check(None, key, &body);
        // What says nothing is not written: an empty tag is gone, and what is gone breaks no rule.
        let mut said = it.clone();
        said.tags.retain(|tag| !tag.is_empty());
        said.mesh_port = said.mesh_port.filter(|port| *port != 0);
        said.version = said.version.filter(|version| !version.is_empty());
        prop_assert_eq!(checked.is_ok(), said.validate().is_ok(), "{:?} {:?}", checked, said.validate());
        if checked.is_ok() {
            prop_assert_eq!(checked, Ok(Meaning::Instance(said.service.as_str())));
            let read = instance(it.id.as_str(), &mut Strings::default(), &body);
            prop_assert_eq!(read, Ok(said));
        }
    }

    #[test]
    fn a_check_is_read_as_it_was_written(
        id in prop_oneof!["[a-z]{1,8}", "service:[a-z]{0,4}"],
        of in prop::option::of("[a-z]{1,4}"),
        name in text(),
        status in 0..4u64,
        stamps: (u32, u32),
    ) {
        let it = CheckRecord {
            id: Arc::from(id.as_str()),
            name,
            service: of.map(|id| InstanceId::parse(&id).unwrap()),
            status: health(status),
            kind: Arc::from("tcp"),
            notes: Arc::from(""),
            create_stamp: stamps.0.into(),
            modify_stamp: u64::from(stamps.0) + u64::from(stamps.1),
        };
        let body = encode_check(&it);
        let key = Key::of_check(&it.id).encode();
        let key = Key::decode(&key).unwrap();
        let checked = check(None, key, &body);
        prop_assert_eq!(checked.is_ok(), it.validate().is_ok());
        if let Ok(meaning) = checked {
            let of = match &meaning {
                Meaning::DerivedCheck(of) => Some(*of),
                Meaning::Check(of) => *of,
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(of, it.service.as_ref().map(|id| id.as_str()));
            prop_assert_eq!(check_record(key, &mut Strings::default(), &body), Ok(it));
        }
    }

    #[test]
    fn any_bytes_of_a_record_are_read_or_refused(
        key in prop::sample::select(vec![Key::Node, Key::Instance("i"), Key::DerivedCheck("i"), Key::Check("c")]),
        body in prop::collection::vec(prop_oneof![0..40u8, any::<u8>()], 0..60),
    ) {
        if check(None, key, &body).is_ok() {
            fuzz_good(key, &body);
        }
    }
}

#[test]
fn a_node_record_is_read_as_it_was_written() {
    let id = NodeId([3; 16]);
    let name = NodeName::parse("node1.rack2").unwrap();
    let mut node = NodeRecord::new(id, name, [10, 0, 0, 1].into(), 8301);
    node.roles = Roles { server: true };
    node.meta.insert("owner".into(), "shop".into());
    node.locality = Locality::new("eu", "eu-1").unwrap();
    let read = node_record(id, &mut Strings::default(), &encode_node(&node));
    assert_eq!(read, Ok(node));
}

#[test]
fn an_instance_sorts_before_its_check_and_keys_are_of_one_kind() {
    let (instance, check) = (Key::Instance("web-1"), Key::of_check("service:web-1"));
    assert_eq!(check, Key::DerivedCheck("web-1"));
    assert!(instance.encode() < check.encode());
    assert!(Key::Certificate.encode() < instance.encode());
    for key in [
        Key::Certificate,
        Key::Node,
        instance,
        check,
        Key::of_check("service:"),
    ] {
        assert_eq!(Key::decode(&key.encode()), Ok(key));
    }
    for wrong in [
        &b""[..],
        b"\x09",
        b"\x02",
        b"\x03service:web-1",
        b"\x02\xff\x00",
        b"\x02\x01",
    ] {
        assert!(Key::decode(wrong).is_err(), "{wrong:?}");
    }
}
