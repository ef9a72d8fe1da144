use std::sync::atomic::Ordering;

use bytes::BufMut;
use foca::{Header, State};
use proptest::prelude::*;

use super::*;

mod hostile;

use crate::member::Preset;
use crate::member::digest::{Digest, Parts};
use crate::member::stream::{PingAnswer, PingBody, PingKind, Seen};
use crate::member::wire::tests::{identity, member};
use crate::model::Liveness;

const SEC: Duration = Duration::from_secs(1);

fn id(node: u8, generation: u64) -> Identity {
    Identity {
        node: NodeId([node; 16]),
        addr: SocketAddr::from(([192, 0, 2, node], 8301)),
        generation,
    }
}

fn core_with(change: impl FnOnce(&mut Config)) -> Core {
    let own = id(1, 1);
    let mut config = Config::lan(own.node, own.addr, own.generation);
    change(&mut config);
    Core::new(&config, Duration::ZERO, 7, Arc::default())
}

fn core() -> Core {
    core_with(|_| ())
}

fn outputs(core: &mut Core) -> Vec<Output> {
    std::iter::from_fn(|| core.poll_output()).collect()
}

fn events(core: &mut Core) -> Vec<MemberEvent> {
    let events = outputs(core).into_iter().filter_map(|output| match output {
        Output::Event(event) => Some(event),
        _ => None,
    });
    events.collect()
}

fn asks(outputs: &[Output]) -> Vec<(u64, Peer, PingKind)> {
    let asks = outputs.iter().filter_map(|output| match output {
        Output::Ask {
            id,
            to,
            route: Route::Ping,
            body,
            ..
        } => Some((*id, *to, PingBody::decode(body).unwrap().kind)),
        _ => None,
    });
    asks.collect()
}

/// A packet from `src` to `dst`.
fn packet(
    src: Identity,
    dst: Identity,
    message: Message<Identity>,
    updates: &[foca::Member<Identity>],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = Header {
        src,
        src_incarnation: 0,
        dst,
        message,
    };
    wire::encode_header(&header, &[], &mut bytes).unwrap();
    if !updates.is_empty() {
        bytes.put_u16(updates.len() as u16);
        updates
            .iter()
            .for_each(|update| wire::encode_member(update, &mut bytes));
    }
    bytes
}

/// A core that knows the members 2 to `last`.
fn knowing(last: u8) -> Core {
    let mut core = core();
    for node in 2..=last {
        core.handle_datagram(
            Duration::ZERO,
            &packet(id(node, 1), id(1, 1), Message::Gossip, &[]),
        );
    }
    outputs(&mut core);
    core
}

/// A full state as node 2 sends it.
fn state_of(members: &[foca::Member<Identity>]) -> Vec<u8> {
    let sender = foca::Member::alive(id(2, 1));
    let records: Vec<Record> = std::iter::once(&sender)
        .chain(members)
        .map(|member| Record::from(member.clone()))
        .collect();
    stream::encode_state(&records)
}

fn value(core: &Core, counter: impl Fn(&Counters) -> &std::sync::atomic::AtomicU64) -> u64 {
    counter(&core.counters).load(Ordering::Relaxed)
}

fn answer(by: Identity, seen: Seen) -> StreamReply {
    StreamReply::Acked(
        PingAnswer {
            by,
            seen,
            packets: Vec::new(),
        }
        .encode(),
    )
}

/// Lets time pass for a core until `end`, while all members but the second answer its pings; what came out.
fn run(core: &mut Core, end: Duration) -> Vec<Output> {
    let mut said = outputs(core);
    while let Some(now) = core.next_timeout().filter(|next| *next <= end) {
        core.handle_timeout(now);
        let news = outputs(core);
        for output in &news {
            let Output::Send { packet: ping, .. } = output else {
                continue;
            };
            let header = wire::decode_packet(ping).unwrap().header;
            if let Message::Ping(number) = header.message
                && header.dst.node != id(2, 1).node
            {
                let ack = packet(header.dst, id(1, 1), Message::Ack(number), &[]);
                core.handle_datagram(now, &ack);
            }
        }
        said.extend(news);
        said.extend(outputs(core));
    }
    said
}

/// Member 2 is refused at the start; the questions of the second look, our own first.
fn refused(core: &mut Core) -> (Vec<u64>, Duration) {
    core.peer_closed(Duration::ZERO, id(2, 1).node);
    let first = asks(&outputs(core));
    assert_eq!(first.len(), 1);
    core.handle_stream_reply(Duration::ZERO, first[0].0, &StreamReply::Refused);
    let patience = Preset::lan().refusal_patience;
    let early = run(core, patience - Duration::from_millis(1));
    let witness = |(_, _, kind): &(u64, Peer, PingKind)| *kind == PingKind::Witness;
    assert!(
        !asks(&early).iter().any(witness),
        "others are troubled while a restart may be under way"
    );
    let shown = |output: &Output| matches!(output, Output::Event(MemberEvent::Suspect(node) | MemberEvent::Down(node)) if *node == id(2, 1).node);
    assert!(!early.iter().any(shown), "it is missed within a second");
    let look = asks(&run(core, patience));
    let own = look
        .iter()
        .find(|(_, to, kind)| to.addr == id(2, 1).addr && !witness(&(0, *to, kind.clone())))
        .expect("it is looked at again");
    let mut questions = vec![own.0];
    questions.extend(look.iter().filter(|it| witness(it)).map(|(id, ..)| *id));
    (questions, patience)
}

#[test]
fn a_refused_port_is_looked_at_again_and_needs_a_second_witness() {
    let mut core = knowing(4);
    let (questions, now) = refused(&mut core);
    assert_eq!(questions.len(), 3, "two others are asked");
    core.handle_stream_reply(now, questions[0], &StreamReply::Refused);
    core.handle_stream_reply(now, questions[1], &answer(id(3, 1), Seen::Silent));
    assert_eq!(events(&mut core), []);
    core.handle_stream_reply(now, questions[2], &answer(id(4, 1), Seen::Gone));
    assert_eq!(events(&mut core), [MemberEvent::Down(id(2, 1).node)]);
    assert_eq!(value(&core, |counters| &counters.declared_refused), 1);
}

#[test]
fn one_fresh_packet_cancels_a_refused_port() {
    for before in [true, false] {
        let mut core = knowing(4);
        let fresh = packet(id(2, 1), id(1, 1), Message::Gossip, &[]);
        let (questions, now) = refused(&mut core);
        if before {
            core.handle_datagram(now, &fresh);
        }
        core.handle_stream_reply(now, questions[0], &StreamReply::Refused);
        if !before {
            core.handle_datagram(now, &fresh);
        }
        for ask in &questions[1..] {
            core.handle_stream_reply(now, *ask, &answer(id(3, 1), Seen::Gone));
        }
        assert_eq!(
            events(&mut core),
            [],
            "a firewall that rejects killed a node that answers"
        );
    }
}

#[test]
fn a_witness_that_is_answered_clears_the_member() {
    let mut core = knowing(4);
    let (questions, now) = refused(&mut core);
    core.handle_stream_reply(now, questions[0], &StreamReply::Refused);
    core.handle_stream_reply(now, questions[1], &answer(id(3, 1), Seen::Acked));
    core.handle_stream_reply(now, questions[2], &answer(id(4, 1), Seen::Gone));
    assert_eq!(events(&mut core), []);
}

#[test]
fn witnesses_alone_take_nobody_down_whom_the_second_look_finds() {
    let mut core = knowing(4);
    let (questions, now) = refused(&mut core);
    core.handle_stream_reply(now, questions[1], &answer(id(3, 1), Seen::Gone));
    core.handle_stream_reply(now, questions[2], &answer(id(4, 1), Seen::Gone));
    assert_eq!(events(&mut core), []);
    core.handle_stream_reply(now, questions[0], &answer(id(2, 2), Seen::Acked));
    assert_eq!(events(&mut core), [], "it restarted and answers");
}

#[test]
fn of_two_nodes_the_second_refusal_decides() {
    let mut core = knowing(2);
    let (questions, now) = refused(&mut core);
    assert_eq!(questions.len(), 1, "there is nobody else to ask");
    core.handle_stream_reply(now, questions[0], &StreamReply::Refused);
    assert_eq!(events(&mut core), [MemberEvent::Down(id(2, 1).node)]);
}

#[test]
fn another_node_at_its_address_shows_that_a_member_is_gone() {
    let mut core = knowing(3);
    let (questions, now) = refused(&mut core);
    let other = Identity {
        node: NodeId([9; 16]),
        ..id(2, 5)
    };
    core.handle_stream_reply(now, questions[0], &answer(other, Seen::Acked));
    core.handle_stream_reply(now, questions[1], &answer(id(3, 1), Seen::Gone));
    assert_eq!(events(&mut core), [MemberEvent::Down(id(2, 1).node)]);
}

#[test]
fn an_answer_that_a_stall_swallowed_takes_nobody_down() {
    let mut core = knowing(4);
    let suspect = foca::Member::new(id(2, 1), 0, State::Suspect);
    core.suspicions.insert(id(2, 1).node, (id(2, 1), 0));
    core.handle_datagram(
        SEC,
        &packet(id(3, 1), id(1, 1), Message::Gossip, &[suspect]),
    );
    outputs(&mut core);
    assert!(core.confirm(id(2, 1), 0, 0));
    let (question, ..) = asks(&outputs(&mut core))[0].clone();
    // The process is stopped for a while; then the question's time is over.
    core.handle_timeout(30 * SEC);
    outputs(&mut core);
    core.handle_stream_reply(30 * SEC, question, &StreamReply::Timeout);
    assert_eq!(events(&mut core), [], "it was blamed for our sleep");
    assert!(core.is_suspect(&id(2, 1), 0), "and nobody asks again");
}

#[test]
fn a_witness_asks_members_only_and_tells_what_it_saw() {
    let mut core = knowing(3);
    let question = |target| {
        PingBody {
            from: id(2, 1),
            target,
            kind: PingKind::Witness,
        }
        .encode()
    };
    assert_eq!(core.answer_ping(SEC, &question(id(77, 1)), 1), Ok(None));
    let said = outputs(&mut core);
    assert!(
        asks(&said).is_empty(),
        "it connects to an address of the asker's choice"
    );
    let silent = PingAnswer {
        by: id(1, 1),
        seen: Seen::Silent,
        packets: Vec::new(),
    }
    .encode();
    assert_eq!(
        said,
        [Output::Answer {
            token: 1,
            body: silent
        }]
    );

    assert_eq!(core.answer_ping(SEC, &question(id(3, 1)), 2), Ok(None));
    let asked = asks(&outputs(&mut core));
    core.handle_stream_reply(SEC, asked[0].0, &StreamReply::Refused);
    let gone = PingAnswer {
        by: id(1, 1),
        seen: Seen::Gone,
        packets: Vec::new(),
    }
    .encode();
    assert_eq!(
        outputs(&mut core),
        [Output::Answer {
            token: 2,
            body: gone
        }]
    );
}

#[test]
fn a_suspicion_told_over_the_stream_is_refuted_in_the_answer() {
    let mut core = knowing(3);
    let kind = PingKind::Suspicion(0);
    let body = PingBody {
        from: id(2, 1),
        target: id(1, 1),
        kind,
    }
    .encode();
    let reply = core.answer_ping(SEC, &body, 1).unwrap().unwrap();
    let packets = PingAnswer::decode(&reply).unwrap().packets;
    let incarnations: Vec<_> = packets
        .iter()
        .map(|packet| wire::decode_packet(packet).unwrap().header.src_incarnation)
        .collect();
    assert!(incarnations.contains(&1), "{incarnations:?}");
}

#[test]
fn a_ping_over_the_stream_is_answered_there() {
    let mut core = knowing(2);
    let ping = packet(id(2, 1), id(1, 1), Message::Ping(9), &[]).into();
    let body = PingBody {
        from: id(2, 1),
        target: id(1, 1),
        kind: PingKind::Ping(ping),
    }
    .encode();
    let reply = core.answer_ping(SEC, &body, 1).unwrap().unwrap();
    let packets = PingAnswer::decode(&reply).unwrap().packets;
    assert_eq!(
        wire::decode_packet(&packets[0]).unwrap().header.message,
        Message::Ack(9)
    );

    // To an earlier life of ours: we say who we are now.
    let ping = packet(id(2, 1), id(1, 0), Message::Ping(9), &[]).into();
    let body = PingBody {
        from: id(2, 1),
        target: id(1, 0),
        kind: PingKind::Ping(ping),
    }
    .encode();
    let reply = core.answer_ping(SEC, &body, 1).unwrap().unwrap();
    let packets = PingAnswer::decode(&reply).unwrap().packets;
    assert_eq!(
        wire::decode_packet(&packets[0]).unwrap().header.message,
        Message::Announce
    );
}

#[test]
fn members_beyond_the_bound_are_not_let_in() {
    let mut core = core_with(|config| config.max_members = 3);
    let many: Vec<_> = (3..40)
        .map(|node| foca::Member::alive(id(node, 1)))
        .collect();
    core.handle_datagram(
        SEC,
        &packet(id(2, 1), id(1, 1), Message::Gossip, &many[..20]),
    );
    assert_eq!(core.members().len(), 0);
    assert_eq!(value(&core, |counters| &counters.dropped_full), 1);
    core.answer_sync(SEC, &state_of(&many)).unwrap();
    assert_eq!(core.members().len(), 3);
    core.handle_datagram(SEC, &packet(id(3, 1), id(1, 1), Message::Gossip, &[]));
    assert_eq!(
        value(&core, |counters| &counters.dropped_full),
        1 + 35,
        "who is known is heard"
    );
}

#[test]
fn a_lie_about_our_generation_is_not_followed() {
    let mut core = knowing(2);
    let lie = foca::Member::alive(id(1, u64::MAX - 1));
    core.handle_datagram(SEC, &packet(id(2, 1), id(1, 1), Message::Gossip, &[lie]));
    assert_eq!(core.local().generation, 1);
    let truth = foca::Member::alive(id(1, 1_000_000));
    core.handle_datagram(SEC, &packet(id(2, 1), id(1, 1), Message::Gossip, &[truth]));
    assert_eq!(core.local().generation, 1_000_001);
    assert!(outputs(&mut core).contains(&Output::Local(core.local())));
}

#[test]
fn the_dead_are_forgotten_after_their_time() {
    let mut core = core_with(|config| config.forget_after = 3600 * SEC);
    let updates = [foca::Member::down(id(3, 1)), foca::Member::alive(id(4, 1))];
    core.handle_datagram(SEC, &packet(id(2, 1), id(1, 1), Message::Gossip, &updates));
    let mut now = SEC;
    let mut forgotten = None;
    while now < 3800 * SEC {
        now = core.next_timeout().unwrap();
        core.handle_timeout(now);
        // Keep member 2 alive.
        core.handle_datagram(now, &packet(id(2, 1), id(1, 1), Message::Gossip, &[]));
        if outputs(&mut core).contains(&Output::Forgotten(id(3, 1).node)) {
            forgotten = Some(now);
        }
    }
    assert!(
        forgotten.is_some_and(|at| at >= 3600 * SEC && at <= 3700 * SEC),
        "{forgotten:?}"
    );
    assert!(
        core.members()
            .iter()
            .all(|state| state.member.id != id(3, 1).node)
    );
}

#[test]
fn a_goodbye_is_said_over_datagrams_and_streams_and_nothing_is_heard_after() {
    let mut core = knowing(4);
    core.leave(SEC);
    let said = outputs(&mut core);
    assert!(said.iter().any(|output| matches!(
        output,
        Output::Ask {
            route: Route::Sync,
            ..
        }
    )));
    let goodbye = said.iter().any(|output| match output {
        Output::Send { packet, .. } => {
            let updates = wire::decode_packet(packet).unwrap().updates;
            updates
                .iter()
                .any(|update| update.member == foca::Member::new(id(1, 1), wire::LEFT, State::Down))
        }
        _ => false,
    });
    assert!(goodbye, "{said:?}");
    let gone = foca::Member::new(id(1, 1), wire::LEFT, State::Down);
    assert!(stream::decode_state(&core.state()).unwrap()[0].member == gone);
    core.handle_datagram(
        SEC,
        &packet(id(2, 1), id(1, 1), Message::TurnUndead, &[gone]),
    );
    assert_eq!(
        core.local().generation,
        1,
        "it came back from its own goodbye"
    );
    assert!(core.answer_sync(SEC, &core.state()).is_err());
    while !outputs(&mut core).contains(&Output::Left) {
        let now = core.next_timeout().unwrap();
        core.handle_timeout(now);
        assert!(now < 10 * SEC, "it never ends");
    }
}

#[test]
fn presets_leave_time_for_suspicion() {
    for preset in [Preset::lan(), Preset::wan()] {
        assert!(preset.probe_rtt * 2 < preset.probe_period);
        let fixed = preset.probe_period + preset.confirm_timeout;
        assert!(preset.suspect_to_down > fixed * 2, "{preset:?}");
        assert_eq!(
            foca_config(&preset, 50).suspect_to_down_after,
            preset.suspect_to_down - fixed
        );
    }
    let transmissions = |members| foca_config(&Preset::lan(), members).max_transmissions.get();
    assert_eq!(
        (transmissions(1), transmissions(50), transmissions(5000)),
        (10, 10, 19)
    );
}

#[test]
fn news_is_repeated_more_often_in_a_larger_cluster() {
    let mut core = core();
    let many: Vec<_> = (2..=200)
        .map(|node| foca::Member::alive(id(node, 1)))
        .collect();
    core.answer_sync(SEC, &state_of(&many)).unwrap();
    assert_eq!(core.tuned_for, 200);
    for node in 2..=151 {
        // Their own word.
        let gone = Record::from(foca::Member::down(id(node, 1)));
        core.answer_sync(SEC, &stream::encode_state(&[gone]))
            .unwrap();
    }
    assert_eq!(core.tuned_for, 50);
    assert_eq!(
        core.members()
            .iter()
            .filter(|state| state.liveness == Liveness::Alive)
            .count(),
        49
    );
}

/// Identities that collide with ours and with each other.
fn known_identity() -> impl Strategy<Value = Identity> {
    prop_oneof![
        (1u8..5, 0u64..3).prop_map(|(node, generation)| id(node, generation)),
        identity()
    ]
}

fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let member = prop_oneof![
        member(),
        (known_identity(), 0u16..3, 0..3usize).prop_map(|(id, incarnation, state)| {
            let state = [State::Alive, State::Suspect, State::Down][state];
            foca::Member::new(id, incarnation, state)
        })
    ];
    let updates = proptest::collection::vec(member, 0..6);
    let from = (known_identity(), known_identity(), known_identity());
    (from, 0..11usize, 0u8..4, updates).prop_map(
        |((src, dst, third), kind, probe_number, updates)| {
            let message = match kind {
                0 => Message::Ping(probe_number),
                1 => Message::Ack(probe_number),
                2 => Message::PingReq {
                    target: third,
                    probe_number,
                },
                3 => Message::IndirectPing {
                    origin: third,
                    probe_number,
                },
                4 => Message::IndirectAck {
                    target: third,
                    probe_number,
                },
                5 => Message::ForwardedAck {
                    origin: third,
                    probe_number,
                },
                6 => return packet(src, dst, Message::Announce, &[]),
                7 => Message::Feed,
                8 => Message::Gossip,
                9 => Message::Broadcast,
                _ => Message::TurnUndead,
            };
            packet(src, dst, message, &updates)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a holder of the key sends: no panic, bounded work, and the table stays foca's.
    #[test]
    fn no_sequence_of_packets_breaks_a_core(
        packets in proptest::collection::vec((any_packet(), 0u64..400, 0..6u8), 0..40),
        garbage in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut core = knowing(3);
        let mut now = Duration::ZERO;
        for (bytes, after, what) in packets {
            now += Duration::from_millis(after);
            let kind = PingKind::Ping(bytes.clone().into());
            let question = PingBody { from: id(2, 1), target: id(1, 1), kind }.encode();
            match what {
                0 => drop(core.answer_ping(now, &question, 1)),
                1 => core.handle_timeout(now),
                2 => drop(core.answer_sync(now, &garbage)),
                _ => core.handle_datagram(now, &bytes),
            }
            for output in outputs(&mut core) {
                if let Output::Ask { id: ask, .. } = output {
                    let reply = [StreamReply::Refused, StreamReply::Timeout, answer(id(3, 1), Seen::Gone)];
                    core.handle_stream_reply(now, ask, &reply[usize::from(what % 3)]);
                }
            }
        }
        outputs(&mut core);
        let own = core.local().id;
        let mut theirs: Vec<_> =
            core.foca.iter_membership_state().filter(|member| member.id().node != own).collect();
        theirs.sort_by_key(|member| member.id().node);
        let ours: Vec<_> = core.table.iter().collect();
        prop_assert_eq!(ours.len(), theirs.len());
        for (our, their) in ours.iter().zip(theirs) {
            prop_assert_eq!(our.identity, *their.id());
            prop_assert_eq!(our.incarnation, their.incarnation());
            prop_assert_eq!(our.liveness.is_present(), their.state() != State::Down);
        }
        prop_assert_eq!(core.table.present(), core.foca.num_members() - own_entries(&core));
        prop_assert!(core.timers() < 100);
    }
}

/// foca may keep an earlier life of ours as a member; it is always down.
fn own_entries(core: &Core) -> usize {
    let own = core.local().id;
    core.foca
        .iter_members()
        .filter(|member| member.id().node == own)
        .count()
}

fn sync_asks(outputs: &[Output]) -> Vec<(u64, Exchange)> {
    let asks = outputs.iter().filter_map(|output| match output {
        Output::Ask {
            id,
            route: Route::Sync,
            body,
            ..
        } => Some((*id, stream::decode_sync(body).unwrap())),
        _ => None,
    });
    asks.collect()
}

/// Lets time pass until the core asks for an exchange of state.
fn next_sync(core: &mut Core, now: &mut Duration) -> (u64, Exchange) {
    loop {
        *now = core.next_timeout().unwrap();
        core.handle_timeout(*now);
        if let Some(ask) = sync_asks(&outputs(core)).pop() {
            return ask;
        }
        assert!(*now < 100 * SEC, "it never asks");
    }
}

#[test]
fn members_that_know_the_same_exchange_a_digest_and_nothing_else() {
    let mut core = knowing(40);
    let mut now = Duration::ZERO;
    let (ask, question) = next_sync(&mut core, &mut now);
    let Exchange::Digest(digest) = question else {
        panic!("{question:?}");
    };
    assert_eq!(*digest, core.digest());
    let nothing = stream::encode_parts(Parts::default(), &[]);
    let answer = core.answer_sync(now, &stream::encode_digest(&digest));
    assert_eq!(answer.as_deref(), Ok(&nothing[..]));
    core.handle_stream_reply(now, ask, &StreamReply::Acked(nothing.into()));
    assert_eq!(sync_asks(&outputs(&mut core)), []);
}

#[test]
fn what_a_member_says_of_itself_is_learnt_though_the_member_is_no_news() {
    let mut core = knowing(3);
    let before = core.digest();
    let mut said = Record::from(foca::Member::alive(id(2, 1)));
    said.extra.meta = Some(Arc::new(NodeMeta {
        zone: "rack-7".into(),
        ..Default::default()
    }));
    let state = [foca::Member::alive(id(3, 1)).into(), said];
    core.answer_sync(SEC, &stream::encode_state(&state))
        .unwrap();
    let known = core.meta(id(2, 1).node).unwrap();
    assert_eq!(&*known.zone, "rack-7");
    assert_ne!(core.digest(), before, "a comparison would not find it");
}

#[test]
fn what_differs_goes_both_ways() {
    let mut core = knowing(40);
    let mut now = Duration::ZERO;
    let (ask, _) = next_sync(&mut core, &mut now);
    // The other knows 41, which we do not, and not 2 to 9, which we do.
    let theirs: Vec<_> = core
        .everybody()
        .filter(|member| !(2..10).contains(&member.id().node.0[0]))
        .chain([foca::Member::alive(id(41, 1))])
        .collect();
    let mark = |member: &foca::Member<Identity>| core.notes.lock().mark(member);
    let digest = Digest::of(theirs.iter().map(|member| (member.clone(), mark(member))));
    let parts = core.digest().differing(&digest);
    let told: Vec<_> = theirs
        .into_iter()
        .filter(|member| parts.contain(member.id().node))
        .map(Record::from)
        .collect();
    let reply = stream::encode_parts(parts, &told);
    core.handle_stream_reply(now, ask, &StreamReply::Acked(reply.into()));
    assert_eq!(core.liveness(id(41, 1).node), Some(Liveness::Alive));
    let pushed = sync_asks(&outputs(&mut core)).pop().unwrap().1;
    let Exchange::Parts(_, pushed) = pushed else {
        panic!("{pushed:?}");
    };
    let mut pushed: Vec<_> = pushed
        .iter()
        .map(|record| record.member.id().node.0[0])
        .collect();
    pushed.sort_unstable();
    assert_eq!(pushed, (1..10).collect::<Vec<_>>(), "ours, and who speaks");
}

#[test]
fn a_peer_that_does_not_understand_a_digest_gets_the_whole_state() {
    let mut core = knowing(3);
    let mut now = Duration::ZERO;
    let (ask, _) = next_sync(&mut core, &mut now);
    core.handle_stream_reply(now, ask, &StreamReply::Timeout);
    let (ask, question) = sync_asks(&outputs(&mut core)).pop().unwrap();
    assert!(matches!(question, Exchange::State(members) if members.len() == 3));
    core.handle_stream_reply(now, ask, &StreamReply::Timeout);
    assert_eq!(sync_asks(&outputs(&mut core)), [], "once");
}

#[test]
fn who_is_gone_and_forgotten_is_not_brought_back_by_others() {
    let mut core = knowing(3);
    core.answer_sync(SEC, &state_of(&[foca::Member::down(id(9, 1))]))
        .unwrap();
    assert_eq!(core.members().len(), 3, "who joins is told of the dead");
    let mut now = SEC;
    let (ask, _) = next_sync(&mut core, &mut now);
    let nothing = stream::encode_parts(Parts::default(), &[]);
    core.handle_stream_reply(now, ask, &StreamReply::Acked(nothing.into()));
    core.answer_sync(now, &state_of(&[foca::Member::down(id(8, 1))]))
        .unwrap();
    assert_eq!(core.members().len(), 3);
}

#[test]
fn a_ping_without_answer_is_sent_again_and_then_over_the_stream() {
    let mut core = knowing(2);
    let mut pings = Vec::new();
    let mut stream_ping = None;
    while stream_ping.is_none() {
        let now = core.next_timeout().unwrap();
        core.handle_timeout(now);
        let said = outputs(&mut core);
        pings.extend(said.iter().filter_map(|output| match output {
            Output::Send { packet, .. } => {
                match wire::decode_packet(packet).unwrap().header.message {
                    Message::Ping(number) => Some((now, number)),
                    _ => None,
                }
            }
            _ => None,
        }));
        stream_ping = asks(&said).first().map(|_| now);
    }
    let (first, number) = pings[0];
    let later: Vec<_> = pings[1..]
        .iter()
        .map(|(at, same)| (*at - first, *same))
        .collect();
    let after = |ms| (Duration::from_millis(ms), number);
    assert_eq!(later, [after(100), after(200)]);
    assert_eq!(stream_ping.unwrap() - first, Duration::from_millis(275));
}
