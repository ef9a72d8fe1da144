//! A small HTTP client for the command line: one request, one connection, over TCP, TLS or a Unix socket. An answer is
//! read whole, or handed on piece by piece where it may be larger than memory.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// Where the system keeps the certificate authorities it trusts, by distribution.
const SYSTEM_ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Whom to ask.
#[derive(Clone)]
pub enum Target {
    /// `http://host:port` or `https://host:port`.
    Tcp {
        /// Host name or address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// Set for https.
        tls: Option<Arc<ClientConfig>>,
    },
    /// `unix:///path`.
    Unix(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp { host, port, tls } => {
                let scheme = if tls.is_some() { "https" } else { "http" };
                match host.contains(':') {
                    true => write!(f, "{scheme}://[{host}]:{port}"),
                    false => write!(f, "{scheme}://{host}:{port}"),
                }
            }
            Target::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The address is not one of the forms [`Target::parse`] takes.
    #[error(
        "address {0:?} is not understood: use http://HOST:PORT, https://HOST:PORT or unix:///PATH"
    )]
    Address(String),
    /// Certificate authorities could not be read.
    #[error("cannot read certificate authorities from {path}: {reason}")]
    Roots {
        /// The file.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// Nobody answers there.
    #[error("cannot connect to {target}: {source}")]
    Connect {
        /// Whom we tried.
        target: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The connection broke, or what came back was no HTTP.
    #[error("no valid answer from {target}: {reason}")]
    Protocol {
        /// Whom we asked.
        target: String,
        /// What went wrong.
        reason: String,
    },
    /// What came could not be put where it belongs.
    #[error("{0}")]
    Sink(io::Error),
    /// No answer in time.
    #[error("no answer from {target} within {}", humantime::format_duration(*after))]
    TimedOut {
        /// Whom we asked.
        target: String,
        /// How long we waited.
        after: Duration,
    },
}

impl Target {
    /// Reads `http://host[:port]`, `https://…`, `unix:///path`, or `host:port` (clear HTTP).
    ///
    /// `ca_file`: PEM file with the authorities to trust for https; without it the system's.
    pub fn parse(
        address: &str,
        default_port: u16,
        ca_file: Option<&Path>,
    ) -> Result<Target, ClientError> {
        if let Some(path) = address.strip_prefix("unix://") {
            return Ok(Target::Unix(path.into()));
        }
        Self::over_tcp(address, default_port, || tls_config(ca_file))
    }

    /// The same, without Unix sockets, and with these authorities (PEM) instead of a file's.
    pub fn trusting(address: &str, default_port: u16, roots: &[u8]) -> Result<Target, ClientError> {
        Self::over_tcp(address, default_port, || {
            tls_trusting(roots, Path::new("what was given"))
        })
    }

    fn over_tcp(
        address: &str,
        default_port: u16,
        config: impl FnOnce() -> Result<Arc<ClientConfig>, ClientError>,
    ) -> Result<Target, ClientError> {
        let bad = || ClientError::Address(address.to_owned());
        let (tls, rest) = match address.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(_) => return Err(bad()),
            None => (false, address),
        };
        let authority: http::uri::Authority =
            rest.trim_end_matches('/').parse().map_err(|_| bad())?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(bad());
        }
        let tls = if tls { Some(config()?) } else { None };
        let port = authority.port_u16().unwrap_or(default_port);
        Ok(Target::Tcp { host, port, tls })
    }

    /// Sends one request (its URI is only path and query) and reads the whole answer.
    pub async fn send(
        &self,
        request: Request<Bytes>,
        within: Duration,
    ) -> Result<Response<Bytes>, ClientError> {
        let whole = |answer| self.whole(answer);
        let answered = timeout(within, self.exchange(request, within, whole)).await;
        answered.unwrap_or_else(|_| Err(self.late(within)))
    }

    /// Sends one request and gives `sink` the body of a good answer piece by piece, however long it is; the answer
    /// that comes back has none then. Any other answer is read whole. `within` is the longest wait for the next piece.
    pub async fn receive(
        &self,
        request: Request<Bytes>,
        within: Duration,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Response<Bytes>, ClientError> {
        let consume = async |answer: Response<Incoming>| {
            if !answer.status().is_success() {
                let whole = timeout(within, self.whole(answer)).await;
                return whole.unwrap_or_else(|_| Err(self.late(within)));
            }
            let (head, mut body) = answer.into_parts();
            loop {
                let frame = timeout(within, body.frame()).await;
                match frame.map_err(|_| self.late(within))? {
                    None => return Ok(Response::from_parts(head, Bytes::new())),
                    Some(Err(error)) => return Err(self.failed(error)),
                    Some(Ok(frame)) => {
                        if let Some(piece) = frame.data_ref() {
                            sink(piece).map_err(ClientError::Sink)?;
                        }
                    }
                }
            }
        };
        self.exchange(request, within, consume).await
    }

    async fn whole(&self, answer: Response<Incoming>) -> Result<Response<Bytes>, ClientError> {
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|error| self.failed(error))?.to_bytes();
        Ok(Response::from_parts(head, body))
    }

    fn failed(&self, reason: impl fmt::Display) -> ClientError {
        ClientError::Protocol {
            target: self.to_string(),
            reason: reason.to_string(),
        }
    }

    fn late(&self, after: Duration) -> ClientError {
        ClientError::TimedOut {
            target: self.to_string(),
            after,
        }
    }

    /// Connects and sends within `within` each, and has `consume` read the answer.
    async fn exchange(
        &self,
        request: Request<Bytes>,
        within: Duration,
        consume: impl AsyncFnOnce(Response<Incoming>) -> Result<Response<Bytes>, ClientError>,
    ) -> Result<Response<Bytes>, ClientError> {
        let connect = |source| ClientError::Connect {
            target: self.to_string(),
            source,
        };
        match self {
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(connect)?;
                self.over(stream, request, "localhost".to_owned(), within, consume)
                    .await
            }
            Target::Tcp { host, port, tls } => {
                let stream = timeout(within, TcpStream::connect((host.as_str(), *port))).await;
                let stream = stream.map_err(|_| self.late(within))?.map_err(connect)?;
                let name = match host.contains(':') {
                    true => format!("[{host}]:{port}"),
                    false => format!("{host}:{port}"),
                };
                let Some(config) = tls else {
                    return self.over(stream, request, name, within, consume).await;
                };
                let server = ServerName::try_from(host.clone())
                    .map_err(|_| ClientError::Address(self.to_string()))?;
                let connector = TlsConnector::from(Arc::clone(config));
                let stream = timeout(within, connector.connect(server, stream)).await;
                let stream = stream.map_err(|_| self.late(within))?.map_err(connect)?;
                self.over(stream, request, name, within, consume).await
            }
        }
    }

    async fn over<S>(
        &self,
        stream: S,
        request: Request<Bytes>,
        host: String,
        within: Duration,
        consume: impl AsyncFnOnce(Response<Incoming>) -> Result<Response<Bytes>, ClientError>,
    ) -> Result<Response<Bytes>, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut request = request.map(Full::new);
        let host = HeaderValue::try_from(host).map_err(|error| self.failed(error))?;
        request.headers_mut().insert(header::HOST, host);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.failed(error))?;
        let exchange = async {
            let answer = timeout(within, sender.send_request(request)).await;
            let answer = answer.map_err(|_| self.late(within))?;
            consume(answer.map_err(|error| self.failed(error))?).await
        };
        tokio::pin!(exchange, connection);
        let mut open = true;
        loop {
            tokio::select! {
                answer = &mut exchange => return answer,
                // The answer may still be in the channel when the connection ends.
                _ = &mut connection, if open => open = false,
            }
        }
    }
}

fn tls_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, ClientError> {
    let path = match ca_file {
        Some(path) => path,
        None => SYSTEM_ROOTS
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
            .unwrap_or(Path::new(SYSTEM_ROOTS[0])),
    };
    let pem = fs::read(path).map_err(|error| ClientError::Roots {
        path: path.display().to_string(),
        reason: error.to_string(),
    })?;
    tls_trusting(&pem, path)
}

/// Trusts these authorities (PEM), which are from there.
fn tls_trusting(pem: &[u8], path: &Path) -> Result<Arc<ClientConfig>, ClientError> {
    let failed = |reason: String| ClientError::Roots {
        path: path.display().to_string(),
        reason,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| failed(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(failed("no certificate in it".to_owned()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let show = |address| Target::parse(address, 8500, None).map(|t| t.to_string());
        assert_eq!(show("127.0.0.1:8500").unwrap(), "http://127.0.0.1:8500");
        assert_eq!(show("http://host/").unwrap(), "http://host:8500");
        assert_eq!(show("http://[::1]:1").unwrap(), "http://[::1]:1");
        assert_eq!(
            show("unix:///run/mesh.sock").unwrap(),
            "unix:///run/mesh.sock"
        );
        for bad in ["ftp://x", "", "http://", "http://user@host"] {
            assert!(show(bad).is_err(), "{bad:?} was taken");
        }
    }
}
