//! What tokens and roles grant, as requests name it and answers show it.

use serde_json::{Map, Value, json};
use vault_kv::{
    Administration,
    acl::{Identity, Links},
};

use super::policies::policy_id;
use crate::consul::{Refused, bad_request, decode::Fields, server_error};

/// Takes the fields that link to policies, roles and identities.
pub fn parse(fields: &mut Fields, of: &Administration<'_>) -> Result<Links, Refused> {
    let mut links = Links::default();
    let policies = named(fields, "Policies")?;
    if !policies.is_empty() {
        let known = of.policies()?;
        for (id, name) in policies {
            let found = known.iter().find(|policy| match id.is_empty() {
                false => policy_id(&policy.name) == id,
                true => policy.name.eq_ignore_ascii_case(&name),
            });
            let found = found.ok_or_else(|| match id.is_empty() {
                false => server_error(format!("No such ACL policy with ID {id:?}")),
                true => server_error(format!("No such ACL policy with name {name:?}")),
            })?;
            links.policies.push(found.name.clone());
        }
    }
    let roles = named(fields, "Roles")?;
    if !roles.is_empty() {
        let known = of.roles()?;
        for (id, name) in roles {
            let found = known.iter().find(|role| match id.is_empty() {
                false => role.id == id,
                true => role.name.eq_ignore_ascii_case(&name),
            });
            let found = found.ok_or_else(|| match id.is_empty() {
                false => server_error(format!("No such ACL role with ID {id:?}")),
                true => server_error(format!("No such ACL role with name {name:?}")),
            })?;
            links.roles.push(found.id.clone());
        }
    }
    for item in fields.items("ServiceIdentities")? {
        let mut item = Fields::of(item)?;
        let name = item.text("ServiceName")?;
        // There is one datacenter: a list that has another name in it still has this one, or grants nothing.
        item.unsupported(&["Datacenters"])?;
        item.finish()?;
        links
            .identities
            .push(Identity::Service(name.to_ascii_lowercase()));
    }
    for item in fields.items("NodeIdentities")? {
        let mut item = Fields::of(item)?;
        let name = item.text("NodeName")?;
        item.ignore(&["Datacenter"]);
        item.finish()?;
        links
            .identities
            .push(Identity::Node(name.to_ascii_lowercase()));
    }
    for item in fields.items("TemplatedPolicies")? {
        links.identities.push(templated(Fields::of(item)?)?);
    }
    if let Some(bad) = links.identities.iter().find(|it| !it.is_valid()) {
        let (Identity::Service(name) | Identity::Node(name)) = bad;
        return Err(server_error(format!(
            "identity {name:?} has an invalid name. Only lowercase alphanumeric characters, '-', '_' and '.' are allowed"
        )));
    }
    for list in [&mut links.policies, &mut links.roles] {
        list.sort();
        list.dedup();
    }
    links.identities.sort();
    links.identities.dedup();
    Ok(links)
}

/// The templates that stand for an identity; no others are known.
fn templated(mut item: Fields) -> Result<Identity, Refused> {
    let template = item.text("TemplateName")?;
    let variables = item.take("TemplateVariables").map(Fields::of).transpose()?;
    item.ignore(&["TemplateID", "Datacenters"]);
    item.finish()?;
    let name = match variables {
        Some(mut variables) => variables.text("Name")?,
        None => String::new(),
    };
    match template.as_str() {
        "builtin/service" => Ok(Identity::Service(name.to_ascii_lowercase())),
        "builtin/node" => Ok(Identity::Node(name.to_ascii_lowercase())),
        _ => Err(bad_request(format!(
            "TemplatedPolicies: {template:?} is not supported by this version of mesh (builtin/service, builtin/node)"
        ))),
    }
}

/// Pairs of id and name; one of both is filled.
fn named(fields: &mut Fields, name: &str) -> Result<Vec<(String, String)>, Refused> {
    let items = fields.items(name)?.into_iter();
    items
        .map(|item| {
            let mut item = Fields::of(item)?;
            let pair = (item.text("ID")?, item.text("Name")?);
            item.finish()?;
            if pair.0.is_empty() && pair.1.is_empty() {
                return Err(bad_request(format!("{name}: each needs an ID or a Name")));
            }
            Ok(pair)
        })
        .collect()
}

/// Puts what is granted into an answer; what does not exist any more is not shown.
pub fn show(
    links: &Links,
    of: &Administration<'_>,
    into: &mut Map<String, Value>,
) -> Result<(), Refused> {
    let mut policies = Vec::new();
    for name in &links.policies {
        if of.policy(name)?.is_some() {
            policies.push(json!({"ID": policy_id(name), "Name": name}));
        }
    }
    let mut roles = Vec::new();
    for id in &links.roles {
        if let Some(role) = of.role(id)? {
            roles.push(json!({"ID": id, "Name": role.name}));
        }
    }
    let (mut services, mut nodes) = (Vec::new(), Vec::new());
    for identity in &links.identities {
        match identity {
            Identity::Service(name) => services.push(json!({"ServiceName": name})),
            Identity::Node(name) => nodes.push(json!({"NodeName": name, "Datacenter": ""})),
        }
    }
    for (key, list) in [
        ("Policies", policies),
        ("Roles", roles),
        ("ServiceIdentities", services),
        ("NodeIdentities", nodes),
    ] {
        if !list.is_empty() {
            into.insert(key.into(), list.into());
        }
    }
    Ok(())
}
