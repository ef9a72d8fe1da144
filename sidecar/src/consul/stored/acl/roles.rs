//! `/v1/acl/role` and `/v1/acl/roles`.

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use vault_kv::{
    Administration,
    acl::{self, RoleEntry},
};

use super::{
    Desk, List, Opener, absent, cannot_delete, end, hash_of, links, listed, on, one,
    policies::policy_id,
};
use crate::{
    consul::{Refused, bad_request, decode::Fields, server_error},
    http::{Call, Reply, Routes, json as json_reply},
};

pub fn routes(open: &Opener) -> Routes {
    let by_id = "/v1/acl/role/:id";
    Routes::new()
        .get("/v1/acl/roles", on(open, list))
        .put("/v1/acl/role", on(open, create))
        .get("/v1/acl/role/name/:name", on(open, by_name))
        .get(by_id, on(open, get))
        .put(by_id, on(open, update))
        .on(Method::DELETE, by_id, on(open, delete))
}

fn show(role: &RoleEntry, admin: &Administration<'_>) -> Result<Value, Refused> {
    let mut shown = Map::new();
    shown.insert("ID".into(), role.id.as_str().into());
    shown.insert("Name".into(), role.name.as_str().into());
    shown.insert("Description".into(), role.description.as_str().into());
    links::show(&role.links, admin, &mut shown)?;
    let hash = hash_of(&json!([role.name, role.description, role.links]));
    shown.insert("Hash".into(), hash.into());
    shown.insert("CreateIndex".into(), role.indexes.0.into());
    shown.insert("ModifyIndex".into(), role.indexes.1.into());
    Ok(shown.into())
}

async fn list(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let roles = List::Store(acl::List::Roles);
    let (attended, index) = desk.look_at(&call, roles).await?;
    let shown: Result<Vec<Value>, Refused> = (|| {
        let admin = attended.administration();
        let mut all = admin.roles()?;
        if let Some(policy) = call.query.filled("policy") {
            all.retain(|role| {
                role.links
                    .policies
                    .iter()
                    .any(|name| policy_id(name) == policy)
            });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.iter().map(|role| show(role, &admin)).collect()
    })();
    Ok(listed(&end(attended, shown).await?, index))
}

async fn get(desk: Desk, call: Call) -> Result<Reply, Refused> {
    find(desk, |role| role.id == call.params.get("id")).await
}

async fn by_name(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let name = call.params.get("name");
    find(desk, |role| role.name.eq_ignore_ascii_case(name)).await
}

async fn find(desk: Desk, wanted: impl Fn(&RoleEntry) -> bool) -> Result<Reply, Refused> {
    let attended = desk.look().await?;
    let shown: Result<Value, Refused> = (|| {
        let admin = attended.administration();
        let found = admin.roles()?.into_iter().find(wanted);
        show(&found.ok_or_else(|| absent("role"))?, &admin)
    })();
    Ok(one(&end(attended, shown).await?))
}

async fn create(desk: Desk, call: Call) -> Result<Reply, Refused> {
    write(desk, call, None).await
}

async fn update(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let id = call.params.get("id").to_owned();
    write(desk, call, Some(id)).await
}

async fn write(desk: Desk, call: Call, id: Option<String>) -> Result<Reply, Refused> {
    let mut fields = Fields::parse(call.body())?;
    let given = fields.text("ID")?;
    match &id {
        None if !given.is_empty() => {
            return Err(bad_request(
                "Cannot specify the ID when creating a new role",
            ));
        }
        Some(id) if !given.is_empty() && given != *id => {
            return Err(bad_request("Role ID in URL and payload do not match"));
        }
        _ => {}
    }
    let (name, description) = (fields.text("Name")?, fields.text("Description")?);
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if name.is_empty() || name.len() > 256 || !name.chars().all(fits) {
        return Err(server_error(
            "Invalid Role: invalid Name. Valid characters are [A-Za-z0-9\\-_], 1 to 256 of them",
        ));
    }
    fields.ignore(&["Hash", "CreateIndex", "ModifyIndex"]);
    let attended = desk.change().await?;
    let made: Result<Value, Refused> = async {
        let admin = attended.administration();
        let mut fields = fields;
        let links = links::parse(&mut fields, &admin)?;
        fields.finish()?;
        let id = match id {
            None => uuid::Uuid::new_v4().to_string(),
            Some(id) if admin.role(&id)?.is_some() => id,
            Some(id) => return Err(server_error(format!("Unable to find role {id:?}"))),
        };
        let role = RoleEntry {
            id: id.clone(),
            name,
            description,
            links,
            indexes: (0, 0),
        };
        admin.put_role(&role).await?;
        let made = admin.role(&id)?;
        let made = made.ok_or_else(|| server_error("the role was deleted meanwhile"))?;
        show(&made, &admin)
    }
    .await;
    Ok(json_reply(StatusCode::OK, &end(attended, made).await?))
}

async fn delete(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let attended = desk.change().await?;
    let done: Result<(), Refused> = async {
        let admin = attended.administration();
        let id = call.params.get("id");
        if admin.role(id)?.is_none() {
            return Err(cannot_delete("role"));
        }
        Ok(admin.delete_role(id).await?)
    }
    .await;
    end(attended, done).await?;
    Ok(json_reply(StatusCode::OK, &true))
}
