//! Paths, methods, parameters, filters.

use super::*;

#[tokio::test]
async fn paths_methods_and_parameters_as_consul_has_them() {
    let api = api();
    for (method, path, status, words) in [
        (
            "GET",
            "/v1/frobnicate",
            404,
            "Invalid URL path: not a recognized HTTP API endpoint\n",
        ),
        (
            "GET",
            "/v1/catalog/nodes/",
            404,
            "Invalid URL path: not a recognized HTTP API endpoint\n",
        ),
        (
            "POST",
            "/v1/agent/service/register",
            405,
            "method POST not allowed",
        ),
        ("GET", "/v1/catalog/service/", 400, "Missing service name"),
        ("GET", "/v1/health/state/", 400, "Missing check state"),
        (
            "GET",
            "/v1/health/service/web?passing=xyz",
            400,
            "Invalid value for ?passing",
        ),
        ("GET", "/v1/catalog/nodes?index=abc", 400, "Invalid index"),
        (
            "GET",
            "/v1/catalog/nodes?index=1&wait=soon",
            400,
            "Invalid wait time",
        ),
        (
            "GET",
            "/v1/catalog/nodes?dc=nowhere",
            500,
            "No path to datacenter",
        ),
        (
            "GET",
            "/v1/catalog/nodes?stale&consistent",
            400,
            "Cannot specify ?stale with ?consistent, conflicting semantics.",
        ),
        (
            "GET",
            "/v1/catalog/nodes?partition=p1",
            400,
            "Invalid query parameter: \"partition\" - Partitions are a Consul Enterprise feature",
        ),
        ("GET", "/v1/kv/a%00b", 400, ""),
        ("GET", "/v1/acl/tokens", 401, "ACL support disabled"),
        ("GET", "/v1/catalog/node/none", 200, "null"),
        (
            "GET",
            "/v1/connect/intentions/check?source=a&destination=b",
            200,
            "{\"Allowed\":true}",
        ),
        ("GET", "/v1/kv/a/b?raw", 200, "GET /v1/kv/a/b?raw"),
    ] {
        let answer = ask(&api, method, path, "").await;
        assert_eq!(
            (answer.status, &*answer.text),
            (status, words),
            "{method} {path}"
        );
        let policy = answer.headers.get("x-consul-default-acl-policy");
        let no_endpoint = status == 404 || path.contains("%00");
        assert_eq!(policy.is_none(), no_endpoint, "{method} {path}");
    }
    let options = ask(&api, "OPTIONS", "/v1/kv/a", "").await;
    assert_eq!(options.headers["allow"], "OPTIONS,GET,PUT,DELETE");
    let twice = get(&api, "/v1//catalog//nodes").await;
    assert_eq!(
        (twice.status, &twice.headers["location"]),
        (307, &"/v1/catalog/nodes".parse().unwrap())
    );
    let large = "x".repeat(MAX_VALUE + 1);
    assert_eq!(ask(&api, "PUT", "/v1/kv/big", &large).await.status, 413);
    let pretty = get(&api, "/v1/catalog/datacenters?pretty").await;
    assert_eq!(pretty.text, "[\n  \"dc1\"\n]\n");
    let own = get(&api, "/v1/agent/self").await.json();
    assert_eq!(own["Config"]["NodeName"], "n1");
}

#[tokio::test]
async fn answers_of_catalog_and_health_are_filtered() {
    let api = api();
    for (id, team, status) in [("web1", "a", "passing"), ("web2", "b", "critical")] {
        let check = json!({"TTL": "1h", "Status": status});
        let body =
            json!({"ID": id, "Name": "web", "Port": 80, "Meta": {"team": team}, "Check": check});
        register(&api, body).await;
    }
    for (path, filter, field, expected) in [
        (
            "catalog/service/web",
            "ServiceMeta.team == a",
            "/ServiceID",
            vec!["web1"],
        ),
        (
            "catalog/service/web",
            "ServiceID matches `^web[12]$`",
            "/ServiceID",
            vec!["web1", "web2"],
        ),
        ("catalog/nodes", "Node == nobody", "/Node", vec![]),
        (
            "health/service/web",
            "Service.Meta.team != a",
            "/Service/ID",
            vec!["web2"],
        ),
        (
            "health/checks/web",
            "Status == passing",
            "/ServiceID",
            vec!["web1"],
        ),
        (
            "health/state/any",
            "ServiceName == web and Status != passing",
            "/ServiceID",
            vec!["web2"],
        ),
        (
            "health/node/n1",
            "CheckID == serfHealth",
            "/CheckID",
            vec!["serfHealth"],
        ),
    ] {
        let path = format!("/v1/{path}?filter={}", encode(filter));
        let answer = get(&api, &path).await;
        let found = answer.json();
        let found = found
            .as_array()
            .unwrap_or_else(|| panic!("{path}: {}", answer.text));
        let found: Vec<_> = found
            .iter()
            .filter_map(|one| one.pointer(field)?.as_str())
            .collect();
        assert_eq!(found, expected, "{path}");
    }
    let path = format!("/v1/catalog/node/n1?filter={}", encode("Meta.team == b"));
    let node = get(&api, &path).await.json();
    let services: Vec<_> = node["Services"].as_object().unwrap().keys().collect();
    assert_eq!(services, ["web2"]);
    let path = format!(
        "/v1/catalog/services?filter={}",
        encode("ServiceName == web and ServiceMeta.team == b")
    );
    let services = get(&api, &path).await.json();
    let names: Vec<_> = services.as_object().unwrap().keys().collect();
    assert_eq!(names, ["web"]);
    for (path, filter) in [
        ("catalog/service/web", "Nope == a"),
        ("health/service/web", "Service matches `([`"),
        ("catalog/services", "Nope == web"),
    ] {
        let path = format!("/v1/{path}?filter={}", encode(filter));
        assert_eq!(get(&api, &path).await.status, 500, "{path}");
    }
}
