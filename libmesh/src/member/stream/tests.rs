use proptest::collection::vec;
use proptest::prelude::*;

use std::sync::Arc;

use super::super::meta::{Extra, NodeMeta};
use super::super::wire::tests::{identity, member};
use super::*;

fn record() -> impl Strategy<Value = Record> {
    let extra = (
        proptest::option::of(0u64..15_000),
        any::<bool>(),
        "[a-z0-9-]{0,64}",
    );
    (member(), extra).prop_map(|(member, (restarting, server, zone))| Record {
        member,
        extra: Extra {
            restarting: restarting.map(Duration::from_millis),
            meta: server.then(|| {
                Arc::new(NodeMeta {
                    zone: zone.as_str().into(),
                    ..NodeMeta::default()
                })
            }),
            pool: (!server).then(|| zone.as_str().into()),
        },
    })
}

fn packet() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..MAX_DATAGRAM).prop_map(Bytes::from)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn questions_round_trip(from in identity(), target in identity(), kind in 0..4, started in any::<u64>(), inc in any::<u16>(), packet in packet()) {
        let kind = match kind {
            0 => PingKind::Ping(packet),
            1 => PingKind::Suspicion(inc),
            2 => PingKind::Copy { known: inc % 2 == 1, started },
            _ => PingKind::Witness,
        };
        let body = PingBody { from, target, kind };
        let bytes = body.encode();
        prop_assert!(bytes.len() <= MAX_PING_BODY);
        prop_assert_eq!(PingBody::decode(&bytes), Ok(body));
    }

    #[test]
    fn answers_round_trip(by in identity(), seen in 0..3usize, packets in vec(packet(), 0..=MAX_PACKETS)) {
        let seen = [Seen::Acked, Seen::Gone, Seen::Silent][seen];
        let answer = PingAnswer { by, seen, packets };
        let bytes = answer.encode();
        prop_assert!(bytes.len() <= MAX_PING_BODY);
        prop_assert_eq!(PingAnswer::decode(&bytes), Ok(answer));
    }

    #[test]
    fn states_round_trip(members in vec(record(), 0..100)) {
        // Left is Down at the highest incarnation, and comes back as that.
        prop_assert_eq!(decode_state(&encode_state(&members)), Ok(members));
    }

    #[test]
    fn digests_and_parts_round_trip(members in vec(record(), 0..100), parts in any::<u64>()) {
        let digest = Digest::of(members.iter().map(|record| (record.member.clone(), 0)));
        let body = encode_digest(&digest);
        prop_assert!(body.len() <= 520);
        prop_assert_eq!(decode_sync(&body), Ok(Exchange::Digest(Box::new(digest))));
        let body = encode_parts(Parts(parts), &members);
        prop_assert_eq!(decode_sync(&body), Ok(Exchange::Parts(Parts(parts), members)));
    }

    #[test]
    fn cut_or_garbled_bodies_never_panic(members in vec(record(), 1..4), garbage in vec(any::<u8>(), 0..300)) {
        let bytes = encode_state(&members);
        for cut in 0..bytes.len() {
            prop_assert_eq!(decode_state(&bytes[..cut]), Err(WireError::Truncated));
        }
        for decode in [fuzz::datagram, fuzz::packet, fuzz::identity, fuzz::state, fuzz::ping] {
            decode(&garbage);
            decode(&[&[VERSION, 1], &garbage[..]].concat());
        }
    }
}

#[test]
fn a_count_is_no_reason_to_allocate() {
    let mut body = vec![VERSION];
    body.put_u32(u32::MAX);
    assert_eq!(decode_state(&body), Err(WireError::TooMany("members")));
    let mut body = vec![VERSION];
    body.put_u32(60_000);
    assert_eq!(decode_state(&body), Err(WireError::Truncated));
}
