//! What does it answer over HTTP?

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, COOKIE, HOST, LOCATION, PROXY_AUTHORIZATION, USER_AGENT,
};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::net::Address;
use super::tls::{Alpn, ProbeTls};
use super::{OUTPUT_MAX, Probe, ProbeResult};
use crate::identity::BoxFuture;
use crate::model::{Health, InvalidField};

/// Redirects followed at most.
const REDIRECTS_MAX: usize = 10;

/// Asks over HTTP/1.1, in clear or over TLS: 2xx is passing, 429 warning, everything else critical. Follows up to ten
/// redirects, without credentials to another host; never reuses a connection.
#[derive(Debug, Clone)]
pub struct HttpProbe {
    uri: Uri,
    method: Method,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    tls: ProbeTls,
    redirects: usize,
    output_max: usize,
}

impl HttpProbe {
    /// A GET of `url`.
    ///
    /// # Errors
    /// [`InvalidField`] `http` when it is no `http://` or `https://` URL; it is not quoted, as it may hold a password.
    pub fn new(url: &str) -> Result<Self, InvalidField> {
        let uri: Uri = url
            .parse()
            .map_err(|error| InvalidField::new("http", format!("not a URL: {error}")))?;
        if !takes(&uri) {
            return Err(InvalidField::new("http", "not an http:// or https:// URL"));
        }
        Ok(Self {
            uri,
            method: Method::GET,
            headers: Vec::new(),
            body: Bytes::new(),
            tls: ProbeTls::default(),
            redirects: REDIRECTS_MAX,
            output_max: OUTPUT_MAX,
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

    /// With a header more; `Host` is one, too.
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
        let name: HeaderName = name.parse().map_err(|_| wrong())?;
        let mut value: HeaderValue = value.parse().map_err(|_| wrong())?;
        value.set_sensitive(true);
        self.headers.push((name, value));
        Ok(self)
    }

    /// With a body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// How `https://` URLs are asked.
    pub fn tls(mut self, tls: ProbeTls) -> Self {
        self.tls = tls;
        self
    }

    /// Takes a redirect for the answer, which makes it critical.
    pub fn without_redirects(mut self) -> Self {
        self.redirects = 0;
        self
    }

    /// Bytes of the answer that are read. Default 4 KiB.
    pub fn output_max(mut self, bytes: usize) -> Self {
        self.output_max = bytes;
        self
    }

    async fn ask(&self) -> Result<ProbeResult, String> {
        let mut asked = Asked {
            uri: self.uri.clone(),
            method: self.method.clone(),
            body: self.body.clone(),
        };
        for _ in 0..=self.redirects {
            match self.ask_once(&asked).await? {
                Answer::Final(result) => return Ok(result),
                Answer::Elsewhere(status, location) => asked.follow(status, &location)?,
            }
        }
        Err(format!("more than {} redirects", self.redirects))
    }

    async fn ask_once(&self, asked: &Asked) -> Result<Answer, String> {
        let uri = &asked.uri;
        let authority = uri.authority().ok_or("a URL without a host")?;
        let over_tls = uri.scheme_str() == Some("https");
        let address = Address {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: port(uri, authority),
        };
        let tls = over_tls.then_some(&self.tls);
        let stream = address.open(tls, Alpn::Http1).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("HTTP handshake: {error}"))?;
        // Ends with this look, also when that is dropped.
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);

        let answer = sender
            .send_request(self.request(asked, authority)?)
            .await
            .map_err(|error| error.to_string())?;
        let status = answer.status();
        if self.redirects > 0
            && matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
            && let Some(location) = answer.headers().get(LOCATION)
            && let Ok(location) = location.to_str()
        {
            return Ok(Answer::Elsewhere(status, location.to_owned()));
        }
        let mut read = Vec::new();
        let mut body = answer.into_body();
        while read.len() < self.output_max
            && let Some(Ok(frame)) = body.frame().await
        {
            if let Some(data) = frame.data_ref() {
                let room = (self.output_max - read.len()).min(data.len());
                read.extend_from_slice(&data[..room]);
            }
        }
        let read = String::from_utf8_lossy(&read);
        Ok(Answer::Final(ProbeResult {
            health: match status {
                StatusCode::TOO_MANY_REQUESTS => Health::Warning,
                status if status.is_success() => Health::Passing,
                _ => Health::Critical,
            },
            output: format!("HTTP {} {}: {status} Output: {read}", self.method, self.uri),
        }))
    }

    fn request(
        &self,
        asked: &Asked,
        authority: &Authority,
    ) -> Result<Request<Full<Bytes>>, String> {
        let path = asked.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder().method(&asked.method).uri(path);
        let headers = request
            .headers_mut()
            .ok_or("a request that cannot be built")?;
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        let host = host.parse();
        headers.insert(
            HOST,
            host.map_err(|_| "a host name that is no header value")?,
        );
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("mesh-health-check/", env!("CARGO_PKG_VERSION"))),
        );
        headers.insert(ACCEPT, HeaderValue::from_static("text/plain, text/*, */*"));
        let at_home = asked.uri.authority() == self.uri.authority()
            && asked.uri.scheme() == self.uri.scheme();
        for (name, value) in &self.headers {
            if at_home || !bound_to_host(name) {
                headers.insert(name, value.clone());
            }
        }
        request
            .body(Full::new(asked.body.clone()))
            .map_err(|error| error.to_string())
    }
}

/// One request on the way.
struct Asked {
    uri: Uri,
    method: Method,
    body: Bytes,
}

impl Asked {
    /// Only 307 and 308 keep the method, as browsers and Go do it.
    fn follow(&mut self, status: StatusCode, location: &str) -> Result<(), String> {
        let wrong = || format!("redirected to {location:?}, which is no http:// or https:// URL");
        let (scheme, authority) = (self.uri.scheme_str(), self.uri.authority());
        let (scheme, authority) = scheme.zip(authority).ok_or_else(wrong)?;
        let target = if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}")
        } else if location.contains("://") {
            location.to_owned()
        } else {
            let folder = self
                .uri
                .path()
                .rsplit_once('/')
                .map_or("", |(folder, _)| folder);
            format!("{scheme}://{authority}{folder}/{location}")
        };
        let uri: Uri = target.parse().map_err(|_| wrong())?;
        if !takes(&uri) {
            return Err(wrong());
        }
        if status.as_u16() < 307 && self.method != Method::HEAD {
            self.method = Method::GET;
            self.body = Bytes::new();
        }
        self.uri = uri;
        Ok(())
    }
}

enum Answer {
    Final(ProbeResult),
    Elsewhere(StatusCode, String),
}

fn takes(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.host().is_some_and(|host| !host.is_empty())
}

fn port(uri: &Uri, authority: &Authority) -> u16 {
    let default = if uri.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    authority.port_u16().unwrap_or(default)
}

/// Headers that are meant for the host of the check's own URL only.
fn bound_to_host(name: &HeaderName) -> bool {
    [AUTHORIZATION, COOKIE, HOST, PROXY_AUTHORIZATION].contains(name)
}

impl Probe for HttpProbe {
    fn kind(&self) -> &'static str {
        "http"
    }

    fn target(&self) -> String {
        self.uri.to_string()
    }

    fn probe(&self) -> BoxFuture<'_, ProbeResult> {
        Box::pin(async {
            self.ask().await.unwrap_or_else(|error| {
                ProbeResult::critical(format!("HTTP {} {}: {error}", self.method, self.uri))
            })
        })
    }
}
