//! What can be set on a mount besides its kind.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::auth::lockout::LockoutConfig;
use crate::http::ApiError;
use crate::request::Data;
use crate::token::MAX_TTL;

/// Kinds of tokens that a login method may be told to give.
const TOKEN_TYPES: [&str; 4] = ["default-service", "default-batch", "service", "batch"];

/// The settings of one mount. Times are seconds; 0 = the server's own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MountConfig {
    pub default_lease_ttl: u64,
    pub max_lease_ttl: u64,
    /// `unauth`: shown to callers without a token. Otherwise empty or `hidden`.
    pub listing_visibility: String,
    /// Fields that the audit log shows as they are.
    pub audit_non_hmac_request_keys: Vec<String>,
    pub audit_non_hmac_response_keys: Vec<String>,
    pub passthrough_request_headers: Vec<String>,
    pub allowed_response_headers: Vec<String>,
    /// Of a login method; empty = `default-service`.
    pub token_type: String,
    /// Of a login method: what was set about names that fail too often.
    pub lockout: Option<LockoutConfig>,
}

impl MountConfig {
    /// Takes over the fields that `data` has.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn update(&mut self, data: &Data, auth: bool) -> Result<(), ApiError> {
        let mut new = self.clone();
        for (name, ttl) in [
            ("default_lease_ttl", &mut new.default_lease_ttl),
            ("max_lease_ttl", &mut new.max_lease_ttl),
        ] {
            if let Some(text) = data.text(name)?
                && matches!(text.as_str(), "system" | "-1")
            {
                *ttl = 0;
            } else if let Some(given) = data.duration(name)? {
                *ttl = given.as_secs();
            }
        }
        let (default, max) = (new.default_lease_ttl, new.max_lease_ttl);
        if max > 0 && default > max {
            return Err(ApiError::bad(format!(
                "backend max lease TTL of {max} would be less than backend default lease TTL of {default}"
            )));
        }
        if let Some(visibility) = data.text("listing_visibility")? {
            if !matches!(visibility.as_str(), "" | "hidden" | "unauth") {
                return Err(ApiError::bad(
                    "listing_visibility is \"hidden\" or \"unauth\"",
                ));
            }
            new.listing_visibility = visibility;
        }
        for (name, list) in [
            (
                "audit_non_hmac_request_keys",
                &mut new.audit_non_hmac_request_keys,
            ),
            (
                "audit_non_hmac_response_keys",
                &mut new.audit_non_hmac_response_keys,
            ),
            (
                "passthrough_request_headers",
                &mut new.passthrough_request_headers,
            ),
            (
                "allowed_response_headers",
                &mut new.allowed_response_headers,
            ),
        ] {
            if let Some(given) = data.list(name)? {
                *list = given;
            }
        }
        if let Some(kind) = data.text("token_type")? {
            if !auth {
                return Err(ApiError::bad(
                    "'token_type' can only be modified on auth mounts",
                ));
            }
            if !TOKEN_TYPES.contains(&kind.as_str()) {
                return Err(ApiError::bad(format!(
                    "token_type is one of {}",
                    TOKEN_TYPES.join(", ")
                )));
            }
            new.token_type = kind;
        }
        if let Some(Value::Object(given)) = data.raw("user_lockout_config") {
            if !auth {
                return Err(ApiError::bad(
                    "'user_lockout_config' can only be set on auth mounts",
                ));
            }
            let mut lockout = new.lockout();
            lockout.update(&Data::from(given.clone()))?;
            new.lockout = Some(lockout);
        }
        *self = new;
        Ok(())
    }

    /// What holds for names that fail too often.
    pub fn lockout(&self) -> LockoutConfig {
        self.lockout.unwrap_or_default()
    }

    /// Seconds that a lease has which asks for nothing.
    pub fn default_ttl(&self) -> u64 {
        match self.default_lease_ttl {
            0 => self.max_ttl().min(MAX_TTL),
            some => some,
        }
    }

    /// Seconds that a lease has at most.
    pub fn max_ttl(&self) -> u64 {
        match self.max_lease_ttl {
            0 => MAX_TTL,
            some => some,
        }
    }

    /// Both.
    pub fn ttls(&self) -> (u64, u64) {
        (self.default_ttl(), self.max_ttl())
    }

    /// The `config` that a list of mounts shows: what was set.
    pub fn describe(&self, auth: bool) -> Value {
        let mut out = json!({
            "default_lease_ttl": self.default_lease_ttl, "max_lease_ttl": self.max_lease_ttl, "force_no_cache": false,
        });
        if let Some(out) = out.as_object_mut() {
            self.describe_others(out, auth);
        }
        out
    }

    /// What holds, as `tune` shows it.
    pub fn tune(&self, auth: bool) -> Map<String, Value> {
        let mut out = Map::new();
        out.insert("default_lease_ttl".into(), self.default_ttl().into());
        out.insert("max_lease_ttl".into(), self.max_ttl().into());
        out.insert("force_no_cache".into(), false.into());
        self.describe_others(&mut out, auth);
        out
    }

    fn describe_others(&self, out: &mut Map<String, Value>, auth: bool) {
        if !self.listing_visibility.is_empty() {
            out.insert(
                "listing_visibility".into(),
                self.listing_visibility.as_str().into(),
            );
        }
        for (name, list) in [
            (
                "audit_non_hmac_request_keys",
                &self.audit_non_hmac_request_keys,
            ),
            (
                "audit_non_hmac_response_keys",
                &self.audit_non_hmac_response_keys,
            ),
            (
                "passthrough_request_headers",
                &self.passthrough_request_headers,
            ),
            ("allowed_response_headers", &self.allowed_response_headers),
        ] {
            if !list.is_empty() {
                out.insert(name.into(), json!(list));
            }
        }
        if auth {
            let kind = match self.token_type.as_str() {
                "" => "default-service",
                some => some,
            };
            out.insert("token_type".into(), kind.into());
            if let Some(lockout) = &self.lockout {
                out.insert("user_lockout_config".into(), lockout.describe());
            }
        }
    }
}
