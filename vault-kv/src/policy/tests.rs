use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::request::Data;

mod resource;

fn policy(name: &str, source: &str) -> Arc<Policy> {
    Arc::new(Policy::parse(PolicyName::parse(name).unwrap(), source).unwrap())
}

fn acl(source: &str) -> Acl {
    Acl::new(&[policy("p", source)], &Identity::default())
}

fn data(value: serde_json::Value) -> Data {
    match value {
        serde_json::Value::Object(map) => map.into(),
        _ => unreachable!("an object"),
    }
}

fn reads(acl: &Acl, path: &str) -> bool {
    acl.decide(path, Capability::Read, None).allowed
}

#[test]
fn names_are_normalised_once_or_refused() {
    assert_eq!(PolicyName::parse("UPPER").unwrap().as_str(), "upper");
    assert!(PolicyName::parse("Root").unwrap().is_root());
    for bad in [
        "",
        " root",
        "root ",
        "ro ot",
        "röot",
        "root\u{200b}",
        "a\nb",
        "a*",
        "{{x}}",
    ] {
        assert!(PolicyName::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn exact_beats_glob_and_the_most_specific_glob_wins() {
    let acl = acl(r#"
        path "kv/*" { capabilities = ["read"] }
        path "kv/a/*" { capabilities = ["deny"] }
        path "kv/a/open" { capabilities = ["read"] }
        path "kv/+/b/c" { capabilities = ["deny"] }
        path "kv/z/b/*" { capabilities = ["read"] }
    "#);
    assert!(reads(&acl, "kv/x"));
    assert!(!reads(&acl, "kv/a/x"));
    assert!(reads(&acl, "kv/a/open"));
    assert!(!reads(&acl, "kv/q/b/c"));
    // The first wildcard of `kv/z/b/*` comes later than that of `kv/+/b/c`.
    assert!(reads(&acl, "kv/z/b/c"));
    assert!(!reads(&acl, "other"));
}

#[test]
fn the_same_pattern_in_two_policies_adds_up_and_deny_wins() {
    let one = policy("one", r#"path "kv/*" { capabilities = ["read"] }"#);
    let two = policy("two", r#"path "kv/*" { capabilities = ["list"] }"#);
    let three = policy("three", r#"path "kv/*" { capabilities = ["deny"] }"#);
    let both = Acl::new(&[one.clone(), two.clone()], &Identity::default());
    assert_eq!(both.capabilities("kv/x"), ["list", "read"]);
    let denied = Acl::new(&[one, two, three], &Identity::default());
    assert_eq!(denied.capabilities("kv/x"), ["deny"]);
    assert!(!denied.decide("kv/x/", Capability::List, None).allowed);
}

/// GHSA-xp3c: LIST asks for `a/`; a deny on `a` must still hold.
#[test]
fn ghsa_xp3c_a_deny_cannot_be_walked_around_by_listing() {
    let acl = acl(r#"
        path "kv/*" { capabilities = ["read", "list"] }
        path "kv/private" { capabilities = ["deny"] }
        path "kv/+/hidden" { capabilities = ["deny"] }
        path "kv/private/ok/*" { capabilities = ["list"] }
    "#);
    assert!(acl.decide("kv/open/", Capability::List, None).allowed);
    assert!(!acl.decide("kv/private/", Capability::List, None).allowed);
    assert!(!acl.decide("kv/x/hidden/", Capability::List, None).allowed);
    assert!(acl.decide("kv/private/ok/", Capability::List, None).allowed);
}

#[test]
fn a_plus_is_exactly_one_segment() {
    let acl = acl(r#"path "kv/+/x" { capabilities = ["read"] } 
        path "kv/+/y*" { capabilities = ["read"] }"#);
    assert!(reads(&acl, "kv/a/x"));
    assert!(reads(&acl, "kv/a/yes/and/more"));
    for path in ["kv/x", "kv//x", "kv/a/b/x", "kv/a/x/", "kv/a/xx"] {
        assert!(!reads(&acl, path), "{path}");
    }
}

#[test]
fn rules_that_would_silently_match_nothing_are_refused() {
    for bad in [
        r#"path "kv/*/x" { capabilities = ["read"] }"#,
        r#"path "kv/+*" { capabilities = ["read"] }"#,
        r#"path "kv/a+" { capabilities = ["read"] }"#,
        r#"path "x" { capabilities = ["fly"] }"#,
        r#"path "x" { capabilities = "#,
        r#"path "x" { capabilitie = ["read"] }"#,
        r#"path "x" { mfa_methods = ["a"] }"#,
        r#"path "{{identity.nope}}" { capabilities = ["read"] }"#,
        r#"path "x" "y" { capabilities = ["read"] }"#,
        r#"servce "x" { policy = "read" }"#,
        r#"{"path": {"x": {"capabilities": [7]}}}"#,
        r#"{"path": "x"}"#,
        "nonsense",
    ] {
        assert!(
            Policy::parse(PolicyName::parse("p").unwrap(), bad).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn deep_nesting_is_refused() {
    let refused =
        |source: &str| Policy::parse(PolicyName::parse("p").unwrap(), source).unwrap_err();
    let deep = format!(
        "path \"x\" {{ allowed_parameters = {}{} }}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let error = refused(&deep).to_string();
    assert!(error.ends_with("nested too deeply"), "{error}");
    refused(&format!("a {}", "b {".repeat(100_000)));
    refused(&"{\"a\":".repeat(100_000));
    // A parser that read what may be a key or a value twice took hours for these thirty.
    refused(&format!("a = {}", "b/{".repeat(30)));
}

/// Scripts and Consul's own pages write policies so.
#[test]
fn whatever_hcl_1_takes_is_a_policy() {
    let acl = acl(r##"
        key "a" { policy = "read" } key "b" { policy = "write" }, "key" "c" { "policy" = "read", }
        path "one" { capabilities = ["read", "list",] } path "two" { capabilities = ["read"] min_wrapping_ttl = "1s" }
        /* of
           several lines */ key_prefix "d/" { policy = "read" } // and to the end
        key "${a} \u00e4" { policy = "read" } # and here
        path "three" { policy = "read" comment = <<-X
            why
            X
        }
        acl = "read" operator = "read"
    "##);
    for path in ["a", "b", "c", "d/e", "${a} ä"] {
        assert!(reads(&acl, &format!("consul/kv/{path}")), "{path}");
    }
    for path in ["one", "three", "consul/acl", "consul/operator"] {
        assert!(reads(&acl, path), "{path}");
    }
    assert!(acl.decide("consul/kv/b", Capability::Update, None).allowed);
    assert!(!acl.decide("consul/kv/a", Capability::Update, None).allowed);
    for (source, at) in [
        (
            r#"key "a" { policy = "read" } key "b" { policy = read }"#,
            "1:52",
        ),
        (r#"path "x" { policy = "read" policy = "list" }"#, "1:43"),
        (
            "path \"x\" {\n capabilities = [\"read\" \"list\"] }",
            "2:25",
        ),
        ("key \"a\" { policy = \"read\" } servce \"b\" {}", "1:29"),
    ] {
        let error = Policy::parse(PolicyName::parse("p").unwrap(), source).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(&format!("At {at}: ")), "{source}: {error}");
    }
}

#[test]
fn json_and_the_old_shorthand_mean_the_same() {
    let json =
        acl(r#"{"path":{"kv/*":{"capabilities":["create","read","update","delete","list"]}}}"#);
    let old = acl(r#"path "kv/*" { policy = "write" }"#);
    assert_eq!(json.capabilities("kv/a"), old.capabilities("kv/a"));
    assert_eq!(
        old.capabilities("kv/a"),
        ["create", "delete", "list", "read", "update"]
    );
}

#[test]
fn no_rule_of_json_is_lost_because_another_of_its_name_follows() {
    let twice = acl(
        r#"{"path": {"kv/*": {"capabilities": ["deny"]}}, "path": {"kv/*": {"capabilities": ["read"]}}}"#,
    );
    assert_eq!(twice.capabilities("kv/a"), ["deny"]);
    let source = r#"{"path": {"kv/*": {"capabilities": ["deny"], "capabilities": ["read"]}}}"#;
    let error = Policy::parse(PolicyName::parse("p").unwrap(), source).unwrap_err();
    assert!(error.to_string().contains("given twice"), "{error}");
}

#[test]
fn parameters_are_limited_whatever_their_case() {
    let acl = acl(r#"
        path "auth/token/create" {
          capabilities = ["update"]
          denied_parameters = { "ttl" = [] }
          allowed_parameters = { "policies" = ["app-*"], "ttl" = [] }
          required_parameters = ["policies"]
        }
    "#);
    let ok = |value| {
        acl.decide("auth/token/create", Capability::Update, Some(&data(value)))
            .allowed
    };
    assert!(ok(json!({"policies": "app-web"})));
    assert!(ok(json!({"policies": ["app-web", "app-db"]})));
    assert!(!ok(json!({"policies": ["app-web", "root"]})));
    assert!(!ok(json!({"policies": "root"})));
    assert!(!ok(json!({"policies": "app-web", "ttl": "1h"})));
    assert!(!ok(json!({"policies": "app-web", "TTL": "1h"})));
    assert!(!ok(json!({"policies": "app-web", "other": 1})));
    assert!(!ok(json!({})));
}

#[test]
fn limits_of_one_rule_are_not_lifted_by_a_rule_that_grants_something_else() {
    let limited = policy(
        "limited",
        r#"path "x" { 
        capabilities = ["update"] 
        denied_parameters = { "ttl" = [] } 
    }"#,
    );
    let reader = policy("reader", r#"path "x" { capabilities = ["read"] }"#);
    let acl = Acl::new(&[limited, reader], &Identity::default());
    assert!(
        !acl.decide("x", Capability::Update, Some(&data(json!({"ttl": 1}))))
            .allowed
    );
    assert!(
        acl.decide("x", Capability::Update, Some(&data(json!({"a": 1}))))
            .allowed
    );
}

/// GHSA-59w7: a value from outside must not widen a rule.
#[test]
fn ghsa_59w7_templates_are_filled_per_identity_and_cannot_be_injected() {
    let rule = policy(
        "p",
        r#"path "secret/data/{{identity.service}}/*" { capabilities = ["read"] }"#,
    );
    let of = |service: Option<&str>| {
        let identity = Identity {
            service: service.map(Into::into),
            ..Identity::default()
        };
        Acl::new(std::slice::from_ref(&rule), &identity)
    };
    assert!(reads(&of(Some("web")), "secret/data/web/db"));
    assert!(!reads(&of(Some("web")), "secret/data/shop/db"));
    for service in [
        None,
        Some(""),
        Some("*"),
        Some("+"),
        Some("a/b"),
        Some("{{identity.node}}"),
    ] {
        let acl = of(service);
        for path in [
            "secret/data/web/db",
            "secret/data/*/db",
            "secret/data/+/x",
            "secret/data/a/b/c",
            "secret/data//x",
        ] {
            assert!(!reads(&acl, path), "{service:?} {path}");
        }
    }
}

#[test]
fn every_decision_says_why() {
    let acl = acl(r#"path "kv/*" { capabilities = ["read"] }"#);
    let decision = acl.decide("kv/a", Capability::Update, None);
    assert_eq!(
        decision.explain(Capability::Update, "kv/a"),
        r#"update on "kv/a" is denied: the most specific rule is "kv/*" of p with [read]"#
    );
    let none = acl.decide("other", Capability::Read, None);
    assert_eq!(
        none.explain(Capability::Read, "other"),
        r#"read on "other" is denied: no rule of p matches"#
    );
    assert_eq!(
        acl.decide("kv/a", Capability::Read, None).granting()[0].as_str(),
        "p"
    );
}

#[test]
fn the_builtin_default_parses_and_grants_only_ones_own() {
    let acl = acl(builtin::DEFAULT);
    assert!(reads(&acl, "auth/token/lookup-self"));
    assert!(!reads(&acl, "auth/token/lookup"));
    assert!(
        !acl.decide("auth/token/create", Capability::Update, None)
            .allowed
    );
    assert!(!reads(&acl, "sys/mounts"));
}

proptest! {
    /// No document makes the parser panic, and no error repeats more of it than a path or a key.
    #[test]
    fn any_text_parses_or_is_refused(text in "\\PC{0,200}") {
        let _ = Policy::parse(PolicyName::parse("p").unwrap(), &text);
    }

    /// The winner among matching patterns does not depend on the order in which policies are merged.
    #[test]
    fn decisions_do_not_depend_on_order(patterns in proptest::collection::vec("(kv/)?[ab+](/[ab+])?(/\\*|\\*)?", 1..6), path in "(kv/)?[ab](/[ab])?") {
        let all: Vec<_> = patterns.iter().enumerate().filter_map(|(i, p)| {
            let capability = ["read", "list", "deny"][i % 3];
            let source = format!("path \"{p}\" {{ capabilities = [\"{capability}\"] }}");
            Policy::parse(PolicyName::parse(&format!("p{i}")).unwrap(), &source).ok().map(Arc::new)
        }).collect();
        let mut reversed = all.clone();
        reversed.reverse();
        let one = Acl::new(&all, &Identity::default()).capabilities(&path);
        let two = Acl::new(&reversed, &Identity::default()).capabilities(&path);
        prop_assert_eq!(one, two);
    }
}
