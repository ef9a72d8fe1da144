use super::*;

const REQUEST: &[u8] =
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03WeB\x03com\x00\x00\x01\x00\x01";

fn reply(change: impl FnOnce(&mut Vec<u8>)) -> bool {
    let mut reply = REQUEST.to_vec();
    reply[2] |= 0x80;
    change(&mut reply);
    answers(&reply, REQUEST)
}

#[test]
fn only_a_response_to_the_very_question_counts() {
    assert!(reply(|_| {}));
    assert!(reply(|r| r[13] = b'w'), "letter case is the upstream's");
    assert!(!reply(|r| r[0] = 0), "another id");
    assert!(!reply(|r| r[2] &= 0x7F), "a query");
    assert!(!reply(|r| r[2] |= 0x08), "another opcode");
    assert!(!reply(|r| r[13] = b'x'), "another name");
    let at = REQUEST.len() - 3;
    assert!(!reply(|r| r[at] = 28), "another type");
    assert!(!reply(|r| r.truncate(8)), "no header");
    assert!(!reply(|r| r.truncate(14)), "half a question");
    assert!(reply(|r| {
        r[5] = 0;
        r.truncate(HEADER);
    }));
}

#[test]
fn asking_ourselves_is_noticed() {
    let own = |text: &str| [text.parse().unwrap()];
    let up = |text: &str| text.parse().unwrap();
    assert!(is_self(up("127.0.0.1:53"), &own("127.0.0.1:53")));
    assert!(is_self(up("127.0.0.1:53"), &own("0.0.0.0:53")));
    assert!(!is_self(up("127.0.0.1:5353"), &own("0.0.0.0:53")));
    assert!(!is_self(up("192.0.2.1:53"), &own("0.0.0.0:53")));
    assert!(!is_self(up("127.0.0.1:53"), &own("[::]:53")));
}
