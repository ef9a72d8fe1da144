//! Requests for paths of the embedding program, such as `consul/kv/a/b`: authorized and on record as those of
//! the Vault interface are.

use std::sync::Arc;

use super::{ApiError, AuthorizeError, reply::Answer};
use crate::{
    api::{Begun, acl::Administration},
    policy::Capability,
    request::{ApiPath, Caller, ClientToken, Data, Operation, Request, random_id},
    vault::{Open, Vault},
};

/// What somebody wants of a path of the embedding program.
pub struct Access<'a> {
    /// The token they show; without one a verified SPIFFE ID counts.
    pub token: Option<&'a str>,
    /// Where they come from. Believed; see [`Caller`].
    pub caller: Caller,
    /// What they want to do.
    pub capability: Capability,
    /// What to, as policies name it.
    pub path: &'a str,
}

/// A request that is allowed and on record. What came of it must follow: [`Attended::finish`].
pub struct Attended {
    open: Arc<Open>,
    begun: Begun,
}

impl Vault {
    /// Authorizes a request and writes its line to the audit log, before anything happens.
    ///
    /// # Errors
    /// See [`AuthorizeError`].
    pub async fn attend(&self, access: Access<'_>) -> Result<Attended, AuthorizeError> {
        let open = self.unsealed().map_err(|_| AuthorizeError::Sealed)?;
        let (capability, path) = (access.capability, access.path);
        let request = request(access);
        let sudo = capability == Capability::Sudo;
        match open.api.begin(&request, sudo).await {
            Ok(begun) => Ok(Attended { open, begun }),
            Err(error) => Err(AuthorizeError::of(error, capability, path)),
        }
    }

    /// The same for a request that needs no right: nobody's, and on record.
    ///
    /// # Errors
    /// Sealed, or no audit sink takes the line.
    pub async fn attend_anybody(&self, access: Access<'_>) -> Result<Attended, AuthorizeError> {
        let open = self.unsealed().map_err(|_| AuthorizeError::Sealed)?;
        let (capability, path) = (access.capability, access.path);
        let request = request(access);
        match open.api.begin_open(&request).await {
            Ok(begun) => Ok(Attended { open, begun }),
            Err(error) => Err(AuthorizeError::of(error, capability, path)),
        }
    }
}

fn request(access: Access<'_>) -> Request {
    let operation = match access.capability {
        Capability::Read => Operation::Read,
        Capability::List => Operation::List,
        Capability::Delete => Operation::Delete,
        Capability::Patch => Operation::Patch,
        _ => Operation::Write,
    };
    Request {
        id: random_id(),
        operation,
        path: ApiPath::own(access.path),
        data: Data::default(),
        token: access
            .token
            .filter(|token| !token.is_empty())
            .map(ClientToken::new),
        inline: None,
        wrap_ttl: None,
        caller: access.caller,
        head: false,
        help: false,
        recursive: false,
        index: None,
    }
}

impl Attended {
    /// The name to record in the ledger.
    pub fn actor(&self) -> &str {
        &self.begun.by.actor
    }

    /// Tokens, policies and roles, in the name of whoever asked.
    pub fn administration(&self) -> Administration<'_> {
        Administration::new(&self.open.api, &self.begun)
    }

    /// Writes what came of it, before the client hears of it; `failed` says why nothing did.
    ///
    /// # Errors
    /// No audit sink takes the line: the answer is to be withheld.
    pub async fn finish(self, failed: Option<&str>) -> Result<(), AuthorizeError> {
        let result = match failed {
            None => Ok(Answer::none()),
            Some(reason) => Err(ApiError::Internal(reason.to_owned())),
        };
        let ended = self.open.api.end(self.begun, result);
        match ended.await {
            Err(ApiError::Unavailable(reason)) => Err(AuthorizeError::Unavailable(reason)),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

impl AuthorizeError {
    pub(super) fn of(error: ApiError, capability: Capability, path: &str) -> Self {
        match error {
            ApiError::Sealed => Self::Sealed,
            ApiError::Unauthenticated => Self::Unknown,
            ApiError::Denied => Self::Denied(format!(
                "no policy of this caller grants {} on {path:?}",
                capability.as_str()
            )),
            ApiError::Forbidden(text) => Self::Denied(text),
            ApiError::Unavailable(text) => Self::Unavailable(text),
            other => Self::Failed(other.to_string()),
        }
    }
}
