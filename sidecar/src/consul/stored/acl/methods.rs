//! `/v1/acl/auth-method` and `/v1/acl/auth-methods`: whose word a login takes. Kept as pairs `acl/auth-method/<name>`.
//!
//! `jwt`: JSON Web Tokens of one issuer. `spiffe`: JWT-SVIDs of one trust domain; what they are about is `value.spiffe_id`,
//! `value.path` and, for IDs of a mesh, `value.service`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use http::{Method, StatusCode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use vault_kv::{JwtCheck, JwtSaid, Outbound};

use super::{Desk, Kept, List, Opener, absent, cannot_delete, end, listed, on, one, rules};
use crate::{
    consul::{
        Refused, bad_request,
        decode::{Fields, go_duration, go_format},
        server_error,
    },
    http::{Call, Reply, Routes, json as json_reply},
};

const PREFIX: &str = "acl/auth-method/";

pub fn routes(open: &Opener) -> Routes {
    let by_name = "/v1/acl/auth-method/:name";
    Routes::new()
        .get("/v1/acl/auth-methods", on(open, list))
        .put("/v1/acl/auth-method", on(open, create))
        .get(by_name, on(open, get))
        .put(by_name, on(open, update))
        .on(Method::DELETE, by_name, on(open, delete))
}

/// A method as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct AuthMethod {
    pub name: String,
    kind: Kind,
    display_name: String,
    description: String,
    /// How long a token of it lives, in seconds; 0: until it is revoked.
    pub max_token_ttl: u64,
    locality: String,
    config: Map<String, Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Jwt,
    Spiffe,
}

/// Methods that are ready to check, with the keys that they have fetched.
pub struct Methods {
    outbound: Option<Arc<dyn Outbound>>,
    ready: Mutex<HashMap<String, (u64, Arc<JwtCheck>)>>,
}

impl Methods {
    /// None yet; keys are fetched through `outbound`.
    pub fn new(outbound: Option<Arc<dyn Outbound>>) -> Self {
        Self {
            outbound,
            ready: Mutex::default(),
        }
    }

    fn check(&self, method: &Kept<AuthMethod>) -> Result<Arc<JwtCheck>, String> {
        let (name, changed) = (&method.value.name, method.indexes.1);
        if let Some((at, check)) = self.ready.lock().get(name)
            && *at == changed
        {
            return Ok(Arc::clone(check));
        }
        let check = Arc::new(method.value.check(self.outbound.clone())?);
        let mut ready = self.ready.lock();
        ready.insert(name.clone(), (changed, Arc::clone(&check)));
        Ok(check)
    }

    /// What a credential says, if it is good.
    pub(super) async fn said(
        &self,
        method: &Kept<AuthMethod>,
        credential: &str,
    ) -> Result<JwtSaid, String> {
        let mut said = self.check(method)?.said(credential).await?;
        if method.value.kind == Kind::Spiffe {
            let id = said.values.get("spiffe_id").cloned().unwrap_or_default();
            let domain = method.value.text("TrustDomain");
            let path = id
                .strip_prefix("spiffe://")
                .and_then(|rest| rest.strip_prefix(domain))
                .and_then(|rest| rest.strip_prefix('/'))
                .ok_or("the token is not about an ID of the method's trust domain")?;
            if let Some((_, service)) = path.rsplit_once("/svc/") {
                said.values.insert("service".into(), service.into());
            }
            said.values.insert("path".into(), path.into());
        }
        Ok(said)
    }
}

impl AuthMethod {
    pub fn is_local(&self) -> bool {
        self.locality != "global"
    }

    fn text(&self, key: &str) -> &str {
        self.config
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    fn pairs(&self, key: &str) -> Result<BTreeMap<String, String>, String> {
        match self.config.get(key) {
            None | Some(Value::Null) => Ok(BTreeMap::new()),
            Some(value) => serde_json::from_value(value.clone())
                .map_err(|_| format!("Config.{key} must be an object of strings")),
        }
    }

    /// The names of what binding rules may ask about.
    pub fn values(&self) -> Vec<String> {
        match self.kind {
            Kind::Spiffe => ["spiffe_id", "path", "service"].map(str::to_owned).into(),
            Kind::Jwt => self
                .pairs("ClaimMappings")
                .unwrap_or_default()
                .into_values()
                .collect(),
        }
    }

    fn check(&self, outbound: Option<Arc<dyn Outbound>>) -> Result<JwtCheck, String> {
        let known: &[&str] = match self.kind {
            Kind::Jwt => &["ClaimMappings", "ListClaimMappings", "BoundIssuer"],
            Kind::Spiffe => &["TrustDomain"],
        };
        let (mut config, mut role) = (Map::new(), Map::new());
        for (key, value) in &self.config {
            let (into, name) = match key.as_str() {
                "JWTSupportedAlgs" => (&mut config, "jwt_supported_algs"),
                "JWTValidationPubKeys" => (&mut config, "jwt_validation_pubkeys"),
                "JWKSURL" => (&mut config, "jwks_url"),
                "JWKSCACert" => (&mut config, "jwks_ca_pem"),
                "OIDCDiscoveryURL" => (&mut config, "oidc_discovery_url"),
                "OIDCDiscoveryCACert" => (&mut config, "oidc_discovery_ca_pem"),
                "BoundIssuer" if known.contains(&"BoundIssuer") => (&mut config, "bound_issuer"),
                "BoundAudiences" => (&mut role, "bound_audiences"),
                "ExpirationLeeway" => (&mut role, "expiration_leeway"),
                "NotBeforeLeeway" => (&mut role, "not_before_leeway"),
                "ClockSkewLeeway" => (&mut role, "clock_skew_leeway"),
                key if known.contains(&key) => continue,
                _ if is_empty(value) => continue,
                key => {
                    return Err(format!(
                        "Config.{key} is not supported by this version of mesh"
                    ));
                }
            };
            let value = match (name.ends_with("_leeway"), value.as_u64()) {
                (true, Some(nanos)) => format!("{}s", nanos / 1_000_000_000).into(),
                _ => value.clone(),
            };
            if !is_empty(&value) {
                into.insert(name.to_owned(), value);
            }
        }
        let (values, lists) = match self.kind {
            Kind::Jwt => (
                self.pairs("ClaimMappings")?,
                self.pairs("ListClaimMappings")?,
            ),
            Kind::Spiffe => {
                if self.text("TrustDomain").is_empty() {
                    return Err("Config.TrustDomain: whose IDs are taken".into());
                }
                if !role.contains_key("bound_audiences") {
                    return Err("Config.BoundAudiences: whom the tokens must be for".into());
                }
                (
                    [("sub".to_owned(), "spiffe_id".to_owned())].into(),
                    BTreeMap::new(),
                )
            }
        };
        role.insert("claim_mappings".into(), json!(values));
        let check = JwtCheck::new(config, role, lists, outbound)?;
        Ok(match self.kind {
            Kind::Jwt => check,
            Kind::Spiffe => check.of_svids(),
        })
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(number) => number.as_u64() == Some(0),
        Value::Bool(true) => false,
    }
}

fn show(method: &Kept<AuthMethod>, whole: bool) -> Value {
    let it = &method.value;
    let ttl = match it.max_token_ttl {
        0 => String::new(),
        seconds => go_format(Duration::from_secs(seconds)),
    };
    let mut shown = json!({
        "Name": it.name, "Type": it.kind, "DisplayName": it.display_name, "Description": it.description,
        "TokenLocality": it.locality, "CreateIndex": method.indexes.0, "ModifyIndex": method.indexes.1,
    });
    if !ttl.is_empty() {
        shown["MaxTokenTTL"] = ttl.into();
    }
    if whole {
        shown["Config"] = it.config.clone().into();
    }
    shown
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

impl Desk {
    pub(super) fn method(&self, name: &str) -> Result<Option<Kept<AuthMethod>>, Refused> {
        self.kept(&key(name))
    }
}

async fn list(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let (attended, index) = desk.look_at(&call, List::Records(PREFIX)).await?;
    let all = end(attended, desk.all::<AuthMethod>(PREFIX)).await?;
    Ok(listed(
        &all.iter()
            .map(|method| show(method, false))
            .collect::<Vec<_>>(),
        index,
    ))
}

async fn get(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let attended = desk.look().await?;
    let found = end(attended, desk.method(call.params.get("name"))).await?;
    let found = found.ok_or_else(|| absent("auth method"))?;
    Ok(one(&show(&found, true)))
}

fn parse(call: &Call) -> Result<AuthMethod, Refused> {
    let mut fields = Fields::parse(call.body())?;
    let name = fields.text("Name")?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if name.is_empty() || name.len() > 128 || !name.chars().all(fits) {
        return Err(server_error(
            "Invalid Auth Method: invalid Name. Only alphanumeric characters, '-' and '_' are allowed",
        ));
    }
    let kind = match fields.text("Type")?.as_str() {
        "jwt" => Kind::Jwt,
        "spiffe" => Kind::Spiffe,
        other => {
            return Err(server_error(format!(
                "Invalid Auth Method: Type {other:?} is not supported by this version of mesh (jwt, spiffe)"
            )));
        }
    };
    let max_token_ttl = match fields.take("MaxTokenTTL") {
        None => Duration::ZERO,
        Some(Value::Number(nanos)) => Duration::from_nanos(nanos.as_u64().unwrap_or(0)),
        Some(Value::String(text)) if text.is_empty() => Duration::ZERO,
        Some(Value::String(text)) => go_duration(&text).map_err(bad_request)?,
        Some(_) => return Err(bad_request("MaxTokenTTL must be a duration")),
    };
    let locality = match fields.text("TokenLocality")?.as_str() {
        "" | "local" => "local".to_owned(),
        "global" => "global".to_owned(),
        _ => {
            return Err(server_error(
                "Invalid Auth Method: TokenLocality must be local or global",
            ));
        }
    };
    let config = match fields.take("Config") {
        None => Map::new(),
        Some(Value::Object(config)) => config,
        Some(_) => return Err(bad_request("Config must be an object")),
    };
    let method = AuthMethod {
        name,
        kind,
        display_name: fields.text("DisplayName")?,
        description: fields.text("Description")?,
        max_token_ttl: max_token_ttl.as_secs(),
        locality,
        config,
    };
    fields.unsupported(&["NamespaceRules"])?;
    fields.ignore(&["CreateIndex", "ModifyIndex"]);
    fields.finish()?;
    Ok(method)
}

async fn create(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let method = parse(&call)?;
    write(desk, method, true).await
}

async fn update(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let method = parse(&call)?;
    if method.name != call.params.get("name") {
        return Err(bad_request(
            "AuthMethod name in URL and payload do not match",
        ));
    }
    write(desk, method, false).await
}

async fn write(desk: Desk, method: AuthMethod, new: bool) -> Result<Reply, Refused> {
    let attended = desk.change().await?;
    let name = method.name.clone();
    let made: Result<Value, Refused> = async {
        let invalid = |why: String| server_error(format!("Invalid Auth Method: {why}"));
        let known = desk.method(&name)?;
        let cas = match known {
            Some(_) if new => {
                return Err(invalid(format!(
                    "an auth method named {name:?} already exists"
                )));
            }
            None if !new => return Err(server_error(format!("Cannot find auth method {name:?}"))),
            Some(known) if known.value.kind != method.kind => {
                return Err(invalid(format!(
                    "Changing the type of {name:?} is not permitted"
                )));
            }
            Some(known) => known.indexes.1,
            None => 0,
        };
        let check = method
            .check(desk.methods.outbound.clone())
            .map_err(invalid)?;
        check.reachable().await.map_err(invalid)?;
        desk.keep(&attended, key(&name), &method, Some(cas)).await?;
        let made = desk.method(&name)?.ok_or_else(|| absent("auth method"))?;
        Ok(show(&made, true))
    }
    .await;
    Ok(json_reply(StatusCode::OK, &end(attended, made).await?))
}

/// With its rules, and the tokens that it gave.
async fn delete(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let name = call.params.get("name");
    let attended = desk.change().await?;
    let done: Result<(), Refused> = async {
        if desk.method(name)?.is_none() {
            return Err(cannot_delete("auth method"));
        }
        desk.drop_record(&attended, key(name)).await?;
        rules::delete_of(&desk, &attended, name).await?;
        let admin = attended.administration();
        for token in admin.tokens()? {
            if token.auth_method == name {
                admin.delete_token(&token.accessor).await?;
            }
        }
        Ok(())
    }
    .await;
    end(attended, done).await?;
    Ok(json_reply(StatusCode::OK, &true))
}
