//! Whom the commands talk to: the local agent (Consul-compatible HTTP or its Unix socket) or a server's
//! Vault-compatible port.
//!
//! Own variables come first (`MESH_*`), then those of Consul's and Vault's own tools.

use std::{env, fs, io, path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::{Exit, Failure};
use crate::http::client::{ClientError, Target};

/// How long a command waits for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where an agent's socket is unless it was configured elsewhere.
const DEFAULT_SOCKET: &str = "/var/lib/mesh/mesh.sock";

/// Flags that say whom to talk to.
#[derive(Debug, Clone, Args)]
pub struct Addresses {
    /// Agent: http://HOST:PORT, https://HOST:PORT or unix:///PATH [env: MESH_HTTP_ADDR,
    /// CONSUL_HTTP_ADDR; default: http://127.0.0.1:8500]
    #[arg(long, global = true, value_name = "ADDRESS")]
    http_addr: Option<String>,
    /// The agent's Unix socket, for secrets [env: MESH_SOCKET; default: /var/lib/mesh/mesh.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Server's Vault port [env: MESH_VAULT_ADDR, VAULT_ADDR; default: http://127.0.0.1:8200]
    #[arg(long, global = true, value_name = "ADDRESS")]
    vault_addr: Option<String>,
    /// File with a token [env: MESH_TOKEN_FILE, then the variables MESH_TOKEN, CONSUL_HTTP_TOKEN or
    /// VAULT_TOKEN, then ~/.vault-token]
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// File with the attach token of the service to speak as [env: MESH_ATTACH_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    attach_token_file: Option<PathBuf>,
    /// PEM file with the certificate authorities to trust for https [env: MESH_CACERT, CONSUL_CACERT
    /// or VAULT_CACERT; default: the system's]
    #[arg(long, global = true, value_name = "FILE")]
    ca_cert: Option<PathBuf>,
}

/// A remote, and what is shown to it.
pub struct Client {
    target: Target,
    /// Before every path, for the Vault API behind the agent's socket.
    prefix: &'static str,
    headers: Vec<(&'static str, Zeroizing<String>)>,
    /// What to try when nobody answers.
    hint: &'static str,
    patience: Duration,
}

/// An answer.
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Whole body.
    pub body: Bytes,
    /// The ledger index of what was read, where that was asked for.
    pub index: Option<u64>,
}

impl Addresses {
    /// The local agent's HTTP API.
    pub fn agent(&self) -> Result<Client, Failure> {
        let address = self
            .http_addr
            .clone()
            .or_else(|| var("MESH_HTTP_ADDR"))
            .or_else(consul_address)
            .unwrap_or_else(|| "http://127.0.0.1:8500".to_owned());
        let ca = self.ca_file("CONSUL_CACERT");
        let token = self.token(
            &["MESH_TOKEN", "CONSUL_HTTP_TOKEN"],
            "CONSUL_HTTP_TOKEN_FILE",
        )?;
        Ok(Client {
            target: Target::parse(&address, 8500, ca.as_deref())?,
            prefix: "",
            headers: token.map(|t| ("x-consul-token", t)).into_iter().collect(),
            hint: "is an agent running here? mesh agent; or name another one: --http-addr, MESH_HTTP_ADDR",
            patience: PATIENCE,
        })
    }

    /// A server's Vault port.
    pub fn vault(&self) -> Result<Client, Failure> {
        let address = self
            .vault_address()
            .unwrap_or_else(|| "http://127.0.0.1:8200".to_owned());
        let ca = self.ca_file("VAULT_CACERT");
        let mut token = self.token(&["MESH_TOKEN", "VAULT_TOKEN"], "")?;
        if token.is_none() {
            token = home_token();
        }
        let mut headers: Vec<_> = token.map(|t| ("x-vault-token", t)).into_iter().collect();
        if let Some(namespace) = var("VAULT_NAMESPACE") {
            headers.push(("x-vault-namespace", Zeroizing::new(namespace)));
        }
        Ok(Client {
            target: Target::parse(&address, 8200, ca.as_deref())?,
            prefix: "",
            headers,
            hint: "is a server running there? name another one: --vault-addr, MESH_VAULT_ADDR",
            patience: PATIENCE,
        })
    }

    /// The Vault API with the caller's mesh identity, through the agent's socket; a Vault port that was
    /// named, or a host without an agent's socket, goes to the port with a token.
    pub fn secrets(&self) -> Result<Client, Failure> {
        let named = self.socket.is_some() || var("MESH_SOCKET").is_some();
        let socket = self.socket_path();
        if !named && (self.vault_address().is_some() || !socket.exists()) {
            return self.vault();
        }
        let mut headers = Vec::new();
        if let Some(token) = self.token(&["MESH_TOKEN", "VAULT_TOKEN"], "")? {
            headers.push(("x-vault-token", token));
        }
        if let Some(path) = self.attach_token_path() {
            headers.push(("x-mesh-attach", read_token(&path)?));
        }
        Ok(Client {
            target: Target::Unix(socket),
            prefix: "/v1/mesh/vault",
            headers,
            hint: "is an agent running here? mesh agent; or name its socket: --socket, MESH_SOCKET",
            patience: PATIENCE,
        })
    }

    /// The agent's socket itself.
    pub fn socket(&self) -> Client {
        Client {
            target: Target::Unix(self.socket_path()),
            prefix: "",
            headers: Vec::new(),
            hint: "is an agent running here? mesh agent; or name its socket: --socket, MESH_SOCKET",
            patience: PATIENCE,
        }
    }

    /// The file with the attach token, if one is named.
    pub fn attach_token_path(&self) -> Option<PathBuf> {
        let given = self.attach_token_file.clone();
        given.or_else(|| Some(var("MESH_ATTACH_TOKEN_FILE")?.into()))
    }

    /// The agent's Unix socket.
    pub fn socket_path(&self) -> PathBuf {
        let given = self.socket.clone().or_else(|| {
            let given = var("MESH_SOCKET")?;
            Some(given.strip_prefix("unix://").unwrap_or(&given).into())
        });
        given.unwrap_or_else(|| DEFAULT_SOCKET.into())
    }

    fn vault_address(&self) -> Option<String> {
        let given = self.vault_addr.clone();
        given
            .or_else(|| var("MESH_VAULT_ADDR"))
            .or_else(|| var("VAULT_ADDR"))
    }

    fn ca_file(&self, neighbour: &str) -> Option<PathBuf> {
        let given = self.ca_cert.clone();
        given
            .or_else(|| Some(var("MESH_CACERT")?.into()))
            .or_else(|| Some(var(neighbour)?.into()))
    }

    fn token(
        &self,
        variables: &[&str],
        file_variable: &str,
    ) -> Result<Option<Zeroizing<String>>, Failure> {
        let own = var("MESH_TOKEN_FILE").map(PathBuf::from);
        if let Some(path) = self.token_file.clone().or(own) {
            return read_token(&path).map(Some);
        }
        if let Some(token) = variables.iter().find_map(|name| var(name)) {
            return Ok(Some(Zeroizing::new(token)));
        }
        match var(file_variable) {
            Some(path) => read_token(&PathBuf::from(path)).map(Some),
            None => Ok(None),
        }
    }
}

impl Client {
    /// Whom this client talks to, for messages.
    pub fn target(&self) -> String {
        self.target.to_string()
    }

    /// The same, for what takes longer than most.
    #[must_use]
    pub fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Sends one request; any HTTP status is an answer.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Answer, Failure> {
        let request = self.request(method, path, body.into())?;
        self.answered(self.target.send(request, self.patience).await)
    }

    /// GETs something that may be larger than memory: `sink` gets a good answer's body piece by piece.
    pub async fn download(
        &self,
        path: &str,
        sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Answer, Failure> {
        let request = self.request(Method::GET, path, Bytes::new())?;
        let answer = self.target.receive(request, self.patience, sink).await;
        self.answered(answer)
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Bytes>, Failure> {
        // Under the socket, `/v1/x` of the Vault API is `/v1/mesh/vault/x`.
        let path = match self.prefix {
            "" => path.to_owned(),
            prefix => format!("{prefix}{}", path.strip_prefix("/v1").unwrap_or(path)),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .body(body)
            .map_err(|error| Failure::usage(format!("this makes no request: {error}")))?;
        if request.method() == Method::PATCH {
            let kind = HeaderValue::from_static("application/merge-patch+json");
            request.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        for (name, value) in &self.headers {
            let mut value = HeaderValue::from_str(value).map_err(|_| {
                Failure::usage(format!(
                    "the token for {name} has characters that no token has"
                ))
            })?;
            value.set_sensitive(true);
            request.headers_mut().insert(*name, value);
        }
        Ok(request)
    }

    fn answered(&self, answer: Result<Response<Bytes>, ClientError>) -> Result<Answer, Failure> {
        let answer = answer.map_err(|error| match error {
            ClientError::Sink(_) => error.into(),
            error => Failure::from(error).next(self.hint),
        })?;
        let index = answer.headers().get("x-mesh-index");
        Ok(Answer {
            status: answer.status(),
            index: index.and_then(|index| index.to_str().ok()?.parse().ok()),
            body: answer.into_body(),
        })
    }

    /// Sends a JSON body and insists on success; `what` begins the message when there is none.
    pub async fn call(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Answer, Failure> {
        let body = body.map_or(Bytes::new(), |body| body.to_string().into());
        self.send(method, path, body).await?.ok(what)
    }

    /// GETs JSON.
    pub async fn get<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T, Failure> {
        let answer = self.call(what, Method::GET, path, None).await?;
        answer.json(what)
    }
}

impl Answer {
    /// This answer if its status is 2xx, else what the remote said.
    pub fn ok(self, what: &str) -> Result<Answer, Failure> {
        match self.status.is_success() {
            true => Ok(self),
            false => Err(Failure::refused(what, self.status, &self.reason())),
        }
    }

    /// The body as JSON.
    pub fn json<T: DeserializeOwned>(&self, what: &str) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::new(
                Exit::Remote,
                format!("{what}: the answer is not what this version of mesh expects: {error}"),
            )
        })
    }

    /// What the remote said is wrong: Consul's plain text, Vault's `errors`, or a problem's `detail`.
    pub fn reason(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) else {
            return text.trim().chars().take(2000).collect();
        };
        if let Some(errors) = value["errors"].as_array() {
            let errors: Vec<_> = errors.iter().filter_map(|e| e.as_str()).collect();
            return errors.join("; ");
        }
        let detail = value["detail"].as_str().or(value["title"].as_str());
        detail.unwrap_or_default().to_owned()
    }
}

fn var(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn consul_address() -> Option<String> {
    let address = var("CONSUL_HTTP_ADDR")?;
    let ssl = var("CONSUL_HTTP_SSL").is_some_and(|value| value == "true" || value == "1");
    match ssl && !address.contains("://") {
        true => Some(format!("https://{address}")),
        false => Some(address),
    }
}

fn home_token() -> Option<Zeroizing<String>> {
    let path = PathBuf::from(var("HOME")?).join(".vault-token");
    let token = Zeroizing::new(fs::read_to_string(path).ok()?);
    Some(Zeroizing::new(token.trim().to_owned())).filter(|token| !token.is_empty())
}

fn read_token(path: &std::path::Path) -> Result<Zeroizing<String>, Failure> {
    let text = fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|error| {
        Failure::failed(format!(
            "cannot read the token file {}: {error}",
            path.display()
        ))
    })?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}
