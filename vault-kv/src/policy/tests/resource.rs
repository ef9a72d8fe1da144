//! Consul's rules: what they stand for, against a small model of Consul's own order.

use proptest::prelude::*;

use super::*;

const FORMS: [&str; 4] = ["deny", "read", "list", "write"];

fn refused(source: &str) -> String {
    let name = PolicyName::parse("p").unwrap();
    Policy::parse(name, source).unwrap_err().to_string()
}

fn may(acl: &Acl, path: &str, capability: Capability) -> bool {
    acl.decide(path, capability, None).allowed
}

#[test]
fn each_resource_has_its_path() {
    let acl = acl(r#"
        # A comment.
        key "a" { policy = "read" }
        key_prefix "app/" { policy = "write" }
        session "web-1" { policy = "write" }
        service "Web" { policy = "read" }
        service "api" {
            policy = "write"
            intentions = "write"
        }
        node_prefix "db-" { policy = "write" }
        agent "a1" { policy = "read" }
        event_prefix "deploy" { policy = "write" }
        query "q" { policy = "write" }
        acl = "read"
        operator = "write"
        keyring = "read"
        mesh = "write"
        peering = "read"
        path "secret/*" { capabilities = ["read"] }
    "#);
    for path in [
        "consul/kv/a",
        "consul/service/web",
        "mesh/intention/web/client",
        "consul/agent/a1",
        "consul/acl",
        "mesh/keyring",
        "consul/peering",
        "secret/x",
    ] {
        assert!(reads(&acl, path), "{path}");
        assert!(!may(&acl, path, Capability::Update), "{path}");
    }
    for path in [
        "consul/kv/app/x",
        "consul/session/web-1",
        "mesh/intention/api/client",
        "consul/node/db-1",
        "mesh/external/db-1",
        "consul/event/deploy-7",
        "consul/query/q",
        "consul/operator",
        "consul/mesh",
    ] {
        for capability in [Capability::Create, Capability::Update, Capability::Delete] {
            assert!(may(&acl, path, capability), "{path}");
        }
    }
    for path in [
        "consul/kv/b",
        "consul/kv/ap",
        "consul/session/web-2",
        "consul/service/web2",
        "mesh/intention/web2/client",
        "mesh/query/1",
    ] {
        assert!(!reads(&acl, path), "{path}");
    }
}

#[test]
fn a_service_that_may_be_seen_shows_its_intentions_unless_it_says_otherwise() {
    let acl = acl(r#"
        service_prefix "" { policy = "write" }
        service "a" {
            policy = "read"
            intentions = "deny"
        }
        service "b" { policy = "deny" }
    "#);
    assert!(reads(&acl, "mesh/intention/x/y"));
    assert!(!may(&acl, "mesh/intention/x/y", Capability::Update));
    assert!(!reads(&acl, "mesh/intention/a/y"));
    assert!(!reads(&acl, "mesh/intention/b/y"));
}

#[test]
fn names_in_rules_are_what_they_are() {
    let acl = acl(r#"
        key "a*" { policy = "read" }
        key "b/+/c" { policy = "read" }
        key "{{identity.service}}" { policy = "read" }
        key_prefix "d*" { policy = "read" }
        key_prefix "e/+/" { policy = "read" }
    "#);
    for path in [
        "consul/kv/a*",
        "consul/kv/b/+/c",
        "consul/kv/{{identity.service}}",
        "consul/kv/d*",
        "consul/kv/d*x",
        "consul/kv/e/+/x",
    ] {
        assert!(reads(&acl, path), "{path}");
    }
    for path in [
        "consul/kv/a",
        "consul/kv/ab",
        "consul/kv/b/x/c",
        "consul/kv/d",
        "consul/kv/dx",
        "consul/kv/e/x/x",
    ] {
        assert!(!reads(&acl, path), "{path}");
    }
}

/// `key "a*"` and `path "consul/kv/a*"` look the same and are not.
#[test]
fn an_exact_name_is_never_merged_with_a_pattern_that_looks_like_it() {
    let acl = acl(r#"
        key "a*" { policy = "deny" }
        path "consul/kv/a*" { capabilities = ["read"] }
    "#);
    assert!(!reads(&acl, "consul/kv/a*"));
    assert!(reads(&acl, "consul/kv/ab"));
}

#[test]
fn mistakes_are_named_with_their_place() {
    for (source, words) in [
        (
            "key \"a\" { policy = \"read\" }\n servce \"b\" {\n policy = \"read\"\n }",
            &["2:2", "servce"][..],
        ),
        (
            "key_prefx \"a\" { policy = \"read\" }",
            &["1:1", "key_prefx"],
        ),
        (
            "\n\nacl = \"maybe\"",
            &["3:1", "acl", "read, write or deny"],
        ),
        (
            "key \"a\" { policy = \"sudo\" }",
            &["1:1", "key \"a\"", "invalid policy"],
        ),
        (
            "key \"a\" { intentions = \"read\" }",
            &["key \"a\"", "intentions"],
        ),
        ("key \"a\" { }", &["policy is missing"]),
        ("service \"a\" { policy = \"list\" }", &["list", "keys"]),
        (
            "service \"a/b\" { policy = \"read\" }",
            &["no service is called so"],
        ),
        ("operator = \"list\"", &["operator"]),
        ("key { policy = \"read\" }", &["1:1", "exactly one name"]),
        (
            "key \"a\" \"b\" { policy = \"read\" }",
            &["exactly one name"],
        ),
        ("key \"a\" {\n policy = \n", &["At ", "not valid HCL"]),
        (
            r#"{"key_prefx": {"a": {"policy": "read"}}}"#,
            &["1:2", "key_prefx"],
        ),
        (r#"{"key": {"a": "read"}}"#, &["key \"a\"", "object"]),
        (r#"{"acl": 7}"#, &["1:2", "acl"]),
    ] {
        let error = refused(source);
        for word in words {
            assert!(error.contains(word), "{source}: {error}");
        }
    }
}

#[test]
fn json_says_the_same_as_hcl() {
    for source in [
        r#"{"key_prefix": {"app/": {"policy": "write"}}, "service": {"web": {"policy": "read"}}, "acl": "read"}"#,
        r#"{"key_prefix": [{"app/": [{"policy": "write"}]}], "service": [{"web": [{"policy": "read"}]}], "acl": "read"}"#,
    ] {
        let acl = acl(source);
        assert!(may(&acl, "consul/kv/app/x", Capability::Update));
        assert!(reads(&acl, "consul/service/web"));
        assert!(reads(&acl, "consul/acl"));
        assert!(!reads(&acl, "consul/kv/other"));
    }
}

#[test]
fn the_built_in_policies_grant_consuls_resources_and_nothing_else() {
    for (name, _, source) in builtin::FIXED {
        let parsed = Policy::parse(PolicyName::parse(name).unwrap(), source).unwrap();
        assert_eq!(parsed.is_consuls(), name != builtin::WRAPPING_NAME);
    }
    let all = |name: &str| {
        let fixed = builtin::FIXED.iter().find(|(fixed, ..)| *fixed == name);
        acl(fixed.unwrap().2)
    };
    let (management, reading) = (all(builtin::MANAGEMENT), all(builtin::READ_ONLY));
    for path in [
        "consul/acl",
        "consul/kv/x",
        "consul/service/x",
        "mesh/external/x",
        "mesh/query/1",
    ] {
        assert!(may(&management, path, Capability::Update), "{path}");
        assert!(reads(&reading, path), "{path}");
        assert!(!may(&reading, path, Capability::Update), "{path}");
    }
    for path in [
        "secret/data/x",
        "sys/policies/acl/x",
        "auth/token/create",
        "mesh/join-token",
    ] {
        assert!(!reads(&management, path), "{path}");
        assert!(!may(&management, path, Capability::Update), "{path}");
    }
}

#[test]
fn what_is_allowed_on_everything_below_has_no_exception() {
    let acl = acl(r#"
        key_prefix "app/" { policy = "write" }
        key "app/secret" { policy = "deny" }
        key_prefix "app/b/" { policy = "write" }
        path "consul/kv/other/+/x" { capabilities = ["read"] }
        key_prefix "other/" { policy = "write" }
        key "one" { policy = "write" }
    "#);
    let below = |prefix: &str| acl.allows_below(prefix, Capability::Delete, false);
    assert!(!below("consul/kv/app/"));
    assert!(!below("consul/kv/"));
    assert!(below("consul/kv/app/b/"));
    assert!(below("consul/kv/app/b/c"));
    assert!(!below("consul/kv/other/"));
    assert!(!below("consul/kv/one"), "others may begin so");
    assert!(!below("consul/kv/none"));
    assert!(acl.allows_below("consul/node/", Capability::Read, true));
}

#[test]
fn grants_say_elsewhere_what_they_say_here() {
    let acl = Arc::new(acl(r#"
        key_prefix "a" { policy = "write" }
        key "ab" { policy = "deny" }
        service_prefix "" { policy = "read" }
        path "consul/kv/+/x" { capabilities = ["read"] }
        path "secret/*" { capabilities = ["read"] }
    "#));
    let here = Grants::new("accessor", Some(7), acl);
    let sent = serde_json::to_vec(&here.rules(&["consul/", "mesh/"])).unwrap();
    assert!(!String::from_utf8_lossy(&sent).contains("secret"));
    let there = Grants::of_rules(
        "accessor",
        Some(7),
        serde_json::from_slice(&sent).unwrap(),
        false,
    );
    for path in [
        "consul/kv/a",
        "consul/kv/ab",
        "consul/kv/abc",
        "consul/kv/q/x",
        "consul/service/w",
        "consul/node/n",
    ] {
        for capability in [Capability::Read, Capability::Update] {
            assert_eq!(
                here.says(path, capability),
                there.says(path, capability),
                "{path}"
            );
        }
    }
    assert_eq!(there.says("secret/x", Capability::Read), None);
}

/// Consul's order, written down without anything of ours: an exact rule, or else the longest prefix; of several for the same
/// name the first of deny, write, list, read.
fn model(rules: &[(bool, String, &str)], key: &str) -> Option<&'static str> {
    let strongest = |names: Vec<&str>| {
        ["deny", "write", "list", "read"]
            .into_iter()
            .find(|form| names.contains(form))
    };
    let of = |prefix: bool, name: &str| {
        let same = rules
            .iter()
            .filter(|rule| rule.0 == prefix && rule.1 == name);
        strongest(same.map(|rule| rule.2).collect())
    };
    of(false, key).or_else(|| {
        (0..=key.len())
            .rev()
            .filter(|end| key.is_char_boundary(*end))
            .find_map(|end| of(true, &key[..end]))
    })
}

proptest! {
    #[test]
    fn the_order_is_consuls(
        rules in prop::collection::vec((any::<bool>(), "[ab*+/]{0,4}", 0..4usize), 0..8),
        keys in prop::collection::vec("[ab*+/]{0,4}", 1..8),
        split in any::<prop::sample::Index>(),
    ) {
        let rules: Vec<_> = rules.into_iter().map(|(p, name, form)| (p, name, FORMS[form])).collect();
        let stanza = |(prefix, name, form): &(bool, String, &str)| {
            let kind = if *prefix { "key_prefix" } else { "key" };
            format!("{kind} \"{name}\" {{ policy = \"{form}\" }}\n")
        };
        // Two policies, as a token may have.
        let (one, two) = rules.split_at(split.index(rules.len() + 1));
        let policies = [("one", one), ("two", two)].map(|(name, rules)| {
            policy(name, &rules.iter().map(stanza).collect::<String>())
        });
        let acl = Acl::new(&policies, &Identity::default());
        for key in &keys {
            let path = format!("consul/kv/{key}");
            let access = model(&rules, key);
            let reads = matches!(access, Some("read" | "list" | "write"));
            let writes = access == Some("write");
            prop_assert_eq!(may(&acl, &path, Capability::Read), reads, "{} {:?}", key, access);
            prop_assert_eq!(may(&acl, &path, Capability::Update), writes, "{} {:?}", key, access);
            prop_assert_eq!(may(&acl, &path, Capability::Delete), writes, "{} {:?}", key, access);
            let lists = matches!(access, Some("list" | "write"));
            if !key.ends_with('/') {
                prop_assert_eq!(may(&acl, &path, Capability::List), lists, "{} {:?}", key, access);
            }
        }
    }

    /// Whatever is allowed on everything below holds for each key there.
    #[test]
    fn everything_below_means_each(
        rules in prop::collection::vec((any::<bool>(), "[ab/]{0,3}", 0..4usize), 0..6),
        prefix in "[ab/]{0,3}",
        rests in prop::collection::vec("[ab/]{0,3}", 1..6),
    ) {
        let source: String = rules
            .iter()
            .map(|(prefix, name, form)| {
                let kind = if *prefix { "key_prefix" } else { "key" };
                format!("{kind} \"{name}\" {{ policy = \"{}\" }}\n", FORMS[*form])
            })
            .collect();
        let acl = acl(&source);
        if acl.allows_below(&format!("consul/kv/{prefix}"), Capability::Delete, false) {
            for rest in rests {
                let path = format!("consul/kv/{prefix}{rest}");
                prop_assert!(may(&acl, &path, Capability::Delete), "{path}");
            }
        }
    }
}
