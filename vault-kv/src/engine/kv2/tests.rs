use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::barrier::{Barrier, SecretKey};
use crate::core::Core;
use crate::store::memory::MemoryStore;

const PREFIX: &str = "logical/7d0c/";

struct Bench {
    kv: Kv2,
    db: Db,
    clock: Clock,
}

impl Bench {
    fn new() -> Self {
        let (barrier, _) = Barrier::create(SecretKey::random());
        let core = Core::start(Arc::new(MemoryStore::new()), barrier, 1).unwrap();
        let (db, clock) = (Db::new(core), Clock::default());
        let kv = Kv2::new(db.clone(), PREFIX.into(), "secret/".into(), clock.clone());
        Self { kv, db, clock }
    }

    /// Status and data of an answer, or status and texts of an error.
    async fn ask(&self, operation: Operation, path: &str, body: Value) -> (u16, Value) {
        let Value::Object(map) = body else {
            panic!("a body is an object");
        };
        let by = By::system("test");
        match self
            .kv
            .handle(&by, operation, path, &mut Data::from(map))
            .await
        {
            Ok(answer) => {
                let data = answer.data.clone().unwrap_or_default();
                let usual = if data.is_null() { 204 } else { 200 };
                (answer.status.map_or(usual, |s| s.as_u16()), data)
            }
            Err(error) => (error.status().as_u16(), json!(error.texts())),
        }
    }

    async fn read(&self, path: &str) -> (u16, Value) {
        self.ask(Operation::Read, path, json!({})).await
    }

    async fn version(&self, path: &str, version: u64) -> (u16, Value) {
        self.ask(
            Operation::Read,
            path,
            json!({ "version": version.to_string() }),
        )
        .await
    }

    async fn write(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Operation::Write, path, body).await
    }

    async fn patch(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Operation::Patch, path, body).await
    }

    async fn delete(&self, path: &str) -> (u16, Value) {
        self.ask(Operation::Delete, path, json!({})).await
    }

    async fn keys(&self, path: &str) -> (u16, Value) {
        self.ask(Operation::List, path, json!({})).await
    }

    fn values(&self) -> Vec<String> {
        self.db.names(&format!("{PREFIX}value/")).unwrap()
    }
}

fn error(text: &str) -> (u16, Value) {
    (400, json!([text]))
}

const NONE: (u16, Value) = (204, Value::Null);

fn missing() -> (u16, Value) {
    (404, json!([]))
}

#[tokio::test]
async fn a_written_version_is_read_back() {
    let bench = Bench::new();
    assert_eq!(bench.read("data/app/db").await, missing());
    assert!(!bench.kv.exists("data/app/db").unwrap());
    let (status, first) = bench
        .write("data/app/db", json!({"data": {"user": "u", "pass": "p"}}))
        .await;
    assert_eq!(status, 200);
    let created = first["created_time"].as_str().unwrap();
    assert!(created.ends_with('Z'), "{created}");
    assert_eq!(
        first,
        json!({"created_time": created, "custom_metadata": null, "deletion_time": "", "destroyed": false, "version": 1})
    );
    assert!(bench.kv.exists("data/app/db").unwrap());
    bench
        .write("data/app/db", json!({"data": {"user": "v"}}))
        .await;

    let (status, read) = bench.version("data/app/db", 1).await;
    assert_eq!(
        (status, &read),
        (
            200,
            &json!({"data": {"user": "u", "pass": "p"}, "metadata": first})
        )
    );
    let (_, newest) = bench.read("data/app/db").await;
    assert_eq!(newest["data"], json!({"user": "v"}));
    assert_eq!(newest["metadata"]["version"], 2);
    assert_eq!(bench.version("data/app/db", 9).await, missing());
}

#[tokio::test]
async fn check_and_set_lets_only_the_newest_version_be_replaced() {
    let bench = Bench::new();
    let stale = error("check-and-set parameter did not match the current version");
    let write = async |cas: Value| {
        bench
            .write("data/a", json!({"data": {"z": 1}, "options": {"cas": cas}}))
            .await
    };
    assert_eq!(write(json!(1)).await, stale);
    assert_eq!(write(json!(0)).await.0, 200);
    assert_eq!(write(json!(0)).await, stale);
    assert_eq!(write(json!(-1)).await, stale);
    assert_eq!(write(json!("1")).await.0, 200);
    assert_eq!(
        write(json!("x")).await,
        error("error parsing check-and-set parameter")
    );
    assert_eq!(write(json!(null)).await.0, 400);
    assert_eq!(bench.read("data/a").await.1["metadata"]["version"], 2);

    bench.write("config", json!({"cas_required": true})).await;
    let required = error("check-and-set parameter required for this call");
    let plain = json!({"data": {"z": 1}});
    assert_eq!(bench.write("data/b", plain.clone()).await, required);
    bench.write("config", json!({"cas_required": false})).await;
    bench
        .write("metadata/b", json!({"cas_required": true}))
        .await;
    assert_eq!(bench.write("data/b", plain.clone()).await, required);
    assert_eq!(bench.write("data/c", plain).await.0, 200);
}

#[tokio::test]
async fn one_of_many_writers_with_the_same_cas_wins() {
    let bench = Arc::new(Bench::new());
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..16 {
        let bench = bench.clone();
        tasks.spawn(async move {
            let body = json!({"data": {"by": writer}, "options": {"cas": 0}});
            bench.write("data/a", body).await.0
        });
    }
    let statuses = tasks.join_all().await;
    assert_eq!(statuses.iter().filter(|s| **s == 200).count(), 1);
    assert_eq!(statuses.iter().filter(|s| **s == 400).count(), 15);
}
