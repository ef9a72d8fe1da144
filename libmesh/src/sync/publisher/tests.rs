use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::catalog::testing::TestNode;
use crate::identity::BoxFuture;
use crate::member::Member;
use crate::model::{Instance, InstanceId, Liveness, ServiceName};
use crate::rpc::channel;
use crate::sync::{CallFailed, Config, SyncCall, SyncTransport};

/// Nobody to call.
struct Nowhere;

impl SyncTransport for Nowhere {
    fn call(
        &self,
        peer: Member,
        call: SyncCall,
        _: Bytes,
    ) -> BoxFuture<'_, Result<Bytes, CallFailed>> {
        let failed = CallFailed {
            call,
            peer,
            unsupported: false,
            reason: "nowhere".to_owned(),
        };
        Box::pin(std::future::ready(Err(failed)))
    }
}

const IP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn web() -> ServiceName {
    ServiceName::parse("web").unwrap()
}

fn instance(service: &str, n: usize) -> Instance {
    let mut instance = Instance::new(ServiceName::parse(service).unwrap(), 80).unwrap();
    instance.id = InstanceId::parse(&format!("{service}-{n}")).unwrap();
    instance
}

/// A replica and two owners that it knows.
fn replica() -> (Plane, [TestNode; 2]) {
    let own = TestNode::new("replica", IP);
    let owners = ["one", "two"].map(|name| TestNode::new(name, IP));
    for owner in &owners {
        owner.local().put_service(instance("web", 0)).unwrap();
        owner.send_to(&own.catalog);
    }
    let plane = Plane::new(own.catalog, Arc::new(Nowhere), Config::default());
    plane.inner.caught_up.send_replace(true);
    (plane, owners)
}

struct Reader(tokio::sync::mpsc::Receiver<Bytes>);

impl Reader {
    async fn next(&mut self) -> Update {
        loop {
            let update = Update::decode(&self.0.recv().await.unwrap()).unwrap();
            if update != Update::Quiet {
                return update;
            }
        }
    }

    async fn service(&mut self) -> ServiceUpdate {
        match self.next().await {
            Update::Service(update) => update,
            other => panic!("{other:?}"),
        }
    }
}

async fn subscribe(plane: &Plane, life: u64, follow: Follow) -> (u64, Reader) {
    let (frames, reader) = channel();
    let follows = vec![follow];
    let body = Subscribe { life, follows }.encode();
    plane
        .handle_subscribe(NodeId([7; 16]), &body, frames)
        .unwrap();
    let mut reader = Reader(reader);
    match reader.next().await {
        Update::Hello { life } => (life, reader),
        other => panic!("{other:?}"),
    }
}

fn follow(known: &ServiceUpdate) -> Follow {
    Follow {
        service: known.service.clone(),
        revision: known.revision,
        parts: known
            .parts
            .iter()
            .map(|part| (part.node.id, part.hash))
            .collect(),
    }
}

fn nothing() -> Follow {
    Follow {
        service: web(),
        revision: 0,
        parts: vec![],
    }
}

#[tokio::test(start_paused = true)]
async fn first_everything_then_changes_of_followed_services_only() {
    let (plane, [one, two]) = replica();
    let catalog = &plane.inner.catalog;
    let (_, mut reader) = subscribe(&plane, 0, nothing()).await;
    let all = reader.service().await;
    assert_eq!(all.parts.len(), 2);
    let at = |owner: &TestNode| {
        let part = all.parts.iter().find(|part| part.node.id == owner.id());
        part.unwrap().at
    };
    assert_eq!(
        (at(&one), at(&two)),
        (one.catalog.own_head(), two.catalog.own_head())
    );

    one.local().put_service(instance("other", 0)).unwrap();
    one.send_to(catalog);
    one.local().put_service(instance("web", 1)).unwrap();
    one.send_to(catalog);
    let update = reader.service().await;
    assert_eq!((update.parts.len(), update.gone.len()), (1, 0));
    assert_eq!(update.parts[0].instances.len(), 2);

    two.local().remove_service(&instance("web", 0).id);
    two.send_to(catalog);
    let update = reader.service().await;
    let at = Some(two.catalog.own_head());
    assert_eq!(
        (update.parts.len(), update.gone),
        (0, vec![Gone { node: two.id(), at }])
    );
    catalog.set_liveness(one.id(), Liveness::Down);
    let gone = reader.service().await.gone;
    assert_eq!(
        gone,
        [Gone {
            node: one.id(),
            at: None
        }],
        "away is not deregistered"
    );
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_gets_what_differs_at_this_replica_or_another() {
    let (plane, [one, two]) = replica();
    let (life, mut reader) = subscribe(&plane, 0, nothing()).await;
    let known = reader.service().await;
    drop(reader);
    let (_, mut reader) = subscribe(&plane, life, follow(&known)).await;
    let same = reader.service().await;
    assert_eq!(
        (same.parts.len(), same.gone.len(), same.more),
        (0, 0, false)
    );

    one.local().put_service(instance("web", 1)).unwrap();
    one.send_to(&plane.inner.catalog);
    for life in [life, life + 1] {
        let (_, mut reader) = subscribe(&plane, life, follow(&known)).await;
        let update = reader.service().await;
        let nodes: Vec<_> = update.parts.iter().map(|part| part.node.id).collect();
        assert_eq!((nodes, update.gone.len()), (vec![one.id()], 0));
    }
    two.local().remove_service(&instance("web", 0).id);
    two.send_to(&plane.inner.catalog);
    let (_, mut reader) = subscribe(&plane, life, follow(&known)).await;
    let update = reader.service().await;
    assert_eq!((update.parts.len(), update.gone.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn much_comes_in_several_frames_and_is_complete_with_the_last() {
    let (plane, [one, _]) = replica();
    let mut big = instance("web", 0);
    big.tags = (0..20)
        .map(|n| Arc::from(format!("{n}{}", "x".repeat(200))))
        .collect();
    for n in 0..500 {
        let id = instance("web", n).id;
        one.local()
            .put_service(Instance { id, ..big.clone() })
            .unwrap();
    }
    one.send_to(&plane.inner.catalog);
    let (_, mut reader) = subscribe(&plane, 0, nothing()).await;
    let (mut frames, mut instances) = (0, 0);
    loop {
        let update = reader.service().await;
        frames += 1;
        let of_one = update.parts.iter().filter(|part| part.node.id == one.id());
        instances += of_one.map(|part| part.instances.len()).sum::<usize>();
        if !update.more {
            break;
        }
    }
    assert!(frames > 4, "{frames}");
    assert_eq!(instances, 500);
}

#[tokio::test]
async fn a_replica_that_has_just_started_refuses() {
    let (plane, _) = replica();
    plane.inner.caught_up.send_replace(false);
    let body = Subscribe {
        life: 0,
        follows: vec![],
    };
    let refused = plane.handle_subscribe(NodeId([7; 16]), &body.encode(), channel().0);
    assert_eq!(refused, Err(SubscribeError::Early));
}
