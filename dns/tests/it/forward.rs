//! Foreign names: through the resolver, octet for octet, or not at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dns::{Config, DnsServer, Domain, Error, Readiness, Upstreams};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::RecordType::{self, A, AAAA, TXT};
use hickory_proto::rr::{RData, Record, rdata};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::support::{
    Mesh, ask, ask_tcp, ask_with, at, data, instance, question, raw_udp, read_frame, with_edns,
    write_frame,
};

/// An upstream over UDP and TCP that answers by rule and counts what it was asked.
struct Upstream {
    addr: SocketAddr,
    asked: Arc<AtomicU32>,
    tasks: tokio::task::JoinSet<()>,
}

/// The unknown type 65400 is answered with these octets, compression pointer and odd flags included.
const ODD: &[u8] = b"\xc0\x0c\xff\x78\x00\x01\x00\x00\x00\x07\x00\x03\x01\x02\x03";

fn answer(request: &[u8]) -> Vec<u8> {
    let mut reply = request.to_vec();
    if Message::from_vec(request).is_ok_and(|m| u16::from(m.queries[0].query_type) == 65_400) {
        (reply[2], reply[3], reply[7]) = (reply[2] | 0x80, 0xA0, 1);
        reply.extend_from_slice(ODD);
        return reply;
    }
    let mut message = Message::from_vec(request).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    message.edns = None;
    let name = message.queries[0].name.clone();
    match (
        name.to_lowercase().to_string().as_str(),
        message.queries[0].query_type,
    ) {
        ("www.example.com.", A) => {
            message.add_answer(Record::from_rdata(
                name,
                60,
                RData::A(rdata::A::new(192, 0, 2, 80)),
            ));
        }
        ("big.example.com.", TXT) => {
            let text = vec!["x".repeat(200); 5];
            message.add_answer(Record::from_rdata(
                name,
                60,
                RData::TXT(rdata::TXT::new(text)),
            ));
        }
        ("www.example.com.", _) => {}
        _ => message.metadata.response_code = ResponseCode::NXDomain,
    }
    message.to_vec().unwrap()
}

impl Upstream {
    async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let addr = udp.local_addr().unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        let count = Arc::clone(&asked);
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((len, from)) = udp.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                let reply = answer(&buffer[..len]);
                // A forged reply first: right place, wrong id.
                let mut forged = reply.clone();
                forged[0] ^= 0xFF;
                udp.send_to(&forged, from).await.unwrap();
                udp.send_to(&reply, from).await.unwrap();
            }
        });
        let count = Arc::clone(&asked);
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                while let Ok(len) = stream.read_u16().await {
                    let mut frame = vec![0; usize::from(len)];
                    stream.read_exact(&mut frame).await.unwrap();
                    count.fetch_add(1, Ordering::SeqCst);
                    let reply = answer(&frame);
                    let len = (reply.len() as u16).to_be_bytes();
                    stream
                        .write_all(&[&len[..], &reply].concat())
                        .await
                        .unwrap();
                }
            }
        });
        Self { addr, asked, tasks }
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }

    async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

fn serve(mesh: &Mesh, upstreams: Vec<SocketAddr>) -> DnsServer {
    let upstream_timeout = Duration::from_secs(1);
    mesh.serve_with(Config {
        upstreams: Upstreams::List(upstreams),
        upstream_timeout,
        ..Config::default()
    })
}

#[tokio::test]
async fn ordinary_questions_are_answered_and_remembered() {
    let (mesh, upstream) = (Mesh::of(1), Upstream::start().await);
    mesh.put(1, instance("web", 80));
    let server = serve(&mesh, vec![upstream.addr]);
    for _ in 0..3 {
        let reply = ask(&server, "WWW.example.com.", A).await;
        assert_eq!(data(&reply), ["192.0.2.80"]);
        assert!(reply.metadata.recursion_available && !reply.metadata.authoritative);
    }
    assert_eq!(upstream.asked(), 1, "answers are kept for their TTL");
    let reply = ask(&server, "www.example.com.", AAAA).await;
    assert_eq!(
        (reply.metadata.response_code, reply.answers.len()),
        (ResponseCode::NoError, 0)
    );
    assert_eq!(
        ask(&server, "nope.example.com.", A)
            .await
            .metadata
            .response_code,
        ResponseCode::NXDomain
    );
    // Our own names never leave.
    let before = upstream.asked();
    let own = ask(&server, "web.service.mesh.", A).await;
    assert!(own.metadata.authoritative && own.metadata.recursion_available);
    assert_eq!(
        ask(&server, "nope.service.mesh.", A)
            .await
            .metadata
            .response_code,
        ResponseCode::NXDomain
    );
    assert_eq!(upstream.asked(), before);
    assert_eq!(server.counts().forwarded, 5);
    server.shutdown().await;
    upstream.stop().await;
}

#[tokio::test]
async fn aliases_are_gone_after() {
    let (mesh, upstream) = (Mesh::of(2), Upstream::start().await);
    mesh.put(2, instance("db", 5432));
    mesh.put(1, at("www.example.com", instance("outside", 80)));
    mesh.put(1, at("db.service.mesh", instance("inside", 80)));
    mesh.put(1, at("outside.service.mesh", instance("far", 80)));
    mesh.put(1, at("nope.example.com", instance("nowhere", 80)));
    mesh.put(1, at("loop.service.mesh", instance("loop", 80)));
    let server = serve(&mesh, vec![upstream.addr]);
    let answers = async |name: &str| {
        let reply = ask(&server, name, A).await;
        let data: Vec<_> = reply
            .answers
            .iter()
            .map(|record| record.data.to_string())
            .collect();
        (reply.metadata.response_code, data.join(" "))
    };
    let found = |data: &str| (ResponseCode::NoError, data.to_owned());
    assert_eq!(
        answers("Outside.service.mesh.").await,
        found("www.example.com. 192.0.2.80")
    );
    assert_eq!(
        answers("inside.service.mesh.").await,
        found("db.service.mesh. 10.0.0.2")
    );
    let far = "outside.service.mesh. www.example.com. 192.0.2.80";
    assert_eq!(answers("far.service.mesh.").await, found(far));
    // RFC 6604: the code is that of the last name.
    let none = (ResponseCode::NXDomain, "nope.example.com.".to_owned());
    assert_eq!(answers("nowhere.service.mesh.").await, none);
    assert_eq!(
        answers("loop.service.mesh.").await,
        found(&["loop.service.mesh."; 4].join(" "))
    );
    upstream.stop().await;
    mesh.put(1, at("late.example.com", instance("late", 80)));
    assert_eq!(
        answers("late.service.mesh.").await,
        found("late.example.com.")
    );
    server.shutdown().await;
}

#[tokio::test]
async fn large_foreign_answers_go_over_tcp() {
    let (mesh, upstream) = (Mesh::of(1), Upstream::start().await);
    let server = serve(&mesh, vec![upstream.addr]);
    let cut = ask(&server, "big.example.com.", TXT).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(
        ask_tcp(&server, "big.example.com.", TXT)
            .await
            .answers
            .len(),
        1
    );
    assert_eq!(
        ask_with(&server, with_edns(question("big.example.com.", TXT), 1400))
            .await
            .answers
            .len(),
        1
    );
    server.shutdown().await;
    upstream.stop().await;
}

#[tokio::test]
async fn unknown_types_and_opcodes_pass_untouched() {
    let (mesh, upstream) = (Mesh::of(1), Upstream::start().await);
    let server = serve(&mesh, vec![upstream.addr]);
    let asked = question("Odd.Example.com.", RecordType::Unknown(65_400))
        .to_vec()
        .unwrap();
    let expected = answer(&asked);
    assert_eq!(raw_udp(server.local_addrs()[0], &asked).await, expected);
    let mut stream = TcpStream::connect(server.local_addrs()[0]).await.unwrap();
    write_frame(&mut stream, &asked).await;
    assert_eq!(read_frame(&mut stream).await.unwrap(), expected);
    // A NOTIFY for somebody else's zone.
    let mut notify = asked.clone();
    notify[2] |= 4 << 3;
    let reply = raw_udp(server.local_addrs()[0], &notify).await;
    assert_eq!(reply, answer(&notify));
    server.shutdown().await;
    upstream.stop().await;
}

#[tokio::test]
async fn silent_upstreams_are_servfail_and_the_next_one_is_asked() {
    let (mesh, upstream) = (Mesh::of(1), Upstream::start().await);
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let dead = silent.local_addr().unwrap();
    let server = serve(&mesh, vec![dead]);
    for rtype in [A, RecordType::Unknown(65_400)] {
        let reply = ask(&server, "www.example.com.", rtype).await;
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::ServFail,
            "{rtype}"
        );
    }
    server.shutdown().await;
    let server = serve(&mesh, vec![dead, upstream.addr]);
    for rtype in [A, RecordType::Unknown(65_400)] {
        let reply = ask(&server, "www.example.com.", rtype).await;
        assert_eq!(
            (reply.metadata.response_code, reply.answers.len()),
            (ResponseCode::NoError, 1),
            "{rtype}"
        );
    }
    server.shutdown().await;
    upstream.stop().await;
}

#[tokio::test]
async fn without_upstreams_foreign_names_are_refused() {
    let mesh = Mesh::of(1);
    let server = mesh.serve();
    for name in ["example.com.", "9.9.9.203.in-addr.arpa.", "."] {
        let reply = ask(&server, name, A).await;
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::Refused,
            "{name}"
        );
        assert!(!reply.metadata.recursion_available);
    }
    server.shutdown().await;
}

#[tokio::test]
async fn asking_ourselves_is_refused_at_start() {
    let mesh = Mesh::of(1);
    let free = UdpSocket::bind("127.0.0.77:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let bind = |listen: SocketAddr, upstreams: Vec<SocketAddr>| {
        let config = Config {
            listen: vec![listen],
            upstreams: Upstreams::List(upstreams),
            ..Config::default()
        };
        DnsServer::bind(&config, mesh.nodes[0].catalog.clone(), Readiness::new(true))
    };
    let error = bind(free, vec![free]).unwrap_err();
    assert!(
        error.to_string().contains(&free.to_string())
            && error.to_string().contains("dns.recursors"),
        "{error}"
    );
    assert!(matches!(bind(free, vec![]), Err(Error::NoUpstream)));
}

#[tokio::test]
async fn a_zone_has_upstreams_of_its_own() {
    let (corporate, lab) = (Upstream::start().await, Upstream::start().await);
    let zone = |name: &str| Domain::parse(name).unwrap();
    let config = Config {
        forward: vec![
            (zone("com"), vec![corporate.addr]),
            (zone("Big.example.com."), vec![lab.addr]),
        ],
        ..Config::default()
    };
    let server = Mesh::of(1).serve_with(config);
    let asked = |upstream: &Upstream| upstream.asked.load(Ordering::Relaxed);
    let reply = ask(&server, "WWW.example.com.", A).await;
    assert_eq!(data(&reply), ["192.0.2.80"]);
    assert!(reply.metadata.recursion_available);
    assert_eq!((asked(&corporate), asked(&lab)), (1, 0));
    let reply = ask_tcp(&server, "big.EXAMPLE.com.", TXT).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(asked(&corporate), 1, "the longest zone counts");
    assert!(asked(&lab) > 0);
    // What the resolver does not carry goes the same way, what is in no zone goes nowhere.
    let odd = question("www.example.com.", RecordType::Unknown(65_400));
    raw_udp(server.local_addrs()[0], &odd.to_vec().unwrap()).await;
    assert_eq!(asked(&corporate), 2);
    let reply = ask(&server, "example.org.", A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    server.shutdown().await;
    corporate.stop().await;
    lab.stop().await;
}
