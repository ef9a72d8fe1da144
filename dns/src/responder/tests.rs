//! What somebody gets who asks too much; the rest is tested from outside.

use libmesh::catalog::testing::TestNode;

use super::*;
use crate::wire::message::Cookie;

const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const QUESTION: &[u8] = b"\x03web\x07service\x04mesh\x00\x00\x01\x00\x01";

fn responder() -> Responder {
    let config = Config::default();
    let node = TestNode::new("node1", [10, 0, 0, 1].into());
    let zone = Zone::new(&config, node.catalog);
    let shared = Shared::new(&config, zone, Readiness::new(true));
    Responder::new(Arc::new(shared))
}

/// A query with an OPT record that has these options.
fn query(options: Option<&[u8]>) -> Vec<u8> {
    let mut query = vec![
        0xAB,
        0xCD,
        1,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        u8::from(options.is_some()),
    ];
    query.extend_from_slice(QUESTION);
    if let Some(options) = options {
        query.extend_from_slice(b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00");
        query.extend((options.len() as u16).to_be_bytes());
        query.extend_from_slice(options);
    }
    query
}

fn option(cookie: &[u8]) -> Vec<u8> {
    let head = [0, 10, 0, cookie.len() as u8];
    [&head[..], cookie].concat()
}

#[test]
fn a_refusal_is_no_longer_than_the_question_and_sends_to_tcp() {
    let responder = responder();
    let mut out = [0; Responder::UDP_BUFFER];
    for request in [query(None), query(Some(&[]))] {
        let len = responder.refuse(&request, FROM, Verdict::Truncate, &mut out);
        assert_eq!(len, request.len());
        assert_eq!(out[..2], request[..2]);
        assert_eq!(out[2] & 0x82, 0x82, "a reply, truncated");
        assert_eq!(out[3] & 0xF, 0);
        assert_eq!(out[4..10], [0, 1, 0, 0, 0, 0], "no records");
        assert_eq!(responder.refuse(&request, FROM, Verdict::Drop, &mut out), 0);
    }
    let nonsense = &query(None)[..20];
    assert_eq!(
        responder.refuse(nonsense, FROM, Verdict::Truncate, &mut out),
        0
    );
    assert_eq!(responder.shared.stats().counts().limited, 5);
}

#[test]
fn a_refusal_brings_a_cookie_to_come_back_with() {
    let responder = responder();
    let mut out = [0; Responder::UDP_BUFFER];
    let first = query(Some(&option(&[7; 8])));
    assert!(!responder.knows(&first, FROM));
    let len = responder.refuse(&first, FROM, Verdict::Truncate, &mut out);
    let cookie = out[len - 24..len].to_vec();
    assert_eq!(cookie[..8], [7; 8]);
    let again = query(Some(&option(&cookie)));
    assert!(responder.knows(&again, FROM));
    assert!(
        !responder.knows(&again, [192, 0, 2, 2].into()),
        "somebody else"
    );
    assert!(!responder.knows(&query(None), FROM));
    let asked = Cookie {
        client: [7; 8],
        server: Some(&cookie[8..]),
    };
    assert!(responder.shared.cookies.check(asked, FROM, now()).known);
}
