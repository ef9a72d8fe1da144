use super::*;

/// The fault of foca 2.0 that `suspicion.rs` guards: a timer that comes after the refutation tells a healthy member that
/// it is down.
#[test]
fn nobody_healthy_rejoins_or_goes_down_in_ten_minutes_without_streams() {
    // Without streams every probe that fails raises a suspicion, so that only the guard stands between it and the
    // member; with five pings a probe it takes some loss to make one fail.
    let mut sim = cluster(1, 100, lossy(0.2, false));
    sim.run_for(600 * SEC);
    let suspicions = sim.sum(|counters| &counters.suspicions);
    let late = sim.sum(|counters| &counters.late_suspicions);
    println!("without streams: {suspicions} suspicions seen, {late} late timers held back");
    assert!(late > 10, "too few suspicions ({late}) to show anything");
    assert_unharmed(&mut sim);
}

#[test]
fn without_the_guard_healthy_members_rejoin() {
    let mut sim = cluster(1, 50, lossy(0.2, false));
    (0..50).for_each(|node| sim.core_of(node).unguarded = true);
    sim.run_for(300 * SEC);
    println!("unguarded: {} rejoins", rejoins(&sim));
    assert!(
        rejoins(&sim) > 5,
        "the regression test shows nothing any more: {} rejoins",
        rejoins(&sim)
    );
}

#[test]
fn nobody_healthy_goes_down_in_ten_minutes_at_20_percent_loss() {
    let mut sim = cluster(2, 100, Network::lossy(0.2));
    sim.run_for(600 * SEC);
    println!(
        "20 % loss: {} suspicions declared, {} refuted at the last question",
        sim.sum(|counters| &counters.suspicions),
        sim.sum(|counters| &counters.confirms_refuted)
    );
    assert_unharmed(&mut sim);
}

#[test]
fn a_network_that_drops_datagrams_takes_nobody_down() {
    let mut sim = cluster(3, 20, lossy(1.0, true));
    // What streams lose is repeated for ever at 100 % loss: only datagrams are meant.
    sim.network.loss = 0.0;
    for from in 0..20 {
        for to in 0..20 {
            sim.fault(from, to, Fault::NoDatagrams);
        }
    }
    sim.run_for(60 * SEC);
    assert_eq!(sim.departures(), 0);
}

#[test]
fn a_quiet_node_keeps_to_its_budget_of_traffic() {
    for (loss, budget) in [(0.0, 900.0), (0.05, 1000.0)] {
        let mut sim = cluster(4, 100, Network::lossy(loss));
        sim.run_for(30 * SEC);
        let (before, since) = (sim.traffic(), sim.now());
        sim.run_for(120 * SEC);
        let node_seconds = (sim.now() - since).as_secs_f64() * 100.0;
        let traffic = sim.traffic() - before;
        let rate = traffic.bytes() as f64 / node_seconds;
        println!(
            "N=100, loss {loss}: a node sends {rate:.0} B/s ({:.0} in {:.1} datagrams, {:.0} in {:.2} stream messages)",
            traffic.datagram_bytes as f64 / node_seconds,
            traffic.datagrams as f64 / node_seconds,
            traffic.stream_bytes as f64 / node_seconds,
            traffic.stream_messages as f64 / node_seconds,
        );
        assert_eq!(sim.seen, [], "nothing happened, so nothing should be seen");
        assert!(rate <= budget, "budget exceeded: {rate:.0} B/s");
    }
}

#[test]
fn timers_and_queues_stay_bounded() {
    let mut sim = cluster(17, 20, lossy(0.3, false));
    for victim in 10..20 {
        sim.crash(victim, Crash::Host);
    }
    sim.run_for(120 * SEC);
    for node in 0..10 {
        let timers = sim.core_of(node).timers();
        assert!(timers < 100, "{timers} timers");
    }
}
