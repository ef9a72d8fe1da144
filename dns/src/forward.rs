//! Names that are not ours.
//!
//! Ordinary questions go through hickory-resolver, which caches and changes to the next upstream by itself. What it
//! would not carry faithfully (types it does not know, other classes and opcodes, questions with DNSSEC bits or
//! without "recursion desired") is relayed octet for octet; only the message id is changed on the way.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns as HickoryEdns, Message, MessageType, OpCode, Query as HickoryQuery};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinEncodable};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::system_conf::read_system_conf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::config::{Config, Upstreams};
use crate::responder::{Shared, Via};
use crate::server::Error;
use crate::wire::message::{Header, Query, Question, Request};
use crate::wire::name::Domain;
use crate::wire::{CLASS_IN, EDE_NETWORK_ERROR, HEADER, UDP_WITHOUT_EDNS, rcode};

/// Questions that may wait for upstreams at the same time; more get SERVFAIL at once.
const UNDER_WAY: usize = 1024;
/// Aliases that are gone after, one behind the other (Consul's limit).
const ALIASES: usize = 3;
/// Octets of a relayed UDP reply.
const RELAY_BUFFER: usize = 4096;

/// Each upstream has a resolver of its own: one for all would let a silent upstream use up the time of the others.
struct Upstream {
    address: SocketAddr,
    resolver: TokioResolver,
}

/// Those who answer for the same names.
struct Group {
    /// `None`: for all that no other group is for.
    zone: Option<Domain>,
    upstreams: Vec<Upstream>,
    /// Which upstream answered last.
    preferred: AtomicUsize,
}

/// Asks upstreams.
pub struct Forwarder {
    /// The longest zones first.
    groups: Vec<Group>,
    wait: Duration,
    under_way: Arc<Semaphore>,
}

impl Forwarder {
    /// The forwarder that `config` asks for, if any. `own` are the addresses that the server listens on.
    pub(crate) fn new(config: &Config, own: &[SocketAddr]) -> Result<Option<Self>, Error> {
        let others = match &config.upstreams {
            Upstreams::None => Vec::new(),
            Upstreams::List(list) if list.is_empty() => return Err(Error::NoUpstream),
            Upstreams::List(list) => list.clone(),
            Upstreams::System => {
                let mut list =
                    system().map_err(|error| Error::SystemResolvers(error.to_string()))?;
                // Usual where the whole system asks us first.
                list.retain(|upstream| !is_self(*upstream, own));
                if list.is_empty() {
                    tracing::warn!(
                        "the system has no resolver besides this server: foreign names are refused"
                    );
                }
                list
            }
        };
        let zones = config.forward.iter();
        let zones = zones.map(|(zone, list)| (Some(zone.clone()), list.clone()));
        let others = Some((None, others)).filter(|(_, list)| !list.is_empty());
        let mut groups = Vec::new();
        for (zone, list) in zones.chain(others) {
            if list.is_empty() {
                return Err(Error::NoUpstream);
            }
            if let Some(upstream) = list.iter().find(|upstream| is_self(**upstream, own)) {
                return Err(Error::UpstreamIsSelf(*upstream));
            }
            groups.push(Group::new(zone, &list, config.upstream_timeout)?);
        }
        if groups.is_empty() {
            return Ok(None);
        }
        groups.sort_by_key(|group| {
            let len = group.zone.as_ref().map_or(0, |zone| zone.as_bytes().len());
            std::cmp::Reverse(len)
        });
        Ok(Some(Self {
            groups,
            wait: config.upstream_timeout,
            under_way: Arc::new(Semaphore::new(UNDER_WAY)),
        }))
    }

    /// Whether there is an upstream for any name.
    pub(crate) fn is_for_all(&self) -> bool {
        self.groups.iter().any(|group| group.zone.is_none())
    }

    /// Those who answer for a name on the wire.
    fn group(&self, name: &[u8]) -> Option<&Group> {
        let name = name.to_ascii_lowercase();
        self.groups.iter().find(|group| {
            let zone = group.zone.as_ref();
            zone.is_none_or(|zone| zone.prefix_len(&name).is_some())
        })
    }

    /// The right to have one more question under way; `None` when there are too many.
    pub(crate) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.under_way).try_acquire_owned().ok()
    }

    /// Writes the answer for when there is no [`permit`](Self::permit); its length.
    pub(crate) fn busy(&self, shared: &Shared, request: &[u8], out: &mut [u8]) -> usize {
        failure(shared, request, out)
    }

    /// The reply to a foreign request that the responder handed over.
    pub(crate) async fn ask(&self, shared: &Shared, request: &[u8], via: Via) -> Vec<u8> {
        shared.stats().forwarded();
        let reply = match Request::parse(request) {
            Request::Query(query) => match shared.answer(query.header, &query.question) {
                Some(own) => self.follow(shared, &query, &own, via).await,
                None => match ordinary(&query) {
                    Some((name, rtype)) => self.resolve(shared, &query, name, rtype, via).await,
                    None => self.relay(request, via).await,
                },
            },
            _ => self.relay(request, via).await,
        };
        let reply = reply.unwrap_or_else(|| {
            let mut out = vec![0; UDP_WITHOUT_EDNS];
            let len = failure(shared, request, &mut out);
            out.truncate(len);
            out
        });
        shared
            .stats()
            .reply(u16::from(reply.get(3).copied().unwrap_or_default() & 0xF));
        reply
    }

    /// Through the resolver; `None` when no upstream answered.
    async fn resolve(
        &self,
        shared: &Shared,
        query: &Query<'_>,
        name: Name,
        rtype: RecordType,
        via: Via,
    ) -> Option<Vec<u8>> {
        let mut reply = Message::new(query.header.id, MessageType::Response, OpCode::Query);
        reply.metadata.recursion_desired = true;
        reply.metadata.recursion_available = true;
        reply.add_query(HickoryQuery::query(name.clone(), rtype));
        self.resolve_into(&mut reply, &name, rtype).await?;
        finish(shared, reply, query, via)
    }

    /// A name of ours that is an alias: the alias, then what it stands for, as far as that can be found out.
    async fn follow(
        &self,
        shared: &Shared,
        query: &Query<'_>,
        own: &[u8],
        via: Via,
    ) -> Option<Vec<u8>> {
        let mut reply = Message::from_vec(own).ok()?;
        let rtype = RecordType::from(query.question.rtype);
        for _ in 0..ALIASES {
            let Some(RData::CNAME(CNAME(target))) = reply.answers.last().map(|record| &record.data)
            else {
                break;
            };
            let target = target.clone();
            match own_records(shared, query.header, &target, rtype) {
                Some(records) => reply.add_answers(records),
                None => {
                    // Without an upstream's word the alias alone has to do.
                    self.resolve_into(&mut reply, &target, rtype).await;
                    break;
                }
            };
        }
        finish(shared, reply, query, via)
    }

    /// Puts what the first upstream that answers says into `reply`; `None` when none does.
    async fn resolve_into(
        &self,
        reply: &mut Message,
        name: &Name,
        rtype: RecordType,
    ) -> Option<()> {
        let group = self.group(&name.to_bytes().ok()?)?;
        for (index, upstream) in group.in_order() {
            match upstream.resolver.lookup(name.clone(), rtype).await {
                Ok(lookup) => {
                    reply.metadata.response_code = lookup.message().metadata.response_code;
                    reply.add_answers(lookup.answers().iter().cloned());
                    reply.add_authorities(lookup.authorities().iter().cloned());
                }
                Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                    reply.metadata.response_code = none.response_code;
                    if let Some(soa) = none.soa {
                        reply.add_authority(soa.into_record_of_rdata());
                    }
                }
                Err(error) => {
                    tracing::debug!(upstream = %upstream.address, %error, "upstream failed");
                    continue;
                }
            }
            group.preferred.store(index, Ordering::Relaxed);
            return Some(());
        }
        None
    }

    /// Octet for octet; `None` when no upstream answered.
    async fn relay(&self, request: &[u8], via: Via) -> Option<Vec<u8>> {
        let mut sent = request.to_vec();
        // An id of our own: the asker's may be known to somebody who would like to answer in the upstream's place.
        let id: [u8; 2] = rand::random();
        sent[..2].copy_from_slice(&id);
        let group = self.group(question_of(request)?.name.as_bytes())?;
        for (index, upstream) in group.in_order() {
            let address = upstream.address;
            let asked = async {
                match via {
                    Via::Udp => relay_udp(address, &sent).await,
                    Via::Tcp => relay_tcp(address, &sent).await,
                }
            };
            match timeout(self.wait, asked).await {
                Ok(Ok(mut reply)) => {
                    group.preferred.store(index, Ordering::Relaxed);
                    reply[..2].copy_from_slice(&request[..2]);
                    return Some(reply);
                }
                Ok(Err(error)) => tracing::debug!(upstream = %address, %error, "upstream failed"),
                Err(_) => tracing::debug!(upstream = %address, "upstream did not answer in time"),
            }
        }
        None
    }
}

impl Group {
    fn new(zone: Option<Domain>, list: &[SocketAddr], wait: Duration) -> Result<Self, Error> {
        let upstreams = list.iter().map(|address| {
            Ok(Upstream {
                address: *address,
                resolver: resolver(*address, wait)?,
            })
        });
        let upstreams = upstreams
            .collect::<Result<_, NetError>>()
            .map_err(|error| Error::SystemResolvers(error.to_string()))?;
        Ok(Self {
            zone,
            upstreams,
            preferred: AtomicUsize::new(0),
        })
    }

    /// All upstreams, the one that answered last first.
    fn in_order(&self) -> impl Iterator<Item = (usize, &Upstream)> {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.upstreams.len();
        (0..count).map(move |i| {
            let index = (first + i) % count;
            (index, &self.upstreams[index])
        })
    }
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder")
            .field(
                "upstreams",
                &self
                    .groups
                    .iter()
                    .flat_map(|group| &group.upstreams)
                    .map(|upstream| upstream.address)
                    .collect::<Vec<_>>(),
            )
            .finish_non_exhaustive()
    }
}

/// Encodes a reply for its asker; one that is too large over UDP goes without records, with the TC bit.
fn finish(shared: &Shared, mut reply: Message, query: &Query<'_>, via: Via) -> Option<Vec<u8>> {
    let limit = query.edns.map_or(UDP_WITHOUT_EDNS, |edns| {
        usize::from(edns.payload.max(UDP_WITHOUT_EDNS as u16))
    });
    if query.edns.is_some() {
        let mut edns = HickoryEdns::new();
        edns.set_max_payload(shared.payload());
        reply.set_edns(edns);
    }
    let octets = reply.to_vec().ok()?;
    if via == Via::Tcp || octets.len() <= limit {
        return Some(octets);
    }
    reply.metadata.truncation = true;
    reply.answers.clear();
    reply.authorities.clear();
    reply.to_vec().ok()
}

/// What we ourselves know about the target of an alias; `None` when it is not one of our names.
fn own_records(
    shared: &Shared,
    header: Header,
    target: &Name,
    rtype: RecordType,
) -> Option<Vec<Record>> {
    let mut bytes = target.to_bytes().ok()?;
    bytes.extend_from_slice(&u16::from(rtype).to_be_bytes());
    bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
    let reply = shared.answer(header, &Question::parse(&bytes)?)?;
    Some(Message::from_vec(&reply).ok()?.answers)
}

/// Name and type of a question that the resolver carries faithfully.
fn ordinary(query: &Query<'_>) -> Option<(Name, RecordType)> {
    let Query {
        header,
        question,
        edns,
    } = query;
    let plain = question.class == CLASS_IN
        && header.flags & Header::RD != 0
        && header.flags & Header::CD == 0
        && edns.is_none_or(|edns| !edns.dnssec_ok);
    let rtype = RecordType::from(question.rtype);
    let carried = matches!(
        rtype,
        RecordType::A
            | RecordType::AAAA
            | RecordType::CNAME
            | RecordType::MX
            | RecordType::NS
            | RecordType::PTR
            | RecordType::SOA
            | RecordType::SRV
            | RecordType::TXT
    );
    if !plain || !carried {
        return None;
    }
    Some((Name::from_bytes(question.name.as_bytes()).ok()?, rtype))
}

fn failure(shared: &Shared, request: &[u8], out: &mut [u8]) -> usize {
    match Request::parse(request) {
        Request::Query(Query {
            header,
            question,
            edns,
        }) => shared.error(
            header,
            Some(&question),
            edns.map(|edns| shared.edns(edns, Some(EDE_NETWORK_ERROR), None)),
            rcode::SERVFAIL,
            out,
        ),
        Request::Other(header, question) => {
            shared.error(header, question.as_ref(), None, rcode::SERVFAIL, out)
        }
        Request::Malformed(_) | Request::Ignore => 0,
    }
}

async fn relay_udp(upstream: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if upstream.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    // A socket of its own: the port that the kernel picks is part of what a forger would have to guess.
    let socket = tokio::net::UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(request).await?;
    let mut buffer = vec![0; RELAY_BUFFER];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if answers(&buffer[..len], request) {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
}

async fn relay_tcp(upstream: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let len = u16::try_from(request.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream
        .write_all(&[&len.to_be_bytes()[..], request].concat())
        .await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    if answers(&reply, request) {
        Ok(reply)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Whether `reply` is a response to `request`: same id and opcode, and the same question where it repeats one.
fn answers(reply: &[u8], request: &[u8]) -> bool {
    let (Some(head), Some(asked)) = (
        reply.first_chunk::<HEADER>(),
        request.first_chunk::<HEADER>(),
    ) else {
        return false;
    };
    let same_question = match (question_of(reply), question_of(request)) {
        (Some(a), Some(b)) => a.bytes.eq_ignore_ascii_case(b.bytes),
        // Error replies may leave the question out.
        (None, _) => head[4..6] == [0, 0],
        (Some(_), None) => false,
    };
    head[..2] == asked[..2]
        && head[2] & 0x80 != 0
        && head[2] & 0x78 == asked[2] & 0x78
        && same_question
}

fn question_of(message: &[u8]) -> Option<Question<'_>> {
    Question::parse(message.get(HEADER..)?).filter(|_| message[4..6] == [0, 1])
}

/// Whether asking `upstream` would ask ourselves.
fn is_self(upstream: SocketAddr, own: &[SocketAddr]) -> bool {
    own.iter().any(|own| {
        own.port() == upstream.port()
            && (own.ip() == upstream.ip()
                || (own.ip().is_unspecified()
                    && own.is_ipv4() == upstream.is_ipv4()
                    && is_local(upstream.ip())))
    })
}

/// Whether this machine has the address: only then can a socket be bound to it.
fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

fn system() -> Result<Vec<SocketAddr>, NetError> {
    let (config, _) = read_system_conf()?;
    let mut list = Vec::new();
    for server in config.name_servers() {
        let port = server
            .connections
            .first()
            .map_or(53, |connection| connection.port);
        list.push(SocketAddr::new(server.ip, port));
    }
    Ok(list)
}

fn resolver(upstream: SocketAddr, wait: Duration) -> Result<TokioResolver, NetError> {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = upstream.port();
        connection
    });
    let server = NameServerConfig::new(upstream.ip(), true, connections.into());
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut options = ResolverOpts::default();
    options.timeout = wait;
    options.attempts = 1;
    options.use_hosts_file = ResolveHosts::Never;
    options.max_active_requests = UNDER_WAY;
    options.try_tcp_on_error = true;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
}

#[cfg(test)]
mod tests;
