//! Tokens on an agent's own interface: what is asked of a token before a request is answered ([`needs`]), and what of the
//! answer it is shown ([`shapes`]).
//!
//! What a token may do is asked of a server and believed for `acl.token_ttl`; while no server answers, what was last heard
//! counts on ("extend-cache"). Without `[acl] enabled` none of this is in the way of a request.

mod needs;
mod shapes;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;
use vault_kv::{Capability, Grants};
use zeroize::Zeroizing;

use super::{
    Inner, Refused,
    forwarded::forward,
    handler, server_error,
    stored::{
        self,
        acl::{Answered, RIGHTS},
        lacks,
    },
};
use crate::{
    forward::Api,
    http::{Call, Remote, Reply, Routes, query::Query},
};

/// Tokens whose rights are remembered; beyond that the memory starts anew.
const REMEMBERED: usize = 4096;

/// Where a token is got, without one.
pub(super) const LOGIN: &str = "/v1/acl/login";

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");

/// Which requests need a right.
pub struct Acl {
    default_allow: bool,
    token_ttl: Duration,
    /// By hash of the token.
    known: Mutex<HashMap<Key, (Instant, Arc<Rights>)>>,
}

type Key = [u8; 32];

/// What one token may do.
pub struct Rights {
    grants: Grants,
    default_allow: bool,
    /// Whether it may see every service, and every node: then nothing is left out of an answer.
    sees: (bool, bool),
}

impl Acl {
    /// `default_allow`: what holds for what no rule speaks of.
    pub fn new(default_allow: bool, token_ttl: Duration) -> Self {
        Self {
            default_allow,
            token_ttl,
            known: Mutex::default(),
        }
    }

    /// In Consul's words, for the header that says so.
    pub(super) fn default_policy(&self) -> &'static str {
        if self.default_allow { "allow" } else { "deny" }
    }

    /// Whether a request may be answered, and with what rights. A request without a token gets the agent's, but for one that is to get a token.
    pub(super) async fn admit(
        &self,
        inner: &Inner,
        request: &mut Request<Bytes>,
        query: &Query,
    ) -> Result<Admitted, Refused> {
        let sent = stored::token(query, request.headers());
        let shown = sent.is_some();
        let token = match sent {
            None if request.uri().path() != LOGIN => {
                inner.tokens.lend(request);
                stored::token(query, request.headers())
            }
            sent => sent,
        };
        let asked = needs::of(inner, request, query)?;
        let rights = match asked.is_none() {
            // The server decides, or nobody needs to.
            true => None,
            false => Some(self.rights(inner, token).await?),
        };
        if let Some(rights) = &rights {
            for (capability, path) in &asked.rights {
                rights.require(*capability, path)?;
            }
        }
        Ok(Admitted {
            rights: rights.zip(asked.shape),
            shown,
        })
    }

    async fn rights(
        &self,
        inner: &Inner,
        token: Option<Zeroizing<String>>,
    ) -> Result<Arc<Rights>, Refused> {
        let key = key(token.as_ref().map_or("", |token| token.as_str()));
        let known = self.known.lock().get(&key).cloned();
        let now = Instant::now();
        let still = |rights: &Rights| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            let unix = since.map_or(0, |since| since.as_secs() as i64);
            rights.grants.expires().is_none_or(|at| at > unix)
        };
        let known = known.filter(|(_, rights)| still(rights));
        // A server asks itself: what it decides holds at once.
        if let Some((at, rights)) = &known
            && !inner.about.server
            && now.duration_since(*at) < self.token_ttl
        {
            return Ok(Arc::clone(rights));
        }
        let mut ask = Request::new(Bytes::new());
        *ask.uri_mut() = http::Uri::from_static(RIGHTS);
        if let Some(token) = &token {
            let mut value = HeaderValue::from_str(token)
                .map_err(|_| Refused::new(StatusCode::FORBIDDEN, "ACL not found"))?;
            value.set_sensitive(true);
            ask.headers_mut().insert(TOKEN, value);
        }
        let answer = inner.forward.forward(Api::Consul, ask, None).await;
        match (answer.status(), known) {
            (StatusCode::OK, _) => {
                let answered: Answered = serde_json::from_slice(answer.body()).map_err(|_| {
                    server_error("the server's answer about a token is not understood")
                })?;
                let rights = Arc::new(Rights::new(answered, self.default_allow));
                let mut known = self.known.lock();
                if known.len() >= REMEMBERED {
                    known.clear();
                }
                known.insert(key, (now, Arc::clone(&rights)));
                Ok(rights)
            }
            (status, Some((_, rights))) if status.is_server_error() => Ok(rights),
            (status, _) => {
                self.known.lock().remove(&key);
                let words = String::from_utf8_lossy(answer.body()).into_owned();
                Err(Refused::new(status, words))
            }
        }
    }
}

fn key(token: &str) -> Key {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let mut key = Key::default();
    key.copy_from_slice(digest.as_ref());
    key
}

impl Rights {
    fn new(answered: Answered, default_allow: bool) -> Self {
        let Answered {
            accessor,
            expires,
            root,
            rules,
        } = answered;
        let grants = Grants::of_rules(&accessor, expires, rules, root);
        let sees = |prefix| grants.allows_below(prefix, Capability::Read, default_allow);
        Self {
            sees: (sees("consul/service/"), sees("consul/node/")),
            grants,
            default_allow,
        }
    }

    fn may(&self, capability: Capability, path: &str) -> bool {
        let says = self.grants.says(path, capability);
        says.unwrap_or(self.default_allow)
    }

    fn require(&self, capability: Capability, path: &str) -> Result<(), Refused> {
        match self.may(capability, path) {
            true => Ok(()),
            false => Err(Refused::new(
                StatusCode::FORBIDDEN,
                format!(
                    "Permission denied: {}",
                    lacks(self.grants.accessor(), capability, path)
                ),
            )),
        }
    }
}

/// A request that may be answered.
pub(super) struct Admitted {
    rights: Option<(Arc<Rights>, shapes::Shape)>,
    /// Whether it brought a token.
    shown: bool,
}

impl Admitted {
    /// The answer without what the token may not see.
    pub(super) fn filter(self, reply: Reply) -> Reply {
        match self.rights {
            Some((rights, shape)) => shape.filter(&rights, reply, self.shown),
            None => reply,
        }
    }
}

/// What is there only with tokens.
pub(super) fn routes(inner: &Arc<Inner>) -> Routes {
    let mut routes = Routes::new().put("/v1/acl/bootstrap", handler(inner, bootstrap));
    for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE] {
        routes = routes.on(method, "/v1/acl/*path", handler(inner, forward));
    }
    routes.on(
        Method::POST,
        "/v1/internal/acl/authorize",
        handler(inner, forward),
    )
}

/// Who is first gets every right: so only from this machine.
async fn bootstrap(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let here = match &call.conn.remote {
        Remote::Unix { .. } => true,
        Remote::Tcp(addr) => addr.ip().to_canonical().is_loopback(),
    };
    match here {
        true => forward(inner, call).await,
        false => Err(Refused::new(
            StatusCode::FORBIDDEN,
            "Permission denied: ACL bootstrap is answered on loopback and the Unix socket of a server only",
        )),
    }
}

#[cfg(test)]
mod tests;
