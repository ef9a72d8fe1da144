//! What readers and watchers see of local writes and of liveness.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use super::*;
use crate::catalog::Diff;
use crate::model::{Host, Liveness};

fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

#[test]
fn a_registered_instance_is_found_and_a_removed_one_is_not() {
    let clock = TestClock::at(1_000);
    let catalog = clock.catalog(1);
    let local = catalog.local();
    local.put_node(node(1)).unwrap();
    let web = instance("web", 80);
    local.put_service(web.clone()).unwrap();
    local.put_service(instance("web", 81)).unwrap();

    let view = catalog.service("WEB").unwrap();
    assert_eq!(view.instances.len(), 2);
    assert_eq!(view.instances[0].instance.id, "web-80");
    assert_eq!(
        view.instances[0].address(),
        Host::Ip(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)))
    );
    assert_eq!(view.revision, catalog.revision());
    assert_eq!(catalog.services().len(), 1);
    assert_eq!(
        catalog
            .node_by_ip(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)))
            .unwrap()
            .record
            .name,
        "node1"
    );

    assert!(local.remove_service(&web.id));
    assert!(!local.remove_service(&web.id));
    assert_eq!(catalog.service("web").unwrap().instances.len(), 1);
    local.remove_service(&InstanceId::parse("web-81").unwrap());
    assert!(catalog.service("web").is_none() && catalog.services().is_empty());
    assert_eq!(
        catalog.service_revision("web"),
        catalog.revision(),
        "the revision outlives the service"
    );
    assert_eq!(catalog.service_revision("never"), 0);
}

#[test]
fn registering_again_changes_nothing() {
    let clock = TestClock::at(1_000);
    let catalog = clock.catalog(1);
    let local = catalog.local();
    local.put_node(node(1)).unwrap();
    local.put_service(instance("web", 80)).unwrap();
    local
        .put_check(check("c", Some(&instance("web", 80)), Health::Passing))
        .unwrap();
    let before = catalog.service("web").unwrap();
    clock.advance(Duration::from_secs(1));
    local.put_node(node(1)).unwrap();
    local.put_service(instance("web", 80)).unwrap();
    local
        .put_check(check("c", Some(&instance("web", 80)), Health::Passing))
        .unwrap();
    assert!(Arc::ptr_eq(&before, &catalog.service("web").unwrap()));

    let mut changed = instance("web", 80);
    changed.tags.push(Arc::from("v2"));
    local.put_service(changed).unwrap();
    let after = &catalog.service("web").unwrap().instances[0];
    assert_eq!(
        after.instance.create_stamp,
        before.instances[0].instance.create_stamp
    );
    assert_eq!(after.instance.modify_stamp, clock.now());
}

#[test]
fn revision_never_goes_back_with_the_clock() {
    let clock = TestClock::at(5_000_000);
    let catalog = clock.catalog(1);
    catalog.local().put_node(node(1)).unwrap();
    assert_eq!(catalog.revision(), 5_000_000);
    clock.0.store(1, Ordering::SeqCst);
    catalog.local().put_service(instance("web", 80)).unwrap();
    assert_eq!(catalog.revision(), 5_000_001);
}

#[test]
fn health_is_the_worst_of_own_and_node_checks() {
    let catalog = TestClock::at(1).catalog(1);
    let local = catalog.local();
    local.put_node(node(1)).unwrap();
    let (web, db) = (instance("web", 80), instance("db", 5432));
    local.put_service(web.clone()).unwrap();
    local.put_service(db).unwrap();
    local
        .put_check(check("web", Some(&web), Health::Warning))
        .unwrap();
    let health = |name: &str| catalog.service(name).unwrap().instances[0].health;
    assert_eq!(
        (health("web"), health("db")),
        (Health::Warning, Health::Passing)
    );
    local
        .put_check(check("disk", None, Health::Critical))
        .unwrap();
    assert_eq!(
        (health("web"), health("db")),
        (Health::Critical, Health::Critical)
    );
    assert_eq!(catalog.service("web").unwrap().usable().count(), 0);
    assert!(local.remove_check("disk"));
    assert_eq!(
        (health("web"), health("db")),
        (Health::Warning, Health::Passing)
    );

    let unknown = local.put_check(check("x", Some(&instance("no", 1)), Health::Passing));
    assert!(matches!(
        unknown,
        Err(super::super::LocalError::UnknownInstance { .. })
    ));
    local.remove_service(&web.id);
    assert!(
        local.check("web").is_none(),
        "checks go with their instance"
    );
}

#[test]
fn an_instance_can_move_to_another_service() {
    let catalog = TestClock::at(1).catalog(1);
    let local = catalog.local();
    local.put_node(node(1)).unwrap();
    let mut moving = instance("web", 80);
    local.put_service(moving.clone()).unwrap();
    moving.service = service("api");
    local.put_service(moving).unwrap();
    assert!(catalog.service("web").is_none());
    assert_eq!(catalog.service("api").unwrap().instances.len(), 1);
}

#[test]
fn suspect_stays_visible_down_is_hidden_and_returns() {
    let catalog = TestClock::at(1).catalog(1);
    let local = catalog.local();
    local.put_node(node(1)).unwrap();
    local.put_service(instance("web", 80)).unwrap();
    let own = catalog.own();
    catalog.set_liveness(own, Liveness::Suspect);
    let view = catalog.service("web").unwrap();
    assert_eq!(view.instances[0].node.liveness, Liveness::Suspect);
    assert_eq!(view.usable().count(), 0);
    catalog.set_liveness(own, Liveness::Down);
    assert!(catalog.service("web").is_none() && catalog.instances_on(&own).is_empty());
    assert_eq!(catalog.node("node1").unwrap().liveness, Liveness::Down);
    catalog.set_liveness(own, Liveness::Alive);
    assert_eq!(catalog.service("web").unwrap().instances.len(), 1);
    catalog.set_liveness(own, Liveness::Left);
    assert!(catalog.node("node1").is_none() && catalog.nodes().is_empty());
    catalog.set_liveness(own, Liveness::Alive);
    assert!(catalog.node("node1").is_some());
}

#[test]
fn a_watch_is_woken_by_its_service_only() {
    let catalog = TestClock::at(10).catalog(1);
    let local = catalog.local();
    local.put_node(node(1)).unwrap();
    let (web, db) = (
        catalog.watch_service(&service("web")),
        catalog.watch_service(&service("db")),
    );
    let (mut web_changed, mut db_changed) = (pin!(web.changed_after(0)), pin!(db.changed_after(0)));
    let woken = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    assert!(web_changed.as_mut().poll(&mut context).is_pending());
    let others = Arc::new(Wakes::default());
    let other_waker = Waker::from(Arc::clone(&others));
    assert!(
        db_changed
            .as_mut()
            .poll(&mut Context::from_waker(&other_waker))
            .is_pending()
    );

    local.put_service(instance("web", 80)).unwrap();
    assert_eq!(
        (
            woken.0.load(Ordering::SeqCst),
            others.0.load(Ordering::SeqCst)
        ),
        (1, 0)
    );
    assert_eq!(ready(web_changed), Some(catalog.service_revision("web")));
    assert!(ready(db_changed).is_none());
}

#[derive(Default)]
struct Wakes(AtomicU64);

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn watching_unknown_names_leaves_nothing_behind() {
    let catalog = TestClock::at(1).catalog(1);
    let index = &catalog.inner.index;
    {
        let _first = catalog.watch_service(&service("ghost"));
        let _second = catalog.watch_service(&service("ghost"));
        assert!(index.service("ghost").is_some());
    }
    assert!(index.service("ghost").is_none());
}

#[test]
fn forgetting_extinct_services_never_lowers_a_revision() {
    let clock = TestClock::at(100);
    let catalog = clock.catalog(1);
    let local = catalog.local();
    local.put_node(node(1)).unwrap();
    local.put_service(instance("web", 80)).unwrap();
    local.remove_service(&instance("web", 80).id);
    let before = catalog.service_revision("web");
    catalog.inner.index.prune(u64::MAX);
    assert!(catalog.inner.index.service("web").is_none());
    assert_eq!(catalog.service_revision("web"), before);
    let watch = catalog.watch_service(&service("web"));
    assert_eq!(ready(watch.changed_after(before - 1)), Some(before));
    assert!(ready(watch.changed_after(before)).is_none());
}

#[test]
fn a_diff_tells_what_came_went_and_changed() {
    let catalog = TestClock::at(1).catalog(1);
    let local = catalog.local();
    local.put_node(node(1)).unwrap();
    let ids = |views: &[Arc<crate::catalog::InstanceView>]| {
        let ids = views.iter().map(|view| view.instance.id.to_string());
        ids.collect::<Vec<_>>()
    };
    for port in [80, 81, 82] {
        local.put_service(instance("web", port)).unwrap();
    }
    let old = catalog.services();
    let all = Diff::instances(0, &[], &old);
    assert_eq!(ids(&all.added), ["web-80", "web-81", "web-82"]);
    local.remove_service(&instance("web", 80).id);
    local
        .put_check(check("c", Some(&instance("web", 81)), Health::Critical))
        .unwrap();
    local.put_service(instance("web", 83)).unwrap();
    let new = catalog.services();
    let diff = Diff::instances(0, &old, &new);
    assert_eq!(ids(&diff.added), ["web-83"]);
    assert_eq!(ids(&diff.removed), ["web-80"]);
    assert_eq!(ids(&diff.changed), ["web-81"]);
    assert!(Diff::instances(0, &new, &new).is_empty());
    assert_eq!(Diff::instances(0, &new, &[]).removed.len(), 3);
}
