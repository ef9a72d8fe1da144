//! Policies, logins and tokens at the command line, against a server that runs.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use http::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::host::{Ran, Server, ask};

fn good(ran: Ran) -> String {
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    ran.out
}

fn json_of(ran: Ran) -> Value {
    serde_json::from_str(&good(ran)).unwrap()
}

/// A file that only its owner can read; what is in it.
fn private(path: &Path) -> String {
    let mode = path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    fs::read_to_string(path).unwrap().trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_logins_and_tokens_at_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (shares, root) = server.init(1, 1).await;
    server.unseal(&shares[0]);
    let mesh = |args: &[&str], input: &str| server.mesh(args, &root, input);

    let text = r#"path "secret/data/web/*" { capabilities = ["read"] }"#;
    good(mesh(&["policy", "put", "web", "-"], text));
    let shown = good(mesh(&["policy", "show", "web"], ""));
    assert_eq!(shown.trim_end(), text);
    let bad = mesh(&["policy", "put", "bad", "-"], "path \"x\" {");
    assert_ne!(bad.code, Some(0));
    let listed = json_of(mesh(&["policy", "list", "-o", "json"], ""));
    assert_eq!(listed, json!(["default", "root", "web"]));
    assert_eq!(mesh(&["policy", "show", "none"], "").code, Some(1));

    good(mesh(&["auth", "enable", "userpass", "people"], ""));
    let again = mesh(&["auth", "enable", "userpass", "people"], "");
    assert!(again.err.contains("already in use"), "{}", again.err);
    let user = json!({"password": "correct horse", "token_policies": "web"}).to_string();
    let path = "/v1/auth/people/users/ann";
    let (status, answer) = ask(&server.vault, Method::POST, path, &root, user).await;
    assert_eq!(status, 204, "{answer}");
    let file = dir.path().join("ann");
    let out = file.to_str().unwrap();
    let login = ["auth", "login", "ann", "--path", "people", "--out", out];
    let wrong = server.mesh(&login, "", "wrong\n");
    assert_eq!(
        (wrong.code, file.exists()),
        (Some(2), false),
        "{}",
        wrong.err
    );
    good(server.mesh(&login, "", "correct horse\n"));
    let ann = private(&file);
    let denied = server.mesh(&["policy", "list"], &ann, "");
    assert_eq!(denied.code, Some(77), "{}", denied.err);
    let explain = |path: &str| server.mesh(&["policy", "explain", path], &ann, "");
    assert!(good(explain("secret/data/web/db")).contains("allowed"));
    let denied = explain("secret/data/other");
    assert_eq!(denied.code, Some(77));
    assert!(denied.out.contains("denied"), "{}", denied.out);

    let seen = json_of(server.mesh(&["token", "lookup", "-o", "json"], &ann, ""));
    assert_eq!(seen["display_name"], "people-ann");
    assert!(!seen.to_string().contains(&ann), "the token is not shown");
    let accessor = seen["accessor"].as_str().unwrap();

    let file = dir.path().join("made");
    let out = file.to_str().unwrap();
    let create = [
        "token", "create", "--policy", "web", "--ttl", "1h", "--out", out,
    ];
    good(mesh(&create, ""));
    let made = private(&file);
    let source = format!("@{out}");
    let seen = json_of(mesh(&["token", "lookup", &source, "-o", "json"], ""));
    assert_eq!(seen["policies"], json!(["default", "web"]));
    let renewed = mesh(&["token", "renew", &source, "--increment", "10m"], "");
    assert_eq!(good(renewed).trim_end(), "renewed for 600 s");
    let unnamed = mesh(&["token", "revoke"], "");
    assert_eq!(
        unnamed.code,
        Some(64),
        "the root token is not revoked by mistake"
    );
    good(mesh(&["token", "revoke", "-"], &made));
    assert_eq!(server.mesh(&["token", "lookup"], &made, "").code, Some(77));
    good(mesh(&["token", "revoke", "--accessor", accessor], ""));
    assert_eq!(server.mesh(&["token", "lookup"], &ann, "").code, Some(77));
    let typed = mesh(&["token", "revoke", "hvs.typed"], "");
    assert_eq!(
        typed.code,
        Some(64),
        "a token on the command line is refused"
    );
    assert!(!typed.err.contains("hvs.typed"), "{}", typed.err);

    good(mesh(&["auth", "disable", "people"], ""));
    let listed = json_of(mesh(&["auth", "list", "-o", "json"], ""));
    assert!(listed.get("people/").is_none(), "{listed}");
    good(mesh(&["policy", "delete", "web"], ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_leases_and_the_audit_log_at_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    let more = format!("[server]\naudit = [{log:?}]\n");
    let server = Server::start_with(dir.path(), &more);
    let (shares, root) = server.init(1, 1).await;
    server.unseal(&shares[0]);
    let mesh = |args: &[&str], input: &str| server.mesh(args, &root, input);
    let db = "secret/web/db";

    good(mesh(&["secret", "put", db, "user=-"], "ann\n"));
    good(mesh(&["secret", "patch", db, "password=-"], "one\n"));
    let field = |name: &str| mesh(&["secret", "get", db, "--field", name], "");
    assert_eq!(
        (good(field("user")), good(field("password"))),
        ("ann\n".into(), "one\n".into())
    );
    good(mesh(&["secret", "patch", db, "--remove", "user"], ""));
    assert_eq!(field("user").code, Some(1));
    let none = mesh(&["secret", "patch", "secret/none", "a=-"], "x");
    assert!(
        none.code == Some(1) && none.err.contains("no secret"),
        "{}",
        none.err
    );

    good(mesh(&["secret", "delete", db], ""));
    assert_eq!(field("password").code, Some(1));
    good(mesh(&["secret", "undelete", db, "--version", "3"], ""));
    assert_eq!(good(field("password")), "one\n");
    good(mesh(&["secret", "destroy", db, "--version", "1,2"], ""));
    good(mesh(
        &[
            "secret",
            "metadata",
            "set",
            db,
            "--max-versions",
            "5",
            "--custom",
            "owner=ann",
        ],
        "",
    ));
    let seen = json_of(mesh(&["secret", "metadata", "get", db, "-o", "json"], ""));
    assert_eq!(
        (
            &seen["max_versions"],
            &seen["custom_metadata"]["owner"],
            &seen["versions"]["1"]["destroyed"]
        ),
        (&json!(5), &json!("ann"), &json!(true))
    );
    let two_mounts = mesh(&["secret", "move", db, "other/db"], "");
    assert_eq!(two_mounts.code, Some(64), "{}", two_mounts.err);
    good(mesh(&["secret", "move", db, "secret/web/main"], ""));
    assert_eq!(field("password").code, Some(1));

    // Who watches hears of the next change.
    let main = "secret/web/main";
    let watch = ["secret", "watch", main, "--once", "--field", "password"];
    let stop = CancellationToken::new();
    let writing = tokio::spawn({
        let (vault, root, stop) = (server.vault.clone(), root.clone(), stop.clone());
        async move {
            let body = json!({"data": {"password": "two"}}).to_string();
            let path = "/v1/secret/data/web/main";
            while !stop.is_cancelled() {
                ask(&vault, Method::POST, path, &root, body.clone()).await;
            }
        }
    });
    let heard = mesh(&watch, "");
    stop.cancel();
    writing.await.unwrap();
    assert_eq!(good(heard), "two\n");

    let post = async |path: &str, body: Value| {
        let path = format!("/v1/{path}");
        let answer = ask(&server.vault, Method::POST, &path, &root, body.to_string()).await;
        assert!(answer.0 < 300, "{path}: {}", answer.1);
        serde_json::from_str(&answer.1).unwrap_or(Value::Null)
    };
    post("sys/mounts/ssh", json!({"type": "ssh"})).await;
    let role = json!({"key_type": "otp", "default_user": "u", "cidr_list": "127.0.0.0/8"});
    post("ssh/roles/ops", role).await;
    let made = post("ssh/creds/ops", json!({"ip": "127.0.0.1"})).await;
    let id = made["lease_id"].as_str().unwrap();
    let listed = json_of(mesh(&["lease", "list", "ssh/creds/ops", "-o", "json"], ""));
    assert_eq!(listed, json!([id]));
    let seen = json_of(mesh(&["lease", "lookup", id, "-o", "json"], ""));
    assert_eq!(seen["renewable"], false);
    assert_eq!(mesh(&["lease", "renew", id], "").code, Some(2));
    good(mesh(&["lease", "revoke", "ssh/creds", "--prefix"], ""));
    assert_eq!(mesh(&["lease", "lookup", id], "").code, Some(2));
    assert_eq!(
        json_of(mesh(&["lease", "irrevocable", "-o", "json"], "")),
        json!([])
    );

    let sinks = json_of(mesh(&["audit", "list", "-o", "json"], ""));
    assert_eq!(sinks["file/"]["options"]["file_path"], json!(log));
    let hashed = good(mesh(&["audit", "hash", "-"], "two\n"));
    let text = fs::read_to_string(&log).unwrap();
    assert!(
        text.contains(hashed.trim()) && !text.contains("\"two\""),
        "{hashed}"
    );
}
