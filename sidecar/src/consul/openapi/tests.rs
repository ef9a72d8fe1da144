use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf};

use super::*;
use crate::consul::tests::api;

/// What differs from Consul's, by pattern; further words are in `docs/compatibility.md`.
const BETTER: &[(&str, &str)] = &[
    (
        "/v1/agent/metrics",
        "Prometheus' format needs no setting; names of its own",
    ),
    ("/v1/agent/reload", "what was registered over HTTP stays"),
    (
        "/v1/agent/connect/authorize",
        "another trust domain or a revoked certificate is never authorized",
    ),
    (
        "/v1/agent/connect/ca/leaf/:service",
        "only for those who may, also without ACLs",
    ),
    ("/v1/catalog/service/*name", "answered while no server is"),
    ("/v1/health/service/*name", "answered while no server is"),
    (
        "/v1/query/:id/execute",
        "answered while no server is; no failover to other datacenters",
    ),
    (
        "/v1/connect/intentions/check",
        "answered while no server is",
    ),
    (
        "/v1/discovery-chain/:service",
        "answered while no server is; no overrides",
    ),
];
const OTHER: &[(&str, &str)] = &[
    (
        "/v1/config",
        "kinds and fields that are not followed are refused by name",
    ),
    ("/v1/connect/ca/configuration", "shown; cannot be set"),
    ("/v1/operator/raft/configuration", "one server, no Raft"),
    (
        "/v1/operator/autopilot/configuration",
        "shown; cannot be set",
    ),
    (
        "/v1/txn",
        "keys, or nodes without an agent; not both in one",
    ),
    ("/v1/agent/join/*address", "one pool, no WAN"),
];
/// What Consul has and we have not, and why.
const ABSENT: &[(&str, &str)] = &[
    ("/v1/agent/metrics/stream", "ask again"),
    ("/v1/exported-services", "no peering"),
    ("/v1/imported-services", "no peering"),
    ("/v1/peering…", "no peering"),
    ("/v1/internal/federation-state…", "one datacenter"),
    (
        "/v1/internal/ui/{exported-services,gateway-…,service-topology,metrics-proxy}",
        "for Consul's web page only",
    ),
    ("/v1/operator/raft/{peer,transfer-leader}", "no Raft"),
];

fn manual() -> String {
    let mut text = "# Endpoints of the Consul interface\n\nEvery endpoint that an agent has; `*name` is a name that may have slashes. \
         Made from the route table (also at `/v1/mesh/openapi`, as OpenAPI).\nWhat is *as Consul* answers as Consul 1.21 does, by its \
         recorded answers and its clients; [compatibility.md](compatibility.md) says how the others differ. A server's own \
         port has `/v1/snapshot` besides.\n"
        .to_owned();
    let mut groups: BTreeMap<String, Vec<(String, Vec<Method>)>> = BTreeMap::new();
    for (pattern, methods) in api().routes.table() {
        let named = groups.entry(group(&pattern).to_owned()).or_default();
        named.push((pattern, methods));
    }
    let note = |pattern: &str| {
        let find = |list: &[(&str, &'static str)]| {
            list.iter()
                .find(|(p, _)| *p == pattern)
                .map(|(_, why)| *why)
        };
        match (find(BETTER), find(OTHER)) {
            (Some(why), _) => format!("better: {why}"),
            (None, Some(why)) => format!("differs: {why}"),
            (None, None) if group(pattern) == "mesh" => "of our own".to_owned(),
            (None, None) => "as Consul".to_owned(),
        }
    };
    for (group, routes) in groups.iter().filter(|(group, _)| !group.is_empty()) {
        let _ = write!(
            text,
            "\n## {group}\n\n| endpoint | methods | |\n|---|---|---|\n"
        );
        for (pattern, methods) in routes {
            let methods: Vec<_> = methods.iter().map(Method::as_str).collect();
            let _ = writeln!(
                text,
                "| `{pattern}` | {} | {} |",
                methods.join(", "),
                note(pattern)
            );
        }
    }
    text += "\n## Absent\n\nThese answer as a path that is not there: 404.\n\n| endpoint | why |\n|---|---|\n";
    for (pattern, why) in ABSENT {
        let _ = writeln!(text, "| `{pattern}` | {why} |");
    }
    text
}

#[test]
fn the_manual_has_the_route_table() {
    let file = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let file = file.join("../docs/consul-api.md");
    let manual = manual();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, &manual).unwrap();
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        kept == manual,
        "docs/consul-api.md is not what the route table says: run this test with UPDATE_DOCS=1"
    );
    let table = api().routes.table();
    for (pattern, _) in BETTER.iter().chain(OTHER) {
        assert!(table.iter().any(|(there, _)| there == pattern), "{pattern}");
    }
}

#[test]
fn the_document_has_every_route_with_its_names() {
    let document = document(&api().routes);
    let read = &document["paths"]["/v1/kv/{key}"]["get"];
    assert_eq!(read["tags"], json!(["kv"]));
    assert_eq!(read["parameters"][0]["name"], "key");
    let names = |of: &Value| {
        let parameters = of["parameters"].as_array().unwrap().iter();
        let names: Vec<_> = parameters.map(|it| it["name"].clone()).collect();
        json!(names)
    };
    assert_eq!(names(read), json!(["key", "index", "wait", "pretty"]));
    let write = &document["paths"]["/v1/kv/{key}"]["put"];
    assert_eq!(names(write), json!(["key", "pretty"]));
    let count: usize = document["paths"].as_object().unwrap().len();
    assert_eq!(count, api().routes.table().len());
}
