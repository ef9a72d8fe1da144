//! Checks and maintenance.

use super::*;

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
