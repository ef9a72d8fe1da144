//! Does it speak HTTP/2?

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::net::{Address, Io};
use super::tls::{Alpn, ProbeTls};
use super::{Probe, ProbeResult};
use crate::identity::BoxFuture;
use crate::model::InvalidField;

/// RFC 9113, section 3.4, and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The largest frame a peer may send that was not told of a larger one.
const FRAME_MAX: usize = 16384;
/// Frames read while waiting for the answer.
const FRAMES_MAX: usize = 64;
const PING: &[u8; 8] = b"mesh-hc\0";

const SETTINGS: u8 = 4;
const PING_FRAME: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;

/// Opens an HTTP/2 connection and waits for the answer to a PING frame. Without TLS with prior knowledge.
#[derive(Debug, Clone)]
pub struct H2PingProbe {
    address: Address,
    tls: Option<ProbeTls>,
}

impl H2PingProbe {
    /// A probe of `host:port`, in clear.
    ///
    /// # Errors
    /// [`InvalidField`] `h2ping` when there is no port.
    pub fn new(address: &str) -> Result<Self, InvalidField> {
        Ok(Self {
            address: Address::parse("h2ping", address)?,
            tls: None,
        })
    }

    /// Over TLS.
    pub fn tls(mut self, tls: ProbeTls) -> Self {
        self.tls = Some(tls);
        self
    }

    async fn look(&self) -> Result<(), String> {
        let mut stream = self.address.open(self.tls.as_ref(), Alpn::Http2).await?;
        ping(&mut *stream).await
    }
}

async fn ping(stream: &mut dyn Io) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    stream.write_all(PREFACE).await.map_err(text)?;
    write(stream, PING_FRAME, 0, PING).await?;
    for _ in 0..FRAMES_MAX {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.map_err(text)?;
        let [a, b, c, kind, flags, ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if length > FRAME_MAX {
            return Err("what answers is no HTTP/2".to_owned());
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.map_err(text)?;
        match (kind, flags & ACK != 0) {
            (SETTINGS, false) => write(stream, SETTINGS, ACK, &[]).await?,
            (PING_FRAME, true) if payload == PING => return Ok(()),
            (PING_FRAME, false) => write(stream, PING_FRAME, ACK, &payload).await?,
            (GOAWAY, _) => return Err("the connection was ended (GOAWAY)".to_owned()),
            _ => {}
        }
    }
    Err(format!("no answer to the ping within {FRAMES_MAX} frames"))
}

async fn write(stream: &mut dyn Io, kind: u8, flags: u8, payload: &[u8]) -> Result<(), String> {
    // All frames written here are on stream 0 and at most FRAME_MAX long.
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    let written = stream.write_all(&frame).await;
    written.map_err(|error| error.to_string())?;
    stream.flush().await.map_err(|error| error.to_string())
}

impl Probe for H2PingProbe {
    fn kind(&self) -> &'static str {
        "h2ping"
    }

    fn target(&self) -> String {
        self.address.to_string()
    }

    fn probe(&self) -> BoxFuture<'_, ProbeResult> {
        Box::pin(async {
            let address = &self.address;
            ProbeResult::of(match self.look().await {
                Ok(()) => Ok(format!("HTTP2 ping {address}: Success")),
                Err(error) => Err(format!("HTTP2 ping {address}: {error}")),
            })
        })
    }
}
