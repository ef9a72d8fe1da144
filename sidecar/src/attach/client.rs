//! The other side of the socket: what a sidecar, or a command beside an agent, asks of it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use libmesh::identity::{BoxFuture, CertificateSource, Issued, SourceError, TrustBundle};
use libmesh::model::ServiceName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::pem;
use super::wire::{
    AboutReply, AttachReply, AttachRequest, BundleReply, EndpointsReply, SERVICE_HEADER, SignReply,
    SignRequest, TOKEN_HEADER,
};
use crate::http::client::{ClientError, Target};

/// How long the agent may take for an answer that needs no waiting.
const WITHIN: Duration = Duration::from_secs(10);

/// The agent of this host, over its Unix socket.
#[derive(Clone)]
pub struct AgentClient {
    target: Target,
    token_file: Option<PathBuf>,
    service: Option<ServiceName>,
}

/// Why the agent gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It cannot be reached.
    #[error(transparent)]
    Unreachable(#[from] ClientError),
    /// It refused.
    #[error("the agent refused ({status}): {detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Why, and what to do.
        detail: String,
    },
    /// What it said cannot be understood: another version, or no agent at all.
    #[error("the agent's answer to {path} cannot be understood: {reason}")]
    Garbled {
        /// What was asked.
        path: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The attach token cannot be read.
    #[error("cannot read the attach token from {path}: {reason}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl AgentError {
    /// Whether asking again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429,
            Self::Garbled { .. } | Self::Token { .. } => false,
        }
    }
}

impl AgentClient {
    /// The agent that listens on `socket`. `token_file` (0600) holds the attach token, where the uid does not say
    /// enough; it is read at each call, so that it can be replaced.
    pub fn new(socket: &Path, token_file: Option<PathBuf>) -> Self {
        Self {
            target: Target::Unix(socket.to_owned()),
            token_file,
            service: None,
        }
    }

    /// Speaks as `service`, for a caller that may act as several.
    #[must_use]
    pub fn speaking_as(mut self, service: ServiceName) -> Self {
        self.service = Some(service);
        self
    }

    /// Where the agent stands, and the mesh's trust domain and roots.
    ///
    /// # Errors
    /// [`AgentError`]; 403 when the caller is not declared.
    pub async fn about(&self) -> Result<AboutReply, AgentError> {
        self.poll("/v1/mesh/about".to_owned(), None, Duration::ZERO)
            .await
    }

    /// Attaches, or repeats the attachment.
    ///
    /// # Errors
    /// [`AgentError`]; 403 when the caller is not declared, 409 when another sidecar holds the instance.
    pub async fn attach(&self, request: &AttachRequest) -> Result<AttachReply, AgentError> {
        self.put(Method::PUT, "/v1/mesh/attach", request).await
    }

    /// Ends the attachment, so that nobody waits for it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn detach(&self, instance: &str, holder: &str) -> Result<(), AgentError> {
        let segment = |text| crate::http::query::encode(text).replace('/', "%2F");
        let path = format!(
            "/v1/mesh/attach/{}?holder={}",
            segment(instance),
            segment(holder)
        );
        self.call(Method::DELETE, &path, Bytes::new(), WITHIN)
            .await
            .map(|_| ())
    }

    /// Where `service` can be reached; with `after`, once that has changed since that index, or when `wait` is over.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn endpoints(
        &self,
        service: &ServiceName,
        after: Option<u64>,
        wait: Duration,
    ) -> Result<EndpointsReply, AgentError> {
        self.poll(format!("/v1/mesh/endpoints/{service}"), after, wait)
            .await
    }

    /// The mesh's signed configuration; with `after`, once it is newer than that index, or when `wait` is over.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn bundle(
        &self,
        after: Option<u64>,
        wait: Duration,
    ) -> Result<BundleReply, AgentError> {
        self.poll("/v1/mesh/bundle".to_owned(), after, wait).await
    }

    /// Sends a request of the Vault API (`/v1/…`), which the agent forwards with this caller's identity.
    ///
    /// # Errors
    /// [`AgentError`] when the agent gives no answer; what the Vault API answers is the `Ok` value, whatever its status.
    pub async fn vault(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, AgentError> {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let path = format!("/v1/mesh/vault{path}");
        *request.uri_mut() =
            path.parse()
                .map_err(|error: http::uri::InvalidUri| AgentError::Garbled {
                    path,
                    reason: error.to_string(),
                })?;
        self.identify(&mut request)?;
        Ok(self.target.send(request, WITHIN).await?)
    }

    async fn poll<T: DeserializeOwned>(
        &self,
        mut path: String,
        after: Option<u64>,
        wait: Duration,
    ) -> Result<T, AgentError> {
        if let Some(index) = after {
            path += &format!("?index={index}&wait={}ms", wait.as_millis());
        }
        let answer = self
            .call(Method::GET, &path, Bytes::new(), WITHIN + wait)
            .await?;
        understand(&path, &answer)
    }

    async fn put<A: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &A,
    ) -> Result<T, AgentError> {
        let body = serde_json::to_vec(body).expect("the wire types are plain JSON");
        let answer = self.call(method, path, body.into(), WITHIN).await?;
        understand(path, &answer)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, AgentError> {
        let garbled = |reason: String| AgentError::Garbled {
            path: path.to_owned(),
            reason,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| garbled(error.to_string()))?;
        self.identify(&mut request)?;
        let answer = self.target.send(request, within).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        #[derive(Deserialize)]
        struct Problem {
            detail: String,
        }
        let detail = serde_json::from_slice(answer.body())
            .map(|problem: Problem| problem.detail)
            .unwrap_or_else(|_| {
                String::from_utf8_lossy(answer.body())
                    .trim()
                    .chars()
                    .take(500)
                    .collect()
            });
        Err(AgentError::Refused {
            status: status.as_u16(),
            detail,
        })
    }

    fn identify(&self, request: &mut Request<Bytes>) -> Result<(), AgentError> {
        if let Some(path) = &self.token_file {
            let failed = |reason: String| AgentError::Token {
                path: path.clone(),
                reason,
            };
            let token = read_private(path).map_err(|error| failed(error.to_string()))?;
            let mut value = HeaderValue::from_str(token.trim())
                .map_err(|_| failed("it is no text".to_owned()))?;
            value.set_sensitive(true);
            request.headers_mut().insert(TOKEN_HEADER, value);
        }
        if let Some(service) = &self.service {
            let value =
                HeaderValue::from_str(service.as_str()).expect("service names are header text");
            request.headers_mut().insert(SERVICE_HEADER, value);
        }
        Ok(())
    }
}

impl CertificateSource for AgentClient {
    fn sign_node(&self, _csr: Vec<u8>) -> BoxFuture<'_, Result<Issued, SourceError>> {
        Box::pin(async { Err(SourceError::Refused("a sidecar is no node".to_owned())) })
    }

    fn sign_service(
        &self,
        service: ServiceName,
        csr: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<Issued, SourceError>> {
        Box::pin(async move {
            let request = SignRequest {
                service: service.shared(),
                csr_pem: pem::request(&csr),
                ttl: ttl.map(|ttl| humantime::format_duration(ttl).to_string()),
            };
            let reply: SignReply = self
                .put(Method::POST, "/v1/mesh/sign", &request)
                .await
                .map_err(|error| match error.is_transient() {
                    true => SourceError::Unavailable(error.to_string()),
                    false => SourceError::Refused(error.to_string()),
                })?;
            let read = |pem: &str| {
                pem::read_certificates(pem).map_err(|e| SourceError::Unavailable(e.to_string()))
            };
            Ok(Issued {
                chain: read(&reply.chain_pem)?,
                bundle: TrustBundle {
                    roots: read(&reply.bundle_pem)?,
                },
                not_after: UNIX_EPOCH + Duration::from_secs(reply.not_after),
            })
        })
    }
}

fn understand<T: DeserializeOwned>(path: &str, answer: &[u8]) -> Result<T, AgentError> {
    serde_json::from_slice(answer).map_err(|error| AgentError::Garbled {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// The text of a file that only its owner may read.
fn read_private(path: &Path) -> io::Result<Zeroizing<String>> {
    if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
        let advice = format!(
            "its mode lets others read it; run: chmod 600 {}",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, advice));
    }
    fs::read_to_string(path).map(Zeroizing::new)
}
