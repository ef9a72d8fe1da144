//! Is a datagram refused?

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::net::Address;
use super::{Probe, ProbeResult};
use crate::identity::BoxFuture;
use crate::model::InvalidField;

/// What is sent unless told otherwise.
const MESSAGE: &[u8] = b"ping";
/// How long a refusal is waited for: it comes as fast as a ping.
const WAIT: Duration = Duration::from_millis(500);
/// Largest answer that is looked at, in bytes.
const ANSWER_MAX: usize = 2048;

/// Sends a datagram. An answer passes and so does silence, as most protocols do not answer what they do not know; only
/// the host's word that the port is closed (ICMP) fails, as in Consul. Behind a firewall that swallows that word, the
/// check says nothing.
#[derive(Debug, Clone)]
pub struct UdpProbe {
    address: Address,
    message: Vec<u8>,
    wait: Duration,
}

impl UdpProbe {
    /// A probe of `host:port`.
    ///
    /// # Errors
    /// [`InvalidField`] `udp` when there is no port.
    pub fn new(address: &str) -> Result<Self, InvalidField> {
        Ok(Self {
            address: Address::parse("udp", address)?,
            message: MESSAGE.to_vec(),
            wait: WAIT,
        })
    }

    /// With another message, for applications that log what they do not know. Default `ping`.
    pub fn message(mut self, message: impl Into<Vec<u8>>) -> Self {
        self.message = message.into();
        self
    }

    /// How long to wait for a refusal. Default 500 ms; must be shorter than the check's timeout, or silence would fail.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    async fn ask(&self, addr: SocketAddr) -> Result<(), String> {
        let from: SocketAddr = match addr {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let text = |error: std::io::Error| error.to_string();
        let socket = UdpSocket::bind(from).await.map_err(text)?;
        socket.connect(addr).await.map_err(text)?;
        socket.send(&self.message).await.map_err(text)?;
        let mut answer = [0; ANSWER_MAX];
        match timeout(self.wait, socket.recv(&mut answer)).await {
            Ok(Ok(_)) | Err(_) => Ok(()),
            Ok(Err(error)) => Err(text(error)),
        }
    }

    /// Any address that does not refuse will do.
    async fn look(&self) -> Result<(), String> {
        let mut refused = "no address".to_owned();
        for addr in self.address.resolve().await? {
            match self.ask(addr).await {
                Ok(()) => return Ok(()),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }
}

impl Probe for UdpProbe {
    fn kind(&self) -> &'static str {
        "udp"
    }

    fn target(&self) -> String {
        self.address.to_string()
    }

    fn probe(&self) -> BoxFuture<'_, ProbeResult> {
        Box::pin(async {
            let address = &self.address;
            ProbeResult::of(match self.look().await {
                Ok(()) => Ok(format!("UDP connect {address}: Success")),
                Err(error) => Err(format!("UDP connect {address}: {error}")),
            })
        })
    }
}
