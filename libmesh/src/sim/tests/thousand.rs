//! N = 1,000: the bars of a datacenter.

use super::*;

const N: usize = 1000;

#[test]
fn a_lost_host_among_a_thousand_is_down_everywhere_within_7_seconds() {
    let mut sim = cluster(30, N, Network::lossy(0.05));
    // Exchanges of state are frequent at first.
    sim.run_for(30 * SEC);
    let (before, since) = (sim.traffic(), sim.now());
    sim.run_for(10 * SEC);
    let node_seconds = (sim.now() - since).as_secs_f64() * N as f64;
    let rate = (sim.traffic() - before).bytes() as f64 / node_seconds;
    assert_eq!(sim.seen, [], "nothing happened, so nothing should be seen");
    let mut all = Times::default();
    for (ended, victim) in [100, 300, 500, 900].into_iter().enumerate() {
        let since = sim.now();
        sim.crash(victim, Crash::Host);
        sim.run_for(10 * SEC);
        let times = sim.times(victim, What::Down, since);
        assert_eq!(times.len(), N - 1 - ended, "somebody never learned of it");
        all.extend(times);
    }
    let (p50, p99) = (all.percentile(50), all.percentile(99));
    println!(
        "N=1000, 5 % loss: {rate:.0} B/s a node; host gone: p50 {p50:?} p99 {p99:?} last {:?}",
        all.last()
    );
    assert_eq!(
        sim.departures(),
        all.len(),
        "somebody healthy was declared down"
    );
    assert_eq!(rejoins(&sim), 0);
    assert!(p50 <= 6 * SEC && p99 <= 7 * SEC);
    assert!(rate <= 1000.0);
}

#[test]
fn a_killed_process_among_a_thousand_is_down_everywhere_within_3_seconds() {
    let mut sim = cluster(31, N, Network::lossy(0.02));
    let mut all = Times::default();
    for victim in [100, 300, 500] {
        let since = sim.now();
        sim.crash(victim, Crash::Process);
        sim.run_for(5 * SEC);
        all.extend(sim.times(victim, What::Down, since));
    }
    let (p50, p99) = (all.percentile(50), all.percentile(99));
    println!(
        "N=1000: process gone: first {:?} p50 {p50:?} p99 {p99:?} last {:?}",
        all.first(),
        all.last()
    );
    assert_eq!(sim.departures(), 999 + 998 + 997);
    assert!(p50 <= SEC * 3 / 2 && p99 <= 3 * SEC);
}

#[test]
fn nobody_among_a_thousand_goes_down_at_20_percent_loss() {
    let mut sim = cluster(32, N, Network::lossy(0.2));
    sim.run_for(60 * SEC);
    assert_unharmed(&mut sim);
}

#[test]
fn a_join_storm_of_a_thousand_completes_within_15_seconds() {
    let mut sim = Sim::new(seed(33), Network::default());
    sim.start_many(&mesh(), N, SEC);
    let took = sim.run_until(15 * SEC, Sim::agrees);
    println!("join of 1000 in 1 s complete {took:?} after the last start");
    assert!(took.is_some(), "{:.4} of all pairs", sim.known_pairs());
}

#[test]
fn a_half_half_partition_of_a_thousand_heals_within_30_seconds() {
    let mut sim = cluster(34, N, Network::default());
    sim.partition(|node| u32::from(node < N / 2));
    sim.run_for(60 * SEC);
    sim.heal();
    let took = sim.run_until(30 * SEC, Sim::agrees);
    println!("N=1000: healed {took:?} after a partition of 60 s");
    assert!(took.is_some(), "{:.4} of all pairs", sim.known_pairs());
}
