//! A server in this process: what went through its HTTP, JSON and storage is nowhere in memory after seal.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;
use sidecar::{
    config::{Config, Sources},
    server::{Openness, Server},
};
use vault_kv::scan::Needles;
use zeroize::{Zeroize, Zeroizing};

/// One request on a connection of its own, in buffers that are wiped; the body of the answer.
fn send(addr: SocketAddr, method: &str, path: &str, token: &str, body: &str) -> Zeroizing<String> {
    let request = Zeroizing::new(format!(
        "{method} /v1/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Vault-Token: {token}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Zeroizing::new(Vec::with_capacity(1 << 16));
    stream.read_to_end(&mut answer).unwrap();
    let text = std::str::from_utf8(&answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 2"), "{path}: {head}");
    Zeroizing::new(body.to_owned())
}

fn text(value: &Value) -> Zeroizing<String> {
    Zeroizing::new(value.as_str().unwrap().to_owned())
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(fields) => fields.values_mut().for_each(wipe),
        _ => {}
    }
}

/// What clients did with the store.
fn clients(addr: SocketAddr, needles: &mut Needles) {
    let mut made: Value = serde_json::from_str(&send(
        addr,
        "PUT",
        "sys/init",
        "",
        r#"{"secret_shares": 3, "secret_threshold": 2}"#,
    ))
    .unwrap();
    let (keys, root) = (made["keys"].as_array().unwrap(), text(&made["root_token"]));
    for field in ["keys", "keys_base64"] {
        for key in made[field].as_array().unwrap() {
            needles.key("a share", key.as_str().unwrap().as_bytes());
        }
    }
    needles.add("the root token", root.as_bytes());
    for key in &keys[..2] {
        let body = Zeroizing::new(format!("{{\"key\": \"{}\"}}", key.as_str().unwrap()));
        send(addr, "PUT", "sys/unseal", "", &body);
    }
    wipe(&mut made);

    let mut answer: Value =
        serde_json::from_str(&send(addr, "POST", "auth/token/create", &root, "{}")).unwrap();
    let token = text(&answer["auth"]["client_token"]);
    wipe(&mut answer);
    needles.add("a token", token.as_bytes());
    send(addr, "GET", "auth/token/lookup-self", &token, "");
    // The token again, as a secret.
    let body = Zeroizing::new(format!("{{\"data\": {{\"token\": \"{}\"}}}}", *token));
    send(addr, "POST", "secret/data/a", &root, &body);
    send(addr, "GET", "secret/data/a", &root, "");
    send(addr, "PUT", "sys/seal", &root, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_through_a_server_is_nowhere_in_its_memory_after_seal() {
    vault_kv::clear_freed_memory();
    let dir = tempfile::tempdir().unwrap();
    let audit = dir.path().join("audit.log");
    let config = format!(
        "node = {{ name = \"s1\", data_dir = {:?}, bind = \"127.0.0.1\" }}\n\
         ports = {{ gossip = 0, http = 0, dns = 0, vault = 0 }}\n[server]\naudit = [{audit:?}]\n",
        dir.path().join("s1")
    );
    let file = dir.path().join("server.toml");
    std::fs::write(&file, config).unwrap();
    let config = Config::load(&Sources::new(&[file])).unwrap();
    let server = Server::open(config, Openness::default()).await.unwrap();
    let addr = server.vault_addr().unwrap();
    let needles = tokio::task::spawn_blocking(move || {
        let mut needles = Needles::default();
        clients(addr, &mut needles);
        needles
    });
    let needles = needles.await.unwrap();
    assert!(needles.count() >= 20 && server.vault().is_sealed());

    // Connections end when their client has gone; until then their buffers live.
    let late = Instant::now() + Duration::from_secs(60);
    loop {
        let found = needles.find();
        if found.is_empty() {
            break;
        }
        assert!(Instant::now() < late, "{found:#?}");
        tokio::task::yield_now().await;
    }
}
