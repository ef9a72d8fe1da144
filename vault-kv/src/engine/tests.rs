//! The engines without versions.

use std::sync::Arc;

use serde_json::{Value, json};

use super::cubbyhole::Cubbyhole;
use super::kv1::Kv1;
use crate::barrier::{Barrier, SecretKey};
use crate::core::Core;
use crate::db::{By, Db};
use crate::http::{ApiError, reply::Answer};
use crate::request::{Data, Operation};
use crate::store::memory::MemoryStore;

fn db() -> Db {
    let (barrier, _) = Barrier::create(SecretKey::random());
    Db::new(Core::start(Arc::new(MemoryStore::new()), barrier, 1).unwrap())
}

fn fields(body: Value) -> Data {
    match body {
        Value::Object(map) => map.into(),
        _ => panic!("a body is an object"),
    }
}

fn shown(result: Result<Answer, ApiError>) -> (Value, u64) {
    match result {
        Ok(mut answer) => (
            answer.take_data().unwrap_or_default(),
            answer.lease_duration,
        ),
        Err(error) => (json!([error.status().as_u16(), error.texts()]), 0),
    }
}

#[tokio::test]
async fn kv1_keeps_one_value_with_its_lease() {
    let kv = Kv1::new(db(), "logical/1/".into(), "kv1/".into());
    let ask = async |operation, path, body| {
        let by = By::system("test");
        shown(kv.handle(&by, operation, path, &fields(body), 3600).await)
    };
    let none = (Value::Null, 0);
    let missing = (json!([404, []]), 0);
    assert!(!kv.exists("a/b").unwrap());
    let body = json!({"k": "v", "big": 12345678901234567890u64, "ttl": "15m"});
    assert_eq!(ask(Operation::Write, "a/b", body.clone()).await, none);
    assert!(kv.exists("a/b").unwrap());
    assert_eq!(ask(Operation::Read, "a/b", json!({})).await, (body, 900));
    assert_eq!(ask(Operation::Write, "a/b", json!({"k": "w"})).await, none);
    let read = ask(Operation::Read, "a/b", json!({})).await;
    assert_eq!(read, (json!({"k": "w"}), 3600));
    assert_eq!(
        ask(Operation::Write, "a/b", json!({})).await.0,
        json!([400, ["missing data fields"]])
    );
    assert_eq!(
        ask(Operation::List, "", json!({})).await.0,
        json!({"keys": ["a/"]})
    );
    assert_eq!(
        ask(Operation::List, "a/", json!({})).await.0,
        json!({"keys": ["b"]})
    );
    assert_eq!(ask(Operation::List, "nosuch/", json!({})).await, missing);
    assert_eq!(ask(Operation::Delete, "a/b", json!({})).await, none);
    assert_eq!(ask(Operation::Delete, "a/b", json!({})).await, none);
    assert_eq!(ask(Operation::Read, "a/b", json!({})).await, missing);
    assert_eq!(
        ask(Operation::Patch, "a/b", json!({"k": 1})).await.0[0],
        405
    );
}

#[tokio::test]
async fn a_cubbyhole_is_seen_by_its_token_alone() {
    let cubbyhole = Cubbyhole::new(db());
    let ask = async |prefix, operation, path, body| {
        let by = By::system("test");
        shown(
            cubbyhole
                .handle(&by, prefix, operation, path, &fields(body))
                .await,
        )
        .0
    };
    let (own, other) = ("cubbyhole/1/", "cubbyhole/2/");
    assert_eq!(
        ask(own, Operation::Write, "a", json!({"k": "v"})).await,
        Value::Null
    );
    assert!(cubbyhole.exists(own, "a").unwrap());
    assert!(!cubbyhole.exists(other, "a").unwrap());
    assert_eq!(
        ask(own, Operation::Read, "a", json!({})).await,
        json!({"k": "v"})
    );
    assert_eq!(
        ask(other, Operation::Read, "a", json!({})).await,
        json!([404, []])
    );
    assert_eq!(
        ask(other, Operation::Delete, "a", json!({})).await,
        Value::Null
    );
    assert_eq!(
        ask(own, Operation::List, "", json!({})).await,
        json!({"keys": ["a"]})
    );
    assert_eq!(
        ask(other, Operation::List, "", json!({})).await,
        json!([404, []])
    );
    assert_eq!(
        ask(own, Operation::Delete, "a", json!({})).await,
        Value::Null
    );
    assert_eq!(
        ask(own, Operation::Read, "a", json!({})).await,
        json!([404, []])
    );
}
