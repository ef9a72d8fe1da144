//! Checking tokens for the embedding program's own logins, as a role of this method checks them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::claims::{check_bound, check_times, claim, texts};
use super::keys::{Verifier, refused};
use super::{Config, Role, plain};
use crate::auth::roles::Role as _;
use crate::clock::Clock;
use crate::http::ApiError;
use crate::outbound::Outbound;
use crate::request::Data;

/// Which tokens are good, and what is taken from them.
pub struct JwtCheck {
    config: Config,
    role: Role,
    /// Claims that are lists, and what they are called here.
    lists: BTreeMap<String, String>,
    /// Tokens are JWT-SVIDs.
    svids: bool,
    verifier: Verifier,
    clock: Clock,
}

/// What a token says, under the names that the check gives it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Claims that are one text.
    pub values: BTreeMap<String, String>,
    /// Claims that are several.
    pub lists: BTreeMap<String, Vec<String>>,
}

impl JwtCheck {
    /// `config` has the fields of `auth/jwt/config`, `role` those of a role, but for the claim it is named by; `lists`
    /// are claims with several values, and what they are called.
    ///
    /// # Errors
    /// What is wrong with a field.
    pub fn new(
        config: Map<String, Value>,
        mut role: Map<String, Value>,
        lists: BTreeMap<String, String>,
        outbound: Option<Arc<dyn Outbound>>,
    ) -> Result<Self, String> {
        let said = |error: ApiError| error.to_string();
        role.insert("user_claim".into(), "sub".into());
        // Whom it is bound to is said by whoever asks, with what the token says.
        let unbound = role.get("bound_audiences").and_then(Value::as_array);
        if unbound.is_none_or(Vec::is_empty) {
            role.insert("bound_cidrs".into(), Value::from(vec!["0.0.0.0/0", "::/0"]));
        }
        let mut checked = Role::default();
        checked.update(&Data::from(role)).map_err(said)?;
        Ok(Self {
            config: Config::parse(&Data::from(config)).map_err(said)?,
            role: checked,
            lists,
            svids: false,
            verifier: Verifier::new(outbound),
            clock: Clock::default(),
        })
    }

    /// The same for JWT-SVIDs, as their specification has it: each says when it ends, and need not say when it begins.
    #[must_use]
    pub fn of_svids(self) -> Self {
        Self {
            svids: true,
            ..self
        }
    }

    /// Whether the keys can be had now.
    ///
    /// # Errors
    /// Why not.
    pub async fn reachable(&self) -> Result<(), String> {
        let keys = self.config.keys().map_err(|error| error.to_string())?;
        let checked = self.verifier.check(&keys).await;
        checked.map_err(|error| error.to_string())
    }

    /// What a good token says.
    ///
    /// # Errors
    /// What stands against it; nothing of it is quoted.
    pub async fn said(&self, token: &str) -> Result<Said, String> {
        self.check(token).await.map_err(|error| error.to_string())
    }

    async fn check(&self, token: &str) -> Result<Said, ApiError> {
        let takes = |algorithm| self.config.takes(algorithm);
        let keys = self.config.keys()?;
        let mut claims = self.verifier.claims(keys, token, takes).await?;
        if self.svids {
            if !claims.get("exp").is_some_and(Value::is_number) {
                return Err(refused("a JWT-SVID says when it expires"));
            }
            claims.entry("nbf").or_insert(0.into());
        }
        check_times(&claims, &self.role, self.clock.unix())?;
        check_bound(&claims, &self.role, self.config.issuer())?;
        let mut said = Said::default();
        for (name, key) in &self.role.claim_mappings {
            if let Some(value) = claim(&claims, name) {
                let text = plain(value)
                    .ok_or_else(|| refused(&format!("claim \"{name}\" is not a text")))?;
                said.values.insert(key.clone(), text);
            }
        }
        for (name, key) in &self.lists {
            if let Some(value) = claim(&claims, name) {
                said.lists.insert(key.clone(), texts(value));
            }
        }
        Ok(said)
    }
}
