//! What a transaction does where a right is missing, as Consul's.

use http::Method;
use serde_json::{Value, json};

use super::{ACL, Client, text};
use crate::host::{Host, Server};

const RULES: &str = "key_prefix \"app/\" {\n policy = \"write\"\n}\nkey \"app/secret\" {\n policy = \"deny\"\n}\n\
                     key \"seen\" {\n policy = \"read\"\n}";

/// The key of each result.
fn keys(answer: &Value) -> Vec<&str> {
    let results = answer["Results"].as_array().unwrap();
    let keys = results.iter().map(|it| it["KV"]["Key"].as_str().unwrap());
    keys.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_without_a_right_do_not_apply_and_reads_show_what_may_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), ACL);
    let (host, _) = Host::open(&server, dir.path()).await;
    let (root, client) = (host.root.as_str(), Client::at(&host.http));
    let first = client.put("/v1/acl/bootstrap", "", Value::Null).await;
    let boss = text(&first["SecretID"]);
    client.policy(&boss, "app", RULES).await;
    let (app, accessor) = client
        .token(&boss, json!({"Policies": [{"Name": "app"}]}))
        .await;
    for key in ["app/x", "app/secret", "other", "seen"] {
        let path = format!("/v1/kv/{key}");
        client.put(&path, root, json!(1)).await;
    }
    let op = |verb: &str, key: &str| json!({"KV": {"Verb": verb, "Key": key, "Value": "Mg=="}});
    let txn = async |token: &str, ops: &[Value]| {
        let answer = client.ask(Method::PUT, "/v1/txn", token, json!(ops)).await;
        let body = serde_json::from_str(&answer.1).unwrap_or(Value::String(answer.1));
        (answer.0, body)
    };
    let lacks = |at: usize, access: &str, key: &str| {
        let what = format!(
            "Permission denied: token with AccessorID '{accessor}' lacks permission 'key:{access}' on \"{key}\""
        );
        json!({"OpIndex": at, "What": what})
    };

    // Each that is denied is named, beside others that cannot be; nothing happens.
    let (status, answer) = txn(
        &app,
        &[
            op("set", "app/new"),
            op("set", "app/secret"),
            op("get", "other"),
            op("frob", "app/x"),
            op("check-index", "other"),
            op("delete", "seen"),
            op("delete-tree", "app/"),
        ],
    )
    .await;
    let errors = json!([
        lacks(1, "write", "app/secret"),
        {"OpIndex": 3, "What": "unknown KV operation: frob"},
        lacks(4, "read", "other"),
        lacks(5, "write", "seen"),
        lacks(6, "write", "app/"),
    ]);
    assert_eq!(
        (status, answer),
        (409, json!({"Results": null, "Errors": errors}))
    );
    let (status, _) = client
        .no(Method::GET, "/v1/kv/app/new", &app, Value::Null)
        .await;
    assert_eq!(status, 404);

    // One alone is no other.
    let (status, answer) = txn(&app, &[op("set", "other")]).await;
    let errors = json!([lacks(0, "write", "other")]);
    assert_eq!(
        (status, answer),
        (409, json!({"Results": null, "Errors": errors}))
    );
    let (status, answer) = txn(&app, &[op("check-not-exists", "other")]).await;
    let errors = json!([lacks(0, "read", "other")]);
    assert_eq!((status, &answer["Errors"]), (409, &errors));
    assert_eq!(answer["KnownLeader"], json!(false));

    // What is read is shown as far as it may be; whether there is such a key is not told.
    let (status, answer) = txn(&app, &[op("get-tree", "app/"), op("get", "seen")]).await;
    assert_eq!((status, keys(&answer)), (200, vec!["app/x", "seen"]));
    assert_eq!(answer["ResultsFilteredByACLs"], json!(true));
    let (_, answer) = txn(&app, &[op("get-tree", "app/x")]).await;
    assert_eq!(keys(&answer), ["app/x"]);
    assert_eq!(answer["ResultsFilteredByACLs"], json!(false));
    for hidden in ["other", "none", "app/secret"] {
        for verb in ["get", "get-or-empty"] {
            let (status, answer) = txn(&app, &[op(verb, hidden)]).await;
            assert_eq!((status, keys(&answer)), (200, vec![]), "{verb} {hidden}");
            assert_eq!(answer["ResultsFilteredByACLs"], json!(true));
        }
    }
    let mixed = [op("set", "app/new"), op("get", "other"), op("get-tree", "")];
    let (status, answer) = txn(&app, &mixed).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(keys(&answer), ["app/new", "app/new", "app/x", "seen"]);
    assert_eq!(answer.get("ResultsFilteredByACLs"), None);
    let (status, answer) = txn(&app, &[op("get", "app/none")]).await;
    assert_eq!(status, 409, "{answer}");

    // Who shows no token may see nothing; one that there is not is no token.
    let (status, answer) = txn("", &[op("get", "other")]).await;
    assert_eq!((status, keys(&answer)), (200, vec![]));
    let (status, answer) = txn("", &[op("set", "other"), op("get", "other")]).await;
    assert_eq!(
        (status, answer["Errors"].as_array().unwrap().len()),
        (409, 1)
    );
    let unknown = txn("nobody", &[op("get", "other")]).await;
    assert_eq!(unknown, (403, json!("ACL not found")));
    server.stop();
}
