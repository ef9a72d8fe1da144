//! What a sidecar is told to do.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use libmesh::model::{InstanceId, ServiceName};

use crate::attach::wire::{AttachRequest, CheckSpec};
use crate::proxy::tcp::Limits;

/// What a sidecar is told to do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The service it stands for.
    pub service: ServiceName,
    /// The instance, unique on the node. Default: the service's name.
    pub instance: Option<InstanceId>,
    /// The agent's Unix socket.
    pub agent: PathBuf,
    /// File (0600) with the attach token, where the uid does not say enough.
    pub token_file: Option<PathBuf>,
    /// Calls of the mesh, and whom they are for; none for a service that only calls others.
    pub inbound: Option<Inbound>,
    /// Services that the application calls.
    pub upstreams: Vec<Upstream>,
    /// The life of its certificates. Default: the authority's (24 h).
    pub leaf_ttl: Option<Duration>,
    /// Where to tell about itself over HTTP, on loopback.
    pub admin: Option<SocketAddr>,
    /// An address to publish other than the node's.
    pub address: Option<IpAddr>,
    /// Tags of the instance.
    pub tags: Vec<Arc<str>>,
    /// Metadata of the instance.
    pub meta: BTreeMap<Arc<str>, Arc<str>>,
    /// Version of the application.
    pub version: Option<Arc<str>>,
    /// Checks of the application for the agent to run.
    pub checks: Vec<CheckSpec>,
    /// Bounds of the proxy.
    pub limits: Limits,
    /// How long open connections may go on when the sidecar ends.
    pub drain: Duration,
    /// Threads of the data plane. Default: one per processor.
    pub workers: Option<usize>,
}

/// The way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inbound {
    /// Where callers come over mTLS.
    pub listen: SocketAddr,
    /// Where the application listens, on loopback.
    pub application: SocketAddr,
}

/// A service that the application calls: `db=127.0.0.1:5432`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The service.
    pub service: ServiceName,
    /// Where the application reaches it, on loopback.
    pub listen: SocketAddr,
}

/// Settings that make no sense, or would open a door.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Clear text would leave the host.
    #[error("{what} {addr} is not on loopback, where clear text stays on the host: use 127.0.0.1:{}", addr.port())]
    NotLoopback {
        /// Which address.
        what: &'static str,
        /// It.
        addr: SocketAddr,
    },
    /// There is nothing to do.
    #[error("a sidecar needs something to carry: give it --inbound with --app, or an --upstream")]
    Nothing,
}

/// A text that is no upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no upstream: write SERVICE=127.0.0.1:PORT")]
pub struct NoUpstream(String);

impl FromStr for Upstream {
    type Err = NoUpstream;

    fn from_str(text: &str) -> Result<Self, NoUpstream> {
        let wrong = || NoUpstream(text.to_owned());
        let (service, listen) = text.split_once('=').ok_or_else(wrong)?;
        let service = ServiceName::parse(service).map_err(|_| wrong())?;
        Ok(Self {
            service,
            listen: listen.parse().map_err(|_| wrong())?,
        })
    }
}

impl Settings {
    /// A sidecar of `service` beside the agent on `agent`, with the defaults and nothing to carry yet.
    pub fn new(service: ServiceName, agent: PathBuf) -> Self {
        Self {
            service,
            instance: None,
            agent,
            token_file: None,
            inbound: None,
            upstreams: Vec::new(),
            leaf_ttl: None,
            admin: None,
            address: None,
            tags: Vec::new(),
            meta: BTreeMap::new(),
            version: None,
            checks: Vec::new(),
            limits: Limits::default(),
            drain: Duration::from_secs(30),
            workers: None,
        }
    }

    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn validate(&self) -> Result<(), SettingsError> {
        if self.inbound.is_none() && self.upstreams.is_empty() {
            return Err(SettingsError::Nothing);
        }
        let application = self
            .inbound
            .map(|inbound| ("the application", inbound.application));
        let upstreams = self
            .upstreams
            .iter()
            .map(|upstream| ("an upstream's listener", upstream.listen));
        let admin = self.admin.map(|admin| ("the admin listener", admin));
        for (what, addr) in application.into_iter().chain(upstreams).chain(admin) {
            if !addr.ip().is_loopback() {
                return Err(SettingsError::NotLoopback { what, addr });
            }
        }
        Ok(())
    }

    /// What the agent is told, `inbound` being where calls really come in.
    pub(super) fn attachment(&self, inbound: Option<SocketAddr>) -> AttachRequest {
        let bound = inbound
            .map(|addr| addr.ip())
            .filter(|ip| !ip.is_unspecified());
        AttachRequest {
            service: self.service.shared(),
            instance: self.instance.as_ref().map(|id| id.shared()),
            holder: uuid::Uuid::new_v4().simple().to_string().into(),
            port: self.inbound.map_or(0, |inbound| inbound.application.port()),
            mesh_port: inbound.map(|addr| addr.port()),
            address: self.address.or(bound),
            tags: self.tags.clone(),
            meta: self.meta.clone(),
            version: self.version.clone(),
            checks: self.checks.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_read() {
        let upstream: Upstream = "db=127.0.0.1:5432".parse().unwrap();
        assert_eq!(upstream.service, "db");
        assert_eq!(upstream.listen, ([127, 0, 0, 1], 5432).into());
        for wrong in ["db", "db=5432", "=127.0.0.1:1", "a b=127.0.0.1:1"] {
            assert_eq!(wrong.parse::<Upstream>(), Err(NoUpstream(wrong.to_owned())));
        }
    }

    #[test]
    fn clear_text_stays_on_loopback() {
        let mut settings = Settings::new(ServiceName::parse("web").unwrap(), "x".into());
        assert_eq!(settings.validate(), Err(SettingsError::Nothing));
        settings.upstreams.push("db=127.0.0.1:1".parse().unwrap());
        settings.inbound = Some(Inbound {
            listen: ([0, 0, 0, 0], 21000).into(),
            application: ([127, 0, 0, 1], 80).into(),
        });
        assert_eq!(settings.validate(), Ok(()));
        let open: SocketAddr = ([10, 0, 0, 1], 80).into();
        let refused = |settings: &Settings| matches!(settings.validate(), Err(SettingsError::NotLoopback { addr, .. }) if addr == open);
        assert!(refused(&Settings {
            admin: Some(open),
            ..settings.clone()
        }));
        let inbound = settings.inbound.map(|inbound| Inbound {
            application: open,
            ..inbound
        });
        assert!(refused(&Settings {
            inbound,
            ..settings.clone()
        }));
        settings.upstreams[0].listen = open;
        assert!(refused(&settings));
    }
}
