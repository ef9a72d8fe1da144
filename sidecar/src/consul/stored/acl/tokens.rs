//! `/v1/acl/token`, `/v1/acl/tokens` and `/v1/acl/bootstrap`.
//!
//! The store keeps a keyed hash of a token's text and nothing else, so `SecretID` is shown once: when the token is made.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use vault_kv::{
    Administration, Capability,
    acl::{self, ANONYMOUS, Identity, Links, TokenEntry, TokenSpec},
};
use zeroize::Zeroizing;

use super::{
    Desk, List, Opener, absent, cannot_delete, end, hash_of, links, listed, on, one,
    policies::{self, policy_id},
    rfc3339, uuid_of,
};
use crate::{
    consul::{Refused, bad_request, decode::Fields, server_error},
    http::{Call, Reply, Routes, json as json_reply},
};

/// What is shown in place of a token's text.
const HIDDEN: &str = "<hidden>";

pub fn routes(open: &Opener) -> Routes {
    let by_id = "/v1/acl/token/:id";
    Routes::new()
        .put("/v1/acl/bootstrap", on(open, bootstrap))
        .get("/v1/acl/tokens", on(open, list))
        .put("/v1/acl/token", on(open, create))
        .get("/v1/acl/token/self", on(open, own))
        .put("/v1/acl/token/:id/clone", on(open, clone))
        .get(by_id, on(open, get))
        .put(by_id, on(open, update))
        .on(Method::DELETE, by_id, on(open, delete))
        .get("/v1/acl/replication", on(open, replication))
}

/// In Consul's shape; with its text right after it was made.
pub fn show(
    token: &TokenEntry,
    secret: Option<&str>,
    admin: &Administration<'_>,
) -> Result<Value, Refused> {
    let mut shown = Map::new();
    let mut put = |key: &str, value: Value| shown.insert(key.into(), value);
    put("CreateIndex", token.indexes.0.into());
    put("ModifyIndex", token.indexes.1.into());
    put("AccessorID", token.accessor.as_str().into());
    put("SecretID", secret.unwrap_or(HIDDEN).into());
    put("Description", token.description.as_str().into());
    put("Local", token.local.into());
    if !token.auth_method.is_empty() {
        put("AuthMethod", token.auth_method.as_str().into());
    }
    if let Some(expires) = token.expires {
        put("ExpirationTime", rfc3339(expires).into());
    }
    put("CreateTime", rfc3339(token.created).into());
    let hash = hash_of(&json!([token.description, token.links]));
    put("Hash", hash.into());
    links::show(&token.links, admin, &mut shown)?;
    Ok(shown.into())
}

async fn bootstrap(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let mut secret = None;
    if !call.body().is_empty() {
        let mut fields = Fields::parse(call.body())?;
        secret = uuid_of("BootstrapSecret", &fields.text("BootstrapSecret")?)?.map(Zeroizing::new);
        fields.finish()?;
    }
    let attended = desk
        .asker
        .attend_anybody(Capability::Update, "consul/acl-bootstrap")
        .await?;
    let made: Result<Value, Refused> = async {
        let admin = attended.administration();
        let (secret, token) = admin.bootstrap(secret).await?;
        show(&token, Some(&secret), &admin)
    }
    .await;
    Ok(json_reply(StatusCode::OK, &end(attended, made).await?))
}

async fn list(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let tokens = List::Store(acl::List::Tokens);
    let (attended, index) = desk.look_at(&call, tokens).await?;
    let shown: Result<Vec<Value>, Refused> = (|| {
        let admin = attended.administration();
        let mut all = admin.tokens()?;
        if !all.iter().any(|token| token.accessor == ANONYMOUS) {
            all.push(anonymous());
        }
        if let Some(id) = call.query.filled("policy") {
            all.retain(|token| {
                token
                    .links
                    .policies
                    .iter()
                    .any(|name| policy_id(name) == id)
            });
        }
        if let Some(id) = call.query.filled("role") {
            all.retain(|token| token.links.roles.iter().any(|role| role == id));
        }
        if let Some(name) = call.query.filled("authmethod") {
            all.retain(|token| token.auth_method == name);
        }
        if let Some(name) = call.query.filled("servicename") {
            let identity = Identity::Service(name.to_ascii_lowercase());
            all.retain(|token| token.links.identities.contains(&identity));
        }
        all.sort_by_key(|token| token.indexes);
        let shown = all.iter().map(|token| {
            let mut shown = show(token, None, &admin)?;
            shown["Legacy"] = false.into();
            Ok(shown)
        });
        shown.collect()
    })();
    Ok(listed(&end(attended, shown).await?, index))
}

async fn get(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let attended = desk.look().await?;
    let shown: Result<Value, Refused> = (|| {
        let admin = attended.administration();
        let id = call.params.get("id");
        let token = admin.token(id)?;
        let token = token.or_else(|| (id == ANONYMOUS).then(anonymous));
        let token = token.ok_or_else(|| absent("token"))?;
        let shown = show(&token, None, &admin)?;
        match call.query.has("expanded") {
            true => expand(shown, &token, &admin, &desk),
            false => Ok(shown),
        }
    })();
    Ok(one(&end(attended, shown).await?))
}

/// The token of those who show none, as long as nobody has given it anything.
fn anonymous() -> TokenEntry {
    TokenEntry {
        accessor: ANONYMOUS.to_owned(),
        description: "Anonymous Token".to_owned(),
        links: Links::default(),
        local: false,
        auth_method: String::new(),
        created: 0,
        expires: None,
        indexes: (1, 1),
    }
}

/// With the documents of all that a token has, also through its roles.
fn expand(
    mut shown: Value,
    token: &TokenEntry,
    admin: &Administration<'_>,
    desk: &Desk,
) -> Result<Value, Refused> {
    let mut names = token.links.policies.clone();
    let mut roles = Vec::new();
    for id in &token.links.roles {
        if let Some(role) = admin.role(id)? {
            names.extend(role.links.policies.iter().cloned());
            roles.push(json!({"ID": role.id, "Name": role.name, "Description": role.description}));
        }
    }
    names.sort();
    names.dedup();
    let mut documents = Vec::new();
    for name in names {
        if let Some(policy) = admin.policy(&name)? {
            documents.push(policies::show(&policy, true));
        }
    }
    let default = if desk.default_allow { "allow" } else { "deny" };
    shown["ExpandedPolicies"] = documents.into();
    shown["ExpandedRoles"] = roles.into();
    shown["AgentACLDefaultPolicy"] = default.into();
    shown["AgentACLDownPolicy"] = "extend-cache".into();
    shown["ResolvedByAgent"] = "".into();
    Ok(shown)
}

async fn own(desk: Desk, _: Call) -> Result<Reply, Refused> {
    let token = desk.asker.own_token()?;
    let attended = desk
        .asker
        .attend_anybody(Capability::Read, "consul/acl-self")
        .await?;
    let shown = show(&token, None, &attended.administration());
    let mut shown = end(attended, shown).await?;
    // Whoever asks has just sent it.
    if let Some(secret) = desk.asker.secret() {
        shown["SecretID"] = secret.into();
    }
    Ok(one(&shown))
}

/// What a client wants a token to be, but for what it grants.
struct Wanted {
    spec: TokenSpec,
    accessor: Option<String>,
    secret: String,
    expires: Option<i64>,
}

fn parse(fields: &mut Fields) -> Result<Wanted, Refused> {
    let ttl = fields.duration("ExpirationTTL")?;
    let expires = match fields.text("ExpirationTime")?.as_str() {
        "" => None,
        text => {
            let time = OffsetDateTime::parse(text, &Rfc3339);
            let time = time.map_err(|_| bad_request("ExpirationTime is not a time (RFC 3339)"))?;
            // Go's zero time.
            (time.year() > 1).then(|| time.unix_timestamp())
        }
    };
    if ttl.is_some() && expires.is_some() {
        return Err(server_error(
            "Expiration TTL and Expiration Time cannot both be set",
        ));
    }
    let wanted = Wanted {
        accessor: uuid_of("AccessorID", &fields.text("AccessorID")?)?,
        secret: fields.text("SecretID")?,
        expires,
        spec: TokenSpec {
            description: fields.text("Description")?,
            local: fields.flag("Local")?,
            ttl,
            ..TokenSpec::default()
        },
    };
    fields.unsupported(&["Rules", "Type"])?;
    fields.ignore(&[
        "AuthMethod",
        "CreateTime",
        "Hash",
        "CreateIndex",
        "ModifyIndex",
        "Legacy",
        "ExpandedPolicies",
        "ExpandedRoles",
        "AgentACLDefaultPolicy",
        "AgentACLDownPolicy",
        "ResolvedByAgent",
        "NamespaceDefaultPolicyIDs",
        "NamespaceDefaultRoleIDs",
        "NamespaceDefaultPolicies",
        "NamespaceDefaultRoles",
    ]);
    Ok(wanted)
}

async fn create(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let mut fields = Fields::parse(call.body())?;
    let wanted = parse(&mut fields)?;
    let attended = desk.change().await?;
    let made: Result<Value, Refused> = async {
        let admin = attended.administration();
        let mut fields = fields;
        let links = links::parse(&mut fields, &admin)?;
        fields.finish()?;
        let ttl = match wanted.expires {
            None => wanted.spec.ttl,
            Some(expires) => {
                let left = expires - OffsetDateTime::now_utc().unix_timestamp();
                let left = u64::try_from(left).ok().filter(|left| *left > 0);
                let left = left.ok_or_else(|| server_error("ExpirationTime is in the past"))?;
                Some(Duration::from_secs(left))
            }
        };
        let spec = TokenSpec {
            secret: uuid_of("SecretID", &wanted.secret)?.map(Zeroizing::new),
            accessor: wanted.accessor,
            links,
            ttl,
            ..wanted.spec
        };
        let (secret, token) = admin.create_token(spec).await?;
        show(&token, Some(&secret), &admin)
    }
    .await;
    Ok(json_reply(StatusCode::OK, &end(attended, made).await?))
}

async fn update(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let mut fields = Fields::parse(call.body())?;
    let wanted = parse(&mut fields)?;
    let id = call.params.get("id");
    if wanted.accessor.as_deref().is_some_and(|given| given != id) {
        return Err(bad_request(
            "Token Accessor ID in URL and payload do not match",
        ));
    }
    let attended = desk.change().await?;
    let made: Result<Value, Refused> = async {
        let admin = attended.administration();
        let mut fields = fields;
        let links = links::parse(&mut fields, &admin)?;
        fields.finish()?;
        let known = admin.token(id)?;
        if known.is_none() && id != ANONYMOUS {
            return Err(server_error(format!("Cannot find token {id:?}")));
        }
        if let Some(known) = known {
            if !matches!(wanted.secret.as_str(), "" | HIDDEN)
                && desk.asker.accessor_of(&wanted.secret).as_deref() != Some(id)
            {
                return Err(server_error("Changing a token's SecretID is not permitted"));
            }
            if wanted.spec.ttl.is_some()
                || wanted.expires.is_some() && wanted.expires != known.expires
            {
                return Err(server_error("Cannot change expiration time"));
            }
        }
        let spec = TokenSpec {
            links,
            ..wanted.spec
        };
        let token = admin.update_token(id, spec).await?;
        show(&token, None, &admin)
    }
    .await;
    Ok(json_reply(StatusCode::OK, &end(attended, made).await?))
}

async fn clone(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let description = match call.body().is_empty() {
        true => String::new(),
        false => {
            let mut fields = Fields::parse(call.body())?;
            let description = fields.text("Description")?;
            fields.ignore(&["AccessorID"]);
            fields.finish()?;
            description
        }
    };
    let attended = desk.change().await?;
    let made: Result<Value, Refused> = async {
        let admin = attended.administration();
        let id = call.params.get("id");
        let known = admin.token(id)?.ok_or_else(|| absent("token"))?;
        if id == ANONYMOUS || !known.auth_method.is_empty() {
            return Err(server_error(
                "Cannot clone a legacy, anonymous or login token",
            ));
        }
        let left = known
            .expires
            .map(|at| at - OffsetDateTime::now_utc().unix_timestamp());
        let spec = TokenSpec {
            description: match description.is_empty() {
                true => known.description,
                false => description,
            },
            links: known.links,
            local: known.local,
            ttl: left.map(|left| Duration::from_secs(left.max(1).unsigned_abs())),
            ..TokenSpec::default()
        };
        let (secret, token) = admin.create_token(spec).await?;
        show(&token, Some(&secret), &admin)
    }
    .await;
    Ok(json_reply(StatusCode::OK, &end(attended, made).await?))
}

async fn delete(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let id = call.params.get("id");
    let attended = desk.change().await?;
    let done: Result<(), Refused> = async {
        if id == ANONYMOUS {
            return Err(Refused::new(
                StatusCode::FORBIDDEN,
                "Delete operation not permitted on the anonymous token",
            ));
        }
        let admin = attended.administration();
        if admin.token(id)?.is_none() {
            return Err(cannot_delete("token"));
        }
        if desk.asker.own_token().is_ok_and(|own| own.accessor == id) {
            return Err(server_error(
                "Deletion of the request's authorization token is not permitted",
            ));
        }
        Ok(admin.delete_token(id).await?)
    }
    .await;
    end(attended, done).await?;
    Ok(json_reply(StatusCode::OK, &true))
}

/// There is one datacenter: nothing to replicate.
async fn replication(_: Desk, _: Call) -> Result<Reply, Refused> {
    let never = "0001-01-01T00:00:00Z";
    Ok(json_reply(
        StatusCode::OK,
        &json!({
            "Enabled": false, "Running": false, "SourceDatacenter": "", "ReplicationType": "",
            "ReplicatedIndex": 0, "ReplicatedRoleIndex": 0, "ReplicatedTokenIndex": 0,
            "LastSuccess": never, "LastError": never, "LastErrorMessage": "",
        }),
    ))
}
