//! `/v1/acl/policy` and `/v1/acl/policies`: the policies of the store, which the Vault interface has under
//! `sys/policies/acl/`. A policy's id follows from its name.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use vault_kv::{
    Administration,
    acl::{self, PolicyEntry},
};

use super::{Desk, List, Opener, absent, cannot_delete, end, hash_of, listed, on, one};
use crate::{
    consul::{Refused, bad_request, decode::Fields, server_error},
    http::{Call, Reply, Routes, json as json_reply},
};

pub fn routes(open: &Opener) -> Routes {
    let by_id = "/v1/acl/policy/:id";
    let mut routes = Routes::new()
        .get("/v1/acl/policies", on(open, list))
        .put("/v1/acl/policy", on(open, create))
        .get("/v1/acl/policy/name/:name", on(open, by_name))
        .get(by_id, on(open, get))
        .put(by_id, on(open, update))
        .on(Method::DELETE, by_id, on(open, delete))
        .get("/v1/acl/templated-policies", on(open, templates));
    for (method, path) in [
        (Method::GET, "/v1/acl/templated-policy/name/:name"),
        (Method::POST, "/v1/acl/templated-policy/preview/:name"),
    ] {
        routes = routes.on(method, path, on(open, no_template));
    }
    routes
}

/// The id of a policy.
pub fn policy_id(name: &str) -> String {
    match name {
        "global-management" => "00000000-0000-0000-0000-000000000001".into(),
        "builtin/global-read-only" => "00000000-0000-0000-0000-000000000002".into(),
        name => {
            let text = format!("policy {name}");
            let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&digest.as_ref()[..16]);
            uuid::Builder::from_custom_bytes(bytes)
                .into_uuid()
                .to_string()
        }
    }
}

pub fn show(policy: &PolicyEntry, rules: bool) -> Value {
    let mut shown = json!({
        "ID": policy_id(&policy.name),
        "Name": policy.name,
        "Description": policy.description,
        "Hash": hash_of(&json!([policy.name, policy.description, policy.source])),
        "CreateIndex": policy.indexes.0,
        "ModifyIndex": policy.indexes.1,
    });
    if rules {
        shown["Rules"] = policy.source.as_str().into();
    } else {
        shown["Datacenters"] = Value::Null;
    }
    shown
}

fn find(admin: &Administration<'_>, id: &str) -> Result<Option<PolicyEntry>, Refused> {
    let all = admin.policies()?;
    Ok(all.into_iter().find(|policy| policy_id(&policy.name) == id))
}

async fn list(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let policies = List::Store(acl::List::Policies);
    let (attended, index) = desk.look_at(&call, policies).await?;
    let all = attended.administration().policies().map_err(Refused::from);
    let all = end(attended, all).await?;
    Ok(listed(
        &all.iter()
            .map(|policy| show(policy, false))
            .collect::<Vec<_>>(),
        index,
    ))
}

async fn get(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let attended = desk.look().await?;
    let found = find(&attended.administration(), call.params.get("id"));
    let found = end(attended, found)
        .await?
        .ok_or_else(|| absent("policy"))?;
    Ok(one(&show(&found, true)))
}

async fn by_name(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let attended = desk.look().await?;
    let found = attended.administration().policy(call.params.get("name"));
    let found = end(attended, found.map_err(Refused::from)).await?;
    let found = found.ok_or_else(|| absent("policy"))?;
    Ok(one(&show(&found, true)))
}

struct Wanted {
    id: String,
    name: String,
    description: String,
    rules: String,
}

fn parse(call: &Call) -> Result<Wanted, Refused> {
    let mut fields = Fields::parse(call.body())?;
    let wanted = Wanted {
        id: fields.text("ID")?,
        name: fields.text("Name")?,
        description: fields.text("Description")?,
        rules: fields.text("Rules")?,
    };
    // A policy that holds in some datacenters only would hold in the one that there is.
    fields.unsupported(&["Datacenters"])?;
    fields.ignore(&["Hash", "CreateIndex", "ModifyIndex"]);
    fields.finish()?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let name = wanted.name.strip_prefix("builtin/").unwrap_or(&wanted.name);
    if name.is_empty() || name.len() > 128 || !name.chars().all(fits) {
        return Err(server_error(
            "Invalid Policy: invalid Name. Valid characters are [A-Za-z0-9\\-_], 1 to 128 of them",
        ));
    }
    Ok(wanted)
}

async fn create(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let wanted = parse(&call)?;
    if !wanted.id.is_empty() {
        return Err(bad_request(
            "Cannot specify the ID when creating a new policy",
        ));
    }
    let attended = desk.change().await?;
    let made: Result<Value, Refused> = async {
        let admin = attended.administration();
        if admin.policy(&wanted.name)?.is_some() {
            return Err(server_error(format!(
                "Invalid Policy: A Policy with Name {:?} already exists",
                wanted.name
            )));
        }
        put(&admin, &wanted).await
    }
    .await;
    Ok(json_reply(StatusCode::OK, &end(attended, made).await?))
}

async fn update(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let mut wanted = parse(&call)?;
    let id = call.params.get("id");
    if !wanted.id.is_empty() && wanted.id != id {
        return Err(bad_request("Policy ID in URL and payload do not match"));
    }
    let attended = desk.change().await?;
    let made: Result<Value, Refused> = async {
        let admin = attended.administration();
        let known = find(&admin, id)?
            .ok_or_else(|| server_error(format!("Unable to find policy {id:?}")))?;
        if known.builtin {
            return Err(Refused::new(
                StatusCode::FORBIDDEN,
                format!(
                    "Changing the builtin {} policy is not permitted",
                    known.name
                ),
            ));
        }
        if !known.name.eq_ignore_ascii_case(&wanted.name) {
            return Err(server_error(format!(
                "Name: the policy {:?} cannot be renamed, as tokens name it; make another",
                known.name
            )));
        }
        wanted.name = known.name;
        put(&admin, &wanted).await
    }
    .await;
    Ok(json_reply(StatusCode::OK, &end(attended, made).await?))
}

async fn put(admin: &Administration<'_>, wanted: &Wanted) -> Result<Value, Refused> {
    admin
        .put_policy(&wanted.name, &wanted.rules, &wanted.description)
        .await?;
    let made = admin.policy(&wanted.name)?;
    let made = made.ok_or_else(|| server_error("the policy was deleted meanwhile"))?;
    Ok(show(&made, true))
}

async fn delete(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let attended = desk.change().await?;
    let done: Result<(), Refused> = async {
        let admin = attended.administration();
        let known = find(&admin, call.params.get("id"))?;
        let known = known.ok_or_else(|| cannot_delete("policy"))?;
        if known.builtin {
            return Err(Refused::new(
                StatusCode::FORBIDDEN,
                format!(
                    "Delete operation not permitted on the builtin {} policy",
                    known.name
                ),
            ));
        }
        Ok(admin.delete_policy(&known.name).await?)
    }
    .await;
    end(attended, done).await?;
    Ok(json_reply(StatusCode::OK, &true))
}

async fn templates(desk: Desk, _: Call) -> Result<Reply, Refused> {
    end(desk.look().await?, Ok(())).await?;
    let schema = r#"{"type":"object","properties":{"Name":{"type":"string"}},"required":["Name"]}"#;
    let templates = ["builtin/service", "builtin/node"].map(
        |name| json!({"TemplateName": name, "Schema": schema, "Template": "", "Description": ""}),
    );
    let templates = templates.map(|it| {
        (
            it["TemplateName"].as_str().unwrap_or_default().to_owned(),
            it,
        )
    });
    let shown: serde_json::Map<String, Value> = templates.into_iter().collect();
    Ok(json_reply(StatusCode::OK, &shown))
}

async fn no_template(_: Desk, call: Call) -> Result<Reply, Refused> {
    Err(bad_request(format!(
        "templated policy {:?}: only their names are known here (builtin/service, builtin/node)",
        call.params.get("name")
    )))
}
