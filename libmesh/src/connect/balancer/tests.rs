use super::*;

fn endpoint(n: u8) -> Endpoint {
    Endpoint {
        id: n.to_string().into(),
        addr: SocketAddr::from(([127, 0, 0, n], 21000)),
        service: ServiceName::parse("db").unwrap(),
        version: None,
        weight: 1,
        distance: 1,
        suspect: false,
        part: 0,
    }
}

fn balancer(endpoints: impl IntoIterator<Item = Endpoint>) -> Balancer {
    let balancer = Balancer::new();
    balancer.set(endpoints.into_iter().collect());
    balancer
}

/// How often each endpoint is picked in a thousand tries.
fn shares(balancer: &Balancer, now: Instant) -> Vec<usize> {
    let ends = balancer.endpoints();
    let mut counts = vec![0; ends.len()];
    for _ in 0..1000 {
        let pick = balancer.pick(&[], now).unwrap();
        counts[ends.iter().position(|end| end == pick.endpoint()).unwrap()] += 1;
    }
    counts
}

#[test]
fn the_faster_of_two_is_preferred_and_a_slow_one_gets_its_next_chance() {
    let balancer = balancer([endpoint(1), endpoint(2)]);
    let now = Instant::now();
    for _ in 0..20 {
        let pick = balancer.pick(&[], now).unwrap();
        let slow = pick.endpoint().id.as_ref() == "1";
        pick.connected(now + Duration::from_millis(if slow { 900 } else { 1 }));
    }
    let later = now + Duration::from_secs(1);
    assert_eq!(shares(&balancer, later)[0], 0);
    assert!(shares(&balancer, later + 10 * DECAY)[0] > 0);
}

#[test]
fn load_is_spread_by_weight() {
    let heavy = Endpoint {
        weight: 3,
        ..endpoint(1)
    };
    let balancer = balancer([heavy, endpoint(2)]);
    let now = Instant::now();
    let held: Vec<Pick> = (0..400).map(|_| balancer.pick(&[], now).unwrap()).collect();
    let heavy = held
        .iter()
        .filter(|pick| pick.endpoint().weight == 3)
        .count();
    assert!((280..=320).contains(&heavy), "{heavy}");
}

#[test]
fn three_failures_in_a_row_eject_and_time_brings_back() {
    let balancer = balancer([endpoint(1), endpoint(2)]);
    let now = Instant::now();
    let addr = |n: u8| endpoint(n).addr;
    for _ in 0..FAILURES {
        balancer.pick(&[addr(2)], now).unwrap().failed(now);
    }
    assert_eq!(shares(&balancer, now), [0, 1000]);
    let back = now + EJECTION.0;
    assert!(shares(&balancer, back)[0] > 0);
    // One more failure ejects again, for longer.
    balancer.pick(&[addr(2)], back).unwrap().failed(back);
    assert_eq!(shares(&balancer, back + EJECTION.0)[0], 0);
    assert!(shares(&balancer, back + EJECTION.0 * 2)[0] > 0);
    // The history stays with the endpoint when the list is replaced.
    balancer.set(vec![endpoint(1), endpoint(2), endpoint(3)]);
    assert_eq!(shares(&balancer, back)[0], 0);
}

#[test]
fn the_nearest_fit_endpoint_serves_and_the_unfit_one_is_better_than_none() {
    let near = Endpoint {
        distance: 0,
        ..endpoint(1)
    };
    let suspect = Endpoint {
        suspect: true,
        ..near.clone()
    };
    let now = Instant::now();
    assert_eq!(
        shares(&balancer([near.clone(), endpoint(2)]), now),
        [1000, 0]
    );
    assert_eq!(
        shares(&balancer([suspect.clone(), endpoint(2)]), now),
        [0, 1000]
    );
    assert_eq!(shares(&balancer([suspect]), now), [1000]);
    let drained = Endpoint {
        weight: 0,
        ..endpoint(1)
    };
    assert_eq!(
        shares(&balancer([drained.clone(), endpoint(2)]), now),
        [0, 1000]
    );
    assert_eq!(shares(&balancer([drained]), now), [1000]);
    assert!(balancer([near]).pick(&[endpoint(1).addr], now).is_none());
    assert!(balancer([]).pick(&[], now).is_none());
}

#[test]
fn calls_are_split_by_the_weights_of_the_parts() {
    let balancer = Balancer::new();
    let of = |n, part| Endpoint {
        part,
        ..endpoint(n)
    };
    let split = Split {
        weights: vec![9_000, 1_000, 0],
        connect_timeout: None,
    };
    balancer.set_split(vec![of(1, 0), of(2, 0), of(3, 1), of(4, 2)], split);
    let now = Instant::now();
    let mut taken = [0_u32; 3];
    for _ in 0..10_000 {
        let pick = balancer.pick(&[], now).unwrap();
        taken[usize::from(pick.endpoint().part)] += 1;
    }
    assert!((8_700..9_300).contains(&taken[0]), "{taken:?}");
    assert_eq!(taken[2], 0);
    // What cannot be reached in one part is tried in the others; in the end in that without weight.
    let tried: Vec<_> = [1, 2, 3].map(|n| endpoint(n).addr).into();
    let part = |except: &[SocketAddr]| balancer.pick(except, now).unwrap().endpoint().part;
    assert_eq!(part(&tried[..2]), 1);
    assert_eq!(part(&tried), 2);
}
