//! The interface of an unsealed store: authenticate, authorize, audit, run the engine, audit, answer.
//!
//! Every request walks through [`Api::handle`] in that order, and nothing reaches an engine another way. Who calls is
//! either the holder of a token or a verified SPIFFE ID; the latter needs no token and has the policies of the roles
//! that match it ([`spiffe`]).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::audit::{Audit, AuthRecord, Exchange, Hasher, Said, Submitted};
use crate::auth::lockout::Lockout;
use crate::auth::spiffe::Spiffe;
use crate::clock::Clock;
use crate::core::Core;
use crate::db::{Batch, By, Db};
use crate::engine::page;
use crate::http::ApiError;
use crate::http::reply::{Answer, render};
use crate::identity::Identities;
use crate::lease::{Leases, Places, upkeep};
use crate::mount::{Engine, Mounts, Served};
use crate::oidc::Provider;
use crate::outbound::Outbound;
use crate::policy::{Capability, Decision, Policies};
use crate::quota::Quotas;
use crate::request::{ClientToken, Operation, Request};
use crate::rotation::{Rotation, start_upkeep};
use crate::token::role::TokenRoles;
use crate::token::{NewToken, TokenKind, Tokens, purge_expired};

pub(crate) mod acl;
mod auth;
mod caller;
mod figures;
mod groups;
mod host;
mod identity;
mod keys;
mod leases;
mod ledger;
mod login;
mod mounts;
mod openapi;
mod passwords;
pub(crate) mod routes;
mod secrets;
mod sys;
mod tools;
mod versions;
mod wrapping;

use caller::Authenticated;
use figures::Figures;
pub(crate) use ledger::{LedgerOf, LedgerRead};
use mounts::Moves;
use secrets::{READ_MANY, expire_secrets};

const AUDIT_KEY: &str = "sys/audit-key";

/// The interface of an unsealed store.
pub(crate) struct Api {
    db: Db,
    clock: Clock,
    figures: Figures,
    tokens: Arc<Tokens>,
    token_roles: TokenRoles,
    policies: Policies,
    mounts: Arc<Mounts>,
    leases: Arc<Leases>,
    moves: Moves,
    identities: Identities,
    oidc: Provider,
    lockout: Lockout,
    quotas: Quotas,
    spiffe: Spiffe,
    rotation: Arc<Rotation>,
    audit: Arc<Audit>,
    hasher: Hasher,
    /// Behind `sys/mesh/ledger/*`.
    ledger: Arc<dyn LedgerRead>,
}

impl Api {
    /// What a new store begins with: keys, the `default` policy, the first mounts and the root token, which is
    /// returned.
    pub fn initialise(batch: &mut Batch) -> Result<Zeroizing<String>, ApiError> {
        let root = Tokens::initialise(batch)?;
        Policies::initialise(batch)?;
        Mounts::initialise(batch)?;
        Rotation::initialise(batch)?;
        versions::initialise(batch)?;
        let key = Zeroizing::new(rand::random::<[u8; 32]>());
        batch.put_bytes(AUDIT_KEY, Zeroizing::new(key.to_vec()));
        Ok(root.into_text())
    }

    /// Read what an initialised store holds and start removing expired tokens. Needs a Tokio runtime.
    pub fn load(
        core: Core,
        audit: Arc<Audit>,
        ledger: Arc<dyn LedgerRead>,
        outbound: Option<Arc<dyn Outbound>>,
        api_addr: String,
    ) -> Result<(Self, Arc<Rotation>), ApiError> {
        let clock = Clock::default();
        Self::load_at(core, audit, ledger, outbound, api_addr, clock)
    }

    fn load_at(
        core: Core,
        audit: Arc<Audit>,
        ledger: Arc<dyn LedgerRead>,
        outbound: Option<Arc<dyn Outbound>>,
        api_addr: String,
        clock: Clock,
    ) -> Result<(Self, Arc<Rotation>), ApiError> {
        let db = Db::new(core);
        let key = db.bytes(AUDIT_KEY)?.ok_or_else(|| {
            ApiError::Internal("the store has no audit key; it is not initialised".into())
        })?;
        let rotation = Arc::new(Rotation::load(db.clone(), clock.clone())?);
        let (ended, hears_of_ended) = mpsc::unbounded_channel();
        let places = Arc::new(Places::default());
        let tokens = Tokens::load(db.clone(), clock.clone(), ended, Arc::clone(&places))?;
        let tokens = Arc::new(tokens);
        let mounts = Arc::new(Mounts::load(
            db.clone(),
            clock.clone(),
            tokens.names(),
            outbound.clone(),
        )?);
        let leases = Arc::new(Leases::new(
            db.clone(),
            clock.clone(),
            Arc::clone(&mounts),
            Arc::clone(&tokens),
            Arc::clone(&places),
        ));
        let api = Self {
            rotation: Arc::clone(&rotation),
            token_roles: TokenRoles::new(db.clone()),
            policies: Policies::load(db.clone())?,
            mounts,
            leases,
            moves: Moves::default(),
            identities: Identities::load(db.clone(), clock.clone())?,
            oidc: Provider::new(db.clone(), clock.clone(), api_addr),
            lockout: Lockout::new(clock.clone()),
            quotas: Quotas::load(db.clone(), clock.clone(), Arc::clone(&places))?,
            tokens,
            spiffe: Spiffe::load(db.clone(), outbound)?,
            db,
            figures: Figures::default(),
            hasher: Hasher::new(&key),
            clock,
            audit,
            ledger,
        };
        let tokens = Arc::downgrade(&api.tokens);
        tokio::spawn(purge_expired(tokens, places.reading()));
        let leases = Arc::downgrade(&api.leases);
        tokio::spawn(upkeep(leases, hears_of_ended, places.reading()));
        tokio::spawn(expire_secrets(Arc::downgrade(&api.mounts)));
        tokio::spawn(versions::note(api.db.clone(), api.clock.clone()));
        start_upkeep(&rotation);
        Ok((api, rotation))
    }

    /// Answer a request.
    pub async fn handle(&self, mut request: Request) -> http::Response<Bytes> {
        let flight = self.figures.begin(&request, &self.clock);
        let admitted = self
            .quotas
            .admit(request.path.as_str(), &request.caller.remote);
        let result = match request.path.as_str() {
            _ if admitted.is_err() => admitted.map(|()| Answer::none()),
            READ_MANY => Box::pin(self.read_many(&request)).await,
            _ => self.answer(&mut request).await,
        };
        if result.is_err() {
            flight.failed();
        }
        let mut response = render(&result, &request.id, request.head);
        request.note_index(&mut response);
        response
    }

    async fn answer(&self, request: &mut Request) -> Result<Answer, ApiError> {
        let served = self.mounts.find(request.path.as_str());
        let begun = match self.is_open(request, served.as_deref()) {
            true => self.begin_open_at(request, served).await?,
            false => self.begin_at(request, served, false).await?,
        };
        // Where an answer would be put aside: no work is done for one that nobody gets.
        let admitted = match request.wrap_ttl {
            Some(_) => self.tokens.admit(request.path.as_str()).await,
            None => Ok(()),
        };
        let waited = match request.data.raw("index") {
            _ if admitted.is_err() => admitted,
            Some(_) if begun.caller.is_some() => {
                Box::pin(self.wait_for_change(&begun, request)).await
            }
            _ => Ok(()),
        };
        let result = match &begun.caller {
            _ if waited.is_err() => waited.map(|()| Answer::none()),
            Some(caller) => {
                let served = begun.served.as_deref();
                self.dispatch(caller, &begun.by, request, served).await
            }
            None => Box::pin(self.open(&begun, request)).await,
        };
        let result = match result {
            Ok(answer) if answer.offer.is_some() && request.inline.is_some() => Err(ApiError::bad(
                "inline authentication makes no lease: log in, and send the token",
            )),
            Ok(answer) if answer.offer.is_some() => {
                let caller = begun.caller.as_ref();
                Box::pin(self.lease(&begun.by, caller, request, answer)).await
            }
            result => result,
        };
        let result = match (result, request.wrap_ttl) {
            (Ok(answer), Some(ttl)) if !answer.is_empty() && answer.wrap.is_none() => {
                Box::pin(self.wrap(&begun.by, request, answer, ttl)).await
            }
            (result, _) => result,
        };
        self.end(begun, result).await
    }

    /// Whether a request needs nobody's right.
    fn is_open(&self, request: &Request, served: Option<&Served>) -> bool {
        let path = request.path.as_str();
        let nobody = request.token.is_none() && request.caller.spiffe.is_none();
        match path {
            "sys/wrapping/lookup" => true,
            "sys/internal/ui/mounts" => nobody,
            _ => served.is_some_and(|served| login::is_open(served, path)),
        }
    }

    async fn open(&self, begun: &Begun, request: &Request) -> Result<Answer, ApiError> {
        match request.path.as_str() {
            "sys/wrapping/lookup" => self.wrapping_lookup(request),
            "sys/internal/ui/mounts" => self.public_mounts(request.operation),
            _ => match begun.served.as_deref() {
                Some(Served {
                    engine: Engine::Ssh(ssh),
                    mount,
                }) => {
                    let below = &request.path.as_str()[mount.path.len()..];
                    let (operation, data) = (request.operation, &request.data);
                    ssh.handle(&begun.by, operation, below, data, mount.config.ttls())
                        .await
                }
                Some(Served {
                    engine: Engine::Identity,
                    mount,
                }) => {
                    let below = &request.path.as_str()[mount.path.len()..];
                    let below = below.strip_prefix("oidc/").unwrap_or(below);
                    let (operation, data) = (request.operation, &request.data);
                    self.oidc
                        .handle(&begun.by, operation, below, data, None)
                        .await
                }
                _ => self.login(begun, request).await,
            },
        }
    }

    /// Who calls and whether they may: on record before anything happens. With `sudo` it takes that right, too.
    ///
    /// # Errors
    /// 403, or no sink takes the line. Then the request is over; else [`Api::end`] must follow.
    pub async fn begin(&self, request: &Request, sudo: bool) -> Result<Begun, ApiError> {
        let served = self.mounts.find(request.path.as_str());
        self.begin_at(request, served, sudo).await
    }

    async fn begin_at(
        &self,
        request: &Request,
        served: Option<Arc<Served>>,
        sudo: bool,
    ) -> Result<Begun, ApiError> {
        let (token, spiffe) = (request.token.as_ref(), request.caller.spiffe.as_deref());
        let caller = match &request.inline {
            Some(inline) => Box::pin(self.inline_login(inline, request))
                .await
                .and_then(|token| self.passing(Arc::new(token))),
            None => self.authenticate(token, spiffe, Some(&request.caller)),
        };
        let caller = match caller {
            Ok(caller) => caller,
            Err(error) => {
                let unwraps = wrapping::takes_wrapping_token(request.path.as_str());
                let error = match error {
                    ApiError::Unauthenticated if token.is_some() && unwraps => {
                        wrapping::not_valid()
                    }
                    error => error,
                };
                let operation = request.operation.as_str();
                let said = self.said(request, None, None, operation, served.as_deref());
                self.record(said.as_ref(), Some(&error)).await?;
                return Err(error);
            }
        };
        let by = By {
            actor: caller.actor(),
            via: request.caller.via.as_str(),
        };
        let sent = request.token.as_ref();
        let record = (!self.audit.is_off()).then(|| caller.record(&self.hasher, sent));
        let mut operation = request.operation.as_str();
        let (decision, refused) = match self.permit(&caller, request, served.as_deref(), sudo) {
            Ok(permit) => {
                if permit.creates {
                    operation = "create";
                }
                (Some(permit.decision), permit.refused)
            }
            Err(error) => (None, Some(error)),
        };
        let (who, what) = (record.as_ref(), decision.as_ref());
        let said = self.said(request, who, what, operation, served.as_deref());
        let mut recording = said
            .as_ref()
            .map(|said| self.audit.submit(|| said.request_line(refused.as_ref())));
        // What changes nothing and tells nobody anything may run before its line is seen to be written: the answer
        // waits for both.
        let waits = refused.is_some()
            || caller.is_use_limited()
            || !is_plain_read(request, served.as_deref());
        if let Some(recording) = recording.take_if(|_| waits) {
            recording.taken().await?;
        }
        caller.spend(&self.tokens, &by).await?;
        if let Some(error) = refused {
            caller.finish(&self.tokens, &by).await?;
            return Err(error);
        }
        Ok(Begun {
            caller: Some(caller),
            by,
            said,
            recording,
            served,
        })
    }

    /// The same for what needs no right: on record, with nobody's name.
    pub async fn begin_open(&self, request: &Request) -> Result<Begun, ApiError> {
        let served = self.mounts.find(request.path.as_str());
        self.begin_open_at(request, served).await
    }

    async fn begin_open_at(
        &self,
        request: &Request,
        served: Option<Arc<Served>>,
    ) -> Result<Begun, ApiError> {
        let operation = request.operation.as_str();
        let said = self.said(request, None, None, operation, served.as_deref());
        self.record(said.as_ref(), None).await?;
        Ok(Begun {
            caller: None,
            by: By {
                actor: "anonymous".into(),
                via: request.caller.via.as_str(),
            },
            said,
            recording: None,
            served,
        })
    }

    /// The line before anything happens.
    async fn record(&self, said: Option<&Said>, error: Option<&ApiError>) -> Result<(), ApiError> {
        match said {
            Some(said) => self.audit.write(|| said.request_line(error)).await,
            None => Ok(()),
        }
    }

    /// What came of it: on record before the client hears of it.
    ///
    /// # Errors
    /// `result`'s, or no sink takes the line.
    pub async fn end(
        &self,
        begun: Begun,
        result: Result<Answer, ApiError>,
    ) -> Result<Answer, ApiError> {
        if let Some(caller) = &begun.caller {
            caller.finish(&self.tokens, &begun.by).await?;
        }
        if let Some(said) = &begun.said {
            let mount = begun.served.as_ref().map(|served| &served.mount);
            let line = || said.response_line(&self.hasher, mount, &result);
            let written = self.audit.submit(line);
            if let Some(recording) = begun.recording {
                recording.taken().await?;
            }
            written.taken().await?;
        }
        result
    }

    /// A new token, for share holders.
    pub async fn new_token(&self, by: &By, new: NewToken) -> Result<ClientToken, ApiError> {
        let (token, _) = self.tokens.create(by, new).await?;
        Ok(token)
    }

    /// What the log says of a request; `None`: there is no log.
    fn said(
        &self,
        request: &Request,
        auth: Option<&AuthRecord<'_>>,
        decision: Option<&Decision>,
        operation: &str,
        served: Option<&Served>,
    ) -> Option<Said> {
        let exchange = Exchange {
            hasher: &self.hasher,
            request,
            auth,
            decision,
            operation,
            mount: served.map(|served| &served.mount),
        };
        (!self.audit.is_off()).then(|| exchange.said())
    }

    /// What the caller's policies say.
    fn permit(
        &self,
        caller: &Authenticated,
        request: &Request,
        served: Option<&Served>,
        sudo: bool,
    ) -> Result<Permit, ApiError> {
        let path = request.path.as_str();
        let capability = match request.operation {
            Operation::Read => Capability::Read,
            Operation::Patch => Capability::Patch,
            Operation::Delete => Capability::Delete,
            Operation::List => Capability::List,
            Operation::Write if self.exists(caller, path, served)? => Capability::Update,
            Operation::Write => Capability::Create,
        };
        let decision = caller.acl().decide(path, capability, Some(&request.data));
        let mut allowed = decision.allowed
            && caller
                .acl()
                .permits_wrapping(path, capability, request.wrap_ttl);
        if allowed && (sudo || needs_sudo(path)) {
            allowed = caller.acl().decide(path, Capability::Sudo, None).allowed;
        }
        // Everybody known may ask what a path is for, and which mount it is on; the answer itself depends on the
        // caller's rights.
        let asks = path.starts_with("sys/internal/ui/mounts") && capability == Capability::Read;
        allowed |= asks || request.help;
        Ok(Permit {
            decision,
            refused: (!allowed).then_some(ApiError::Denied),
            creates: capability == Capability::Create,
        })
    }

    /// Whether a write goes to something that is there already.
    fn exists(
        &self,
        caller: &Authenticated,
        path: &str,
        served: Option<&Served>,
    ) -> Result<bool, ApiError> {
        let Some(served) = served else {
            return Ok(true);
        };
        let below = &path[served.mount.path.len()..];
        match (&served.engine, caller.token()) {
            (Engine::Kv(kv), _) => kv.exists(below),
            (Engine::Kv1(kv), _) => kv.exists(below),
            (Engine::Userpass(method), _) => method.exists(below),
            (Engine::Approle(method), _) => method.exists(below),
            (Engine::Jwt(method), _) => method.exists(below),
            (Engine::Cert(method), _) => method.exists(below),
            (Engine::Kubernetes(method), _) => method.exists(below),
            (Engine::Cubbyhole(cubbyhole), Some((id, _))) => {
                cubbyhole.exists(&id.cubbyhole(), below)
            }
            _ => Ok(true),
        }
    }

    async fn dispatch(
        &self,
        caller: &Authenticated,
        by: &By,
        request: &mut Request,
        served: Option<&Served>,
    ) -> Result<Answer, ApiError> {
        let path = request.path.as_str();
        if request.help {
            return self.help(caller, request);
        }
        let Some(served) = served else {
            return Err(ApiError::NoMount(path.to_string()));
        };
        let below = path[served.mount.path.len()..].to_string();
        let operation = request.operation;
        let holds_secrets = matches!(
            served.engine,
            Engine::Kv(_) | Engine::Kv1(_) | Engine::Cubbyhole(_)
        );
        if request.head && holds_secrets {
            return Err(ApiError::UnsupportedOperation);
        }
        if request.recursive {
            return scan(caller, served, request);
        }
        // What is large and not asked for often is kept apart: a future is moved whole.
        match &served.engine {
            Engine::System => Box::pin(self.sys(caller, by, request, &below)).await,
            Engine::Token => Box::pin(self.auth_token(caller, by, request, &below)).await,
            Engine::Spiffe => {
                let spiffe = &self.spiffe;
                Box::pin(spiffe.handle(by, operation, &below, &request.data)).await
            }
            Engine::Identity => match below.strip_prefix("oidc/") {
                Some(below) => {
                    let subject = self.subject(caller);
                    let oidc = &self.oidc;
                    Box::pin(oidc.handle(by, operation, below, &request.data, subject)).await
                }
                None => Box::pin(self.identity(by, operation, &below, &request.data)).await,
            },
            Engine::Kv(kv) => {
                if let Some(key) = below.strip_prefix("move/") {
                    Self::may_move(caller, &served.mount.path, key, &request.data)?;
                }
                kv.handle(by, operation, &below, &mut request.data).await
            }
            Engine::Kv1(kv) => {
                let lease = served.mount.config.default_ttl();
                Box::pin(kv.handle(by, operation, &below, &request.data, lease)).await
            }
            Engine::Ssh(ssh) => {
                let ttls = served.mount.config.ttls();
                Box::pin(ssh.handle(by, operation, &below, &request.data, ttls)).await
            }
            Engine::Userpass(method) => {
                Box::pin(method.handle(by, operation, &below, &request.data)).await
            }
            Engine::Approle(method) => {
                Box::pin(method.handle(by, operation, &below, &request.data)).await
            }
            Engine::Jwt(method) => {
                Box::pin(method.handle(by, operation, &below, &request.data)).await
            }
            Engine::Cert(method) => {
                Box::pin(method.handle(by, operation, &below, &request.data)).await
            }
            Engine::Kubernetes(method) => {
                Box::pin(method.handle(by, operation, &below, &request.data)).await
            }
            Engine::Cubbyhole(cubbyhole) => {
                let (id, token) = caller.token().ok_or_else(|| {
                    ApiError::bad("a cubbyhole belongs to a token; this caller has none")
                })?;
                if token.kind == TokenKind::Batch {
                    return Err(ApiError::bad(
                        "cubbyhole operations are only supported by service tokens",
                    ));
                }
                let (held, data) = (id.cubbyhole(), &request.data);
                Box::pin(cubbyhole.handle(by, &held, operation, &below, data)).await
            }
        }
    }

    /// Who would be calling with this token or this verified SPIFFE ID, if they may do this on this path.
    ///
    /// For the embedding server's own paths, such as `mesh/intention/web` or `consul/kv/a/b`. Returns the actor for
    /// the ledger.
    ///
    /// # Errors
    /// 403: nobody, no right, or a use-limited token (its uses are counted by requests to this interface only) or one
    /// that is bound to networks.
    pub fn authorize(
        &self,
        token: Option<&str>,
        spiffe: Option<&str>,
        capability: Capability,
        path: &str,
    ) -> Result<String, ApiError> {
        let token = token.filter(|t| !t.is_empty()).map(ClientToken::new);
        let caller = self.authenticate(token.as_ref(), spiffe, None)?;
        if caller.is_use_limited() {
            return Err(ApiError::Forbidden(
                "permission denied: a token with a limited number of uses works on the Vault API only".into(),
            ));
        }
        if caller.acl().decide(path, capability, None).allowed {
            Ok((*caller.actor()).to_owned())
        } else {
            Err(ApiError::Denied)
        }
    }
}

/// The names below a folder and its folders, as far as the caller may list each of these.
fn scan(caller: &Authenticated, served: &Served, request: &Request) -> Result<Answer, ApiError> {
    let path = request.path.as_str();
    let below = &path[served.mount.path.len()..];
    let names = match &served.engine {
        Engine::Kv(kv) => kv.names(below)?,
        Engine::Kv1(kv) => kv.names(below)?,
        _ => return Err(ApiError::UnsupportedOperation),
    };
    let mut known: HashMap<&str, bool> = HashMap::new();
    let mut may_list = |folder| {
        *known.entry(folder).or_insert_with(|| {
            let folder = format!("{path}{folder}");
            caller.acl().decide(&folder, Capability::List, None).allowed
        })
    };
    let mut shown = Vec::new();
    for name in &names {
        let mut folders = name.match_indices('/').map(|(at, _)| &name[..=at]);
        if folders.all(&mut may_list) {
            shown.push(name.clone());
        }
    }
    page(shown, &request.data)
}

/// A request on record, whose outcome must follow.
pub(crate) struct Begun {
    caller: Option<Authenticated>,
    /// Whom the ledger names.
    pub by: By,
    /// When there is a log.
    said: Option<Said>,
    /// Its first line, when nobody has waited for it yet.
    recording: Option<Submitted>,
    served: Option<Arc<Served>>,
}

/// What a caller's policies say about a request.
struct Permit {
    decision: Decision,
    refused: Option<ApiError>,
    /// It would write something that is not there yet.
    creates: bool,
}

/// Whether a request does no more than look up what it answers with.
fn is_plain_read(request: &Request, served: Option<&Served>) -> bool {
    let reads = matches!(request.operation, Operation::Read | Operation::List);
    let engine = served.map(|served| &served.engine);
    let engine = matches!(engine, Some(Engine::Kv(_) | Engine::Kv1(_) | Engine::Token));
    // Not one that waits for a change, nor one whose answer is put aside.
    reads && engine && request.wrap_ttl.is_none() && request.data.raw("index").is_none()
}

/// Paths that ask for `sudo` besides the right itself.
fn needs_sudo(path: &str) -> bool {
    const BELOW: [&str; 8] = [
        "sys/auth/",
        "sys/audit",
        "sys/raw",
        "sys/rotate",
        "sys/leases/revoke-",
        "sys/leases/lookup/",
        "sys/revoke-",
        "auth/token/accessors",
    ];
    const EXACT: [&str; 6] = [
        "sys/seal",
        "sys/leases",
        "sys/step-down",
        "sys/remount",
        "sys/host-info",
        "auth/token/revoke-orphan",
    ];
    EXACT.contains(&path) || BELOW.iter().any(|p| path.starts_with(p))
}

#[cfg(test)]
mod tests;
