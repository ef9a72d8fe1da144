//! The way in: what is answered without a caller's identity (health, seal state, init, unseal), and the rest.

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;
use zeroize::Zeroizing;

use super::ApiError;
use super::ceremony::refuse_pgp;
use super::reply::{Answer, redirect, render};
use crate::acl::TokenEntry;
use crate::clock::Clock;
use crate::core::Error;
use crate::policy::{Capability, Grants};
use crate::request::{Caller, Data, Operation, Refusal, Request};
use crate::vault::{InitOptions, Vault, VaultError};

/// Why [`Vault::authorize`] says no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorizeError {
    /// The store is sealed; nobody can be told from anybody else.
    #[error("the store is sealed; run `mesh operator unseal`")]
    Sealed,
    /// Nobody known, or somebody without the right.
    #[error("permission denied: {0}")]
    Denied(String),
    /// A token that there is not, or not any more; or nobody known.
    #[error("permission denied: no valid token, and no role for this identity (auth/spiffe/role)")]
    Unknown,
    /// No audit sink takes the request.
    #[error("{0}")]
    Unavailable(String),
    /// The store failed.
    #[error("{0}")]
    Failed(String),
}

impl Vault {
    /// The whole Vault-compatible interface: every path below `/v1/`.
    ///
    /// Needs a Tokio runtime. `caller` is believed; see [`Caller`].
    pub async fn handle(
        &self,
        request: http::Request<Bytes>,
        caller: Caller,
    ) -> http::Response<Bytes> {
        let request = match Request::parse(&request, caller) {
            Ok(request) => request,
            Err(Refusal::Redirect(location)) => return redirect(&location),
            Err(Refusal::Error(error)) => {
                let head = request.method() == http::Method::HEAD;
                return render(&Err(error), "", head);
            }
        };
        if let Some(result) = self.open_to_all(&request).await {
            return render(&result, &request.id, request.head);
        }
        let Ok(open) = self.unsealed() else {
            return render(&Err(ApiError::Sealed), &request.id, request.head);
        };
        let request = match self.ceremony(&open, request).await {
            Ok(response) => return response,
            Err(request) => request,
        };
        let sealing = request.path.as_str() == "sys/seal" && request.operation == Operation::Write;
        let response = open.api.handle(request).await;
        // The interface has checked and recorded that the caller may; the keys are ours to drop.
        if sealing && response.status() == StatusCode::NO_CONTENT {
            Box::pin(self.close()).await;
        }
        response
    }

    /// Whether this caller may do this on a path of the embedding program, such as `mesh/intention/web` or
    /// `consul/kv/a/b`; the name to record in the ledger. Without a token a verified SPIFFE ID counts.
    ///
    /// # Errors
    /// See [`AuthorizeError`]. A token with a limited number of uses is always denied here.
    pub fn authorize(
        &self,
        token: Option<&str>,
        spiffe: Option<&str>,
        capability: Capability,
        path: &str,
    ) -> Result<String, AuthorizeError> {
        let open = self.unsealed().map_err(|_| AuthorizeError::Sealed)?;
        open.api
            .authorize(token, spiffe, capability, path)
            .map_err(|error| AuthorizeError::of(error, capability, path))
    }

    /// What a token may do with paths of the embedding program.
    ///
    /// # Errors
    /// See [`AuthorizeError`]. A token with a limited number of uses is always denied here.
    pub fn grants(&self, token: &str) -> Result<Grants, AuthorizeError> {
        let open = self.unsealed().map_err(|_| AuthorizeError::Sealed)?;
        let grants = open.api.grants(token);
        grants.map_err(|error| AuthorizeError::of(error, Capability::Read, ""))
    }

    /// What is known of a token, by its text.
    ///
    /// # Errors
    /// See [`AuthorizeError`].
    pub fn own_token(&self, token: &str) -> Result<TokenEntry, AuthorizeError> {
        let open = self.unsealed().map_err(|_| AuthorizeError::Sealed)?;
        let own = open.api.own_token(token);
        own.map_err(|error| AuthorizeError::of(error, Capability::Read, ""))
    }

    /// `None`: not one of these paths.
    async fn open_to_all(&self, request: &Request) -> Option<Result<Answer, ApiError>> {
        use Operation::{Read, Write};
        let data = &request.data;
        if request.operation == Operation::List
            && matches!(
                request.path.as_str(),
                "sys/health/" | "sys/seal-status/" | "sys/init/" | "sys/unseal/" | "sys/leader/"
            )
        {
            return Some(Err(ApiError::Method));
        }
        Some(match (request.path.as_str(), request.operation) {
            ("sys/health", Read) => self.health(data),
            ("sys/seal-status", Read) => self.status_answer(),
            ("sys/init", Read) => self
                .seal_status()
                .map_err(failure)
                .map(|status| Answer::bare(200, json!({ "initialized": status.initialized }))),
            ("sys/init", Write) if !request.caller.remote.is_local() => Err(ApiError::Forbidden(
                "a store is initialised from its own machine only; run `mesh operator init` there"
                    .into(),
            )),
            ("sys/init", Write) => Box::pin(self.init_answer(data)).await,
            ("sys/unseal", Write) => Box::pin(self.unseal_answer(data)).await,
            ("sys/leader", Read) => Ok(self.leader()),
            ("sys/seal", Write) if self.is_sealed() => Ok(Answer::none()),
            ("sys/health" | "sys/seal-status" | "sys/init" | "sys/unseal" | "sys/leader", _) => {
                Err(ApiError::UnsupportedOperation)
            }
            _ => return None,
        })
    }
}

impl Vault {
    fn health(&self, data: &Data) -> Result<Answer, ApiError> {
        for flag in ["standbyok", "perfstandbyok"] {
            data.flag(flag)?;
        }
        let code = |name: &str, usual: u16| match data.int(name)? {
            None => Ok(usual),
            Some(code) => u16::try_from(code)
                .ok()
                .filter(|code| (200..600).contains(code))
                .ok_or_else(|| ApiError::bad(format!("{name} is not a status code (200 to 599)"))),
        };
        let (active, sealed, uninit) = (
            code("activecode", 200)?,
            code("sealedcode", 503)?,
            code("uninitcode", 501)?,
        );
        for other in ["standbycode", "drsecondarycode", "performancestandbycode"] {
            code(other, 0)?;
        }
        let status = self.seal_status().map_err(failure)?;
        let code = match (status.initialized, status.sealed) {
            (false, _) => uninit,
            (true, true) => sealed,
            (true, false) => active,
        };
        let config = &self.inner.config;
        // What is behind the seal is not known; Vault says it so.
        let mode = if status.sealed { "unknown" } else { "disabled" };
        let mut body = json!({
            "initialized": status.initialized, "sealed": status.sealed, "standby": status.sealed,
            "performance_standby": false, "replication_performance_mode": mode, "replication_dr_mode": mode,
            "server_time_utc": Clock::default().unix(), "version": config.reported_version, "enterprise": false,
        });
        if !status.sealed {
            body["cluster_name"] = config.cluster_name.clone().into();
            body["cluster_id"] = status.cluster_id.into();
        }
        Ok(Answer::bare(code, body))
    }

    fn status_answer(&self) -> Result<Answer, ApiError> {
        let status = self.seal_status().map_err(failure)?;
        let config = &self.inner.config;
        let mut body = json!({
            "type": status.kind, "initialized": status.initialized, "sealed": status.sealed,
            "t": status.threshold, "n": status.shares, "progress": status.progress, "nonce": status.nonce,
            "version": config.reported_version, "build_date": "", "migration": false, "recovery_seal": false,
            "storage_type": "ledger",
        });
        if !status.sealed {
            body["cluster_name"] = config.cluster_name.clone().into();
            body["cluster_id"] = status.cluster_id.into();
        }
        Ok(Answer::bare(200, body))
    }

    /// There is one server: it leads while it is unsealed.
    fn leader(&self) -> Answer {
        let leads = !self.is_sealed();
        Answer::bare(
            200,
            json!({
                "ha_enabled": false, "is_self": leads, "active_time": "0001-01-01T00:00:00Z",
                "leader_address": if leads { &*self.inner.config.api_addr } else { "" },
                "leader_cluster_address": "", "performance_standby": false,
                "performance_standby_last_remote_wal": 0,
            }),
        )
    }

    async fn init_answer(&self, data: &Data) -> Result<Answer, ApiError> {
        refuse_pgp(
            data,
            &["pgp_keys", "recovery_pgp_keys", "root_token_pgp_key"],
        )?;
        for field in ["recovery_shares", "recovery_threshold"] {
            if data.int(field)?.unwrap_or(0) != 0 {
                return Err(ApiError::bad(format!(
                    "{field} does not apply to this kind of seal"
                )));
            }
        }
        let options = InitOptions {
            shares: count(data, "secret_shares")?,
            threshold: count(data, "secret_threshold")?,
        };
        let outcome = self.init(options).await.map_err(failure)?;
        let base64 = |key: &Zeroizing<Vec<u8>>| {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.encode(&key[..])
        };
        // The answer wipes every text in it when it is dropped.
        Ok(Answer::bare(
            200,
            json!({
                "keys": outcome.keys.iter().map(|key| hex(key)).collect::<Vec<_>>(),
                "keys_base64": outcome.keys.iter().map(base64).collect::<Vec<_>>(),
                "root_token": *outcome.root_token,
            }),
        ))
    }

    async fn unseal_answer(&self, data: &Data) -> Result<Answer, ApiError> {
        if data.flag("migrate")?.unwrap_or(false) {
            return Err(ApiError::bad(
                "seal migration is not available on this server",
            ));
        }
        if data.flag("reset")?.unwrap_or(false) {
            self.reset_unseal();
            self.accept_rollback(false);
            return self.status_answer();
        }
        if data.flag("accept_rollback")?.unwrap_or(false) {
            self.accept_rollback(true);
        }
        let text = Zeroizing::new(data.text("key")?.unwrap_or_default());
        if text.is_empty() {
            return Err(ApiError::bad(
                "'key' must be specified in request body as JSON, or 'reset' set to true",
            ));
        }
        let share = share(&text)
            .ok_or_else(|| ApiError::bad("'key' must be a valid hex or base64 string"))?;
        self.submit_share(share).await.map_err(failure)?;
        self.status_answer()
    }
}

/// A number of shares.
pub(super) fn count(data: &Data, name: &str) -> Result<u8, ApiError> {
    u8::try_from(data.int(name)?.unwrap_or(0))
        .map_err(|_| ApiError::bad(format!("{name} must be between 1 and 255")))
}

/// A share in hex if that gives the length of one, else in base64.
pub(crate) fn share(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    use base64::Engine as _;
    let text = text.trim();
    let pairs = || {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
            .collect::<Option<Vec<u8>>>()
    };
    if matches!(text.len(), 64 | 66) && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return pairs().map(Zeroizing::new);
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(text).ok();
    decoded.map(Zeroizing::new)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    push_hex(&mut out, bytes);
    out
}

/// The same behind a text.
pub(crate) fn push_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

pub(crate) fn failure(error: VaultError) -> ApiError {
    match error {
        VaultError::Store(Error::Sealed) => ApiError::Sealed,
        VaultError::AlreadyInitialized
        | VaultError::NotInitialized
        | VaultError::Shares(_)
        | VaultError::ShareLength(_)
        | VaultError::WrongKey
        | VaultError::RolledBack { .. }
        | VaultError::OtherStore { .. }
        | VaultError::OtherSeal(_) => ApiError::bad(error.to_string()),
        other => ApiError::Internal(other.to_string()),
    }
}

#[cfg(test)]
pub(super) mod tests;
