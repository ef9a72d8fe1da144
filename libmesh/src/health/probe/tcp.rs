//! Does it take connections?

use super::net::Address;
use super::tls::{Alpn, ProbeTls};
use super::{Probe, ProbeResult};
use crate::identity::BoxFuture;
use crate::model::InvalidField;

/// Connects, and is content with that; with TLS also with the handshake.
#[derive(Debug, Clone)]
pub struct TcpProbe {
    address: Address,
    tls: Option<ProbeTls>,
}

impl TcpProbe {
    /// A probe of `host:port`.
    ///
    /// # Errors
    /// [`InvalidField`] `tcp` when there is no port.
    pub fn new(address: &str) -> Result<Self, InvalidField> {
        Ok(Self {
            address: Address::parse("tcp", address)?,
            tls: None,
        })
    }

    /// With a TLS handshake.
    pub fn tls(mut self, tls: ProbeTls) -> Self {
        self.tls = Some(tls);
        self
    }
}

impl Probe for TcpProbe {
    fn kind(&self) -> &'static str {
        "tcp"
    }

    fn target(&self) -> String {
        self.address.to_string()
    }

    fn probe(&self) -> BoxFuture<'_, ProbeResult> {
        Box::pin(async {
            let address = &self.address;
            let opened = address.open(self.tls.as_ref(), Alpn::None).await;
            ProbeResult::of(match opened {
                Ok(_) => Ok(format!("TCP connect {address}: Success")),
                Err(error) => Err(format!("TCP connect {address}: {error}")),
            })
        })
    }
}
