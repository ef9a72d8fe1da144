//! DNS over TLS, and cookies.

use std::sync::Arc;

use dns::{Accept, Accepted, Config, DnsServer, TcpLimits};
use hickory_proto::op::{Edns, Message};
use hickory_proto::rr::RecordType::{A, SRV};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::{DEADLINE, Mesh, data, instance, question, raw_udp};

const COOKIE: EdnsCode = EdnsCode::Cookie;

fn with_cookie(cookie: &[u8]) -> Message {
    let mut message = question("web.service.mesh.", A);
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    edns.options_mut()
        .insert(EdnsOption::Unknown(10, cookie.to_vec()));
    message.set_edns(edns);
    message
}

async fn cookie_of(server: &DnsServer, cookie: &[u8]) -> Option<Vec<u8>> {
    let asked = with_cookie(cookie).to_vec().unwrap();
    let reply = Message::from_vec(&raw_udp(server.local_addrs()[0], &asked).await).unwrap();
    assert_eq!(data(&reply), ["10.0.0.1"]);
    match reply.edns?.option(COOKIE)? {
        EdnsOption::Unknown(10, cookie) => Some(cookie.clone()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_cookie_comes_back_whole_and_is_good_the_next_time() {
    let mesh = Mesh::of(1);
    mesh.put(1, instance("web", 80));
    let server = mesh.serve();
    let first = cookie_of(&server, &[7; 8]).await.expect("a cookie");
    assert!(first.len() == 24 && first.starts_with(&[7; 8]));
    assert_eq!(cookie_of(&server, &first).await, Some(first.clone()));
    // One that is not ours, or another client's, is replaced.
    let foreign = [&[7; 8][..], &[9; 16]].concat();
    let replaced = cookie_of(&server, &foreign).await.expect("a cookie");
    assert!(replaced != foreign && replaced.starts_with(&[7; 8]));
    // A wrong length is no cookie, and the request not well formed.
    let asked = with_cookie(&[7; 11]).to_vec().unwrap();
    let reply = raw_udp(server.local_addrs()[0], &asked).await;
    assert_eq!(reply[3] & 0xF, 1, "FORMERR");
    server.shutdown().await;
}

#[derive(Debug)]
struct Certified(Arc<ServerConfig>);

impl Accept for Certified {
    fn accept(&self, stream: TcpStream) -> Accepted<'_> {
        let handshake = TlsAcceptor::from(Arc::clone(&self.0)).accept(stream);
        Box::pin(async { Ok(Box::new(handshake.await?) as _) })
    }
}

#[tokio::test]
async fn questions_go_over_tls_too() {
    let made = rcgen::generate_simple_self_signed(["dns.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let tls = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mesh = Mesh::of(1);
    for port in 1..=100 {
        mesh.put(1, instance("web", port));
    }
    let config = Config {
        tls: Some((
            vec![([127, 0, 0, 1], 0).into()],
            Arc::new(Certified(Arc::new(tls))),
        )),
        tcp: TcpLimits {
            idle: Duration::from_millis(300),
            ..TcpLimits::default()
        },
        ..Config::default()
    };
    let server = mesh.serve_with(config);
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let addr = server.tls_addrs()[0];
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("dns.test").unwrap();
    let connector = TlsConnector::from(Arc::new(client));
    let mut stream = connector.connect(name, stream).await.unwrap();
    // Several on one connection, sent together.
    let mut asked = Vec::new();
    for rtype in [A, SRV, A] {
        let message = question("web.service.mesh.", rtype).to_vec().unwrap();
        asked.extend((message.len() as u16).to_be_bytes());
        asked.extend(message);
    }
    stream.write_all(&asked).await.unwrap();
    for answers in [1, 100, 1] {
        let len = timeout(DEADLINE, stream.read_u16()).await.unwrap().unwrap();
        let mut reply = vec![0; len.into()];
        stream.read_exact(&mut reply).await.unwrap();
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(reply.answers.len(), answers);
    }
    // Who says nothing, or no TLS, is let go.
    let end = timeout(DEADLINE, stream.read_u8()).await.expect("closed");
    assert!(end.is_err());
    let mut silent = TcpStream::connect(addr).await.unwrap();
    let mut plain = TcpStream::connect(addr).await.unwrap();
    plain.write_all(&asked).await.unwrap();
    for stream in [&mut silent, &mut plain] {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = timeout(DEADLINE, stream.read_to_end(&mut rest))
            .await
            .expect("closed");
        assert!(rest.len() < 12, "no answer in the clear");
    }
    server.shutdown().await;
}
