//! One look at something.

use std::fmt::Write;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::identity::BoxFuture;
use crate::model::{Health, InvalidField};

/// Longest output kept, in bytes.
pub(super) const OUTPUT_MAX: usize = 4096;
/// Redirects followed at most.
const REDIRECTS_MAX: usize = 5;

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    /// Passing, warning or critical.
    pub health: Health,
    /// For people; cut to 4 KiB.
    pub output: String,
}

impl ProbeResult {
    /// A failure.
    pub fn critical(output: impl Into<String>) -> Self {
        Self {
            health: Health::Critical,
            output: output.into(),
        }
    }
}

/// Something to look at. A look that takes longer than the check's timeout is dropped and counts as a failure.
pub trait Probe: Send + Sync {
    /// Word for the kind of check (`http`, `tcp`, …).
    fn kind(&self) -> &'static str;

    /// Looks once.
    fn probe(&self) -> BoxFuture<'_, ProbeResult>;
}

/// Connects, and is content with that.
#[derive(Debug, Clone)]
pub struct TcpProbe {
    address: String,
}

impl TcpProbe {
    /// A probe of `host:port`.
    ///
    /// # Errors
    /// [`InvalidField`] `tcp` when there is no port.
    pub fn new(address: &str) -> Result<Self, InvalidField> {
        let port = address
            .rsplit_once(':')
            .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>()));
        match port {
            Some(Ok(_)) => Ok(Self {
                address: address.to_owned(),
            }),
            _ => Err(InvalidField::new(
                "tcp",
                format!("{address:?} is not host:port"),
            )),
        }
    }
}

impl Probe for TcpProbe {
    fn kind(&self) -> &'static str {
        "tcp"
    }

    fn probe(&self) -> BoxFuture<'_, ProbeResult> {
        Box::pin(async {
            match TcpStream::connect(&self.address).await {
                Ok(_) => ProbeResult {
                    health: Health::Passing,
                    output: format!("TCP connect {}: Success", self.address),
                },
                Err(error) => {
                    ProbeResult::critical(format!("TCP connect {}: {error}", self.address))
                }
            }
        })
    }
}

/// Asks over HTTP (without TLS): 2xx is passing, 429 warning, everything else critical. Follows up to five redirects;
/// never reuses a connection.
#[derive(Debug, Clone)]
pub struct HttpProbe {
    uri: Uri,
    method: Method,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
}

impl HttpProbe {
    /// A GET of `url`.
    ///
    /// # Errors
    /// [`InvalidField`] `http` when it is no `http://` URL.
    pub fn new(url: &str) -> Result<Self, InvalidField> {
        let uri: Uri = url
            .parse()
            .map_err(|error| InvalidField::new("http", format!("{url:?}: {error}")))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            return Err(InvalidField::new(
                "http",
                format!("{url:?} is not an http:// URL (https is not supported)"),
            ));
        }
        Ok(Self {
            uri,
            method: Method::GET,
            headers: Vec::new(),
            body: Bytes::new(),
        })
    }

    /// With another method.
    ///
    /// # Errors
    /// [`InvalidField`] `method`.
    pub fn method(mut self, method: &str) -> Result<Self, InvalidField> {
        self.method = method
            .parse()
            .map_err(|_| InvalidField::new("method", format!("{method:?} is no method")))?;
        Ok(self)
    }

    /// With a header more.
    ///
    /// # Errors
    /// [`InvalidField`] `header`; the value is not quoted, as it may be a secret.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, InvalidField> {
        let wrong = || {
            InvalidField::new(
                "header",
                format!("{name:?} or its value is not well formed"),
            )
        };
        let pair = (
            name.parse().map_err(|_| wrong())?,
            value.parse().map_err(|_| wrong())?,
        );
        self.headers.push(pair);
        Ok(self)
    }

    /// With a body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    async fn ask(&self) -> Result<ProbeResult, String> {
        let mut uri = self.uri.clone();
        for _ in 0..=REDIRECTS_MAX {
            match self.ask_once(&uri).await? {
                Answer::Final(result) => return Ok(result),
                Answer::Elsewhere(location) => uri = join(&uri, &location)?,
            }
        }
        Err(format!("more than {REDIRECTS_MAX} redirects"))
    }

    async fn ask_once(&self, uri: &Uri) -> Result<Answer, String> {
        let authority = uri.authority().ok_or("a URL without a host")?;
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let stream = connect(host, authority.port_u16().unwrap_or(80)).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("HTTP handshake: {error}"))?;
        // Ends with this look, also when that is dropped.
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);

        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder().method(&self.method).uri(path);
        let headers = request
            .headers_mut()
            .ok_or("a request that cannot be built")?;
        headers.insert(
            HOST,
            authority
                .as_str()
                .parse()
                .map_err(|_| "a host name that is no header value")?,
        );
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("mesh-health-check/", env!("CARGO_PKG_VERSION"))),
        );
        headers.insert(ACCEPT, HeaderValue::from_static("text/plain, text/*, */*"));
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        let request = request
            .body(Full::new(self.body.clone()))
            .map_err(|error| error.to_string())?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let status = answer.status();
        if status.is_redirection()
            && let Some(location) = answer
                .headers()
                .get(LOCATION)
                .and_then(|value| value.to_str().ok())
        {
            return Ok(Answer::Elsewhere(location.to_owned()));
        }
        let mut output = format!("HTTP {} {}: {status} Output: ", self.method, self.uri);
        let mut body = answer.into_body();
        while output.len() < OUTPUT_MAX
            && let Some(frame) = body.frame().await
        {
            let Ok(frame) = frame else { break };
            if let Some(data) = frame.data_ref() {
                let room = (OUTPUT_MAX - output.len()).min(data.len());
                let _ = write!(output, "{}", String::from_utf8_lossy(&data[..room]));
            }
        }
        let health = match status {
            StatusCode::TOO_MANY_REQUESTS => Health::Warning,
            status if status.is_success() => Health::Passing,
            _ => Health::Critical,
        };
        Ok(Answer::Final(ProbeResult { health, output }))
    }
}

enum Answer {
    Final(ProbeResult),
    Elsewhere(String),
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let failed = |error| format!("connect to {host} port {port}: {error}");
    let addrs: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
        .await
        .map_err(failed)?
        .collect();
    TcpStream::connect(&*addrs).await.map_err(failed)
}

fn join(base: &Uri, location: &str) -> Result<Uri, String> {
    let wrong = || format!("redirected to {location:?}, which is no http:// URL");
    let target = if location.starts_with('/') && !location.starts_with("//") {
        format!("http://{}{location}", base.authority().ok_or_else(wrong)?)
    } else {
        location.to_owned()
    };
    let uri: Uri = target.parse().map_err(|_| wrong())?;
    if uri.scheme_str() == Some("http") && uri.host().is_some() {
        Ok(uri)
    } else {
        Err(wrong())
    }
}

impl Probe for HttpProbe {
    fn kind(&self) -> &'static str {
        "http"
    }

    fn probe(&self) -> BoxFuture<'_, ProbeResult> {
        Box::pin(async {
            self.ask().await.unwrap_or_else(|error| {
                ProbeResult::critical(format!("HTTP {} {}: {error}", self.method, self.uri))
            })
        })
    }
}
