use std::sync::Arc;

use libmesh::model::{CheckRecord, Instance, InstanceId};
use serde_json::json;
use tokio::task::yield_now;

use super::*;
use crate::attach::{callers::Callers, fake::FakeAgent};
use crate::testing::name;

const LONG: Duration = Duration::from_secs(60);

fn agent() -> Arc<FakeAgent> {
    let agent = Arc::new(FakeAgent::new(Callers::new(Vec::new())));
    for (id, service, port, version) in [
        ("web-1", "web", 1, "1"),
        ("web-2", "web", 2, "2"),
        ("old-1", "old", 3, "0"),
    ] {
        let mut instance = Instance::new(name(service), 80).unwrap();
        instance.id = InstanceId::parse(id).unwrap();
        instance.mesh_port = Some(21_000 + port);
        instance.meta = [("version".into(), version.into())].into_iter().collect();
        agent.catalog.local().put_service(instance).unwrap();
    }
    agent
}

fn set(agent: &FakeAgent, instance: &str, status: Health) {
    let check = CheckRecord {
        id: instance.into(),
        name: "up".into(),
        service: Some(InstanceId::parse(instance).unwrap()),
        status,
        kind: "ttl".into(),
        notes: "".into(),
        create_stamp: 0,
        modify_stamp: 0,
    };
    agent.catalog.local().put_check(check).unwrap();
}

fn entries() -> serde_json::Value {
    json!([
        {"Kind": "service-defaults", "Name": "web", "Protocol": "http"},
        {"Kind": "service-defaults", "Name": "alias", "Protocol": "http"},
        {"Kind": "service-splitter", "Name": "web", "Splits": [
            {"Weight": 75, "ServiceSubset": "v1"}, {"Weight": 25, "ServiceSubset": "v2"}]},
        {"Kind": "service-resolver", "Name": "web", "ConnectTimeout": "2s",
            "Subsets": {"v1": {"Filter": "Service.Meta.version == 1"}, "v2": {"Filter": "Service.Meta.version == 2", "OnlyPassing": true}},
            "Failover": {"v2": {"Service": "old"}}},
        {"Kind": "service-resolver", "Name": "alias", "Redirect": {"Service": "web", "ServiceSubset": "v1"}},
    ])
}

async fn now(agent: &FakeAgent, followed: &Followed, service: &str) -> EndpointsReply {
    answer(&agent.catalog, followed, &name(service), None, LONG).await
}

fn shown(reply: &EndpointsReply) -> Vec<(u16, &str, Option<&str>)> {
    let mut all: Vec<_> = reply
        .endpoints
        .iter()
        .map(|it| (it.part, &*it.id, it.service.as_deref()))
        .collect();
    all.sort_unstable();
    all
}

#[tokio::test]
async fn calls_go_where_the_config_entries_say() {
    let agent = agent();
    let followed = Followed::new(agent.bundles.clone());
    let plain = now(&agent, &followed, "web").await;
    assert_eq!(
        shown(&plain),
        [(0, "node1/web-1", None), (0, "node1/web-2", None)]
    );
    assert!(plain.weights.is_empty());

    let signed = agent.ca.sign_entries(1, entries());
    agent.bundles.offer(signed).await.unwrap();
    let split = now(&agent, &followed, "web").await;
    assert_eq!(
        shown(&split),
        [(0, "node1/web-1", None), (1, "node1/web-2", None)]
    );
    assert_eq!(split.weights, [7500, 2500]);
    assert_eq!(split.connect_timeout, Some(Duration::from_secs(2)));
    assert!(split.index > plain.index);

    // One with a warning is not of a subset that wants passing ones, so another service stands in.
    set(&agent, "web-2", Health::Warning);
    let failed_over = now(&agent, &followed, "web").await;
    assert_eq!(
        shown(&failed_over),
        [(0, "node1/web-1", None), (1, "node1/old-1", Some("old"))]
    );

    let redirected = now(&agent, &followed, "alias").await;
    assert_eq!(shown(&redirected), [(0, "node1/web-1", Some("web"))]);
}

#[tokio::test]
async fn who_waits_hears_of_entries_and_of_every_service_that_they_name() {
    let agent = agent();
    let followed = Arc::new(Followed::new(agent.bundles.clone()));
    let wait = |index: u64| {
        let (agent, followed) = (Arc::clone(&agent), Arc::clone(&followed));
        tokio::spawn(async move {
            answer(&agent.catalog, &followed, &name("alias"), Some(index), LONG).await
        })
    };
    let first = now(&agent, &followed, "alias").await;
    let waiting = wait(first.index);
    yield_now().await;
    let signed = agent.ca.sign_entries(1, entries());
    agent.bundles.offer(signed).await.unwrap();
    let second = waiting.await.unwrap();
    assert_eq!(shown(&second), [(0, "node1/web-1", Some("web"))]);

    let waiting = wait(second.index);
    yield_now().await;
    set(&agent, "web-1", Health::Critical);
    assert_eq!(shown(&waiting.await.unwrap()), []);

    // Nothing that is said of others ends the wait.
    let third = now(&agent, &followed, "alias").await;
    set(&agent, "old-1", Health::Warning);
    let (alias, short) = (name("alias"), Duration::from_millis(20));
    let same = answer(&agent.catalog, &followed, &alias, Some(third.index), short);
    assert_eq!(same.await.index, third.index);
}
