//! What is kept, over restarts and torn lines.

use std::{fs, io::Write, path::PathBuf};

use libmesh::{
    catalog::Catalog,
    model::{CheckRecord, Health, Instance, NodeId, ServiceName},
};
use serde_json::json;

use super::*;

struct Node {
    local: LocalLog,
    kept: Registered,
    file: PathBuf,
}

impl Node {
    fn new(dir: &Path) -> Self {
        let node = Self {
            local: Catalog::new(NodeId([1; 16])).local(),
            kept: Registered::default(),
            file: dir.join("services.json"),
        };
        node.kept.open(&node.file, &[]).unwrap();
        node
    }

    async fn register(&self, id: &str, port: u16, checks: &[&str]) {
        let mut instance = Instance::new(ServiceName::parse("web").unwrap(), port).unwrap();
        instance.id = InstanceId::parse(id).unwrap();
        let own = instance.id.clone();
        self.local.put_service(instance).unwrap();
        for check in checks {
            self.check_record(check, Some(own.clone()));
        }
        let body = json!({"ID": id, "Port": port, "token": "sesame"})
            .to_string()
            .into();
        let checks = checks.iter().map(ToString::to_string).collect();
        let kept = &self.kept;
        kept.service(self.local.clone(), &own, &body, checks)
            .await
            .unwrap();
    }

    fn check_record(&self, id: &str, service: Option<InstanceId>) {
        let record = CheckRecord {
            id: id.into(),
            name: id.into(),
            service,
            status: Health::Passing,
            kind: "ttl".into(),
            notes: "".into(),
            create_stamp: 0,
            modify_stamp: 0,
        };
        self.local.put_check(record).unwrap();
    }

    async fn check(&self, id: &str) {
        self.check_record(id, None);
        let body = json!({"Name": id}).to_string().into();
        self.kept
            .check(self.local.clone(), id, &body)
            .await
            .unwrap();
    }

    async fn deregister(&self, id: &str) {
        self.local.remove_service(&InstanceId::parse(id).unwrap());
        self.kept.forget_gone(self.local.clone()).await.unwrap();
    }

    fn length(&self) -> u64 {
        fs::metadata(&self.file).unwrap().len()
    }
}

/// What the next start finds: instances with the port and the checks they were registered with, and checks.
fn found(file: &Path) -> (Vec<(String, u64, usize)>, Vec<String>) {
    let requests = Registered::default().open(file, &[]).unwrap();
    let services = requests.services.into_iter().map(|(id, request)| {
        let body: Value = serde_json::from_str(request.body.get()).unwrap();
        assert!(body.get("token").is_none());
        (id, body["Port"].as_u64().unwrap(), request.checks.len())
    });
    (services.collect(), requests.checks.into_keys().collect())
}

fn web(id: &str, port: u64, checks: usize) -> (String, u64, usize) {
    (id.to_owned(), port, checks)
}

#[tokio::test]
async fn the_next_start_finds_what_is_there_and_nothing_that_went() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new(dir.path());
    node.register("a", 1, &["a1", "a2"]).await;
    node.register("b", 1, &[]).await;
    node.register("a", 2, &["a1", "a2"]).await;
    node.check("disk").await;
    node.check("cpu").await;
    node.deregister("b").await;
    // By other means than a request.
    node.local.remove_check("a1");
    node.local.remove_check("cpu");
    node.kept.forget_gone(node.local.clone()).await.unwrap();
    assert_eq!(
        found(&node.file),
        (vec![web("a", 2, 1)], vec!["disk".to_owned()])
    );
    let length = node.length();
    node.register("a", 2, &["a2"]).await;
    assert_eq!(node.length(), length, "nothing changed");
    node.deregister("a").await;
    assert_eq!(found(&node.file), (Vec::new(), vec!["disk".to_owned()]));
}

#[tokio::test]
async fn what_was_taken_away_while_it_was_registered_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new(dir.path());
    let id = InstanceId::parse("never").unwrap();
    let kept = &node.kept;
    let body = Bytes::from_static(b"{}");
    kept.service(node.local.clone(), &id, &body, BTreeSet::new())
        .await
        .unwrap();
    kept.check(node.local.clone(), "never", &body)
        .await
        .unwrap();
    node.register("a", 1, &[]).await;
    assert_eq!(found(&node.file), (vec![web("a", 1, 0)], Vec::new()));
}

#[tokio::test]
async fn a_torn_line_is_as_if_it_had_never_been_begun() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new(dir.path());
    node.register("a", 1, &[]).await;
    node.register("b", 1, &[]).await;
    let whole = fs::read(&node.file).unwrap();
    let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for end in 0..whole.len() {
        fs::write(&node.file, &whole[..end]).unwrap();
        let count = usize::from(end + 1 >= first);
        assert_eq!(found(&node.file).0.len(), count, "{end} bytes");
    }
    // Damage is no torn line.
    fs::write(&node.file, [b"{]}\n", &whole[..]].concat()).unwrap();
    assert!(Registered::default().open(&node.file, &[]).is_err());
    fs::write(&node.file, [&whole[..], b"{]}\n", &whole[..]].concat()).unwrap();
    assert!(Registered::default().open(&node.file, &[]).is_err());
}

#[tokio::test]
async fn a_file_of_earlier_versions_is_read_and_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("services.json");
    let old = json!({
        "services": {"old": {"body": {"Port": 7}, "checks": ["c"]}, "other": {"body": {"Port": 1}, "checks": []}},
        "checks": {"disk": {"Name": "disk"}},
    });
    files::write_private(&file, old.to_string().as_bytes()).unwrap();
    assert_eq!(found(&file).0, [web("old", 7, 1), web("other", 1, 0)]);
    let node = Node::new(dir.path());
    let others = [InstanceId::parse("other").unwrap()];
    node.kept.open(&file, &others).unwrap();
    node.check_record("disk", None);
    node.register("old", 7, &["c"]).await;
    node.register("new", 8, &[]).await;
    let (services, checks) = found(&file);
    assert_eq!(services, [web("new", 8, 0), web("old", 7, 1)]);
    assert_eq!(checks, ["disk"]);
}

#[tokio::test]
async fn however_often_something_changes_the_file_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new(dir.path());
    for port in 1..4000 {
        node.register("a", port, &[]).await;
    }
    assert!(node.length() < 160 << 10, "{}", node.length());
    assert_eq!(found(&node.file).0, [web("a", 3999, 0)]);
}

#[tokio::test]
async fn all_who_register_at_once_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(Node::new(dir.path()));
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..200 {
        let node = Arc::clone(&node);
        clients.spawn(async move { node.register(&format!("i{n}"), 1, &[]).await });
    }
    clients.join_all().await;
    assert_eq!(found(&node.file).0.len(), 200);
}

#[tokio::test]
async fn what_could_not_be_written_is_said_and_comes_with_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new(dir.path());
    let id = InstanceId::parse("a").unwrap();
    let mut instance = Instance::new(ServiceName::parse("web").unwrap(), 1).unwrap();
    instance.id = id.clone();
    node.local.put_service(instance).unwrap();
    // A directory is in the way.
    fs::create_dir(&node.file).unwrap();
    let body = Bytes::from_static(b"{\"Port\":1}");
    let kept = &node.kept;
    let refused = kept
        .service(node.local.clone(), &id, &body, BTreeSet::new())
        .await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.starts_with("done, but not kept for the agent's next start"),
        "{refused}"
    );
    fs::remove_dir(&node.file).unwrap();
    node.register("b", 1, &[]).await;
    assert_eq!(found(&node.file).0, [web("a", 1, 0), web("b", 1, 0)]);
    let mut file = fs::File::options().append(true).open(&node.file).unwrap();
    file.write_all(b"{\"service\":{\"id\"").unwrap();
    assert_eq!(found(&node.file).0.len(), 2);
}
