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
