//! Logins: a credential becomes a token.

use serde_json::json;
use tokio::sync::MutexGuard;

use super::{Api, Begun};
use crate::auth::Login;
use crate::auth::approle::AppRole;
use crate::auth::cert::Cert;
use crate::auth::jwt::Jwt;
use crate::auth::kubernetes::Kubernetes;
use crate::auth::params::TokenParams;
use crate::auth::spiffe::Spiffe;
use crate::auth::userpass::Userpass;
use crate::db::{Batch, By};
use crate::engine::ssh::Ssh;
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::mount::{Engine, Mount, MountConfig, Served};
use crate::oidc::Provider;
use crate::request::{Inline, Operation, Remote, Request};
use crate::token::{Live, NewToken, TokenKind};

/// Whether `path` is asked for without a token.
pub(super) fn is_open(served: &Served, path: &str) -> bool {
    let below = &path[served.mount.path.len()..];
    match &served.engine {
        Engine::Userpass(_) => Userpass::is_login(below),
        Engine::Approle(_) => AppRole::is_login(below),
        Engine::Jwt(_) => Jwt::is_login(below),
        Engine::Cert(_) => Cert::is_login(below),
        Engine::Kubernetes(_) => Kubernetes::is_login(below),
        Engine::Spiffe => Spiffe::is_login(below),
        Engine::Ssh(_) => Ssh::is_open(below),
        Engine::Identity => Provider::is_open(below),
        _ => false,
    }
}

/// What is to become a token.
struct Granted<'a> {
    new: NewToken,
    /// What becomes durable with it.
    batch: Batch,
    warnings: Vec<String>,
    /// Held until then.
    _order: Option<MutexGuard<'a, ()>>,
}

impl Api {
    pub(super) async fn login(&self, begun: &Begun, request: &Request) -> Result<Answer, ApiError> {
        let Some(served) = &begun.served else {
            return Err(ApiError::UnsupportedPath);
        };
        if request.operation != Operation::Write {
            return Err(ApiError::UnsupportedOperation);
        }
        // Before a password costs anything.
        self.tokens.admit(request.path.as_str()).await?;
        let login = self.check(&begun.by, served, request).await?;
        let Granted {
            new,
            batch,
            warnings,
            _order,
        } = self.grant(login, &served.mount, request).await?;
        let (secret, token) = self.tokens.create_with(batch, new).await?;
        let mut answer = self.auth_answer(secret.expose(), &token, token.creation_ttl);
        answer.warnings = warnings;
        Ok(answer)
    }

    /// Who a request is from that brings its login along: as with a token of the login, which nobody gets and which is
    /// kept nowhere. `from`: the request that it is in.
    ///
    /// # Errors
    /// The login's.
    pub(super) async fn inline_login(
        &self,
        inline: &Inline,
        from: &Request,
    ) -> Result<Live, ApiError> {
        let path = inline.path.as_str();
        self.quotas.admit(path, &from.caller.remote)?;
        let served = self.mounts.find(path);
        let served = served
            .filter(|served| served.mount.is_auth() && is_open(served, path))
            .ok_or_else(|| ApiError::bad("X-Vault-Inline-Auth-Path: not the path of a login"))?;
        let request = Request {
            id: from.id.clone(),
            operation: Operation::Write,
            path: inline.path.clone(),
            data: inline.data.clone(),
            token: None,
            inline: None,
            wrap_ttl: None,
            caller: from.caller.clone(),
            head: false,
            help: false,
            recursive: false,
            index: None,
        };
        let by = By {
            actor: "anonymous".into(),
            via: from.caller.via.as_str(),
        };
        let login = self.check(&by, &served, &request).await?;
        let mut granted = self.grant(login, &served.mount, &request).await?;
        if granted.new.num_uses > 0 {
            return Err(ApiError::bad(
                "a login that gives a limited number of uses is not for inline authentication",
            ));
        }
        granted.new.kind = TokenKind::Batch;
        self.tokens.passing(granted.batch, granted.new).await
    }

    /// Whether a credential is good, and what it gives; one that was wrong too often is not looked at.
    async fn check<'a>(
        &'a self,
        by: &By,
        served: &'a Served,
        request: &'a Request,
    ) -> Result<Login<'a>, ApiError> {
        let below = &request.path.as_str()[served.mount.path.len()..];
        let (data, remote) = (&request.data, &request.caller.remote);
        let alias = match &served.engine {
            Engine::Userpass(_) => Userpass::alias(below),
            Engine::Approle(method) => method.alias(data)?,
            _ => None,
        };
        let (accessor, config) = (&served.mount.accessor, &served.mount.config.lockout());
        if let Some(alias) = &alias
            && self.lockout.is_locked(accessor, alias, config)
        {
            return Err(ApiError::Unauthenticated);
        }
        let login = match &served.engine {
            Engine::Userpass(method) => method.login(below, data, remote).await,
            Engine::Approle(method) => method.login(by, data, remote).await,
            Engine::Jwt(method) => method.login(data, remote).await,
            Engine::Cert(method) => method.login(data, &request.caller),
            Engine::Kubernetes(method) => method.login(data, remote).await,
            Engine::Spiffe => self.spiffe.login(request, &self.clock).await,
            _ => return Err(ApiError::UnsupportedPath),
        };
        match (&login, &alias) {
            (Err(ApiError::BadCredentials(_)), Some(alias)) => {
                self.lockout.failed(accessor, alias, config);
            }
            (Ok(_), Some(alias)) => self.lockout.forget(accessor, alias),
            _ => {}
        }
        login
    }

    /// `sys/locked-users`
    pub(super) fn locked_users(&self) -> Answer {
        let locked = self.lockout.locked();
        let mounts: Vec<_> = locked
            .iter()
            .map(|(accessor, names)| {
                json!({"mount_accessor": accessor, "counts": names.len(), "alias_identifiers": names})
            })
            .collect();
        let total: usize = locked.values().map(Vec::len).sum();
        let root = json!({"namespace_id": "root", "namespace_path": "", "counts": total, "mount_accessors": mounts});
        let namespaces = if total == 0 { vec![] } else { vec![root] };
        Answer::data(json!({"by_namespace": namespaces, "total": total}))
    }

    /// `sys/locked-users/:accessor/unlock/:name`, behind `locked-users/`.
    pub(super) fn unlock_user(&self, path: &str) -> Result<Answer, ApiError> {
        let (accessor, name) = path
            .split_once("/unlock/")
            .ok_or(ApiError::UnsupportedPath)?;
        if self.mounts.by_accessor(accessor).is_none() {
            return Err(ApiError::bad(format!(
                "invalid mount accessor {accessor:?}"
            )));
        }
        self.lockout.forget(accessor, name);
        Ok(Answer::none())
    }

    /// The token that a good credential gives.
    async fn grant<'a>(
        &self,
        login: Login<'a>,
        mount: &Mount,
        request: &Request,
    ) -> Result<Granted<'a>, ApiError> {
        let Login {
            params,
            metadata,
            name,
            alias,
            groups,
            certificate,
            batch,
            order: _order,
        } = login;
        let display_name = format!("{}{name}", mount.shown().replace('/', "-"));
        let display_name = display_name.trim_end_matches('-').to_string();
        let by = By {
            actor: display_name.as_str().into(),
            via: request.caller.via.as_str(),
        };
        let mut warnings = Vec::new();
        let kind = kind(&params, &mount.config);
        if kind == TokenKind::Batch && (params.num_uses > 0 || params.period > 0) {
            return Err(ApiError::bad(
                "batch tokens can be neither periodic nor limited in their uses",
            ));
        }
        let accessor = &mount.accessor;
        let entity = self
            .identities
            .of_login(&by, accessor, &alias, &metadata)
            .await?;
        if let Some(groups) = groups {
            self.identities
                .join(&by, &entity.id, accessor, &groups)
                .await?;
        }
        let mut policies = params.policies.clone();
        if !params.no_default_policy {
            policies.push("default".into());
        }
        policies.sort();
        policies.dedup();
        let new = NewToken {
            policies,
            path: request.path.as_str().into(),
            meta: Some(metadata),
            display_name,
            ttl: ttl(&params, &mount.config, &mut warnings),
            explicit_max_ttl: params.explicit_max_ttl,
            period: params.period,
            num_uses: params.num_uses,
            renewable: true,
            max_ttl: max_ttl(&params, &mount.config),
            bound_cidrs: bound_cidrs(&params, &request.caller.remote),
            kind,
            entity: entity.id.clone(),
            certificate,
            ..NewToken::default()
        };
        Ok(Granted {
            new,
            batch: batch.unwrap_or_else(|| Batch::new(&by, "login")),
            warnings,
            _order,
        })
    }
}

/// The role's wish, where the mount leaves the choice.
fn kind(params: &TokenParams, config: &MountConfig) -> TokenKind {
    let (role, mount) = (params.kind.as_str(), config.token_type.as_str());
    let kind = match mount {
        "service" | "batch" => mount,
        _ if !role.is_empty() => role,
        _ => mount,
    };
    match kind {
        "batch" | "default-batch" => TokenKind::Batch,
        _ => TokenKind::Service,
    }
}

fn max_ttl(params: &TokenParams, config: &MountConfig) -> u64 {
    match params.max_ttl {
        0 => config.max_ttl(),
        max => max.min(config.max_ttl()),
    }
}

/// Seconds to live.
fn ttl(params: &TokenParams, config: &MountConfig, warnings: &mut Vec<String>) -> u64 {
    let (wished, limit) = match params.period {
        0 if params.ttl > 0 => (params.ttl, max_ttl(params, config)),
        0 => (
            config.default_ttl().min(max_ttl(params, config)),
            max_ttl(params, config),
        ),
        period => (period, u64::MAX),
    };
    let limit = match params.explicit_max_ttl {
        0 => limit,
        max => limit.min(max),
    };
    if wished > limit {
        warnings.push(format!(
            "TTL of \"{wished}s\" exceeded the effective max_ttl of \"{limit}s\"; TTL value is capped accordingly"
        ));
    }
    wished.min(limit)
}

fn bound_cidrs(params: &TokenParams, remote: &Remote) -> Vec<String> {
    match remote {
        Remote::Ip(ip) if params.strictly_bind_ip => vec![ip.to_canonical().to_string()],
        _ => params.bound_cidrs.clone(),
    }
}
