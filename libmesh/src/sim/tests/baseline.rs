//! That the simulator shows the faults of plain foca, which are why our core exists.

use super::*;

/// The fault of foca 2.0 that `suspicion.rs` guards.
#[test]
fn plain_foca_makes_healthy_nodes_rejoin_at_5_percent_loss() {
    let mut sim = Sim::established(seed(61), Network::lossy(0.05), &Kind::Plain(100), 100);
    sim.run_for(300 * SEC);
    println!("plain foca: {} rejoins in 5 minutes", rejoins(&sim));
    assert!(rejoins(&sim) > 5);
}

#[test]
fn plain_foca_needs_several_times_as_long_for_a_lost_host() {
    let mut sim = Sim::established(seed(62), Network::default(), &Kind::Plain(100), 100);
    assert!(sim.agrees());
    let since = sim.now();
    sim.crash(50, Crash::Host);
    sim.run_for(30 * SEC);
    let times = sim.times(50, What::Down, since);
    println!("plain foca: p50 {:?}", times.percentile(50));
    assert_eq!(times.len(), 99);
    assert!(times.percentile(50) > 7 * SEC);
}
