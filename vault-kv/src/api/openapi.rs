//! What the interface says of itself: `sys/internal/specs/openapi` and `?help=1`, from the table of routes.

use serde_json::{Map, Value, json};

use super::Api;
use super::caller::Authenticated;
use super::routes::{Route, TOKEN_FIELDS, of};
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::mount::Mount;
use crate::request::Request;

/// A field's name and its type as OpenAPI and Vault's help have it.
fn fields(route: &Route) -> Vec<(&'static str, &'static str, &'static str)> {
    let all = route.fields.split_whitespace();
    let all = all.flat_map(|field| match field {
        "+" => TOKEN_FIELDS.split_whitespace().collect(),
        one => vec![one],
    });
    all.filter_map(|field| {
        let (name, kind) = field.split_once(':')?;
        let (open, plain) = match kind {
            "i" => ("integer", "int"),
            "b" => ("boolean", "bool"),
            "a" => ("array", "slice"),
            "o" => ("object", "map"),
            "d" => ("string", "duration (sec)"),
            _ => ("string", "string"),
        };
        Some((name, open, plain))
    })
    .collect()
}

/// Whether a path is what a route stands for.
fn fits(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), parts.next()) {
            (Some("{path}"), Some(_)) if patterns.next().is_none() => return true,
            (None, None) => return true,
            (Some(pattern), Some(part)) if pattern == part => {}
            (Some(pattern), Some(part)) if pattern.starts_with('{') && !part.is_empty() => {}
            _ => return false,
        }
    }
}

/// `{a}` and `{b}` of `x/{a}/{b}`.
fn places(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn described(mount: &Mount, route: &Route) -> Value {
    let parameters: Vec<_> = places(route.path)
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    let mut out = Map::new();
    out.insert("description".into(), route.about.into());
    if !parameters.is_empty() {
        out.insert("parameters".into(), parameters.into());
    }
    let tag = match mount.is_auth() {
        true => "auth",
        false if mount.path == "sys/" => "system",
        false if mount.path == "identity/" => "identity",
        false => "secrets",
    };
    for (letter, method, verb) in [
        ('r', "get", "read"),
        ('w', "post", "write"),
        ('p', "patch", "patch"),
        ('d', "delete", "delete"),
        ('l', "get", "list"),
    ] {
        if !route.operations.contains(letter) {
            continue;
        }
        let words = format!("{}{}", mount.path, route.path).replace(['/', '{', '}'], "-");
        let words: Vec<_> = words.split('-').filter(|word| !word.is_empty()).collect();
        let mut operation = json!({
            "operationId": format!("{}-{verb}", words.join("-")), "summary": route.about, "tags": [tag],
            "responses": {"200": {"description": "OK"}},
        });
        if letter == 'l' {
            operation["parameters"] = json!([{"name": "list", "in": "query", "required": true, "schema": {"type": "string", "enum": ["true"]}}]);
        }
        if matches!(letter, 'w' | 'p') && !route.fields.is_empty() {
            let properties: Map<_, _> = fields(route)
                .into_iter()
                .map(|(name, kind, _)| {
                    let mut property = json!({ "type": kind });
                    if kind == "array" {
                        property["items"] = json!({"type": "string"});
                    }
                    (name.to_owned(), property)
                })
                .collect();
            operation["requestBody"] = json!({
                "content": {"application/json": {"schema": {"type": "object", "properties": properties}}},
            });
        }
        out.entry(method).or_insert(operation);
    }
    Value::Object(out)
}

impl Api {
    /// The routes of all mounts that the caller may use.
    pub(super) fn openapi(&self, caller: &Authenticated) -> Answer {
        let mut paths = Map::new();
        for served in self.mounts.all() {
            let mount = &served.mount;
            if !caller.acl().touches(&mount.path) {
                continue;
            }
            for route in of(mount.kind) {
                paths.insert(
                    format!("/{}{}", mount.path, route.path),
                    described(mount, route),
                );
            }
        }
        Answer::bare(
            200,
            json!({
                "openapi": "3.0.2",
                "info": {
                    "title": "Mesh Vault API", "description": "The Vault-compatible HTTP API of Mesh. All paths are below /v1.",
                    "version": env!("CARGO_PKG_VERSION"), "license": {"name": env!("CARGO_PKG_LICENSE")},
                },
                "servers": [{"url": "/v1"}], "paths": paths,
            }),
        )
    }

    /// What a path is for. Of a mount that the caller has nothing to do with not even that it is there.
    pub(super) fn help(
        &self,
        caller: &Authenticated,
        request: &Request,
    ) -> Result<Answer, ApiError> {
        let path = request.path.as_str();
        let whole = format!("{}/", path.trim_end_matches('/'));
        let found = self.mounts.at(path).or_else(|| self.mounts.find(path));
        let found = found.filter(|served| caller.acl().touches(&served.mount.path));
        let served = found.ok_or(ApiError::Denied)?;
        let mount = &served.mount;
        let routes = of(mount.kind);
        if whole == mount.path {
            let list: String = routes
                .iter()
                .map(|route| format!("    ^{}$\n        {}\n\n", route.path, route.about))
                .collect();
            let text = format!(
                "## DESCRIPTION\n\n{}\n\n## PATHS\n\nThe following paths are supported by this backend. To view help for\nany of the paths below, use the help command with any route matching\nthe path pattern.\n\n{list}",
                mount.description
            );
            return Ok(Answer::bare(200, json!({"help": text, "see_also": null})));
        }
        let below = &path[mount.path.len()..];
        let route = routes.iter().find(|route| fits(route.path, below));
        let route = route.ok_or(ApiError::UnsupportedPath)?;
        let parameters: String = fields(route)
            .iter()
            .map(|(name, _, kind)| format!("    {name} ({kind})\n\n"))
            .collect();
        let parameters = match parameters.is_empty() {
            true => String::new(),
            false => format!("## PARAMETERS\n\n{parameters}"),
        };
        let text = format!(
            "Request:        {below}\nMatching Route: ^{}$\n\n{}\n\n{parameters}## DESCRIPTION\n\n{}",
            route.path, route.about, route.about
        );
        let openapi =
            json!({"paths": {format!("/{}{}", mount.path, route.path): described(mount, route)}});
        Ok(Answer::bare(
            200,
            json!({"help": text, "see_also": null, "openapi": openapi}),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_by_its_pattern() {
        for (pattern, path) in [
            ("config", "config"),
            ("role/{name}", "role/web"),
            ("data/{path}", "data/a/b/c"),
            ("role/{name}/role-id", "role/web/role-id"),
            ("{path}", "a/b"),
        ] {
            assert!(fits(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("role/{name}", "role/"),
            ("role/{name}", "role/a/b"),
            ("role/{name}", "roles/a"),
            ("config", "config/x"),
        ] {
            assert!(!fits(pattern, path), "{pattern} {path}");
        }
    }
}
