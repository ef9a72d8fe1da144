//! The accepting end.

use std::{io, sync::Arc, time::Duration};

use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{
    ALPN, MeshStream,
    stream::{End, Gate},
    watched::{Open, Role},
};
use crate::{
    bundle::BundleStore,
    error::Blame,
    identity::{Identity, Leaf, SpiffeId, explain},
    model::ServiceName,
};

/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Why a caller was not let in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// It did not finish the handshake in time.
    #[error("the caller did not finish the TLS handshake within {HANDSHAKE:?}")]
    TimedOut,
    /// It has no certificate that we trust, or speaks something else.
    #[error("no trusted connection from the caller: {0}")]
    Handshake(String),
    /// It is no service.
    #[error("{0} is not a service and may not call one")]
    NotAService(SpiffeId),
    /// No intention lets it in.
    #[error("call refused: {reason}")]
    Denied {
        /// Who called.
        peer: End,
        /// The rule, or that there is none.
        reason: String,
    },
    /// The connection broke.
    #[error("the connection broke during the handshake")]
    Io(#[from] io::Error),
}

impl AcceptError {
    /// Whom to blame: the mesh's authority where an intention decided, else the caller. It may call again; there is
    /// nothing that this end can repeat.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Denied { .. } => Blame::Authority,
            _ => Blame::Peer,
        }
    }
}

/// Takes calls for one service. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    identity: Identity,
    tls: TlsAcceptor,
    open: Arc<Open>,
}

impl Acceptor {
    /// Takes calls for the service `identity` is of, by the intentions in `bundles`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(identity: Identity, bundles: BundleStore, service: ServiceName) -> Self {
        let tls = TlsAcceptor::from(identity.server_config(ALPN));
        Self {
            identity,
            tls,
            open: Open::new(Role::Callee { service }, bundles),
        }
    }

    /// Makes the handshake on an accepted connection, verifies the caller and evaluates the intentions.
    pub async fn accept(&self, stream: TcpStream) -> Result<MeshStream, AcceptError> {
        stream.set_nodelay(true)?;
        let handshake = timeout(HANDSHAKE, self.tls.accept(stream))
            .await
            .map_err(|_| AcceptError::TimedOut)?;
        let tls = handshake.map_err(|e| AcceptError::Handshake(explain(&e)))?;
        let (_, session) = tls.get_ref();
        if session.alpn_protocol() != Some(ALPN) {
            return Err(AcceptError::Handshake(
                "the caller does not speak mesh-tcp/1".to_owned(),
            ));
        }
        let leaf = session.peer_certificates().and_then(|chain| chain.first());
        let leaf = leaf
            .ok_or_else(|| AcceptError::Handshake("the caller shows no certificate".to_owned()))?;
        let peer = Leaf::parse(leaf).map_err(|e| AcceptError::Handshake(e.to_string()))?;
        if peer.spiffe.as_service().is_none() {
            return Err(AcceptError::NotAService(peer.spiffe));
        }
        let gate = Arc::<Gate>::default();
        let watched = self.open.add(&peer, gate.clone());
        let peer = End::from(peer);
        let watched = match watched {
            Ok(watched) => watched,
            Err(reason) => return Err(AcceptError::Denied { peer, reason }),
        };
        // The certificate shown is the newest at the handshake; a renewal just after it does not matter.
        let local = End::from(self.identity.leaf());
        Ok(MeshStream::new(
            tls.into(),
            local,
            peer,
            gate,
            None,
            watched,
        ))
    }
}
