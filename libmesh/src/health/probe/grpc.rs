//! The standard health protocol of gRPC (`grpc.health.v1`).
//!
//! Its two messages have one field each, so they are written and read here instead of bringing a protobuf compiler in.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinSet;

use super::net::Address;
use super::tls::{Alpn, ProbeTls};
use super::{Probe, ProbeResult};
use crate::identity::BoxFuture;
use crate::model::InvalidField;

/// The largest answer that is read: a health answer has two bytes.
const ANSWER_MAX: usize = 4096;

/// Asks `grpc.health.v1.Health/Check`: `SERVING` passes, everything else fails.
#[derive(Debug, Clone)]
pub struct GrpcProbe {
    address: Address,
    service: String,
    tls: Option<ProbeTls>,
}

impl GrpcProbe {
    /// A probe of `host:port` or `host:port/service`, in clear. Without a service the server as a whole is asked for.
    ///
    /// # Errors
    /// [`InvalidField`] `grpc` when there is no port.
    pub fn new(target: &str) -> Result<Self, InvalidField> {
        let (address, service) = target.split_once('/').unwrap_or((target, ""));
        Ok(Self {
            address: Address::parse("grpc", address)?,
            service: service.to_owned(),
            tls: None,
        })
    }

    /// Over TLS.
    pub fn tls(mut self, tls: ProbeTls) -> Self {
        self.tls = Some(tls);
        self
    }

    async fn look(&self) -> Result<(), String> {
        let stream = self.address.open(self.tls.as_ref(), Alpn::Http2).await?;
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| format!("HTTP/2: {error}"))?;
        // Ends with this look, also when that is dropped.
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);

        let scheme = self.tls.as_ref().map_or("http", |_| "https");
        let request = Request::builder()
            .method("POST")
            .version(Version::HTTP_2)
            .uri(format!(
                "{scheme}://{}/grpc.health.v1.Health/Check",
                self.address
            ))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(question(&self.service)))
            .map_err(|error| error.to_string())?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| format!("HTTP/2: {error}"))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("HTTP status {}", answer.status()));
        }
        // An error without a message comes with the head.
        status(answer.headers())?;
        let mut body = answer.into_body();
        let mut message = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| format!("HTTP/2: {error}"))?;
            if let Some(trailers) = frame.trailers_ref() {
                status(trailers)?;
            } else if let Some(data) = frame.data_ref() {
                message.extend_from_slice(data);
            }
            if message.len() > ANSWER_MAX {
                return Err("the answer is too long for one about health".to_owned());
            }
        }
        match serving_status(&message) {
            Some(1) => Ok(()),
            Some(2) => Err("NOT_SERVING".to_owned()),
            Some(3) => Err("SERVICE_UNKNOWN".to_owned()),
            Some(_) => Err("UNKNOWN".to_owned()),
            None => Err("the answer is no HealthCheckResponse".to_owned()),
        }
    }
}

fn status(headers: &HeaderMap) -> Result<(), String> {
    let text = |name| {
        headers
            .get(name)
            .map(|v| String::from_utf8_lossy(v.as_bytes()))
    };
    match text("grpc-status") {
        Some(code) if code != "0" => {
            let message = text("grpc-message").unwrap_or_default();
            Err(match &*code {
                "5" => format!("the service is not known: {message}"),
                "12" => format!("the server has no health protocol: {message}"),
                _ => format!("gRPC status {code}: {message}"),
            })
        }
        Some(_) | None => Ok(()),
    }
}

/// `HealthCheckRequest { string service = 1 }` with the five bytes before every gRPC message.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.extend_from_slice(&message);
    framed.freeze()
}

/// Field 1 of `HealthCheckResponse { ServingStatus status = 1 }`. An absent field is 0.
fn serving_status(framed: &[u8]) -> Option<u64> {
    let (&[0, a, b, c, d], mut message) = framed.split_first_chunk::<5>()? else {
        return None;
    };
    if u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return None;
    }
    let mut found = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => found = varint(&mut message)?,
            (_, 0) => drop(varint(&mut message)?),
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(found)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

impl Probe for GrpcProbe {
    fn kind(&self) -> &'static str {
        "grpc"
    }

    fn target(&self) -> String {
        match self.service.as_str() {
            "" => self.address.to_string(),
            service => format!("{}/{service}", self.address),
        }
    }

    fn probe(&self) -> BoxFuture<'_, ProbeResult> {
        Box::pin(async {
            let target = self.target();
            ProbeResult::of(match self.look().await {
                Ok(()) => Ok(format!("gRPC check {target}: success")),
                Err(error) => Err(format!("gRPC check {target}: {error}")),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_protobuf() {
        assert_eq!(&*question(""), b"\0\0\0\0\0");
        assert_eq!(&*question("web"), b"\0\0\0\0\x05\x0a\x03web");
        assert_eq!(&question(&"x".repeat(300))[5..8], b"\x0a\xac\x02");
        assert_eq!(serving_status(b"\0\0\0\0\x02\x08\x01"), Some(1));
        assert_eq!(serving_status(b"\0\0\0\0\0"), Some(0));
        let with_unknown_fields = b"\0\0\0\0\x09\x12\x03abc\x18\x96\x08\x02";
        assert_eq!(
            serving_status(with_unknown_fields),
            None,
            "a byte is missing"
        );
        let with_unknown_fields = b"\0\0\0\0\x0a\x12\x03abc\x18\x96\x01\x08\x02";
        assert_eq!(serving_status(with_unknown_fields), Some(2));
        for bad in [
            &b""[..],
            b"\0\0\0\0",
            b"\x01\0\0\0\x02\x08\x01",
            b"\0\0\0\0\x03\x08\x01",
            b"\0\0\0\0\x02\x08\xff",
            b"\0\0\0\0\x02\x0f\x01",
        ] {
            assert_eq!(serving_status(bad), None, "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_answered_is_read_without_harm(mut bytes: Vec<u8>, honest: bool) {
            if honest {
                let length = (bytes.len() as u32).to_be_bytes();
                bytes.splice(..0, [0, length[0], length[1], length[2], length[3]]);
            }
            let read = serving_status(&bytes);
            proptest::prop_assert!(honest || read.is_none() || bytes[0] == 0);
        }
    }
}
