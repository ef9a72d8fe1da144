//! Changes of secrets as server-sent events.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
};

use http::Method;
use serde_json::{Value, json};

use crate::{host::Server, node::PATIENCE};

/// A stream of events, read as a browser does.
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(server: &Server, path: &str, token: &str, last: &str) -> Self {
        let addr = server.vault.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {token}\r\nAccept: text/event-stream\r\n{last}\r\n"
        )
        .unwrap();
        Self(BufReader::new(stream))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn field(&mut self, name: &str) -> String {
        loop {
            let line = self.line();
            if let Some(value) = line.strip_prefix(&format!("{name}: ")) {
                return value.to_owned();
            }
        }
    }

    /// Its kind and data; the id of all but the last.
    fn next(&mut self) -> (String, Value) {
        let kind = self.field("event");
        let data = self.field("data");
        (kind, serde_json::from_str(&data).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_followed_until_the_right_to_read_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (shares, root) = server.init(1, 1).await;
    server.unseal(&shares[0]);
    let ask = async |method, path: &str, body: Value| {
        let (status, answer) = server.vault(method, path, &root, body).await;
        assert!((200..300).contains(&status), "{path}: {answer}");
        answer
    };
    let kv = json!({"type": "kv", "options": {"version": "2"}});
    ask(Method::POST, "/v1/sys/mounts/kv", kv).await;
    let rule = json!({"policy": "path \"kv/data/web\" { capabilities = [\"read\"] }"});
    ask(Method::PUT, "/v1/sys/policies/acl/web", rule).await;
    let made = json!({"policies": ["web"]});
    let made = ask(Method::POST, "/v1/auth/token/create", made).await;
    let token = made["auth"]["client_token"].as_str().unwrap();

    // What is not there yet is an event, too; whoever may not read gets the usual answer.
    let mut events = Events::open(&server, "/v1/kv/data/web", token, "");
    assert_eq!(events.line(), "HTTP/1.1 200 OK");
    assert_eq!(events.field("content-type"), "text/event-stream");
    assert_eq!(events.next().0, "gone");
    let mut refused = Events::open(&server, "/v1/kv/data/other", token, "");
    assert_eq!(refused.line(), "HTTP/1.1 403 Forbidden");

    let write = async |value: u32| {
        let body = json!({"data": {"n": value}});
        ask(Method::POST, "/v1/kv/data/web", body).await
    };
    let n = |data: &Value| data["data"]["data"]["n"].clone();
    write(1).await;
    assert_eq!(events.field("event"), "change");
    let id = events.field("id");
    let data: Value = serde_json::from_str(&events.field("data")).unwrap();
    assert_eq!(n(&data), 1);
    write(2).await;
    let (kind, data) = events.next();
    assert_eq!((&*kind, n(&data)), ("change", json!(2)));

    // One who comes back hears of what there was in between.
    let last = format!("Last-Event-ID: {id}\r\n");
    let mut again = Events::open(&server, "/v1/kv/data/web", token, &last);
    assert_eq!(n(&again.next().1), 2);

    // And one who has seen more than there is, of what there is: the store may have been restored.
    let mut ahead = Events::open(
        &server,
        "/v1/kv/data/web",
        token,
        "Last-Event-ID: 99999\r\n",
    );
    assert_eq!(n(&ahead.next().1), 2);

    let body = json!({"token": token});
    ask(Method::POST, "/v1/auth/token/revoke", body).await;
    write(3).await;
    let (kind, data) = events.next();
    assert_eq!(kind, "error");
    assert!(data["errors"].is_array(), "{data}");
    server.stop();
}
