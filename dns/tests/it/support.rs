//! A small mesh in one process, and a client that trusts nothing of ours.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dns::{Config, DnsServer, Readiness};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use libmesh::catalog::testing::TestNode;
use libmesh::model::{CheckRecord, Health, Host, Instance, InstanceId, Liveness, ServiceName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Long enough for any answer on a busy machine; reached only when none comes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Nodes `node1` at 10.0.0.1, `node2` at 10.0.0.2, …; DNS reads the catalog of the first.
pub(crate) struct Mesh {
    pub(crate) nodes: Vec<TestNode>,
}

impl Mesh {
    pub(crate) fn of(count: u8) -> Self {
        let address = |n| IpAddr::from([10, 0, 0, n]);
        let nodes = (1..=count)
            .map(|n| TestNode::new(&format!("node{n}"), address(n)))
            .collect();
        let mesh = Self { nodes };
        mesh.sync();
        mesh
    }

    /// Nodes with these names and addresses.
    pub(crate) fn named(nodes: &[(&str, &str)]) -> Self {
        let node = |(name, ip): &(&str, &str)| TestNode::new(name, ip.parse().unwrap());
        let mesh = Self {
            nodes: nodes.iter().map(node).collect(),
        };
        mesh.sync();
        mesh
    }

    /// Brings what all nodes know to the first.
    pub(crate) fn sync(&self) {
        for node in &self.nodes[1..] {
            node.send_to(&self.nodes[0].catalog);
        }
    }

    /// Registers an instance on a node (counted from 1) and brings it to the first.
    pub(crate) fn put(&self, node: usize, instance: Instance) {
        self.nodes[node - 1]
            .local()
            .put_service(instance)
            .expect("well formed");
        self.sync();
    }

    /// Sets the health of an instance through a check of its own.
    pub(crate) fn set_health(&self, node: usize, instance: &Instance, status: Health) {
        let check = CheckRecord {
            id: Arc::from(format!("check:{}", instance.id)),
            name: Arc::from("up"),
            service: Some(instance.id.clone()),
            status,
            kind: Arc::from("ttl"),
            notes: Arc::from(""),
            create_stamp: 0,
            modify_stamp: 0,
        };
        self.nodes[node - 1]
            .local()
            .put_check(check)
            .expect("well formed");
        self.sync();
    }

    pub(crate) fn set_liveness(&self, node: usize, liveness: Liveness) {
        self.nodes[0]
            .catalog
            .set_liveness(self.nodes[node - 1].id(), liveness);
    }

    pub(crate) fn serve(&self) -> DnsServer {
        self.serve_with(Config::default())
    }

    /// A server on a free port of loopback, unless `config` names another address.
    pub(crate) fn serve_with(&self, mut config: Config) -> DnsServer {
        if config.listen == Config::default().listen {
            config.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        }
        DnsServer::bind(&config, self.nodes[0].catalog.clone(), Readiness::new(true))
            .expect("a free port")
    }
}

pub(crate) fn instance(service: &str, port: u16) -> Instance {
    let mut instance = Instance::new(ServiceName::parse(service).unwrap(), port).unwrap();
    instance.id = InstanceId::parse(&format!("{service}-{port}")).unwrap();
    instance
}

pub(crate) fn at(address: &str, mut instance: Instance) -> Instance {
    instance.address = Some(Host::parse(address).unwrap());
    instance
}

pub(crate) fn tagged(tags: &[&str], mut instance: Instance) -> Instance {
    instance.tags = tags.iter().map(|tag| Arc::from(*tag)).collect();
    instance
}

pub(crate) fn question(name: &str, rtype: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).expect("a name");
    message.add_query(Query::query(name, rtype));
    message
}

pub(crate) fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

pub(crate) async fn ask(server: &DnsServer, name: &str, rtype: RecordType) -> Message {
    ask_with(server, question(name, rtype)).await
}

/// Asks over UDP and checks what must hold for every reply.
pub(crate) async fn ask_with(server: &DnsServer, message: Message) -> Message {
    let octets = raw_udp(server.local_addrs()[0], &message.to_vec().unwrap()).await;
    let limit = message
        .edns
        .as_ref()
        .map_or(512, |edns| usize::from(edns.max_payload()));
    assert!(
        octets.len() <= limit,
        "{} octets, {limit} asked for",
        octets.len()
    );
    checked(&message, &octets)
}

pub(crate) async fn ask_tcp(server: &DnsServer, name: &str, rtype: RecordType) -> Message {
    let message = question(name, rtype);
    let mut stream = TcpStream::connect(server.local_addrs()[0]).await.unwrap();
    write_frame(&mut stream, &message.to_vec().unwrap()).await;
    checked(&message, &read_frame(&mut stream).await.expect("a reply"))
}

fn checked(asked: &Message, octets: &[u8]) -> Message {
    let reply = Message::from_vec(octets).expect("the reply decodes");
    assert_eq!(reply.metadata.id, asked.metadata.id);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    let spelt = |m: &Message| {
        m.queries
            .iter()
            .map(|q| q.name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        spelt(&reply),
        spelt(asked),
        "the question comes back as it was spelt"
    );
    assert_eq!(reply.edns.is_some(), asked.edns.is_some());
    reply
}

pub(crate) async fn raw_udp(server: SocketAddr, octets: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(octets).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let len = timeout(DEADLINE, socket.recv(&mut buffer))
        .await
        .expect("a reply in time")
        .unwrap();
    buffer.truncate(len);
    buffer
}

pub(crate) async fn write_frame(stream: &mut TcpStream, octets: &[u8]) {
    let len = u16::try_from(octets.len()).unwrap();
    stream
        .write_all(&[&len.to_be_bytes()[..], octets].concat())
        .await
        .unwrap();
}

/// The next frame; `None` at the end of the connection.
pub(crate) async fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let read = async {
        let len = stream.read_u16().await.ok()?;
        let mut frame = vec![0; usize::from(len)];
        stream.read_exact(&mut frame).await.ok()?;
        Some(frame)
    };
    timeout(DEADLINE, read)
        .await
        .expect("a frame or the end in time")
}

/// `10.0.0.1`, `1 1 80 node1.node.dc1.mesh.`, …, sorted.
pub(crate) fn data(reply: &Message) -> Vec<String> {
    let mut data: Vec<_> = reply
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect();
    data.sort();
    data
}

/// `<owner> <data>` of the additional section, sorted.
pub(crate) fn additional(reply: &Message) -> Vec<String> {
    let mut data: Vec<_> = reply
        .additionals
        .iter()
        .map(|r| format!("{} {}", r.name, r.data))
        .collect();
    data.sort();
    data
}

/// The minimum of the SOA in the authority section.
pub(crate) fn soa_minimum(reply: &Message) -> Option<u32> {
    reply
        .authorities
        .iter()
        .find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.minimum),
            _ => None,
        })
}
