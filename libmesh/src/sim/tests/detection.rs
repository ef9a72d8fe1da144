use super::*;
use crate::member::StreamReply;
use crate::member::core::Output;

#[test]
fn a_lost_host_is_down_everywhere_within_7_seconds() {
    let mut all = Times::default();
    for seed in 20..24 {
        let mut sim = cluster(seed, 100, Network::lossy(0.05));
        for (ended, victim) in [5, 20, 40, 60, 80].into_iter().enumerate() {
            let since = sim.now();
            sim.crash(victim, Crash::Host);
            sim.run_for(10 * SEC);
            let seen = sim.times(victim, What::Down, since);
            assert_eq!(seen.len(), 99 - ended);
            all.extend(seen);
        }
        assert_eq!(sim.departures(), 99 + 98 + 97 + 96 + 95);
        assert_eq!(rejoins(&sim), 0);
    }
    let (p50, p99) = (all.percentile(50), all.percentile(99));
    println!(
        "host gone, N=100: p50 {p50:?} p99 {p99:?} last {:?}",
        all.last()
    );
    assert!(p50 <= 6 * SEC && p99 <= 7 * SEC);
}

#[test]
fn a_killed_process_is_down_everywhere_within_3_seconds() {
    for (nodes, network) in [
        (5, Network::default()),
        (10, Network::default()),
        (50, Network::lossy(0.02)),
    ] {
        let mut all = Times::default();
        for seed in 10..20 {
            let mut sim = cluster(seed, nodes, network.clone());
            for victim in [1, 3, 4] {
                let since = sim.now();
                sim.crash(victim, Crash::Process);
                sim.run_for(8 * SEC);
                let seen = sim.times(victim, What::Down, since);
                assert_eq!(seen.len(), nodes - 1);
                all.extend(seen);
                sim.restart(victim, Memory::Kept);
                sim.run_for(5 * SEC);
                assert!(sim.agrees(), "a restarted process is back within 5 s");
            }
        }
        let (p50, p99) = (all.percentile(50), all.percentile(99));
        println!(
            "process gone, N={nodes}: first {:?} p50 {p50:?} p99 {p99:?} last {:?}",
            all.first(),
            all.last()
        );
        assert!(p50 <= SEC * 3 / 2 && p99 <= 3 * SEC);
    }
}

#[test]
fn a_port_that_only_one_member_sees_refused_takes_nobody_down() {
    let mut sim = cluster(16, 10, Network::default());
    let target = node_id(4);
    for _ in 0..20 {
        let clock = sim.clock_of(0);
        let core = sim.core_of(0);
        core.peer_closed(clock, target);
        // The question of node 0 is answered by a firewall.
        while let Some(output) = core.poll_output() {
            if let Output::Ask { id, .. } = output {
                core.handle_stream_reply(clock, id, &StreamReply::Refused);
                break;
            }
        }
        sim.settle(0);
        sim.run_for(SEC);
    }
    assert_unharmed(&mut sim);
}

#[test]
fn a_node_that_two_members_see_refused_and_others_reach_stays_up() {
    let mut sim = cluster(18, 20, Network::default());
    for blocked in [3, 5] {
        sim.fault(blocked, 4, Fault::Refused);
    }
    for round in 0..60 {
        // Their streams to it end again and again.
        let blocked = [3, 5][round % 2];
        let clock = sim.clock_of(blocked);
        sim.core_of(blocked).peer_closed(clock, node_id(4));
        sim.settle(blocked);
        sim.run_for(SEC);
    }
    assert_unharmed(&mut sim);
}

#[test]
fn a_process_that_is_back_within_a_second_is_not_declared_down() {
    for (seed, pause) in [(30, 300), (31, 600), (32, 900)] {
        let mut sim = cluster(seed, 20, Network::default());
        for victim in [2, 7, 11] {
            sim.crash(victim, Crash::Process);
            sim.run_for(Duration::from_millis(pause));
            sim.restart(victim, Memory::Kept);
            sim.run_for(3 * SEC);
        }
        assert_eq!(sim.departures(), 0, "a restart of {pause} ms blinked");
        assert!(sim.agrees());
    }
}
