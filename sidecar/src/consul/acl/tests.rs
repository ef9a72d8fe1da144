use serde_json::{Value, json};

use super::{shapes::Shape, *};
use crate::http::{json as json_reply, text};

/// Rights as a server tells them: what may be read, and what may not.
fn rights(allowed: &[&str], denied: &[&str], default_allow: bool) -> Rights {
    let rule = |path: &str, capability: u8| {
        let kind = if path.ends_with('*') {
            "Prefix"
        } else {
            "Exact"
        };
        json!({"pattern": {"text": path, "kind": kind}, "capabilities": capability})
    };
    let (read, deny) = (2, 128);
    let allowed = allowed.iter().map(|path| rule(path, read));
    let denied = denied.iter().map(|path| rule(path, deny));
    let answered = json!({
        "accessor": "a", "expires": null, "root": false,
        "rules": allowed.chain(denied).collect::<Vec<_>>(),
    });
    Rights::new(serde_json::from_value(answered).unwrap(), default_allow)
}

fn filtered(shape: Shape, rights: &Rights, value: &Value) -> (Value, bool) {
    let reply = shape.filter(rights, json_reply(StatusCode::OK, value), true);
    let marked = reply
        .headers()
        .contains_key("x-consul-results-filtered-by-acls");
    let body = reply.into_body().into_bytes().unwrap();
    (serde_json::from_slice(&body).unwrap(), marked)
}

fn entry(service: &str, node: &str) -> Value {
    json!({"Node": {"Node": node}, "Service": {"Service": service}, "Checks": []})
}

#[test]
fn every_shape_loses_what_may_not_be_seen() {
    let some = rights(
        &["consul/service/web", "consul/node/n1", "consul/event/up"],
        &[],
        false,
    );
    let check = |service: &str, node: &str| json!({"Node": node, "ServiceName": service});
    let service = |name: &str| json!({"Service": name});
    for (shape, whole, left) in [
        (
            Shape::HealthEntries,
            json!([entry("web", "n1"), entry("web", "n2"), entry("db", "n1")]),
            json!([entry("web", "n1")]),
        ),
        (
            Shape::CatalogEntries,
            json!([check("web", "n1"), check("db", "n1"), check("web", "n2")]),
            json!([check("web", "n1")]),
        ),
        (
            Shape::Nodes,
            json!([{"Node": "n1"}, {"Node": "n2"}, {}]),
            json!([{"Node": "n1"}]),
        ),
        (
            Shape::ServiceNames,
            json!({"web": [], "db": []}),
            json!({"web": []}),
        ),
        (
            Shape::Checks,
            json!([
                check("", "n1"),
                check("", "n2"),
                check("db", "n1"),
                check("web", "n1")
            ]),
            json!([check("", "n1"), check("web", "n1")]),
        ),
        (
            Shape::AgentServices,
            json!({"1": service("web"), "2": service("db")}),
            json!({"1": service("web")}),
        ),
        (
            Shape::AgentChecks,
            json!({"1": check("web", "n1"), "2": check("db", "n1")}),
            json!({"1": check("web", "n1")}),
        ),
        (
            Shape::NodeServices,
            json!({"Node": {"Node": "n1"}, "Services": {"1": service("web"), "2": service("db")}}),
            json!({"Node": {"Node": "n1"}, "Services": {"1": service("web")}}),
        ),
        (
            Shape::NodeServiceList,
            json!({"Node": {"Node": "n2"}, "Services": [service("web")]}),
            Value::Null,
        ),
        (
            Shape::Members,
            json!([{"Name": "n1"}, {"Name": "n2"}]),
            json!([{"Name": "n1"}]),
        ),
        (
            Shape::Executed,
            json!({"Service": "", "Nodes": [entry("web", "n1"), entry("web", "n2")]}),
            json!({"Service": "", "Nodes": [entry("web", "n1")]}),
        ),
        (
            Shape::Events,
            json!([{"Name": "up"}, {"Name": "down"}]),
            json!([{"Name": "up"}]),
        ),
        (
            Shape::Explained,
            json!({"Query": {"ID": "1", "Name": "q", "Template": {"Type": ""}}}),
            json!({}),
        ),
    ] {
        assert_eq!(filtered(shape, &some, &whole), (left, true), "{shape:?}");
        // Nobody's rights, and everybody's.
        let (nothing, _) = filtered(shape, &rights(&[], &[], false), &whole);
        // What a query is for, it says itself.
        let told = shape == Shape::Executed;
        assert!(
            told || !nothing.to_string().contains("web"),
            "{shape:?}: {nothing}"
        );
        assert!(!nothing.to_string().contains("n1"), "{shape:?}: {nothing}");
        let all = rights(&["consul/*", "mesh/*"], &[], false);
        assert_eq!(filtered(shape, &all, &whole), (whole, false), "{shape:?}");
    }
}

#[test]
fn a_rule_counts_more_than_the_default() {
    let open = rights(&[], &["consul/service/db"], true);
    let whole = json!([entry("web", "n1"), entry("DB", "n1")]);
    let left = json!([entry("web", "n1")]);
    assert_eq!(filtered(Shape::HealthEntries, &open, &whole), (left, true));
    assert!(
        open.require(Capability::Update, "consul/service/web")
            .is_ok()
    );
    let refused = open
        .require(Capability::Update, "consul/service/db")
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Permission denied: token with AccessorID 'a' lacks permission 'service:write' on \"db\""
    );
}

#[test]
fn an_answer_that_cannot_be_read_is_not_shown() {
    let some = rights(&[], &[], false);
    let mut reply = text(StatusCode::OK, "[{");
    reply
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, crate::consul::JSON);
    assert_eq!(Shape::Nodes.filter(&some, reply, true).status(), 500);
}
