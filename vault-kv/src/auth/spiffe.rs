//! SPIFFE IDs: which policies a service or node has because of who it is, with a token or without.
//!
//! A role names patterns of SPIFFE IDs. A caller whose connection proves an ID of the mesh's own trust domain has the policies of
//! every role that matches it, and `default`, with nothing to log in with and nothing to keep. Others, and who
//! needs a token, log in: with the connection's certificate (X.509-SVID), or with a JWT-SVID of the one other trust domain that the
//! configuration names. What is proved for that domain matches only patterns that name it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::RwLock;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::Login;
use super::cert::chain::{Shown, Trusted};
use super::jwt::keys::{Keys, Source, Verifier, checked, key_set, refused, signs};
use super::params::{TokenParams, is_within};
use crate::clock::Clock;
use crate::db::{Batch, By, Db};
use crate::glob;
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::outbound::Outbound;
use crate::policy::{Identity, PolicyName};
use crate::request::{Data, Operation, Request};
use crate::token::Binding;

const PREFIX: &str = "auth/spiffe/role/";
const CONFIG: &str = "auth/spiffe/config";
/// Seconds that a clock may be off.
const SKEW: f64 = 60.0;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Role {
    workload_id_patterns: Vec<String>,
    token_policies: Vec<String>,
    /// What tokens are to be; their policies are the field above.
    #[serde(default)]
    params: TokenParams,
}

/// Another trust domain than the mesh's own.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    /// Its name, in lower case, without `spiffe://`; empty: there is none.
    trust_domain: String,
    /// `static` or `https_web_bundle`.
    profile: String,
    /// Its bundle (SPIFFE Trust Domain and Bundle, §4).
    bundle: String,
    endpoint_url: String,
    endpoint_root_ca_truststore_pem: String,
    /// Whom JWT-SVIDs must be for.
    audience: Vec<String>,
}

/// Somebody whose ID was proved.
struct Proved {
    id: String,
    /// It is of the mesh's own trust domain.
    own: bool,
    binding: Option<Binding>,
}

/// The method of an unsealed server.
pub(crate) struct Spiffe {
    db: Db,
    roles: RwLock<BTreeMap<String, Role>>,
    verifier: Verifier,
}

impl Spiffe {
    pub fn load(db: Db, outbound: Option<Arc<dyn Outbound>>) -> Result<Self, ApiError> {
        let mut roles = BTreeMap::new();
        for path in db.names(PREFIX)? {
            if let Some((role, _)) = db.get::<Role>(&path)? {
                roles.insert(path[PREFIX.len()..].to_string(), role);
            }
        }
        Ok(Self {
            db,
            roles: RwLock::new(roles),
            verifier: Verifier::new(outbound),
        })
    }

    /// The policies of a verified SPIFFE ID of the mesh, sorted; none when no role matches it.
    pub fn policies(&self, spiffe: &str) -> Vec<String> {
        let mut out = BTreeSet::new();
        for role in self.roles.read().values() {
            if role.matches(spiffe, true) {
                out.insert("default".to_string());
                out.extend(role.token_policies.iter().cloned());
            }
        }
        out.into_iter().collect()
    }

    /// Whether a path below the mount is asked for without a token.
    pub fn is_login(path: &str) -> bool {
        path == "login"
    }

    /// `config` and `role/…`
    pub async fn handle(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        use Operation::{Delete, List, Read, Write};
        if path == "config" {
            return match operation {
                Read => Ok(Answer::data(self.config()?.describe())),
                Write => self.configure(by, data).await,
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let name = path
            .strip_prefix("role/")
            .ok_or(ApiError::UnsupportedPath)?;
        if name.is_empty() {
            return match operation {
                List => Answer::keys(self.roles.read().keys().cloned().collect()),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.len() > 128 || !name.chars().all(fits) {
            return Err(ApiError::UnsupportedPath);
        }
        match operation {
            Read => {
                let role = self.roles.read().get(name).cloned();
                Ok(Answer::data(role.ok_or(ApiError::NotFound)?.describe()))
            }
            Write => {
                self.put(by, name, data).await?;
                Ok(Answer::none())
            }
            Delete => {
                self.delete(by, name).await?;
                Ok(Answer::none())
            }
            _ => Err(ApiError::UnsupportedOperation),
        }
    }

    async fn put(&self, by: &By, name: &str, data: &Data) -> Result<(), ApiError> {
        let path = format!("{PREFIX}{name}");
        let _order = self.db.lock(&path).await;
        let mut role = self.roles.read().get(name).cloned().unwrap_or_default();
        role.update(data)?;
        let mut batch = Batch::new(by, "spiffe-role/write");
        batch.put(&path, &role)?.key(path.clone());
        self.db.commit(batch).await?;
        self.roles.write().insert(name.into(), role);
        Ok(())
    }

    async fn delete(&self, by: &By, name: &str) -> Result<(), ApiError> {
        let path = format!("{PREFIX}{name}");
        let _order = self.db.lock(&path).await;
        if self.db.index(&path)?.is_some() {
            let mut batch = Batch::new(by, "spiffe-role/delete");
            batch.delete(&path).key(path.clone());
            self.db.commit(batch).await?;
        }
        self.roles.write().remove(name);
        Ok(())
    }

    async fn configure(&self, by: &By, data: &Data) -> Result<Answer, ApiError> {
        let config = Config::parse(data)?;
        if !data.flag("defer_bundle_fetch")?.unwrap_or(false) {
            self.verifier.check(&config.keys()?).await?;
        }
        let mut batch = Batch::new(by, "spiffe-config/write");
        batch.put(CONFIG, &config)?.key(CONFIG);
        self.db.commit(batch).await?;
        Ok(Answer::none())
    }

    fn config(&self) -> Result<Config, ApiError> {
        let found = self.db.get(CONFIG)?;
        Ok(found.map(|(config, _)| config).unwrap_or_default())
    }

    /// `login`: a token for who proves a SPIFFE ID.
    ///
    /// # Errors
    /// 400 or 403 with what stands against it; nothing of a token is quoted.
    pub async fn login(&self, request: &Request, clock: &Clock) -> Result<Login<'_>, ApiError> {
        let proved = self.proved(request, clock).await?;
        let wanted = request.data.text("role")?.filter(|role| !role.is_empty());
        let mut params = TokenParams::default();
        let mut policies = BTreeSet::new();
        let mut found = false;
        for (name, role) in self.roles.read().iter() {
            if !role.matches(&proved.id, proved.own)
                || wanted.as_ref().is_some_and(|wanted| wanted != name)
            {
                continue;
            }
            found = true;
            policies.extend(role.token_policies.iter().cloned());
            if wanted.is_some() {
                params = role.params.clone();
            }
        }
        if !found {
            return Err(ApiError::Forbidden(
                "permission denied: no role of that name is for this SPIFFE ID".into(),
            ));
        }
        if !is_within(&request.caller.remote, &params.bound_cidrs) {
            return Err(ApiError::Unauthenticated);
        }
        params.policies = policies.into_iter().collect();
        let mut metadata = BTreeMap::from([("spiffe_id".to_string(), proved.id.clone())]);
        if let Some(role) = wanted {
            metadata.insert("role".into(), role);
        }
        Ok(Login {
            params,
            metadata,
            name: proved.id.clone(),
            alias: proved.id,
            groups: None,
            certificate: proved.binding,
            batch: None,
            order: None,
        })
    }

    async fn proved(&self, request: &Request, clock: &Clock) -> Result<Proved, ApiError> {
        let jwt = request.data.text("jwt")?.filter(|jwt| !jwt.is_empty());
        let jwt = jwt.map(Zeroizing::new).or_else(|| {
            // Clients send the token they have, too, which is none of these.
            let bearer = request.token.as_ref()?.expose();
            let signed = bearer.matches('.').count() == 2;
            signed.then(|| Zeroizing::new(bearer.to_owned()))
        });
        let certificate = request.caller.certificates.first();
        if let Some(jwt) = jwt {
            return self.of_jwt(&jwt, clock).await;
        }
        if let Some(id) = &request.caller.spiffe {
            return Ok(Proved {
                id: id.clone(),
                own: true,
                binding: certificate.map(|der| Binding::always(der)),
            });
        }
        let nothing = || {
            ApiError::bad(
                "nothing proves a SPIFFE ID: connect with a certificate of this trust domain, or send a JWT-SVID in \"jwt\"",
            )
        };
        let leaf = certificate.and_then(|der| Shown::parse(der));
        let leaf = leaf.ok_or_else(nothing)?;
        let config = self.config()?;
        let [id] = &leaf.uris[..] else {
            return Err(nothing());
        };
        if !config.is_of(id)
            || !config
                .authorities()
                .vouch_for(&request.caller.certificates, &leaf, clock.now())
        {
            return Err(nothing());
        }
        Ok(Proved {
            id: id.clone(),
            own: false,
            binding: Some(Binding::always(&leaf.der)),
        })
    }

    /// Whom a JWT-SVID is about.
    async fn of_jwt(&self, jwt: &str, clock: &Clock) -> Result<Proved, ApiError> {
        let config = self.config()?;
        if config.trust_domain.is_empty() {
            return Err(refused(
                "no trust domain is configured at auth/spiffe/config",
            ));
        }
        let claims = self.verifier.claims(config.keys()?, jwt, signs).await?;
        let ends = claims.get("exp").and_then(Value::as_f64);
        #[allow(clippy::cast_precision_loss, reason = "seconds of this age are exact")]
        let now = clock.unix() as f64;
        if ends.is_none_or(|ends| ends <= now - SKEW) {
            return Err(refused("it is expired, or does not say when it is"));
        }
        let audiences = match claims.get("aud") {
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if !config
            .audience
            .iter()
            .any(|own| audiences.contains(&own.as_str()))
        {
            return Err(refused("it is for another audience"));
        }
        let id = claims.get("sub").and_then(Value::as_str);
        let id = id.filter(|id| config.is_of(id));
        let id = id.ok_or_else(|| refused("it is about no ID of this trust domain"))?;
        Ok(Proved {
            id: id.to_owned(),
            own: false,
            binding: None,
        })
    }
}

impl Config {
    /// # Errors
    /// 400 with the field.
    fn parse(data: &Data) -> Result<Self, ApiError> {
        let text = |name| Ok::<_, ApiError>(data.text(name)?.unwrap_or_default());
        let domain = text("trust_domain")?.to_ascii_lowercase();
        let domain = domain.strip_prefix("spiffe://").unwrap_or(&domain);
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if domain.is_empty() || domain.len() > 255 || !domain.chars().all(fits) {
            return Err(ApiError::bad(
                "field \"trust_domain\": the name of a trust domain, such as example.org",
            ));
        }
        let config = Self {
            trust_domain: domain.to_owned(),
            profile: text("profile")?,
            bundle: match data.raw("bundle") {
                Some(bundle @ Value::Object(_)) => bundle.to_string(),
                _ => text("bundle")?,
            },
            endpoint_url: text("endpoint_url")?,
            endpoint_root_ca_truststore_pem: text("endpoint_root_ca_truststore_pem")?,
            audience: data.list("audience")?.unwrap_or_default(),
        };
        match config.profile.as_str() {
            "static" => {
                let bundle: Value = serde_json::from_str(&config.bundle).unwrap_or_default();
                if !bundle["keys"].is_array() {
                    return Err(ApiError::bad(
                        "field \"bundle\": not a SPIFFE bundle, which is a JSON Web Key Set",
                    ));
                }
            }
            "https_web_bundle" => {
                checked(&config.endpoint_url)?;
            }
            "https_spiffe_bundle" | "https_web_pem" => {
                return Err(ApiError::bad(
                    "this profile is not available: use static or https_web_bundle",
                ));
            }
            _ => {
                return Err(ApiError::bad(
                    "field \"profile\": static or https_web_bundle",
                ));
            }
        }
        Ok(config)
    }

    /// What JWT-SVIDs are signed with. A bundle may have keys for certificates only.
    fn keys(&self) -> Result<Keys<'_>, ApiError> {
        let bundle = serde_json::from_str(&self.bundle).unwrap_or_default();
        Ok(match self.profile.as_str() {
            "https_web_bundle" => Keys::Fetched(
                Source::KeySet(&self.endpoint_url),
                &self.endpoint_root_ca_truststore_pem,
            ),
            _ => Keys::Own(key_set(&bundle).unwrap_or_default()),
        })
    }

    /// Whether an ID is of this trust domain.
    fn is_of(&self, id: &str) -> bool {
        let rest = id.strip_prefix("spiffe://");
        let parts = rest.and_then(|rest| rest.split_once('/'));
        parts.is_some_and(|(domain, path)| {
            !self.trust_domain.is_empty() && domain == self.trust_domain && !path.is_empty()
        })
    }

    /// Who signs the domain's certificates; of a bundle that is fetched nobody is known.
    fn authorities(&self) -> Trusted {
        let bundle: Value = serde_json::from_str(&self.bundle).unwrap_or_default();
        let keys = bundle["keys"].as_array().cloned().unwrap_or_default();
        let authorities = keys
            .iter()
            .filter(|key| key["use"].as_str() == Some("x509-svid"))
            .filter_map(|key| STANDARD.decode(key["x5c"][0].as_str()?).ok())
            .map(CertificateDer::from);
        Trusted::authorities(authorities.collect())
    }

    fn describe(&self) -> Value {
        json!({
            "trust_domain": self.trust_domain, "profile": self.profile, "bundle": self.bundle,
            "endpoint_url": self.endpoint_url,
            "endpoint_root_ca_truststore_pem": self.endpoint_root_ca_truststore_pem, "audience": self.audience,
        })
    }
}

impl Role {
    /// # Errors
    /// 400 with the field.
    fn update(&mut self, data: &Data) -> Result<(), ApiError> {
        let mut new = self.clone();
        if let Some(patterns) = data.list("workload_id_patterns")? {
            new.workload_id_patterns = patterns;
        }
        if let Some(policies) = data.list("token_policies")? {
            new.token_policies = policies
                .iter()
                .map(|p| Ok(PolicyName::parse(p)?.as_str().to_string()))
                .collect::<Result<_, ApiError>>()?;
        }
        new.params.update(data)?;
        if new.workload_id_patterns.is_empty() {
            return Err(ApiError::bad(
                "field \"workload_id_patterns\" needs at least one pattern, such as /ns/default/dc/*/svc/web",
            ));
        }
        let shaped = |p: &String| {
            let path = p.strip_prefix("spiffe://").unwrap_or(p);
            (p.starts_with('/') || p.starts_with("spiffe://"))
                && p.len() <= 2048
                && path.trim_start_matches('/').len() > 1
                && !p.contains(char::is_whitespace)
        };
        if !new.workload_id_patterns.iter().all(shaped) {
            return Err(ApiError::bad(
                "a workload id pattern is a SPIFFE ID (spiffe://…) or its path (/…); * stands for any part of one segment",
            ));
        }
        if new.token_policies.iter().any(|p| p == "root") {
            return Err(ApiError::bad("an identity cannot have the root policy"));
        }
        *self = new;
        Ok(())
    }

    /// Whether it is for an ID; `own`: of the mesh's trust domain, which patterns need not name.
    fn matches(&self, spiffe: &str, own: bool) -> bool {
        self.workload_id_patterns
            .iter()
            .any(|pattern| (own || !pattern.starts_with('/')) && matches(pattern, spiffe))
    }

    fn describe(&self) -> Value {
        let mut out = Map::new();
        self.params.describe(&mut out);
        out.insert(
            "workload_id_patterns".into(),
            json!(self.workload_id_patterns),
        );
        out.insert("token_policies".into(), json!(self.token_policies));
        Value::Object(out)
    }
}

/// Whether a pattern (a SPIFFE ID or its path) matches; `*` stands for any characters within one segment.
fn matches(pattern: &str, spiffe: &str) -> bool {
    let text = if pattern.starts_with('/') {
        let Some(rest) = spiffe.strip_prefix("spiffe://") else {
            return false;
        };
        match rest.find('/') {
            Some(at) => &rest[at..],
            None => return false,
        }
    } else {
        spiffe
    };
    let (mut patterns, mut segments) = (pattern.split('/'), text.split('/'));
    loop {
        match (patterns.next(), segments.next()) {
            (None, None) => return true,
            // A segment is never empty, so `*` alone does not match nothing.
            (Some(p), Some(s)) if glob::matches(p, s) && p.is_empty() == s.is_empty() => {}
            _ => return false,
        }
    }
}

/// What policy templates may say about a SPIFFE ID of the mesh.
pub(crate) fn identity(spiffe: &str) -> Identity {
    let path: Vec<_> = spiffe
        .strip_prefix("spiffe://")
        .unwrap_or_default()
        .split('/')
        .skip(1)
        .collect();
    let mut identity = Identity::default();
    match path[..] {
        ["ns", "default", "dc", datacenter, "svc", service] => {
            identity.service = Some(service.into());
            identity.datacenter = Some(datacenter.into());
        }
        ["node", node] => identity.node = Some(node.into()),
        _ => {}
    }
    identity
}
