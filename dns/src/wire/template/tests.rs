use std::collections::{BTreeMap, BTreeSet};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RData;

use super::*;
use crate::wire::message::Header;
use crate::wire::name::encode;

const QUESTION: &[u8] = b"\x03WeB\x04mesh\x00\x00\x01\x00\x01";
/// Where `mesh` starts in the question above.
const ZONE_AT: u16 = 16;

fn envelope(limit: usize) -> Envelope<'static> {
    Envelope {
        header: Header {
            id: 7,
            flags: Header::RD,
        },
        question: QUESTION,
        edns: None,
        limit,
        recursion: false,
        max_answers: usize::MAX,
        say_truncated: true,
        in_step: false,
        serial: 0x0102_0304,
    }
}

fn fill(envelope: &Envelope<'_>, template: &Template, seed: u64) -> (Message, usize) {
    let mut out = vec![0xEE; 65_535];
    let len = envelope.fill(template, &mut Scratch::seeded(seed), &mut out);
    assert!(len <= envelope.limit, "{len} over {}", envelope.limit);
    (Message::from_vec(&out[..len]).expect("decodes"), len)
}

fn addresses(n: u8) -> Template {
    let mut template = Template::new(0, true);
    (0..n).for_each(|i| template.push_answer(rtype::A, 5, &[10, 0, 0, i]));
    template
}

fn srv(n: u16) -> Template {
    let mut template = Template::new(0, true);
    for i in 0..n {
        let id = template.push_target();
        template.push_glue(rtype::A, 10, &[10, 1, (i >> 8) as u8, i as u8]);
        let name = encode(&format!("n{i}.node.dc1.mesh")).unwrap();
        let [hi, lo] = i.to_be_bytes();
        template.push_answer_to(rtype::SRV, 5, &[0, 1, 0, 1, hi, lo], &name, id);
    }
    template
}

fn last_octets(message: &Message) -> Vec<u8> {
    let data = message.answers.iter().map(|r| match &r.data {
        RData::A(a) => a.0.octets()[3],
        other => panic!("not an A record: {other:?}"),
    });
    data.collect()
}

#[test]
fn the_reply_has_the_asked_spelling_and_flags() {
    let (message, _) = fill(&envelope(512), &addresses(1), 1);
    assert_eq!(message.metadata.id, 7);
    assert!(message.metadata.authoritative && message.metadata.recursion_desired);
    assert!(!message.metadata.recursion_available && !message.metadata.truncation);
    assert_eq!(message.answers[0].name.to_string(), "WeB.mesh.");
    assert_eq!(message.answers[0].ttl, 5);
}

#[test]
fn every_order_of_three_comes_equally_often() {
    let template = addresses(3);
    let mut seen = BTreeMap::<Vec<u8>, u32>::new();
    let mut scratch = Scratch::seeded(9);
    let mut out = [0; 512];
    for _ in 0..6000 {
        let len = envelope(512).fill(&template, &mut scratch, &mut out);
        *seen
            .entry(last_octets(&Message::from_vec(&out[..len]).unwrap()))
            .or_default() += 1;
    }
    assert_eq!(seen.len(), 6);
    assert!(
        seen.values().all(|&count| (850..1150).contains(&count)),
        "{seen:?}"
    );
}

#[test]
fn what_does_not_fit_is_a_fresh_choice_and_says_so() {
    let template = addresses(200);
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let (message, len) = fill(&envelope(512), &template, seed);
        assert!(message.metadata.truncation);
        assert!(len > 512 - 16);
        let octets = last_octets(&message);
        assert_eq!(
            octets.iter().collect::<BTreeSet<_>>().len(),
            octets.len(),
            "an address twice"
        );
        seen.extend(octets);
    }
    assert_eq!(seen.len(), 200, "some address was never shown");
}

#[test]
fn a_limit_on_answers_is_not_truncation() {
    let limited = Envelope {
        max_answers: 3,
        ..envelope(512)
    };
    let (message, _) = fill(&limited, &addresses(10), 1);
    assert_eq!(
        (message.answers.len(), message.metadata.truncation),
        (3, false)
    );
    let silent = Envelope {
        say_truncated: false,
        ..envelope(512)
    };
    assert!(!fill(&silent, &addresses(100), 1).0.metadata.truncation);
}

#[test]
fn targets_keep_their_addresses_in_any_order() {
    for (n, limit) in [(4, 512), (40, 1232), (900, 65_535)] {
        for seed in 0..20 {
            let (message, _) = fill(&envelope(limit), &srv(n), seed);
            let glue: BTreeMap<_, _> = message
                .additionals
                .iter()
                .map(|r| (r.name.to_string(), r.data.to_string()))
                .collect();
            assert!(!message.answers.is_empty());
            for answer in &message.answers {
                let RData::SRV(srv) = &answer.data else {
                    panic!("not SRV")
                };
                let address = glue.get(&srv.target.to_string());
                assert_eq!(
                    address,
                    Some(&format!("10.1.{}.{}", srv.port >> 8, srv.port & 255)),
                    "n={n}"
                );
            }
            assert_eq!(
                message.metadata.truncation,
                message.answers.len() < usize::from(n)
            );
        }
    }
}

#[test]
fn addresses_are_cut_before_answers() {
    // 12 SRV records fit into 512 octets without their addresses, not with them.
    let template = srv(11);
    let (message, _) = fill(&envelope(512), &template, 3);
    assert_eq!(message.answers.len(), 11);
    assert!(!message.metadata.truncation);
    assert!(
        !message.additionals.is_empty() && message.additionals.len() < 11,
        "{}",
        message.additionals.len()
    );
}

#[test]
fn a_shared_target_has_its_address_once() {
    let mut template = Template::new(0, true);
    let id = template.push_target();
    template.push_glue(rtype::A, 10, &[10, 0, 0, 1]);
    let name = encode("node1.node.dc1.mesh").unwrap();
    template.push_answer_to(rtype::SRV, 5, &[0, 1, 0, 1, 0, 80], &name, id);
    template.push_answer_to(rtype::SRV, 5, &[0, 1, 0, 1, 0, 81], &name, id);
    let (message, _) = fill(&envelope(512), &template, 1);
    assert_eq!((message.answers.len(), message.additionals.len()), (2, 1));
    assert_eq!(
        message.additionals[0].name.to_string(),
        "node1.node.dc1.mesh."
    );
}

#[test]
fn soa_with_the_serial_of_the_moment() {
    for asked in [false, true] {
        let mut template = Template::new(if asked { 0 } else { 3 }, true);
        template.push_soa(ZONE_AT, asked, 5, 5);
        let (message, _) = fill(&envelope(512), &template, 1);
        let record = if asked {
            &message.answers[0]
        } else {
            &message.authorities[0]
        };
        assert_eq!(record.name.to_string(), "mesh.");
        let RData::SOA(soa) = &record.data else {
            panic!("not SOA")
        };
        assert_eq!(soa.mname.to_string(), "ns.mesh.");
        assert_eq!(soa.rname.to_string(), "hostmaster.mesh.");
        assert_eq!((soa.serial, soa.minimum), (0x0102_0304, 5));
    }
}

#[test]
fn edns_is_answered_in_kind() {
    let edns = Some(ReplyEdns {
        payload: 1232,
        dnssec_ok: true,
        error: Some(14),
        cookie: None,
    });
    let (message, _) = fill(
        &Envelope {
            edns,
            ..envelope(1232)
        },
        &addresses(2),
        1,
    );
    let opt = message.edns.expect("an OPT");
    assert_eq!((opt.max_payload(), opt.flags().dnssec_ok), (1232, true));
    let mut out = [0; 512];
    let len = Envelope {
        edns,
        ..envelope(512)
    }
    .fill_error(super::super::rcode::BADVERS, &mut out);
    // BADVERS and BADSIG share the number 16.
    assert_eq!(
        u16::from(
            Message::from_vec(&out[..len])
                .unwrap()
                .metadata
                .response_code
        ),
        16
    );
    let len = envelope(512).fill_error(super::super::rcode::BADVERS, &mut out);
    assert_eq!(
        Message::from_vec(&out[..len])
            .unwrap()
            .metadata
            .response_code,
        ResponseCode::FormErr
    );
}

#[test]
fn one_alias_of_several_at_a_time() {
    let mut template = Template::new(0, true);
    for host in ["a.example", "bb.example"] {
        template.push_answer(rtype::CNAME, 5, &encode(host).unwrap());
    }
    template.mark_alias();
    let mut seen = BTreeSet::new();
    for seed in 0..50 {
        let (message, _) = fill(&envelope(512), &template, seed);
        assert_eq!(
            (message.answers.len(), message.metadata.truncation),
            (1, false)
        );
        seen.insert(message.answers[0].data.to_string());
    }
    assert_eq!(seen.len(), 2);
}
