//! The agent of a host: a mesh node, and everything that the host's own processes ask it.
//!
//! [`Agent::start`] puts the parts together: the [`Mesh`] node, the services of the configuration and
//! their checks, DNS, the Consul-compatible interface on TCP (and TLS), and the Unix socket on which local
//! callers attach. `mesh server` starts the same agent with [`Extras`]: own credentials, own certificates,
//! further routes. [`Agent::run`] then waits for signals: TERM or INT drain and leave (or announce a restart), a second
//! one stops at once, HUP reads the configuration again and applies what can change live.

mod definitions;
mod dns_route;
mod dns_tls;
mod error;
mod host;
mod listen;
pub mod logging;
mod notify;
mod services;

use std::{
    fs,
    io::{self, Read},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dns::{DnsServer, Queries, Readiness, VirtualIps};
use libmesh::{
    catalog::Inherited,
    health::kept_in_maintenance,
    identity::CertificateSource,
    join::{JoinToken, NodeDirectory},
    member::MAX_RESTART,
    mesh::{Credentials, Mesh},
    model::Roles,
    rpc,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::{
    attach::{server::AttachServer, wire::LEASE},
    config::{Config, ExecChecks, OnTerm, Place},
    consul::{
        About, Acl, Around, ConsulApi, Coordinates, Events, Order, Parts, connect::Authority,
        prepared,
    },
    forward::{Forward, RpcForward},
    http::Routes,
};

pub use error::AgentError;
pub use listen::{Clients, tls_config};

use host::Host;
use services::OpenCallers;

/// How long a node that has just started may stay silent to DNS while it hears of the others.
const FILL: Duration = Duration::from_secs(3);
/// How long it then may take until one of them has said what it knows.
const CATCH_UP: Duration = Duration::from_secs(10);
/// How long everything together may take to drain and leave.
const LEAVE: Duration = Duration::from_secs(15);

/// What a server's agent has besides an agent's. [`Extras::default`] is a plain agent.
#[derive(Default)]
pub struct Extras {
    /// Credentials that need no join.
    pub credentials: Option<Credentials>,
    /// Says in the node's record that the sealed store is here.
    pub server: bool,
    /// Who signs certificates; a server over RPC unless given.
    pub certificates: Option<Arc<dyn CertificateSource>>,
    /// Further RPC routes.
    pub rpc: rpc::Router,
    /// Who answers what needs the store; a server over RPC unless given.
    pub forward: Option<Arc<dyn Forward>>,
    /// Further routes of the Consul listener and the Unix socket.
    pub routes: Routes,
    /// Lets every process of this user attach as any service: for `mesh dev`, which says so loudly.
    pub open_to: Option<u32>,
    /// DNS behaves as Consul's in every respect, and a server is an instance of the service `consul` (`--compat consul`).
    pub like_consul: bool,
}

/// A running agent. Dropping it ends it without a goodbye; see [`Agent::leave`].
pub struct Agent {
    mesh: Mesh,
    config: Config,
    host: Arc<Host>,
    consul: ConsulApi,
    dns: Option<DnsServer>,
    addresses: Addresses,
    ready: Arc<AtomicBool>,
    /// Somebody asked for a restart over the socket.
    again: Arc<Notify>,
    /// What clients of the Consul interface ask of this process.
    orders: mpsc::Receiver<Order>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Where an agent listens, with the ports it got.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// Consul-compatible HTTP.
    pub http: Option<SocketAddr>,
    /// The same over TLS.
    pub https: Option<SocketAddr>,
    /// DNS.
    pub dns: Option<SocketAddr>,
}

/// A configuration that was read again; `None` when there is none to read.
///
/// The error says what is wrong with it; it is in the log already.
pub type Reread = Result<Option<Config>, String>;

/// Orders of clients that wait.
const ORDERS: usize = 16;

/// Why [`Agent::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It left the mesh.
    Left,
    /// A second signal ended it without waiting.
    AtOnce,
    /// It announced to be back within [`MAX_RESTART`] and ended: whoever supervises it starts it again.
    Restarting,
    /// The same, asked for over the socket: it starts itself again.
    Again,
}

impl Agent {
    /// Starts everything. Returns when the node has its credentials and every listener is open.
    ///
    /// # Errors
    /// What is wrong, on what, and which configuration key changes it.
    pub async fn start(config: Config, extras: Extras) -> Result<Agent, AgentError> {
        let callers = services::callers(&config, extras.open_to)?;
        private_dir(&config.node.data_dir)?;
        let exchanges = Exchanges::default();
        let mesh = Mesh::start(mesh_config(&config, &extras, &exchanges)?).await;
        let mesh = mesh.map_err(|error| AgentError::mesh(error, &config))?;
        let node = mesh.clone();
        match Agent::assemble(mesh, config, extras, callers, exchanges).await {
            Ok(agent) => Ok(agent),
            Err(error) => {
                node.leave().await;
                Err(error)
            }
        }
    }

    async fn assemble(
        mesh: Mesh,
        config: Config,
        extras: Extras,
        callers: OpenCallers,
        exchanges: Exchanges,
    ) -> Result<Agent, AgentError> {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let unless_done = stop.clone().drop_guard();
        let forward = extras.forward.unwrap_or_else(|| {
            let client = mesh.rpc_client().clone();
            Arc::new(RpcForward::new(mesh.catalog().clone(), client))
        });
        let readiness = Readiness::new(false);
        let (virtual_ips, queries) = (VirtualIps::default(), Queries::default());
        let dns = match config.ports.dns {
            Some(port) => {
                let at = |port| {
                    let ips = config.addresses.dns.iter();
                    ips.map(move |ip| SocketAddr::new(*ip, port)).collect()
                };
                let like_consul = extras.like_consul;
                let tls = match config.ports.dns_tls {
                    None => None,
                    Some(port) => {
                        let tls = match &config.tls {
                            Some(files) => {
                                dns_tls::Certified::Files(tls_config(files, Clients::Anonymous)?)
                            }
                            None => dns_tls::Certified::Mesh(mesh.identity().clone()),
                        };
                        Some((at(port), Arc::new(tls) as _))
                    }
                };
                let dns_config = dns::Config {
                    datacenter: config.node.datacenter.clone(),
                    virtual_ips: virtual_ips.clone(),
                    queries: queries.clone(),
                    tls,
                    ..config.dns.server(at(port), mesh.addr().ip(), like_consul)
                };
                let dns = DnsServer::bind(&dns_config, mesh.catalog().clone(), readiness.clone());
                Some(dns.map_err(AgentError::dns)?)
            }
            None => None,
        };
        let mut addresses = Addresses {
            dns: dns
                .as_ref()
                .and_then(|dns| dns.local_addrs().first().copied()),
            ..Addresses::default()
        };
        for service in &config.services {
            services::register(&mesh, service).map_err(|reason| AgentError::Service {
                place: service.place.clone(),
                reason,
            })?;
        }
        for check in &config.checks {
            services::add_check(&mesh, check).map_err(AgentError::Check)?;
        }
        definitions::publish(&mesh, &config)?;
        if extras.like_consul && extras.server {
            services::register_server(&mesh).map_err(|reason| AgentError::Service {
                place: Place::named("--compat consul"),
                reason,
            })?;
        }
        let consul = consul(
            &mesh,
            &config,
            Arc::clone(&forward),
            &Standing {
                server: extras.server,
                dns: addresses.dns,
                open: extras.open_to.is_some(),
                like_consul: extras.like_consul,
            },
            queries.clone(),
        )?;
        let Exchanges {
            events,
            coordinates,
        } = exchanges;
        events.attach(&mesh);
        tasks.spawn(coordinates.clone().follow(mesh.clone(), stop.clone()));
        let (sender, orders) = mpsc::channel(ORDERS);
        consul.within(Around {
            mesh: mesh.clone(),
            orders: sender,
            events,
            coordinates,
            directory: config.node.data_dir.clone(),
            dns: dns.as_ref().map(|dns| {
                let counter = dns.explainer();
                Arc::new(move || counter.counts()) as _
            }),
        });
        let file = config.node.data_dir.join("node/services.json");
        let configured = services::configured(&config);
        let resumed = consul.resume(&file, &configured);
        resumed.map_err(|source| AgentError::Registered { path: file, source })?;
        definitions::add_checks(&mesh, &config);
        tasks.spawn(settle(mesh.clone(), stop.clone()));
        let (following, over) = (consul.clone().follow(), stop.clone());
        tasks.spawn(async move { over.run_until_cancelled(following).await });
        let host = Arc::new(Host::new(mesh.clone(), callers, forward));
        let attach = AttachServer::new(Arc::clone(&host));
        let ready = Arc::new(AtomicBool::new(false));
        let mut routes = extras
            .routes
            .merge(listen::health(Arc::clone(&ready), mesh.clone()));
        if let (Some(dns), Some(addr)) = (&dns, addresses.dns) {
            routes = routes.merge(dns_route::routes(dns.explainer(), addr));
        }
        let api = consul.with(routes);
        let again = Arc::new(Notify::new());
        let socket = attach.routes().merge(listen::restart(Arc::clone(&again)));
        let bound = listen::open(&config, &api, &socket, &stop, &tasks).await?;
        (addresses.http, addresses.https) = bound;
        tasks.spawn(attach.expire_leases(stop.clone()));
        let fill = if first(&config, extras.server) {
            Duration::ZERO
        } else {
            FILL
        };
        let becoming = become_ready(
            mesh.clone(),
            readiness,
            Arc::clone(&ready),
            fill,
            stop.clone(),
        );
        tasks.spawn(becoming);
        tasks.spawn(follow_bundle(
            mesh.clone(),
            virtual_ips,
            queries,
            stop.clone(),
        ));
        unless_done.disarm();
        Ok(Agent {
            mesh,
            config,
            host,
            consul,
            dns,
            addresses,
            ready,
            again,
            orders,
            stop,
            tasks,
        })
    }

    /// The mesh node.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The Consul-compatible interface, for further listeners.
    pub fn consul(&self) -> &ConsulApi {
        &self.consul
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Whether names are answered and `/health/ready` says so.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Runs until TERM or INT, then leaves; `reload` reads the configuration again at HUP.
    ///
    /// # Errors
    /// When signals cannot be listened for.
    pub async fn run(mut self, mut reload: impl FnMut() -> Reread) -> Result<Ended, AgentError> {
        let mut signals = Signals::new().map_err(AgentError::Signals)?;
        let addresses = &self.addresses;
        info!(
            node = %self.mesh.name(),
            gossip = %self.mesh.addr(),
            http = addresses.http.map(tracing::field::display),
            https = addresses.https.map(tracing::field::display),
            dns = addresses.dns.map(tracing::field::display),
            socket = %self.config.addresses.socket.display(),
            "agent started"
        );
        definitions::name_meaningless(&self.config.consul);
        notify::tell("READY=1");
        let (mesh, asked) = (self.mesh.clone(), Arc::clone(&self.again));
        let mut failed = std::pin::pin!(mesh.failed());
        let ended = loop {
            let told = tokio::select! {
                told = signals.next() => told,
                // Whoever may give orders lives as long as this agent.
                Some(order) = self.orders.recv() => match order {
                    Order::Leave => break Ended::Left,
                    Order::Reload(outcome) => Told::Reload(Some(outcome)),
                },
                () = asked.notified() => break Ended::Again,
                error = &mut failed => {
                    let error = AgentError::mesh(error, &self.config);
                    self.stop().await;
                    return Err(error);
                }
            };
            match told {
                Told::Stop => {
                    break match self.config.node.on_term {
                        OnTerm::Leave => Ended::Left,
                        OnTerm::Restart => Ended::Restarting,
                    };
                }
                Told::Reload(asked) => {
                    notify::tell("RELOADING=1");
                    let reloaded = match reload() {
                        Ok(Some(config)) => self.reload(config),
                        Ok(None) => Ok(()),
                        Err(reason) => Err(reason),
                    };
                    if let Some(asked) = asked {
                        // Who asked may be gone.
                        let _ = asked.send(reloaded);
                    }
                    notify::tell("READY=1");
                }
            }
        };
        match ended {
            Ended::Left => info!("leaving the mesh; a second signal stops at once"),
            _ => info!(within = ?MAX_RESTART, "restarting; a second signal stops at once"),
        }
        if ended != Ended::Again {
            notify::tell("STOPPING=1");
        }
        let again = async { while !matches!(signals.next().await, Told::Stop) {} };
        let end = async {
            match ended {
                Ended::Left => self.leave().await,
                _ => self.restart().await,
            }
        };
        tokio::select! {
            () = end => Ok(ended),
            () = again => Ok(Ended::AtOnce),
        }
    }

    /// Applies what can change live and says what cannot.
    ///
    /// # Errors
    /// Why nothing of it was applied.
    pub fn reload(&mut self, new: Config) -> Result<(), String> {
        match services::callers(&new, self.host.open_to()) {
            Ok(callers) => self.host.set_callers(callers),
            Err(error) => {
                warn!(%error, "the configuration was not reloaded");
                return Err(error.to_string());
            }
        }
        definitions::forget_gone(&self.mesh, &self.config.consul, &new.consul);
        services::replace(&self.mesh, &self.config.services, &new.services);
        services::replace_checks(&self.mesh, &self.config.checks, &new.checks);
        definitions::replace(&self.mesh, &self.config.consul, &new);
        let old = &self.config;
        let frozen = [
            ("node", old.node != new.node),
            ("join", old.join != new.join),
            ("ports", old.ports != new.ports),
            ("addresses", old.addresses != new.addresses),
            ("dns", old.dns != new.dns),
            ("tls", old.tls != new.tls),
            ("server", old.server != new.server),
            ("intentions", old.intentions != new.intentions),
            ("acl", old.acl != new.acl),
            ("health", old.health != new.health),
            ("limits", old.limits != new.limits),
        ];
        for (section, changed) in frozen {
            if changed {
                warn!("[{section}] changed: that needs a restart");
            }
        }
        logging::set_level(new.log.level);
        self.config.services.clone_from(&new.services);
        self.config.checks.clone_from(&new.checks);
        if self.config.consul.meaningless != new.consul.meaningless {
            definitions::name_meaningless(&new.consul);
        }
        self.config.consul = new.consul;
        self.config.log = new.log;
        info!(
            services = self.config.services.len() + self.config.consul.services.len(),
            "configuration reloaded: services, checks, attach rights and log level"
        );
        Ok(())
    }

    /// Closes the listeners, lets running requests end, says goodbye to the mesh.
    pub async fn leave(self) {
        let mesh = self.mesh.clone();
        self.end(mesh.leave()).await;
    }

    /// The same, but says to the mesh that it will be back: nothing bad is shown of it until [`MAX_RESTART`] has passed.
    pub async fn restart(self) {
        let mesh = self.mesh.clone();
        self.end(mesh.restart(MAX_RESTART)).await;
    }

    /// The same without a word to the mesh.
    async fn stop(self) {
        let mesh = self.mesh.clone();
        self.end(mesh.stop()).await;
    }

    async fn end(self, goodbye: impl Future<Output = ()>) {
        self.stop.cancel();
        self.tasks.close();
        let leave = async {
            // Others shall stop sending before the listeners' last requests are through.
            tokio::join!(goodbye, self.tasks.wait());
            if let Some(dns) = self.dns {
                dns.shutdown().await;
            }
        };
        if timeout(LEAVE, leave).await.is_err() {
            warn!("some work did not end in time");
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload(None),
        }
    }
}

enum Told {
    Stop,
    /// Who asked for it hears what came of it.
    Reload(Option<oneshot::Sender<Result<(), String>>>),
}

/// Takes away what the node said in its last life and nobody said again: at once, or after the time that an
/// attached sidecar has to come back. Maintenance lasts until somebody ends it.
async fn settle(mesh: Mesh, stop: CancellationToken) {
    let local = mesh.local();
    let lasts = kept_in_maintenance(&local);
    local.settle(|record| match record {
        Inherited::Instance(instance) if instance.mesh_port.is_some() => true,
        record => lasts(record),
    });
    if stop.run_until_cancelled(sleep(LEASE)).await.is_some() {
        local.settle(kept_in_maintenance(&local));
    }
}

/// Whether this is a server that knows of nobody: there is nothing to wait for.
fn first(config: &Config, server: bool) -> bool {
    server
        && config.join.seeds.is_empty()
        && NodeDirectory::open(&config.node.data_dir.join("node"))
            .and_then(|directory| directory.candidates())
            .is_ok_and(|kept| libmesh::member::decode_candidates(&kept).is_empty())
}

/// Ready when another node was heard of and has said what it knows, so that no name is denied that it has; a first or lonely
/// node after a while.
async fn become_ready(
    mesh: Mesh,
    dns: Readiness,
    ready: Arc<AtomicBool>,
    fill: Duration,
    stop: CancellationToken,
) {
    let mut changes = mesh.catalog().watch_all();
    let heard = changes.wait_for(|_| mesh.catalog().nodes().len() > 1);
    let filled = async {
        if timeout(fill, heard).await.is_err() {
            info!("no other node was heard of; answering for this one alone");
        } else if timeout(CATCH_UP, mesh.caught_up()).await.is_err() {
            warn!("the other nodes do not say what they know; answering with what is known here");
        }
    };
    if stop.run_until_cancelled(filled).await.is_none() {
        return;
    }
    dns.set(true);
    ready.store(true, Ordering::Release);
}

/// Shows what the configuration says of virtual IPs and prepared queries.
async fn follow_bundle(
    mesh: Mesh,
    virtual_ips: VirtualIps,
    queries: Queries,
    stop: CancellationToken,
) {
    let mut bundles = mesh.bundle().watch();
    let mut entries = None;
    loop {
        if let Some(bundle) = mesh.bundle().current()
            && entries.as_ref() != Some(&bundle.entries)
        {
            virtual_ips.set(bundle.virtual_ips());
            queries.advance(bundle.index, || prepared::of_bundle(&bundle));
            entries = Some(bundle.entries.clone());
        }
        match stop.run_until_cancelled(bundles.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
    }
}

/// What agents tell each other besides membership and catalog.
#[derive(Default)]
struct Exchanges {
    events: Events,
    coordinates: Coordinates,
}

/// What the Consul interface says of this agent besides its node.
struct Standing {
    server: bool,
    dns: Option<SocketAddr>,
    open: bool,
    like_consul: bool,
}

fn consul(
    mesh: &Mesh,
    config: &Config,
    forward: Arc<dyn Forward>,
    standing: &Standing,
    queries: Queries,
) -> Result<ConsulApi, AgentError> {
    let about = About {
        node: mesh.name().clone(),
        id: mesh.id(),
        datacenter: mesh.datacenter().clone(),
        server: standing.server,
        advertise: mesh.addr(),
        dns: standing.dns,
        default_allow: config.intentions.default_allow,
        exec_checks: config.health.exec_checks == ExecChecks::Api,
        acls: !standing.open || config.acl.enabled,
        like_consul: standing.like_consul,
    };
    let (trust, certificates) = (mesh.trust().clone(), Arc::clone(mesh.certificates()));
    let api = ConsulApi::new(Parts {
        about,
        catalog: mesh.catalog().clone(),
        checks: mesh.checks().clone(),
        bundles: Some(mesh.bundle().clone()),
        authority: Some(Authority::new(trust, certificates)),
        forward,
        queries,
    });
    if !config.acl.enabled {
        return Ok(api);
    }
    let acl = &config.acl;
    if let Some(file) = &acl.default_token_file {
        api.use_token(default_token(file)?);
    }
    Ok(api.with_acl(Acl::new(acl.default_allow, acl.token_ttl)))
}

fn default_token(path: &Path) -> Result<Zeroizing<String>, AgentError> {
    let failed = |source: io::Error| AgentError::AclToken {
        path: path.to_path_buf(),
        source,
    };
    let read = libmesh::files::read_private(path).map_err(failed)?;
    let bytes = read.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    match std::str::from_utf8(&bytes).map(str::trim) {
        Ok(token) if !token.is_empty() => Ok(Zeroizing::new(token.to_owned())),
        _ => Err(failed(io::ErrorKind::InvalidData.into())),
    }
}

fn mesh_config(
    config: &Config,
    extras: &Extras,
    exchanges: &Exchanges,
) -> Result<libmesh::mesh::Config, AgentError> {
    let credentials = match &extras.credentials {
        Some(given) => given.clone(),
        None => join_credentials(config)?,
    };
    let mut mesh = libmesh::mesh::Config::new(config.node.name.clone(), credentials);
    mesh.bind = SocketAddr::new(config.node.bind, config.ports.gossip);
    mesh.advertise = Some(SocketAddr::new(config.node.advertise, config.ports.gossip));
    mesh.directory = Some(config.node.data_dir.join("node"));
    (mesh.resume, mesh.settle) = (true, None);
    mesh.join_patience = config.join.patience;
    for seed in &config.join.seeds {
        let parsed = seed.parse().map_err(|error| AgentError::Seed {
            seed: seed.clone(),
            reason: format!("{error}"),
        })?;
        mesh.seeds.push(parsed);
    }
    mesh.roles = Roles {
        server: extras.server,
    };
    let pairs = config.node.meta.iter();
    mesh.meta = pairs
        .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
        .collect();
    mesh.version = env!("CARGO_PKG_VERSION").into();
    mesh.pool_limit = config.node.pool_limit;
    mesh.routes = extras
        .rpc
        .clone()
        .merge(exchanges.events.rpc())
        .merge(exchanges.coordinates.rpc());
    mesh.certificates = extras.certificates.clone();
    Ok(mesh)
}

/// With a token file: kept credentials, or else by joining. The file is not needed after the first start.
fn join_credentials(config: &Config) -> Result<Credentials, AgentError> {
    let Some(path) = &config.join.token_file else {
        return Ok(Credentials::Kept);
    };
    let directory = config.node.data_dir.join("node");
    let joined = || {
        directory.exists()
            && NodeDirectory::open(&directory)
                .and_then(|directory| directory.load())
                .is_ok_and(|kept| kept.is_some())
    };
    let text = match read_private(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && joined() => {
            return Ok(Credentials::Kept);
        }
        read => read.map_err(|source| AgentError::TokenFile {
            path: path.clone(),
            reason: source.to_string(),
        })?,
    };
    let token: JoinToken = text.trim().parse().map_err(|error| AgentError::TokenFile {
        path: path.clone(),
        reason: format!("{error}"),
    })?;
    Ok(Credentials::Join(token))
}

/// Reads a small file that only its owner should be able to read; warns when others can.
fn read_private(path: &Path) -> io::Result<Zeroizing<String>> {
    let file = fs::File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        warn!(file = %path.display(), "others can read this secret; chmod 600 it");
    }
    let mut text = Zeroizing::new(String::new());
    file.take(64 << 10).read_to_string(&mut text)?;
    Ok(text)
}

pub(crate) fn private_dir(path: &Path) -> Result<(), AgentError> {
    let created = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    created.map_err(|source| AgentError::DataDir {
        path: path.to_owned(),
        source,
    })
}
