//! `/v1/acl/binding-rule` and `/v1/acl/binding-rules`: what a login gives. Kept as pairs `acl/binding-rule/<id>`.

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vault_kv::{Attended, JwtSaid};

use super::{
    Desk, Kept, List, Opener, absent, cannot_delete, end, listed, methods::AuthMethod, on, one,
};
use crate::{
    consul::{Refused, bad_request, decode::Fields, filter::Filter, server_error},
    http::{Call, Reply, Routes, json as json_reply},
};

const PREFIX: &str = "acl/binding-rule/";

/// What a selector may look at.
const SELECTABLE: &[&str] = &["value", "list"];

pub fn routes(open: &Opener) -> Routes {
    let by_id = "/v1/acl/binding-rule/:id";
    Routes::new()
        .get("/v1/acl/binding-rules", on(open, list))
        .put("/v1/acl/binding-rule", on(open, create))
        .get(by_id, on(open, get))
        .put(by_id, on(open, update))
        .on(Method::DELETE, by_id, on(open, delete))
}

/// A rule as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct BindingRule {
    id: String,
    description: String,
    auth_method: String,
    selector: String,
    pub bind_type: BindType,
    bind_name: String,
    /// Whether whoever wrote it may give every policy.
    pub trusted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum BindType {
    Service,
    Node,
    Role,
    Policy,
}

impl BindingRule {
    /// Whether the rule is about such a login.
    pub fn selects(&self, said: &JwtSaid) -> bool {
        if self.selector.is_empty() {
            return true;
        }
        let facts = json!({"value": said.values, "list": said.lists});
        Filter::parse(&self.selector, SELECTABLE).is_ok_and(|filter| filter.keeps(&facts))
    }

    /// The name that it binds to. A value that could mean something else than a name, or one that the login does not
    /// have, makes it none.
    pub fn name(&self, said: &JwtSaid) -> Result<String, String> {
        let name = interpolate(&self.bind_name, |variable| {
            said.values.get(variable).cloned()
        })?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        match !name.is_empty() && name.len() <= 128 && name.chars().all(fits) {
            true => Ok(name.to_ascii_lowercase()),
            false => Err("a value of the login cannot be part of a name".into()),
        }
    }
}

/// Fills in `${value.name}`.
fn interpolate(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("${") {
        let (variable, tail) = after
            .split_once('}')
            .ok_or("BindName: \"${\" without \"}\"")?;
        let name = variable.trim().strip_prefix("value.");
        let found = name.and_then(&value);
        out.push_str(before);
        out.push_str(&found.ok_or_else(|| format!("BindName: there is no {:?}", variable.trim()))?);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

fn key(id: &str) -> String {
    format!("{PREFIX}{id}")
}

/// The rules of a method.
pub(super) fn of_method(desk: &Desk, method: &str) -> Result<Vec<BindingRule>, Refused> {
    let all = desk.all::<BindingRule>(PREFIX)?.into_iter();
    let all = all.map(|rule| rule.value);
    Ok(all.filter(|rule| rule.auth_method == method).collect())
}

/// Takes away the rules of a method.
pub(super) async fn delete_of(
    desk: &Desk,
    attended: &Attended,
    method: &str,
) -> Result<(), Refused> {
    for rule in of_method(desk, method)? {
        desk.drop_record(attended, key(&rule.id)).await?;
    }
    Ok(())
}

fn show(rule: &Kept<BindingRule>) -> Value {
    let it = &rule.value;
    json!({
        "ID": it.id, "Description": it.description, "AuthMethod": it.auth_method, "Selector": it.selector,
        "BindType": it.bind_type, "BindName": it.bind_name,
        "CreateIndex": rule.indexes.0, "ModifyIndex": rule.indexes.1,
    })
}

async fn list(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let (attended, index) = desk.look_at(&call, List::Records(PREFIX)).await?;
    let mut all = end(attended, desk.all::<BindingRule>(PREFIX)).await?;
    if let Some(method) = call.query.filled("authmethod") {
        all.retain(|rule| rule.value.auth_method == method);
    }
    Ok(listed(&all.iter().map(show).collect::<Vec<_>>(), index))
}

async fn get(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let attended = desk.look().await?;
    let found = desk.kept::<BindingRule>(&key(call.params.get("id")));
    let found = end(attended, found)
        .await?
        .ok_or_else(|| absent("binding rule"))?;
    Ok(one(&show(&found)))
}

fn parse(call: &Call) -> Result<BindingRule, Refused> {
    let mut fields = Fields::parse(call.body())?;
    let invalid = |why: String| server_error(format!("Invalid Binding Rule: {why}"));
    let bind_type = match fields.text("BindType")?.as_str() {
        "service" => BindType::Service,
        "node" => BindType::Node,
        "role" => BindType::Role,
        "policy" => BindType::Policy,
        other => {
            return Err(invalid(format!(
                "BindType {other:?} is not supported by this version of mesh (service, node, role, policy)"
            )));
        }
    };
    let rule = BindingRule {
        id: fields.text("ID")?,
        description: fields.text("Description")?,
        auth_method: fields.text("AuthMethod")?,
        selector: fields.text("Selector")?,
        bind_type,
        bind_name: fields.text("BindName")?,
        trusted: false,
    };
    fields.unsupported(&["BindVars"])?;
    fields.ignore(&["CreateIndex", "ModifyIndex"]);
    fields.finish()?;
    if !rule.selector.is_empty() {
        Filter::parse(&rule.selector, SELECTABLE)
            .map_err(|why| invalid(format!("Selector: {why}")))?;
    }
    if rule.bind_name.is_empty() {
        return Err(invalid("BindName is missing".into()));
    }
    Ok(rule)
}

async fn create(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let mut rule = parse(&call)?;
    if !rule.id.is_empty() {
        return Err(bad_request(
            "Cannot specify the ID when creating a new binding rule",
        ));
    }
    rule.id = uuid::Uuid::new_v4().to_string();
    write(desk, rule, true).await
}

async fn update(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let mut rule = parse(&call)?;
    let id = call.params.get("id");
    if !rule.id.is_empty() && rule.id != id {
        return Err(bad_request(
            "BindingRule ID in URL and payload do not match",
        ));
    }
    rule.id = id.to_owned();
    write(desk, rule, false).await
}

async fn write(desk: Desk, mut rule: BindingRule, new: bool) -> Result<Reply, Refused> {
    let attended = desk.change().await?;
    let made: Result<Value, Refused> = async {
        let invalid = |why: String| server_error(format!("Invalid Binding Rule: {why}"));
        let known = desk.kept::<BindingRule>(&key(&rule.id))?;
        let cas = match known {
            None if !new => {
                return Err(server_error(format!(
                    "Cannot find binding rule {:?}",
                    rule.id
                )));
            }
            Some(known) if known.value.auth_method != rule.auth_method => {
                return Err(invalid("the AuthMethod cannot be changed".into()));
            }
            Some(known) => known.indexes.1,
            None => 0,
        };
        let method: Option<Kept<AuthMethod>> = desk.method(&rule.auth_method)?;
        let method = method.ok_or_else(|| {
            server_error(format!(
                "cannot find auth method with name {:?}",
                rule.auth_method
            ))
        })?;
        let values = method.value.values();
        let some = |name: &str| {
            values
                .iter()
                .any(|value| value == name)
                .then(|| "x".to_owned())
        };
        interpolate(&rule.bind_name, some).map_err(invalid)?;
        rule.trusted = attended.administration().may_give_all();
        desk.keep(&attended, key(&rule.id), &rule, Some(cas))
            .await?;
        let made = desk.kept(&key(&rule.id))?;
        Ok(show(&made.ok_or_else(|| absent("binding rule"))?))
    }
    .await;
    Ok(json_reply(StatusCode::OK, &end(attended, made).await?))
}

async fn delete(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let key = key(call.params.get("id"));
    let attended = desk.change().await?;
    let done: Result<(), Refused> = async {
        if desk.kept::<BindingRule>(&key)?.is_none() {
            return Err(cannot_delete("binding rule"));
        }
        desk.drop_record(&attended, key).await
    }
    .await;
    end(attended, done).await?;
    Ok(json_reply(StatusCode::OK, &true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(selector: &str, bind_name: &str) -> BindingRule {
        BindingRule {
            id: String::new(),
            description: String::new(),
            auth_method: String::new(),
            selector: selector.into(),
            bind_type: BindType::Service,
            bind_name: bind_name.into(),
            trusted: false,
        }
    }

    fn said(pairs: &[(&str, &str)]) -> JwtSaid {
        let values = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        JwtSaid {
            values: values.collect(),
            lists: [("groups".to_owned(), vec!["ops".to_owned()])].into(),
        }
    }

    #[test]
    fn names_are_filled_in() {
        let said = said(&[("app", "Web"), ("team", "a")]);
        assert_eq!(
            rule("", "${value.app}-${ value.team }").name(&said),
            Ok("web-a".into())
        );
        assert_eq!(rule("", "plain").name(&said), Ok("plain".into()));
    }

    #[test]
    fn a_value_cannot_be_more_than_a_part_of_a_name() {
        for value in [
            "*",
            "a\" {",
            "a/b",
            "../x",
            "a b",
            "${value.team}",
            "",
            "ä",
            "a\nb",
        ] {
            let said = said(&[("app", value)]);
            assert!(rule("", "${value.app}").name(&said).is_err(), "{value:?}");
        }
        let said = said(&[]);
        for name in ["${value.app}", "${app}", "${value.app", "${}"] {
            assert!(rule("", name).name(&said).is_err(), "{name:?}");
        }
    }

    #[test]
    fn selectors_look_at_values_and_lists() {
        let said = said(&[("app", "web")]);
        for selector in [
            "",
            "value.app == web",
            "ops in list.groups",
            "value.app matches `^w`",
        ] {
            assert!(rule(selector, "x").selects(&said), "{selector}");
        }
        for selector in ["value.app == db", "dev in list.groups", "value.none == web"] {
            assert!(!rule(selector, "x").selects(&said), "{selector}");
        }
    }
}
