//! Identity tokens: signed statements of who an entity is, for others to check (OpenID Connect's ID tokens).
//!
//! A named key signs for the roles that use it; a role says what a token states and for how long it holds. Private keys are records
//! of the store like all secrets. A key is replaced when it is used after its period, without a task of its own, and what
//! it signed can be checked for `verification_ttl` longer. Signatures are ES256, ES384 or EdDSA: `ring` makes no RSA keys.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::auth::item_name;
use crate::auth::jwt::keys::{Keys, Verifier, key_set, signs};
use crate::clock::Clock;
use crate::db::{Batch, By, Db};
use crate::http::{ApiError, reply::Answer};
use crate::request::{Data, Operation};
use crate::token::base62;

const KEYS: &str = "identity/oidc/key/";
const SECRETS: &str = "identity/oidc/secret/";
const ROLES: &str = "identity/oidc/role/";
const CONFIG: &str = "identity/oidc/config";
const DAY: u64 = 24 * 3600;
/// Claims that a template cannot set.
const RESERVED: [&str; 9] = [
    "iat",
    "aud",
    "exp",
    "iss",
    "sub",
    "namespace",
    "nonce",
    "at_hash",
    "c_hash",
];

/// A named key. Times are seconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Key {
    algorithm: String,
    rotation_period: u64,
    verification_ttl: u64,
    /// Clients of roles that may use it; `*`: all.
    allowed_client_ids: Vec<String>,
    /// Names the newest one.
    current: String,
    /// Unix seconds at which another one takes its place.
    rotates: i64,
    /// Public halves by name, with unix seconds until which they check; `None`: the newest.
    public: BTreeMap<String, (Value, Option<i64>)>,
}

/// What a token states.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Role {
    key: String,
    client_id: String,
    template: String,
    ttl: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Config {
    issuer: String,
}

/// The facts of an entity that a token is about.
pub(crate) struct Subject {
    pub entity: String,
    /// By their names in policy templates, without `identity.`.
    pub facts: BTreeMap<String, String>,
    pub groups: Vec<(String, String)>,
}

/// Who signs identity tokens.
pub(crate) struct Provider {
    db: Db,
    clock: Clock,
    /// Where clients reach this server.
    api_addr: String,
    verifier: Verifier,
}

impl Provider {
    pub fn new(db: Db, clock: Clock, api_addr: String) -> Self {
        Self {
            db,
            clock,
            api_addr,
            verifier: Verifier::new(None),
        }
    }

    /// Whether a path below `identity/` is asked for without a token.
    pub fn is_open(path: &str) -> bool {
        path.starts_with("oidc/.well-known/")
    }

    /// `identity/oidc/…`; `subject`: whom a token would be about.
    pub async fn handle(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
        subject: Option<Subject>,
    ) -> Result<Answer, ApiError> {
        use Operation::{Delete, List, Read, Write};
        let (what, rest) = path.split_once('/').unwrap_or((path, ""));
        match (what, rest, operation) {
            (".well-known", "openid-configuration", Read) => self.described(),
            (".well-known", "keys", Read) => {
                Ok(Answer::bare(200, json!({ "keys": self.public()? })))
            }
            ("config", "", Read) => Ok(Answer::data(json!({ "issuer": self.config()?.issuer }))),
            ("config", "", Write) => {
                let issuer = data.text("issuer")?.unwrap_or_default();
                let mut batch = Batch::new(by, "oidc config");
                batch.key(CONFIG).put(CONFIG, &Config { issuer })?;
                self.db.commit(batch).await?;
                Ok(Answer::none())
            }
            ("introspect", "", Write) => self.introspect(data).await,
            ("token", role, Read) => self.token(by, &item_name(role)?, subject).await,
            ("key", "", List) => Answer::keys(self.db.list(KEYS)?),
            ("role", "", List) => Answer::keys(self.db.list(ROLES)?),
            ("key", item, _) => match item.split_once('/') {
                Some((name, "rotate")) if operation == Write => {
                    self.rotate(by, &item_name(name)?, data).await
                }
                Some(_) => Err(ApiError::UnsupportedPath),
                None => self.key(by, operation, &item_name(item)?, data).await,
            },
            ("role", item, Read | Write | Delete) => {
                self.role(by, operation, &item_name(item)?, data).await
            }
            (".well-known" | "config" | "introspect" | "token" | "role", ..) => {
                Err(ApiError::UnsupportedOperation)
            }
            _ => Err(ApiError::UnsupportedPath),
        }
    }

    async fn key(
        &self,
        by: &By,
        operation: Operation,
        name: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let path = format!("{KEYS}{name}");
        let _order = self.db.lock(&path).await;
        let found = self.db.get::<Key>(&path)?.map(|(key, _)| key);
        match operation {
            Operation::Read => {
                let key = found.ok_or(ApiError::NotFound)?;
                Ok(Answer::data(json!({
                    "algorithm": key.algorithm, "rotation_period": key.rotation_period,
                    "verification_ttl": key.verification_ttl, "allowed_client_ids": key.allowed_client_ids,
                })))
            }
            Operation::Write => {
                let mut batch = Batch::new(by, "oidc key write");
                batch.key(path.clone());
                let key = self.changed(found, name, data, &mut batch)?;
                batch.put(&path, &key)?;
                self.db.commit(batch).await?;
                Ok(Answer::none())
            }
            Operation::Delete => {
                let Some(key) = found else {
                    return Ok(Answer::none());
                };
                for role in self.db.names(ROLES)? {
                    let role = self.db.get::<Role>(&role)?;
                    if role.is_some_and(|(role, _)| role.key == name) {
                        return Err(ApiError::bad(format!(
                            "unable to delete key {name:?}: roles use it"
                        )));
                    }
                }
                let mut batch = Batch::new(by, "oidc key delete");
                batch
                    .key(path.clone())
                    .delete(&path)
                    .delete(&format!("{SECRETS}{}", key.current));
                self.db.commit(batch).await?;
                Ok(Answer::none())
            }
            _ => Err(ApiError::UnsupportedOperation),
        }
    }

    /// A key as the request wants it; a new one gets its first pair.
    fn changed(
        &self,
        found: Option<Key>,
        name: &str,
        data: &Data,
        batch: &mut Batch,
    ) -> Result<Key, ApiError> {
        let algorithm = data.text("algorithm")?;
        if let Some(algorithm) = &algorithm
            && !matches!(algorithm.as_str(), "ES256" | "ES384" | "EdDSA")
        {
            return Err(ApiError::bad(
                "field \"algorithm\": ES256, ES384 or EdDSA; others are not available",
            ));
        }
        let mut key = match found {
            Some(key) if algorithm.as_ref().is_some_and(|new| *new != key.algorithm) => {
                return Err(ApiError::bad(format!(
                    "the algorithm of key {name:?} cannot change; make another key"
                )));
            }
            Some(key) => key,
            None => {
                let mut key = Key {
                    algorithm: algorithm.unwrap_or_else(|| "ES256".into()),
                    rotation_period: DAY,
                    verification_ttl: DAY,
                    allowed_client_ids: Vec::new(),
                    current: String::new(),
                    rotates: 0,
                    public: BTreeMap::new(),
                };
                self.renew(&mut key, None, batch)?;
                key
            }
        };
        for (name, seconds) in [
            ("rotation_period", &mut key.rotation_period),
            ("verification_ttl", &mut key.verification_ttl),
        ] {
            if let Some(given) = data.duration(name)? {
                if given.as_secs() < 60 {
                    return Err(ApiError::bad(format!(
                        "field \"{name}\" is at least one minute"
                    )));
                }
                *seconds = given.as_secs();
            }
        }
        if key.verification_ttl > 10 * key.rotation_period {
            return Err(ApiError::bad(
                "verification_ttl cannot be longer than 10x rotation_period",
            ));
        }
        if let Some(clients) = data.list("allowed_client_ids")? {
            key.allowed_client_ids = clients;
        }
        key.rotates = key.rotates.min(self.after(key.rotation_period));
        Ok(key)
    }

    /// Another pair takes the place of the newest one, which checks for `verification_ttl` longer.
    fn renew(
        &self,
        key: &mut Key,
        verification_ttl: Option<u64>,
        batch: &mut Batch,
    ) -> Result<(), ApiError> {
        let until = self.after(verification_ttl.unwrap_or(key.verification_ttl));
        let now = self.clock.unix();
        key.public
            .retain(|_, (_, until)| until.is_none_or(|until| until > now));
        if let Some((_, end)) = key.public.get_mut(&key.current) {
            *end = Some(until);
            batch.delete(&format!("{SECRETS}{}", key.current));
        }
        let (secret, mut public) = pair(&key.algorithm)?;
        key.current = base62(22);
        public["kid"] = key.current.clone().into();
        public["alg"] = key.algorithm.clone().into();
        public["use"] = "sig".into();
        key.public.insert(key.current.clone(), (public, None));
        key.rotates = self.after(key.rotation_period);
        batch.put_bytes(&format!("{SECRETS}{}", key.current), secret);
        Ok(())
    }

    async fn rotate(&self, by: &By, name: &str, data: &Data) -> Result<Answer, ApiError> {
        let path = format!("{KEYS}{name}");
        let _order = self.db.lock(&path).await;
        let found = self.db.get::<Key>(&path)?;
        let (mut key, _) = found.ok_or_else(|| ApiError::bad(format!("key {name:?} not found")))?;
        let ttl = data.duration("verification_ttl")?.map(|ttl| ttl.as_secs());
        let mut batch = Batch::new(by, "oidc key rotate");
        batch.key(path.clone());
        self.renew(&mut key, ttl, &mut batch)?;
        batch.put(&path, &key)?;
        self.db.commit(batch).await?;
        Ok(Answer::none())
    }

    async fn role(
        &self,
        by: &By,
        operation: Operation,
        name: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let path = format!("{ROLES}{name}");
        let _order = self.db.lock(&path).await;
        let found = self.db.get::<Role>(&path)?.map(|(role, _)| role);
        let mut batch = Batch::new(by, "oidc role");
        batch.key(path.clone());
        match operation {
            Operation::Read => {
                let role = found.ok_or(ApiError::NotFound)?;
                return Ok(Answer::data(json!({
                    "key": role.key, "client_id": role.client_id, "template": role.template, "ttl": role.ttl,
                })));
            }
            Operation::Delete => {
                batch.delete(&path);
            }
            _ => {
                let mut role = found.unwrap_or_else(|| Role {
                    key: String::new(),
                    client_id: base62(26),
                    template: String::new(),
                    ttl: DAY,
                });
                for (name, field) in [("key", &mut role.key), ("client_id", &mut role.client_id)] {
                    if let Some(given) = data.text(name)? {
                        *field = given;
                    }
                }
                if let Some(template) = data.text("template")? {
                    let plain = STANDARD.decode(&template).ok();
                    let plain = plain.and_then(|plain| String::from_utf8(plain).ok());
                    role.template = plain.unwrap_or(template);
                }
                if let Some(ttl) = data.duration("ttl")? {
                    role.ttl = ttl.as_secs();
                }
                let key = self.db.get::<Key>(&format!("{KEYS}{}", role.key))?;
                let (key, _) = key.ok_or_else(|| {
                    ApiError::bad(format!("field \"key\": there is no key {:?}", role.key))
                })?;
                if role.ttl > key.verification_ttl {
                    return Err(ApiError::bad(
                        "a role's token ttl cannot be longer than the verification_ttl of the key it references",
                    ));
                }
                filled(&role.template, None)?;
                batch.put(&path, &role)?;
            }
        }
        self.db.commit(batch).await?;
        Ok(Answer::none())
    }

    /// A token about the caller.
    async fn token(
        &self,
        by: &By,
        name: &str,
        subject: Option<Subject>,
    ) -> Result<Answer, ApiError> {
        let found = self.db.get::<Role>(&format!("{ROLES}{name}"))?;
        let (role, _) = found.ok_or_else(|| ApiError::bad(format!("role {name:?} not found")))?;
        let subject = subject
            .ok_or_else(|| ApiError::bad("no entity associated with the request's token"))?;
        let path = format!("{KEYS}{}", role.key);
        let _order = self.db.lock(&path).await;
        let found = self.db.get::<Key>(&path)?;
        let (mut key, _) =
            found.ok_or_else(|| ApiError::bad(format!("key {:?} not found", role.key)))?;
        let clients = &key.allowed_client_ids;
        if !clients
            .iter()
            .any(|client| client == "*" || *client == role.client_id)
        {
            return Err(ApiError::bad(
                "the key does not list the client ID of the role as allowed",
            ));
        }
        let now = self.clock.unix();
        if key.rotates <= now {
            let mut batch = Batch::new(by, "oidc key rotate");
            batch.key(path.clone());
            self.renew(&mut key, None, &mut batch)?;
            batch.put(&path, &key)?;
            self.db.commit(batch).await?;
        }
        let mut claims = filled(&role.template, Some(&subject))?;
        for (name, value) in [
            ("iss", json!(self.issuer()?)),
            ("sub", json!(subject.entity)),
            ("aud", json!(role.client_id)),
            ("iat", json!(now)),
            ("exp", json!(self.after(role.ttl))),
            ("namespace", json!("root")),
        ] {
            claims.insert(name.into(), value);
        }
        let secret = self.db.bytes(&format!("{SECRETS}{}", key.current))?;
        let secret = secret
            .ok_or_else(|| ApiError::Unavailable("the key is being replaced; try again".into()))?;
        let token = signed(&key, &secret, &claims)?;
        Ok(Answer::data(json!({
            "token": token, "client_id": role.client_id, "ttl": role.ttl,
        })))
    }

    /// Whether a token is one of ours and holds.
    async fn introspect(&self, data: &Data) -> Result<Answer, ApiError> {
        let token = Zeroizing::new(data.text("token")?.unwrap_or_default());
        let client = data.text("client_id")?.filter(|client| !client.is_empty());
        let keys = key_set(&json!({ "keys": self.public()? })).unwrap_or_default();
        let claims = self.verifier.claims(Keys::Own(keys), &token, signs).await;
        let now = self.clock.unix();
        let issuer = self.issuer()?;
        let holds = claims.is_ok_and(|claims| {
            claims
                .get("exp")
                .and_then(Value::as_i64)
                .is_some_and(|end| end > now)
                && claims.get("iss") == Some(&json!(issuer))
                && client.is_none_or(|client| claims.get("aud") == Some(&json!(client)))
        });
        Ok(Answer::bare(200, json!({ "active": holds })))
    }

    fn described(&self) -> Result<Answer, ApiError> {
        let issuer = self.issuer()?;
        let mut answer = Answer::bare(
            200,
            json!({
                "issuer": issuer, "jwks_uri": format!("{issuer}/.well-known/keys"),
                "id_token_signing_alg_values_supported": ["ES256", "ES384", "EdDSA"],
                "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            }),
        );
        answer.max_age = Some(3600);
        Ok(answer)
    }

    /// The public halves that still check.
    fn public(&self) -> Result<Vec<Value>, ApiError> {
        let now = self.clock.unix();
        let mut all = Vec::new();
        for path in self.db.names(KEYS)? {
            if let Some((key, _)) = self.db.get::<Key>(&path)? {
                let checks = |until: &Option<i64>| until.is_none_or(|until| until > now);
                let checking = key.public.into_values().filter(|(_, until)| checks(until));
                all.extend(checking.map(|(public, _)| public));
            }
        }
        Ok(all)
    }

    fn config(&self) -> Result<Config, ApiError> {
        let found = self.db.get(CONFIG)?;
        Ok(found.map(|(config, _)| config).unwrap_or_default())
    }

    fn issuer(&self) -> Result<String, ApiError> {
        let config = self.config()?;
        let host = match config.issuer.is_empty() {
            true => &self.api_addr,
            false => &config.issuer,
        };
        Ok(format!("{}/v1/identity/oidc", host.trim_end_matches('/')))
    }

    fn after(&self, seconds: u64) -> i64 {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX / 2);
        self.clock.unix().saturating_add(seconds)
    }
}

/// A new private key, and its public half as a JSON Web Key.
fn pair(algorithm: &str) -> Result<(Zeroizing<Vec<u8>>, Value), ApiError> {
    let failed = |_| ApiError::Internal("a signing key could not be made".to_string());
    let random = SystemRandom::new();
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let ecdsa = |algorithm: &'static EcdsaSigningAlgorithm, curve: &str| {
        let secret = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(failed)?;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, secret.as_ref(), &random);
        let pair = pair.map_err(|_| ApiError::Internal("a new key is not readable".into()))?;
        // 4, then both coordinates.
        let point = &pair.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        let public = json!({"kty": "EC", "crv": curve, "x": text(x), "y": text(y)});
        Ok((Zeroizing::new(secret.as_ref().to_vec()), public))
    };
    match algorithm {
        "ES384" => ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
        "EdDSA" => {
            let secret = Ed25519KeyPair::generate_pkcs8(&random).map_err(failed)?;
            let pair = Ed25519KeyPair::from_pkcs8(secret.as_ref());
            let pair = pair.map_err(|_| ApiError::Internal("a new key is not readable".into()))?;
            let public =
                json!({"kty": "OKP", "crv": "Ed25519", "x": text(pair.public_key().as_ref())});
            Ok((Zeroizing::new(secret.as_ref().to_vec()), public))
        }
        _ => ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
    }
}

fn signed(key: &Key, secret: &[u8], claims: &Map<String, Value>) -> Result<String, ApiError> {
    let (algorithm, secret) = match key.algorithm.as_str() {
        "ES384" => (Algorithm::ES384, EncodingKey::from_ec_der(secret)),
        "EdDSA" => (Algorithm::EdDSA, EncodingKey::from_ed_der(secret)),
        _ => (Algorithm::ES256, EncodingKey::from_ec_der(secret)),
    };
    let mut header = Header::new(algorithm);
    header.kid = Some(key.current.clone());
    encode(&header, claims, &secret)
        .map_err(|_| ApiError::Internal("an identity token could not be signed".into()))
}

/// The claims of a template: JSON with `{{identity.entity.…}}` and the like where values are. Without a subject it is only
/// checked.
///
/// # Errors
/// 400: it is no JSON object, or sets what is not its own.
fn filled(template: &str, subject: Option<&Subject>) -> Result<Map<String, Value>, ApiError> {
    if template.trim().is_empty() {
        return Ok(Map::new());
    }
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let unclosed = || ApiError::bad("error parsing template JSON: {{ without }}");
        let (name, after) = after.split_once("}}").ok_or_else(unclosed)?;
        text.push_str(before);
        text.push_str(&value(name.trim(), subject).to_string());
        rest = after;
    }
    text.push_str(rest);
    let claims: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|_| ApiError::bad("error parsing template JSON: it is not an object"))?;
    match claims.keys().find(|name| RESERVED.contains(&name.as_str())) {
        Some(name) => Err(ApiError::bad(format!(
            "top level key {name:?} not allowed. Restricted keys: {}",
            RESERVED.join(", ")
        ))),
        None => Ok(claims),
    }
}

/// What a name in a template stands for, as JSON.
fn value(name: &str, subject: Option<&Subject>) -> Value {
    let Some(subject) = subject else {
        return Value::String(String::new());
    };
    match name {
        "identity.entity.groups.names" => subject
            .groups
            .iter()
            .map(|(_, name)| name.as_str())
            .collect(),
        "identity.entity.groups.ids" => subject.groups.iter().map(|(id, _)| id.as_str()).collect(),
        "identity.entity.metadata" => {
            let metadata: Map<_, _> = subject
                .facts
                .iter()
                .filter_map(|(name, value)| {
                    let key = name.strip_prefix("entity.metadata.")?;
                    Some((key.to_owned(), Value::from(value.as_str())))
                })
                .collect();
            metadata.into()
        }
        _ => {
            let fact = name
                .strip_prefix("identity.")
                .and_then(|name| subject.facts.get(name));
            fact.map_or("", |fact| fact.as_str()).into()
        }
    }
}
