//! What came in over HTTP, turned once into a form that the rest of the crate can trust.
//!
//! Everything here runs before authentication, so every step is bounded: the body's size, its nesting and
//! the number of values in it are checked before a parser builds anything ([`body`]), and the path is
//! decoded, checked and split exactly once ([`ApiPath`]). Later checks compare that one form; nobody
//! downstream decodes, trims or lower-cases again.
//!
//! [`Operation`] lists what may be asked *from outside*. What the server does on its own behalf (purging
//! expired tokens, creating the root token) are plain function calls and have no value in this type, so that
//! no request can name them.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Method};
use zeroize::Zeroizing;

pub(crate) mod body;
pub(crate) mod duration;
pub(crate) mod fields;
mod inline;
mod path;

pub(crate) use body::Data;
pub(crate) use inline::Inline;
pub use path::ApiPath;

use crate::http::ApiError;

/// Largest request body taken, in bytes (Vault's limit). Anything longer is answered with 413.
pub const MAX_BODY: usize = 32 * 1024 * 1024;

/// Who is on the other end of a request, as established by whoever terminated the connection.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Where the request came from.
    pub remote: Remote,
    /// The SPIFFE ID of a *verified* client certificate. vault-kv believes it: set it only after the chain and
    /// the trust domain were checked.
    pub spiffe: Option<String>,
    /// The certificates (DER, leaf first) that a client showed whose possession of the key was checked, and nothing
    /// else of it; empty: none.
    pub certificates: Vec<Vec<u8>>,
    /// Which of the server's doors the request used; recorded in the ledger and in the audit log.
    pub via: Via,
}

impl Caller {
    /// Nobody known, from there.
    pub fn anonymous(remote: Remote, via: Via) -> Self {
        Self {
            remote,
            spiffe: None,
            certificates: Vec::new(),
            via,
        }
    }
}

/// The remote end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remote {
    /// A TCP peer.
    Ip(IpAddr),
    /// A peer on a Unix socket of this machine.
    Unix,
}

impl Remote {
    /// True for a Unix socket and for loopback addresses (also IPv4-mapped ones).
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix => true,
            Self::Ip(ip) => ip.to_canonical().is_loopback(),
        }
    }
}

impl std::fmt::Display for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// The door a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// The Vault-compatible port.
    Http,
    /// The agent's or server's Unix socket.
    Socket,
    /// Forwarded over mesh RPC by an agent.
    Mesh,
    /// A call inside this process (an embedding program).
    Embedded,
}

impl Via {
    /// Short name for records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Socket => "socket",
            Self::Mesh => "mesh",
            Self::Embedded => "embedded",
        }
    }
}

/// What a request from outside asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `GET`.
    Read,
    /// `POST` or `PUT`; whether it counts as *create* or *update* is decided by what exists.
    Write,
    /// `PATCH` with a JSON merge patch.
    Patch,
    /// `DELETE`.
    Delete,
    /// `LIST` or `SCAN`, or `GET` with `?list=true` or `?scan=true`.
    List,
}

impl Operation {
    /// The name the audit log uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::List => "list",
        }
    }
}

/// One request, parsed. Holds secrets: no `Debug`.
pub(crate) struct Request {
    /// Random id, echoed as `request_id` and in the audit log.
    pub id: String,
    pub operation: Operation,
    pub path: ApiPath,
    /// Body fields, or query parameters for verbs without a body.
    pub data: Data,
    pub token: Option<ClientToken>,
    /// A login instead of a token.
    pub inline: Option<Box<Inline>>,
    pub wrap_ttl: Option<Duration>,
    pub caller: Caller,
    /// True for `HEAD`: only the status is wanted.
    pub head: bool,
    /// True for `?help=1`: not the thing is wanted, but what it is for.
    pub help: bool,
    /// True for `SCAN`: a list of what is in the folders, too (OpenBao's).
    pub recursive: bool,
    /// The ledger index of what is read, for a request that names one.
    pub index: Option<u64>,
}

/// A token as the client sent it. Never printed, wiped when dropped.
pub(crate) struct ClientToken(Zeroizing<String>);

impl ClientToken {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// `hvs.` and 24 letters and digits: 142 random bits.
    pub fn random() -> Self {
        let mut text = Zeroizing::new(String::with_capacity(4 + 24));
        text.push_str("hvs.");
        crate::token::push_base62(&mut text, 24);
        Self(text)
    }

    /// The text itself, for whoever hands it out.
    pub fn into_text(self) -> Zeroizing<String> {
        self.0
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// What the router must answer before a request exists.
pub(crate) enum Refusal {
    Error(ApiError),
    /// The path was not in its normal form; this is where the same thing lives.
    Redirect(String),
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

impl Request {
    /// Parse a request whose URI path starts with `/v1/`.
    ///
    /// # Errors
    /// The exact answer to give: 400 for a path, query or body that is not well-formed, 404 outside `/v1/`, 405
    /// for unknown verbs, 413 and 415.
    pub fn parse(request: &http::Request<Bytes>, caller: Caller) -> Result<Self, Refusal> {
        let raw = request.uri().path();
        let Some(rest) = raw.strip_prefix("/v1/") else {
            return Err(ApiError::NotFound.into());
        };
        if rest.contains("//") || rest.starts_with('/') {
            return Err(Refusal::Redirect(collapse(raw, request.uri().query())));
        }
        if request.body().len() > MAX_BODY {
            return Err(ApiError::TooLarge.into());
        }
        // What is meant for a namespace must not be done outside of it.
        let namespace = header(request.headers(), NAMESPACE).unwrap_or_default();
        if !matches!(namespace.trim_matches('/'), "" | "root") {
            return Err(ApiError::NoNamespace.into());
        }
        let mut path = ApiPath::parse(rest)?;
        let query = body::form(request.uri().query().unwrap_or_default())?;

        let asked = |name| match query.raw(name).and_then(|v| v.as_str()) {
            None => Ok(false),
            Some(text) => body::weak_bool(text).ok_or(ApiError::BadRequestSilent),
        };
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let recursive = request.method() == "SCAN" || (reads && asked("scan")?);
        let asked_help = asked("help")?;
        let listing = recursive || asked("list")?;
        let head = request.method() == Method::HEAD;
        let operation = match request.method().as_str() {
            "GET" | "HEAD" if listing => Operation::List,
            "GET" | "HEAD" => Operation::Read,
            "POST" | "PUT" => Operation::Write,
            "PATCH" => Operation::Patch,
            "DELETE" => Operation::Delete,
            "LIST" | "SCAN" => Operation::List,
            "OPTIONS" => return Err(ApiError::BadRequestSilent.into()),
            _ => return Err(ApiError::Method.into()),
        };
        let headers = request.headers();
        let data = match operation {
            Operation::Write => {
                if path.is_folder() {
                    return Err(ApiError::bad("cannot write to a path ending in '/'").into());
                }
                body::parse(request.body(), header(headers, CONTENT_TYPE))?
            }
            Operation::Patch => {
                let kind = header(headers, CONTENT_TYPE).unwrap_or_default();
                if kind.split(';').next().map(str::trim) != Some("application/merge-patch+json") {
                    return Err(ApiError::MediaType.into());
                }
                body::parse(request.body(), None)?
            }
            Operation::List => {
                path.make_folder();
                query
            }
            // Not Vault's way, but shares must not stand in a query, and cancelling a rekey may take some.
            Operation::Delete if !request.body().is_empty() => {
                body::parse(request.body(), header(headers, CONTENT_TYPE))?
            }
            Operation::Read | Operation::Delete => query,
        };
        let (token, inline) = (token(headers), Inline::parse(headers)?);
        if token.is_some() && inline.is_some() {
            return Err(ApiError::bad("a request has a token or an inline login, not both").into());
        }
        Ok(Self {
            id: random_id(),
            operation,
            path,
            data,
            token,
            inline,
            wrap_ttl: wrap_ttl(headers)?,
            caller,
            head,
            help: reads && asked_help,
            recursive,
            index: None,
        })
    }
}

/// A random id of a request: a version 4 UUID, without asking the system for each.
pub(crate) fn random_id() -> String {
    let random = uuid::Builder::from_random_bytes(rand::random());
    random.into_uuid().to_string()
}

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
const WRAP_TTL: HeaderName = HeaderName::from_static("x-vault-wrap-ttl");

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

/// `X-Vault-Token` first, else `Authorization: Bearer`.
fn token(headers: &HeaderMap) -> Option<ClientToken> {
    let text = header(headers, TOKEN)
        .filter(|t| !t.is_empty())
        .or_else(|| {
            let value = header(headers, AUTHORIZATION)?;
            let (scheme, rest) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
        })?;
    (!text.is_empty()).then(|| ClientToken::new(text))
}

fn wrap_ttl(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(text) = header(headers, WRAP_TTL).filter(|t| !t.is_empty()) else {
        return Ok(None);
    };
    match duration::parse(text) {
        Some(ttl) if !ttl.is_zero() => Ok(Some(ttl)),
        Some(_) => Ok(None),
        None => Err(ApiError::bad(
            "error parsing X-Vault-Wrap-TTL header: not a duration such as 60s or 5m",
        )),
    }
}

/// The same URI with every run of slashes made one.
fn collapse(path: &str, query: Option<&str>) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    if let Some(query) = query {
        out.push('?');
        out.push_str(query);
    }
    out
}

#[cfg(test)]
mod tests;
