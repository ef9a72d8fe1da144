//! Password policies (`sys/policies/password/…`): what made-up passwords look like.
//!
//! A policy is a length and rules, each a set of characters and how many of them there are at least. A password gets
//! that many of each rule's, the rest from all sets, and is shuffled: it takes as long whatever the rules are, and rules that cannot
//! hold together are refused when they are written.

use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::Api;
use crate::auth::item_name;
use crate::db::{Batch, By};
use crate::hcl;
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::request::{Data, Operation};

const PREFIX: &str = "sys/password-policy/";
/// Longest document, in bytes.
const MAX_SOURCE: usize = 64 * 1024;
/// How long a password may be.
const LENGTHS: std::ops::RangeInclusive<u64> = 4..=100;

/// As it was written.
#[derive(Serialize, Deserialize)]
struct Stored {
    policy: String,
}

#[derive(Debug, PartialEq)]
struct PasswordPolicy {
    length: usize,
    rules: Vec<Rule>,
}

#[derive(Debug, PartialEq)]
struct Rule {
    /// Printable ASCII, each once.
    charset: Vec<u8>,
    least: usize,
}

impl Api {
    /// `path` is what is behind `sys/policies/password/`.
    pub(super) async fn password_policy(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        use Operation::{Delete, List, Read, Write};
        if path.is_empty() {
            return match operation {
                List => Answer::keys(self.db.list(PREFIX)?),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let (name, generate) = match path.strip_suffix("/generate") {
            Some(name) => (name, true),
            None => (path, false),
        };
        let name = item_name(name)?;
        let record = format!("{PREFIX}{name}");
        match operation {
            Read => {
                let found = self.db.get::<Stored>(&record)?;
                let (Stored { policy }, _) = found.ok_or(ApiError::NotFound)?;
                if !generate {
                    return Ok(Answer::data(json!({ "policy": policy })));
                }
                let policy = PasswordPolicy::parse(&policy).map_err(ApiError::Internal)?;
                let password = policy.password();
                Ok(Answer::data(json!({ "password": *password })))
            }
            Write if !generate => {
                let text = data.text("policy")?.filter(|text| !text.is_empty());
                let text = text.ok_or_else(|| ApiError::bad("missing policy"))?;
                let policy = super::sys::plain(&text);
                PasswordPolicy::parse(&policy)
                    .map_err(|why| ApiError::bad(format!("invalid password policy: {why}")))?;
                let mut batch = Batch::new(by, "password policy write");
                batch
                    .key(format!("password policy {name}"))
                    .put(&record, &Stored { policy })?;
                self.db.commit(batch).await?;
                Ok(Answer::none())
            }
            Delete if !generate => {
                let mut batch = Batch::new(by, "password policy delete");
                batch.key(format!("password policy {name}")).delete(&record);
                self.db.commit(batch).await?;
                Ok(Answer::none())
            }
            _ => Err(ApiError::UnsupportedOperation),
        }
    }
}

impl PasswordPolicy {
    /// HCL, or the same in JSON.
    fn parse(source: &str) -> Result<Self, String> {
        if source.len() > MAX_SOURCE {
            return Err("the document is longer than 64 KiB".into());
        }
        let (length, rules) = match source.trim_start().starts_with('{') {
            true => from_json(source)?,
            false => from_hcl(source)?,
        };
        let length = length.ok_or("it needs a length")?;
        if !LENGTHS.contains(&length) {
            return Err(format!(
                "passwords must be between {} and {} characters",
                LENGTHS.start(),
                LENGTHS.end()
            ));
        }
        let policy = Self {
            length: usize::try_from(length).unwrap_or(0),
            rules,
        };
        if policy.rules.is_empty() {
            return Err("it needs a rule \"charset\"".into());
        }
        let least = policy.rules.iter().map(|rule| rule.least);
        let least = least.fold(0, usize::saturating_add);
        if least > policy.length {
            return Err(format!(
                "its rules ask for {least} characters, its length is {}",
                policy.length
            ));
        }
        Ok(policy)
    }

    fn password(&self) -> Zeroizing<String> {
        let rng = &mut rand::rng();
        let mut all: Vec<u8> = self
            .rules
            .iter()
            .flat_map(|rule| rule.charset.clone())
            .collect();
        all.sort_unstable();
        all.dedup();
        let mut one_of = |charset: &[u8]| charset[rng.random_range(0..charset.len())];
        let mut made = Zeroizing::new(Vec::with_capacity(self.length));
        for rule in &self.rules {
            made.extend((0..rule.least).map(|_| one_of(&rule.charset)));
        }
        while made.len() < self.length {
            made.push(one_of(&all));
        }
        made.shuffle(rng);
        let mut password = Zeroizing::new(String::with_capacity(self.length));
        password.extend(made.iter().map(|byte| char::from(*byte)));
        password
    }
}

impl Rule {
    /// What is in a rule's block.
    fn of(kind: &str, fields: &Map<String, Value>) -> Result<Self, String> {
        if kind != "charset" {
            return Err(format!("unknown rule {kind:?}: there is \"charset\""));
        }
        let text = fields.get("charset").and_then(Value::as_str);
        let text = text.filter(|text| !text.is_empty());
        let text = text.ok_or("a rule needs a charset, a text")?;
        if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Err("a charset has characters that are not printable ASCII".into());
        }
        let mut charset = text.as_bytes().to_vec();
        charset.sort_unstable();
        charset.dedup();
        let least = match fields.get("min-chars").or_else(|| fields.get("min_chars")) {
            None => 0,
            Some(least) => least
                .as_u64()
                .and_then(|least| usize::try_from(least).ok())
                .ok_or("min-chars is a whole number")?,
        };
        Ok(Self { charset, least })
    }
}

fn from_hcl(source: &str) -> Result<(Option<u64>, Vec<Rule>), String> {
    let items = hcl::items(source)
        .map_err(|wrong| format!("At {}: not valid HCL: {}", wrong.at, wrong.reason))?;
    let (mut length, mut rules) = (None, Vec::new());
    for item in items {
        match (item.key.as_str(), &item.labels[..], &item.value) {
            ("length", [], value) => length = value.as_u64(),
            ("rule", [kind], Value::Object(fields)) => rules.push(Rule::of(kind, fields)?),
            ("rule", ..) => {
                return Err("a rule needs exactly one name: rule \"charset\" { … }".into());
            }
            (other, ..) => return Err(format!("unknown field {other:?}")),
        }
    }
    Ok((length, rules))
}

fn from_json(source: &str) -> Result<(Option<u64>, Vec<Rule>), String> {
    let document = hcl::parse_json(source)?;
    let mut rules = Vec::new();
    for (name, value) in &document {
        match name.as_str() {
            "length" => {}
            "rule" => {
                for (kind, fields) in list_of(value).filter_map(Value::as_object).flatten() {
                    for fields in list_of(fields).filter_map(Value::as_object) {
                        rules.push(Rule::of(kind, fields)?);
                    }
                }
            }
            other => return Err(format!("unknown field {other:?}")),
        }
    }
    Ok((document.get("length").and_then(Value::as_u64), rules))
}

/// One, or as many as there are in a list.
fn list_of(value: &Value) -> impl Iterator<Item = &Value> {
    match value {
        Value::Array(many) => many.as_slice(),
        one => std::slice::from_ref(one),
    }
    .iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
length = 20
rule "charset" {
  charset = "abcdefghij"
  min-chars = 1
}
rule "charset" {
  charset = "0123456789"
  min-chars = 18
}
rule "charset" { charset = "!!-" }
"#;

    #[test]
    fn a_password_is_as_its_policy_says() {
        let policy = PasswordPolicy::parse(POLICY).unwrap();
        assert_eq!(policy.rules[2].charset, b"!-");
        let mut first = Vec::new();
        for _ in 0..200 {
            let password = policy.password();
            assert_eq!(password.len(), 20);
            let count = |of: fn(&char) -> bool| password.chars().filter(of).count();
            assert!(count(char::is_ascii_digit) >= 18, "{}", *password);
            assert!(count(char::is_ascii_lowercase) >= 1, "{}", *password);
            assert!(
                password
                    .chars()
                    .all(|c| "abcdefghij0123456789!-".contains(c))
            );
            first.push(password.chars().next());
        }
        first.sort_unstable();
        first.dedup();
        assert!(first.len() > 8, "they are shuffled");
        let json = r#"{"length": 20, "rule": [
            {"charset": [{"charset": "abcdefghij", "min-chars": 1}, {"charset": "0123456789", "min-chars": 18}]},
            {"charset": {"charset": "-!"}}]}"#;
        assert_eq!(PasswordPolicy::parse(json).unwrap(), policy);
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for (source, why) in [
            ("", "length"),
            ("length = 20", "rule"),
            (
                "length = 3\nrule \"charset\" { charset = \"a\" }",
                "between 4 and 100",
            ),
            (
                "length = 101\nrule \"charset\" { charset = \"a\" }",
                "between 4 and 100",
            ),
            (
                "length = 4\nrule \"charset\" { charset = \"\" }",
                "needs a charset",
            ),
            (
                "length = 4\nrule \"charset\" { charset = \"é\" }",
                "printable",
            ),
            (
                "length = 4\nrule \"charset\" {\n charset = \"a\"\n min-chars = 1.5\n}",
                "whole",
            ),
            (
                "length = 4\nrule \"charset\" {\n charset = \"a\"\n min-chars = 3\n}\nrule \"charset\" {\n charset = \"b\"\n min-chars = 2\n}",
                "ask for 5",
            ),
            (
                "length = 4\nrule \"words\" { charset = \"a\" }",
                "unknown rule",
            ),
            ("length = 4\nother = 1", "unknown field"),
            ("length = = 4", "At 1:10"),
            ("{\"length\": 4", "At 1:12"),
            ("[[[[[[[[[[[[[[[[", "At 1:1"),
        ] {
            let refused = PasswordPolicy::parse(source).unwrap_err();
            assert!(refused.contains(why), "{source:?}: {refused}");
        }
    }
}
