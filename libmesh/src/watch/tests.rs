use std::collections::BTreeMap;
use std::task::Waker;

use proptest::prelude::*;

use super::*;
use crate::catalog::testing::TestNode;
use crate::model::{CheckRecord, Health, Instance, Liveness};

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn instance(service: &str, id: &str, port: u16) -> Instance {
    Instance {
        id: id.parse().unwrap(),
        ..Instance::new(name(service), port).unwrap()
    }
}

fn node() -> TestNode {
    TestNode::new("a", [10, 0, 0, 1].into())
}

/// The next diff, if it is there without waiting.
fn now<T>(watch: &mut Watch<T>) -> Option<Diff<T>> {
    match Pin::new(watch).poll_next(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(diff) => diff,
        Poll::Pending => None,
    }
}

fn ids(list: &[Arc<InstanceView>]) -> Vec<String> {
    let mut ids: Vec<_> = list.iter().map(|it| it.instance.id.to_string()).collect();
    ids.sort();
    ids
}

#[test]
fn first_all_that_is_there_then_what_changes() {
    let node = node();
    let mut watch = Watch::service(&node.catalog, &name("web"), CancellationToken::new());
    let first = now(&mut watch).expect("the first diff comes at once");
    assert!(first.is_empty());
    assert!(now(&mut watch).is_none());

    node.local().put_service(instance("web", "1", 80)).unwrap();
    node.local().put_service(instance("db", "x", 80)).unwrap();
    let diff = now(&mut watch).unwrap();
    assert_eq!(
        (ids(&diff.added), diff.changed.len(), diff.removed.len()),
        (vec!["1".into()], 0, 0)
    );
    assert!(now(&mut watch).is_none(), "db is another service");

    node.local().put_service(instance("web", "1", 81)).unwrap();
    let diff = now(&mut watch).unwrap();
    assert_eq!(diff.changed[0].instance.port, 81);
    node.local().remove_service(&"1".parse().unwrap());
    let diff = now(&mut watch).unwrap();
    assert_eq!(diff.removed[0].instance.port, 81, "as it was last");

    let mut late = Watch::service(&node.catalog, &name("db"), CancellationToken::new());
    assert_eq!(ids(&now(&mut late).unwrap().added), ["x"]);
}

#[test]
fn who_lags_gets_one_merged_diff() {
    let node = node();
    let mut watch = Watch::services(&node.catalog, CancellationToken::new());
    node.local().put_service(instance("web", "1", 80)).unwrap();
    assert_eq!(ids(&now(&mut watch).unwrap().added), ["1"]);
    node.local().remove_service(&"1".parse().unwrap());
    for port in 1..100 {
        node.local().put_service(instance("db", "2", port)).unwrap();
    }
    node.local().put_service(instance("db", "3", 1)).unwrap();
    node.local().remove_service(&"3".parse().unwrap());
    let diff = Diff::instances(0, &watched(&mut watch), &node.catalog.services());
    assert!(diff.is_empty(), "{diff:?}");
}

/// What a watch that is asked until it has nothing more to say adds up to, as its last snapshot.
fn watched(watch: &mut Watch<InstanceView>) -> Vec<Arc<ServiceView>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let diff = runtime.block_on(watch.next()).unwrap();
    assert_eq!(ids(&diff.added), ["2"]);
    assert_eq!(diff.added[0].instance.port, 99);
    assert_eq!(ids(&diff.removed), ["1"]);
    let view = ServiceView {
        name: name("db"),
        revision: diff.revision,
        instances: diff.added,
    };
    vec![Arc::new(view)]
}

#[test]
fn an_instance_that_moves_to_another_service_is_one_change() {
    let node = node();
    let mut watch = Watch::services(&node.catalog, CancellationToken::new());
    node.local().put_service(instance("web", "1", 80)).unwrap();
    now(&mut watch);
    node.local().put_service(instance("api", "1", 80)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let diff = runtime.block_on(watch.next()).unwrap();
    assert_eq!((diff.added.len(), diff.removed.len()), (0, 0));
    assert_eq!(diff.changed[0].instance.service, "api");
}

#[tokio::test(start_paused = true)]
async fn nodes_are_followed_through_their_lives() {
    let (here, other) = (node(), TestNode::new("b", [10, 0, 0, 2].into()));
    let mut watch = Watch::nodes(&here.catalog, CancellationToken::new());
    assert_eq!(watch.next().await.unwrap().added.len(), 1);
    other.send_to(&here.catalog);
    let diff = watch.next().await.unwrap();
    assert_eq!(diff.added[0].record.name, "b");
    here.catalog.set_liveness(other.id(), Liveness::Down);
    let diff = watch.next().await.unwrap();
    assert_eq!(diff.changed[0].liveness, Liveness::Down);
    here.catalog.set_liveness(other.id(), Liveness::Left);
    let diff = watch.next().await.unwrap();
    assert_eq!(diff.removed[0].record.name, "b");
}

#[tokio::test]
async fn a_watch_is_woken_and_ends_with_its_node() {
    let node = node();
    let stop = CancellationToken::new();
    let mut watch = Watch::service(&node.catalog, &name("web"), stop.clone());
    watch.next().await.unwrap();
    let waiting = tokio::spawn(async move {
        let diff = watch.next().await;
        (watch, diff)
    });
    tokio::task::yield_now().await;
    node.local().put_service(instance("web", "1", 80)).unwrap();
    let (mut watch, diff) = waiting.await.unwrap();
    assert_eq!(ids(&diff.unwrap().added), ["1"]);
    stop.cancel();
    assert!(watch.next().await.is_none());
    assert!(watch.next().await.is_none(), "and stays so");
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8, u16),
    Remove(u8),
    Check(u8, bool),
    Look,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3u8, 0..4u8, 1..3u16).prop_map(|(service, id, port)| Step::Put(service, id, port)),
        (0..4u8).prop_map(Step::Remove),
        (0..4u8, any::<bool>()).prop_map(|(id, good)| Step::Check(id, good)),
        Just(Step::Look),
    ]
}

fn fold(state: &mut BTreeMap<String, (u16, Health)>, diff: Diff<InstanceView>) {
    let value = |it: &InstanceView| (it.instance.port, it.health);
    for it in diff.removed {
        assert!(
            state.remove(it.instance.id.as_str()).is_some(),
            "removed what was not there"
        );
    }
    for it in diff.added {
        assert!(
            state
                .insert(it.instance.id.to_string(), value(&it))
                .is_none(),
            "added twice"
        );
    }
    for it in diff.changed {
        assert!(
            state
                .insert(it.instance.id.to_string(), value(&it))
                .is_some(),
            "changed what was not there"
        );
    }
}

proptest! {
    /// Whenever one looks, the diffs so far add up to what is there.
    #[test]
    fn diffs_add_up_to_the_present(steps in prop::collection::vec(step(), 0..60)) {
        let node = node();
        let mut watch = Watch::service(&node.catalog, &name("s0"), CancellationToken::new());
        let mut state = BTreeMap::new();
        for step in steps.into_iter().chain([Step::Look]) {
            match step {
                Step::Put(service, id, port) => {
                    node.local().put_service(instance(&format!("s{service}"), &id.to_string(), port)).unwrap();
                }
                Step::Remove(id) => drop(node.local().remove_service(&id.to_string().parse().unwrap())),
                Step::Check(id, good) => drop(node.local().put_check(CheckRecord {
                    id: id.to_string().into(),
                    name: "check".into(),
                    service: Some(id.to_string().parse().unwrap()),
                    status: if good { Health::Passing } else { Health::Critical },
                    kind: "ttl".into(),
                    notes: "".into(),
                    create_stamp: 0,
                    modify_stamp: 0,
                })),
                Step::Look => {
                    while let Some(diff) = now(&mut watch) {
                        fold(&mut state, diff);
                    }
                    let view = node.catalog.service("s0");
                    let there: BTreeMap<_, _> = view
                        .iter()
                        .flat_map(|view| &view.instances)
                        .map(|it| (it.instance.id.to_string(), (it.instance.port, it.health)))
                        .collect();
                    prop_assert_eq!(&state, &there);
                }
            }
        }
    }
}
