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
            r#"{"Name": "x", "Connect": {"SidecarService": {"Proxy": {"Upstreams": [{}]}}}}"#,
            400,
            "Upstreams is not supported by this version of mesh",
        ),
        (
            r#"{"Name": "x", "Connect": {"SidecarService": {"Port": 20000}}}"#,
            400,
            "Request decode failed: json: unknown field \"Port\"",
        ),
        (
            r#"{"Name": "x", "Connect": {"Native": true}}"#,
            400,
            "Invalid service: Connect.Native needs a Port: where it speaks mTLS",
        ),
    ] {
        let answer = ask(&api, "PUT", "/v1/agent/service/register", body).await;
        assert_eq!((answer.status, &*answer.text), (status, words), "{body}");
    }
    assert_eq!(get(&api, "/v1/agent/services").await.text, "{}");
}

#[tokio::test]
async fn what_speaks_mtls_is_found_with_the_port_where_it_does() {
    let api = api();
    let paths = ["/v1/health/connect/web", "/v1/catalog/connect/web"];
    for path in paths {
        assert_eq!(get(&api, path).await.text, "[]");
    }
    // Nothing but a wish for a sidecar: none is there yet.
    register(
        &api,
        json!({"ID": "web1", "Name": "web", "Port": 80, "Connect": {"SidecarService": {}}}),
    )
    .await;
    let first = get(&api, paths[0]).await;
    assert_eq!(first.text, "[]");
    let proxy = json!({"Name": "web-sidecar-proxy", "ID": "p", "Port": 20001, "Kind": "connect-proxy",
        "Proxy": {"DestinationServiceName": "web"}});
    let other = json!({"Name": "web-sidecar-proxy", "ID": "q", "Port": 20002, "Kind": "connect-proxy",
        "Proxy": {"DestinationServiceName": "other"}});
    let native = json!({"ID": "web2", "Name": "web", "Port": 81, "Connect": {"Native": true}});
    // Whoever waits hears of proxies as of instances.
    let mut index = first.index();
    for service in [&proxy, &native] {
        let waiting = tokio::spawn({
            let (api, path) = (api.clone(), format!("{}?index={index}&wait=60s", paths[0]));
            async move { get(&api, &path).await }
        });
        register(&api, service.clone()).await;
        let seen = timeout(Duration::from_secs(10), waiting).await.unwrap();
        let seen = seen.unwrap();
        assert!(seen.index() > index);
        index = seen.index();
    }
    register(&api, other).await;
    // A sidecar of ours at the first instance.
    let id = InstanceId::parse("web1").unwrap();
    let local = api.inner.catalog.local();
    let mut attached = Instance::clone(&api.inner.own_service(&id).unwrap());
    attached.mesh_port = Some(21_000);
    local.put_service(attached).unwrap();

    let health = get(&api, paths[0]).await.json();
    let found = health.as_array().unwrap().iter();
    let mut found: Vec<_> = found
        .map(|it| {
            let service = &it["Service"];
            let native = service["Connect"]["Native"] == true;
            (service["ID"].to_string(), service["Port"].as_u64(), native)
        })
        .collect();
    found.sort();
    let expected = [
        ("\"p\"".to_owned(), Some(20_001), false),
        ("\"web1\"".to_owned(), Some(21_000), true),
        ("\"web2\"".to_owned(), Some(81), true),
    ];
    assert_eq!(found, expected);
    let catalog = get(&api, paths[1]).await.json();
    let native = json!({"Native": true});
    let ports = catalog.as_array().unwrap().iter();
    let ports: Vec<_> = ports
        .filter(|it| it["ServiceConnect"] == native)
        .map(|it| it["ServicePort"].as_u64())
        .collect();
    assert_eq!(ports.len(), 2, "{catalog}");
    assert!(ports.contains(&Some(21_000)) && ports.contains(&Some(81)));
    // In plain sight each is where it was.
    let plain = get(&api, "/v1/health/service/web").await.json();
    let shown = plain.as_array().unwrap().iter();
    let shown: Vec<_> = shown
        .map(|it| {
            (
                it["Service"]["Port"].as_u64(),
                it["Service"]["Connect"].clone(),
            )
        })
        .collect();
    assert!(shown.contains(&(Some(80), json!({}))) && shown.contains(&(Some(81), native.clone())));
    let own = get(&api, "/v1/agent/services").await.json();
    assert_eq!(
        (&own["web2"]["Connect"], &own["web1"]["Connect"]),
        (&native, &Value::Null)
    );
}
