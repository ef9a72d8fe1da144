mod model;

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::barrier::{Barrier, SecretKey};
use crate::core::Core;
use crate::store::memory::MemoryStore;

const PREFIX: &str = "logical/7d0c/";

struct Bench {
    kv: Kv2,
    core: Core,
    db: Db,
    clock: Clock,
}

impl Bench {
    fn new() -> Self {
        let (barrier, _) = Barrier::create(SecretKey::random());
        let core = Core::start(Arc::new(MemoryStore::new()), barrier, 1).unwrap();
        let (db, clock) = (Db::new(core.clone()), Clock::default());
        let kv = Kv2::new(db.clone(), PREFIX.into(), "secret/".into(), clock.clone());
        Self {
            kv,
            core,
            db,
            clock,
        }
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
            Ok(mut answer) => {
                let data = answer.take_data().unwrap_or_default();
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

#[tokio::test]
async fn a_deleted_version_is_hidden_with_its_metadata_shown_until_undeleted() {
    let bench = Bench::new();
    bench.write("data/a", json!({"data": {"i": 1}})).await;
    bench.write("data/a", json!({"data": {"i": 2}})).await;
    assert_eq!(bench.delete("data/a").await, NONE);
    let (status, read) = bench.read("data/a").await;
    assert_eq!((status, &read["data"]), (404, &Value::Null));
    assert_eq!(read["metadata"]["version"], 2);
    assert_eq!(read["metadata"]["destroyed"], false);
    assert!(
        read["metadata"]["deletion_time"]
            .as_str()
            .unwrap()
            .ends_with('Z')
    );
    let deleted = read["metadata"]["deletion_time"].clone();

    bench.clock.advance(60);
    assert_eq!(bench.delete("data/a").await, NONE);
    let (_, again) = bench.read("data/a").await;
    assert_eq!(again["metadata"]["deletion_time"], deleted);
    assert_eq!(bench.version("data/a", 1).await.0, 200);

    let (status, subkeys) = bench.read("subkeys/a").await;
    assert_eq!((status, &subkeys["subkeys"]), (404, &Value::Null));
    assert_eq!(
        bench.write("undelete/a", json!({"versions": [2]})).await,
        NONE
    );
    assert_eq!(bench.read("data/a").await.1["data"], json!({"i": 2}));

    assert_eq!(
        bench.write("delete/a", json!({"versions": "1,2,9"})).await,
        NONE
    );
    assert_eq!(bench.version("data/a", 1).await.0, 404);
    assert_eq!(bench.version("data/a", 2).await.0, 404);
    assert_eq!(bench.delete("data/nosuch").await, NONE);
    for path in ["delete/a", "undelete/a", "destroy/a"] {
        let none = error("No version number provided");
        assert_eq!(bench.write(path, json!({})).await, none);
        assert_eq!(bench.write(path, json!({"versions": ["x"]})).await.0, 400);
        assert_eq!(
            bench
                .write(&path.replace("/a", "/nosuch"), json!({"versions": [1]}))
                .await,
            NONE
        );
    }
}

#[tokio::test]
async fn a_destroyed_value_is_nowhere() {
    let bench = Bench::new();
    for i in 1..=3 {
        bench.write("data/a", json!({"data": {"i": i}})).await;
    }
    assert_eq!(
        bench.write("destroy/a", json!({"versions": [1, 3]})).await,
        NONE
    );
    assert_eq!(bench.values(), [format!("{PREFIX}value/2/a")]);
    let (status, read) = bench.read("data/a").await;
    assert_eq!((status, &read["data"]), (404, &Value::Null));
    assert_eq!(read["metadata"]["destroyed"], true);
    assert_eq!(
        bench.write("undelete/a", json!({"versions": [3]})).await,
        NONE
    );
    assert_eq!(bench.read("data/a").await.0, 404);
    assert_eq!(bench.version("data/a", 2).await.0, 200);

    assert_eq!(bench.delete("metadata/a").await, NONE);
    assert_eq!(bench.db.names(PREFIX).unwrap(), Vec::<String>::new());
    assert_eq!(bench.read("data/a").await, missing());
    assert_eq!(bench.delete("metadata/a").await, NONE);
}

#[tokio::test]
async fn old_versions_go_when_there_are_too_many() {
    let bench = Bench::new();
    for i in 1..=12 {
        bench.write("data/a", json!({"data": {"i": i}})).await;
    }
    let (_, metadata) = bench.read("metadata/a").await;
    assert_eq!(metadata["oldest_version"], 3);
    assert_eq!(metadata["current_version"], 12);
    assert_eq!(metadata["versions"].as_object().unwrap().len(), 10);
    assert_eq!(bench.values().len(), 10);
    assert_eq!(bench.version("data/a", 2).await, missing());
    assert_eq!(bench.version("data/a", 3).await.0, 200);

    bench.write("config", json!({"max_versions": 2})).await;
    bench.write("data/a", json!({"data": {"i": 13}})).await;
    assert_eq!(bench.values().len(), 2);
    // A key may keep more than its mount says, not fewer.
    bench.write("metadata/a", json!({"max_versions": 1})).await;
    bench.write("data/a", json!({"data": {"i": 14}})).await;
    assert_eq!(bench.values().len(), 2);
    bench.write("metadata/a", json!({"max_versions": 3})).await;
    bench.write("data/a", json!({"data": {"i": 15}})).await;
    assert_eq!(bench.values().len(), 3);
    assert_eq!(bench.version("data/a", 13).await.0, 200);
}

#[tokio::test]
async fn a_patch_merges_into_a_new_version() {
    let bench = Bench::new();
    let patch = json!({"data": {"pass": null, "extra": {"deep": 1, "gone": null}}});
    assert_eq!(
        bench.patch("data/a", patch.clone()).await,
        (404, Value::Null)
    );
    bench
        .write("data/a", json!({"data": {"user": "u", "pass": "p"}}))
        .await;
    let (status, answer) = bench.patch("data/a", patch.clone()).await;
    assert_eq!((status, &answer["version"]), (200, &json!(2)));
    let (_, read) = bench.read("data/a").await;
    assert_eq!(read["data"], json!({"user": "u", "extra": {"deep": 1}}));

    let stale = json!({"data": {"a": 1}, "options": {"cas": 1}});
    assert_eq!(
        bench.patch("data/a", stale).await,
        error("check-and-set parameter did not match the current version")
    );
    assert_eq!(
        bench.patch("data/a", json!({})).await,
        error("no data provided")
    );
    bench.delete("data/a").await;
    let (status, answer) = bench.patch("data/a", patch).await;
    assert_eq!((status, &answer["version"]), (404, &json!(2)));
    assert_ne!(answer["deletion_time"], "");
}

#[tokio::test]
async fn versions_expire_by_the_smaller_of_mount_and_key() {
    let bench = Bench::new();
    bench
        .write("config", json!({"delete_version_after": "1h"}))
        .await;
    bench
        .write("metadata/a", json!({"delete_version_after": "30m"}))
        .await;
    bench.write("data/a", json!({"data": {"i": 1}})).await;
    bench.write("data/b", json!({"data": {"i": 1}})).await;
    let (status, read) = bench.read("data/a").await;
    assert_eq!(status, 200);
    assert_ne!(read["metadata"]["deletion_time"], "");
    bench.clock.advance(31 * 60);
    assert_eq!(bench.read("data/a").await.0, 404);
    assert_eq!(bench.read("data/b").await.0, 200);
    bench.clock.advance(30 * 60);
    assert_eq!(bench.read("data/b").await.0, 404);

    // An undelete starts the time anew.
    bench.write("undelete/a", json!({"versions": [1]})).await;
    assert_eq!(bench.read("data/a").await.0, 200);
    bench.clock.advance(31 * 60);
    assert_eq!(bench.read("data/a").await.0, 404);

    bench
        .write("config", json!({"delete_version_after": "-1s"}))
        .await;
    assert_eq!(bench.read("config").await.1["delete_version_after"], "-1s");
    bench.write("data/a", json!({"data": {"i": 2}})).await;
    bench.clock.advance(365 * 86_400);
    assert_eq!(bench.read("data/a").await.0, 200);
}

#[tokio::test]
async fn metadata_has_settings_and_custom_fields() {
    let bench = Bench::new();
    assert_eq!(bench.read("metadata/a").await, missing());
    let patch = json!({"custom_metadata": {"team": "t"}});
    assert_eq!(
        bench.patch("metadata/a", patch.clone()).await,
        (404, Value::Null)
    );
    let body = json!({"max_versions": 5, "custom_metadata": {"owner": "me"}, "delete_version_after": "3h"});
    assert_eq!(bench.write("metadata/a", body).await, NONE);
    assert_eq!(bench.read("data/a").await, missing());
    assert_eq!(bench.patch("metadata/a", patch).await, NONE);
    let (_, written) = bench.write("data/a", json!({"data": {}})).await;
    assert_eq!(
        written["custom_metadata"],
        json!({"owner": "me", "team": "t"})
    );
    let (status, read) = bench.read("metadata/a").await;
    let (created, updated) = (&read["created_time"], &read["updated_time"]);
    let version = json!({"created_time": updated, "deletion_time": written["deletion_time"], "destroyed": false});
    assert_eq!(
        (status, &read),
        (
            200,
            &json!({
                "cas_required": false, "created_time": created, "current_metadata_version": 2, "current_version": 1,
                "custom_metadata": {"owner": "me", "team": "t"}, "delete_version_after": "3h0m0s", "max_versions": 5,
                "metadata_cas_required": false, "oldest_version": 0, "updated_time": updated, "versions": {"1": version},
            })
        )
    );
    let reset = json!({"max_versions": null, "delete_version_after": null, "custom_metadata": {"owner": null}});
    bench.patch("metadata/a", reset).await;
    let (_, read) = bench.read("metadata/a").await;
    assert_eq!(read["max_versions"], 0);
    assert_eq!(read["delete_version_after"], "0s");
    assert_eq!(read["custom_metadata"], json!({"team": "t"}));

    bench.write("metadata/b", json!({})).await;
    let many: serde_json::Map<_, _> = (0..65).map(|i| (format!("k{i}"), json!("v"))).collect();
    for (custom, text) in [
        (
            json!({"n": {"x": 1}}),
            "custom_metadata validation failed: '' expected type 'string', got unconvertible type 'map[string]interface {}'",
        ),
        (
            json!(many),
            "custom_metadata validation failed: payload must contain at most 64 keys, provided 65",
        ),
        (
            json!({"k".repeat(129): "v"}),
            "custom_metadata validation failed: length of a key is 129 but 1 to 128 is allowed",
        ),
        (
            json!({"k": "v".repeat(513)}),
            "custom_metadata validation failed: length of a value is 513 but max allowed is 512",
        ),
        (
            json!({"k": "a\nb"}),
            "custom_metadata validation failed: a key or value contains unprintable characters",
        ),
    ] {
        let body = json!({"custom_metadata": custom});
        assert_eq!(bench.write("metadata/b", body.clone()).await, error(text));
        assert_eq!(bench.patch("metadata/b", body).await, error(text));
    }
    assert_eq!(
        bench
            .write("metadata/a", json!({"max_versions": -1}))
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn settings_may_ask_for_check_and_set() {
    let bench = Bench::new();
    let set = async |cas: Option<i64>| {
        let mut body = json!({"custom_metadata": {"a": "b"}});
        if let Some(cas) = cas {
            body["metadata_cas"] = cas.into();
        }
        bench.write("metadata/a", body).await.0
    };
    assert_eq!(set(Some(1)).await, 400, "there is no such key");
    assert_eq!(set(Some(0)).await, 204);
    assert_eq!(set(Some(0)).await, 400, "there is now");
    assert_eq!(set(Some(1)).await, 204);
    assert_eq!(set(Some(1)).await, 400, "it has changed since");
    assert_eq!(set(None).await, 204);
    bench
        .write("config", json!({"metadata_cas_required": true}))
        .await;
    assert_eq!(set(None).await, 400);
    assert_eq!(set(Some(3)).await, 204);
}

#[tokio::test]
async fn keys_are_listed_by_folder() {
    let bench = Bench::new();
    for key in ["a/x", "a/new", "a", "num", "uni code/é"] {
        bench
            .write(&format!("data/{key}"), json!({"data": {}}))
            .await;
    }
    let keys = |keys: &[&str]| (200, json!({ "keys": keys }));
    assert_eq!(
        bench.keys("metadata/").await,
        keys(&["a", "a/", "num", "uni code/"])
    );
    assert_eq!(bench.keys("metadata/a/").await, keys(&["new", "x"]));
    assert_eq!(bench.keys("metadata/uni code/").await, keys(&["é"]));
    assert_eq!(bench.keys("metadata/nosuch/").await, missing());
    let page = async |query| bench.ask(Operation::List, "metadata/", query).await;
    assert_eq!(page(json!({"after": "", "limit": "1"})).await, keys(&["a"]));
    assert_eq!(
        page(json!({"after": "a/", "limit": "1"})).await,
        keys(&["num"])
    );
    assert_eq!(page(json!({"after": "uni code/"})).await, missing());
    // A soft-deleted key is still there, one without metadata is not.
    bench.delete("data/num").await;
    bench.delete("metadata/a/x").await;
    assert_eq!(bench.keys("metadata/a/").await, keys(&["new"]));
    assert_eq!(
        bench.keys("metadata/").await,
        keys(&["a", "a/", "num", "uni code/"])
    );
}

#[tokio::test]
async fn subkeys_show_the_shape_alone() {
    let bench = Bench::new();
    let secret = json!({"user": "u", "extra": {"deep": {"er": 1}, "none": {}}, "list": [{"a": 1}]});
    bench.write("data/a", json!({ "data": secret })).await;
    let (status, all) = bench.read("subkeys/a").await;
    assert_eq!(status, 200);
    assert_eq!(all["metadata"]["version"], 1);
    assert_eq!(
        all["subkeys"],
        json!({"user": null, "extra": {"deep": {"er": null}, "none": null}, "list": null})
    );
    let depth = async |depth: &str| {
        let query = json!({ "depth": depth });
        bench.ask(Operation::Read, "subkeys/a", query).await
    };
    let shallow = json!({"user": null, "extra": null, "list": null});
    assert_eq!(depth("1").await.1["subkeys"], shallow);
    let two = json!({"user": null, "extra": {"deep": null, "none": null}, "list": null});
    assert_eq!(depth("2").await.1["subkeys"], two);
    assert_eq!(depth("-1").await.0, 400);
    assert_eq!(bench.read("subkeys/nosuch").await, missing());
}

#[tokio::test]
async fn large_numbers_and_odd_names_are_kept() {
    let bench = Bench::new();
    let text = r#"{"data":{"big":12345678901234567890,"small":-9007199254740993,"f":1.5,"é":"<>&\u2028"}}"#;
    bench
        .write("data/n", serde_json::from_str(text).unwrap())
        .await;
    let (_, read) = bench.read("data/n").await;
    assert_eq!(
        read["data"].to_string(),
        "{\"big\":12345678901234567890,\"f\":1.5,\"small\":-9007199254740993,\"é\":\"<>&\u{2028}\"}"
    );
}

#[tokio::test]
async fn wrong_requests_are_refused_without_repeating_values() {
    let bench = Bench::new();
    let wrong = |got: &str| {
        error(&format!(
            "error converting input for field \"data\": '' expected type 'map[string]interface {{}}', got unconvertible type '{got}'"
        ))
    };
    assert_eq!(
        bench.write("data/a", json!({"data": "hunter2"})).await,
        wrong("string")
    );
    assert_eq!(
        bench.write("data/a", json!({"data": ["hunter2"]})).await,
        wrong("[]interface {}")
    );
    assert_eq!(
        bench.write("data/a", json!({"value": 1})).await,
        error("no data provided")
    );
    let options = json!({"data": {}, "options": "hunter2"});
    let (status, text) = bench.write("data/a", options).await;
    assert_eq!((status, text.to_string().contains("hunter2")), (400, false));
    let query = json!({"version": "hunter2"});
    let (status, text) = bench.ask(Operation::Read, "data/a", query).await;
    assert_eq!((status, text.to_string().contains("hunter2")), (400, false));
    assert_eq!(
        bench
            .write("data/a", json!({"data": {"k": "v".repeat(16 << 20)}}))
            .await
            .0,
        413
    );
    assert_eq!(bench.db.names(PREFIX).unwrap(), Vec::<String>::new());

    for path in ["a/x", "nosuch", ""] {
        assert_eq!(bench.read(path).await, (404, Value::Null), "{path}");
    }
    assert_eq!(bench.keys("data/a/").await.0, 405);
    assert_eq!(bench.delete("config").await.0, 405);
    assert_eq!(bench.read("data/a/").await, missing());
    assert_eq!(bench.write("data/", json!({"data": {}})).await.0, 400);
}

#[tokio::test]
async fn a_change_is_one_entry_of_the_ledger_and_no_change_is_none() {
    let bench = Bench::new();
    bench.write("config", json!({"max_versions": 1})).await;
    let versions = json!({"versions": [2]});
    for (operation, path, body, entries) in [
        (Operation::Write, "data/a", json!({"data": {"i": 1}}), 1),
        // Record, new value and the old one's removal.
        (Operation::Write, "data/a", json!({"data": {"i": 2}}), 1),
        (Operation::Delete, "data/a", json!({}), 1),
        (Operation::Delete, "data/a", json!({}), 0),
        (Operation::Write, "destroy/a", versions.clone(), 1),
        (Operation::Write, "destroy/a", versions.clone(), 0),
        (Operation::Write, "undelete/a", versions, 0),
        (Operation::Read, "data/a", json!({}), 0),
        (Operation::Delete, "metadata/a", json!({}), 1),
        (Operation::Delete, "metadata/a", json!({}), 0),
    ] {
        let before = bench.core.head().index;
        bench.ask(operation, path, body).await;
        assert_eq!(
            bench.core.head().index - before,
            entries,
            "{operation:?} {path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_never_misses_a_key_whose_versions_are_replaced() {
    let bench = Arc::new(Bench::new());
    bench.write("config", json!({"max_versions": 1})).await;
    bench.write("data/a", json!({"data": {"i": 0}})).await;
    let writer = tokio::spawn({
        let bench = bench.clone();
        async move {
            for i in 1..=500 {
                let (status, _) = bench.write("data/a", json!({"data": {"i": i}})).await;
                assert_eq!(status, 200);
            }
        }
    });
    let mut reads = 0;
    while !writer.is_finished() || reads == 0 {
        let (status, read) = bench.read("data/a").await;
        assert_eq!(status, 200, "{read}");
        // Write i made version i + 1.
        let (i, version) = (&read["data"]["i"], &read["metadata"]["version"]);
        assert_eq!(i.as_u64().unwrap() + 1, version.as_u64().unwrap());
        reads += 1;
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn a_missing_value_is_a_failure_and_not_an_endless_search() {
    let bench = Bench::new();
    bench.write("data/a", json!({"data": {"i": 1}})).await;
    let mut batch = Batch::new(&By::system("test"), "damage");
    batch.delete(&format!("{PREFIX}value/1/a"));
    bench.db.commit(batch).await.unwrap();
    assert_eq!(bench.read("data/a").await.0, 500);
}
