//! What secrets engines do not do alone: many reads at once, waiting for a change, a key that moves.

use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::{Map, json};
use tokio::time::timeout;

use super::caller::{Authenticated, Who};
use super::{Api, Begun};
use crate::db::failure;
use crate::engine::{Watched, kv2::data_key};
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::mount::{Engine, Mounts};
use crate::policy::Capability;
use crate::request::{ApiPath, ClientToken, Data, Operation, Request, random_id};

/// Where many secrets are read at once.
pub(super) const READ_MANY: &str = "sys/mesh/secrets/read";
/// Most of them.
const MOST: usize = 256;
/// Wait for a change when the request does not say how long, and longest.
const WAIT: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(600);

impl Api {
    /// Read every path of the field `paths`, as if each were asked for alone: rights, uses and the audit log are each one's own.
    pub(super) async fn read_many(&self, request: &Request) -> Result<Answer, ApiError> {
        if request.operation != Operation::Write {
            return Err(ApiError::UnsupportedOperation);
        }
        if request.inline.is_some() {
            return Err(ApiError::bad(
                "inline authentication is for one read: log in, and send the token",
            ));
        }
        let paths = request.data.list("paths")?.unwrap_or_default();
        if paths.is_empty() || paths.len() > MOST {
            return Err(ApiError::bad(format!(
                "field \"paths\": the paths of 1 to {MOST} secrets, such as secret/data/web"
            )));
        }
        let (mut secrets, mut errors) = (Map::new(), Map::new());
        for path in paths {
            match self.read_one(request, &path).await {
                Ok(mut answer) => {
                    let data = answer.take_data().unwrap_or_default();
                    secrets.insert(path, data);
                }
                Err(error) => {
                    let mut texts = error.texts();
                    if texts.is_empty() {
                        texts.push(error.to_string());
                    }
                    errors.insert(path, json!(texts));
                }
            }
        }
        Ok(Answer::data(json!({"secrets": secrets, "errors": errors})))
    }

    async fn read_one(&self, request: &Request, path: &str) -> Result<Answer, ApiError> {
        let path = ApiPath::checked(path.to_owned())?;
        let served = self.mounts.find(path.as_str());
        let engine = served.as_ref().map(|served| &served.engine);
        if !matches!(engine, Some(Engine::Kv(_) | Engine::Kv1(_))) {
            return Err(ApiError::bad("not the path of a secret"));
        }
        self.quotas.admit(path.as_str(), &request.caller.remote)?;
        let token = request.token.as_ref();
        let mut one = Request {
            id: random_id(),
            operation: Operation::Read,
            path,
            data: Data::default(),
            token: token.map(|token| ClientToken::new(token.expose())),
            inline: None,
            wrap_ttl: None,
            caller: request.caller.clone(),
            head: false,
            help: false,
            recursive: false,
            index: None,
        };
        self.answer(&mut one).await
    }

    /// Wait until what a request reads has changed after the ledger index in `index`, for as long as `wait` says. The
    /// index of what is read then goes into the request.
    ///
    /// # Errors
    /// The caller lost its right meanwhile, or the store was sealed.
    pub(super) async fn wait_for_change(
        &self,
        begun: &Begun,
        request: &mut Request,
    ) -> Result<(), ApiError> {
        let Some(served) = &begun.served else {
            return Ok(());
        };
        let below = &request.path.as_str()[served.mount.path.len()..];
        let operation = request.operation;
        let watched = match &served.engine {
            Engine::Kv(kv) => kv.watched(operation, below),
            Engine::Kv1(kv) => kv.watched(operation, below),
            _ => None,
        };
        let Some(watched) = watched else {
            return Ok(());
        };
        let index = request.data.int("index")?.unwrap_or(0);
        let index = u64::try_from(index).unwrap_or(0);
        let wait = request.data.duration("wait")?.unwrap_or(WAIT).min(LONGEST);
        let core = self.db.core();
        let now = || match &watched {
            Watched::Name(name) => core.changed(name),
            Watched::Below(prefix) => core.changed_under(prefix),
        };
        let changed = async {
            match &watched {
                Watched::Name(name) => core.wait(name, index).await,
                Watched::Below(prefix) => core.wait_under(prefix, index).await,
            }
        };
        // 0 asks for what there is. Whoever waited in vain gets that, too.
        if index > 0 {
            if let Ok(Err(error)) = timeout(wait, changed).await {
                return Err(failure(error));
            }
            self.still_may(begun, request)?;
        }
        // Before what is read: it is as new as this, or newer. Never 0, which would not wait.
        request.index = Some(now().map_err(failure)?.max(1));
        Ok(())
    }

    /// Whether the caller's right still stands after a while.
    fn still_may(&self, begun: &Begun, request: &Request) -> Result<(), ApiError> {
        // Of a token with its last use under way nobody else is told that it is there.
        if let Some((id, token)) = begun.caller.as_ref().and_then(Authenticated::token)
            && token.num_uses != 0
        {
            return match self.tokens.exists(id)? {
                true => Ok(()),
                false => Err(ApiError::Unauthenticated),
            };
        }
        let caller = match begun.caller.as_ref().map(|caller| &caller.who) {
            // Nothing is kept of such a login; what its holder may do is looked at again.
            Some(Who::Token { token, .. }) if request.inline.is_some() => {
                self.passing(Arc::clone(token))?
            }
            _ => {
                let spiffe = request.caller.spiffe.as_deref();
                self.authenticate(request.token.as_ref(), spiffe, Some(&request.caller))?
            }
        };
        let capability = match request.operation {
            Operation::List => Capability::List,
            _ => Capability::Read,
        };
        let path = request.path.as_str();
        match caller
            .acl()
            .decide(path, capability, Some(&request.data))
            .allowed
        {
            true => Ok(()),
            false => Err(ApiError::Denied),
        }
    }

    /// Moving a key is reading and removing it, and making another.
    pub(super) fn may_move(
        caller: &Authenticated,
        mount: &str,
        key: &str,
        data: &Data,
    ) -> Result<(), ApiError> {
        let to = data_key(data)?;
        let may = |path: String, capability| caller.acl().decide(&path, capability, None).allowed;
        let may = may(format!("{mount}data/{key}"), Capability::Read)
            && may(format!("{mount}metadata/{key}"), Capability::Delete)
            && may(format!("{mount}data/{to}"), Capability::Create);
        match may {
            true => Ok(()),
            false => Err(ApiError::Denied),
        }
    }
}

/// Secrets at their expiry, on all mounts, until the server is sealed.
pub(super) async fn expire_secrets(mounts: Weak<Mounts>) {
    /// A shorter time may be set meanwhile, or the system's clock changed.
    const LONGEST: u64 = 10;
    loop {
        let Some(all) = mounts.upgrade().map(|mounts| mounts.all()) else {
            return;
        };
        let mut nap = LONGEST;
        for served in all {
            let Engine::Kv(kv) = &served.engine else {
                continue;
            };
            match kv.expire().await {
                Ok(next) => nap = nap.min(next.unwrap_or(LONGEST)),
                Err(ApiError::Sealed) => return,
                Err(error) => {
                    tracing::warn!(%error, mount = %served.mount.path, "secrets that are over cannot be removed; they are not shown");
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(nap.max(1))).await;
    }
}

impl Request {
    /// The answer to a read that named an index names the next one.
    pub(super) fn note_index(&self, response: &mut http::Response<bytes::Bytes>) {
        if let Some(index) = self.index {
            let headers = response.headers_mut();
            headers.insert("x-mesh-index", index.into());
        }
    }
}
