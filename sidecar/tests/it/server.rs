//! `mesh server` with key shares, as an operator lives with it: made, unsealed, restarted, joined.

use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    time::Instant,
};

use http::Method;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    host::{Host, Ran, Server, ask},
    node::{PATIENCE, next_log},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_is_sealed_until_its_share_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let status = server.operator(&["status"], "", "");
    assert_eq!(status.code, Some(2), "{}", status.err);
    assert!(status.err.contains("not initialised"), "{}", status.err);

    let (keys, root) = server.init(1, 1).await;
    let again = json!({"secret_shares": 1, "secret_threshold": 1});
    let (status, refused) = server.vault(Method::PUT, "/v1/sys/init", "", again).await;
    assert_eq!(status, 400);
    assert!(refused["errors"][0].as_str().unwrap().contains("already"));
    let (_, http) = server.unseal(&keys[0]);

    let path = "/v1/secret/data/app";
    let secret = json!({"data": {"password": "kept"}});
    let (status, written) = server.vault(Method::POST, path, &root, secret).await;
    assert_eq!(status, 200, "{written}");
    let (status, answer) = ask(&http, Method::PUT, "/v1/kv/limit", &root, "10").await;
    assert_eq!((status, &*answer), (200, "true"));
    server.stop();

    // It is a node again with the certificate it kept; what needs the store says that it is sealed.
    let server = Server::start(dir.path());
    let (_, http) = server.node();
    let status = server.operator(&["status"], "", "");
    assert_eq!(status.code, Some(2), "{}", status.err);
    assert!(
        status.err.contains("mesh operator unseal"),
        "{}",
        status.err
    );
    let (status, refused) = server.vault(Method::GET, path, &root, Value::Null).await;
    assert_eq!(
        (status, refused),
        (503, json!({"errors": ["Vault is sealed"]}))
    );
    let (status, answer) = ask(&http, Method::GET, "/v1/kv/limit?raw", &root, "").await;
    assert!(
        status == 503 && answer.contains("sealed"),
        "{status} {answer}"
    );
    let (status, _) = ask(&http, Method::GET, "/v1/catalog/nodes", "", "").await;
    assert_eq!(status, 200);

    let unsealed = server.operator(&["unseal", "-"], "", &keys[0]);
    assert_eq!(unsealed.code, Some(0), "{}", unsealed.err);
    let status = server.operator(&["status"], "", "");
    assert_eq!(status.code, Some(0), "{}", status.err);
    let (status, read) = server.vault(Method::GET, path, &root, Value::Null).await;
    assert_eq!(
        (status, &read["data"]["data"]["password"]),
        (200, &json!("kept"))
    );
    let (status, answer) = ask(&http, Method::GET, "/v1/kv/limit?raw", &root, "").await;
    assert_eq!((status, &*answer), (200, "10"));
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_shares_open_the_store_and_a_wrong_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (keys, root) = server.init(3, 2).await;
    let give = |share: &str| server.operator(&["unseal", "-"], "", share);

    let malformed = give("nonsense!");
    assert_eq!(malformed.code, Some(2));
    assert!(malformed.err.contains("hex or base64"), "{}", malformed.err);
    let short = give("00112233");
    assert!(short.err.contains("33 bytes"), "{}", short.err);

    // A share of nothing: refused when it would have completed the key, and nothing given counts any more.
    assert_eq!(give(&keys[0]).code, Some(0));
    let status = server.seal_status().await;
    assert_eq!(
        (&status["sealed"], &status["progress"]),
        (&json!(true), &json!(1))
    );
    let wrong = give(&format!("{}7f", "5a".repeat(32)));
    assert_eq!(wrong.code, Some(2));
    assert!(
        wrong.err.contains("the unseal key is wrong"),
        "{}",
        wrong.err
    );
    let status = server.seal_status().await;
    assert_eq!(
        (&status["sealed"], &status["progress"]),
        (&json!(true), &json!(0))
    );

    // The same share twice is one share.
    assert_eq!(give(&keys[0]).code, Some(0));
    assert_eq!(give(&keys[0]).code, Some(0));
    assert_eq!(server.seal_status().await["progress"], 1);
    assert_eq!(give(&keys[2]).code, Some(0));
    assert_eq!(server.seal_status().await["sealed"], false);
    server.node();

    let sealed = server.operator(&["seal"], &root, "");
    assert_eq!(sealed.code, Some(0), "{}", sealed.err);
    assert_eq!(server.operator(&["status"], "", "").code, Some(2));
    assert_eq!(give(&keys[2]).code, Some(0));
    assert_eq!(give(&keys[1]).code, Some(0));
    assert_eq!(server.operator(&["status"], "", "").code, Some(0));
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_bad_join_token_says_why_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let dir = dir.path();
    let (host, share) = Host::open(&server, dir).await;

    // Good once, and once only.
    let once = host.new_token("once", "1h");
    let first = host.admitted("n1", &once);
    let (code, said) = host.refused("n2", &once);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("used as often") && said.contains("mesh join-token create"),
        "{said}"
    );
    drop(first);

    let revoked = host.new_token("revoked", "1h");
    for token in host.listed() {
        let id = token["id"].as_str().unwrap();
        assert_eq!(host.join_token(&["revoke", id]).code, Some(0));
    }
    let (code, said) = host.refused("n3", &revoked);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("token is not known"), "{said}");

    let brief = host.new_token("brief", "1s");
    let deadline = Instant::now() + PATIENCE;
    while !host.listed().is_empty() {
        assert!(Instant::now() < deadline, "the token does not expire");
    }
    let (code, said) = host.refused("n4", &brief);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("expired"), "{said}");

    let nonsense = dir.join("nonsense");
    let mut options = fs::File::options();
    let mut file = options
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&nonsense)
        .unwrap();
    file.write_all(b"not a token").unwrap();
    let (code, said) = host.refused("n5", &nonsense);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("this is no join token"), "{said}");

    // Sealed: the token is good, the time is not.
    let later = host.new_token("later", "1h");
    assert_eq!(server.operator(&["seal"], &host.root, "").code, Some(0));
    let (code, said) = host.refused("n6", &later);
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("sealed"), "{said}");
    assert_eq!(server.operator(&["unseal", "-"], "", &share).code, Some(0));
    drop(host.admitted("n6", &later));
    server.stop();
}

/// Lines of an audit file.
fn audit_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn changes_through_every_interface_are_in_the_audit_file_which_hup_reopens() {
    let dir = tempfile::tempdir().unwrap();
    let audit = dir.path().join("audit.log");
    let more = format!("[server]\naudit = [{audit:?}]\n");
    let server = Server::start_with(dir.path(), &more);
    let (keys, root) = server.init(1, 1).await;
    let (_, http) = server.unseal(&keys[0]);

    let (status, answer) = ask(&http, Method::PUT, "/v1/kv/limit", &root, "10").await;
    assert_eq!((status, &*answer), (200, "true"));
    let wrong = ask(&http, Method::PUT, "/v1/kv/limit", "hvs.wrong", "11").await;
    assert_eq!(wrong.0, 403);
    let body = json!({"publish": ["web"], "uses": 1, "ttl": "1h"}).to_string();
    let made = ask(
        &server.vault,
        Method::POST,
        "/v1/mesh/join-tokens",
        &root,
        body,
    )
    .await;
    assert_eq!(made.0, 200, "{}", made.1);
    let lines = audit_lines(&audit);
    let of = |path: &str, kind: &str| {
        let found = lines
            .iter()
            .filter(|line| line["request"]["path"] == path && line["type"] == kind);
        found.collect::<Vec<_>>()
    };
    for path in ["consul/kv/limit", "mesh/join-token"] {
        let (request, response) = (of(path, "request"), of(path, "response"));
        assert!(
            !request.is_empty() && response.len() == 1,
            "{path}: {lines:#?}"
        );
        let token = request[0]["auth"]["client_token"].as_str().unwrap();
        assert!(token.starts_with("hmac-sha256:"), "{token}");
        assert_eq!(request[0]["auth"]["policies"], json!(["root"]));
    }
    let refused = of("consul/kv/limit", "request");
    assert_eq!(refused.len(), 2);
    assert_eq!(refused[1]["error"], "permission denied");

    let old = dir.path().join("audit.log.1");
    fs::rename(&audit, &old).unwrap();
    kill(
        Pid::from_raw(i32::try_from(server.child.0.id()).unwrap()),
        Signal::SIGHUP,
    )
    .unwrap();
    next_log(&server.log, "audit files reopened");
    let (status, _) = ask(&http, Method::DELETE, "/v1/kv/limit", &root, "").await;
    assert_eq!(status, 200);
    let lines = audit_lines(&audit);
    assert_eq!(lines[0]["request"]["operation"], "delete");
    assert!(
        !audit_lines(&old)
            .iter()
            .any(|line| line["request"]["operation"] == "delete")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn share_holders_rekey_and_make_a_root_token_at_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (keys, root) = server.init(3, 2).await;
    for key in &keys[..2] {
        let given = server.operator(&["unseal", "-"], "", key);
        assert_eq!(given.code, Some(0), "{}", given.err);
    }
    server.node();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let json = |ran: &Ran| serde_json::from_str::<Value>(&ran.out).unwrap();

    // Term 2, and who may not is told so.
    let denied = server.operator(&["rotate"], "hvs.wrong", "");
    assert_eq!(denied.code, Some(77), "{}", denied.err);
    let rotated = server.operator(&["rotate", "-o", "json"], &root, "");
    assert_eq!(json(&rotated)["term"], 2, "{}", rotated.err);

    // With a token, share by share.
    let denied = server.operator(&["rekey", "start"], "", "");
    assert_eq!(denied.code, Some(77), "{}", denied.err);
    let args = [
        "rekey",
        "start",
        "--shares",
        "2",
        "--threshold",
        "2",
        "-o",
        "json",
    ];
    let started = server.operator(&args, &root, "");
    assert_eq!(json(&started)["started"], true, "{}", started.err);
    let visible = server.operator(&["rekey", "share", &keys[0]], "", "");
    assert_eq!(visible.code, Some(64), "a share on the command line");
    assert!(!visible.err.contains(&keys[0]));
    let (out, again) = (file("shares.json"), file("again.json"));
    for (key, out) in [(&keys[0], &again), (&keys[2], &out)] {
        let given = server.operator(&["rekey", "share", "-", "--out", out], "", key);
        assert_eq!(given.code, Some(0), "{}", given.err);
    }
    assert!(
        !Path::new(&again).exists(),
        "the first share brings forth nothing"
    );
    let mode = fs::metadata(&out).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    let new: Value = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    let new: Vec<String> = serde_json::from_value(new["keys"].clone()).unwrap();

    // Without a token, all shares at once.
    let out = file("root");
    let shares = new.join("\n");
    let made = server.operator(
        &["generate-root", "start", "--with-shares=-", "--out", &out],
        "",
        &shares,
    );
    assert_eq!(made.code, Some(0), "{}", made.err);
    let second = fs::read_to_string(&out).unwrap();
    let (status, seen) = server
        .vault(
            Method::GET,
            "/v1/auth/token/lookup-self",
            second.trim(),
            Value::Null,
        )
        .await;
    assert_eq!((status, &seen["data"]["policies"]), (200, &json!(["root"])));
    let few = server.operator(
        &[
            "generate-root",
            "start",
            "--with-shares=-",
            "--out",
            &file("x"),
        ],
        "",
        &new[0],
    );
    assert_eq!(few.code, Some(64), "{}", few.err);

    // With a token, and read with the password.
    let otp = file("otp");
    server.operator(&["generate-root", "start", "--out", &otp], &root, "");
    let cancelled = server.operator(&["generate-root", "cancel"], "", "");
    assert_eq!(cancelled.code, Some(77), "nobody cancels without a right");
    server.operator(&["generate-root", "share", "-"], "", &new[0]);
    let last = server.operator(&["generate-root", "share", "-", "-o", "json"], "", &new[1]);
    let encoded = json(&last)["encoded_token"].as_str().unwrap().to_owned();
    let password = fs::read_to_string(&otp).unwrap();
    let third = file("third");
    let decoded = server.operator(
        &["generate-root", "decode", &encoded, "-", "--out", &third],
        "",
        &password,
    );
    assert_eq!(decoded.code, Some(0), "{}", decoded.err);
    let third = fs::read_to_string(&third).unwrap();
    let (status, _) = server
        .vault(
            Method::GET,
            "/v1/auth/token/lookup-self",
            third.trim(),
            Value::Null,
        )
        .await;
    assert_eq!(status, 200);

    let verified = server.operator(&["verify", "--dir", &file("s1/store")], "", "");
    assert_eq!(json(&verified)["ok"], true, "{}", verified.err);
    let (_, history) = server
        .vault(
            Method::GET,
            "/v1/mesh/ledger?limit=1000",
            &root,
            Value::Null,
        )
        .await;
    let history = history.as_array().unwrap();
    let count = |what: &str| {
        history
            .iter()
            .filter(|item| item["operation"] == what)
            .count()
    };
    assert_eq!((count("init"), count("rekey"), count("rotate")), (1, 1, 1));
}

/// Runs a command of the operator's that must succeed; its JSON.
fn facts(server: &Server, args: &[&str], token: &str) -> Value {
    let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
    let ran = server.operator(&args, token, "");
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

/// All files under a folder, one after the other.
fn contents(folder: &Path) -> Vec<u8> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|item| item.unwrap().path())
        .collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| match path.is_dir() {
        true => contents(path),
        false => fs::read(path).unwrap(),
    };
    paths.iter().flat_map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_compacted_saved_and_restored_at_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), "[server]\nhistory_retention = \"1ms\"\n");
    let (keys, root) = server.init(1, 1).await;
    server.unseal(&keys[0]);
    let write = async |path: &str, value: &str| {
        let path = format!("/v1/secret/data/{path}");
        let secret = json!({"data": {"value": value.repeat(100)}});
        let (status, written) = server.vault(Method::POST, &path, &root, secret).await;
        assert_eq!(status, 200, "{written}");
    };
    write("kept", "first").await;
    write("kept", "second").await;
    let log = dir.path().join("s1/store/log");
    let before = contents(&log);
    write("gone", "third").await;
    let after = contents(&log);
    assert!(after.starts_with(&before), "one segment, which grew");
    // As the disk has it: sealed. More of it than anything around the value takes.
    let written: Vec<_> = after[before.len()..].chunks_exact(32).collect();
    let on_disk = || {
        let store = contents(&dir.path().join("s1/store"));
        let there = |part: &&&[u8]| store.windows(32).any(|window| window == **part);
        written.iter().filter(there).count()
    };
    assert_eq!(on_disk(), written.len());
    let path = "/v1/secret/destroy/gone";
    let versions = json!({"versions": [1]});
    let (status, _) = server.vault(Method::PUT, path, &root, versions).await;
    assert!(status < 300, "{status}");

    let refused = server.operator(&["compact"], "hvs.wrong", "");
    assert_eq!(refused.code, Some(77), "{}", refused.err);
    let compacted = facts(&server, &["compact"], &root);
    assert!(
        compacted["redacted_parts"].as_u64().unwrap() > 0,
        "{compacted}"
    );
    let destroyed = "third".len() * 100 / 32;
    assert!(on_disk() + destroyed <= written.len(), "{compacted}");
    let again = facts(&server, &["compact"], &root);
    assert_eq!(again["redacted_parts"], 0, "{again}");

    let file = dir.path().join("saved");
    let saved = file.to_str().unwrap();
    let refused = server.operator(&["snapshot", "save", saved], "hvs.wrong", "");
    assert_eq!(refused.code, Some(77), "{}", refused.err);
    assert!(!file.exists());
    let first = facts(&server, &["snapshot", "save", saved], &root);
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let there = server.operator(&["snapshot", "save", saved], &root, "");
    assert_eq!(there.code, Some(1));
    assert!(there.err.contains("--force"), "{}", there.err);
    write("late", "fourth").await;
    let second = facts(&server, &["snapshot", "save", saved, "--force"], &root);
    assert!(second["head_index"].as_u64() > first["head_index"].as_u64());
    assert_eq!(facts(&server, &["snapshot", "inspect", saved], ""), second);
    // Nothing half written is left beside it.
    let names = fs::read_dir(dir.path()).unwrap();
    let names: Vec<_> = names.map(|item| item.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");

    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let spoilt = dir.path().join("spoilt");
    fs::write(&spoilt, &bytes).unwrap();
    let store = dir.path().join("other").join("store");
    fs::create_dir(store.parent().unwrap()).unwrap();
    let restore = |file: &str| {
        let to = store.to_str().unwrap();
        server.operator(&["snapshot", "restore", file, "--dir", to], "", "")
    };
    for ran in [
        server.operator(&["snapshot", "inspect", spoilt.to_str().unwrap()], "", ""),
        restore(spoilt.to_str().unwrap()),
    ] {
        assert_eq!(ran.code, Some(1));
        assert!(ran.err.contains("damaged"), "{}", ran.err);
    }
    let restored = restore(saved);
    assert_eq!(restored.code, Some(0), "{}", restored.err);
    assert!(
        restored.err.contains("mesh operator unseal"),
        "{}",
        restored.err
    );
    assert_eq!(restore(saved).code, Some(1), "the directory is not empty");
    write("lost", "fifth").await;
    server.stop();

    // The server has gone on since: that its store has fewer entries now must be said on purpose.
    let more = format!("[server]\nstore = {store:?}\n");
    let server = Server::start_with(dir.path(), &more);
    let refused = server.operator(&["unseal", "-"], "", &keys[0]);
    assert!(refused.err.contains("--accept-rollback"), "{}", refused.err);
    let unsealed = server.operator(&["unseal", "-", "--accept-rollback"], "", &keys[0]);
    assert_eq!(unsealed.code, Some(0), "{}", unsealed.err);
    for (path, value) in [("kept", "second"), ("late", "fourth")] {
        let path = format!("/v1/secret/data/{path}");
        let (status, read) = server.vault(Method::GET, &path, &root, Value::Null).await;
        assert_eq!(status, 200, "{read}");
        assert_eq!(read["data"]["data"]["value"], value.repeat(100));
    }
    for path in ["/v1/secret/data/gone", "/v1/secret/data/lost"] {
        let (status, _) = server.vault(Method::GET, path, &root, Value::Null).await;
        assert_eq!(status, 404);
    }
    assert_eq!(facts(&server, &["verify"], &root)["ok"], true);
    server.stop();
}
