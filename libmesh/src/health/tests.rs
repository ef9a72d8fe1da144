use std::future::pending;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::catalog::testing::TestNode;
use crate::catalog::{Catalog, Options};
use crate::identity::BoxFuture;
use crate::model::{Health, Instance, InstanceId, Liveness, ServiceName};

const SECOND: Duration = Duration::from_secs(1);

/// Answers what it is told to.
#[derive(Clone)]
struct Scripted {
    health: Arc<Mutex<Option<Health>>>,
    looks: Arc<AtomicUsize>,
    under_way: Arc<AtomicUsize>,
}

impl Scripted {
    /// `None` = never answers.
    fn new(health: Option<Health>) -> Self {
        Self {
            health: Arc::new(Mutex::new(health)),
            looks: Arc::default(),
            under_way: Arc::default(),
        }
    }

    fn set(&self, health: Health) {
        *self.health.lock() = Some(health);
    }

    fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }
}

impl Probe for Scripted {
    fn kind(&self) -> &'static str {
        "scripted"
    }

    fn probe(&self) -> BoxFuture<'_, ProbeResult> {
        struct UnderWay<'a>(&'a AtomicUsize);
        impl Drop for UnderWay<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        Box::pin(async {
            self.looks.fetch_add(1, Ordering::SeqCst);
            assert_eq!(
                self.under_way.fetch_add(1, Ordering::SeqCst),
                0,
                "a check overlaps itself"
            );
            let _guard = UnderWay(&self.under_way);
            let health = *self.health.lock();
            match health {
                Some(health) => ProbeResult {
                    health,
                    output: format!("it is {health}"),
                },
                None => pending().await,
            }
        })
    }
}

fn node() -> (TestNode, Scheduler, InstanceId) {
    let node = TestNode::new("node1", IpAddr::V4(Ipv4Addr::LOCALHOST));
    let instance = Instance::new(ServiceName::parse("web").unwrap(), 80).unwrap();
    let id = instance.id.clone();
    node.local().put_service(instance).unwrap();
    let scheduler = Scheduler::new(node.local());
    (node, scheduler, id)
}

fn health(node: &TestNode) -> Health {
    node.catalog.service("web").unwrap().instances[0].health
}

/// How long until the check has `status`.
async fn becomes(node: &TestNode, id: &str, status: Health) -> Duration {
    let start = Instant::now();
    let mut changes = node.catalog.watch_all();
    let wait = async {
        while node
            .local()
            .check(id)
            .is_none_or(|check| check.status != status)
        {
            changes.changed().await.unwrap();
        }
    };
    timeout(Duration::from_secs(600), wait)
        .await
        .expect("it never gets there");
    Instant::now() - start
}

#[tokio::test(start_paused = true)]
async fn a_check_is_critical_until_it_ran_and_then_follows_its_thresholds() {
    let (node, scheduler, id) = node();
    let probe = Scripted::new(Some(Health::Passing));
    let mut check = Check::every("c", 10 * SECOND, probe.clone()).of(id);
    check.thresholds = Thresholds {
        success_before_passing: 3,
        failures_before_warning: Some(2),
        failures_before_critical: 3,
        settle: Duration::ZERO,
    };
    scheduler.add(check).unwrap();
    assert_eq!(health(&node), Health::Critical);
    assert!(
        becomes(&node, "c", Health::Passing).await < 10 * SECOND,
        "the first run comes within the interval"
    );
    assert_eq!(
        (probe.looks(), scheduler.output("c").unwrap().as_str()),
        (1, "it is passing")
    );

    probe.set(Health::Critical);
    // The intervals vary by a twentieth.
    let about = |taken: Duration, seconds: f64| (taken.as_secs_f64() / seconds - 1.0).abs() < 0.06;
    assert!(about(becomes(&node, "c", Health::Warning).await, 20.0));
    assert!(about(becomes(&node, "c", Health::Critical).await, 10.0));
    assert_eq!(health(&node), Health::Critical);
    probe.set(Health::Passing);
    assert!(about(becomes(&node, "c", Health::Passing).await, 30.0));
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_fails_and_never_overlaps_itself() {
    let (node, scheduler, id) = node();
    let probe = Scripted::new(None);
    let mut check = Check::every("c", SECOND, probe.clone()).of(id);
    check.initial = Some(Health::Passing);
    let How::Every { timeout, .. } = &mut check.how else {
        unreachable!()
    };
    *timeout = 5 * SECOND;
    scheduler.add(check).unwrap();
    assert_eq!(health(&node), Health::Passing, "as told");
    assert!(becomes(&node, "c", Health::Critical).await >= 5 * SECOND);
    assert_eq!(scheduler.output("c").unwrap(), "no answer within 5000 ms");
    sleep(50 * SECOND).await;
    assert!((9..=12).contains(&probe.looks()), "{}", probe.looks());
}

#[tokio::test(start_paused = true)]
async fn a_removed_check_runs_no_more() {
    let (node, scheduler, id) = node();
    let probe = Scripted::new(Some(Health::Critical));
    scheduler
        .add(Check::every("c", SECOND, probe.clone()).of(id.clone()))
        .unwrap();
    sleep(5 * SECOND).await;
    assert!(scheduler.remove("c") && !scheduler.remove("c"));
    let looks = probe.looks();
    sleep(5 * SECOND).await;
    assert_eq!(probe.looks(), looks);
    assert_eq!(
        (health(&node), scheduler.output("c")),
        (Health::Passing, None)
    );

    scheduler
        .add(Check::every("d", SECOND, probe.clone()).of(id))
        .unwrap();
    sleep(5 * SECOND).await;
    drop(scheduler);
    sleep(SECOND).await;
    let looks = probe.looks();
    sleep(5 * SECOND).await;
    assert_eq!(probe.looks(), looks, "checks end with their scheduler");
}

#[tokio::test(start_paused = true)]
async fn registering_again_keeps_status_and_output() {
    let (node, scheduler, id) = node();
    let probe = Scripted::new(Some(Health::Passing));
    scheduler
        .add(Check::every("c", SECOND, probe.clone()).of(id.clone()))
        .unwrap();
    becomes(&node, "c", Health::Passing).await;
    let before = node.local().check("c").unwrap();
    scheduler
        .add(Check::every("c", 3600 * SECOND, probe.clone()).of(id))
        .unwrap();
    assert_eq!(
        (health(&node), scheduler.output("c").unwrap().as_str()),
        (Health::Passing, "it is passing")
    );
    assert!(Arc::ptr_eq(&before, &node.local().check("c").unwrap()));
    let looks = probe.looks();
    sleep(60 * SECOND).await;
    assert!(probe.looks() <= looks + 1, "the old task is gone");
}

#[tokio::test(start_paused = true)]
async fn a_ttl_check_is_told_and_expires() {
    let (node, scheduler, id) = node();
    scheduler.add(Check::ttl("t", 10 * SECOND).of(id)).unwrap();
    assert_eq!(health(&node), Health::Critical);
    scheduler.update("t", Health::Passing, "fine").unwrap();
    assert_eq!(health(&node), Health::Passing, "shown when it returns");
    assert_eq!(scheduler.output("t").unwrap(), "fine");
    for _ in 0..5 {
        sleep(6 * SECOND).await;
        scheduler.update("t", Health::Passing, "still").unwrap();
    }
    assert_eq!(health(&node), Health::Passing);
    let expired = becomes(&node, "t", Health::Critical).await;
    assert_eq!(expired.as_secs(), 10);
    assert_eq!(
        scheduler.output("t").unwrap(),
        "TTL expired (last output before timeout follows): still"
    );
    scheduler
        .update("t", Health::Warning, &"é".repeat(4000))
        .unwrap();
    becomes(&node, "t", Health::Warning).await;
    assert_eq!(scheduler.output("t").unwrap().len(), 4096);
}

#[tokio::test(start_paused = true)]
async fn what_stays_critical_is_deregistered_with_all_its_checks() {
    let (node, scheduler, id) = node();
    let probe = Scripted::new(Some(Health::Critical));
    let mut check = Check::every("c", SECOND, probe.clone()).of(id.clone());
    check.deregister_after = Some(90 * SECOND);
    scheduler.add(check).unwrap();
    scheduler
        .add(Check::ttl("t", 10 * SECOND).of(id.clone()))
        .unwrap();
    sleep(60 * SECOND).await;
    probe.set(Health::Passing);
    sleep(10 * SECOND).await;
    probe.set(Health::Critical);
    sleep(80 * SECOND).await;
    assert!(
        node.local().service(&id).is_some(),
        "it was passing in between"
    );
    sleep(20 * SECOND).await;
    assert!(node.local().service(&id).is_none() && node.local().checks().is_empty());
    assert!(scheduler.checks().is_empty());
    let looks = probe.looks();
    sleep(10 * SECOND).await;
    assert_eq!(probe.looks(), looks);
}

#[tokio::test]
async fn wrong_checks_are_refused_by_name() {
    let (_node, scheduler, id) = node();
    let probe = Scripted::new(None);
    let unknown = InstanceId::parse("no").unwrap();
    let refused = scheduler
        .add(Check::ttl("t", SECOND).of(unknown))
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "instance \"no\" is not registered on this node"
    );
    let fast = Check::every("c", Duration::from_millis(1), probe).of(id.clone());
    assert_eq!(
        scheduler.add(fast).unwrap_err().to_string(),
        "interval: must be at least 100 ms"
    );
    assert!(scheduler.checks().is_empty());
    assert_eq!(
        scheduler.update("c", Health::Passing, ""),
        Err(CheckError::Unknown(Arc::from("c")))
    );
    let tcp = TcpProbe::new("127.0.0.1:1").unwrap();
    scheduler
        .add(Check::every("c", SECOND, tcp).of(id))
        .unwrap();
    assert_eq!(
        scheduler.update("c", Health::Passing, ""),
        Err(CheckError::NotTtl(Arc::from("c")))
    );
    assert!(TcpProbe::new("127.0.0.1").is_err() && TcpProbe::new(":80").is_err());
    assert!(HttpProbe::new("ftp://a/").is_err() && HttpProbe::new("/a").is_err());
    let mut big = Check::ttl("t", SECOND);
    big.output_max = 2 << 20;
    assert!(scheduler.add(big).is_err());
}

/// Answers each connection with the next of `answers`, and tells what it was asked.
async fn server(answers: &'static [&'static str]) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            asked.push(String::from_utf8(request).unwrap());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    });
    (port, task)
}

#[tokio::test]
async fn http_status_decides() {
    let (port, asked) = server(&[
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nslow",
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\ndown",
        "HTTP/1.1 302 Found\r\nlocation: /ok\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine",
        "garbage\r\n\r\n",
    ])
    .await;
    let url = format!("http://127.0.0.1:{port}/health?x=1");
    let probe = HttpProbe::new(&url)
        .unwrap()
        .method("HEAD")
        .unwrap()
        .header("x-token", "t")
        .unwrap();
    assert_eq!(probe.probe().await.health, Health::Passing);
    let probe = HttpProbe::new(&url).unwrap();
    let warning = probe.probe().await;
    assert_eq!(warning.health, Health::Warning);
    assert_eq!(
        warning.output,
        format!("HTTP GET {url}: 429 Too Many Requests Output: slow")
    );
    assert_eq!(probe.probe().await.health, Health::Critical);
    assert_eq!(
        probe.probe().await.health,
        Health::Passing,
        "redirects are followed"
    );
    assert_eq!(probe.probe().await.health, Health::Critical);
    let asked = asked.await.unwrap();
    assert!(
        asked[0].starts_with("HEAD /health?x=1 HTTP/1.1\r\n")
            && asked[0].contains("x-token: t\r\n")
    );
    assert!(
        asked[1].contains("user-agent: mesh-health-check/")
            && asked[1].contains(&format!("host: 127.0.0.1:{port}\r\n"))
    );
    assert!(asked[4].starts_with("GET /ok "));
    let gone = probe.probe().await;
    assert_eq!(gone.health, Health::Critical);
    assert!(gone.output.contains("refused"), "{}", gone.output);
}

#[tokio::test]
async fn tcp_is_content_with_a_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let probe = TcpProbe::new(&address).unwrap();
    assert_eq!(
        probe.probe().await.output,
        format!("TCP connect {address}: Success")
    );
    drop(listener);
    assert_eq!(probe.probe().await.health, Health::Critical);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_panics_is_a_failure_and_not_the_last() {
    struct Panics(AtomicUsize);
    impl Probe for Panics {
        fn kind(&self) -> &'static str {
            "panics"
        }

        fn probe(&self) -> BoxFuture<'_, ProbeResult> {
            Box::pin(async {
                match self.0.fetch_add(1, Ordering::SeqCst) {
                    0 => panic!("on purpose"),
                    _ => ProbeResult::passing("well"),
                }
            })
        }
    }
    let (node, scheduler, id) = node();
    let mut check = Check::every("c", SECOND, Panics(AtomicUsize::new(0))).of(id);
    check.initial = Some(Health::Passing);
    scheduler.add(check).unwrap();
    becomes(&node, "c", Health::Critical).await;
    let output = scheduler.output("c").unwrap();
    assert_eq!(output, "the look ended without a result");
    becomes(&node, "c", Health::Passing).await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_published_as_urgent_at_once() {
    let (node, scheduler, id) = node();
    let probe = Scripted::new(Some(Health::Passing));
    scheduler
        .add(Check::every("c", SECOND, probe.clone()).of(id))
        .unwrap();
    becomes(&node, "c", Health::Passing).await;
    let urgent = node.local().watch().borrow().urgent;
    let mut head = node.local().watch();
    head.mark_unchanged();
    probe.set(Health::Critical);
    let looks = probe.looks();
    head.changed().await.unwrap();
    assert_eq!(probe.looks(), looks + 1, "the first failing look");
    assert!(head.borrow().urgent > urgent);
}

#[tokio::test(start_paused = true)]
async fn an_instance_in_maintenance_gets_no_traffic_until_that_ends() {
    let (node, scheduler, id) = node();
    scheduler.begin_maintenance(Some(&id), "disk").unwrap();
    assert_eq!(health(&node), Health::Maintenance);
    let record = node.local().check("_service_maintenance:web").unwrap();
    assert_eq!(
        (&*record.name, &*record.notes, &*record.kind),
        ("Service Maintenance Mode", "disk", "maintenance")
    );
    scheduler.begin_maintenance(None, "").unwrap();
    let all = scheduler.maintenance();
    assert_eq!(
        all.iter().map(|it| it.instance.clone()).collect::<Vec<_>>(),
        [None, Some(id.clone())]
    );
    assert!(
        all[0]
            .reason
            .starts_with("Maintenance mode is enabled for this node, but no reason")
    );
    assert!(scheduler.end_maintenance(Some(&id)) && !scheduler.end_maintenance(Some(&id)));
    assert_eq!(health(&node), Health::Maintenance, "the node still is");
    assert!(scheduler.end_maintenance(None));
    assert_eq!(health(&node), Health::Passing);
    assert!(scheduler.maintenance().is_empty());
    assert!(node.local().service(&id).is_some());

    let none = InstanceId::parse("none").unwrap();
    assert!(scheduler.begin_maintenance(Some(&none), "").is_err());
    assert!(
        scheduler
            .begin_maintenance(None, &"x".repeat(2000))
            .is_err()
    );
    scheduler.begin_maintenance(Some(&id), "").unwrap();
    scheduler.remove_service(&id);
    assert!(scheduler.maintenance().is_empty());
}

#[tokio::test]
async fn maintenance_outlasts_a_restart_and_what_nobody_registers_again_goes_with_it() {
    let (node, scheduler, id) = node();
    let other = Instance::new(ServiceName::parse("db").unwrap(), 1).unwrap();
    node.local().put_service(other.clone()).unwrap();
    scheduler.begin_maintenance(Some(&id), "disk").unwrap();
    scheduler.begin_maintenance(None, "reboot").unwrap();

    let own = node.catalog.own();
    let saved = node.catalog.save(true);
    let again = Catalog::restore(own, Options::default(), &saved).unwrap();
    let local = again.local();
    local.settle(kept_in_maintenance(&local));
    assert!(local.service(&id).is_some() && local.service(&other.id).is_none());
    let scheduler = Scheduler::new(local.clone());
    let reasons: Vec<_> = scheduler.maintenance();
    let reasons: Vec<_> = reasons.iter().map(|it| &*it.reason).collect();
    assert_eq!(reasons, ["reboot", "disk"]);

    // Its program comes back: the maintenance holds.
    let instance = Instance::clone(&local.service(&id).unwrap());
    local.put_service(instance).unwrap();
    assert_eq!(scheduler.maintenance().len(), 2);
    assert!(scheduler.end_maintenance(Some(&id)));
    assert!(local.service(&id).is_some());

    // Another restart, after which it does not come back.
    scheduler.begin_maintenance(Some(&id), "disk").unwrap();
    let saved = again.save(true);
    let again = Catalog::restore(own, Options::default(), &saved).unwrap();
    let local = again.local();
    local.settle(kept_in_maintenance(&local));
    let scheduler = Scheduler::new(local.clone());
    assert!(local.is_inherited(&id));
    assert!(scheduler.end_maintenance(Some(&id)));
    assert!(local.service(&id).is_none(), "there is nobody behind it");
}

#[tokio::test(start_paused = true)]
async fn an_alias_follows_an_instance_here() {
    let (node, scheduler, id) = node();
    let parent = Instance::new(ServiceName::parse("db").unwrap(), 1).unwrap();
    let parent_id = parent.id.clone();
    let of = Alias {
        node: None,
        instance: Some(parent_id.clone()),
    };
    scheduler.add(Check::alias("a", of).of(id.clone())).unwrap();
    assert_eq!(health(&node), Health::Critical);
    let output = scheduler.output("a").unwrap();
    assert_eq!(output, "Service db could not be found on node node1");

    node.local().put_service(parent).unwrap();
    becomes(&node, "a", Health::Passing).await;
    assert_eq!(scheduler.output("a").unwrap(), "No checks found.");
    let mut check = Check::ttl("t", 3600 * SECOND).of(parent_id.clone());
    check.initial = Some(Health::Passing);
    scheduler.add(check).unwrap();
    for status in [Health::Warning, Health::Critical, Health::Passing] {
        scheduler.update("t", status, "").unwrap();
        becomes(&node, "a", status).await;
    }
    assert_eq!(scheduler.output("a").unwrap(), "All checks passing.");
    scheduler.begin_maintenance(Some(&parent_id), "x").unwrap();
    becomes(&node, "a", Health::Critical).await;
    assert_eq!(
        scheduler.update("a", Health::Passing, ""),
        Err(CheckError::NotTtl("a".into()))
    );

    // One that follows its own instance does not follow itself.
    let of = Alias {
        node: None,
        instance: Some(id.clone()),
    };
    scheduler.remove("a");
    scheduler.add(Check::alias("own", of).of(id)).unwrap();
    assert_eq!(health(&node), Health::Passing);
}

#[tokio::test(start_paused = true)]
async fn an_alias_follows_an_instance_and_a_node_elsewhere() {
    let (node, scheduler, id) = node();
    let far = TestNode::new("far", IpAddr::V4(Ipv4Addr::LOCALHOST));
    let name = far.record.name.clone();
    let alias = |id: &str, instance: Option<&str>| {
        let of = Alias {
            node: Some(name.clone()),
            instance: instance.map(|id| InstanceId::parse(id).unwrap()),
        };
        Check::alias(id, of)
    };
    scheduler
        .add(alias("of-db", Some("db")).of(id.clone()))
        .unwrap();
    scheduler.add(alias("of-node", None)).unwrap();
    assert_eq!(
        scheduler.output("of-node").unwrap(),
        "node far is not known"
    );
    far.local()
        .put_service(Instance::new(ServiceName::parse("db").unwrap(), 1).unwrap())
        .unwrap();
    let there = Scheduler::new(far.local());
    there.add(Check::ttl("disk", 3600 * SECOND)).unwrap();
    there.update("disk", Health::Passing, "").unwrap();
    let pass_on = || far.send_to(&node.catalog);
    pass_on();
    becomes(&node, "of-db", Health::Passing).await;
    becomes(&node, "of-node", Health::Passing).await;
    there.update("disk", Health::Critical, "full").unwrap();
    pass_on();
    becomes(&node, "of-db", Health::Critical).await;
    becomes(&node, "of-node", Health::Critical).await;
    assert_eq!(
        scheduler.output("of-node").unwrap(),
        "Aliased check \"disk\" failing: critical",
        "what a check printed stays on its node"
    );
    there.update("disk", Health::Passing, "").unwrap();
    pass_on();
    becomes(&node, "of-node", Health::Passing).await;
    node.catalog.set_liveness(far.record.id, Liveness::Down);
    becomes(&node, "of-node", Health::Critical).await;
    assert_eq!(
        scheduler.output("of-node").unwrap(),
        "node far does not answer"
    );
}
