//! Replays what the fuzzers were given and what they found (`fuzz/corpus/dns_query`).

use std::path::Path;

use dns::fuzz::Answers;
use hickory_proto::op::Message;

#[test]
fn every_kept_request_is_survived_and_every_reply_decodes() {
    let folder = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join("../fuzz/corpus/dns_query");
    let mut answers = Answers::new();
    let (mut requests, mut replies) = (0, 0);
    for entry in std::fs::read_dir(&folder).expect("the corpus is there") {
        let path = entry.unwrap().path();
        let request = std::fs::read(&path).unwrap();
        requests += 1;
        for reply in answers.to(&request) {
            replies += 1;
            Message::from_vec(&reply).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
    assert!(
        requests >= 10 && replies > requests,
        "{requests} requests, {replies} replies"
    );
}
