//! Sockets, limits, bad input, starting and stopping.

use std::num::NonZeroUsize;
use std::time::Duration;

use dns::{Config, DnsServer, Error, Readiness, TcpLimits};
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::RecordType::{A, AXFR};
use hickory_proto::rr::{DNSClass, rdata::opt::EdnsCode};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::support::{
    DEADLINE, Mesh, ask, ask_tcp, ask_with, data, instance, question, raw_udp, read_frame,
    with_edns, write_frame,
};

fn web() -> Mesh {
    let mesh = Mesh::of(1);
    mesh.put(1, instance("web", 80));
    mesh
}

#[tokio::test]
async fn bad_requests_get_their_codes() {
    let mesh = web();
    let server = mesh.serve();
    let addr = server.local_addrs()[0];
    let code = async |message: Message| ask_with(&server, message).await.metadata.response_code;

    let mut notify = question("web.service.mesh.", A);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(code(notify).await, ResponseCode::NotImp);
    assert_eq!(code(question("mesh.", AXFR)).await, ResponseCode::NotImp);
    let mut chaos = question("version.bind.", A);
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(code(chaos).await, ResponseCode::Refused);
    let mut future = with_edns(question("web.service.mesh.", A), 1232);
    future.edns.as_mut().unwrap().set_version(1);
    assert_eq!(u16::from(code(future).await), 16, "BADVERS");

    let mut broken = question("web.service.mesh.", A).to_vec().unwrap();
    broken.truncate(20);
    let reply = Message::from_vec(&raw_udp(addr, &broken).await).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
    let counts = server.counts();
    assert_eq!(
        (counts.notimp, counts.refused, counts.formerr, counts.other),
        (2, 1, 1, 1)
    );
    server.shutdown().await;
}

#[tokio::test]
async fn what_is_no_request_gets_no_reply_and_harms_nobody() {
    let mesh = web();
    let server = mesh.serve();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.local_addrs()[0]).await.unwrap();
    let mut response = question("web.service.mesh.", A).to_vec().unwrap();
    response[2] |= 0x80;
    for octets in [&b""[..], b"\x00", &[0xFF; 11], &response] {
        socket.send(octets).await.unwrap();
    }
    let asked = question("web.service.mesh.", A);
    socket.send(&asked.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 512];
    let len = timeout(DEADLINE, socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    let first = Message::from_vec(&buffer[..len]).unwrap();
    assert_eq!(
        first.metadata.id, asked.metadata.id,
        "something before the question was answered"
    );
    assert_eq!(server.counts().ignored, 3);
    server.shutdown().await;
}

#[tokio::test]
async fn until_ready_no_name_is_denied() {
    let mesh = web();
    let config = Config {
        listen: vec![([127, 0, 0, 1], 0).into()],
        ..Config::default()
    };
    let readiness = Readiness::new(false);
    let server =
        DnsServer::bind(&config, mesh.nodes[0].catalog.clone(), readiness.clone()).unwrap();
    let reply = ask_with(&server, with_edns(question("nope.service.mesh.", A), 1232)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    let edns = reply.edns.unwrap();
    let (_, option) = edns
        .options()
        .as_ref()
        .iter()
        .find(|(code, _)| *code == EdnsCode::Unknown(15))
        .expect("an extended error");
    assert_eq!(Vec::<u8>::try_from(option).unwrap(), [0, 14], "Not Ready");
    readiness.set(true);
    assert_eq!(
        ask(&server, "nope.service.mesh.", A)
            .await
            .metadata
            .response_code,
        ResponseCode::NXDomain
    );
    server.readiness().set(false);
    assert_eq!(
        ask(&server, "web.service.mesh.", A)
            .await
            .metadata
            .response_code,
        ResponseCode::ServFail
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_burst_is_answered_whole() {
    let mesh = web();
    for threads in [1, 2] {
        let config = Config {
            udp_threads: NonZeroUsize::new(threads).unwrap(),
            ..Config::default()
        };
        let server = mesh.serve_with(config);
        let mut sockets = Vec::new();
        for _ in 0..8 {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(server.local_addrs()[0]).await.unwrap();
            for id in 0..16 {
                let mut message = question("web.service.mesh.", A);
                message.metadata.id = id;
                socket.send(&message.to_vec().unwrap()).await.unwrap();
            }
            sockets.push(socket);
        }
        for socket in sockets {
            let mut ids = Vec::new();
            let mut buffer = [0; 512];
            for _ in 0..16 {
                let len = timeout(DEADLINE, socket.recv(&mut buffer))
                    .await
                    .expect("all replies")
                    .unwrap();
                let reply = Message::from_vec(&buffer[..len]).unwrap();
                assert_eq!(data(&reply), ["10.0.0.1"]);
                ids.push(reply.metadata.id);
            }
            ids.sort_unstable();
            assert_eq!(ids, (0..16).collect::<Vec<_>>());
        }
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_tcp_connection_carries_many_questions() {
    let mesh = web();
    let server = mesh.serve();
    let mut stream = TcpStream::connect(server.local_addrs()[0]).await.unwrap();
    let asked: Vec<_> = (0..50).map(|_| question("web.service.mesh.", A)).collect();
    for message in &asked {
        write_frame(&mut stream, &message.to_vec().unwrap()).await;
    }
    for message in &asked {
        let reply = Message::from_vec(&read_frame(&mut stream).await.unwrap()).unwrap();
        assert_eq!(
            (reply.metadata.id, data(&reply)),
            (message.metadata.id, vec!["10.0.0.1".to_owned()])
        );
    }
    // A frame in pieces, then the end of our side: the answer still comes, then the server closes too.
    let message = asked[0].to_vec().unwrap();
    stream
        .write_all(&(message.len() as u16).to_be_bytes()[..1])
        .await
        .unwrap();
    stream.flush().await.unwrap();
    stream
        .write_all(&(message.len() as u16).to_be_bytes()[1..])
        .await
        .unwrap();
    stream.write_all(&message).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(read_frame(&mut stream).await.is_some());
    assert!(read_frame(&mut stream).await.is_none());
    server.shutdown().await;
}

#[tokio::test]
async fn idle_and_surplus_connections_are_closed() {
    let mesh = web();
    let tcp = TcpLimits {
        connections: 2,
        idle: Duration::from_millis(300),
    };
    let server = mesh.serve_with(Config {
        tcp,
        ..Config::default()
    });
    let addr = server.local_addrs()[0];
    let mut first = TcpStream::connect(addr).await.unwrap();
    write_frame(
        &mut first,
        &question("web.service.mesh.", A).to_vec().unwrap(),
    )
    .await;
    assert!(read_frame(&mut first).await.is_some());
    let mut second = TcpStream::connect(addr).await.unwrap();
    // Accepted in this order: once the third is closed the second has its place.
    let mut third = TcpStream::connect(addr).await.unwrap();
    // Were it not closed, its question would be answered; the write may fail already.
    let request = question("web.service.mesh.", A).to_vec().unwrap();
    let frame = [&(request.len() as u16).to_be_bytes()[..], &request].concat();
    let _ = third.write_all(&frame).await;
    assert!(read_frame(&mut third).await.is_none(), "one too many");
    assert!(read_frame(&mut first).await.is_none(), "silent too long");
    assert!(
        read_frame(&mut second).await.is_none(),
        "never said anything"
    );
    assert_eq!(
        data(&ask_tcp(&server, "web.service.mesh.", A).await),
        ["10.0.0.1"]
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_option() {
    let mesh = web();
    let bind = |config: &Config| {
        DnsServer::bind(config, mesh.nodes[0].catalog.clone(), Readiness::new(true))
    };
    // An address of its own: tests beside this one take any free port of the usual one.
    let udp = UdpSocket::bind("127.0.0.78:0").await.unwrap();
    let taken = udp.local_addr().unwrap();
    let error = bind(&Config {
        listen: vec![taken],
        ..Config::default()
    })
    .unwrap_err();
    let text = error.to_string();
    assert!(matches!(
        error,
        Error::Listen {
            protocol: "udp",
            ..
        }
    ));
    assert!(
        text.contains(&taken.to_string())
            && text.contains("addresses.dns")
            && text.contains("in use"),
        "{text}"
    );

    // The same for TCP; the UDP side that was free must be free again.
    drop(udp);
    let tcp = TcpListener::bind(taken).await.unwrap();
    let error = bind(&Config {
        listen: vec![taken],
        ..Config::default()
    })
    .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Listen {
                protocol: "tcp",
                ..
            }
        ),
        "{error}"
    );
    drop(tcp);
    let server = bind(&Config {
        listen: vec![taken],
        ..Config::default()
    })
    .unwrap();
    assert_eq!(server.local_addrs(), [taken]);
    server.shutdown().await;

    assert!(matches!(
        bind(&Config {
            listen: vec![],
            ..Config::default()
        }),
        Err(Error::NoAddress)
    ));
    assert!(matches!(
        bind(&Config {
            domains: vec![],
            ..Config::default()
        }),
        Err(Error::NoDomain)
    ));
}

#[tokio::test]
async fn after_shutdown_nothing_is_left() {
    let mesh = web();
    let two = Config {
        // An address of its own: tests beside this one take any free port of the usual one.
        listen: vec![([127, 0, 0, 79], 0).into()],
        udp_threads: NonZeroUsize::new(2).unwrap(),
        ..Config::default()
    };
    let server = mesh.serve_with(two);
    let addr = server.local_addrs()[0];
    let mut open = TcpStream::connect(addr).await.unwrap();
    write_frame(
        &mut open,
        &question("web.service.mesh.", A).to_vec().unwrap(),
    )
    .await;
    assert!(read_frame(&mut open).await.is_some());
    timeout(DEADLINE, server.shutdown()).await.expect("stops");
    assert!(
        read_frame(&mut open).await.is_none(),
        "the connection is still open"
    );
    UdpSocket::bind(addr).await.expect("the UDP port is free");
    assert!(
        TcpStream::connect(addr).await.is_err(),
        "somebody still listens"
    );
}
