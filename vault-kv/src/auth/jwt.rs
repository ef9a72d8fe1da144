//! The login method of those who have a JSON Web Token of somebody trusted: a build server, a cloud, a cluster, SPIRE.
//!
//! The configuration names the keys ([`keys`]) and the issuer; a role says which tokens it takes and what one gets
//! for them. Only signatures with public keys count, of algorithms that the key is for, and a token for somebody else's
//! audience is never taken (CVE-2024-5798). Logging in through a browser (OpenID Connect) is not part of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::Login;
use super::params::{TokenParams, is_within};
use super::roles::{self, Roles};
use crate::clock::Clock;
use crate::db::{Batch, By, Db};
use crate::http::{ApiError, reply::Answer};
use crate::outbound::Outbound;
use crate::request::{Data, Operation, Remote};

pub(crate) mod check;
mod claims;
pub(crate) mod keys;

use claims::{check_bound, check_times, claim, groups, metadata, plain};
use keys::{
    Claims, Keys, Source, Verifier, algorithm, checked, key_set_text, pem_keys, refused, signs,
};

/// One mount of the method.
pub(crate) struct Jwt {
    db: Db,
    /// Where its records are, e.g. `logical/<uuid>/`.
    prefix: String,
    /// Where it is mounted, e.g. `auth/jwt/`.
    mount: String,
    clock: Clock,
    roles: Roles<Role>,
    verifier: Verifier,
}

/// Which keys, and whose. At most one of the first four is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    jwt_validation_pubkeys: Vec<String>,
    /// A key set itself.
    jwks: String,
    jwks_url: String,
    oidc_discovery_url: String,
    jwks_ca_pem: String,
    oidc_discovery_ca_pem: String,
    bound_issuer: String,
    default_role: String,
    jwt_supported_algs: Vec<String>,
}

/// Which tokens, and what one gets for them. Times are seconds, 0 = the usual, negative = none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Role {
    bound_audiences: Vec<String>,
    bound_subject: String,
    bound_claims: Map<String, Value>,
    /// Whether `*` in bound claims stands for anything.
    globs: bool,
    user_claim: String,
    user_claim_json_pointer: bool,
    claim_mappings: BTreeMap<String, String>,
    /// Where a token says which groups its holder belongs to; empty: nowhere.
    groups_claim: String,
    expiration_leeway: i64,
    not_before_leeway: i64,
    clock_skew_leeway: i64,
    params: TokenParams,
}

impl Jwt {
    pub fn new(
        db: Db,
        prefix: String,
        mount: String,
        clock: Clock,
        outbound: Option<Arc<dyn Outbound>>,
    ) -> Self {
        Self {
            roles: Roles::new(db.clone(), &prefix, &mount),
            db,
            prefix,
            mount,
            clock,
            verifier: Verifier::new(outbound),
        }
    }

    /// Whether a path below the mount is asked for without a token.
    pub fn is_login(path: &str) -> bool {
        path == "login"
    }

    /// Whether a write would be an *update*.
    pub fn exists(&self, path: &str) -> Result<bool, ApiError> {
        path.strip_prefix("role/")
            .map_or(Ok(true), |name| self.roles.exists(name))
    }

    /// `config` and `role/…`
    pub async fn handle(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        if path == "config" {
            return match operation {
                Operation::Read => Ok(Answer::data(self.config()?.describe())),
                Operation::Write => self.configure(by, data).await,
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let name = path.strip_prefix("role/");
        let name = name.ok_or(ApiError::UnsupportedPath)?;
        self.roles.handle(by, operation, name, data).await
    }

    async fn configure(&self, by: &By, data: &Data) -> Result<Answer, ApiError> {
        let config = Config::parse(data)?;
        self.verifier.check(&config.keys()?).await?;
        let mut batch = Batch::new(by, "jwt config");
        batch
            .key(format!("{}config", self.mount))
            .put(&self.config_path(), &config)?;
        self.db.commit(batch).await?;
        Ok(Answer::none())
    }

    /// `login`
    ///
    /// # Errors
    /// 400 with what stands against the token; nothing of it is quoted.
    pub async fn login(&self, data: &Data, remote: &Remote) -> Result<Login<'_>, ApiError> {
        let config = self.config()?;
        let name = match data.text("role")?.filter(|role| !role.is_empty()) {
            Some(name) => name,
            None if !config.default_role.is_empty() => config.default_role.clone(),
            None => return Err(ApiError::bad("missing role")),
        };
        let token = data.text("jwt")?.map(Zeroizing::new);
        let token = token
            .filter(|token| !token.is_empty())
            .ok_or_else(|| ApiError::bad("missing token"))?;
        let role = self
            .roles
            .named(&name)?
            .ok_or_else(|| ApiError::bad(format!("role {name:?} could not be found")))?;
        if !is_within(remote, &role.params.bound_cidrs) {
            return Err(ApiError::Unauthenticated);
        }
        let takes = |algorithm| config.takes(algorithm);
        let claims = self.verifier.claims(config.keys()?, &token, takes).await?;
        check_times(&claims, &role, self.clock.unix())?;
        check_bound(&claims, &role, config.issuer())?;
        let user = role.user(&claims)?;
        let mut metadata = metadata(&claims, &role)?;
        metadata.insert("role".into(), name);
        let groups = groups(&claims, &role)?;
        Ok(Login {
            params: role.params,
            metadata,
            name: user.clone(),
            alias: user,
            groups,
            certificate: None,
            batch: None,
            order: None,
        })
    }

    fn config(&self) -> Result<Config, ApiError> {
        let found = self.db.get(&self.config_path())?;
        Ok(found.map(|(config, _)| config).unwrap_or_default())
    }

    fn config_path(&self) -> String {
        format!("{}config", self.prefix)
    }
}

impl Config {
    /// # Errors
    /// 400 with the field.
    fn parse(data: &Data) -> Result<Self, ApiError> {
        for absent in ["oidc_client_id", "oidc_client_secret", "jwks_pairs"] {
            let empty = match data.raw(absent) {
                None | Some(Value::Null) => true,
                Some(Value::String(text)) => text.is_empty(),
                Some(Value::Array(items)) => items.is_empty(),
                Some(_) => false,
            };
            if !empty {
                return Err(ApiError::bad(format!(
                    "field \"{absent}\" is not available: this method takes tokens that are shown to it, of one issuer"
                )));
            }
        }
        let text = |name| Ok::<_, ApiError>(data.text(name)?.unwrap_or_default());
        let pubkeys = match data.raw("jwt_validation_pubkeys") {
            // PEM has commas in nothing but its headers, and a list may come as one text.
            Some(Value::String(text)) => split_pems(text),
            _ => data.list("jwt_validation_pubkeys")?.unwrap_or_default(),
        };
        let config = Self {
            jwt_validation_pubkeys: pubkeys,
            jwks: text("jwks")?,
            jwks_url: text("jwks_url")?,
            oidc_discovery_url: text("oidc_discovery_url")?,
            jwks_ca_pem: text("jwks_ca_pem")?,
            oidc_discovery_ca_pem: text("oidc_discovery_ca_pem")?,
            bound_issuer: text("bound_issuer")?,
            default_role: text("default_role")?,
            jwt_supported_algs: data.list("jwt_supported_algs")?.unwrap_or_default(),
        };
        let sources = [
            !config.jwt_validation_pubkeys.is_empty(),
            !config.jwks.is_empty(),
            !config.jwks_url.is_empty(),
            !config.oidc_discovery_url.is_empty(),
        ];
        if sources.into_iter().filter(|set| *set).count() != 1 {
            return Err(ApiError::bad(
                "exactly one of 'jwt_validation_pubkeys', 'jwks', 'jwks_url' or 'oidc_discovery_url' must be set",
            ));
        }
        for url in [&config.jwks_url, &config.oidc_discovery_url] {
            if !url.is_empty() {
                checked(url)?;
            }
        }
        for name in &config.jwt_supported_algs {
            algorithm(name)
                .ok_or_else(|| ApiError::bad(format!("unsupported algorithm: {name}")))?;
        }
        config.keys()?;
        Ok(config)
    }

    fn keys(&self) -> Result<Keys<'_>, ApiError> {
        if !self.jwks_url.is_empty() {
            let source = Source::KeySet(&self.jwks_url);
            return Ok(Keys::Fetched(source, &self.jwks_ca_pem));
        }
        if !self.oidc_discovery_url.is_empty() {
            let source = Source::Discovery(&self.oidc_discovery_url);
            return Ok(Keys::Fetched(source, &self.oidc_discovery_ca_pem));
        }
        if !self.jwks.is_empty() {
            return key_set_text("jwks", &self.jwks).map(Keys::Own);
        }
        if self.jwt_validation_pubkeys.is_empty() {
            return Err(ApiError::bad(
                "could not load configuration: write config first",
            ));
        }
        pem_keys(&self.jwt_validation_pubkeys).map(Keys::Own)
    }

    /// Whom tokens must be from; empty: anybody who has the key.
    fn issuer(&self) -> &str {
        match self.bound_issuer.is_empty() {
            true => &self.oidc_discovery_url,
            false => &self.bound_issuer,
        }
    }

    fn takes(&self, used: jsonwebtoken::Algorithm) -> bool {
        let named = &self.jwt_supported_algs;
        match named.is_empty() {
            true => signs(used),
            false => named.iter().any(|name| algorithm(name) == Some(used)),
        }
    }

    fn describe(&self) -> Value {
        json!({
            "bound_issuer": self.bound_issuer, "default_role": self.default_role, "jwks": self.jwks, "jwks_url": self.jwks_url,
            "jwks_ca_pem": self.jwks_ca_pem, "jwks_pairs": [], "jwt_supported_algs": self.jwt_supported_algs,
            "jwt_validation_pubkeys": self.jwt_validation_pubkeys, "namespace_in_state": true,
            "oidc_client_id": "", "oidc_discovery_ca_pem": self.oidc_discovery_ca_pem,
            "oidc_discovery_url": self.oidc_discovery_url, "oidc_response_mode": "", "oidc_response_types": [],
            "provider_config": {},
        })
    }
}

impl Role {
    /// Whom the token is about.
    fn user(&self, claims: &Claims) -> Result<String, ApiError> {
        let found = match self.user_claim_json_pointer {
            true => claim(claims, &self.user_claim),
            false => claims.get(&self.user_claim),
        };
        found
            .and_then(Value::as_str)
            .filter(|user| !user.is_empty() && user.len() <= 512)
            .map(str::to_owned)
            .ok_or_else(|| refused(&format!("claim {:?} not found in token", self.user_claim)))
    }
}

impl roles::Role for Role {
    const CHANGE: &'static str = "jwt role";

    fn update(&mut self, data: &Data) -> Result<(), ApiError> {
        let mut new = self.clone();
        match data.text("role_type")?.as_deref() {
            None | Some("" | "jwt") => {}
            Some("oidc") => {
                return Err(ApiError::bad(
                    "role_type \"oidc\" is not available: nobody logs in here through a browser; use \"jwt\"",
                ));
            }
            Some(_) => return Err(ApiError::bad("invalid role_type: it is \"jwt\"")),
        }
        for (name, text) in [
            ("bound_subject", &mut new.bound_subject),
            ("user_claim", &mut new.user_claim),
            ("groups_claim", &mut new.groups_claim),
        ] {
            if let Some(given) = data.text(name)? {
                *text = given;
            }
        }
        for (name, seconds) in [
            ("expiration_leeway", &mut new.expiration_leeway),
            ("not_before_leeway", &mut new.not_before_leeway),
            ("clock_skew_leeway", &mut new.clock_skew_leeway),
        ] {
            *seconds = match data.text(name)?.as_deref() {
                None => *seconds,
                Some(text) if text.starts_with('-') => -1,
                Some(_) => {
                    let given = data.duration(name)?.unwrap_or_default();
                    i64::try_from(given.as_secs())
                        .map_err(|_| ApiError::bad(format!("field \"{name}\" is too long")))?
                }
            };
        }
        if let Some(audiences) = data.list("bound_audiences")? {
            new.bound_audiences = audiences;
        }
        match data.raw("bound_claims") {
            None => {}
            Some(Value::Null) => new.bound_claims.clear(),
            Some(Value::Object(claims)) => {
                let texts = |value: &Value| match value {
                    Value::Array(items) => items.iter().all(|item| plain(item).is_some()),
                    one => plain(one).is_some(),
                };
                if !claims.values().all(texts) {
                    return Err(ApiError::bad(
                        "field \"bound_claims\": each is a text or a list of texts",
                    ));
                }
                new.bound_claims.clone_from(claims);
            }
            Some(_) => {
                return Err(ApiError::bad(
                    "field \"bound_claims\": a map of claims to what they must be",
                ));
            }
        }
        if let Some(kind) = data.text("bound_claims_type")? {
            new.globs = match kind.as_str() {
                "string" | "" => false,
                "glob" => true,
                _ => return Err(ApiError::bad("invalid 'bound_claims_type': string or glob")),
            };
        }
        if let Some(mappings) = data.text_map("claim_mappings")? {
            if mappings.values().any(|key| key == "role") {
                return Err(ApiError::bad(
                    "metadata key \"role\" is reserved and may not be a mapping destination",
                ));
            }
            new.claim_mappings = mappings;
        }
        if let Some(pointer) = data.flag("user_claim_json_pointer")? {
            new.user_claim_json_pointer = pointer;
        }
        new.params.update(data)?;
        if new.user_claim.is_empty() {
            return Err(ApiError::bad("a user claim must be defined on the role"));
        }
        let bound = !new.bound_audiences.is_empty()
            || !new.bound_subject.is_empty()
            || !new.bound_claims.is_empty()
            || !new.params.bound_cidrs.is_empty();
        if !bound {
            return Err(ApiError::bad(
                "must have at least one bound constraint when creating/updating a role",
            ));
        }
        *self = new;
        Ok(())
    }

    fn describe(&self) -> Value {
        let mut out = Map::new();
        self.params.describe(&mut out);
        let kind = if self.globs { "glob" } else { "string" };
        for (name, value) in [
            ("role_type", json!("jwt")),
            ("bound_audiences", json!(self.bound_audiences)),
            ("bound_subject", json!(self.bound_subject)),
            ("bound_claims", json!(self.bound_claims)),
            ("bound_claims_type", json!(kind)),
            ("user_claim", json!(self.user_claim)),
            (
                "user_claim_json_pointer",
                json!(self.user_claim_json_pointer),
            ),
            ("claim_mappings", json!(self.claim_mappings)),
            ("groups_claim", json!(self.groups_claim)),
            ("expiration_leeway", json!(self.expiration_leeway)),
            ("not_before_leeway", json!(self.not_before_leeway)),
            ("clock_skew_leeway", json!(self.clock_skew_leeway)),
            ("allowed_redirect_uris", json!([])),
            ("oidc_scopes", json!([])),
            ("verbose_oidc_logging", json!(false)),
            ("max_age", json!(0)),
        ] {
            out.insert(name.into(), value);
        }
        Value::Object(out)
    }
}

/// PEM blocks of one text.
fn split_pems(text: &str) -> Vec<String> {
    const END: &str = "-----END PUBLIC KEY-----";
    text.split_inclusive(END)
        .map(|block| block.trim_matches([',', ' ', '\n', '\r', '\t']).to_owned())
        .filter(|block| !block.is_empty())
        .collect()
}
