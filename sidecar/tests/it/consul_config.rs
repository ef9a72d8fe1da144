//! Configuration of Consul's own: what moves over as it is, and how its listeners behave.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use http::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sidecar::http::client::Target;

use crate::{
    node::{Agent, Mesh, command, next_log},
    strangers::Authority,
};

/// Answers every request with 200, until the process ends.
fn app() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 1024];
            // A TCP check asks nothing.
            if stream.read(&mut head).is_ok_and(|read| read > 0) {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            }
        }
    });
    port
}

/// An agent with `consul` as its `--consul-config`, over free ports of its own.
fn over(mesh: &Mesh, consul: &Path, more: &str) -> Command {
    mesh.credentials("n1", &["*"]);
    let mut command = command(&mesh.configure("n1", more));
    command.arg("--consul-config").arg(consul);
    command
}

fn written(mesh: &Mesh, files: &[(&str, String)]) -> PathBuf {
    let dir = mesh.path("consul.d");
    fs::create_dir_all(&dir).unwrap();
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_definitions_moves_over_as_it_is() {
    let mesh = Mesh::new();
    let port = app();
    let agent = r#"
        node_name = "overridden"
        datacenter = "dc1"
        node_meta { rack = "r7" }
        encrypt = "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s="
        enable_local_script_checks = true
        telemetry { disable_hostname = true }
        dns_config { service_ttl { "*" = "30s" } }
    "#;
    let web = json!({"service": {
        "id": "web-1", "name": "web", "port": port, "tags": ["v2"], "token": "a secret",
        "meta": {"team": "shop"}, "weights": {"passing": 7, "warning": 2},
        "tagged_addresses": {"wan": {"address": "192.0.2.1", "port": 80}},
        "checks": [
            {"id": "web-http", "name": "http", "http": format!("http://127.0.0.1:{port}/health"),
             "header": {"x-test": ["1"]}, "interval": "1s", "timeout": "1s"},
            {"name": "tcp", "tcp": format!("127.0.0.1:{port}"), "interval": "1s"},
            {"name": "script", "args": ["/bin/true"], "interval": "1s"},
            {"name": "ttl", "ttl": "5m", "status": "passing"},
        ],
    }});
    let others = r#"
        services { name = "db" port = 5432 check { alias_service = "web-1" } }
        services { name = "cache" id = "cache-1" port = 6379 enable_tag_override = true }
        check { id = "memory" name = "Memory" args = ["/bin/false"] interval = "1s" }
        checks = [{ id = "of-cache", name = "of the cache", service_id = "cache-1", ttl = "5m" },
                  { name = "of nobody", service_id = "nobody", ttl = "5m" }]
    "#;
    let files = [
        ("agent.hcl", agent.to_owned()),
        ("others.hcl", others.to_owned()),
        ("web.json", web.to_string()),
        ("notes.txt", "{ not read".to_owned()),
    ];
    let dir = written(&mesh, &files);
    let mut running = Agent::spawn(over(&mesh, &dir, ""));
    let named = next_log(
        &running.log,
        "keys of Consul's configuration that mean nothing here",
    );
    assert_eq!(named["keys"], "encrypt, service.token, telemetry");

    let status = |id: &'static str, wanted: &'static str| {
        move |checks: &Value| checks[id]["Status"] == wanted
    };
    for (id, wanted) in [
        ("web-http", "passing"),
        ("service:web-1:2", "passing"),
        ("service:web-1:3", "passing"),
        ("service:web-1:4", "passing"),
        ("of-cache", "critical"),
        // `false` says no with 1, which is a warning.
        ("memory", "warning"),
        // An alias of an instance follows its node's checks, too.
        ("service:db", "warning"),
    ] {
        running.until("/v1/agent/checks", status(id, wanted)).await;
    }
    let checks = running.get("/v1/agent/checks").await;
    assert_eq!(checks.as_object().unwrap().len(), 7, "{checks}");
    let services = running.get("/v1/agent/services").await;
    assert_eq!(services.as_object().unwrap().len(), 3);
    let web_1 = &services["web-1"];
    assert_eq!(
        (&web_1["Service"], &web_1["Port"]),
        (&json!("web"), &json!(port))
    );
    assert_eq!(web_1["Meta"], json!({"team": "shop"}));
    assert_eq!(web_1["Weights"], json!({"Passing": 7, "Warning": 2}));
    assert_eq!(
        web_1["TaggedAddresses"]["wan"],
        json!({"Address": "192.0.2.1", "Port": 80})
    );
    assert_eq!(services["cache-1"]["EnableTagOverride"], true);
    let own = running.get("/v1/agent/self").await;
    assert_eq!(own["Config"]["NodeName"], "n1", "our own file wins");
    assert_eq!(own["Meta"]["rack"], "r7");

    // Scripts of requests stay off.
    let script = r#"{"Name": "x", "Args": ["/bin/true"], "Interval": "1s"}"#;
    let (refused, _) = running
        .ask(Method::PUT, "/v1/agent/check/register", script)
        .await;
    assert_eq!(refused, 500);

    // Reading again: what stayed keeps its status, what went goes, what came comes.
    running
        .put("/v1/agent/check/pass/of-cache?note=fine", "")
        .await;
    let more = others.replace(
        "services { name = \"db\" port = 5432 check { alias_service = \"web-1\" } }",
        "",
    );
    fs::write(dir.join("others.hcl"), more).unwrap();
    fs::write(
        dir.join("new.json"),
        r#"{"service": {"name": "new", "port": 1}}"#,
    )
    .unwrap();
    running.signal(Signal::SIGHUP);
    running
        .until("/v1/agent/services", |services| {
            services["new"]["Port"] == 1 && services["db"].is_null()
        })
        .await;
    running
        .until("/v1/agent/checks", status("of-cache", "passing"))
        .await;
    running
        .until("/v1/agent/checks", status("web-http", "passing"))
        .await;

    // What is wrong is not taken.
    fs::write(
        dir.join("new.json"),
        r#"{"service": {"name": "new", "port": "1", "token": "a secret"}}"#,
    )
    .unwrap();
    running.signal(Signal::SIGHUP);
    let line = next_log(
        &running.log,
        "must be a whole number, this is another string",
    );
    let place = line["place"].as_str().unwrap();
    assert!(place.ends_with("new.json: service.port"), "{place}");
    next_log(
        &running.log,
        "the configuration is not valid and was not reloaded",
    );
    assert_eq!(running.get("/v1/agent/services").await["new"]["Port"], 1);
    running.signal(Signal::SIGTERM);
    let log = std::mem::replace(&mut running.log, std::sync::mpsc::channel().1);
    assert_eq!(running.wait(), Some(0));
    assert!(
        log.iter()
            .all(|line| !line.to_string().contains("a secret"))
    );
}

#[test]
fn validating_names_everything_wrong_and_what_means_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("mesh.toml");
    fs::write(&ours, "[node]\nname = \"n1\"\n").unwrap();
    let validate = |text: &str| {
        let theirs = dir.path().join("agent.json");
        fs::write(&theirs, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
        command
            .args(["config", "validate"])
            .arg(&ours)
            .arg("--consul-config")
            .arg(theirs);
        let output = command.env_clear().output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, told) = validate(r#"{"encrypt": "x", "server": true, "data_dir": "/opt/consul"}"#);
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.ends_with("mean nothing here: encrypt, server\n"),
        "{told}"
    );
    let (code, told) = validate(r#"{"encrypt": 1, "servr": true}"#);
    assert_eq!(code, Some(1));
    assert!(
        told.contains("agent.json: encrypt: must be a string"),
        "{told}"
    );
    assert!(
        told.contains("agent.json: servr: unknown key; did you mean `server`?"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_https_port_takes_clients_with_a_certificate_only() {
    let mesh = Mesh::new();
    let authority = Authority::new();
    // The files that the test's authority makes, in Consul's words.
    authority.tls(mesh.dir.path());
    let path = |name: &str| mesh.path(name).display().to_string();
    fs::write(mesh.path("ca.pem"), authority.pem()).unwrap();
    let tls = json!({
        "ports": {"https": 8501},
        "tls": {
            "defaults": {"ca_file": path("ca.pem"), "cert_file": path("cert.pem"), "key_file": path("key.pem")},
            "https": {"verify_incoming": true, "tls_min_version": "TLSv1_3"},
        },
    });
    let dir = written(&mesh, &[("tls.json", tls.to_string())]);
    // A free port instead of Consul's.
    let running = Agent::spawn({
        mesh.credentials("n1", &["*"]);
        let file = mesh.configure("n1", "");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("http = 0,", "http = 0, https = 0,")).unwrap();
        let mut command = command(&file);
        command.arg("--consul-config").arg(&dir);
        command
    });
    let addr = running.https.unwrap();
    let ask = "GET /v1/status/leader HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let new = &[&rustls::version::TLS13][..];
    let answer = authority
        .exchange(addr, Some(authority.client()), new, ask)
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        authority.exchange(addr, None, new, ask).is_err(),
        "without a certificate"
    );
    let stranger = Authority::new().client();
    assert!(
        authority.exchange(addr, Some(stranger), new, ask).is_err(),
        "of somebody else"
    );
    let old = &[&rustls::version::TLS12][..];
    assert!(
        authority
            .exchange(addr, Some(authority.client()), old, ask)
            .is_err(),
        "TLS 1.2"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unix_socket_serves_what_the_port_does() {
    let mesh = Mesh::new();
    let socket = mesh.path("consul.sock");
    let text = format!(
        "addresses {{ http = \"unix://{} 127.0.0.1\" }} unix_sockets {{ mode = \"0600\" user = \"{}\" }}",
        socket.display(),
        nix::unistd::geteuid(),
    );
    let dir = written(&mesh, &[("agent.hcl", text)]);
    let running = Agent::spawn(over(&mesh, &dir, ""));
    let meta = fs::metadata(&socket).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    assert_eq!(meta.uid(), nix::unistd::geteuid().as_raw());
    let target = Target::parse(&format!("unix://{}", socket.display()), 0, None).unwrap();
    let body = r#"{"Name": "web", "Port": 1}"#;
    let request = http::Request::put("/v1/agent/service/register")
        .body(body.into())
        .unwrap();
    let patience = crate::node::PATIENCE;
    assert_eq!(target.send(request, patience).await.unwrap().status(), 200);
    running
        .until("/v1/catalog/service/web", |found| {
            found[0]["ServicePort"] == 1
        })
        .await;
    // As a client that knows nothing of it would ask.
    let mut raw = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    raw.write_all(
        b"GET /v1/health/service/web HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    .unwrap();
    let mut answer = String::new();
    raw.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("\"web\""),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn several_addresses_are_listened_on() {
    let mesh = Mesh::new();
    // The second address gets the port of the first, so that one has to be known: it is asked for again and again
    // until both are free.
    for _ in 0..20 {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        let Ok(second) = TcpListener::bind(("127.0.0.2", port)) else {
            continue;
        };
        drop((free, second));
        let text = format!("client_addr = \"127.0.0.1 127.0.0.2\" ports {{ http = {port} }}");
        let dir = written(&mesh, &[("agent.hcl", text)]);
        mesh.credentials("n1", &["*"]);
        let file = mesh.configure("n1", "");
        let toml = fs::read_to_string(&file).unwrap();
        fs::write(&file, toml.replace("http = 0, ", "")).unwrap();
        let mut command = command(&file);
        command.arg("--consul-config").arg(&dir);
        let running = Agent::spawn(command);
        assert_eq!(running.http_addr, ([127, 0, 0, 1], port).into());
        TcpStream::connect(("127.0.0.2", port)).unwrap();
        return;
    }
    panic!("no port is free on both addresses");
}
