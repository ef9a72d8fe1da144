//! The interface in front of a catalog of one node, as clients see it.

use std::{net::Ipv4Addr, time::Duration};

use http::Response;
use libmesh::{
    identity::SpiffeId,
    model::{Liveness, NodeRecord, Roles},
};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::*;
use crate::{
    forward::Api,
    http::{Remote, query::encode},
};

mod answers;

/// Says what it was asked.
struct Echo;

impl Forward for Echo {
    fn forward(
        &self,
        _: Api,
        request: Request<Bytes>,
        _: Option<SpiffeId>,
    ) -> BoxFuture<Response<Bytes>> {
        let asked = format!("{} {}", request.method(), request.uri());
        Box::pin(async move { Response::new(Bytes::from(asked)) })
    }
}

pub fn api() -> ConsulApi {
    api_with(|_| {})
}

fn api_with(change: impl FnOnce(&mut About)) -> ConsulApi {
    let id = NodeId([7; 16]);
    let node = NodeName::parse("n1").unwrap();
    let catalog = Catalog::new(id);
    let record = NodeRecord {
        roles: Roles { server: true },
        version: "0.1.0".into(),
        ..NodeRecord::new(id, node.clone(), Ipv4Addr::new(127, 0, 0, 9).into(), 8301)
    };
    catalog.local().put_node(record).unwrap();
    catalog.set_liveness(id, Liveness::Alive);
    let mut about = About {
        node,
        id,
        datacenter: Datacenter::default(),
        server: true,
        advertise: ([127, 0, 0, 9], 8301).into(),
        dns: None,
        default_allow: true,
        exec_checks: false,
        acls: false,
        like_consul: false,
    };
    change(&mut about);
    let checks = Scheduler::new(catalog.local());
    ConsulApi::new(Parts {
        about,
        catalog,
        checks,
        bundles: None,
        authority: None,
        forward: Arc::new(Echo),
        queries: Queries::default(),
    })
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    fn index(&self) -> u64 {
        self.headers["x-consul-index"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap()
    }
}

async fn ask(api: &ConsulApi, method: &str, path: &str, body: &str) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(Bytes::copy_from_slice(body.as_bytes()))
        .unwrap();
    let conn = ConnInfo::new(Remote::Tcp(([127, 0, 0, 1], 9).into()));
    let reply = api.clone().handle(request, Arc::new(conn)).await;
    let (head, body) = reply.into_parts();
    let body = body.into_bytes().unwrap();
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        text: String::from_utf8(body.to_vec()).unwrap(),
    }
}

async fn get(api: &ConsulApi, path: &str) -> Answer {
    ask(api, "GET", path, "").await
}

async fn register(api: &ConsulApi, body: Value) {
    let path = "/v1/agent/service/register";
    let answer = ask(api, "PUT", path, &body.to_string()).await;
    assert_eq!((answer.status, &*answer.text), (200, ""));
}

#[tokio::test]
async fn a_registered_service_is_found_everywhere() {
    let api = api();
    register(
        &api,
        json!({"ID": "web1", "Name": "web", "Tags": ["v1", "primary"], "Address": "127.0.4.1",
               "Port": 8001, "Meta": {"team": "a"}}),
    )
    .await;
    let own = get(&api, "/v1/agent/services").await.json();
    assert_eq!(
        own["web1"],
        json!({"ID": "web1", "Service": "web", "Tags": ["v1", "primary"], "Meta": {"team": "a"},
               "Port": 8001, "Address": "127.0.4.1",
               "TaggedAddresses": {"lan_ipv4": {"Address": "127.0.4.1", "Port": 8001},
                                   "wan_ipv4": {"Address": "127.0.4.1", "Port": 8001}},
               "Weights": {"Passing": 1, "Warning": 1}, "EnableTagOverride": false,
               "Datacenter": "dc1"})
    );
    assert_eq!(
        get(&api, "/v1/catalog/services").await.json(),
        json!({"web": ["primary", "v1"]})
    );
    let entry = &get(&api, "/v1/catalog/service/web?tag=V1&tag=primary")
        .await
        .json()[0];
    assert_eq!(
        (&entry["ServiceID"], &entry["Node"]),
        (&json!("web1"), &json!("n1"))
    );
    assert_eq!(get(&api, "/v1/catalog/service/web?tag=v9").await.text, "[]");
    let health = &get(&api, "/v1/health/service/web?passing").await.json()[0];
    assert_eq!(health["Service"]["Port"], 8001);
    assert_eq!(health["Node"]["Address"], "127.0.0.9");
    assert_eq!(health["Checks"][0]["CheckID"], "serfHealth");
    let one = get(&api, "/v1/agent/service/web1").await.json();
    assert_eq!(one["ID"], "web1");
    let hash = one["ContentHash"].as_str().unwrap();
    let waiting = tokio::spawn({
        let (api, path) = (
            api.clone(),
            format!("/v1/agent/service/web1?hash={hash}&wait=60s"),
        );
        async move { get(&api, &path).await.json() }
    });
    let short = format!("/v1/agent/service/web1?hash={hash}&wait=200ms");
    assert_eq!(get(&api, &short).await.json()["ContentHash"], hash);
    register(&api, json!({"ID": "web1", "Name": "web", "Port": 8002})).await;
    let changed = timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(changed["Port"], 8002);
    let members = get(&api, "/v1/agent/members").await.json();
    assert_eq!(
        (&members[0]["Name"], &members[0]["Status"]),
        (&json!("n1"), &json!(1))
    );
    assert_eq!(
        get(&api, "/v1/status/leader").await.text,
        "\"127.0.0.9:8301\""
    );

    let gone = ask(&api, "PUT", "/v1/agent/service/deregister/web1", "").await;
    assert_eq!(gone.status, 200);
    assert_eq!(get(&api, "/v1/health/service/web").await.text, "[]");
    let gone = ask(&api, "PUT", "/v1/agent/service/deregister/web1", "").await;
    assert_eq!(
        (gone.status, &*gone.text),
        (
            404,
            "Unknown service ID \"web1\". Ensure that the service ID is passed, not the service name."
        )
    );
}

#[tokio::test]
async fn ports_addresses_kind_and_locality_are_taken_and_shown() {
    let api = api();
    register(
        &api,
        json!({"ID": "p1", "Name": "web-proxy", "Kind": "connect-proxy", "Address": "127.0.4.1",
               "Ports": [{"Name": "http", "Port": 8001, "Default": true}, {"Name": "admin", "Port": 9001}],
               "TaggedAddresses": {"wan": {"Address": "web.example.com", "Port": 443},
                                   "lan_ipv4": {"Address": "10.1.2.3", "Port": 80}},
               "Locality": {"Region": "eu", "Zone": "eu-1"},
               "Proxy": {"DestinationServiceName": "web", "DestinationServiceID": "web1",
                         "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 8000}}),
    )
    .await;
    let ports =
        json!([{"Name": "http", "Port": 8001, "Default": true}, {"Name": "admin", "Port": 9001}]);
    let tagged = json!({"wan": {"Address": "web.example.com", "Port": 443},
                        "lan_ipv4": {"Address": "10.1.2.3", "Port": 80},
                        "wan_ipv4": {"Address": "127.0.4.1", "Port": 8001}});
    let locality = json!({"Region": "eu", "Zone": "eu-1"});
    let own = &get(&api, "/v1/agent/services").await.json()["p1"];
    let health = &get(&api, "/v1/health/service/web-proxy").await.json()[0]["Service"];
    for shown in [own, health] {
        assert_eq!(shown["Kind"], "connect-proxy");
        assert_eq!((&shown["Port"], &shown["Ports"]), (&json!(8001), &ports));
        assert_eq!(shown["TaggedAddresses"], tagged);
        assert_eq!(shown["Locality"], locality);
        assert_eq!(shown["Proxy"]["DestinationServiceName"], "web");
        assert_eq!(shown["Proxy"]["LocalServicePort"], 8000);
    }
    let entry = &get(&api, "/v1/catalog/service/web-proxy").await.json()[0];
    assert_eq!(entry["ServiceKind"], "connect-proxy");
    assert_eq!(
        (&entry["ServicePorts"], &entry["ServiceLocality"]),
        (&ports, &locality)
    );
    assert_eq!(entry["ServiceProxy"]["DestinationServiceID"], "web1");

    let wrong = [
        json!({"Name": "a", "Kind": "nonsense"}),
        json!({"Name": "a", "Kind": "connect-proxy"}),
        json!({"Name": "a", "Port": 1, "Ports": [{"Name": "http", "Port": 2}]}),
        json!({"Name": "a", "TaggedAddresses": {"lan": {"Address": "a b"}}}),
        json!({"Name": "a", "Locality": {"Zone": "z"}}),
        json!({"Name": "a", "Proxy": {"Upstreams": [{}]}}),
    ];
    for body in wrong {
        let answer = ask(&api, "PUT", "/v1/agent/service/register", &body.to_string()).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text);
    }
}

#[tokio::test]
async fn registrations_that_consul_refuses_are_refused_in_its_words() {
    let api = api();
    for (body, status, words) in [
        (r#"{"ID": "x"}"#, 400, "Missing service name"),
        (
            r#"{"Name": "x","#,
            400,
            "Request decode failed: unexpected EOF",
        ),
        ("", 400, "Request decode failed: EOF"),
        (
            r#"{"Name": "x", "Port": "eighty"}"#,
            400,
            "Request decode failed: json: cannot unmarshal string into Go struct field .Port of type int",
        ),
        (
            r#"{"Name": "unk", "Frobnicate": 1}"#,
            400,
            "Request decode failed: json: unknown field \"Frobnicate\"",
        ),
        (
            r#"{"Name": "x", "Check": {"TTL": "soon"}}"#,
            400,
            "Request decode failed: time: invalid duration \"soon\"",
        ),
        (
            r#"{"Name": "x", "Check": {"HTTP": "http://127.0.0.1:1"}}"#,
            400,
            "Invalid check: Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks",
        ),
        (
            r#"{"Name": "x", "Weights": {"Passing": -1, "Warning": 1}}"#,
            400,
            "Invalid Weights: Passing must be greater than 0",
        ),
        (
            r#"{"Name": "x", "Check": {"TTL": "1h", "Interval": "1s"}}"#,
            400,
            "Invalid check: Interval and TTL cannot both be specified",
        ),
        (
            r#"{"Name": "x", "Connect": {"SidecarService": {}}}"#,
            400,
            "Connect is not supported by this version of mesh",
        ),
    ] {
        let answer = ask(&api, "PUT", "/v1/agent/service/register", body).await;
        assert_eq!((answer.status, &*answer.text), (status, words), "{body}");
    }
    assert_eq!(get(&api, "/v1/agent/services").await.text, "{}");
}

#[tokio::test]
async fn ttl_checks_are_told_and_decide_the_health() {
    let api = api();
    register(
        &api,
        json!({"id": "web2", "name": "web", "enable_tag_override": true, "check": {"ttl": "1h"}}),
    )
    .await;
    let check = get(&api, "/v1/agent/checks").await.json()["service:web2"].clone();
    assert_eq!(check["Name"], "Service 'web' check");
    assert_eq!(
        (&check["Status"], &check["Type"]),
        (&json!("critical"), &json!("ttl"))
    );
    let passing = "/v1/health/service/web?passing=true";
    assert_eq!(get(&api, passing).await.text, "[]");

    let told = ask(
        &api,
        "PUT",
        "/v1/agent/check/pass/service:web2?note=fine",
        "",
    )
    .await;
    assert_eq!((told.status, &*told.text), (200, ""));
    let entry = get(&api, passing).await.json()[0].clone();
    let own = entry["Checks"][1].clone();
    assert_eq!(
        (&own["Status"], &own["Output"]),
        (&json!("passing"), &json!("fine"))
    );

    let body = r#"{"Status": "warning", "Output": "by update"}"#;
    ask(&api, "PUT", "/v1/agent/check/update/service:web2", body).await;
    let text = get(&api, "/v1/agent/health/service/id/web2?format=text").await;
    assert_eq!((text.status, &*text.text), (429, "warning"));
    assert_eq!(text.headers["x-consul-reason"], "warning");
    let state = get(&api, "/v1/health/state/warning").await.json();
    assert_eq!(state[0]["CheckID"], "service:web2");

    let bad = ask(
        &api,
        "PUT",
        "/v1/agent/check/update/service:web2",
        r#"{"Status": "great"}"#,
    )
    .await;
    assert_eq!(
        (bad.status, &*bad.text),
        (400, "Invalid check status: 'great'")
    );
    let none = ask(&api, "PUT", "/v1/agent/check/pass/none", "").await;
    assert_eq!(none.status, 404);

    let on = "/v1/agent/service/maintenance/web2?enable=true&reason=because";
    assert_eq!(ask(&api, "PUT", on, "").await.status, 200);
    let health = get(&api, "/v1/agent/health/service/name/web").await;
    assert_eq!(health.status, 503);
    assert_eq!(health.json()[0]["AggregatedStatus"], "maintenance");
    let critical = get(&api, "/v1/health/checks/web").await.json();
    assert_eq!(critical[0]["Status"], "critical");
}

#[tokio::test]
async fn a_blocking_query_waits_for_its_own_service_only() {
    let api = api();
    register(&api, json!({"Name": "web", "Port": 1})).await;
    let index = get(&api, "/v1/health/service/web").await.index();
    assert!(index > 1_000_000);

    let path = format!("/v1/health/service/web?index={index}&wait=60s");
    let waiting = tokio::spawn({
        let (api, path) = (api.clone(), path.clone());
        async move { get(&api, &path).await }
    });
    // Neither another service nor the same registration again ends the wait.
    register(&api, json!({"Name": "other", "Port": 1})).await;
    register(&api, json!({"Name": "web", "Port": 1})).await;
    let short = format!("/v1/health/service/web?index={index}&wait=300ms");
    let began = Instant::now();
    assert_eq!(get(&api, &short).await.index(), index);
    assert!(Instant::now() - began >= Duration::from_millis(300));
    assert!(!waiting.is_finished());

    register(&api, json!({"Name": "web", "Port": 2})).await;
    let woken = timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(woken.json()[0]["Service"]["Port"], 2);
    assert!(woken.index() > index);
    // An old index, and index 0, answer at once.
    for old in [0, index] {
        let path = format!("/v1/health/service/web?index={old}&wait=60s");
        timeout(Duration::from_secs(10), get(&api, &path))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_service_nobody_has_answers_old_indexes_at_once_and_does_not_spin() {
    let api = api();
    let first = timeout(
        Duration::from_secs(10),
        get(&api, "/v1/health/service/absent?index=1&wait=60s"),
    );
    let first = first.await.unwrap();
    assert_eq!(first.text, "[]");
    let path = format!(
        "/v1/health/service/absent?index={}&wait=200ms",
        first.index()
    );
    let began = Instant::now();
    get(&api, &path).await;
    assert!(Instant::now() - began >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_drain_ends_long_polls() {
    let api = api();
    let index = get(&api, "/v1/catalog/nodes").await.index();
    let conn = Arc::new(ConnInfo::new(Remote::Tcp(([127, 0, 0, 1], 9).into())));
    let path = format!("/v1/catalog/nodes?index={index}&wait=60s");
    let request = Request::get(path).body(Bytes::new()).unwrap();
    let waiting = tokio::spawn(api.handle(request, Arc::clone(&conn)));
    conn.shutdown.cancel();
    let reply = timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(reply.status(), 200);
}

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
async fn checks_of_every_kind_are_registered_and_shown() {
    let api = api_with(|about| about.exec_checks = true);
    register(&api, json!({"Name": "web", "Port": 1})).await;
    let kinds = [
        (
            json!({"HTTP": "https://127.0.0.1:1/", "Interval": "10s", "Method": "POST", "Body": "b",
                "Header": {"X": ["1", "2"]}, "TLSSkipVerify": true, "TLSServerName": "a.test",
                "DisableRedirects": true, "OutputMaxSize": 100}),
            "http",
            "10s",
            "10s",
        ),
        (
            json!({"TCP": "127.0.0.1:1", "TCPUseTLS": true, "Interval": "90s", "Timeout": "1500ms"}),
            "tcp",
            "1m30s",
            "1.5s",
        ),
        (
            json!({"UDP": "127.0.0.1:1", "Interval": "10ms"}),
            "udp",
            "1s",
            "10s",
        ),
        (
            json!({"GRPC": "127.0.0.1:1/a", "GRPCUseTLS": true, "Interval": 1_000_000_000u64}),
            "grpc",
            "1s",
            "10s",
        ),
        (
            json!({"H2PING": "127.0.0.1:1", "H2PingUseTLS": false, "Interval": "1h"}),
            "h2ping",
            "1h0m0s",
            "10s",
        ),
        (
            json!({"Args": ["/bin/true"], "Interval": "10s"}),
            "script",
            "10s",
            "30s",
        ),
        (
            json!({"ScriptArgs": ["/bin/true"], "Interval": "10s", "Timeout": "1s"}),
            "script",
            "10s",
            "1s",
        ),
        (json!({"TTL": "1h"}), "ttl", "", ""),
        (json!({"AliasService": "web"}), "alias", "", ""),
        (json!({"AliasNode": "n1"}), "alias", "", ""),
    ];
    for (at, (mut body, kind, interval, timeout)) in kinds.into_iter().enumerate() {
        let name = format!("c{at}");
        body["Name"] = json!(name);
        body["ServiceID"] = json!("web");
        let path = "/v1/agent/check/register";
        let answer = ask(&api, "PUT", path, &body.to_string()).await;
        assert_eq!((answer.status, &*answer.text), (200, ""), "{body}");
        let shown = get(&api, "/v1/agent/checks").await.json()[&name].clone();
        assert_eq!(
            (&shown["Type"], &shown["Interval"], &shown["Timeout"]),
            (&json!(kind), &json!(interval), &json!(timeout)),
            "{body}"
        );
    }
    let filter = "/v1/agent/checks?filter=Type%20%3D%3D%20alias%20and%20Interval%20is%20empty";
    let aliases = get(&api, filter).await.json();
    let names: Vec<_> = aliases.as_object().unwrap().keys().collect();
    assert_eq!(names, ["c8", "c9"]);
    let bad = get(&api, "/v1/agent/checks?filter=Nope%20%3D%3D%20a").await;
    assert_eq!(
        (bad.status, &*bad.text),
        (
            500,
            "Failed to create boolean expression evaluator: Selector \"Nope\" is not valid"
        )
    );
}

#[tokio::test]
async fn checks_that_make_no_sense_are_refused_in_consuls_words() {
    let api = api();
    let interval = "Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks";
    for (body, reason) in [
        (json!({"GRPC": "127.0.0.1:1"}), interval),
        (json!({"UDP": "127.0.0.1:1"}), interval),
        (
            json!({"AliasService": "a", "TTL": "1s"}),
            "TTL must be not be set for Alias checks",
        ),
        (
            json!({"AliasService": "a", "TCP": "a:1", "Interval": "1s"}),
            "Interval cannot be set for Alias checks",
        ),
        (
            json!({"TCP": "a:1", "UDP": "a:1", "Interval": "1s"}),
            "only one type of check can be specified",
        ),
        (
            json!({"TTL": "1s", "FailuresBeforeWarning": 3, "FailuresBeforeCritical": 2}),
            "FailuresBeforeWarning can't be higher than FailuresBeforeCritical",
        ),
        (
            json!({"TCP": "a:1", "Interval": "1s", "OutputMaxSize": -1}),
            "MaxOutputMaxSize must be positive",
        ),
        (
            json!({"H2PING": "a", "Interval": "1s"}),
            "h2ping: \"a\" is not host:port",
        ),
    ] {
        let mut body = body;
        body["Name"] = json!("c");
        let answer = ask(&api, "PUT", "/v1/agent/check/register", &body.to_string()).await;
        assert_eq!(
            (answer.status, answer.text),
            (400, format!("Invalid check: {reason}")),
            "{body}"
        );
    }
    for (field, value) in [("OSService", "a"), ("DockerContainerID", "a")] {
        let body = json!({"Name": "c", field: value, "Interval": "1s"});
        let answer = ask(&api, "PUT", "/v1/agent/check/register", &body.to_string()).await;
        assert_eq!(
            (answer.status, answer.text),
            (
                400,
                format!("{field} is not supported by this version of mesh")
            )
        );
    }
    let script = json!({"Name": "c", "Args": ["/bin/true"], "Interval": "1s"});
    let answer = ask(&api, "PUT", "/v1/agent/check/register", &script.to_string()).await;
    assert_eq!(answer.status, 500);
    assert!(
        answer
            .text
            .starts_with("Scripts are disabled on this agent from remote calls")
    );
}

#[tokio::test]
async fn maintenance_takes_a_node_and_a_service_out_of_use() {
    let api = api();
    register(&api, json!({"Name": "web", "Port": 1})).await;
    let put = async |path: &str| ask(&api, "PUT", path, "").await.status;
    assert_eq!(
        put("/v1/agent/maintenance?enable=true&reason=reboot").await,
        200
    );
    let checks = get(&api, "/v1/agent/checks").await.json();
    let check = &checks["_node_maintenance"];
    assert_eq!(
        (&check["Status"], &check["Notes"], &check["Type"]),
        (&json!("critical"), &json!("reboot"), &json!("maintenance"))
    );
    let passing = get(&api, "/v1/health/service/web?passing").await.json();
    assert_eq!(passing, json!([]));
    assert_eq!(put("/v1/agent/maintenance?enable=false").await, 200);
    assert_eq!(
        put("/v1/agent/service/maintenance/web?enable=true").await,
        200
    );
    let passing = get(&api, "/v1/health/service/web?passing").await.json();
    assert_eq!(passing, json!([]));
    let notes = get(&api, "/v1/agent/checks").await.json()["_service_maintenance:web"].clone();
    assert_eq!(
        notes["Notes"],
        "Maintenance mode is enabled for this service, but no reason was provided. \
         This is a default message."
    );
    assert_eq!(
        put("/v1/agent/service/maintenance/web?enable=false").await,
        200
    );
    let passing = get(&api, "/v1/health/service/web?passing").await.json();
    assert_eq!(passing.as_array().unwrap().len(), 1);
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
    for (path, filter) in [
        ("catalog/service/web", "Nope == a"),
        ("health/service/web", "Service matches `([`"),
        ("catalog/services", "ServiceName == web"),
    ] {
        let path = format!("/v1/{path}?filter={}", encode(filter));
        assert_eq!(get(&api, &path).await.status, 500, "{path}");
    }
}
