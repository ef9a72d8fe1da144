//! Following some services over RPC, without being a member.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use libmesh::{
    identity::PublishRights,
    rpc::{Client, RpcError, Target},
    sync::{SUBSCRIPTIONS_PER_PEER, Subscription},
};

use crate::cluster::{Cluster, SOON, instance, name, until};

const HOUR: Duration = Duration::from_secs(3600);

/// A program at the edge: it has a certificate, and is no member.
fn edge(cluster: &Cluster) -> Client {
    let (_, identity) = cluster.authority.ca.node("edge", PublishRights::default());
    Client::new(identity)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_follows_its_services_through_the_end_of_a_replica() {
    let cluster = Cluster::start(HOUR).await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let a = cluster.agent("a", dirs[0].path()).await.unwrap();
    let b = cluster.agent("b", dirs[1].path()).await.unwrap();
    let server = &cluster.server;
    server.register(instance("db", 1, None)).unwrap();
    server.register(instance("web", 2, None)).unwrap();

    let targets = [a.addr(), b.addr(), server.addr()].map(Target::any);
    let replicas = {
        let targets = targets.clone();
        move || targets.to_vec()
    };
    let (db, web) = (name("db"), name("web"));
    let subscription = Subscription::start(edge(&cluster), replicas, [db.clone()]).unwrap();
    tokio::time::timeout(SOON, subscription.ready())
        .await
        .unwrap();
    let ports = |service| {
        let service = subscription.service(service);
        service.map(|service| {
            let ports = service.usable().map(|instance| instance.instance.port);
            ports.collect::<Vec<_>>()
        })
    };
    until("db", || ports(&db) == Some(vec![1])).await;
    assert_eq!(ports(&web), None, "nobody asked for it");

    let empty = Arc::new(AtomicBool::new(false));
    let mut watch = subscription.watch(&db).unwrap();
    let observer = tokio::spawn({
        let empty = empty.clone();
        async move {
            while watch.changed().await.is_ok() {
                let shown = watch.borrow_and_update().clone();
                if shown.is_none_or(|db| db.usable().count() == 0) {
                    empty.store(true, Ordering::Relaxed);
                }
            }
        }
    });
    until("two replicas", || subscription.replicas().len() == 2).await;
    // One of the two that are read from; not the one that the instance is on.
    let used = subscription.replicas();
    let (dies, stays) = if used.contains(&a.addr()) {
        (a, b)
    } else {
        (b, a)
    };
    let gone = dies.addr();
    dies.stop().await;
    until("a third replica takes its place", || {
        let used = subscription.replicas();
        used.len() == 2 && !used.contains(&gone)
    })
    .await;
    stays.register(instance("db", 3, None)).unwrap();
    until("a change after that", || {
        ports(&db).is_some_and(|ports| ports.len() == 2)
    })
    .await;

    subscription.follow([db.clone(), web.clone()]).unwrap();
    tokio::time::timeout(SOON, subscription.ready())
        .await
        .unwrap();
    assert_eq!(ports(&web), Some(vec![2]));
    server.deregister(&instance("web", 2, None).id);
    until("web gone", || ports(&web) == Some(vec![])).await;
    assert!(!empty.load(Ordering::Relaxed), "db was seen empty");
    subscription.follow([web.clone()]).unwrap();
    assert_eq!(ports(&db), None);
    tokio::time::timeout(SOON, observer).await.unwrap().unwrap();
    stays.stop().await;
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_has_a_bounded_number_of_subscriptions() {
    let cluster = Cluster::start(HOUR).await;
    let client = edge(&cluster);
    let target = Target::any(cluster.server.addr());
    // No services, nothing known: format, life, no follows.
    let open = || {
        let (client, target) = (client.clone(), target.clone());
        async move {
            let body = vec![1, 0, 0].into();
            client
                .open(&target, "/catalog/subscribe", body, SOON, 1 << 20)
                .await
        }
    };
    let mut open_ones = Vec::new();
    let refused = loop {
        match open().await {
            Ok(stream) => open_ones.push(stream),
            // Right after its start.
            Err(RpcError::Status { status, .. }) if status == StatusCode::SERVICE_UNAVAILABLE => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => break error,
        }
        assert!(open_ones.len() <= SUBSCRIPTIONS_PER_PEER);
    };
    assert_eq!(refused.status(), Some(StatusCode::TOO_MANY_REQUESTS));
    assert_eq!(open_ones.len(), SUBSCRIPTIONS_PER_PEER);
    let first = open_ones[0].next().await.unwrap();
    assert!(first.is_some());
    open_ones.pop();
    let again = async {
        while open().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, again)
        .await
        .expect("there is room again");
    let malformed = client
        .call(&target, "/catalog/subscribe", vec![9].into(), SOON)
        .await;
    assert_eq!(
        malformed.unwrap_err().status(),
        Some(StatusCode::BAD_REQUEST)
    );
    cluster.server.stop().await;
}
