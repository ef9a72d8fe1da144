//! `/v1/acl/login` and `/v1/acl/logout`.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use vault_kv::{
    Administration, Attended, Capability, JwtSaid,
    acl::{Identity, Links, TokenSpec},
};
use zeroize::Zeroizing;

use super::{
    Desk, Kept, Opener, end,
    methods::AuthMethod,
    on,
    rules::{self, BindType, BindingRule},
    tokens,
};
use crate::{
    consul::{Refused, bad_request, decode::Fields, server_error},
    http::{Call, Reply, Routes, json as json_reply},
};

pub fn routes(open: &Opener) -> Routes {
    Routes::new()
        .on(Method::POST, "/v1/acl/login", on(open, login))
        .on(Method::POST, "/v1/acl/logout", on(open, logout))
}

fn denied(why: impl std::fmt::Display) -> Refused {
    Refused::new(StatusCode::FORBIDDEN, format!("Permission denied: {why}"))
}

async fn login(desk: Desk, call: Call) -> Result<Reply, Refused> {
    if desk.asker.secret().is_some() {
        return Err(bad_request("do not provide a token when logging in"));
    }
    let mut fields = Fields::parse(call.body())?;
    let name = fields.text("AuthMethod")?;
    let credential = Zeroizing::new(fields.text("BearerToken")?);
    let meta = fields.pairs("Meta")?;
    fields.finish()?;
    if name.is_empty() || credential.is_empty() {
        return Err(bad_request("AuthMethod and BearerToken are needed"));
    }
    let attended = desk
        .asker
        .attend_anybody(Capability::Update, "consul/acl-login")
        .await?;
    let made: Result<Value, Refused> = async {
        let method = desk.method(&name)?;
        let method = method.ok_or_else(|| denied(format!("auth method {name:?} not found")))?;
        let said = desk
            .methods
            .said(&method, &credential)
            .await
            .map_err(denied)?;
        let bound = rules::of_method(&desk, &name)?;
        let mut description = "token created via login".to_owned();
        if !meta.is_empty() {
            description = format!("{description}: {}", json!(meta));
        }
        give(&attended, &method, &bound, &said, description).await
    }
    .await;
    Ok(json_reply(StatusCode::OK, &end(attended, made).await?))
}

async fn give(
    attended: &Attended,
    method: &Kept<AuthMethod>,
    bound: &[BindingRule],
    said: &JwtSaid,
    description: String,
) -> Result<Value, Refused> {
    let admin = attended.administration();
    let (mut links, mut doubtful) = (Links::default(), Links::default());
    for rule in bound.iter().filter(|rule| rule.selects(said)) {
        let name = rule.name(said).map_err(denied)?;
        bind(rule.bind_type, &name, &admin, &mut links)?;
        if !rule.trusted {
            bind(rule.bind_type, &name, &admin, &mut doubtful)?;
        }
    }
    if links == Links::default() {
        return Err(denied("no binding rule is about this login"));
    }
    let ttl = method.value.max_token_ttl;
    let spec = TokenSpec {
        description,
        links,
        local: method.value.is_local(),
        ttl: (ttl > 0).then(|| Duration::from_secs(ttl)),
        auth_method: method.value.name.clone(),
        ..TokenSpec::default()
    };
    let (secret, token) = admin.create_token_for_login(spec, &doubtful).await?;
    tokens::show(&token, Some(&secret), &admin)
}

/// A role or policy that there is not gives nothing.
fn bind(
    kind: BindType,
    name: &str,
    admin: &Administration<'_>,
    links: &mut Links,
) -> Result<(), Refused> {
    match kind {
        BindType::Service => links.identities.push(Identity::Service(name.into())),
        BindType::Node => links.identities.push(Identity::Node(name.into())),
        BindType::Role => {
            let roles = admin.roles()?.into_iter();
            let found = roles.filter(|role| role.name.eq_ignore_ascii_case(name));
            links.roles.extend(found.map(|role| role.id));
        }
        BindType::Policy => links
            .policies
            .extend(admin.policy(name)?.map(|policy| policy.name)),
    }
    Ok(())
}

async fn logout(desk: Desk, _: Call) -> Result<Reply, Refused> {
    let token = desk.asker.own_token()?;
    if token.auth_method.is_empty() {
        return Err(denied("token wasn't created via login"));
    }
    let attended = desk
        .asker
        .attend_anybody(Capability::Delete, "consul/acl-logout")
        .await?;
    let done = attended
        .administration()
        .delete_token(&token.accessor)
        .await;
    end(
        attended,
        done.map_err(|error| server_error(error.to_string())),
    )
    .await?;
    Ok(json_reply(StatusCode::OK, &true))
}
