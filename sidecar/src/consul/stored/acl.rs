//! `/v1/acl`: tokens, policies, roles and logins in Consul's words. They are the store's own: what is here translates.
//!
//! Whoever manages them needs `acl = "read"` or `acl = "write"`, the path `consul/acl` of the one evaluator. That is a right
//! to Consul's resources: what grants more takes the rights that the Vault interface asks for the same
//! ([`vault_kv::Administration`]). Login methods and binding rules are pairs of the server's own namespace.

mod links;
mod login;
mod methods;
mod policies;
mod resolve;
mod roles;
mod rules;
mod tokens;

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use vault_kv::{
    Attended, Capability, Kv, KvOp, Meta,
    acl::{self, AclError},
};
use zeroize::Zeroizing;

use super::{Asker, StoreError, changed_or_over, decorate};
use crate::{
    consul::{Refused, blocking::Blocking, server_error},
    http::{BoxFuture, Call, Reply, Routes, json as json_reply, text},
};

pub use methods::Methods;
pub use resolve::{Answered, PATH as RIGHTS};

/// What policies call the right to all of this.
const ACL: &str = "consul/acl";

/// One caller before the tokens, policies and roles of the store.
pub struct Desk {
    /// Who asks.
    pub asker: Asker,
    /// Where login methods and binding rules are kept.
    pub kv: Kv,
    /// Login methods that are ready to check.
    pub methods: Arc<Methods>,
    /// Whether what no rule speaks of is allowed, where that may be.
    pub default_allow: bool,
}

/// What there are lists of.
#[derive(Clone, Copy)]
enum List {
    /// The store's own.
    Store(acl::List),
    /// Records of ours below a prefix.
    Records(&'static str),
}

/// Whose desk a request gets.
pub type Opener = Arc<dyn Fn(&Call) -> Desk + Send + Sync>;

/// The routes.
pub fn routes(open: &Opener) -> Routes {
    tokens::routes(open)
        .merge(policies::routes(open))
        .merge(roles::routes(open))
        .merge(methods::routes(open))
        .merge(rules::routes(open))
        .merge(login::routes(open))
        .merge(resolve::routes(open))
}

/// What is answered where tokens are not used.
pub fn disabled() -> Routes {
    let refuse = |_| async { text(StatusCode::UNAUTHORIZED, "ACL support disabled") };
    let mut routes = Routes::new();
    for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE] {
        routes = routes.on(method, "/v1/acl/*path", refuse);
    }
    routes
        .on(Method::POST, "/v1/internal/acl/authorize", refuse)
        .get(RIGHTS, refuse)
}

fn on<F, R>(open: &Opener, run: F) -> impl Fn(Call) -> BoxFuture<Reply> + Send + Sync + 'static
where
    F: Fn(Desk, Call) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Reply, Refused>> + Send + 'static,
{
    let open = Arc::clone(open);
    move |call| {
        let answer = run(open(&call), call);
        Box::pin(async move { answer.await.unwrap_or_else(Reply::from) })
    }
}

impl Desk {
    /// A look at tokens, policies or roles: allowed, and on record.
    async fn look(&self) -> Result<Attended, Refused> {
        Ok(self.asker.attend(Capability::Read, ACL).await?)
    }

    /// A look at a list, when it changed after the index that is asked for, if one is; and the index of its last change.
    async fn look_at(&self, call: &Call, list: List) -> Result<(Attended, u64), Refused> {
        let blocking = Blocking::of(call)?;
        self.asker.authorize(Capability::Read, ACL)?;
        // Before the list is read: who waits beyond it must have been shown all up to it, and may be shown more.
        let mut index = self.changed(list).await?;
        if let Some(wait) = blocking.wait_beyond(index) {
            let changed = self.changed_after(list, blocking.index);
            changed_or_over(call, wait, changed).await;
            index = self.changed(list).await?;
        }
        Ok((self.look().await?, index))
    }

    async fn changed(&self, list: List) -> Result<u64, Refused> {
        let changed = match list {
            List::Store(list) => self.asker.vault().list_changed(list).await,
            List::Records(prefix) => self.kv.changed_under(prefix),
        };
        Ok(changed.map_err(StoreError::from)?)
    }

    async fn changed_after(&self, list: List, index: u64) {
        // Sealed while waiting: the next look says so.
        let _ = match list {
            List::Store(list) => self.asker.vault().list_changed_after(list, index).await,
            List::Records(prefix) => self.kv.wait_under(prefix, index).await.map(|_| ()),
        };
    }

    /// A change of them: allowed, and on record.
    async fn change(&self) -> Result<Attended, Refused> {
        Ok(self.asker.attend(Capability::Update, ACL).await?)
    }

    /// A record of ours and its indexes.
    fn kept<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Kept<T>>, Refused> {
        let found = self.kv.get(key).map_err(StoreError::from)?;
        found
            .map(|pair| Kept::of(&pair.key, &pair.value, (pair.created, pair.modified)))
            .transpose()
    }

    /// Every record of ours below a prefix.
    fn all<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<Kept<T>>, Refused> {
        let found = self.kv.list(prefix).map_err(StoreError::from)?;
        found
            .iter()
            .map(|pair| Kept::of(&pair.key, &pair.value, (pair.created, pair.modified)))
            .collect()
    }

    /// Keeps a record of ours.
    async fn keep(
        &self,
        attended: &Attended,
        key: String,
        value: &impl Serialize,
        cas: Option<u64>,
    ) -> Result<(), Refused> {
        let value = serde_json::to_vec(value).expect("plain data encodes");
        let op = KvOp::Set {
            key: key.clone(),
            value: Zeroizing::new(value),
            flags: 0,
            cas,
            ttl: None,
        };
        match self.carry_out(attended, "put", key, op).await? {
            true => Ok(()),
            false => Err(server_error("the record was changed meanwhile; try again")),
        }
    }

    /// Takes one away.
    async fn drop_record(&self, attended: &Attended, key: String) -> Result<(), Refused> {
        let op = KvOp::Delete {
            key: key.clone(),
            cas: None,
        };
        self.carry_out(attended, "delete", key, op).await?;
        Ok(())
    }

    async fn carry_out(
        &self,
        attended: &Attended,
        verb: &str,
        key: String,
        op: KvOp,
    ) -> Result<bool, Refused> {
        let actor = attended.actor().to_owned();
        let operation = format!("acl {verb}");
        let meta: Meta = self.asker.meta(actor, &operation, format!("mesh/{key}"));
        let done = self.kv.change(meta, op).await;
        Ok(done.map_err(StoreError::from)?)
    }
}

/// A record of ours.
struct Kept<T> {
    value: T,
    indexes: (u64, u64),
}

impl<T: DeserializeOwned> Kept<T> {
    fn of(key: &str, value: &[u8], indexes: (u64, u64)) -> Result<Self, Refused> {
        // The parser's message could quote the record.
        let value = serde_json::from_slice(value)
            .map_err(|_| server_error(format!("the record {key:?} is not readable")))?;
        Ok(Self { value, indexes })
    }
}

/// Writes what came of a request to the audit log; without that line nobody hears of it.
async fn end<T>(attended: Attended, outcome: Result<T, Refused>) -> Result<T, Refused> {
    let failed = outcome.as_ref().err().map(ToString::to_string);
    match attended.finish(failed.as_deref()).await {
        Ok(()) => outcome,
        Err(error) => Err(StoreError::Unavailable(error.to_string()).into()),
    }
}

impl From<AclError> for Refused {
    fn from(error: AclError) -> Refused {
        let status = match error {
            AclError::Denied(_) | AclError::Bootstrapped(_) => StatusCode::FORBIDDEN,
            AclError::Sealed => StatusCode::SERVICE_UNAVAILABLE,
            AclError::Invalid(_) | AclError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let message = match error {
            AclError::Bootstrapped(at) => {
                format!("Permission denied: ACL bootstrap no longer allowed (reset index: {at})")
            }
            error => error.to_string(),
        };
        Refused::new(status, message)
    }
}

/// There is no such token, policy, …
fn absent(what: &str) -> Refused {
    Refused::new(
        StatusCode::NOT_FOUND,
        format!("Requested {what} does not exist: ACL not found"),
    )
}

/// There is none to take away.
fn cannot_delete(what: &str) -> Refused {
    Refused::new(
        StatusCode::NOT_FOUND,
        format!("Cannot find {what} to delete"),
    )
}

/// A list, with the index of its last change.
fn listed(list: &[Value], index: u64) -> Reply {
    let mut reply = json_reply(StatusCode::OK, list);
    decorate(&mut reply, index);
    reply
}

fn one(value: &Value) -> Reply {
    let mut reply = json_reply(StatusCode::OK, value);
    decorate(&mut reply, value["ModifyIndex"].as_u64().unwrap_or(1));
    reply
}

/// Changes when what clients may change does.
fn hash_of(value: &Value) -> String {
    let bytes = value.to_string();
    STANDARD.encode(ring::digest::digest(
        &ring::digest::SHA256,
        bytes.as_bytes(),
    ))
}

fn rfc3339(unix: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(unix);
    time.ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// A new id, or one that a client chose, which must be a UUID.
fn uuid_of(field: &str, given: &str) -> Result<Option<String>, Refused> {
    if given.is_empty() {
        return Ok(None);
    }
    match uuid::Uuid::try_parse(given) {
        Ok(id) => Ok(Some(id.to_string())),
        Err(_) => Err(server_error(format!(
            "Invalid Token: {field} is not a valid UUID"
        ))),
    }
}
