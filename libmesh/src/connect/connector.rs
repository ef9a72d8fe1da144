//! The calling end: pick an endpoint, dial it, make sure who answers; on failure the next one.

use std::{fmt::Write, net::SocketAddr, sync::Arc, time::Duration};

use rustls::pki_types::ServerName;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    ALPN, Balancer, MeshStream,
    balancer::Pick,
    stream::{End, Gate},
    watched::{Open, Role, denial},
};
use crate::{
    bundle::BundleStore,
    error::{Blame, Retry},
    identity::{Identity, Leaf, explain},
    model::ServiceName,
};

/// The most endpoints tried for one connection.
const ATTEMPTS: usize = 3;
/// The least time an attempt gets, if the deadline allows.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The service has no instance that takes mesh connections.
    #[error("service {0} has no instance that takes mesh connections; see: mesh services")]
    NoEndpoint(ServiceName),
    /// No intention allows the call.
    #[error("call refused: {0}; to allow it: mesh intention allow")]
    Denied(String),
    /// Every endpoint tried failed.
    #[error("no instance of {service} could be reached: {attempts}")]
    Failed {
        /// The service.
        service: ServiceName,
        /// What was tried, and what came of it.
        attempts: String,
    },
}

impl ConnectError {
    /// Whom to blame: an intention is the authority's, everything else lies with the service called.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Denied(_) => Blame::Authority,
            Self::NoEndpoint(_) | Self::Failed { .. } => Blame::Peer,
        }
    }

    /// Whether trying again helps: an instance may come at any time, an intention only when somebody allows it.
    pub fn retry(&self) -> Retry {
        Retry::later_if(!matches!(self, Self::Denied(_)))
    }
}

/// Dials one service with one identity. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    identity: Identity,
    service: ServiceName,
    balancer: Balancer,
    tls: TlsConnector,
    bundles: BundleStore,
    open: Arc<Open>,
}

impl Connector {
    /// Dials `service` as `identity` (a service's), by the intentions in `bundles`, at the endpoints that
    /// the owner puts into `balancer`. Where calls are sent to another service, that one's intentions count and its
    /// certificate is asked for.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        identity: Identity,
        bundles: BundleStore,
        service: ServiceName,
        balancer: Balancer,
    ) -> Self {
        let tls = TlsConnector::from(identity.client_config(ALPN));
        let role = Role::Caller {
            own: identity.spiffe_id(),
        };
        Self {
            identity,
            service,
            balancer,
            tls,
            bundles: bundles.clone(),
            open: Open::new(role, bundles),
        }
    }

    /// Where endpoints are put.
    pub fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// A connection to one of the endpoints, within `deadline`. Up to three endpoints are tried.
    pub async fn connect(&self, deadline: Duration) -> Result<MeshStream, ConnectError> {
        let own = self.identity.spiffe_id();
        let attempt = self.balancer.connect_timeout();
        let until = Instant::now() + deadline.max(attempt.unwrap_or_default());
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut attempts = String::new();
        while tried.len() < ATTEMPTS && (tried.is_empty() || Instant::now() < until) {
            let now = Instant::now();
            let Some(pick) = self.balancer.pick(&tried, now) else {
                break;
            };
            let (addr, service) = (pick.endpoint().addr, pick.endpoint().service.clone());
            if let Some(reason) = denial(&self.bundles, &own, &service) {
                return Err(ConnectError::Denied(reason));
            }
            let left = until.saturating_duration_since(now);
            let share = left / u32::try_from(ATTEMPTS - tried.len()).expect("a small count");
            let most = attempt.unwrap_or_else(|| share.max(ATTEMPT));
            let attempt_until = now + most.min(left);
            tried.push(addr);
            match self.dial(addr, &service, attempt_until).await {
                Ok((tls, leaf)) => {
                    pick.connected(Instant::now());
                    return self.admit(tls, leaf, pick);
                }
                Err(reason) => {
                    pick.failed(Instant::now());
                    let separator = if attempts.is_empty() { "" } else { "; " };
                    let _ = write!(attempts, "{separator}{addr}: {reason}");
                }
            }
        }
        // Without an endpoint it is still said that the call would not be allowed.
        if tried.is_empty()
            && let Some(reason) = denial(&self.bundles, &own, &self.service)
        {
            return Err(ConnectError::Denied(reason));
        }
        match tried.is_empty() {
            true => Err(ConnectError::NoEndpoint(self.service.clone())),
            false => Err(ConnectError::Failed {
                service: self.service.clone(),
                attempts,
            }),
        }
    }

    async fn dial(
        &self,
        addr: SocketAddr,
        service: &ServiceName,
        until: Instant,
    ) -> Result<(tokio_rustls::client::TlsStream<TcpStream>, Leaf), String> {
        let dial = async {
            let stream = TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            let name = ServerName::IpAddress(addr.ip().into());
            self.tls
                .connect(name, stream)
                .await
                .map_err(|e| explain(&e))
        };
        let tls = timeout_at(until, dial)
            .await
            .map_err(|_| "no answer in time".to_owned())??;
        let (_, session) = tls.get_ref();
        if session.alpn_protocol() != Some(ALPN) {
            return Err("it does not speak mesh-tcp/1".to_owned());
        }
        let leaf = session.peer_certificates().and_then(|chain| chain.first());
        let leaf = leaf.ok_or("it shows no certificate")?;
        let leaf = Leaf::parse(leaf).map_err(|e| e.to_string())?;
        // Another datacenter's service of the same name is another service.
        let same_datacenter = leaf.spiffe.datacenter() == self.identity.spiffe_id().datacenter();
        if leaf.spiffe.as_service() != Some(service) || !same_datacenter {
            return Err(format!("{} answers there, not {service}", leaf.spiffe));
        }
        Ok((tls, leaf))
    }

    fn admit(
        &self,
        tls: tokio_rustls::client::TlsStream<TcpStream>,
        leaf: Leaf,
        pick: Pick,
    ) -> Result<MeshStream, ConnectError> {
        let gate = Arc::<Gate>::default();
        let watched = self
            .open
            .add(&leaf, gate.clone())
            .map_err(ConnectError::Denied)?;
        let (local, peer) = (End::from(self.identity.leaf()), End::from(leaf));
        Ok(MeshStream::new(
            tls.into(),
            local,
            peer,
            gate,
            Some(pick),
            watched,
        ))
    }
}
