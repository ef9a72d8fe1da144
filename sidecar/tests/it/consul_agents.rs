//! What the Consul interface tells an agent to do, and what agents tell each other for it. Asked over the sockets of
//! agents that have no server: their own user may do everything there.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Instant,
};

use bytes::Bytes;
use http::{Method, Request};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sidecar::http::client::Target;

use crate::node::{Agent, Mesh, PATIENCE};

/// The socket of an agent.
fn socket(mesh: &Mesh, name: &str) -> Target {
    let path = mesh.path(name).join("mesh.sock");
    Target::parse(&format!("unix://{}", path.display()), 0, None).unwrap()
}

async fn put(target: &Target, path: &str, body: &str) -> (u16, String) {
    let request = Request::builder()
        .method(Method::PUT)
        .uri(path)
        .body(Bytes::copy_from_slice(body.as_bytes()));
    let answer = target.send(request.unwrap(), PATIENCE).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = String::from_utf8(body.to_vec()).unwrap();
    (head.status.as_u16(), body)
}

async fn done(target: &Target, path: &str) {
    assert_eq!(put(target, path, "").await, (200, String::new()), "{path}");
}

fn names(list: &Value, field: &str) -> Vec<String> {
    let list = list.as_array().unwrap().iter();
    list.map(|one| one[field].as_str().unwrap().to_owned())
        .collect()
}

/// And each that the others are there: a record may come before the membership.
async fn all_know_each_other(agents: &[&Agent]) {
    for agent in agents {
        let alive = |members: &Value| {
            let members = members.as_array().unwrap().iter();
            members.filter(|it| it["Status"] == 1).count() == agents.len()
        };
        agent.until("/v1/agent/members", alive).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reach_whom_they_are_for_and_each_of_them_once() {
    let mesh = Mesh::new();
    let web = "[[service]]\nname = \"web\"\nport = 80\ntags = [\"v1\"]\n";
    let one = mesh.agent("n1", &[], "");
    let two = mesh.agent("n2", &[one.gossip], web);
    let three = mesh.agent("n3", &[one.gossip], "");
    let agents = [&one, &two, &three];
    all_know_each_other(&agents).await;
    let list = "/v1/event/list";

    // Whoever waits hears of it: with index 1 for the list that has nothing.
    let waiting = three.get("/v1/event/list?index=1&wait=30s");
    let fire = async {
        let (status, fired) = put(&socket(&mesh, "n1"), "/v1/event/fire/deploy", "now").await;
        assert_eq!(status, 200, "{fired}");
        serde_json::from_str::<Value>(&fired).unwrap()
    };
    let (heard, fired) = tokio::join!(waiting, fire);
    assert_eq!(
        (&fired["Payload"], &fired["LTime"]),
        (&json!("bm93"), &json!(0))
    );
    assert_eq!(heard[0]["ID"], fired["ID"]);
    assert_eq!(heard[0]["LTime"], 1);
    for agent in agents {
        agent
            .until(list, |list| names(list, "Name") == ["deploy"])
            .await;
    }
    let socket2 = socket(&mesh, "n2");
    for (path, meant) in [
        (
            "/v1/event/fire/only?service=we.&tag=%5Ev1%24",
            [false, true, false],
        ),
        (
            "/v1/event/fire/other?service=web&tag=v2",
            [false, false, false],
        ),
        ("/v1/event/fire/node?node=n%5B13%5D", [true, false, true]),
        ("/v1/event/fire/last", [true, true, true]),
    ] {
        assert_eq!(put(&socket2, path, "").await.0, 200, "{path}");
        let name = path.split(['/', '?']).nth(4).unwrap();
        let list = format!("{list}?name={name}");
        for (agent, meant) in agents.iter().zip(meant) {
            if meant {
                agent
                    .until(&list, |list| names(list, "Name") == [name])
                    .await;
            }
        }
    }
    // What came last is everywhere, so what was fired before it is as well, where it is meant for.
    let all = async |agent: &Agent| {
        let mut names = names(&agent.get(list).await, "Name");
        names.sort();
        names
    };
    assert_eq!(all(&one).await, ["deploy", "last", "node"]);
    assert_eq!(all(&two).await, ["deploy", "last", "only"]);
    assert_eq!(all(&three).await, ["deploy", "last", "node"]);

    // Others need a right, about which a server decides.
    let (status, why) = one.ask(Method::PUT, "/v1/event/fire/x", "").await;
    assert_eq!(status, 500);
    assert!(why.starts_with("No cluster leader"), "{why}");
    let large = "x".repeat(9000);
    assert_eq!(put(&socket2, "/v1/event/fire/large", &large).await.0, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_join_are_forgotten_and_leave_when_told() {
    let mesh = Mesh::new();
    let one = mesh.agent("n1", &[], "");
    let two = mesh.agent("n2", &[one.gossip], "");
    let three = mesh.agent("n3", &[], "");
    all_know_each_other(&[&one, &two]).await;
    assert_eq!(names(&three.get("/v1/agent/members").await, "Name"), ["n3"]);
    done(
        &socket(&mesh, "n3"),
        &format!("/v1/agent/join/{}", one.gossip),
    )
    .await;
    all_know_each_other(&[&one, &two, &three]).await;
    let own = socket(&mesh, "n1");
    let (status, why) = put(&own, "/v1/agent/join/:0", "").await;
    assert_eq!(status, 500);
    assert!(why.contains("Failed to join :0"), "{why}");

    // One that is there stays.
    done(&own, "/v1/agent/force-leave/n2").await;
    assert_eq!(
        one.get("/v1/catalog/nodes").await.as_array().unwrap().len(),
        3
    );
    two.signal(Signal::SIGKILL);
    two.wait();
    let down = |members: &Value| members[1]["Status"] == 4;
    one.until("/v1/agent/members", down).await;
    three.until("/v1/agent/members", down).await;
    done(&own, "/v1/agent/force-leave/n2?prune").await;
    for agent in [&one, &three] {
        let without = |members: &Value| names(members, "Name") == ["n1", "n3"];
        agent.until("/v1/agent/members", without).await;
    }

    done(&socket(&mesh, "n3"), "/v1/agent/leave").await;
    assert_eq!(three.wait(), Some(0));
    let alone = |members: &Value| names(members, "Name") == ["n1"];
    one.until("/v1/agent/members", alone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_is_seen_by_who_follows_the_log() {
    let mesh = Mesh::new();
    let agent = mesh.agent("n1", &[], "[log]\nlevel = \"info\"\n");
    let mut stream = UnixStream::connect(mesh.path("n1").join("mesh.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let ask = "GET /v1/agent/monitor?loglevel=debug HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(ask.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "HTTP/1.1 200 OK");
    // The head is there, so the log is followed.
    assert!(lines.any(|line| line.is_empty()));

    let own = socket(&mesh, "n1");
    let file = mesh.path("n1.toml");
    let before = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        format!("{before}[[service]]\nname = \"web\"\nport = 80\n"),
    )
    .unwrap();
    done(&own, "/v1/agent/reload").await;
    let line = lines
        .find(|line| line.contains("configuration reloaded"))
        .unwrap();
    assert!(
        line.contains("[INFO]") && line.contains("services=1"),
        "{line}"
    );
    assert_eq!(agent.get("/v1/agent/services").await["web"]["Port"], 80);

    fs::write(&file, format!("{before}[nonsense]\n")).unwrap();
    let (status, why) = put(&own, "/v1/agent/reload", "").await;
    assert_eq!(status, 500);
    assert!(why.contains("nonsense"), "{why}");
    assert_eq!(agent.get("/v1/agent/services").await["web"]["Port"], 80);
    let (status, _) = agent
        .ask(Method::GET, "/v1/agent/monitor?loglevel=loud", "")
        .await;
    assert_eq!(status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn round_trips_make_coordinates_and_an_order() {
    let mesh = Mesh::new();
    let web = "[[service]]\nname = \"web\"\nport = 80\n";
    let one = mesh.agent("n1", &[], web);
    let two = mesh.agent("n2", &[one.gossip], web);
    all_know_each_other(&[&one, &two]).await;
    for agent in [&one, &two] {
        let both = |nodes: &Value| names(nodes, "Node") == ["n1", "n2"];
        agent.until("/v1/coordinate/nodes", both).await;
    }
    // Whoever has measured is surer than at the start.
    let measured = |node: &Value| node[0]["Coord"]["Error"].as_f64().unwrap() < 1.5;
    one.until("/v1/coordinate/node/n1", measured).await;
    let vec = one.get("/v1/agent/self").await["Coord"]["Vec"].clone();
    assert_eq!(vec.as_array().unwrap().len(), 8);
    for (near, first) in [("n1", "n1"), ("n2", "n2"), ("_agent", "n1")] {
        let nodes = one.get(&format!("/v1/catalog/nodes?near={near}")).await;
        assert_eq!(names(&nodes, "Node")[0], first, "near {near}");
        let web = one
            .get(&format!("/v1/health/service/web?near={near}"))
            .await;
        assert_eq!(web[0]["Node"]["Node"], first, "near {near}");
    }
    let body = json!({"Node": "n2", "Coord": {"Vec": [0, 0, 0, 0, 0, 0, 0, 0]}}).to_string();
    let (status, why) = put(&socket(&mesh, "n1"), "/v1/coordinate/update", &body).await;
    assert_eq!(status, 500);
    assert!(why.contains("measures its coordinate itself"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_and_the_machine_are_shown() {
    let mesh = Mesh::new();
    let agent = mesh.agent("n1", &[], "[[service]]\nname = \"web\"\nport = 80\n");
    let began = Instant::now();
    agent
        .until("/v1/agent/services", |all| all["web"]["Port"] == 80)
        .await;
    dns::client::query(agent.dns, "none.service.mesh", "A", PATIENCE)
        .await
        .unwrap();
    let metrics = agent.get("/v1/agent/metrics").await;
    let value = |kind: &str, name: &str, labels: Value, field: &str| {
        let all = metrics[kind].as_array().unwrap();
        let found = all
            .iter()
            .find(|one| one["Name"] == name && one["Labels"] == labels);
        found.unwrap_or_else(|| panic!("{name} is not in {metrics}"))[field]
            .as_f64()
            .unwrap()
    };
    assert_eq!(
        value("Gauges", "mesh.members", json!({"state": "alive"}), "Value"),
        1.0
    );
    assert_eq!(
        value("Gauges", "mesh.agent.services", json!({}), "Value"),
        1.0
    );
    assert!(
        value(
            "Gauges",
            "mesh.process.resident_memory_bytes",
            json!({}),
            "Value"
        ) > 1e6
    );
    assert!(
        value(
            "Counters",
            "mesh.http.answers",
            json!({"class": "2xx"}),
            "Count"
        ) >= 1.0
    );
    let took = value("Samples", "mesh.http.answer_seconds", json!({}), "Sum");
    assert!(took > 0.0 && took < Instant::now().duration_since(began).as_secs_f64());
    let (status, headers, text) = agent
        .full(Method::GET, "/v1/agent/metrics?format=prometheus", "")
        .await;
    assert_eq!(status, 200);
    assert!(
        headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
    assert!(
        text.contains("\nmesh_members{state=\"alive\"} 1\n"),
        "{text}"
    );
    assert!(text.contains("\nmesh_dns_replies_total{rcode="), "{text}");

    let host = socket(&mesh, "n1");
    let request = Request::get("/v1/agent/host").body(Bytes::new()).unwrap();
    let answer = host.send(request, PATIENCE).await.unwrap();
    let host: Value = serde_json::from_slice(answer.body()).unwrap();
    assert!(host["Disk"]["total"].as_u64().unwrap() > 0, "{host}");
    if cfg!(target_os = "linux") {
        assert!(host["Memory"]["total"].as_u64().unwrap() > 0, "{host}");
        assert!(host["Errors"].is_null(), "{host}");
    }
}
