//! Replays what the fuzzers were given and what they found (`fuzz/corpus/dns_*`).

use std::path::Path;

use dns::fuzz::Answers;
use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;

use crate::support::{DEADLINE, Mesh, instance, question};

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join("../fuzz/corpus")
        .join(target);
    let entries = std::fs::read_dir(&folder).expect("the corpus is there");
    entries
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect()
}

#[test]
fn every_kept_stream_and_name_is_survived() {
    let mut answers = Answers::new();
    let streams = corpus("dns_stream");
    let replies: usize = streams
        .iter()
        .map(|octets| answers.to_stream(octets).len())
        .sum();
    assert!(
        streams.len() >= 5 && replies > streams.len(),
        "{replies} replies"
    );
    let names = corpus("dns_name");
    assert!(names.len() >= 8);
    names.iter().for_each(|octets| dns::fuzz::name(octets));
}

/// Over real sockets, as anybody can send them: every request gets at most one datagram, which is no longer than he may
/// take, and the server goes on.
#[tokio::test]
async fn over_sockets_nothing_is_larger_than_allowed() {
    let mesh = Mesh::of(1);
    for port in 1..=200 {
        mesh.put(1, instance("many", port));
    }
    let server = mesh.serve();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.local_addrs()[0]).await.unwrap();
    let last = question("many.service.mesh.", RecordType::SRV)
        .to_vec()
        .unwrap();
    for request in corpus("dns_query").iter().chain([&last]) {
        socket.send(request).await.unwrap();
    }
    let mut buffer = [0; 65_535];
    loop {
        let received = tokio::time::timeout(DEADLINE, socket.recv(&mut buffer));
        let len = received.await.expect("the last is answered").unwrap();
        // 1232 is the most that we send, to those who say that they can take so much.
        assert!(len <= 1232, "{len} octets");
        if buffer[..2] == last[..2] {
            assert!(len <= 512, "{len} octets without EDNS");
            break;
        }
    }
    server.shutdown().await;
}

#[test]
fn every_kept_request_is_survived_and_every_reply_decodes() {
    let mut answers = Answers::new();
    let requests = corpus("dns_query");
    let mut replies = 0;
    for request in &requests {
        for reply in answers.to(request) {
            replies += 1;
            Message::from_vec(&reply).unwrap_or_else(|error| panic!("{request:02x?}: {error}"));
        }
    }
    assert!(
        requests.len() >= 10 && replies > requests.len(),
        "{} requests, {replies} replies",
        requests.len()
    );
}
