//! `mesh sidecar`: the proxy of one service beside an agent.
//!
//! It makes its key here, has it certified through the agent, and follows the endpoints of its upstreams and the
//! mesh's configuration. Everything that connections need is kept in memory, so that an agent that restarts is not
//! noticed by traffic: the last known answers hold.
//!
//! Order of events: bind (a port in use is told at once) → agent's trust → certificate → configuration → serve →
//! attach (only now others are told to come). On the way out: detach → a moment in which late callers still get in
//! → drain → end.

mod follow;
mod settings;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use libmesh::bundle::{BundleError, BundleStore};
use libmesh::connect::{Acceptor, Balancer, Connector};
use libmesh::identity::{
    Identity, IdentityError, SourceError, SpiffeError, Subject, Trust, TrustBundle, TrustDomain,
    TrustError,
};
use libmesh::model::{Datacenter, InvalidField};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use settings::{Inbound, Settings, SettingsError, Upstream};

use crate::attach::client::{AgentClient, AgentError};
use crate::attach::pem::{self, PemError};
use crate::http;
use crate::proxy::tcp::Proxy;
use crate::proxy::workers::Workers;
use crate::proxy::{admin, listen, readiness::Readiness};

/// How long callers still get in after the instance is withdrawn: about as long as the news takes.
const HANDOVER: Duration = Duration::from_millis(500);

/// Why a sidecar could not start.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// What was asked for makes no sense.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A listener or thread could not be had.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The agent refused, and asking again will not help.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// There is no certificate for this service.
    #[error("no certificate for service {service}")]
    Identity {
        /// The service.
        service: libmesh::model::ServiceName,
        /// Why.
        source: IdentityError,
    },
    /// What the agent says about the mesh cannot be used.
    #[error("the agent says about its mesh what cannot be used: {0}")]
    Mesh(String),
}

impl SidecarError {
    /// Whether the caller was refused (rather than something failed).
    pub fn is_denied(&self) -> bool {
        matches!(
            self,
            Self::Agent(AgentError::Refused {
                status: 401 | 403,
                ..
            }) | Self::Identity {
                source: IdentityError::Source(SourceError::Refused(_)),
                ..
            }
        )
    }
}

macro_rules! unusable {
    ($($error:ty),*) => {
        $(impl From<$error> for SidecarError {
            fn from(error: $error) -> Self {
                Self::Mesh(error.to_string())
            }
        })*
    };
}
unusable!(PemError, SpiffeError, TrustError, BundleError, InvalidField);

/// Runs until `stop`, then drains; `stop_now` ends the draining too.
///
/// `serving` is told the addresses once everything listens.
///
/// # Errors
/// Only before it serves; afterwards it goes on with what it has.
pub async fn run(
    settings: Settings,
    stop: CancellationToken,
    stop_now: CancellationToken,
    serving: impl FnOnce(&Addresses),
) -> Result<(), SidecarError> {
    settings.validate()?;
    let bound = Bound::new(&settings).await?;
    let addresses = bound.addresses()?;
    let readiness = Readiness::new();
    let (agent_up, identity_up) = (readiness.wait_for("agent"), readiness.wait_for("identity"));
    let bundle_up = readiness.wait_for("configuration");
    let agent = AgentClient::new(&settings.agent, settings.token_file.clone())
        .speaking_as(settings.service.clone());

    let starting = async {
        let about =
            follow::patiently("the agent", || agent.about(), AgentError::is_transient).await?;
        let domain = TrustDomain::parse(&about.trust_domain)?;
        let roots = TrustBundle {
            roots: pem::read_certificates(&about.bundle_pem)?,
        };
        let trust = Trust::new(domain, roots)?;
        let bundles =
            BundleStore::open(trust.clone(), Datacenter::parse(&about.datacenter)?, None)?;
        let obtain =
            || Identity::obtain(trust.clone(), &agent, &settings.service, settings.leaf_ttl);
        let later = |error: &IdentityError| {
            matches!(error, IdentityError::Source(SourceError::Unavailable(_)))
        };
        let identity = follow::patiently("the certificate authority", obtain, later).await;
        let identity = identity.map_err(|source| SidecarError::Identity {
            service: settings.service.clone(),
            source,
        })?;
        Ok::<_, SidecarError>((identity, bundles))
    };
    let (identity, bundles) = tokio::select! {
        started = starting => started?,
        () = stop.cancelled() => return Ok(()),
    };
    drop(identity_up);
    tracing::info!(identity = %identity.spiffe_id(), serial = %identity.serial(), "certificate obtained");

    let tasks = TaskTracker::new();
    let over = CancellationToken::new();
    let _over = over.clone().drop_guard();
    let subject = Subject::Service {
        name: settings.service.clone(),
        ttl: settings.leaf_ttl,
    };
    tasks.spawn(
        identity
            .clone()
            .keep_renewed(Arc::new(agent.clone()), subject, over.clone()),
    );
    tasks.spawn(over.clone().run_until_cancelled_owned(follow::bundle(
        agent.clone(),
        bundles.clone(),
        bundle_up,
    )));

    let workers = match settings.workers {
        Some(count) => Workers::start(count)?,
        None => Workers::one_per_processor()?,
    };
    let proxy = Proxy::new(Arc::new(workers), settings.limits.clone());
    let own = identity.spiffe_id();
    for (upstream, listener) in settings.upstreams.iter().zip(bound.upstreams) {
        let balancer = Balancer::new();
        let up = readiness.wait_for("upstream");
        let following = follow::endpoints(
            agent.clone(),
            upstream.service.clone(),
            balancer.clone(),
            up,
        );
        tasks.spawn(over.clone().run_until_cancelled_owned(following));
        let connector = Connector::new(
            identity.clone(),
            bundles.clone(),
            upstream.service.clone(),
            balancer,
        );
        proxy.outbound(listener, connector, own.clone(), upstream.service.clone());
    }
    if let (Some(inbound), Some(listener)) = (&settings.inbound, bound.inbound) {
        let acceptor = Acceptor::new(identity.clone(), bundles.clone(), settings.service.clone());
        proxy.inbound(listener, acceptor, own, inbound.application);
    }
    if let Some(listener) = bound.admin {
        let routes = admin::routes(proxy.connections().clone(), identity, bundles, readiness);
        let handler = move |request, conn| {
            let routes = routes.clone();
            async move { routes.dispatch(request, conn).await }
        };
        let listener = http::Listener::Tcp(listener);
        tasks.spawn(http::serve(
            listener,
            http::Limits::default(),
            over.clone(),
            handler,
        ));
    }

    let attachment = settings.attachment(addresses.inbound);
    let attached = follow::attach(agent.clone(), attachment.clone(), agent_up);
    serving(&addresses);
    // A refusal at the first attempt is the caller's mistake and ends the sidecar; later ones are waited out.
    tokio::select! {
        refused = attached => return Err(refused.into()),
        () = stop.cancelled() => {}
    }

    tracing::info!(open = proxy.connections().open_count(), "draining");
    let instance = attachment
        .instance
        .as_deref()
        .unwrap_or(settings.service.as_str());
    if let Err(error) = agent.detach(instance, &attachment.holder).await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "not detached; the agent will notice by itself"
        );
    }
    let drain = async {
        tokio::time::sleep(HANDOVER).await;
        proxy.drain(settings.drain).await
    };
    let cut = tokio::select! {
        cut = drain => cut,
        () = stop_now.cancelled() => proxy.drain(Duration::ZERO).await,
    };
    if cut > 0 {
        tracing::warn!(cut, "connections cut: the drain time is over");
    }
    over.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Where a sidecar listens, with the ports that the system chose.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Its mTLS listener.
    pub inbound: Option<SocketAddr>,
    /// Its upstreams' listeners, in the order of the settings.
    pub upstreams: Vec<SocketAddr>,
    /// Its admin listener.
    pub admin: Option<SocketAddr>,
}

struct Bound {
    inbound: Option<std::net::TcpListener>,
    upstreams: Vec<std::net::TcpListener>,
    admin: Option<tokio::net::TcpListener>,
}

impl Bound {
    async fn new(settings: &Settings) -> std::io::Result<Self> {
        Ok(Self {
            inbound: settings
                .inbound
                .as_ref()
                .map(|inbound| listen::bind(inbound.listen))
                .transpose()?,
            upstreams: settings
                .upstreams
                .iter()
                .map(|up| listen::bind(up.listen))
                .collect::<Result<_, _>>()?,
            admin: match settings.admin {
                Some(addr) => Some(http::bind(addr).await?),
                None => None,
            },
        })
    }

    fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses {
            inbound: self
                .inbound
                .as_ref()
                .map(std::net::TcpListener::local_addr)
                .transpose()?,
            upstreams: self
                .upstreams
                .iter()
                .map(std::net::TcpListener::local_addr)
                .collect::<Result<_, _>>()?,
            admin: self
                .admin
                .as_ref()
                .map(tokio::net::TcpListener::local_addr)
                .transpose()?,
        })
    }
}

#[cfg(test)]
mod tests;
