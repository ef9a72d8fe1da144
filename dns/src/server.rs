//! Sockets around the [`Responder`]: UDP on threads of its own, TCP and forwarding on the caller's runtime.
//!
//! A thread that blocks in its receive call costs half the processor time per query of a task that an event loop
//! wakes, and it answers without handing anything to another thread.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use libmesh::catalog::Catalog;
use socket2::{Domain as Family, Protocol, Socket, Type};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, RateLimit, Upstreams};
use crate::forward::Forwarder;
use crate::limit::{Limiter, Verdict};
use crate::responder::{Outcome, Readiness, Responder, Shared, Via};
use crate::secured::Accept;
use crate::stats::Counts;
use crate::sys;
use crate::zone::Zone;
use crate::zone::explain::Explanation;

mod tcp;

pub(crate) use tcp::fuzz_stream;

/// How often a free port is tried before the TCP side of it must be free too.
const PORT_ATTEMPTS: u32 = 16;

/// Octets of requests that wait in the kernel.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error(
        "cannot listen for DNS on {address} ({protocol}): {source}; choose another with `addresses.dns` or `ports.dns`"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// `udp`, `tcp` or `tls`.
        protocol: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No address to listen on.
    #[error("there is no address to listen on for DNS: set `addresses.dns`")]
    NoAddress,
    /// No domain to answer for.
    #[error("there is no domain to answer for: set `dns.domains`")]
    NoDomain,
    /// An upstream is this server.
    #[error(
        "upstream {0} is this DNS server itself: queries would go round for ever; change `dns.recursors` or `dns.forward`"
    )]
    UpstreamIsSelf(SocketAddr),
    /// The upstream list is empty.
    #[error(
        "a list of upstreams is empty: name some in `dns.recursors` or `dns.forward`, or leave it out"
    )]
    NoUpstream,
    /// The system's resolver configuration cannot be read.
    #[error("cannot read the system's resolvers: {0}; name them in `dns.recursors`")]
    SystemResolvers(String),
    /// A thread could not be started.
    #[error("cannot start a thread for DNS: {0}")]
    Thread(#[source] io::Error),
}

/// A running DNS server.
#[derive(Debug)]
pub struct DnsServer {
    addresses: Vec<SocketAddr>,
    tls_addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    sockets: Vec<Arc<UdpSocket>>,
    threads: Vec<JoinHandle<()>>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl DnsServer {
    /// Starts answering. Until `readiness` says so, our own names get SERVFAIL ("not ready").
    ///
    /// Must be called inside a tokio runtime, which then carries TCP and forwarding; UDP has its own threads.
    pub fn bind(config: &Config, catalog: Catalog, readiness: Readiness) -> Result<Self, Error> {
        if config.listen.is_empty() {
            return Err(Error::NoAddress);
        }
        if config.domains.is_empty() {
            return Err(Error::NoDomain);
        }
        let mut bound = Vec::new();
        for address in &config.listen {
            bound.push(bind(*address, config.udp_threads.get())?);
        }
        let tls = config.tls.iter().flat_map(|(addresses, _)| addresses);
        let tls = tls.map(|address| {
            tcp_listener(*address).map_err(|source| Error::Listen {
                address: *address,
                protocol: "tls",
                source,
            })
        });
        let tls = tls.collect::<Result<Vec<_>, _>>()?;
        let addresses: Vec<_> = bound.iter().map(|(address, ..)| *address).collect();
        let forwarder = Forwarder::new(config, &addresses)?.map(Arc::new);
        let for_all = forwarder.as_ref().is_some_and(|f| f.is_for_all());
        let config = Config {
            upstreams: match for_all {
                true => config.upstreams.clone(),
                false => Upstreams::None,
            },
            ..config.clone()
        };
        let shared = Arc::new(Shared::new(&config, Zone::new(&config, catalog), readiness));

        // From here on, dropping what is half made stops it.
        let mut server = Self {
            addresses,
            tls_addresses: tls.iter().filter_map(|it| it.local_addr().ok()).collect(),
            shared,
            stop: Arc::new(AtomicBool::new(false)),
            sockets: Vec::new(),
            threads: Vec::new(),
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        for (address, sockets, listener) in bound {
            for socket in sockets {
                server.start_udp(Arc::new(socket), forwarder.clone(), config.rate_limit)?;
            }
            let service = server.service(&config, forwarder.clone(), None);
            server.listen(listener, address, service)?;
        }
        for listener in tls {
            let acceptor = config.tls.as_ref().map(|(_, tls)| Arc::clone(tls));
            let address = listener.local_addr().unwrap_or(server.addresses[0]);
            let service = server.service(&config, forwarder.clone(), acceptor);
            server.listen(listener, address, service)?;
        }
        Ok(server)
    }

    fn service(
        &self,
        config: &Config,
        forwarder: Option<Arc<Forwarder>>,
        tls: Option<Arc<dyn Accept>>,
    ) -> tcp::Service {
        tcp::Service {
            shared: Arc::clone(&self.shared),
            forwarder,
            limits: config.tcp,
            tls,
            tasks: self.tasks.clone(),
            cancel: self.cancel.clone(),
        }
    }

    fn listen(
        &self,
        listener: TcpListener,
        address: SocketAddr,
        service: tcp::Service,
    ) -> Result<(), Error> {
        let listener = tokio::net::TcpListener::from_std(listener);
        let listener = listener.map_err(|source| Error::Listen {
            address,
            protocol: "tcp",
            source,
        })?;
        self.tasks.spawn(service.run(listener));
        Ok(())
    }

    /// Where it listens, UDP and TCP alike, in the order of [`Config::listen`].
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where it listens for DNS over TLS.
    pub fn tls_addrs(&self) -> &[SocketAddr] {
        &self.tls_addresses
    }

    /// What can explain answers, also while the server is somebody else's.
    pub fn explainer(&self) -> Explainer {
        Explainer(Arc::clone(&self.shared))
    }

    /// What was answered so far.
    pub fn counts(&self) -> Counts {
        self.shared.stats().counts()
    }

    /// Whether our names are answered yet; can be set.
    pub fn readiness(&self) -> &Readiness {
        self.shared.readiness()
    }

    /// Stops, and returns when no thread, task or socket is left. Queries that wait for an upstream get no answer.
    pub async fn shutdown(mut self) {
        self.signal();
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().for_each(|thread| {
                if thread.join().is_err() {
                    tracing::error!("a DNS thread panicked");
                }
            });
        });
        if joined.await.is_err() {
            tracing::error!("DNS threads could not be joined");
        }
        self.tasks.wait().await;
    }

    fn signal(&self) {
        self.stop.store(true, Ordering::Release);
        self.cancel.cancel();
        self.tasks.close();
        self.sockets.iter().for_each(|socket| sys::wake(socket));
    }

    fn start_udp(
        &mut self,
        socket: Arc<UdpSocket>,
        forwarder: Option<Arc<Forwarder>>,
        rate_limit: RateLimit,
    ) -> Result<(), Error> {
        let mut responder = Responder::new(Arc::clone(&self.shared));
        let mut limiter = Limiter::new(rate_limit);
        let stop = Arc::clone(&self.stop);
        let forward = forwarder.map(|forwarder| UdpForward {
            forwarder,
            shared: Arc::clone(&self.shared),
            socket: Arc::clone(&socket),
            runtime: Handle::current(),
            tasks: self.tasks.clone(),
            cancel: self.cancel.clone(),
        });
        self.sockets.push(Arc::clone(&socket));
        let thread = std::thread::Builder::new()
            .name("dns-udp".to_owned())
            .spawn(move || {
                let result = sys::serve(
                    &socket,
                    &stop,
                    Responder::UDP_BUFFER,
                    |request, from, reply| {
                        let ip = from.ip();
                        let verdict = limiter.admit(ip);
                        if verdict != Verdict::Answer && !responder.knows(request, ip) {
                            return responder.refuse(request, ip, verdict, reply);
                        }
                        let outcome = responder.respond_to(request, Via::Udp, ip, reply);
                        match (outcome, &forward) {
                            (Outcome::Reply(len), _) => len,
                            (Outcome::Forward, Some(forward)) => {
                                forward.start(request, from, reply)
                            }
                            (Outcome::Forward | Outcome::Ignore, _) => 0,
                        }
                    },
                );
                if let Err(error) = result {
                    tracing::error!(%error, "DNS over UDP stopped");
                }
            });
        self.threads.push(thread.map_err(Error::Thread)?);
        Ok(())
    }
}

/// Explains a server's answers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Explainer(Arc<Shared>);

impl Explainer {
    /// Why a name, with or without its last dot, is answered as it is for a record type, given by its number. `None`
    /// when it is no name. Reads the catalog; costs as much as making an answer.
    pub fn explain(&self, name: &str, rtype: u16) -> Option<Explanation> {
        self.0.explain(name, rtype)
    }

    /// What the server answered so far.
    pub fn counts(&self) -> Counts {
        self.0.stats().counts()
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.signal();
    }
}

/// Hands requests of a UDP thread to the runtime.
struct UdpForward {
    forwarder: Arc<Forwarder>,
    shared: Arc<Shared>,
    socket: Arc<UdpSocket>,
    runtime: Handle,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl UdpForward {
    /// Starts asking upstream. With too many under way already, writes SERVFAIL into `reply` and returns its length.
    fn start(&self, request: &[u8], from: SocketAddr, reply: &mut [u8]) -> usize {
        let Some(permit) = self.forwarder.permit() else {
            return self.forwarder.busy(&self.shared, request, reply);
        };
        let request = request.to_vec();
        let (forwarder, shared, socket) = (
            Arc::clone(&self.forwarder),
            Arc::clone(&self.shared),
            Arc::clone(&self.socket),
        );
        let cancel = self.cancel.clone();
        let task = async move {
            let _permit = permit;
            tokio::select! {
                () = cancel.cancelled() => {}
                reply = forwarder.ask(&shared, &request, Via::Udp) => {
                    // A lost reply is the asker's to ask again for.
                    let _ = socket.send_to(&reply, from);
                }
            }
        };
        self.tasks.spawn_on(task, &self.runtime);
        0
    }
}

/// Binds UDP sockets and a TCP listener to the same port. With port 0 that takes some luck, so it is tried again.
fn bind(
    address: SocketAddr,
    threads: usize,
) -> Result<(SocketAddr, Vec<UdpSocket>, TcpListener), Error> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let udp = |source| Error::Listen {
            address,
            protocol: "udp",
            source,
        };
        let first = udp_socket(address, threads > 1).map_err(udp)?;
        let local = first.local_addr().map_err(udp)?;
        match tcp_listener(local) {
            Ok(listener) => {
                let mut sockets = vec![first];
                for _ in 1..threads {
                    sockets.push(udp_socket(local, true).map_err(udp)?);
                }
                return Ok((local, sockets, listener));
            }
            Err(_) if address.port() == 0 && attempt < PORT_ATTEMPTS => {}
            Err(source) => {
                return Err(Error::Listen {
                    address: local,
                    protocol: "tcp",
                    source,
                });
            }
        }
    }
}

fn udp_socket(address: SocketAddr, share_port: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Family::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` can be listened on side by side.
        socket.set_only_v6(true)?;
    }
    if share_port {
        socket.set_reuse_port(true)?;
    }
    // A burst should wait rather than be lost; the system may grant less than is asked for.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    sys::prepare(&socket)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Family::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of the last run that are still closing must not keep a restart from its port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(256)?;
    Ok(socket.into())
}
