//! What a token says, and whether a role takes that.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Role;
use super::keys::{Claims, refused};
use crate::glob;
use crate::http::ApiError;

/// Seconds that a clock may be off.
const SKEW: i64 = 60;
/// Seconds that a token without an end, or without a begin, counts.
const LEEWAY: i64 = 150;

/// A claim by name, or with `/` in front by JSON pointer (RFC 6901).
pub(super) fn claim<'a>(claims: &'a Claims, name: &str) -> Option<&'a Value> {
    let Some(pointer) = name.strip_prefix('/') else {
        return claims.get(name);
    };
    let mut parts = pointer.split('/');
    let unescaped = |part: &str| part.replace("~1", "/").replace("~0", "~");
    let mut value = claims.get(&unescaped(parts.next()?))?;
    for part in parts {
        value = match value {
            Value::Object(map) => map.get(&unescaped(part))?,
            Value::Array(items) => items.get(part.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(value)
}

/// A claim that is one text (or a number or truth value, as its text).
pub(super) fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// The texts of a claim that may be one or a list.
pub(super) fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().filter_map(plain).collect(),
        one => plain(one).into_iter().collect(),
    }
}

/// The groups that a token names, if the role asks for them.
///
/// # Errors
/// 400: there are none, or they are no texts.
pub(super) fn groups(claims: &Claims, role: &Role) -> Result<Option<Vec<String>>, ApiError> {
    let name = &role.groups_claim;
    if name.is_empty() {
        return Ok(None);
    }
    let value = claim(claims, name);
    let value = value.ok_or_else(|| refused(&format!("claim {name:?} not found in token")))?;
    let items = match value {
        Value::Array(items) => &items[..],
        one => std::slice::from_ref(one),
    };
    let text = |item: &Value| item.as_str().map(str::to_owned);
    let groups = items.iter().map(text).collect::<Option<Vec<_>>>();
    let groups = groups.ok_or_else(|| {
        refused(&format!(
            "claim {name:?} could not be converted to string list"
        ))
    })?;
    Ok(Some(
        groups
            .into_iter()
            .filter(|group| !group.is_empty())
            .collect(),
    ))
}

/// Whether the token counts now.
///
/// # Errors
/// 400 with what stands against it.
pub(super) fn check_times(claims: &Claims, role: &Role, now: i64) -> Result<(), ApiError> {
    let time = |name: &str| match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_f64()
            .filter(|at| *at >= 0.0 && *at < 9e15)
            .map(|at| Some(at as i64))
            .ok_or_else(|| refused(&format!("claim \"{name}\" is not a time"))),
    };
    let (issued, begins, ends) = (time("iat")?, time("nbf")?, time("exp")?);
    if issued.is_none() && begins.is_none() && ends.is_none() {
        return Err(refused(
            "no issue time, notbefore, or expiration time encoded in token",
        ));
    }
    let leeway = |wished: i64, usual: i64| match wished {
        0 => usual,
        some => some.max(0),
    };
    let skew = leeway(role.clock_skew_leeway, SKEW);
    let ends = ends.unwrap_or_else(|| {
        let latest = issued.unwrap_or(0).max(begins.unwrap_or(0));
        latest + leeway(role.expiration_leeway, LEEWAY)
    });
    let begins = begins
        .unwrap_or_else(|| issued.unwrap_or_else(|| ends - leeway(role.not_before_leeway, LEEWAY)));
    if now - skew >= ends {
        return Err(refused("token is expired"));
    }
    if now + skew < begins {
        return Err(refused("token not yet valid"));
    }
    Ok(())
}

/// Whether the token is from whom and for whom the role says.
///
/// # Errors
/// 400 with what stands against it.
pub(super) fn check_bound(claims: &Claims, role: &Role, issuer: &str) -> Result<(), ApiError> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    if !issuer.is_empty() && text("iss") != Some(issuer) {
        return Err(refused("invalid issuer (iss) claim"));
    }
    if !role.bound_subject.is_empty() && text("sub") != Some(&*role.bound_subject) {
        return Err(refused("invalid subject (sub) claim"));
    }
    let audiences = claims.get("aud").map(texts).unwrap_or_default();
    if role.bound_audiences.is_empty() && !audiences.is_empty() {
        // CVE-2024-5798: a token that is for somebody else must not be taken by a role that does not ask.
        return Err(refused(
            "audience claim found in JWT but no audiences bound to the role",
        ));
    }
    if !role.bound_audiences.is_empty()
        && !role.bound_audiences.iter().any(|a| audiences.contains(a))
    {
        return Err(refused(
            "invalid audience (aud) claim: audience claim does not match any bound audience",
        ));
    }
    for (name, wanted) in &role.bound_claims {
        let found = claim(claims, name).map(texts);
        let found = found.ok_or_else(|| refused(&format!("claim \"{name}\" is missing")))?;
        let wanted = texts(wanted);
        let fits = |wanted: &String| {
            found.iter().any(|found| match role.globs {
                true => glob::matches(wanted, found),
                false => wanted == found,
            })
        };
        if !wanted.iter().any(fits) {
            return Err(refused(&format!(
                "claim \"{name}\" does not match any associated bound claim values"
            )));
        }
    }
    Ok(())
}

/// What the token's metadata gets from its claims.
///
/// # Errors
/// 400: one is not a text.
pub(super) fn metadata(claims: &Claims, role: &Role) -> Result<BTreeMap<String, String>, ApiError> {
    let mut metadata = BTreeMap::new();
    for (name, key) in &role.claim_mappings {
        if let Some(value) = claim(claims, name) {
            let text = plain(value).ok_or_else(|| {
                refused(&format!("claim \"{name}\" is not a text, as metadata is"))
            })?;
            metadata.insert(key.clone(), text);
        }
    }
    Ok(metadata)
}
