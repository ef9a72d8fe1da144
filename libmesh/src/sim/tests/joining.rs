use bytes::{BufMut, Bytes};
use foca::{Header, Message, State};

use super::*;
use crate::member::wire;

#[test]
fn a_join_storm_through_three_seeds_completes() {
    let mut sim = Sim::new(seed(5), Network::lossy(0.05));
    sim.start_many(&mesh(), 100, SEC);
    let took = sim.run_until(15 * SEC, Sim::agrees);
    println!("join of 100 in 1 s complete {took:?} after the last start");
    assert!(took.is_some(), "the join did not complete");
    assert_eq!(rejoins(&sim), 0);
}

#[test]
fn a_join_completes_without_streams_and_without_datagrams() {
    let mut sim = Sim::new(seed(6), lossy(0.0, false));
    sim.start_many(&mesh(), 20, SEC);
    assert!(
        sim.run_until(60 * SEC, Sim::agrees).is_some(),
        "not over datagrams alone"
    );
    let mut sim = Sim::new(seed(6), Network::default());
    for from in 0..20 {
        for to in 0..20 {
            sim.fault(from, to, Fault::NoDatagrams);
        }
    }
    sim.start_many(&mesh(), 20, SEC);
    assert!(
        sim.run_until(60 * SEC, Sim::agrees).is_some(),
        "not over streams alone"
    );
}

#[test]
fn a_half_half_partition_heals_within_30_seconds() {
    for network in [lossy(0.02, true), lossy(0.0, false)] {
        let mut sim = cluster(7, 100, network.clone());
        sim.partition(|node| u32::from(node < 50));
        sim.run_for(60 * SEC);
        let across =
            (0..50).all(|by| (50..100).all(|of| sim.liveness(of, by) == Some(Liveness::Down)));
        assert!(
            across || !network.streams,
            "both sides should have given the other up"
        );
        sim.heal();
        let took = sim.run_until(90 * SEC, Sim::agrees);
        println!("healed in {took:?} (streams: {})", network.streams);
        assert!(took.is_some_and(|took| took <= 30 * SEC || !network.streams));
    }
}

#[test]
fn a_partition_into_many_islands_heals() {
    let mut sim = cluster(8, 60, Network::lossy(0.02));
    sim.partition(|node| match node % 12 {
        0 => 0,
        1..4 => 1,
        4..7 => 2,
        // Alone.
        island => (100 + island * 100 + node) as u32,
    });
    sim.run_for(60 * SEC);
    sim.heal();
    let took = sim.run_until(60 * SEC, Sim::agrees);
    println!("islands healed in {took:?}");
    assert!(took.is_some_and(|took| took <= 30 * SEC));
}

#[test]
fn leave_is_left_and_a_restart_comes_back() {
    let mut sim = cluster(8, 30, Network::lossy(0.05));
    let since = sim.now();
    sim.leave(9);
    sim.run_for(5 * SEC);
    let left = sim.times(9, What::Left, since);
    println!("leave seen by all after {:?}", left.last());
    assert_eq!(left.len(), 29);
    assert_eq!(sim.times(9, What::Down, since).len(), 0);
    sim.restart(9, Memory::Kept);
    assert!(sim.run_until(5 * SEC, Sim::agrees).is_some());
}

#[test]
fn an_announced_restart_hides_nothing_for_as_long_as_it_said() {
    let mut sim = cluster(13, 50, Network::lossy(0.05));
    for victim in [3, 20] {
        sim.announce_restart(victim, 15 * SEC);
        sim.run_for(12 * SEC);
        assert!(!sim.running().contains(&victim), "it did not end");
        sim.restart(victim, Memory::Kept);
        sim.run_for(5 * SEC);
    }
    let bad = |seen: &&Seen| matches!(seen.what, What::Suspect | What::Down | What::Left);
    assert_eq!(sim.seen.iter().find(bad), None);
    assert!(sim.agrees());
    // And no longer.
    let since = sim.now();
    sim.announce_restart(30, 5 * SEC);
    sim.run_for(25 * SEC);
    assert_eq!(sim.times(30, What::Down, since).len(), 49);
}

#[test]
fn a_restart_without_memory_and_with_a_clock_set_back_gets_back_in() {
    let mut sim = cluster(9, 10, Network::default());
    let first = sim.core_of(4).local().generation;
    sim.crash(4, Crash::Host);
    sim.run_for(2 * SEC);
    sim.jump_wall(4, -3600);
    sim.restart(4, Memory::Lost);
    assert!(sim.core_of(4).local().generation < first);
    assert!(
        sim.run_until(10 * SEC, Sim::agrees).is_some(),
        "others know a higher generation and do not listen"
    );
    assert!(sim.core_of(4).local().generation > first);
    // With its memory it needs no telling.
    sim.jump_wall(4, -3600);
    sim.crash(4, Crash::Process);
    sim.run_for(5 * SEC);
    sim.restart(4, Memory::Kept);
    assert!(sim.run_until(5 * SEC, Sim::agrees).is_some());
    assert_eq!(
        sim.counters(4)
            .rejoins
            .load(std::sync::atomic::Ordering::Relaxed),
        0
    );
}

#[test]
fn a_restart_without_seeds_finds_the_others_through_its_candidates() {
    let mut sim = cluster(10, 30, Network::lossy(0.05));
    for node in [3, 4] {
        sim.reseed(node, &[]);
        sim.crash(node, Crash::Host);
    }
    sim.run_for(20 * SEC);
    sim.restart(3, Memory::Kept);
    sim.restart(4, Memory::Lost);
    sim.run_for(15 * SEC);
    assert_eq!(sim.liveness(3, 20), Some(Liveness::Alive));
    assert_eq!(sim.liveness(20, 3), Some(Liveness::Alive));
    // Who lost everything is found too: others push their state to the address that is down.
    assert!(sim.run_until(60 * SEC, Sim::agrees).is_some());
}

#[test]
fn a_whole_cluster_that_lost_power_comes_back() {
    let mut sim = cluster(11, 50, Network::default());
    for node in 0..50 {
        sim.crash(node, Crash::Host);
    }
    sim.run_for(10 * SEC);
    for node in 0..50 {
        sim.restart(node, Memory::Kept);
        sim.run_for(SEC / 25);
    }
    let took = sim.run_until(30 * SEC, Sim::agrees);
    println!("power back: all agree after {took:?}");
    assert!(took.is_some());
}

/// What a compromised member could say: a packet with Down claims about others.
fn forged(by: usize, to: usize, about: &[usize], sim: &mut Sim) -> Bytes {
    let identity = |node: usize, sim: &mut Sim| {
        let local = sim.core_of(node).local();
        wire::Identity {
            node: local.id,
            addr: local.addr,
            generation: local.generation,
        }
    };
    let header = Header {
        src: identity(by, sim),
        src_incarnation: 0,
        dst: identity(to, sim),
        message: Message::Gossip,
    };
    let mut packet = Vec::new();
    wire::encode_header(&header, &[], &mut packet).unwrap();
    packet.put_u16(about.len() as u16);
    for node in about {
        let claim = foca::Member::new(identity(*node, sim), 0, State::Down);
        wire::encode_member(&claim, &mut packet);
    }
    packet.into()
}

#[test]
fn forged_down_claims_do_not_keep_a_healthy_node_away() {
    let mut sim = cluster(12, 50, Network::default());
    for round in 0..20 {
        let packet = forged(1, 10 + round, &[5, 6], &mut sim);
        sim.inject(10 + round, packet);
        sim.run_for(SEC);
    }
    let took = sim.run_until(10 * SEC, Sim::agrees);
    assert!(took.is_some(), "the slandered nodes did not come back");
    let slandered = sim
        .seen
        .iter()
        .filter(|seen| seen.what == What::Down)
        .all(|seen| [5, 6].contains(&seen.of));
    assert!(slandered, "others suffered too");
}
