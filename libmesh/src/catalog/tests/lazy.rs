//! Views are made for readers only, and are then what they would have been all along.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::replicate::{pair, test_node};
use super::*;
use crate::catalog::log::Head;
use crate::catalog::testing::TestNode;
use crate::catalog::{Diff, Outcome, ServiceView};
use crate::model::Liveness;

#[test]
fn nothing_is_made_of_what_nobody_reads() {
    let (clock, a, b) = pair();
    a.local().put_service(instance("web", 80)).unwrap();
    a.send_to(&b.catalog);
    let cell = b.catalog.inner.index.service("web").unwrap();
    let watch = b.catalog.watch_service(&service("web"));
    assert!(cell.kept().is_none());
    a.local().put_service(instance("web", 81)).unwrap();
    let before = watch.revision();
    a.send_to(&b.catalog);
    assert!(cell.kept().is_none() && watch.revision() > before);
    assert!(b.catalog.service_names().iter().any(|name| *name == "web"));
    assert!(cell.kept().is_none(), "a name is no reason to make a view");

    let first = b.catalog.service("web").unwrap();
    assert!(Arc::ptr_eq(&first, &b.catalog.service("web").unwrap()));
    a.local().put_service(instance("web", 82)).unwrap();
    a.send_to(&b.catalog);
    let second = cell
        .kept()
        .flatten()
        .expect("who read it, is likely to read on");
    assert!(Arc::ptr_eq(&first.instances[0], &second.instances[0]));

    let minute = || {
        clock.advance(Duration::from_secs(61));
        b.catalog.tick();
    };
    minute();
    assert!(cell.kept().is_some(), "read in the last minute");
    minute();
    assert!(cell.kept().is_none());
    assert_eq!(b.catalog.service("web").unwrap().instances.len(), 3);
}

#[test]
fn addresses_and_sidecars_are_told_without_views() {
    let (_, a, b) = pair();
    let with_ip = |name: &str, port, ip: [u8; 4]| {
        let mut instance = instance(name, port);
        instance.address = Some(crate::model::Host::Ip(ip.into()));
        instance
    };
    a.local()
        .put_service(with_ip("web", 80, [10, 9, 0, 1]))
        .unwrap();
    a.local()
        .put_service(with_ip("api", 81, [10, 9, 0, 1]))
        .unwrap();
    b.local()
        .put_service(with_ip("db", 82, [10, 9, 0, 2]))
        .unwrap();
    let mut meshed = instance("shop", 83);
    meshed.mesh_port = Some(21_000);
    a.local().put_service(meshed).unwrap();
    let proxy = Instance::builder(service("pay-sidecar-proxy"))
        .kind(crate::model::Kind::ConnectProxy)
        .proxy(crate::model::Proxy::new(service("pay")))
        .port(84);
    b.local().put_service(proxy.build().unwrap()).unwrap();
    a.send_to(&b.catalog);
    let mut addresses: Vec<_> = b.catalog.own_addresses().into_iter().collect();
    addresses.sort();
    let expected = [
        ([10, 9, 0, 1].into(), service("api")),
        ([10, 9, 0, 2].into(), service("db")),
    ];
    assert_eq!(addresses, expected);
    let meshed: Vec<_> = b.catalog.meshed_services().into_iter().collect();
    assert_eq!(meshed, [service("pay"), service("shop")]);
    let cell = b.catalog.inner.index.service("web").unwrap();
    assert!(cell.kept().is_none());
    b.catalog.set_liveness(a.id(), Liveness::Down);
    assert_eq!(b.catalog.own_addresses().len(), 1);
}

#[test]
fn names_and_tags_are_told_without_views() {
    let (_, a, b) = pair();
    let mut web = instance("web", 80);
    web.tags = vec!["v1".into(), "blue".into()];
    a.local().put_service(web.clone()).unwrap();
    a.local().put_service(instance("db", 1)).unwrap();
    web.tags = vec!["v2".into()];
    b.local().put_service(web).unwrap();
    a.send_to(&b.catalog);
    let names = |catalog: &Catalog| {
        let names = catalog.service_names();
        names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(&b.catalog), ["db", "web"]);
    let tags = b.catalog.service_tags(|_| true);
    let tags_of = |name: &str| tags[name].iter().map(|tag| &**tag).collect::<Vec<_>>();
    assert_eq!(tags_of("web"), ["blue", "v1", "v2"]);
    assert!(tags_of("db").is_empty());
    let own = b.catalog.service_tags(|node| node.record.id == b.id());
    assert_eq!(own.len(), 1);
    assert!(
        b.catalog
            .inner
            .index
            .service("web")
            .unwrap()
            .kept()
            .is_none()
    );
    b.catalog.set_liveness(a.id(), Liveness::Down);
    assert_eq!(names(&b.catalog), ["web"]);
}

#[test]
fn a_service_that_nobody_changed_for_days_is_not_forgotten() {
    let (clock, a, b) = pair();
    a.local().put_service(instance("theirs", 80)).unwrap();
    b.local().put_service(instance("ours", 80)).unwrap();
    a.send_to(&b.catalog);
    let before = b.catalog.service_revision("ours");
    clock.advance(Duration::from_secs(80 * 3600));
    b.catalog.tick();
    clock.advance(Duration::from_secs(120));
    b.catalog.tick();
    assert_eq!(b.catalog.service_revision("ours"), before);
    assert!(b.catalog.service("ours").is_some() && b.catalog.service("theirs").is_some());
}

#[derive(Debug, Clone)]
enum Step {
    Put {
        node: usize,
        id: u8,
        service: u8,
        port: u16,
    },
    Remove {
        node: usize,
        id: u8,
    },
    Check {
        node: usize,
        of: Option<u8>,
        named: bool,
        status: u8,
    },
    RemoveCheck {
        node: usize,
        of: Option<u8>,
        named: bool,
    },
    Liveness {
        node: usize,
        liveness: u8,
    },
    /// The observer hears of what changed; or gets the whole log.
    Send {
        node: usize,
        whole: bool,
    },
    /// Restarted with what was saved; after a clean stop or not.
    Restart {
        node: usize,
        clean: bool,
    },
    /// Restarted with nothing.
    Lose {
        node: usize,
    },
    Read {
        service: u8,
    },
    ForgetViews,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 0..3usize;
    let of = prop::option::of(0..4u8);
    let step = prop_oneof![
        6 => (node.clone(), 0..4u8, 0..3u8, 0..3u16)
            .prop_map(|(node, id, service, port)| Step::Put { node, id, service, port }),
        2 => (node.clone(), 0..4u8).prop_map(|(node, id)| Step::Remove { node, id }),
        4 => (node.clone(), of.clone(), any::<bool>(), 0..3u8)
            .prop_map(|(node, of, named, status)| Step::Check { node, of, named, status }),
        1 => (node.clone(), of, any::<bool>())
            .prop_map(|(node, of, named)| Step::RemoveCheck { node, of, named }),
        3 => (node.clone(), 0..4u8).prop_map(|(node, liveness)| Step::Liveness { node, liveness }),
        8 => (node.clone(), prop::bool::weighted(0.2))
            .prop_map(|(node, whole)| Step::Send { node, whole }),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, clean)| Step::Restart { node, clean }),
        1 => node.prop_map(|node| Step::Lose { node }),
        4 => (0..3u8).prop_map(|service| Step::Read { service }),
        2 => Just(Step::ForgetViews),
    ];
    prop::collection::vec(step, 1..80)
}

fn name(service: u8) -> String {
    format!("service{service}")
}

fn id(n: u8) -> InstanceId {
    InstanceId::parse(&format!("instance{n}")).unwrap()
}

fn check_id(of: Option<u8>, named: bool) -> String {
    match of {
        Some(n) if named => format!("service:instance{n}"),
        Some(n) => format!("check{n}"),
        None if named => "service:node".to_owned(),
        None => "node".to_owned(),
    }
}

/// Nodes 0 and 1 are others, node 2 is the observer itself.
struct World {
    clock: TestClock,
    nodes: Vec<TestNode>,
    /// What the observer knows of each: the records as of the last message.
    heard: Vec<Heard>,
    liveness: Vec<Liveness>,
    seen: BTreeMap<String, (u64, Option<Arc<ServiceView>>)>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Heard {
    instances: Vec<Arc<Instance>>,
    checks: Vec<Arc<CheckRecord>>,
}

impl World {
    fn new() -> Self {
        let clock = TestClock::at(1_000_000_000);
        let nodes: Vec<_> = (1..=3).map(|n| test_node(n, &clock)).collect();
        Self {
            clock,
            nodes,
            heard: vec![Heard::default(); 3],
            liveness: vec![Liveness::Down, Liveness::Down, Liveness::Alive],
            seen: BTreeMap::new(),
        }
    }

    fn observer(&self) -> &Catalog {
        &self.nodes[2].catalog
    }

    fn step(&mut self, step: &Step) {
        self.clock.advance(Duration::from_millis(1));
        match *step {
            Step::Put {
                node,
                id: n,
                service: of,
                port,
            } => {
                let mut new = Instance::new(service(&name(of)), port).unwrap();
                new.id = id(n);
                self.nodes[node].local().put_service(new).unwrap();
            }
            Step::Remove { node, id: n } => drop(self.nodes[node].local().remove_service(&id(n))),
            Step::Check {
                node,
                of,
                named,
                status,
            } => {
                let status = [Health::Passing, Health::Warning, Health::Critical][status as usize];
                let record = CheckRecord {
                    service: of.map(id),
                    ..check(&check_id(of, named), None, status)
                };
                // Refused where the instance is not there.
                let _ = self.nodes[node].local().put_check(record);
            }
            Step::RemoveCheck { node, of, named } => {
                self.nodes[node].local().remove_check(&check_id(of, named));
            }
            Step::Liveness { node, liveness } => {
                use Liveness::{Alive, Down, Left, Suspect};
                // Slow enough that no three deaths are one event.
                self.clock.advance(Duration::from_secs(40));
                self.liveness[node] = [Alive, Suspect, Down, Left][liveness as usize];
                let of = self.nodes[node].id();
                self.observer().set_liveness(of, self.liveness[node]);
            }
            Step::Send { node, whole } => self.send(node, whole),
            Step::Restart { node, clean } if node < 2 => {
                let catalog = &self.nodes[node].catalog;
                let options = replicate::options_of(&self.nodes[node]);
                let saved = catalog.save(clean);
                let own = catalog.own();
                self.nodes[node].catalog = Catalog::restore(own, options, &saved).unwrap();
            }
            Step::Lose { node } if node < 2 => {
                let options = replicate::options_of(&self.nodes[node]);
                let own = self.nodes[node].id();
                self.nodes[node].catalog = Catalog::open(own, options);
                self.nodes[node].publish().unwrap();
            }
            Step::Restart { .. } | Step::Lose { .. } => {}
            Step::Read { service } => drop(self.observer().service(&name(service))),
            Step::ForgetViews => {
                self.observer().inner.index.forget_unread();
                self.observer().inner.index.forget_unread();
            }
        }
        let own = self.nodes[2].local();
        self.heard[2] = Heard {
            instances: own.services(),
            checks: own.checks(),
        };
    }

    fn send(&mut self, node: usize, whole: bool) {
        if node == 2 {
            return;
        }
        let of = &self.nodes[node];
        let mut have = match whole {
            true => Head::default(),
            // Up to date already, or not asked because it left.
            false => match self.observer().lacks(&of.id(), of.catalog.own_head()) {
                Some(have) => have,
                None => return,
            },
        };
        for _ in 0..2 {
            for message in of.catalog.messages_since(of.id(), have) {
                match self.observer().apply(message) {
                    Outcome::Applied | Outcome::Known | Outcome::Staged => {}
                    Outcome::Pull(from) => have = from,
                    Outcome::Rejected(rejection) => panic!("{rejection}"),
                }
            }
        }
        let local = of.local();
        self.heard[node] = Heard {
            instances: local.services(),
            checks: local.checks(),
        };
    }

    /// What the views should be, made in the simplest way.
    fn expected(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (n, heard) in self.heard.iter().enumerate() {
            if !self.liveness[n].is_present() {
                continue;
            }
            for instance in &heard.instances {
                let own = heard
                    .checks
                    .iter()
                    .filter(|c| c.service.as_ref() == Some(&instance.id));
                let nodes = heard.checks.iter().filter(|c| c.service.is_none());
                let checks: Vec<_> = own.chain(nodes).map(|c| (&*c.id, c.status)).collect();
                let line = format!(
                    "node{} {instance:?} {checks:?} {:?}",
                    n + 1,
                    self.liveness[n]
                );
                all.entry(instance.service.to_string())
                    .or_default()
                    .insert(line);
            }
        }
        all
    }

    fn lines(view: &ServiceView) -> BTreeSet<String> {
        let lines = view.instances.iter().map(|shown| {
            let checks: Vec<_> = shown.checks.iter().map(|c| (&*c.id, c.status)).collect();
            let worst = shown.checks.iter().map(|c| c.status).max();
            assert_eq!(shown.health, worst.unwrap_or(Health::Passing));
            format!(
                "{} {:?} {checks:?} {:?}",
                shown.node.record.name, shown.instance, shown.node.liveness
            )
        });
        lines.collect()
    }

    fn compare(&mut self, keep: bool) {
        let expected = self.expected();
        let names = self.observer().service_names();
        assert!(names.iter().map(|name| name.as_str()).eq(expected.keys()));
        for n in 0..3 {
            let name = name(n);
            let revision = self.observer().service_revision(&name);
            // Without `keep`, reading must not change what is read later.
            let view = match keep {
                true => self.observer().service(&name),
                false => self
                    .observer()
                    .services()
                    .into_iter()
                    .find(|view| view.name == *name),
            };
            let lines = view.as_deref().map(Self::lines).unwrap_or_default();
            assert_eq!(
                lines,
                expected.get(&name).cloned().unwrap_or_default(),
                "{name}"
            );
            if let Some(view) = &view {
                assert_eq!(view.revision, revision);
                let places = view
                    .instances
                    .iter()
                    .map(|v| (&v.node.record.name, &v.instance.id));
                assert!(places.is_sorted());
            }
            let (before, old) = self.seen.get(&name).cloned().unwrap_or_default();
            let one = |view: &Option<Arc<ServiceView>>| view.iter().cloned().collect::<Vec<_>>();
            let diff = Diff::instances(revision, &one(&old), &one(&view));
            assert!(revision >= before, "a revision never goes back");
            assert!(
                diff.is_empty() || revision > before,
                "a change has a revision: {diff:?}"
            );
            self.seen.insert(name, (revision, view));
        }
        for (n, node) in self.nodes.iter().enumerate() {
            let shown = self.observer().instances_on(&node.id());
            let ids: Vec<_> = shown.iter().map(|view| &view.instance.id).collect();
            let known: Vec<_> = self.heard[n].instances.iter().map(|i| &i.id).collect();
            match self.liveness[n].is_present() {
                true => assert_eq!(ids, known),
                false => assert!(ids.is_empty()),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn views_are_what_the_owners_say_whoever_reads_when(steps in steps(), keep: bool) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.compare(keep);
        }
    }
}
