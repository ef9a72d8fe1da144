use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;

#[test]
fn names_are_lower_cased_at_parse_and_keep_their_rules() {
    assert_eq!(
        ServiceName::parse("Web-1.api_x").unwrap().as_str(),
        "web-1.api_x"
    );
    for wrong in ["", "-web", "we b", "web/1", "wéb", &"a".repeat(129)] {
        assert_eq!(
            ServiceName::parse(wrong).unwrap_err().field,
            "service",
            "{wrong:?}"
        );
    }
    assert!(ServiceName::parse(&"a".repeat(128)).is_ok());

    assert!(NodeName::parse("host1.rack-2").is_ok());
    for wrong in ["a..b", "a.-b", &"a".repeat(64), "a."] {
        assert_eq!(
            NodeName::parse(wrong).unwrap_err().field,
            "node",
            "{wrong:?}"
        );
    }
    assert_eq!(Datacenter::parse("a.b").unwrap_err().field, "datacenter");
    assert_eq!(InstanceId::parse("Web 1/é").unwrap().as_str(), "Web 1/é");
    assert_eq!(InstanceId::parse("a\nb").unwrap_err().field, "id");
}

#[test]
fn a_name_from_outside_is_parsed_too() {
    let bytes = postcard::to_stdvec("Bad Name").unwrap();
    assert!(postcard::from_bytes::<ServiceName>(&bytes).is_err());
    let bytes = postcard::to_stdvec("WEB").unwrap();
    assert_eq!(postcard::from_bytes::<ServiceName>(&bytes).unwrap(), "web");
}

#[test]
fn node_id_has_a_text_form() {
    let id = NodeId::from_public_key(b"key");
    assert_eq!(id.to_string().len(), 32);
    assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
    assert!("xyz".parse::<NodeId>().is_err());
    assert!("é".repeat(16).parse::<NodeId>().is_err());
}

#[test]
fn validation_names_the_field() {
    let good = Instance::new(ServiceName::parse("web").unwrap(), 80).unwrap();
    good.validate().unwrap();
    let field = |change: fn(&mut Instance)| {
        let mut instance = good.clone();
        change(&mut instance);
        instance.validate().unwrap_err().field
    };
    assert_eq!(field(|i| i.tags = vec![Arc::from("")]), "tags");
    assert_eq!(field(|i| i.tags = vec![Arc::from("t"); 257]), "tags");
    assert_eq!(
        field(|i| drop(i.meta.insert(Arc::from("a b"), Arc::from("")))),
        "meta"
    );
    assert_eq!(
        field(|i| drop(i.meta.insert(Arc::from("a"), Arc::from("x".repeat(513))))),
        "meta"
    );
    assert_eq!(field(|i| i.weights.passing = 0), "weights.passing");
    assert_eq!(field(|i| i.version = Some(Arc::from(""))), "version");
    assert_eq!(
        field(|i| i.address = Some(Host::Name(Arc::from("a b")))),
        "address"
    );
}

#[test]
fn a_subset_is_a_tag_or_the_version() {
    let mut instance = Instance::new(ServiceName::parse("web").unwrap(), 80).unwrap();
    instance.tags = vec![Arc::from("Blue")];
    instance.version = Some(Arc::from("v2"));
    assert!(instance.matches("blue") && instance.matches("V2") && !instance.matches("v1"));
}

#[test]
fn worst_health_is_the_greatest() {
    assert!(Health::Passing < Health::Warning && Health::Critical < Health::Maintenance);
    assert!(Health::Warning.is_usable() && !Health::Critical.is_usable());
    assert_eq!("warning".parse::<Health>().unwrap(), Health::Warning);
}

#[test]
fn metadata_is_a_map_in_memory_and_on_the_wire() {
    let pairs = [("b", "2"), ("a", "1"), ("b", "3")];
    let pairs = pairs.map(|(key, value)| (Arc::from(key), Arc::from(value)));
    let map: BTreeMap<Arc<str>, Arc<str>> = pairs.iter().cloned().collect();
    let mut meta = Meta::from(pairs);
    assert_eq!(meta, Meta::from(map.clone()));
    assert_eq!(meta.get("b").map(|value| &**value), Some("3"));
    assert_eq!((meta.get("c"), meta.len()), (None, 2));
    let bytes = postcard::to_stdvec(&map).unwrap();
    assert_eq!(postcard::to_stdvec(&meta).unwrap(), bytes);
    assert_eq!(postcard::from_bytes::<Meta>(&bytes).unwrap(), meta);

    assert_eq!(meta.insert("aa".into(), "4".into()), None);
    assert_eq!(meta.insert("aa".into(), "5".into()).as_deref(), Some("4"));
    assert!(meta.keys().map(|key| &**key).eq(["a", "aa", "b"]));
    assert_eq!(meta.remove("a").as_deref(), Some("1"));
    assert_eq!(meta.remove("a"), None);
    assert!(meta.values().map(|value| &**value).eq(["5", "3"]));
}

#[test]
fn a_builder_makes_every_field_and_names_the_first_wrong_one() {
    let of = |text: &str| Instance::builder(ServiceName::parse(text).unwrap());
    let instance = of("web")
        .id("web-1")
        .port(80)
        .named_port("metrics", 9090)
        .mesh_port(21000)
        .address("10.0.0.1")
        .tagged_address("wan", Host::parse("web.example.com").unwrap(), 443)
        .tags(["a", "b"])
        .meta("owner", "shop")
        .version("v2")
        .weights(10, 1)
        .locality("eu", "eu-1")
        .proxy(Proxy::new(ServiceName::parse("api").unwrap()))
        .pet()
        .external()
        .enable_tag_override()
        .build()
        .unwrap();
    assert_eq!(instance.named_port("metrics"), Some(9090));
    assert_eq!(instance.tagged_address("wan").unwrap().port, 443);
    assert_eq!(
        (instance.kind, instance.class),
        (Kind::ConnectProxy, Class::Pet)
    );
    assert_eq!(
        instance.locality,
        Some(Locality::new("eu", "eu-1").unwrap())
    );

    let field = |builder: InstanceBuilder| builder.build().unwrap_err().field;
    assert_eq!(field(of("web").id("a\nb").address("a b")), "id");
    assert_eq!(field(of("web").address("a b").tag("")), "address");
    assert_eq!(field(of("web").external()), "external");
    assert_eq!(field(of("web").kind(Kind::ConnectProxy)), "proxy");
    assert_eq!(field(of("web").named_port("a", 0)), "ports");
    assert_eq!(
        field(of("web").named_port("a", 1).named_port("a", 2)),
        "ports"
    );
    assert_eq!(field(of("web").named_port("a b", 1)), "ports");
    let ip = Host::parse("10.0.0.1").unwrap();
    let twice = of("web").tagged_address("lan", ip.clone(), 0);
    assert_eq!(
        field(twice.tagged_address("lan", ip, 0)),
        "tagged_addresses"
    );
    assert_eq!(field(of("web").locality("", "zone")), "locality");
    assert_eq!(field(of("web").weights(0, 0)), "weights.passing");
}

#[test]
fn limits_are_met_exactly() {
    let of = || Instance::builder(ServiceName::parse("web").unwrap());
    let many = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
    type Build<'a> = &'a dyn Fn(usize) -> InstanceBuilder;
    let checks: [(&str, usize, Build<'_>); 6] = [
        ("tags", limits::TAGS, &|n| of().tags(many(n))),
        ("tags", limits::TAG_BYTES, &|n| of().tag(&"x".repeat(n))),
        ("meta", limits::META_PAIRS, &|n| {
            many(n).iter().fold(of(), |of, key| of.meta(key, ""))
        }),
        ("meta", limits::META_VALUE_BYTES, &|n| {
            of().meta("k", &"x".repeat(n))
        }),
        ("ports", limits::PORTS, &|n| {
            many(n).iter().fold(of(), |of, name| of.named_port(name, 1))
        }),
        ("tagged_addresses", limits::TAGGED_ADDRESSES, &|n| {
            let ip = Host::parse("::1").unwrap();
            many(n)
                .iter()
                .fold(of(), |of, tag| of.tagged_address(tag, ip.clone(), 0))
        }),
    ];
    for (field, most, with) in checks {
        with(most).build().unwrap();
        assert_eq!(with(most + 1).build().unwrap_err().field, field);
    }
}

#[test]
fn a_zone_comes_from_the_locality_then_from_the_metadata() {
    let name = NodeName::parse("n").unwrap();
    let mut node = NodeRecord::new(NodeId([1; 16]), name, [127, 0, 0, 1].into(), 8301);
    assert_eq!(node.zone(), "dc1");
    node.meta.insert("zone".into(), "a".into());
    assert_eq!(node.zone(), "a");
    node.locality = Locality::new("eu", "eu-1").unwrap();
    assert_eq!(node.zone(), "eu-1");
}
