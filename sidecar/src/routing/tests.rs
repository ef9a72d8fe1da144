use serde_json::json;

use super::*;

fn routing(entries: serde_json::Value) -> Routing {
    let entries: Vec<Entry> = serde_json::from_value(entries).unwrap();
    entries.into_iter().collect()
}

fn shares(chain: &Chain) -> Vec<(u32, String)> {
    let branches = chain.branches.iter();
    branches
        .map(|it| (it.weight, it.target.id("dc1")))
        .collect()
}

#[test]
fn without_entries_a_service_takes_its_own_calls() {
    let chain = Routing::default().chain("web").unwrap();
    assert_eq!(chain.protocol, "tcp");
    assert!(chain.branches[0].target.is_default);
    assert_eq!(
        shares(&chain),
        [(WHOLE, "web.default.default.dc1".to_owned())]
    );
}

#[test]
fn calls_are_split_redirected_and_have_who_stands_in() {
    let table = routing(json!([
        {"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}},
        {"Kind": "service-splitter", "Name": "web", "Splits": [
            {"Weight": 90, "ServiceSubset": "v1"}, {"Weight": 9.5, "ServiceSubset": "v2"}, {"Weight": 0.5, "Service": "new"}]},
        {"Kind": "service-resolver", "Name": "web", "ConnectTimeout": "250ms",
            "Subsets": {"v1": {"Filter": "Service.Meta.version == 1"}, "v2": {}},
            "Failover": {"v1": {"ServiceSubset": "v2"}, "*": {"Targets": [{"Service": "old"}, {"Service": "older"}]}}},
        {"Kind": "service-splitter", "Name": "new", "Splits": [{"Weight": 50}, {"Weight": 50, "Service": "newest"}]},
        {"Kind": "service-resolver", "Name": "newest", "Redirect": {"Service": "nightly"}},
    ]));
    table.check().unwrap();
    let chain = table.chain("web").unwrap();
    let id = |id: &str| format!("{id}.default.default.dc1");
    assert_eq!(
        shares(&chain),
        [
            (9000, id("v1.web")),
            (950, id("v2.web")),
            (25, id("new")),
            (25, id("nightly"))
        ]
    );
    let names = |target: &Resolved| {
        let ids = target.failover.iter().map(|it| it.id("dc1"));
        ids.collect::<Vec<_>>()
    };
    let first = &chain.branches[0].target;
    assert_eq!(first.connect_timeout.as_millis(), 250);
    assert_eq!(first.subset.filter, "Service.Meta.version == 1");
    assert_eq!(names(first), [id("v2.web")]);
    assert_eq!(names(&chain.branches[1].target), [id("old"), id("older")]);
}

#[test]
fn what_does_not_fit_together_is_said() {
    let splitter = json!({"Kind": "service-splitter", "Name": "db", "Splits": [{"Weight": 100}]});
    let http = json!({"Kind": "service-defaults", "Name": "db", "Protocol": "http"});
    let error = |entries| routing(entries).check().unwrap_err();
    assert_eq!(
        error(json!([splitter])),
        "discovery chain \"db\" uses a protocol \"tcp\" that does not permit advanced routing or splitting behavior"
    );
    let other = json!({"Kind": "service-splitter", "Name": "db", "Splits": [{"Weight": 100, "Service": "x"}]});
    assert!(error(json!([http, other])).contains("inconsistent protocols"));
    let subset = json!({"Kind": "service-resolver", "Name": "db", "DefaultSubset": "v9"});
    assert_eq!(
        error(json!([subset])),
        "service \"db\" does not have a subset named \"v9\""
    );
    let there = json!({"Kind": "service-resolver", "Name": "a", "Redirect": {"Service": "b"}});
    let back = json!({"Kind": "service-resolver", "Name": "b", "Redirect": {"Service": "a"}});
    assert!(error(json!([there, back])).contains("circular"));
    let itself =
        json!({"Kind": "service-resolver", "Name": "a", "Redirect": {"ServiceSubset": ""}});
    assert!(error(json!([itself])).contains("circular"));
    assert!(routing(json!([http, splitter])).check().is_ok());
}

#[test]
fn a_bundle_carries_them() {
    let entries: Vec<Entry> = serde_json::from_value(json!([
        {"Kind": "service-splitter", "Name": "web", "Splits": [{"Weight": 33.34}, {"Weight": 66.66, "Service": "b"}]},
        {"Kind": "service-resolver", "Name": "web", "Failover": {"*": {"Service": "c"}}},
        {"Kind": "service-defaults", "Name": "web", "Protocol": "grpc"},
        {"Kind": "proxy-defaults", "Name": "global"},
    ]))
    .unwrap();
    let encoded = serde_json::to_vec(&entries).unwrap();
    let decoded: Vec<Entry> = serde_json::from_slice(&encoded).unwrap();
    assert_eq!(decoded, entries);
}
