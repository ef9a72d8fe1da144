//! What is kept is what would be answered.

use libmesh::model::NodeRecord;
use proptest::prelude::*;

use super::*;
use crate::consul::answers::{Answers, Question, State};
use crate::http::{Call, Params, Reply};

/// Questions of every kind that is kept; and one that is not.
const QUESTIONS: [&str; 18] = [
    "/v1/health/service/a",
    "/v1/health/service/a?passing",
    "/v1/health/service/a?tag=t1",
    "/v1/health/service/A?passing&stale&wait=1s",
    "/v1/health/service/b?node-meta=rack:r1",
    "/v1/health/service/b?filter=Service.Port%20%3D%3D%201",
    "/v1/health/service/a?near=_agent",
    "/v1/health/checks/a",
    "/v1/health/state/any",
    "/v1/health/state/critical",
    "/v1/health/node/n1",
    "/v1/catalog/services",
    "/v1/catalog/service/a",
    "/v1/catalog/service/b?tag=t0",
    "/v1/catalog/nodes",
    "/v1/catalog/node/n1",
    "/v1/catalog/node-services/n1",
    "/v1/catalog/node/nobody",
];

#[derive(Debug, Clone)]
enum Change {
    Register(u8, bool, u8),
    Deregister(u8),
    Tell(u8, u8, u8),
    Node(u8),
    Liveness(Liveness),
}

fn change() -> impl Strategy<Value = Change> {
    let liveness = [Liveness::Alive, Liveness::Suspect, Liveness::Down];
    prop_oneof![
        4 => (0..4u8, any::<bool>(), 0..3u8).prop_map(|(n, b, tag)| Change::Register(n, b, tag)),
        1 => (0..4u8).prop_map(Change::Deregister),
        4 => (0..4u8, 0..3u8, 0..3u8).prop_map(|(n, to, note)| Change::Tell(n, to, note)),
        1 => (0..2u8).prop_map(Change::Node),
        1 => prop::sample::select(liveness.to_vec()).prop_map(Change::Liveness),
    ]
}

async fn make(api: &ConsulApi, change: &Change) {
    let catalog = &api.inner.catalog;
    match change {
        Change::Register(n, b, tag) => {
            let name = if *b { "b" } else { "a" };
            let body = json!({
                "ID": format!("i{n}"), "Name": name, "Port": u16::from(*tag), "Tags": [format!("t{tag}")],
                "Check": {"TTL": "1h", "CheckID": format!("c{n}"), "Status": "passing"},
            });
            register(api, body).await;
        }
        Change::Deregister(n) => {
            let path = format!("/v1/agent/service/deregister/i{n}");
            ask(api, "PUT", &path, "").await;
        }
        Change::Tell(n, to, note) => {
            let to = ["pass", "warn", "fail"][usize::from(*to)];
            let path = format!("/v1/agent/check/{to}/c{n}?note=n{note}");
            ask(api, "PUT", &path, "").await;
        }
        Change::Node(rack) => {
            let old = catalog.node("n1").unwrap();
            let meta = [("rack".into(), format!("r{rack}").as_str().into())];
            let record = NodeRecord {
                meta: meta.into(),
                ..NodeRecord::clone(&old.record)
            };
            catalog.local().put_node(record).unwrap();
        }
        Change::Liveness(liveness) => catalog.set_liveness(catalog.own(), *liveness),
    }
}

/// An interface over the same parts that has answered nothing yet.
fn fresh(api: &ConsulApi) -> ConsulApi {
    let inner = &api.inner;
    ConsulApi::new(Parts {
        about: inner.about.clone(),
        catalog: inner.catalog.clone(),
        checks: inner.checks.clone(),
        bundles: None,
        authority: None,
        forward: Arc::new(Echo),
        queries: Queries::default(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn kept_answers_are_those_that_would_be_made(changes in prop::collection::vec(change(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let api = api();
            for change in &changes {
                make(&api, change).await;
                for question in QUESTIONS {
                    let wanted = get(&fresh(&api), question).await.text;
                    for _ in 0..2 {
                        let answer = get(&api, question).await;
                        assert_eq!(answer.text, wanted, "{question} after {change:?}");
                        assert_eq!(answer.headers["content-type"], "application/json");
                    }
                }
            }
        });
    }
}

#[tokio::test]
async fn what_a_check_printed_is_shown_at_once_though_no_revision_tells_of_it() {
    let api = api();
    let check = json!({"TTL": "1h", "CheckID": "c", "Status": "passing"});
    register(&api, json!({"ID": "a", "Name": "a", "Check": check})).await;
    register(&api, json!({"ID": "b", "Name": "b"})).await;
    let path = "/v1/health/service/a";
    for note in ["first", "second"] {
        let told = format!("/v1/agent/check/pass/c?note={note}");
        assert_eq!(ask(&api, "PUT", &told, "").await.status, 200);
        let (entry, index) = (get(&api, path).await.json(), get(&api, path).await.index());
        assert_eq!(entry[0]["Checks"][1]["Output"], note);
        assert_eq!(get(&api, path).await.index(), index);
    }
    // An answer that shows none of it is not made anew for that.
    let call = || call("/v1/health/service/b");
    get(&api, "/v1/health/service/b").await;
    ask(&api, "PUT", "/v1/agent/check/pass/c?note=third", "").await;
    let inner = &api.inner;
    let state = State::of_service(inner, "b", None).with_outputs(inner);
    assert!(inner.answers.find(&Question::of(&call(), state)).is_some());
}

fn call(path: &str) -> Call {
    let request = Request::get(path).body(Bytes::new()).unwrap();
    Call {
        query: Query::parse(request.uri().query()),
        request,
        params: Params::default(),
        conn: Arc::new(ConnInfo::new(Remote::Tcp(([127, 0, 0, 1], 9).into()))),
    }
}

#[tokio::test]
async fn all_who_ask_the_same_share_one_answer() {
    let api = api();
    register(&api, json!({"ID": "a", "Name": "a"})).await;
    let inner = &api.inner;
    let asked = |path: &str| {
        let state = State::of_service(inner, "a", None).with_outputs(inner);
        inner.answers.find(&Question::of(&call(path), state))
    };
    assert!(asked("/v1/health/service/a").is_none());
    get(&api, "/v1/health/service/a?index=0&stale").await;
    let first = asked("/v1/health/service/a?wait=1m&token=x").unwrap();
    get(&api, "/v1/health/service/a?consistent").await;
    let second = asked("/v1/health/service/a").unwrap();
    assert_eq!(first.as_ptr(), second.as_ptr());
    assert!(asked("/v1/health/service/a?passing").is_none());
    // Names and values that run into each other are different questions.
    get(&api, "/v1/health/service/a?tag=x&tag=y").await;
    for other in ["tag=x%00tag=y", "tag=x%26tag%3Dy", "tag=xy", "tagx=&tag=y"] {
        let path = format!("/v1/health/service/a?{other}");
        assert!(asked(&path).is_none(), "{other}");
    }
    register(&api, json!({"ID": "a", "Name": "a", "Port": 1})).await;
    assert!(asked("/v1/health/service/a").is_none());
}

#[tokio::test]
async fn kept_answers_are_bounded_and_those_that_are_asked_for_stay() {
    let api = api();
    let inner = &api.inner;
    let answers = Answers::default();
    let question = |n: usize| {
        let path = format!("/v1/catalog/service/s{n}");
        Question::of(&call(&path), State::of_all(inner))
    };
    let keep = |n: usize, size: usize| {
        let body = Bytes::from(vec![b'x'; size]);
        answers.keep(question(n), Reply::new(body.into()));
    };
    keep(1000, (4 << 20) + 1);
    assert!(answers.find(&question(1000)).is_none(), "too large a one");
    for n in 0..200 {
        keep(n, 1 << 20);
        assert!(answers.find(&question(n)).is_some(), "{n}");
        answers.find(&question(0));
    }
    let kept = (0..200).filter(|n| answers.find(&question(*n)).is_some());
    assert!(kept.count() <= 16);
    answers.sweep();
    keep(500, 1);
    answers.sweep();
    answers.sweep();
    assert!(answers.find(&question(500)).is_none(), "nobody asked");
}
