//! What is refused, and what an announced restart hides.

use std::sync::Arc;

use super::*;
use crate::member::handle::Refusal;
use crate::member::meta::{Extra, NodeMeta};
use crate::model::Roles;

fn said_by(src: Identity, incarnation: u16, message: Message<Identity>, extra: &Extra) -> Vec<u8> {
    let header = Header {
        src,
        src_incarnation: incarnation,
        dst: id(1, 1),
        message,
    };
    let mut bytes = Vec::new();
    wire::encode_header(&header, &extra.encode(), &mut bytes).unwrap();
    bytes
}

fn of_pool(pool: &str) -> Extra {
    Extra {
        pool: Some(pool.into()),
        ..Extra::default()
    }
}

fn restarting() -> Extra {
    Extra {
        restarting: Some(15 * SEC),
        ..Extra::default()
    }
}

fn claim(by: u8, updates: &[foca::Member<Identity>]) -> Vec<u8> {
    packet(id(by, 1), id(1, 1), Message::Gossip, updates)
}

fn liveness(core: &Core, node: u8) -> Liveness {
    let states = core.members();
    let state = states
        .iter()
        .find(|state| state.member.id == id(node, 1).node);
    state.expect("it is known").liveness
}

/// Sends what one core says to another, until neither says more.
fn deliver(from: &mut Core, to: &mut Core, now: Duration) {
    for output in outputs(from) {
        if let Output::Send { to: addr, packet } = output
            && addr == to.local().addr
        {
            to.handle_datagram(now, &packet);
        }
    }
}

#[test]
fn nodes_of_another_pool_are_refused_with_the_reason() {
    let mut core = core_with(|config| config.pool = "dc1".into());
    let announce = said_by(id(2, 1), 0, Message::Announce, &of_pool("dc2"));
    core.handle_datagram(SEC, &announce);
    assert_eq!(core.members(), []);
    assert_eq!(outputs(&mut core), [], "it is answered");
    let mut sender = Record::from(foca::Member::alive(id(2, 1)));
    sender.extra = of_pool("dc2");
    let refused = core.answer_sync(SEC, &stream::encode_state(&[sender.clone()]));
    let reason = refused.unwrap_err().to_string();
    assert!(reason.contains("dc1") && reason.contains("dc2"), "{reason}");
    assert_eq!(value(&core, |counters| &counters.dropped_pool), 2);

    sender.extra = of_pool("dc1");
    core.answer_sync(SEC, &stream::encode_state(&[sender]))
        .unwrap();
    core.handle_datagram(
        SEC,
        &said_by(id(3, 1), 0, Message::Announce, &Extra::default()),
    );
    assert_eq!(
        core.members().len(),
        2,
        "who does not say is an older version"
    );
}

#[test]
fn one_source_takes_five_members_down_in_a_minute_and_many_sources_all() {
    let mut core = knowing(40);
    let gone: Vec<_> = (20..=39)
        .map(|node| foca::Member::down(id(node, 1)))
        .collect();
    core.handle_datagram(SEC, &claim(2, &gone));
    let downs = |core: &Core| {
        (20..=39)
            .filter(|node| liveness(core, *node) == Liveness::Down)
            .count()
    };
    assert_eq!(downs(&core), 5);
    assert_eq!(value(&core, |counters| &counters.dropped_claims), 15);
    let asked = asks(&outputs(&mut core));
    assert!(
        asked.iter().any(|(_, to, _)| to.addr == id(39, 1).addr),
        "what is not believed is not looked into"
    );
    // A lost rack: others say so too.
    for source in 3..=5 {
        core.handle_datagram(SEC, &claim(source, &gone));
    }
    assert_eq!(downs(&core), 20);

    // What is no news costs no budget, and who says goodbye needs none.
    let mut core = knowing(40);
    for node in 20..=39 {
        let goodbye = foca::Member::new(id(node, 1), wire::LEFT, State::Down);
        core.handle_datagram(SEC, &claim(node, std::slice::from_ref(&goodbye)));
        core.handle_datagram(SEC, &claim(2, &[goodbye]));
    }
    assert_eq!(value(&core, |counters| &counters.dropped_claims), 0);
    assert_eq!(core.table.present(), 19);
}

#[test]
fn budgets_come_back_after_a_minute() {
    let mut core = knowing(40);
    let gone = |nodes: std::ops::Range<u8>| -> Vec<_> {
        nodes.map(|node| foca::Member::down(id(node, 1))).collect()
    };
    core.handle_datagram(SEC, &claim(3, &gone(20..26)));
    assert_eq!(value(&core, |counters| &counters.dropped_claims), 1);
    run(&mut core, 70 * SEC);
    core.handle_datagram(70 * SEC, &claim(3, &gone(26..31)));
    assert_eq!(value(&core, |counters| &counters.dropped_claims), 1);
}

#[test]
fn one_source_makes_us_rejoin_five_times_a_minute_at_the_most() {
    let mut core = knowing(3);
    for _ in 0..20 {
        let own = core.local().generation;
        let down = foca::Member::down(id(1, own));
        core.handle_datagram(SEC, &packet(id(2, 1), id(1, own), Message::Gossip, &[down]));
        let undead = packet(
            id(2, 1),
            id(1, core.local().generation),
            Message::TurnUndead,
            &[],
        );
        core.handle_datagram(SEC, &undead);
    }
    assert_eq!(value(&core, |counters| &counters.rejoins), 5);
}

#[test]
fn incarnations_that_jump_are_ignored() {
    let mut core = knowing(4);
    let suspect = |incarnation| foca::Member::new(id(2, 1), incarnation, State::Suspect);
    core.handle_datagram(SEC, &claim(3, &[suspect(101)]));
    assert!(!core.is_suspect(&id(2, 1), 101));
    core.handle_datagram(
        SEC,
        &said_by(id(2, 1), 60_000, Message::Gossip, &Extra::default()),
    );
    assert_eq!(core.table.get(id(2, 1).node).unwrap().incarnation, 0);
    let lie = foca::Member::new(id(1, 1), 65_000, State::Suspect);
    core.handle_datagram(SEC, &claim(3, &[lie]));
    assert_eq!(core.incarnation, 0, "we follow a lie about ourselves");
    assert_eq!(value(&core, |counters| &counters.dropped_jumps), 3);
    core.handle_datagram(SEC, &claim(3, &[suspect(100)]));
    assert!(core.is_suspect(&id(2, 1), 100));
    let left = foca::Member::new(id(4, 1), wire::LEFT, State::Down);
    core.handle_datagram(SEC, &claim(4, &[left]));
    assert_eq!(liveness(&core, 4), Liveness::Left, "a goodbye is no jump");
}

#[test]
fn evicted_nodes_are_neither_heard_nor_believed() {
    let mut core = knowing(4);
    core.evict(SEC, [id(2, 1).node]);
    assert_eq!(events(&mut core), [MemberEvent::Down(id(2, 1).node)]);
    core.handle_datagram(SEC, &claim(2, &[foca::Member::down(id(3, 1))]));
    core.handle_datagram(SEC, &claim(3, &[foca::Member::alive(id(2, 9))]));
    let sender = Record::from(foca::Member::alive(id(2, 9)));
    assert!(
        core.answer_sync(SEC, &stream::encode_state(&[sender]))
            .is_err()
    );
    assert_eq!(liveness(&core, 2), Liveness::Down);
    assert_eq!(liveness(&core, 3), Liveness::Alive);
    assert!(value(&core, |counters| &counters.dropped_evicted) >= 2);
    core.evict(SEC, []);
    core.handle_datagram(SEC, &packet(id(2, 9), id(1, 1), Message::Gossip, &[]));
    assert_eq!(liveness(&core, 2), Liveness::Alive, "it is forgiven");
}

/// Node 2 at another address, as a copy of its machine has it.
fn copy() -> Identity {
    Identity {
        addr: "198.51.100.2:8301".parse().unwrap(),
        ..id(2, 5)
    }
}

#[test]
fn a_copy_is_refused_while_the_original_answers() {
    let mut core = knowing(4);
    for bytes in [
        packet(copy(), id(1, 1), Message::Announce, &[]),
        claim(3, &[foca::Member::alive(copy())]),
    ] {
        core.handle_datagram(SEC, &bytes);
        assert_eq!(core.table.get(id(2, 1).node).unwrap().identity, id(2, 1));
    }
    let asked = asks(&outputs(&mut core));
    assert_eq!(asked.len(), 1, "the old address is asked once");
    assert_eq!(asked[0].1.addr, id(2, 1).addr);
    let state = stream::encode_state(&[foca::Member::alive(copy()).into()]);
    assert_eq!(core.answer_sync(SEC, &state), Err(Refusal::Busy.into()));
    core.handle_stream_reply(SEC, asked[0].0, &answer(id(2, 1), Seen::Acked));
    assert_eq!(
        core.answer_sync(SEC, &state),
        Err(Refusal::Copy(id(2, 1).addr).into())
    );
    core.handle_datagram(SEC, &packet(copy(), id(1, 1), Message::Ping(3), &[]));
    assert_eq!(core.table.get(id(2, 1).node).unwrap().identity, id(2, 1));
    assert_eq!(events(&mut core), []);
}

#[test]
fn a_node_that_moved_is_believed_when_nobody_answers_at_its_old_address() {
    for reply in [StreamReply::Refused, StreamReply::Timeout] {
        let mut core = knowing(4);
        core.handle_datagram(SEC, &packet(copy(), id(1, 1), Message::Announce, &[]));
        let asked = asks(&outputs(&mut core));
        core.handle_stream_reply(SEC, asked[0].0, &reply);
        let moved = Member {
            id: copy().node,
            addr: copy().addr,
            generation: copy().generation,
        };
        assert_eq!(events(&mut core), [MemberEvent::Up(moved)]);
        core.handle_datagram(SEC, &packet(copy(), id(1, 1), Message::Ping(3), &[]));
        assert_eq!(liveness(&core, 2), Liveness::Alive);
    }
}

#[test]
fn of_two_copies_the_one_that_nobody_knows_ends_and_names_both_addresses() {
    let mut known = knowing(3);
    let other = SocketAddr::from(([198, 51, 100, 1], 8301));
    let mut copy = core_with(|config| {
        config.advertise = other;
        config.generation = 9;
    });
    // A seed told it why it is refused.
    copy.add_seed(SEC, id(3, 1).addr);
    let sync = outputs(&mut copy)
        .into_iter()
        .find_map(|output| match output {
            Output::Ask {
                id,
                route: Route::Sync,
                ..
            } => Some(id),
            _ => None,
        });
    let sync = sync.unwrap_or_else(|| {
        copy.handle_timeout(copy.next_timeout().unwrap());
        outputs(&mut copy)
            .into_iter()
            .find_map(|output| match output {
                Output::Ask {
                    id,
                    route: Route::Sync,
                    ..
                } => Some(id),
                _ => None,
            })
            .expect("it joins")
    });
    let denied = StreamReply::Denied {
        reason: "a node with the same key answers".to_owned(),
        copy: Some(id(1, 1).addr),
    };
    copy.handle_stream_reply(SEC, sync, &denied);
    let said = outputs(&mut copy);
    let meeting = said.iter().find_map(|output| match output {
        Output::Ask {
            id: ask, to, body, ..
        } if to.addr == id(1, 1).addr => Some((*ask, body.clone())),
        _ => None,
    });
    let (ask, body) = meeting.expect("it asks the other");
    let answer = known.answer_ping(SEC, &body, 1).unwrap().unwrap();
    assert!(
        known.failure().is_none(),
        "the one that others know goes on"
    );
    copy.handle_stream_reply(SEC, ask, &StreamReply::Acked(answer));
    let failure = copy.failure().expect("the copy ends");
    assert!(
        failure.contains("192.0.2.1:8301") && failure.contains("198.51.100.1:8301"),
        "{failure}"
    );
    assert!(outputs(&mut copy).contains(&Output::Left));
    assert!(copy.answer_sync(SEC, &copy.state()).is_err());
}

#[test]
fn of_two_known_copies_the_later_one_ends() {
    let mut first = knowing(3);
    let later = Identity {
        addr: SocketAddr::from(([198, 51, 100, 1], 8301)),
        ..id(1, 9)
    };
    // Gossip brings the later one's claim.
    first.handle_datagram(SEC, &claim(3, &[foca::Member::alive(later)]));
    assert_eq!(
        first.local().generation,
        1,
        "it does not run after a claim that it did not look into"
    );
    let asked = asks(&outputs(&mut first));
    assert_eq!(
        asked[0].2,
        PingKind::Copy {
            known: true,
            started: 1
        }
    );
    // It answers that it ends.
    first.handle_stream_reply(SEC, asked[0].0, &answer(later, Seen::Acked));
    assert_eq!(first.local().generation, 10, "others must believe it again");
    assert!(first.failure().is_none());

    let mut second = knowing(3);
    let question = PingBody {
        from: later,
        target: id(1, 1),
        kind: PingKind::Copy {
            known: true,
            started: 0,
        },
    };
    second.answer_ping(SEC, &question.encode(), 1).unwrap();
    assert!(second.failure().is_some(), "it started later");
}

#[test]
fn a_claim_of_our_id_where_nobody_answers_is_outrun() {
    let mut core = knowing(3);
    let old = Identity {
        addr: SocketAddr::from(([198, 51, 100, 1], 8301)),
        ..id(1, 9)
    };
    core.handle_datagram(SEC, &claim(3, &[foca::Member::alive(old)]));
    let asked = asks(&outputs(&mut core));
    core.handle_stream_reply(SEC, asked[0].0, &StreamReply::Timeout);
    assert_eq!(core.local().generation, 10);
}

#[test]
fn an_announced_restart_hides_nothing_for_fifteen_seconds() {
    let mut core = knowing(4);
    core.handle_datagram(
        Duration::ZERO,
        &said_by(id(2, 1), 1, Message::Gossip, &restarting()),
    );
    let gone = [
        foca::Member::new(id(2, 1), 1, State::Suspect),
        foca::Member::new(id(2, 1), 1, State::Down),
    ];
    core.handle_datagram(Duration::ZERO, &claim(3, &gone[..1]));
    let about = |said: &[Output]| {
        said.iter()
            .filter(|output| matches!(output, Output::Event(event) if event.id() == id(2, 1).node))
            .count()
    };
    assert_eq!(about(&run(&mut core, 10 * SEC)), 0, "silence hid it");
    core.handle_datagram(10 * SEC, &claim(3, &gone[1..]));
    assert_eq!(
        about(&run(&mut core, 15 * SEC - Duration::from_millis(300))),
        0
    );
    assert_eq!(liveness(&core, 2), Liveness::Alive);
    let end = run(&mut core, 16 * SEC);
    assert_eq!(about(&end), 1);
    assert!(end.contains(&Output::Event(MemberEvent::Down(id(2, 1).node))));
}

#[test]
fn a_refused_port_waits_for_the_end_of_an_announced_restart() {
    let mut core = knowing(4);
    core.handle_datagram(
        Duration::ZERO,
        &said_by(id(2, 1), 1, Message::Gossip, &restarting()),
    );
    core.peer_closed(Duration::ZERO, id(2, 1).node);
    let first = asks(&outputs(&mut core));
    core.handle_stream_reply(Duration::ZERO, first[0].0, &StreamReply::Refused);
    let before = asks(&run(&mut core, 14 * SEC));
    assert!(before.iter().all(|(_, _, kind)| *kind != PingKind::Witness));
    let after = asks(&run(&mut core, 16 * SEC));
    assert!(after.iter().any(|(_, _, kind)| *kind == PingKind::Witness));
}

#[test]
fn the_next_life_after_an_announced_restart_is_like_any_other() {
    let mut core = knowing(4);
    core.handle_datagram(
        Duration::ZERO,
        &said_by(id(2, 1), 1, Message::Gossip, &restarting()),
    );
    core.handle_datagram(SEC, &packet(id(2, 2), id(1, 1), Message::Announce, &[]));
    core.handle_datagram(SEC, &claim(3, &[foca::Member::down(id(2, 2))]));
    assert_eq!(
        liveness(&core, 2),
        Liveness::Down,
        "its last life's restart hides it"
    );
}

#[test]
fn a_restart_is_told_to_others_and_passed_on() {
    let mut first = knowing(2);
    let mut second = core_with(|config| {
        (config.node, config.advertise) = (id(2, 1).node, id(2, 1).addr);
    });
    second.handle_datagram(
        Duration::ZERO,
        &packet(id(3, 1), id(2, 1), Message::Gossip, &[]),
    );
    outputs(&mut second);
    first.restart(Duration::ZERO, 60 * SEC);
    deliver(&mut first, &mut second, Duration::ZERO);
    assert_eq!(
        second.table.restarting_until(id(1, 1).node),
        Some(15 * SEC),
        "fifteen seconds at most"
    );
    // Its state, and with it its news, carry it on.
    let state = stream::decode_state(&second.state()).unwrap();
    let told = state
        .iter()
        .find(|record| record.member.id().node == id(1, 1).node);
    assert_eq!(told.unwrap().extra.restarting, Some(15 * SEC));
    while !outputs(&mut first).contains(&Output::Left) {
        let now = first.next_timeout().unwrap();
        first.handle_timeout(now);
        assert!(now < 2 * SEC, "it never ends");
    }
    assert!(first.failure().is_none());
}

#[test]
fn what_a_node_says_of_itself_comes_with_its_announce_and_is_passed_on() {
    let meta = NodeMeta {
        roles: Roles { server: true },
        zone: "rack-7".into(),
        version: "1.2.3".into(),
        ..NodeMeta::default()
    };
    let mut joiner = core_with(|config| config.meta = meta.clone());
    let mut seed = core_with(|config| {
        (config.node, config.advertise) = (id(2, 1).node, id(2, 1).addr);
    });
    joiner.add_seed(Duration::ZERO, id(2, 1).addr);
    joiner.handle_timeout(Duration::ZERO);
    deliver(&mut joiner, &mut seed, Duration::ZERO);
    assert_eq!(seed.meta(id(1, 1).node), Some(Arc::new(meta.clone())));
    let state = stream::decode_state(&seed.state()).unwrap();
    let told = state
        .iter()
        .find(|record| record.member.id().node == id(1, 1).node);
    assert_eq!(told.unwrap().extra.meta.as_deref(), Some(&meta));
}

#[test]
fn a_full_pool_lets_nobody_else_in_and_says_so() {
    let mut core = core_with(|config| config.pool_limit = 3);
    for node in 2..=4 {
        core.handle_datagram(SEC, &packet(id(node, 1), id(1, 1), Message::Announce, &[]));
    }
    assert_eq!(core.members().len(), 2);
    let joiner = stream::encode_state(&[foca::Member::alive(id(4, 1)).into()]);
    assert_eq!(core.answer_sync(SEC, &joiner), Err(Refusal::Full(3).into()));
    // One leaves, one comes.
    let left = foca::Member::new(id(2, 1), wire::LEFT, State::Down);
    core.handle_datagram(SEC, &claim(2, &[left]));
    core.answer_sync(SEC, &joiner).unwrap();
    assert_eq!(liveness(&core, 4), Liveness::Alive);
}

#[test]
fn a_node_that_others_do_not_reach_finds_out() {
    let mut core = knowing(4);
    core.check_reach(None);
    for tries in 1..=2 {
        let asked = asks(&outputs(&mut core));
        let (ask, to, _) = asked
            .iter()
            .find(|(_, _, kind)| *kind == PingKind::Witness)
            .expect("a member is asked to try");
        let by = id(to.node.unwrap().0[0], 1);
        core.handle_stream_reply(SEC, *ask, &answer(by, Seen::Gone));
        assert_eq!(value(&core, |counters| &counters.unreachable), tries);
    }
    assert!(asks(&outputs(&mut core)).is_empty(), "two are enough");
}

#[test]
fn a_node_that_has_joined_asks_whether_it_is_reached() {
    let mut core = core_with(|config| config.seeds = vec![id(2, 1).addr]);
    core.handle_timeout(Duration::ZERO);
    let sync = outputs(&mut core)
        .into_iter()
        .find_map(|output| match output {
            Output::Ask {
                id,
                route: Route::Sync,
                ..
            } => Some(id),
            _ => None,
        });
    let state = state_of(&[foca::Member::alive(id(3, 1))]);
    core.handle_stream_reply(
        Duration::ZERO,
        sync.unwrap(),
        &StreamReply::Acked(state.into()),
    );
    let asked = asks(&run(&mut core, 11 * SEC));
    assert!(asked.iter().any(|(_, _, kind)| *kind == PingKind::Witness));
}

#[test]
fn a_newer_protocol_is_refused_with_the_reason() {
    let mut core = core();
    let mut sender = Record::from(foca::Member::alive(id(2, 1)));
    sender.extra.meta = Some(Arc::new(NodeMeta {
        protocols: (PROTOCOLS.1 + 1, PROTOCOLS.1 + 2),
        ..NodeMeta::default()
    }));
    let refused = core.answer_sync(SEC, &stream::encode_state(&[sender]));
    assert_eq!(refused, Err(Refusal::Protocol(PROTOCOLS.1 + 1).into()));
}
