//! Instances: registered, refused, shown.

use super::*;

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
