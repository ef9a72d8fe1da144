use super::*;

#[test]
fn stalls_of_one_to_four_seconds_take_nobody_down() {
    let mut sim = cluster(3, 100, Network::lossy(0.02));
    for round in 0..40 {
        for node in 0..5 {
            sim.pause(node);
        }
        sim.run_for(Duration::from_millis(1000 + 500 * (round % 7)));
        (0..5).for_each(|node| sim.resume(node));
        sim.run_for(2 * SEC);
    }
    assert!(
        sim.sum(|counters| &counters.stalls) > 0,
        "no stall was noticed"
    );
    assert_unharmed(&mut sim);
}

#[test]
fn after_a_long_stall_healthy_members_are_not_blamed() {
    // Whether the clock went on (a stopped process) or stood still (a suspended machine).
    for stood_still in [false, true] {
        let mut sim = cluster(4, 30, Network::default());
        sim.pause(7);
        sim.run_for(60 * SEC);
        let down = |by| sim.liveness(7, by) == Some(Liveness::Down);
        assert!((0..30).filter(|by| *by != 7).all(down));
        let since = sim.now();
        if stood_still {
            sim.wake_up(7);
        } else {
            sim.resume(7);
        }
        let took = sim.run_until(10 * SEC, Sim::agrees);
        assert!(took.is_some(), "it did not come back");
        let blamed = sim
            .seen
            .iter()
            .filter(|seen| seen.by == 7 && seen.at >= since)
            .filter(|seen| !matches!(seen.what, What::Up | What::Alive))
            .count();
        assert_eq!(blamed, 0, "the sleeper blamed others");
    }
}

#[test]
fn a_monotone_clock_that_jumps_forward_is_a_stall_and_blames_nobody() {
    let mut sim = cluster(5, 30, Network::lossy(0.02));
    for node in 0..10 {
        sim.jump_monotone(node, 3600 * SEC);
        sim.run_for(SEC);
    }
    assert!(sim.sum(|counters| &counters.stalls) >= 10);
    sim.run_for(20 * SEC);
    assert_unharmed(&mut sim);
}

#[test]
fn a_wall_clock_that_jumps_changes_nothing_while_a_node_runs() {
    let mut sim = cluster(6, 20, Network::default());
    sim.jump_wall(3, -86_400);
    sim.jump_wall(4, 86_400);
    sim.run_for(30 * SEC);
    assert_unharmed(&mut sim);
}

#[test]
fn a_link_that_is_deaf_one_way_takes_nobody_down() {
    let mut sim = cluster(7, 30, Network::lossy(0.02));
    for (from, to) in [(1, 2), (3, 4), (4, 5), (6, 1)] {
        sim.fault(from, to, Fault::Cut);
    }
    sim.run_for(300 * SEC);
    assert_unharmed(&mut sim);
}

#[test]
fn a_node_that_hears_no_datagram_stays_up_through_streams() {
    let mut sim = cluster(8, 30, Network::default());
    for from in 0..30 {
        sim.fault(from, 9, Fault::NoDatagrams);
    }
    sim.run_for(120 * SEC);
    assert_eq!(sim.departures(), 0);
    assert_eq!(rejoins(&sim), 0);
    sim.heal();
    assert_unharmed(&mut sim);
}

#[test]
fn zones_that_are_far_from_each_other_agree() {
    let network = Network {
        zones: 3,
        loss: 0.02,
        ..Network::default()
    };
    let mut sim = cluster(9, 60, network);
    sim.run_for(60 * SEC);
    assert_eq!(sim.departures(), 0);
    let since = sim.now();
    sim.crash(10, Crash::Host);
    sim.run_for(10 * SEC);
    let times = sim.times(10, What::Down, since);
    assert_eq!(times.len(), 59);
    assert!(
        times.percentile(99) <= 7 * SEC,
        "{:?}",
        times.percentile(99)
    );
}
