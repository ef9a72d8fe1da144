//! `mesh agent` as an operator runs it.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    process::Stdio,
    time::Duration,
};

use http::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::node::{Agent, Mesh, PATIENCE, command, next_log};

async fn addresses(dns: SocketAddr, name: &str) -> Vec<String> {
    let answer = dns::client::query(dns, name, "A", PATIENCE).await.unwrap();
    let ends = answer
        .lines
        .iter()
        .filter_map(|line| line.split_whitespace().last());
    ends.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_publishes_checks_answers_and_leaves() {
    let mesh = Mesh::new();
    let app = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = app.local_addr().unwrap().port();
    let services = format!(
        "[[service]]\nname = \"web\"\nport = {port}\ntags = [\"v2\"]\n\
         [[service.check]]\ntcp = \"127.0.0.1:{port}\"\ninterval = \"100ms\"\n"
    );
    let agent = mesh.agent("n1", &[], &services);
    agent
        .until("/v1/health/service/web?passing&tag=v2", |v| {
            v[0]["Service"]["Port"] == port
        })
        .await;
    let body = r#"{"Name": "api", "Port": 8080, "Check": {"TTL": "1m", "Status": "passing"}}"#;
    agent.put("/v1/agent/service/register", body).await;
    assert_eq!(
        agent.get("/v1/catalog/services").await,
        json!({"web": ["v2"], "api": []})
    );
    let (status, text) = agent.ask(Method::GET, "/health/live", "").await;
    assert_eq!((status, &*text), (200, "live\n"));

    // The application goes, its check notices.
    drop(app);
    agent
        .until("/v1/health/service/web?passing", |v| v == &json!([]))
        .await;

    let socket = mesh.path("n1").join("mesh.sock");
    assert!(socket.exists());
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait(), Some(0));
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_of_the_node_decide_for_all_that_is_on_it_and_aliases_follow_elsewhere() {
    let mesh = Mesh::new();
    let sick = mesh.path("sick");
    let checks = format!(
        "[health]\nexec_checks = \"config\"\n[[service]]\nname = \"web\"\nport = 1\n\
         [[check]]\nid = \"disk\"\nexec = [\"/usr/bin/test\", \"!\", \"-e\", \"{}\"]\n\
         interval = \"100ms\"\n",
        sick.display()
    );
    let one = mesh.agent("n1", &[], &checks);
    let alias = "[[check]]\nid = \"as-n1\"\nalias_node = \"n1\"\nalias_service = \"web\"\n";
    let two = mesh.agent("n2", &[one.gossip], alias);
    let is = |check: &'static str, status: &'static str| {
        move |checks: &Value| checks[check]["Status"] == status
    };
    one.until("/v1/agent/checks", is("disk", "passing")).await;
    two.until("/v1/agent/checks", is("as-n1", "passing")).await;
    one.until("/v1/health/service/web?passing", |v| {
        v.as_array().is_some_and(|found| found.len() == 1)
    })
    .await;
    // `test` says no with 1, which is a warning.
    fs::write(&sick, "").unwrap();
    one.until("/v1/agent/checks", is("disk", "warning")).await;
    two.until("/v1/agent/checks", is("as-n1", "warning")).await;
    two.put("/v1/agent/maintenance?enable=true&reason=x", "")
        .await;
    one.put("/v1/agent/maintenance?enable=true&reason=x", "")
        .await;
    two.until("/v1/agent/checks", is("as-n1", "critical")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_agent_registers_the_other_sees_until_it_dies() {
    let mesh = Mesh::new();
    let one = mesh.agent("n1", &[], "");
    let two = mesh.agent("n2", &[one.gossip], "");
    let alive = |count: usize| {
        move |members: &Value| {
            let members = members.as_array().unwrap();
            members.iter().filter(|m| m["Status"] == 1).count() == count
        }
    };
    one.until("/v1/agent/members", alive(2)).await;

    // A watcher on one is woken by a registration on the other.
    let (_, headers, _) = one.full(Method::GET, "/v1/health/service/web", "").await;
    let index = headers["x-consul-index"].to_str().unwrap();
    let watch = format!("/v1/health/service/web?index={index}&wait=25s");
    let register = async {
        let body = r#"{"Name": "web", "Port": 8080, "Address": "127.0.4.1"}"#;
        two.put("/v1/agent/service/register", body).await;
    };
    let (seen, ()) = tokio::join!(one.get(&watch), register);
    assert_eq!(seen[0]["Node"]["Node"], "n2");
    let ready = async {
        while one.ask(Method::GET, "/health/ready", "").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.unwrap();
    assert_eq!(addresses(one.dns, "web.service.mesh").await, ["127.0.4.1"]);
    assert_eq!(
        addresses(one.dns, "web.service.consul").await,
        ["127.0.4.1"]
    );

    two.signal(Signal::SIGKILL);
    assert_eq!(two.wait(), None);
    one.until("/v1/health/service/web", |v| v == &json!([]))
        .await;
    one.until("/v1/agent/members", |members| {
        let members = members.as_array().unwrap();
        members
            .iter()
            .any(|m| m["Name"] == "n2" && m["Status"] == 4)
    })
    .await;
}

/// Ids of instances, and statuses of checks by their ids.
async fn registered(agent: &Agent) -> (Vec<String>, Vec<(String, String)>) {
    let ids = |value: &Value| value.as_object().unwrap().keys().cloned().collect();
    let services = agent.get("/v1/agent/services").await;
    let checks = agent.get("/v1/agent/checks").await;
    let status = |id: String| {
        (
            id.clone(),
            checks[&id]["Status"].as_str().unwrap().to_owned(),
        )
    };
    let checked: Vec<String> = ids(&checks);
    (ids(&services), checked.into_iter().map(status).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_registered_over_http_is_there_after_a_restart() {
    let mesh = Mesh::new();
    let config = "[[service]]\nname = \"configured\"\nport = 1\n";
    let agent = mesh.agent("n1", &[], config);
    for body in [
        r#"{"Name": "web", "Port": 80, "Tags": ["v2"], "Token": "sesame", "Checks": [
            {"CheckID": "one", "TTL": "1h", "Token": "sesame"}, {"CheckID": "two", "TTL": "1h"}]}"#,
        r#"{"Name": "gone", "Port": 81, "Check": {"TTL": "1h"}}"#,
        r#"{"Name": "configured", "Port": 82}"#,
    ] {
        agent.put("/v1/agent/service/register", body).await;
    }
    let check = r#"{"Name": "disk", "TTL": "1h", "Status": "critical"}"#;
    agent.put("/v1/agent/check/register", check).await;
    agent.put("/v1/agent/check/pass/one", "").await;
    agent.put("/v1/agent/check/pass/disk", "").await;
    agent.put("/v1/agent/check/deregister/two", "").await;
    agent.put("/v1/agent/service/deregister/gone", "").await;
    let lasts = "/v1/agent/service/maintenance/web?enable=true";
    agent.put(lasts, "").await;
    let expected = registered(&agent).await;
    let checks = [
        ("_service_maintenance:web", "critical"),
        ("disk", "passing"),
        ("one", "passing"),
    ];
    let checks = checks.map(|(id, status)| (id.to_owned(), status.to_owned()));
    assert_eq!(
        expected,
        (
            vec!["configured".to_owned(), "web".to_owned()],
            checks.to_vec()
        )
    );

    let file = mesh.path("n1").join("node/services.json");
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!fs::read_to_string(&file).unwrap().contains("sesame"));

    // A stop that says goodbye, and one that has no time to.
    let config = mesh.path("n1.toml");
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait(), Some(0));
    let agent = Agent::start(&config);
    assert_eq!(registered(&agent).await, expected);
    let web = agent.get("/v1/agent/service/web").await;
    assert_eq!((&web["Port"], &web["Tags"]), (&json!(80), &json!(["v2"])));
    assert_eq!(agent.get("/v1/agent/service/configured").await["Port"], 1);
    agent.signal(Signal::SIGKILL);
    agent.wait();
    let agent = Agent::start(&config);
    let (services, checks) = registered(&agent).await;
    assert_eq!(services, expected.0);
    assert!(checks.iter().any(|(id, _)| id == "one"), "{checks:?}");
    // Its checks work, not only their records.
    agent.put("/v1/agent/check/warn/one", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hangup_applies_services_and_names_what_needs_a_restart() {
    let mesh = Mesh::new();
    let agent = mesh.agent("n1", &[], "[[service]]\nname = \"old\"\nport = 1\n");
    let services = "/v1/catalog/services";
    assert_eq!(agent.get(services).await, json!({"old": []}));
    mesh.configure(
        "n1",
        "[dns]\nttl = \"1m\"\n[[service]]\nname = \"new\"\nport = 2\ntags = [\"t\"]\n",
    );
    agent.signal(Signal::SIGHUP);
    next_log(&agent.log, "[dns] changed: that needs a restart");
    next_log(
        &agent.log,
        "configuration reloaded: services, checks, attach rights and log level",
    );
    assert_eq!(agent.get(services).await, json!({"new": ["t"]}));

    mesh.configure("n1", "[nodde]\n");
    agent.signal(Signal::SIGHUP);
    let line = next_log(&agent.log, "unknown key `nodde`; did you mean `node`?");
    assert!(
        line["place"].as_str().unwrap().ends_with("n1.toml:3:2"),
        "{line}"
    );
    assert_eq!(agent.get(services).await, json!({"new": ["t"]}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_the_certificate_does_not_allow_is_refused() {
    let mesh = Mesh::new();
    mesh.credentials("n1", &["api-*"]);
    let agent = Agent::start(&mesh.configure("n1", ""));
    let register = "/v1/agent/service/register";
    agent.put(register, r#"{"Name": "api-1", "Port": 1}"#).await;
    let (status, text) = agent.ask(Method::PUT, register, r#"{"Name": "web"}"#).await;
    assert_eq!(status, 403, "{text}");
    assert!(
        text.contains("does not allow it to publish service web"),
        "{text}"
    );
    assert_eq!(
        agent.get("/v1/catalog/services").await,
        json!({"api-1": []})
    );
}

fn fails(config: &std::path::Path) -> (Option<i32>, String) {
    let output = command(config).stdout(Stdio::null()).output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_port_in_use_is_named_with_its_key() {
    let mesh = Mesh::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for key in ["gossip", "http", "dns"] {
        mesh.credentials("n1", &["*"]);
        let config = mesh.configure("n1", "");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(
            &config,
            text.replace(&format!("{key} = 0"), &format!("{key} = {port}")),
        )
        .unwrap();
        let (code, errors) = fails(&config);
        assert_eq!(code, Some(1), "{errors}");
        let last = errors.lines().last().unwrap();
        let wanted = format!(
            "(process {}); stop it, or set `ports.{key}` to another port",
            std::process::id()
        );
        let begins = format!("mesh: port {port} on 127.0.0.1 is in use by ");
        assert!(
            last.starts_with(&begins) && last.ends_with(&wanted),
            "{errors}"
        );
    }
}

#[test]
fn without_credentials_it_asks_for_a_join_token() {
    let mesh = Mesh::new();
    let (code, errors) = fails(&mesh.configure("n1", ""));
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("mesh join-token create"), "{errors}");

    let token = mesh.path("token");
    let with_token = format!("[join]\ntoken_file = {token:?}\n");
    let (code, errors) = fails(&mesh.configure("n1", &with_token));
    assert_eq!(code, Some(1), "{errors}");
    let wanted = format!("no join token in {} (`join.token_file`)", token.display());
    assert!(errors.contains(&wanted), "{errors}");

    fs::write(&token, "hunter2").unwrap();
    let (code, errors) = fails(&mesh.configure("n1", &with_token));
    assert_eq!(code, Some(1), "{errors}");
    assert!(
        errors.contains(&wanted) && !errors.contains("hunter2"),
        "{errors}"
    );
}
