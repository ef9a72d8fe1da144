//! Wrapped answers: an answer lies in the cubbyhole of a token that can be used once.
//!
//! Whoever was meant to unwrap it and cannot knows that somebody else did.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::Api;
use super::caller::Authenticated;
use crate::clock::rfc3339;
use crate::db::By;
use crate::engine::{decode, encode};
use crate::http::ApiError;
use crate::http::reply::{Answer, WrapInfo, body};
use crate::policy::builtin::WRAPPING_NAME;
use crate::request::{ClientToken, Operation, Request};
use crate::token::{Live, MAX_TTL, NewToken, Token, TokenId};

const RESPONSE: &str = "response";
const INFO: &str = "wrapinfo";

/// What is known of a wrapped answer without unwrapping it.
#[derive(Serialize, Deserialize)]
struct Info {
    /// Seconds.
    creation_ttl: u64,
    creation_time: String,
    creation_path: String,
    #[serde(default)]
    wrapped_accessor: String,
}

/// Paths that take a wrapping token as the caller's.
pub(super) fn takes_wrapping_token(path: &str) -> bool {
    matches!(path, "sys/wrapping/unwrap" | "sys/wrapping/rewrap")
}

pub(super) fn not_valid() -> ApiError {
    ApiError::bad("wrapping token is not valid or does not exist")
}

impl Api {
    /// Puts an answer aside; what the client gets instead.
    pub(super) async fn wrap(
        &self,
        by: &By,
        request: &Request,
        answer: Answer,
        ttl: Duration,
    ) -> Result<Answer, ApiError> {
        let wrapped_accessor = match (&answer.auth, &answer.data) {
            (Some(auth), _) => auth.accessor.clone(),
            (None, Some(data)) => data["secret_id_accessor"]
                .as_str()
                .unwrap_or_default()
                .to_string(),
            (None, None) => String::new(),
        };
        let bytes = body(&answer, &request.id);
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| ApiError::Internal("an answer is not text".into()))?;
        let response = text.to_string();
        let info = Info {
            creation_ttl: ttl.as_secs().clamp(1, MAX_TTL),
            creation_time: rfc3339(self.clock.now()),
            creation_path: request.path.as_str().into(),
            wrapped_accessor,
        };
        self.put_aside(by, response, info).await
    }

    async fn put_aside(&self, by: &By, response: String, info: Info) -> Result<Answer, ApiError> {
        let mut held = Map::new();
        held.insert(RESPONSE.into(), response.into());
        let encoded = encode(&held);
        held.values_mut().for_each(crate::request::body::wipe);
        let about = serde_json::to_vec(&info)
            .map_err(|_| ApiError::Internal("a record cannot be written as JSON".into()))?;
        let new = NewToken {
            policies: vec![WRAPPING_NAME.into()],
            path: info.creation_path.clone(),
            ttl: info.creation_ttl,
            explicit_max_ttl: info.creation_ttl,
            num_uses: 1,
            always: true,
            cubbyhole: vec![(RESPONSE, encoded?), (INFO, Zeroizing::new(about))],
            ..NewToken::default()
        };
        let (secret, token) = self.tokens.create(by, new).await?;
        Ok(Answer::wrapped(WrapInfo {
            token: secret.expose().into(),
            accessor: token.accessor,
            ttl: info.creation_ttl,
            creation_time: info.creation_time,
            creation_path: info.creation_path,
            wrapped_accessor: info.wrapped_accessor,
        }))
    }

    /// `sys/wrapping/…` but `lookup`.
    pub(super) async fn wrapping(
        &self,
        caller: &Authenticated,
        by: &By,
        request: &Request,
        what: &str,
    ) -> Result<Answer, ApiError> {
        if !matches!(what, "wrap" | "unwrap" | "rewrap") {
            return Err(ApiError::UnsupportedPath);
        }
        if request.operation != Operation::Write {
            return Err(ApiError::UnsupportedOperation);
        }
        if what == "wrap" {
            // The caller of this wraps it.
            return match request.wrap_ttl {
                Some(_) => Ok(Answer::data(Value::Object(request.data.map().clone()))),
                None => Err(ApiError::bad(
                    "endpoint requires response wrapping to be used",
                )),
            };
        }
        let id = self.take(caller, by, request).await?;
        let response = self
            .held(&id, RESPONSE)?
            .remove(RESPONSE)
            .and_then(|text| match text {
                Value::String(text) => Some(Zeroizing::new(text)),
                _ => None,
            })
            .ok_or_else(not_valid)?;
        let answer = if what == "rewrap" {
            let info = self.info(&id)?;
            self.put_aside(by, response.to_string(), info).await?
        } else {
            let body: Value = serde_json::from_str(&response)
                .map_err(|_| ApiError::Internal("a wrapped answer is not readable".into()))?;
            Answer::bare(200, body)
        };
        self.tokens.revoke(by, &id).await?;
        Ok(answer)
    }

    /// `sys/wrapping/lookup`, which needs no right: whoever has the token may see what it is about.
    pub(super) fn wrapping_lookup(&self, request: &Request) -> Result<Answer, ApiError> {
        if !matches!(request.operation, Operation::Write | Operation::Read) {
            return Err(ApiError::UnsupportedOperation);
        }
        let (id, _) = self.wrapping_token(request)?;
        let info = self.info(&id)?;
        Ok(Answer::data(json!({
            "creation_ttl": info.creation_ttl, "creation_time": info.creation_time, "creation_path": info.creation_path,
        })))
    }

    /// The wrapping token that a request is about, with its one use taken.
    async fn take(
        &self,
        caller: &Authenticated,
        by: &By,
        request: &Request,
    ) -> Result<TokenId, ApiError> {
        if let Some((own, token)) = caller.token()
            && is_wrapping(token)
        {
            // Its use was counted when the caller was let in.
            return Ok(own.clone());
        }
        let (id, _) = self.wrapping_token(request)?;
        self.tokens
            .spend(by, &id)
            .await
            .map_err(|error| match error {
                ApiError::Unauthenticated => not_valid(),
                other => other,
            })?;
        Ok(id)
    }

    fn wrapping_token(&self, request: &Request) -> Result<(TokenId, Arc<Live>), ApiError> {
        let given = request.data.text("token")?.map(ClientToken::new);
        let token = given.as_ref().or(request.token.as_ref());
        let found = match token {
            Some(token) => self.tokens.find(token)?,
            None => return Err(ApiError::bad("missing \"token\" value in input")),
        };
        found
            .filter(|(_, token)| is_wrapping(token))
            .ok_or_else(not_valid)
    }

    fn info(&self, id: &TokenId) -> Result<Info, ApiError> {
        let held = Value::Object(self.held(id, INFO)?);
        serde_json::from_value(held)
            .map_err(|_| ApiError::Internal("a wrapped answer's record is not readable".into()))
    }

    fn held(&self, id: &TokenId, name: &str) -> Result<Map<String, Value>, ApiError> {
        let bytes = self.tokens.in_cubbyhole(id, name)?.ok_or_else(not_valid)?;
        Ok(decode(&bytes)?.take_all())
    }
}

fn is_wrapping(token: &Token) -> bool {
    token.policies == [WRAPPING_NAME]
}
