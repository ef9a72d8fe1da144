use foca::Codec;
use proptest::prelude::*;

use super::*;

pub(crate) fn identity() -> impl Strategy<Value = Identity> {
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from)
    ];
    let node = any::<[u8; 16]>()
        .prop_filter("nil", |id| *id != [0; 16])
        .prop_map(NodeId);
    (node, ip, any::<u16>(), any::<u64>()).prop_map(|(node, ip, port, generation)| Identity {
        node,
        addr: SocketAddr::new(ip, port),
        generation,
    })
}

pub(crate) fn member() -> impl Strategy<Value = Member<Identity>> {
    let state = prop_oneof![Just(State::Alive), Just(State::Suspect), Just(State::Down)];
    (identity(), any::<u16>(), state)
        .prop_map(|(id, incarnation, state)| Member::new(id, incarnation, state))
}

fn header() -> impl Strategy<Value = Header<Identity>> {
    let message =
        (identity(), any::<u8>(), 0..11usize).prop_map(|(third, probe_number, kind)| match kind {
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
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            9 => Message::Broadcast,
            _ => Message::TurnUndead,
        });
    (identity(), any::<u16>(), identity(), message).prop_map(
        |(src, src_incarnation, dst, message)| Header {
            src,
            src_incarnation,
            dst,
            message,
        },
    )
}

pub(crate) fn notes(own: NodeId) -> Arc<Mutex<Notes>> {
    Arc::new(Mutex::new(Notes::new(
        own,
        "dc1".into(),
        Some(super::super::NodeMeta::default()),
    )))
}

fn codec(own: NodeId) -> WireCodec {
    WireCodec::new(own, Arc::default(), notes(own))
}

fn some_identity() -> Identity {
    Identity {
        node: NodeId([7; 16]),
        addr: "192.0.2.1:8301".parse().unwrap(),
        generation: 9,
    }
}

#[test]
fn an_ipv4_member_takes_36_bytes() {
    let mut bytes = Vec::new();
    encode_member(&Member::alive(some_identity()), &mut bytes);
    assert_eq!(bytes.len(), 36);
    assert_eq!(bytes.len(), member_len(&Member::alive(some_identity())));
}

#[test]
fn what_a_newer_version_appends_is_skipped() {
    let mut plain = Vec::new();
    some_identity().encode(&mut plain);
    let mut longer = plain.clone();
    longer[0] += 3;
    longer.extend_from_slice(b"new");
    longer.extend_from_slice(b"next record");
    let mut rest = &longer[..];
    assert_eq!(Identity::decode(&mut rest), Ok(some_identity()));
    assert_eq!(rest, b"next record");
}

#[test]
fn an_announce_to_the_nil_id_is_read_as_ones_own() {
    let own = NodeId([3; 16]);
    let header = Header {
        src: some_identity(),
        src_incarnation: 0,
        dst: Identity::unknown("192.0.2.2:8301".parse().unwrap()),
        message: Message::Announce,
    };
    let mut bytes = Vec::new();
    codec(own).encode_header(&header, &mut bytes).unwrap();
    assert_eq!(codec(own).decode_header(&bytes[..]).unwrap().dst.node, own);

    let ping = Header {
        message: Message::Ping(1),
        ..header
    };
    let mut bytes = Vec::new();
    codec(own).encode_header(&ping, &mut bytes).unwrap();
    assert_ne!(
        codec(own).decode_header(&bytes[..]).unwrap().dst.node,
        own,
        "only announces go to nobody in particular"
    );
}

#[test]
fn a_goodbye_is_told_from_a_failure() {
    let leaving = Arc::new(AtomicBool::new(true));
    let mut codec = WireCodec::new(
        some_identity().node,
        Arc::clone(&leaving),
        notes(some_identity().node),
    );
    let mut bytes = Vec::new();
    codec
        .encode_member(&Member::down(some_identity()), &mut bytes)
        .unwrap();
    assert_eq!(
        codec.decode_member(&bytes[..]).unwrap(),
        Member::new(some_identity(), LEFT, State::Down)
    );

    leaving.store(false, Ordering::Relaxed);
    let mut bytes = Vec::new();
    codec
        .encode_member(&Member::down(some_identity()), &mut bytes)
        .unwrap();
    assert_eq!(
        codec.decode_member(&bytes[..]).unwrap(),
        Member::down(some_identity())
    );
}

#[test]
fn a_full_buffer_stays_clean() {
    let member = Member::alive(some_identity());
    let mut buf = Vec::new().limit(member_len(&member) - 1);
    assert_eq!(
        codec(NodeId([1; 16])).encode_member(&member, &mut buf),
        Err(WireError::NoRoom)
    );
    assert!(buf.get_ref().is_empty());
}

proptest! {
    #[test]
    fn identities_round_trip(identity in identity()) {
        let mut bytes = Vec::new();
        identity.encode(&mut bytes);
        prop_assert_eq!(bytes.len(), identity.encoded_len());
        let mut rest = &bytes[..];
        prop_assert_eq!(Identity::decode(&mut rest), Ok(identity));
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn packets_round_trip(header in header(), updates in proptest::collection::vec(member(), 0..31)) {
        let mut bytes = Vec::new();
        encode_header(&header, &[], &mut bytes).unwrap();
        let updates = if header.message == Message::Announce { Vec::new() } else { updates };
        if header.message != Message::Announce {
            bytes.put_u16(updates.len() as u16);
            updates.iter().for_each(|member| encode_member(member, &mut bytes));
        }
        let packet = decode_packet(&bytes).unwrap();
        prop_assert_eq!(&packet.header, &header);
        prop_assert!(packet.updates.iter().map(|record| &record.member).eq(&updates));
        let all = vec![true; updates.len()];
        prop_assert_eq!(&decode_packet(&packet.bytes_of(&all)).unwrap().updates, &packet.updates);
        let none = packet.bytes_of(&vec![false; updates.len()]);
        prop_assert_eq!(decode_packet(&none).unwrap().updates, Vec::<Record>::new());
        for cut in 0..bytes.len() {
            let _ = decode_packet(&bytes[..cut]);
        }
    }

    #[test]
    fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..1300)) {
        let _ = decode_packet(&garbage);
        let _ = Identity::decode(&mut &garbage[..]);
        let _ = decode_record(&mut &garbage[..]);
    }

    #[test]
    fn exactly_one_of_two_identities_wins(one in identity(), other in identity()) {
        prop_assume!(one != other);
        let other = Identity { node: one.node, ..other };
        use foca::Identity as _;
        prop_assert_eq!(one.win_addr_conflict(&other), one != other && !other.win_addr_conflict(&one));
        prop_assert!(one.renew().is_none_or(|next| next.win_addr_conflict(&one)));
    }
}

/// What the first version sent: a gossip of node 0101… about node 0202…, suspect.
const FIRST_VERSION: &[u8] = &[
    1, 9, 0, 0, 3, // version, gossip, probe, incarnation
    31, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 7, 192, 0, 2, 1,
    0x20, 0x6d, // from
    31, 4, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 1, 192, 0, 2, 3,
    0x20, 0x6d, // to
    0, 1, // one update
    35, 2, 0, 5, 31, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 9,
    192, 0, 2, 2, 0x20, 0x6d,
];

#[test]
fn packets_of_the_first_version_are_read_and_written_unchanged() {
    let packet = decode_packet(FIRST_VERSION).unwrap();
    assert_eq!(packet.header.src_incarnation, 3);
    assert_eq!(packet.header.src.addr, "192.0.2.1:8301".parse().unwrap());
    assert_eq!(packet.header.src.generation, 7);
    assert_eq!(packet.from, Extra::default());
    let suspect = &packet.updates[0].member;
    assert_eq!(
        (suspect.state(), suspect.incarnation()),
        (State::Suspect, 5)
    );
    let mut bytes = Vec::new();
    encode_header(&packet.header, &[], &mut bytes).unwrap();
    bytes.put_u16(1);
    encode_member(suspect, &mut bytes);
    assert_eq!(bytes, FIRST_VERSION);
}

/// An identity as the first version read it: what follows the port in its length is skipped.
fn first_version_identity(input: &mut &[u8]) -> Identity {
    let mut body = prefixed(input).unwrap();
    assert_eq!(take_u8(&mut body), Ok(4));
    let node = NodeId(take_array(&mut body).unwrap());
    let generation = u64::from_be_bytes(take_array(&mut body).unwrap());
    let ip: [u8; 4] = take_array(&mut body).unwrap();
    let port = take_u16(&mut body).unwrap();
    Identity {
        node,
        addr: SocketAddr::from((ip, port)),
        generation,
    }
}

#[test]
fn the_first_version_reads_what_this_one_writes() {
    let own = NodeId([1; 16]);
    let (src, dst) = (
        some_identity(),
        Identity {
            node: own,
            ..some_identity()
        },
    );
    let notes = notes(src.node);
    notes
        .lock()
        .restart_until(std::time::Duration::from_secs(9));
    let mut codec = WireCodec::new(src.node, Arc::default(), notes);
    let header = Header {
        src,
        src_incarnation: 2,
        dst,
        message: Message::Feed,
    };
    let mut bytes = Vec::new();
    codec.encode_header(&header, &mut bytes).unwrap();
    codec
        .encode_member(&Member::new(src, 2, State::Alive), &mut bytes)
        .unwrap();
    let plain = 5 + 2 * src.encoded_len() + 36;
    assert!(bytes.len() > plain + 10, "there is nothing to skip");

    let mut input = &bytes[5..];
    assert_eq!(first_version_identity(&mut input), src);
    assert_eq!(first_version_identity(&mut input), dst);
    let mut member = prefixed(&mut input).unwrap();
    assert_eq!(take_u8(&mut member), Ok(STATE_ALIVE));
    assert_eq!(take_u16(&mut member), Ok(2));
    assert_eq!(first_version_identity(&mut member), src);
    assert!(input.is_empty());
}
