//! The bars of membership, in virtual time. Each prints what it measured.
//!
//! Files by what goes wrong: `detection` (somebody is gone), `loss` (packets are), `faults` (links, pauses and clocks
//! are), `joining` (storms, partitions, restarts), `thousand` (all of it at N = 1,000), `baseline` (plain foca).

mod baseline;
mod detection;
mod faults;
mod joining;
mod loss;
mod thousand;

use super::*;
use crate::member::Preset;

const SEC: Duration = Duration::from_secs(1);

fn mesh() -> Kind {
    Kind::Mesh(Preset::lan())
}

/// A cluster that agrees, with nothing seen so far.
fn cluster(default_seed: u64, nodes: usize, network: Network) -> Sim {
    let calm = Network {
        streams: true,
        loss: 0.0,
        ..network
    };
    let mut sim = Sim::established(seed(default_seed), calm, &mesh(), nodes);
    assert!(sim.agrees(), "the cluster does not agree to begin with");
    sim.network = network;
    sim
}

fn lossy(loss: f64, streams: bool) -> Network {
    Network {
        loss,
        streams,
        ..Network::default()
    }
}

fn rejoins(sim: &Sim) -> u64 {
    sim.sum(|counters| &counters.rejoins)
}

/// That nobody healthy was harmed: nobody declared down, nobody with a new generation, and all agree soon.
fn assert_unharmed(sim: &mut Sim) {
    assert_eq!(sim.departures(), 0, "a healthy node was declared down");
    assert_eq!(rejoins(sim), 0, "a healthy node was told that it is down");
    assert!(
        sim.run_until(15 * SEC, Sim::agrees).is_some(),
        "some healthy node is not shown alive by all"
    );
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut sim = Sim::new(seed, Network::lossy(0.1));
        sim.start_many(&mesh(), 10, SEC);
        sim.run_for(5 * SEC);
        sim.crash(3, Crash::Host);
        sim.run_for(20 * SEC);
        (sim.seen.clone(), sim.traffic())
    };
    assert_eq!(run(11), run(11));
    assert_ne!(run(11), run(12));
}
