use std::collections::HashMap;

use super::super::thresholds::Thresholds;
use super::*;
use crate::health::Alias;
use crate::identity::BoxFuture;

const START: Duration = Duration::from_secs(1_700_000_000);
const SECOND: Duration = Duration::from_secs(1);

/// Never asked: the tests answer in its place.
#[derive(Default)]
struct Unasked {
    process: bool,
    target: &'static str,
}

impl super::super::probe::Probe for Unasked {
    fn kind(&self) -> &'static str {
        "unasked"
    }

    fn target(&self) -> String {
        self.target.to_owned()
    }

    fn probe(&self) -> BoxFuture<'_, ProbeResult> {
        unreachable!("the core asks nobody")
    }

    fn starts_process(&self) -> bool {
        self.process
    }
}

fn every(id: &str, interval: Duration) -> Check {
    Check::every(id, interval, Unasked::default())
}

fn found(health: Health) -> ProbeResult {
    ProbeResult {
        health,
        output: String::new(),
    }
}

/// The core in virtual time; a look takes `takes`.
struct World {
    core: Core,
    now: Duration,
    takes: Duration,
    /// Under way, with the time of their end.
    looks: Vec<(Duration, Ticket, Arc<Check>)>,
    most_looks: usize,
    /// When looks began, by check.
    begun: HashMap<Arc<str>, Vec<Duration>>,
    published: Vec<(Duration, CheckRecord)>,
    deregistered: Vec<(Duration, InstanceId)>,
}

impl World {
    fn new() -> Self {
        Self {
            core: Core::new(7),
            now: START,
            takes: Duration::ZERO,
            looks: Vec::new(),
            most_looks: 0,
            begun: HashMap::new(),
            published: Vec::new(),
            deregistered: Vec::new(),
        }
    }

    fn add(&mut self, check: Check) {
        let status = check.initial.unwrap_or(Health::Critical);
        self.core.add(self.now, Arc::new(check), status, self.now);
        self.follow_up();
    }

    fn told(&mut self, id: &str, health: Health) {
        assert!(self.core.told(self.now, id, found(health)));
        self.follow_up();
    }

    fn follow_up(&mut self) {
        while let Some(output) = self.core.outputs() {
            match output {
                Output::Look(ticket, check) => {
                    assert!(
                        !self.looks.iter().any(|(_, _, other)| other.id == check.id),
                        "a check overlaps itself"
                    );
                    let begun = self.begun.entry(Arc::clone(&check.id));
                    begun.or_default().push(self.now);
                    self.looks.push((self.now + self.takes, ticket, check));
                    self.most_looks = self.most_looks.max(self.looks.len());
                }
                Output::Abort(ticket) => self.looks.retain(|(_, other, _)| *other != ticket),
                Output::Publish(record) => self.published.push((self.now, record)),
                Output::Deregister(instance, _) => {
                    self.core.remove_instance(self.now, &instance);
                    self.deregistered.push((self.now, instance));
                }
            }
        }
    }

    /// Lets time pass; each look finds what `answer` says.
    fn run(&mut self, time: Duration, mut answer: impl FnMut(Duration, &Check) -> Health) {
        let until = self.now + time;
        loop {
            let ends = self.looks.iter().map(|(end, ..)| *end).min();
            let next = ends.into_iter().chain(self.core.next()).min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = next.max(self.now);
            if let Some(at) = self.looks.iter().position(|(end, ..)| *end <= self.now) {
                let (_, ticket, check) = self.looks.swap_remove(at);
                let result = found(answer(self.now, &check));
                self.core.found(self.now, ticket, result);
            } else {
                self.core.tick(self.now);
            }
            self.follow_up();
        }
    }

    fn shown(&self, id: &str) -> Vec<(u128, Health)> {
        let own = self
            .published
            .iter()
            .filter(|(_, record)| *record.id == *id);
        own.map(|(at, record)| ((*at - START).as_millis(), record.status))
            .collect()
    }
}

#[test]
fn a_fleet_of_checks_never_looks_at_once_and_none_is_forgotten() {
    let mut world = World::new();
    for n in 0..1000 {
        world.add(every(&format!("c{n}"), 10 * SECOND));
    }
    world.run(100 * SECOND, |_, _| Health::Passing);
    let mut per_second = [0; 100];
    for begun in world.begun.values() {
        assert!((9..=11).contains(&begun.len()), "{}", begun.len());
        for pair in begun.windows(2) {
            let apart = (pair[1] - pair[0]).as_secs_f64();
            assert!((9.49..10.51).contains(&apart), "{apart}");
        }
        for at in begun {
            per_second[((*at - START).as_secs() as usize).min(99)] += 1;
        }
    }
    assert_eq!(world.begun.len(), 1000);
    assert!(
        per_second.iter().all(|n| (50..160).contains(n)),
        "{per_second:?}"
    );
}

#[test]
fn a_check_with_a_long_interval_does_not_wait_for_it_at_first() {
    let mut world = World::new();
    world.add(every("c", 3600 * SECOND));
    world.run(30 * SECOND, |_, _| Health::Passing);
    assert_eq!(world.begun["c"].len(), 1);
}

#[test]
fn looks_that_hang_leave_room_for_no_more_than_the_bound_and_the_others_follow() {
    let mut world = World::new();
    world.takes = 10 * SECOND;
    for n in 0..1000 {
        world.add(every(&format!("c{n}"), SECOND));
    }
    world.run(9 * SECOND, |_, _| Health::Passing);
    assert_eq!(world.most_looks, LOOKS_MAX);
    world.run(60 * SECOND, |_, _| Health::Passing);
    assert_eq!(world.most_looks, LOOKS_MAX);
    assert_eq!(world.begun.len(), 1000, "everybody's turn comes");

    let mut world = World::new();
    world.takes = 10 * SECOND;
    for n in 0..100 {
        let probe = Unasked {
            process: true,
            ..Unasked::default()
        };
        world.add(Check::every(&format!("p{n}"), SECOND, probe));
    }
    world.add(every("light", SECOND));
    world.run(9 * SECOND, |_, _| Health::Passing);
    assert_eq!(world.most_looks, PROCESSES_MAX + 1);
    for n in 0..100 {
        world.core.remove(world.now, &format!("p{n}"));
        world.follow_up();
    }
    assert_eq!(
        world.looks.len(),
        1,
        "those that were stopped left their places"
    );
    assert_eq!(world.core.looking, [1, 0]);
}

#[test]
fn worse_is_published_at_once_and_better_once_a_second() {
    let mut world = World::new();
    let mut check = every("c", Duration::from_millis(100));
    check.thresholds = Thresholds::IMMEDIATE;
    check.damping = false;
    world.add(check);
    let mut worse = Vec::new();
    let mut last = Health::Critical;
    world.run(20 * SECOND, |now, _| {
        last = match last {
            Health::Passing => {
                worse.push((now - START).as_millis());
                Health::Critical
            }
            _ => Health::Passing,
        };
        last
    });
    let shown = world.shown("c");
    let better: Vec<_> = shown
        .iter()
        .filter(|(_, status)| *status == Health::Passing)
        .collect();
    assert!((9..=21).contains(&better.len()), "{shown:?}");
    for pair in better.windows(2) {
        assert!(pair[1].0 - pair[0].0 >= 1000, "{pair:?}");
    }
    for (at, status) in shown {
        assert!(status == Health::Passing || worse.contains(&at), "{at}");
    }
}

#[test]
fn a_status_held_back_is_published_without_another_look() {
    let mut world = World::new();
    let mut check = every("c", SECOND);
    check.thresholds = Thresholds::IMMEDIATE;
    check.initial = Some(Health::Passing);
    world.add(check);
    // Critical, then passing a second's fraction later, and then the look hangs.
    let mut results = [Health::Critical, Health::Passing].into_iter();
    while world.published.is_empty() {
        world.run(Duration::from_millis(10), |_, _| {
            results.next().unwrap_or(Health::Critical)
        });
    }
    let slot = world.core.by_id["c"];
    world.core.result(world.now, slot, found(Health::Passing));
    world.follow_up();
    assert_eq!(world.published.len(), 1, "too early");
    let critical = world.published[0].0;
    world.takes = 3600 * SECOND;
    world.run(2 * SECOND, |_, _| unreachable!("it hangs"));
    assert_eq!(world.published.len(), 2);
    assert_eq!(world.published[1].0 - critical, SECOND);
    assert_eq!(world.published[1].1.status, Health::Passing);
}

#[test]
fn a_flapping_check_stays_critical_says_so_once_and_is_believed_when_steady() {
    let mut world = World::new();
    let mut check = every("c", 5 * SECOND);
    check.thresholds = Thresholds::IMMEDIATE;
    check.notes = "of the shop".into();
    check.initial = Some(Health::Passing);
    world.add(check);
    let mut flips = 0;
    world.run(120 * SECOND, |_, _| {
        flips += 1;
        match flips % 2 {
            1 => Health::Passing,
            _ => Health::Critical,
        }
    });
    let state = world.core.state("c").unwrap();
    assert!(state.flapping);
    let flapping: Vec<_> = world
        .published
        .iter()
        .filter(|(_, record)| &*record.notes == "[flapping] of the shop")
        .collect();
    assert_eq!(flapping.len(), 1, "{:?}", world.published);
    assert_eq!(flapping[0].1.status, Health::Critical);
    let shown = world.shown("c");
    assert!(shown.len() <= 5, "{shown:?}");
    assert_eq!(shown.last().unwrap().1, Health::Critical);

    // A failure while it is suppressed is not hidden when it ends.
    let before = world.published.len();
    world.run(170 * SECOND, |_, _| Health::Passing);
    assert_eq!(world.published.len(), before, "not yet");
    assert!(!state_is_critical(&world), "what it finds is known here");
    world.run(15 * SECOND, |_, _| Health::Passing);
    let (_, last) = world.published.last().unwrap();
    assert_eq!(
        (last.status, &*last.notes),
        (Health::Passing, "of the shop")
    );
    assert_eq!(world.published.len(), before + 1);
}

fn state_is_critical(world: &World) -> bool {
    world.core.state("c").unwrap().status == Health::Critical
}

#[test]
fn what_is_told_may_be_damped_and_is_believed_again_without_being_told() {
    let mut world = World::new();
    let mut check = Check::ttl("t", 3600 * SECOND);
    check.damping = true;
    world.add(check);
    for health in [
        Health::Passing,
        Health::Critical,
        Health::Passing,
        Health::Critical,
        Health::Passing,
    ] {
        world.told("t", health);
        world.now += SECOND;
    }
    assert_eq!(world.shown("t").last().unwrap().1, Health::Critical);
    world.run(110 * SECOND, |_, _| unreachable!());
    assert_eq!(world.shown("t").last().unwrap().1, Health::Critical);
    world.run(15 * SECOND, |_, _| unreachable!());
    assert_eq!(world.shown("t").last().unwrap().1, Health::Passing);
    assert!(!world.core.state("t").unwrap().flapping);
}

#[test]
fn a_check_that_asks_something_else_than_before_is_not_flapping_for_what_that_did() {
    let looking_at = |target| {
        let probe = Unasked {
            process: false,
            target,
        };
        let mut check = Check::every("c", SECOND, probe);
        check.thresholds = Thresholds::IMMEDIATE;
        check
    };
    let mut world = World::new();
    world.add(looking_at("/replica"));
    let mut flips = 0;
    world.run(10 * SECOND, |_, _| {
        flips += 1;
        [Health::Passing, Health::Critical][flips % 2]
    });
    assert!(world.core.state("c").unwrap().flapping);
    world.add(looking_at("/replica"));
    world.run(3 * SECOND, |_, _| Health::Passing);
    assert_eq!(world.shown("c").last().unwrap().1, Health::Critical);
    world.add(looking_at("/leader"));
    world.run(3 * SECOND, |_, _| Health::Passing);
    assert_eq!(world.shown("c").last().unwrap().1, Health::Passing);
}

#[test]
fn by_default_what_is_told_is_shown_at_once() {
    let mut world = World::new();
    world.add(Check::ttl("t", 3600 * SECOND));
    for _ in 0..4 {
        world.told("t", Health::Passing);
        world.told("t", Health::Critical);
    }
    let shown = world.shown("t");
    assert_eq!(shown.len(), 8, "{shown:?}");
    // But not for ever.
    for _ in 0..1000 {
        world.now += Duration::from_millis(10);
        world.told("t", Health::Passing);
        world.told("t", Health::Critical);
    }
    assert!(world.shown("t").len() < 40, "{}", world.shown("t").len());
}

#[test]
fn a_ttl_expires_at_its_time_and_being_told_costs_no_timer() {
    let mut world = World::new();
    world.add(Check::ttl("t", 30 * SECOND));
    for _ in 0..10_000 {
        world.run(10 * SECOND, |_, _| unreachable!());
        world.told("t", Health::Passing);
    }
    assert!(world.core.timers.len() <= 2, "{}", world.core.timers.len());
    let last = world.now;
    world.run(3600 * SECOND, |_, _| unreachable!());
    let (at, record) = world.published.last().unwrap();
    assert_eq!((*at, record.status), (last + 30 * SECOND, Health::Critical));
    assert!(
        world
            .core
            .state("t")
            .unwrap()
            .output
            .starts_with("TTL expired")
    );
    assert_eq!(world.core.next(), None, "nothing is left to do");
}

fn instance() -> InstanceId {
    InstanceId::parse("web-1").unwrap()
}

#[test]
fn an_instance_goes_exactly_when_it_was_critical_for_so_long() {
    for (given, real) in [(90, 90), (5, 60)] {
        let mut world = World::new();
        let mut check = every("c", SECOND).of(instance());
        check.initial = Some(Health::Passing);
        check.deregister_after = Some(given * SECOND);
        world.add(check);
        world.run(10 * SECOND, |_, _| Health::Passing);
        let broken = world.now;
        world.run(40 * SECOND, |_, _| Health::Critical);
        world.run(10 * SECOND, |_, _| Health::Passing);
        assert!(world.deregistered.is_empty());
        let mut since = None;
        world.run(200 * SECOND, |now, _| {
            since.get_or_insert(now);
            Health::Critical
        });
        assert!(since.unwrap() > broken + 50 * SECOND);
        assert_eq!(
            world.deregistered,
            [(since.unwrap() + real * SECOND, instance())]
        );
        assert_eq!(world.core.checks().count(), 0);
        assert_eq!(world.core.next(), None);
    }
}

#[test]
fn registering_again_does_not_put_deregistration_or_looks_off() {
    let mut world = World::new();
    let check = || {
        let mut check = every("c", 10 * SECOND).of(instance());
        check.deregister_after = Some(60 * SECOND);
        check
    };
    world.add(check());
    let since = world.now;
    for _ in 0..59 {
        world.run(SECOND, |_, _| Health::Critical);
        world.add(check());
    }
    assert!(world.begun["c"].len() >= 5, "{:?}", world.begun);
    assert!(world.deregistered.is_empty());
    world.run(SECOND, |_, _| Health::Critical);
    assert_eq!(world.deregistered, [(since + 60 * SECOND, instance())]);
}

#[test]
fn an_earlier_life_of_the_node_counts_for_deregistration_when_this_one_agrees() {
    let add = |world: &mut World| {
        let mut check = every("c", 10 * SECOND).of(instance());
        check.deregister_after = Some(60 * SECOND);
        let yesterday = START - 86_400 * SECOND;
        let check = Arc::new(check);
        world
            .core
            .add(world.now, check, Health::Critical, yesterday);
    };
    let mut world = World::new();
    add(&mut world);
    world.run(30 * SECOND, |_, _| Health::Passing);
    world.run(300 * SECOND, |_, _| Health::Passing);
    assert!(world.deregistered.is_empty(), "it has recovered meanwhile");

    let mut world = World::new();
    add(&mut world);
    world.run(10 * SECOND, |_, _| Health::Critical);
    assert_eq!(world.deregistered.len(), 1, "it has not");
}

#[test]
fn what_a_stopped_look_finds_means_nothing() {
    let mut world = World::new();
    world.takes = 5 * SECOND;
    world.add(every("c", SECOND));
    world.run(2 * SECOND, |_, _| unreachable!());
    let [(_, ticket, _)] = world.looks[..] else {
        panic!("it looks by now");
    };
    world.add(every("c", SECOND));
    assert!(world.looks.is_empty(), "the old look is stopped");
    world.core.found(world.now, ticket, found(Health::Passing));
    world.follow_up();
    assert!(world.published.is_empty());
    assert!(world.core.remove(world.now, "c") && !world.core.remove(world.now, "c"));
    world.core.found(world.now, ticket, found(Health::Passing));
    assert_eq!(world.core.looking, [0, 0]);
}

#[test]
fn an_alias_waits_for_nothing() {
    let mut world = World::new();
    let of = Alias {
        node: None,
        instance: Some(instance()),
    };
    world.add(Check::alias("a", of));
    assert_eq!(world.core.next(), None);
    world.told("a", Health::Warning);
    assert_eq!(world.shown("a"), [(0, Health::Warning)]);
}
