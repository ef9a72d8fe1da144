//! What of the Consul interface the server answers: transactions on nodes, snapshots, itself; and whose rights count.

use bytes::Bytes;
use http::{Method, Request};
use serde_json::{Value, json};
use sidecar::http::client::Target;

use crate::{
    host::{Host, Server, ask},
    node::{Agent, PATIENCE},
};

async fn txn(agent: &Agent, root: &str, ops: &Value) -> (u16, Value) {
    let path = format!("/v1/txn?token={root}");
    let (status, answer) = agent.ask(Method::PUT, &path, &ops.to_string()).await;
    let answer = serde_json::from_str(&answer).unwrap_or_else(|_| Value::from(answer.as_str()));
    (status, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_services_and_checks_change_together_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (host, _) = Host::open(&server, dir.path()).await;
    let root = &host.root;
    let agent = Agent::spawn(host.agent("a1", &host.new_token("token", "1h")));
    let node = json!({"Node": {"Verb": "set", "Node": {"Node": "ext1", "Address": "10.9.0.1"}}});
    let service = json!({"Service": {"Verb": "set", "Node": "ext1",
        "Service": {"ID": "q1", "Service": "queue", "Port": 1}}});
    let check = |verb: &str, status: &str, index: u64| {
        json!({"Check": {"Verb": verb, "Check": {"Node": "ext1", "CheckID": "c", "Name": "c",
            "Status": status, "ServiceID": "q1", "ModifyIndex": index}}})
    };
    // The agent may need a moment to see that the server is there.
    agent
        .until_put(
            "/v1/txn",
            root,
            &json!([node, service, check("set", "passing", 0)]).to_string(),
        )
        .await;
    let health = "/v1/health/service/queue";
    agent
        .until(health, |found| found[0]["Checks"][0]["Status"] == "passing")
        .await;
    let shown = agent.get(health).await;
    let index = shown[0]["Checks"][0]["ModifyIndex"].as_u64().unwrap();

    // With the index that any agent shows.
    let (status, answer) = txn(&agent, root, &json!([check("cas", "warning", index)])).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["Results"][0]["Check"]["Status"], "warning");
    let new = answer["Results"][0]["Check"]["ModifyIndex"]
        .as_u64()
        .unwrap();
    assert!(new > index);
    // With an old one nothing happens, also of what would have been possible.
    let other =
        json!({"Service": {"Verb": "set", "Node": "ext1", "Service": {"Service": "other"}}});
    let (status, answer) = txn(
        &agent,
        root,
        &json!([other, check("cas", "critical", index)]),
    )
    .await;
    assert_eq!(status, 409);
    assert_eq!(
        answer["Errors"],
        json!([{"OpIndex": 1, "What": "failed to set check \"c\" on node \"ext1\", index is stale"}])
    );
    agent
        .until(health, |found| found[0]["Checks"][0]["Status"] == "warning")
        .await;
    assert_eq!(agent.get("/v1/health/service/other").await, json!([]));

    let get = json!({"Node": {"Verb": "get", "Node": {"Node": "a1"}}});
    let (status, answer) = txn(&agent, root, &json!([get])).await;
    assert_eq!(
        (status, &answer["Results"][0]["Node"]["Node"]),
        (200, &json!("a1"))
    );
    for (ops, status, why) in [
        (
            json!([{"Node": {"Verb": "get", "Node": {"Node": "none"}}}]),
            409,
            "node \\\"none\\\" doesn't exist",
        ),
        (
            json!([{"Node": {"Verb": "set", "Node": {"Node": "a1", "Address": "10.9.0.2"}}}]),
            409,
            "is a member of the mesh",
        ),
        (
            json!([{"Service": {"Verb": "set", "Node": "ext9", "Service": {"Service": "x"}}}]),
            409,
            "Missing node registration",
        ),
        (
            json!([node, {"KV": {"Verb": "set", "Key": "k", "Value": "MQ=="}}]),
            400,
            "do not go into one transaction",
        ),
    ] {
        let (got, answer) = txn(&agent, root, &ops).await;
        assert_eq!(got, status, "{answer}");
        assert!(answer.to_string().contains(why), "{answer}");
    }
    // Nobody without a right.
    let (status, answer) = agent
        .ask(Method::PUT, "/v1/txn", &json!([node]).to_string())
        .await;
    assert!(
        status == 409 && answer.contains("Permission denied"),
        "{status} {answer}"
    );

    let gone = json!([{"Node": {"Verb": "delete", "Node": {"Node": "ext1"}}}]);
    let (status, answer) = txn(&agent, root, &gone).await;
    assert_eq!((status, &answer["Results"]), (200, &json!([])));
    agent.until(health, |found| *found == json!([])).await;
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_shows_and_saves_itself_for_those_who_may() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (host, _) = Host::open(&server, dir.path()).await;
    let (http, root) = (&host.http, &host.root);
    let get = async |path: &str, token: &str| {
        let (status, body) = ask(http, Method::GET, path, token, Bytes::new()).await;
        (
            status,
            serde_json::from_str::<Value>(&body).unwrap_or(Value::Null),
        )
    };
    for path in [
        "/v1/operator/raft/configuration",
        "/v1/operator/autopilot/health",
        "/v1/operator/autopilot/state",
        "/v1/operator/keyring",
        "/v1/agent/host",
        "/v1/snapshot",
    ] {
        assert_eq!(get(path, "").await.0, 403, "{path}");
    }
    let (_, raft) = get("/v1/operator/raft/configuration", root).await;
    let [one] = raft["Servers"].as_array().unwrap().as_slice() else {
        panic!("{raft}")
    };
    assert_eq!(
        (&one["Leader"], &one["LastIndex"]),
        (&json!(true), &raft["Index"])
    );
    let (_, keyring) = get("/v1/operator/keyring", root).await;
    let keys = keyring[0]["Keys"].as_object().unwrap();
    assert_eq!((keys.len(), &keyring[0]["NumNodes"]), (1, &json!(1)));
    let (status, health) = get("/v1/operator/autopilot/health", root).await;
    assert_eq!((status, &health["Healthy"]), (200, &json!(true)));

    // The archive is one that is taken back, as far as a running server takes any.
    let target = Target::parse(http, 0, None).unwrap();
    let request = Request::get(format!("/v1/snapshot?token={root}")).body(Bytes::new());
    let archive = target
        .send(request.unwrap(), PATIENCE)
        .await
        .unwrap()
        .into_body();
    assert_eq!(&archive[..2], b"\x1f\x8b");
    let put = async |body: Bytes| ask(http, Method::PUT, "/v1/snapshot", root, body).await;
    let (status, why) = put(archive.clone()).await;
    assert_eq!(status, 500);
    assert!(why.contains("the archive is whole"), "{why}");
    let (_, why) = put(archive.slice(..archive.len() - 9)).await;
    assert_eq!(why, "failed to decompress snapshot: unexpected EOF");

    // A token that the agent was given counts for those who bring none.
    let denied = "/v1/kv/a";
    assert_eq!(ask(http, Method::PUT, denied, "", "1").await.0, 403);
    let token = json!({"Token": root}).to_string();
    assert_eq!(
        ask(
            http,
            Method::PUT,
            "/v1/agent/token/default",
            "",
            token.clone()
        )
        .await
        .0,
        403
    );
    let (status, _) = ask(http, Method::PUT, "/v1/agent/token/default", root, token).await;
    assert_eq!(status, 200);
    assert_eq!(ask(http, Method::PUT, denied, "", "1").await.0, 200);
    let (status, _) = ask(http, Method::PUT, "/v1/agent/token/nonsense", root, "{}").await;
    assert_eq!(status, 404);
    let none = json!({"Token": ""}).to_string();
    assert_eq!(
        ask(http, Method::PUT, "/v1/agent/token/default", root, none)
            .await
            .0,
        200
    );
    assert_eq!(ask(http, Method::PUT, denied, "", "1").await.0, 403);
    server.stop();
}
