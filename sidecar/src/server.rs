//! The server role: an agent with the sealed store, the mesh's certificate authority and the Vault port.
//!
//! Until it is initialised and unsealed for the first time a server is nothing but its Vault port. Then it
//! makes the cluster's names, root, gossip keyring and its own certificate, and becomes a node. From then on
//! a sealed store stops joins, certificates, secrets and changes, and nothing else: the node starts from
//! what it kept, and everybody goes on with the certificates they have.

pub mod authority;
mod bundle;
mod clients;
mod events;
mod external;
mod outbound;
pub(crate) mod own_routes;
mod ports;
mod records;
mod rpc;
mod sessions;
mod unsealed;
mod virtual_ips;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use libmesh::{
    identity::{BoxFuture, SourceError, SpiffeId},
    join::{NodeCredentials, NodeDirectory},
    mesh::{Credentials, Mesh},
};
use parking_lot::RwLock;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use vault_kv::{Caller, SeenHead, StoreConfig, Vault, VaultConfig, VaultError, Via};

use crate::{
    agent::{Agent, AgentError, Ended, Extras, Reread, private_dir},
    config::{Config, Seal},
    consul::stored::{self, Tokenless},
    forward::{Api, CONFIG_INDEX, Forward},
    http::{Call, ConnInfo, Remote, Reply, Routes, query::Query},
};

use authority::Authority;
use records::Records;

/// How long a change waits to be known to the agents' own interface: its answer comes in any case.
const PUBLISH: Duration = Duration::from_secs(1);

/// Why a server does not start, or cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The store cannot be opened or unsealed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] vault_kv::Error),
    /// A record of the server's own is not readable.
    #[error("the record {0} is not usable: {1}")]
    Record(String, String),
    /// The node's key or directory.
    #[error("{0}")]
    Key(String),
    /// Nothing could be signed.
    #[error(transparent)]
    Authority(#[from] SourceError),
    /// A config bundle was not taken.
    #[error(transparent)]
    Bundle(#[from] libmesh::bundle::BundleError),
    /// The Vault port.
    #[error("{0}; ports.vault and addresses.vault name it")]
    Listen(std::io::Error),
    /// The Vault port would carry secrets in the clear.
    #[error(
        "the Vault port on {0} is not on loopback and needs TLS: set tls.cert_file and tls.key_file, or addresses.vault = \"127.0.0.1\""
    )]
    Clear(IpAddr),
    /// The datacenter of the configuration is not the store's.
    #[error(
        "this store belongs to datacenter {store}, not to {config}; node.datacenter never changes"
    )]
    Datacenter {
        /// The store's.
        store: String,
        /// The configuration's.
        config: String,
    },
    /// The agent around it.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl ServerError {
    fn key(error: impl std::fmt::Display) -> Self {
        Self::Key(error.to_string())
    }
}

impl From<ServerError> for stored::StoreError {
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::Store(error) => error.into(),
            error => Self::Failed(error.to_string()),
        }
    }
}

/// What the parts of a server share.
pub struct Shared {
    vault: Vault,
    records: Records,
    authority: RwLock<Option<Authority>>,
    mesh: OnceLock<Mesh>,
    routes: OnceLock<Routes>,
    default_allow: bool,
    /// Nobody needs a right for the Consul interface: `mesh dev`.
    open: bool,
    /// Whether `[acl]` is on, and what holds where no rule speaks.
    acl: crate::config::AclConfig,
    externals: external::Externals,
    /// Up to which ledger index the configuration is published.
    published: watch::Sender<u64>,
    /// Where files may be made that are gone again soon.
    scratch: PathBuf,
    /// When this server was opened.
    since: SystemTime,
}

impl Shared {
    /// The authority, while the store is unsealed.
    fn authority(&self) -> Option<Authority> {
        if self.vault.is_sealed() {
            return None;
        }
        self.authority.read().clone()
    }

    /// The index of the configuration, once what it says by now is published; `None` when that takes too long. Other keys may
    /// be written all the time.
    async fn configuration(&self) -> Option<u64> {
        let written = bundle::changed(self.records.kv()).ok()?.into_iter().max()?;
        let mut published = self.published.subscribe();
        let told = published.wait_for(|index| *index >= written);
        timeout(PUBLISH, told).await.ok()?.ok()?;
        Some(self.mesh()?.bundle().index())
    }

    /// What holds for whoever shows no token.
    fn tokenless(&self) -> Tokenless {
        Tokenless {
            open: self.open,
            anonymous: self.acl.enabled,
        }
    }

    fn mesh(&self) -> Option<Mesh> {
        self.mesh.get().cloned()
    }

    /// Answers what needs the store, for a caller on this machine or forwarded by an agent.
    async fn answer(
        &self,
        api: Api,
        request: Request<Bytes>,
        identity: Option<SpiffeId>,
    ) -> Response<Bytes> {
        match api {
            Api::Vault => {
                // Not this machine: what only local callers may do is not for those.
                let remote = vault_kv::Remote::Ip(Ipv4Addr::UNSPECIFIED.into());
                let caller = Caller {
                    spiffe: identity.map(|id| id.to_string()),
                    ..Caller::anonymous(remote, Via::Mesh)
                };
                self.vault.handle(request, caller).await
            }
            Api::Consul => {
                let query = Query::parse(request.uri().query());
                whole(self.consul(request, query, &elsewhere()).await)
            }
        }
    }

    /// Answers what of the Consul-compatible interface needs the store.
    async fn consul(&self, request: Request<Bytes>, query: Query, from: &Arc<ConnInfo>) -> Reply {
        let Some(routes) = self.routes.get() else {
            unreachable!("routes are set before anything is served")
        };
        let configures = configures(&request);
        let mut answer = routes.dispatch_with(request, query, Arc::clone(from)).await;
        if configures
            && answer.status().is_success()
            && let Some(index) = self.configuration().await
        {
            let headers = answer.headers_mut();
            headers.insert(CONFIG_INDEX, index.into());
        }
        answer
    }
}

/// Where forwarded calls come from: who passes them on tells who asks, not from where.
fn elsewhere() -> Arc<ConnInfo> {
    let remote = Remote::Tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    Arc::new(ConnInfo::new(remote))
}

/// Whether a request changes what agents are told with the config bundle.
fn configures(request: &Request<Bytes>) -> bool {
    let path = request.uri().path();
    let told = ["/v1/connect/intentions", "/v1/config", "/v1/query"];
    request.method() != Method::GET && told.iter().any(|it| path.starts_with(it))
}

/// As an agent gets it, which passes on whole answers only.
fn whole(reply: Reply) -> Response<Bytes> {
    reply.map(|body| {
        let whole = body.into_bytes();
        whole.expect("what comes piece by piece is served on the Vault port only")
    })
}

struct LocalForward {
    shared: Arc<Shared>,
    from: Arc<ConnInfo>,
}

impl Forward for LocalForward {
    fn forward(
        &self,
        api: Api,
        request: Request<Bytes>,
        identity: Option<SpiffeId>,
    ) -> BoxFuture<'_, Response<Bytes>> {
        Box::pin(self.shared.answer(api, request, identity))
    }

    fn forward_call(&self, call: Call) -> BoxFuture<'_, Reply> {
        Box::pin(self.shared.consul(call.request, call.query, &self.from))
    }
}

/// A server whose store is open and whose Vault port listens; not yet a node.
pub struct Server {
    config: Config,
    shared: Arc<Shared>,
    vault_addr: Option<SocketAddr>,
    stop: CancellationToken,
}

/// What `mesh dev` opens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Openness {
    /// Nobody needs a right for the Consul interface.
    pub consul: bool,
    /// Every process of this user may attach as any service.
    pub attach: Option<u32>,
    /// DNS behaves as Consul's, and this server is an instance of the service `consul`.
    pub like_consul: bool,
}

impl Server {
    /// Opens the store (unsealing it when a key file says so) and the Vault port.
    ///
    /// # Errors
    /// The store is in use or damaged, the key file is unusable, the port is taken.
    pub async fn open(config: Config, openness: Openness) -> Result<Self, ServerError> {
        private_dir(&config.node.data_dir)?;
        let directory =
            NodeDirectory::open(&config.node.data_dir.join("node")).map_err(ServerError::key)?;
        let vault = Vault::open(vault_config(&config))?;
        remember_bundle(&vault, &directory);
        let shared = Arc::new(Shared {
            records: Records::new(&vault),
            vault,
            authority: RwLock::new(None),
            mesh: OnceLock::new(),
            routes: OnceLock::new(),
            default_allow: config.intentions.default_allow,
            open: openness.consul && !config.acl.enabled,
            acl: config.acl.clone(),
            externals: external::Externals::default(),
            published: watch::Sender::new(0),
            scratch: config.node.data_dir.clone(),
            since: SystemTime::now(),
        });
        let routes = ports::store_routes(&shared).merge(own_routes::routes(&shared));
        let _ = shared.routes.set(routes);
        let stop = CancellationToken::new();
        let vault_addr = ports::listen(&config, &shared, &stop).await?;
        reopen_audit_at_hangup(shared.vault.clone(), stop.clone())?;
        unseal_if_possible(&shared.vault).await;
        Ok(Self {
            config,
            shared,
            vault_addr,
            stop,
        })
    }

    /// The store.
    pub fn vault(&self) -> &Vault {
        &self.shared.vault
    }

    /// Where the Vault port is.
    pub fn vault_addr(&self) -> Option<SocketAddr> {
        self.vault_addr
    }

    /// Becomes a node: at once if the store is unsealed or the node was one before, else when it is
    /// unsealed.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn start(self, openness: Openness) -> Result<RunningServer, ServerError> {
        let directory = NodeDirectory::open(&self.config.node.data_dir.join("node"))
            .map_err(ServerError::key)?;
        let kept = directory.load().map_err(ServerError::key)?;
        if self.shared.vault.is_sealed() && kept.is_none() {
            let initialized = self.shared.vault.seal_status()?.initialized;
            let next = if initialized { "unseal" } else { "init" };
            tracing::warn!(
                "the store is sealed and this server was never a node; next: mesh operator {next}"
            );
            let mut sealed = self.shared.vault.watch_sealed();
            // The sender lives in the vault, which lives here.
            let _ = sealed.wait_for(|sealed| !sealed).await;
        }
        let credentials = if self.shared.vault.is_sealed() {
            tracing::warn!(
                "the store is sealed: joins, certificates and secrets wait; next: mesh operator unseal"
            );
            kept.ok_or(vault_kv::Error::Sealed)?
        } else {
            let authority = establish(&self.shared, &self.config).await?;
            own_credentials(&self.shared, &self.config, &authority, &directory, kept).await?
        };
        let extras = Extras {
            credentials: Some(Credentials::Given(Box::new(credentials))),
            server: true,
            certificates: Some(Arc::new(OwnSource(Arc::clone(&self.shared)))),
            rpc: rpc::routes(&self.shared),
            forward: Some(Arc::new(LocalForward {
                shared: Arc::clone(&self.shared),
                from: elsewhere(),
            })),
            routes: own_routes::consul_routes(&self.shared),
            open_to: openness.attach,
            like_consul: openness.like_consul,
        };
        let agent = Agent::start(self.config.clone(), extras).await?;
        let _ = self.shared.mesh.set(agent.mesh().clone());
        tokio::spawn(establish_at_unseal(
            Arc::clone(&self.shared),
            self.config.clone(),
            self.stop.clone(),
        ));
        tokio::spawn(sessions::guard(
            Arc::clone(&self.shared),
            agent.mesh().catalog().clone(),
            self.stop.clone(),
        ));
        tokio::spawn(bundle::publish(
            Arc::clone(&self.shared),
            agent.mesh().clone(),
            self.stop.clone(),
        ));
        tokio::spawn(external::follow(
            Arc::clone(&self.shared),
            agent.mesh().clone(),
            self.stop.clone(),
        ));
        tokio::spawn(virtual_ips::allocate(
            Arc::clone(&self.shared),
            agent.mesh().clone(),
            self.stop.clone(),
        ));
        Ok(RunningServer {
            agent,
            shared: self.shared,
            vault_addr: self.vault_addr,
            stop: self.stop,
        })
    }
}

/// A server that is a node.
pub struct RunningServer {
    agent: Agent,
    shared: Arc<Shared>,
    vault_addr: Option<SocketAddr>,
    stop: CancellationToken,
}

impl RunningServer {
    /// The agent it is.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The store.
    pub fn vault(&self) -> &Vault {
        &self.shared.vault
    }

    /// Where the Vault port is.
    pub fn vault_addr(&self) -> Option<SocketAddr> {
        self.vault_addr
    }

    /// Runs until TERM or INT; then leaves and seals.
    ///
    /// # Errors
    /// As [`Agent::run`].
    pub async fn run(self, reload: impl FnMut() -> Reread) -> Result<Ended, ServerError> {
        let ended = self.agent.run(reload).await?;
        self.stop.cancel();
        self.shared.vault.close().await;
        Ok(ended)
    }
}

fn vault_config(config: &Config) -> VaultConfig {
    let server = &config.server;
    let mut vault = VaultConfig::new(StoreConfig::Dir(server.store.clone()));
    if let Seal::Static { key_file } = &server.seal {
        vault.static_key = Some(key_file.clone());
    }
    vault.audit = server
        .audit
        .iter()
        .enumerate()
        .map(|(n, path)| vault_kv::AuditSink {
            name: if n == 0 {
                "file".to_owned()
            } else {
                format!("file-{n}")
            },
            path: path.clone(),
        })
        .collect();
    vault.history_retention = server.history_retention;
    vault.head_file = Some(config.node.data_dir.join("node").join("ledger-head"));
    vault.cluster_name = config.node.datacenter.to_string();
    let scheme = if config.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let port = config.ports.vault.unwrap_or_default();
    vault.api_addr = format!(
        "{scheme}://{}",
        SocketAddr::new(config.addresses.vault, port)
    );
    vault.outbound = Some(Arc::new(outbound::Direct));
    vault
}

/// The last configuration that this node got tells where the ledger was.
fn remember_bundle(vault: &Vault, directory: &NodeDirectory) {
    let cached = libmesh::files::read_private(&directory.bundle_path());
    let cached = cached.ok().flatten();
    let bundle =
        cached.and_then(|bytes| postcard::from_bytes::<libmesh::bundle::SignedBundle>(&bytes).ok());
    let Some((index, hash)) = bundle.and_then(|bundle| bundle.claimed_head()) else {
        return;
    };
    let seen = SeenHead {
        index,
        hash,
        by: "the configuration cached by this node".to_owned(),
    };
    if let Err(error) = vault.seen(seen) {
        tracing::error!(%error, "the store will not unseal");
    }
}

/// HUP follows the rotation of audit files, sealed or not, from the first moment on.
fn reopen_audit_at_hangup(vault: Vault, stop: CancellationToken) -> Result<(), ServerError> {
    use tokio::signal::unix::{SignalKind, signal};
    let cannot = |error| ServerError::Key(format!("cannot listen for signals: {error}"));
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot)?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => {}
                () = stop.cancelled() => return,
            }
            // What fails is in the log.
            if vault.reopen_audit().await.is_ok() {
                tracing::info!("audit files reopened");
            }
        }
    });
    Ok(())
}

async fn unseal_if_possible(vault: &Vault) {
    let Ok(status) = vault.seal_status() else {
        return;
    };
    if !status.initialized || status.kind != "static" {
        return;
    }
    match vault.unseal_static().await {
        Ok(()) => tracing::info!("unsealed with the key file"),
        Err(error) => tracing::error!(%error, "the store stays sealed"),
    }
}

/// Makes what a new cluster needs, and the authority of this process.
async fn establish(shared: &Shared, config: &Config) -> Result<Authority, ServerError> {
    let cluster = shared.records.cluster(&config.node.datacenter).await?;
    if cluster.datacenter != config.node.datacenter {
        return Err(ServerError::Datacenter {
            store: cluster.datacenter.to_string(),
            config: config.node.datacenter.to_string(),
        });
    }
    let ca = shared.vault.ca();
    let name = format!(
        "mesh {} {}",
        cluster.datacenter,
        cluster.trust_domain.as_str()
    );
    let meta = records::system("certificate authority made", cluster.trust_domain.as_str());
    ca.bootstrap(meta, &name)
        .await
        .map_err(|error| ServerError::Key(error.to_string()))?;
    let authority = Authority::new(
        ca,
        cluster,
        config.node.name.clone(),
        config.server.node_cert_ttl,
        config.server.service_cert_ttl,
    );
    *shared.authority.write() = Some(authority.clone());
    Ok(authority)
}

/// A server that started sealed gets its authority when it is unsealed.
async fn establish_at_unseal(shared: Arc<Shared>, config: Config, stop: CancellationToken) {
    let mut sealed = shared.vault.watch_sealed();
    loop {
        if shared.authority().is_none()
            && !shared.vault.is_sealed()
            && let Err(error) = establish(&shared, &config).await
        {
            tracing::error!(%error, "the certificate authority cannot be used");
        }
        let changed = tokio::select! {
            changed = sealed.changed() => changed,
            () = stop.cancelled() => return,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// A fresh certificate for the node that this server is.
async fn own_credentials(
    shared: &Shared,
    config: &Config,
    authority: &Authority,
    directory: &NodeDirectory,
    kept: Option<NodeCredentials>,
) -> Result<NodeCredentials, ServerError> {
    let key = directory.key().map_err(ServerError::key)?;
    let name = &config.node.name;
    let node = records::Node {
        id: key.node_id(),
        publish: vec!["*".to_owned()],
        token: String::new(),
        joined: records::now(),
    };
    let known = shared.records.node(name)?;
    if known.as_ref().map(|known| known.id) != Some(node.id)
        && !shared.records.bind_node(name, &node).await?
    {
        return Err(ServerError::Key(format!(
            "the name {name} belongs to another node's key; choose another node.name"
        )));
    }
    let csr = libmesh::identity::SigningKeyPair::csr_der(&key).map_err(ServerError::key)?;
    let issued = authority.node(name, Some(key.node_id()), &authority::server_rights(), &csr)?;
    let cluster = shared.records.cluster(&config.node.datacenter).await?;
    Ok(NodeCredentials {
        key,
        name: name.clone(),
        datacenter: cluster.datacenter,
        trust_domain: cluster.trust_domain,
        chain: issued.chain,
        bundle: issued.bundle,
        keyring: shared.records.keyring().await?,
        seeds: kept.map(|kept| kept.seeds).unwrap_or_default(),
        config: None,
    })
}

/// Signs for the server's own node as long as the store is unsealed.
struct OwnSource(Arc<Shared>);

impl OwnSource {
    fn authority(&self) -> Result<Authority, SourceError> {
        self.0
            .authority()
            .ok_or_else(|| SourceError::Unavailable("the store is sealed".to_owned()))
    }
}

impl libmesh::identity::CertificateSource for OwnSource {
    fn sign_node(
        &self,
        csr: Vec<u8>,
    ) -> BoxFuture<'_, Result<libmesh::identity::Issued, SourceError>> {
        Box::pin(async move { self.authority()?.sign_node(csr).await })
    }

    fn sign_service(
        &self,
        service: libmesh::model::ServiceName,
        csr: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<libmesh::identity::Issued, SourceError>> {
        Box::pin(async move { self.authority()?.sign_service(service, csr, ttl).await })
    }
}
