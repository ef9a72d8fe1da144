//! `filter=`: the expressions of Consul (go-bexpr) over answers as they would be sent.
//!
//! `Selector == value`, `!=`, `value in Selector`, `value not in Selector`, `Selector contains value`, `Selector not
//! contains value`, `Selector is empty`, `Selector is not empty`, `Selector matches pattern`, `Selector not matches
//! pattern`, joined by `and`, `or`, `not` and parentheses. A selector is a path of fields in the case they have
//! (`Meta.team`, `Meta["team"]`). Patterns are those of the `regex` crate, which takes a time that is linear in the text.

use regex::{Regex, RegexBuilder};
use serde::Serialize;
use serde_json::Value;
use vault_kv::hcl::At;

use super::{Refused, server_error};
use crate::http::Call;

/// How deep parentheses and `not` may go.
const DEPTH_MAX: usize = 32;
/// Longest expression, in bytes.
const LENGTH_MAX: usize = 4096;

/// How large a compiled pattern may be, in bytes.
const PATTERN_MAX: usize = 1 << 18;

/// Fields of a node.
pub const NODE: &[&str] = &[
    "ID",
    "Node",
    "Address",
    "Datacenter",
    "TaggedAddresses",
    "Meta",
];
/// Fields of an entry of `/v1/catalog/service`.
pub const CATALOG_ENTRY: &[&str] = &[
    "ID",
    "Node",
    "Address",
    "Datacenter",
    "TaggedAddresses",
    "NodeMeta",
    "ServiceKind",
    "ServiceID",
    "ServiceName",
    "ServiceTags",
    "ServiceAddress",
    "ServiceTaggedAddresses",
    "ServiceWeights",
    "ServiceMeta",
    "ServicePort",
    "ServicePorts",
    "ServiceEnableTagOverride",
    "ServiceProxy",
    "ServiceConnect",
];
/// Fields of an instance.
pub const SERVICE: &[&str] = &[
    "Kind",
    "ID",
    "Service",
    "Tags",
    "Address",
    "TaggedAddresses",
    "Meta",
    "Port",
    "Ports",
    "Weights",
    "EnableTagOverride",
    "Proxy",
    "Connect",
];
/// Fields of an entry of `/v1/health/service`.
pub const HEALTH_ENTRY: &[&str] = &["Node", "Service", "Checks"];
/// Fields of a check.
pub const CHECK: &[&str] = &[
    "Node",
    "CheckID",
    "Name",
    "Status",
    "Notes",
    "Output",
    "ServiceID",
    "ServiceName",
    "ServiceTags",
    "Type",
    "Interval",
    "Timeout",
    "ExposedPort",
    "Definition",
];

/// Fields of a member.
pub const MEMBER: &[&str] = &[
    "Name",
    "Addr",
    "Port",
    "Tags",
    "Status",
    "ProtocolMin",
    "ProtocolMax",
    "ProtocolCur",
    "DelegateMin",
    "DelegateMax",
    "DelegateCur",
];

/// A parsed expression; `None` lets everything pass.
pub struct Filter(Option<Expression>);

#[derive(Debug, PartialEq)]
enum Expression {
    Or(Box<Expression>, Box<Expression>),
    And(Box<Expression>, Box<Expression>),
    Not(Box<Expression>),
    /// What is there passes the test, or, negated, does not.
    Compare(Vec<String>, bool, Test),
}

#[derive(Debug, PartialEq)]
enum Test {
    Equal(String),
    Contains(String),
    Empty,
    Matches(Pattern),
}

#[derive(Debug)]
struct Pattern(Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Filter {
    /// The request's filter, whose selectors must begin with one of `fields`. Without one everything passes.
    pub fn of(call: &Call, fields: &[&str]) -> Result<Filter, Refused> {
        match call.query.filled("filter") {
            Some(text) => Filter::parse(text, fields).map_err(|reason| {
                server_error(format!(
                    "Failed to create boolean expression evaluator: {reason}"
                ))
            }),
            None => Ok(Filter(None)),
        }
    }

    /// An expression whose selectors must begin with one of `fields`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, fields: &[&str]) -> Result<Filter, String> {
        if text.len() > LENGTH_MAX {
            return Err(format!("longer than {LENGTH_MAX} bytes"));
        }
        let mut parser = Parser {
            text,
            tokens: tokens(text)?,
            at: 0,
            fields,
        };
        let expression = parser.or(0)?;
        match parser.next() {
            None => Ok(Filter(Some(expression))),
            Some(token) => {
                let reason = format!("{token} is not expected there");
                Err(parser.wrong(parser.at - 1, &reason))
            }
        }
    }

    /// What of a list passes; without a filter all of it, without a look.
    pub fn keep<T: Serialize>(&self, list: Vec<T>) -> Vec<T> {
        match self.0 {
            None => list,
            Some(_) => list.into_iter().filter(|it| self.passes(it)).collect(),
        }
    }

    /// Whether an entry passes as it would be sent.
    pub fn passes<T: Serialize>(&self, entry: &T) -> bool {
        self.0.is_none() || serde_json::to_value(entry).is_ok_and(|entry| self.keeps(&entry))
    }

    /// Whether an entry passes.
    pub fn keeps(&self, entry: &Value) -> bool {
        let expression = self.0.as_ref();
        expression.is_none_or(|expression| expression.holds(entry))
    }
}

impl Expression {
    fn holds(&self, entry: &Value) -> bool {
        match self {
            Expression::Or(a, b) => a.holds(entry) || b.holds(entry),
            Expression::And(a, b) => a.holds(entry) && b.holds(entry),
            Expression::Not(inner) => !inner.holds(entry),
            Expression::Compare(path, negated, test) => {
                somewhere(Some(entry), path, &|value| test.holds(value) != *negated)
            }
        }
    }
}

impl Test {
    fn holds(&self, value: Option<&Value>) -> bool {
        match (self, value) {
            (Test::Equal(wanted), Some(value)) => is(value, wanted),
            (Test::Contains(wanted), Some(Value::Array(items))) => {
                items.iter().any(|item| is(item, wanted))
            }
            (Test::Contains(wanted), Some(Value::Object(fields))) => fields.contains_key(wanted),
            (Test::Contains(wanted), Some(Value::String(text))) => text.contains(wanted.as_str()),
            (Test::Empty, Some(Value::Array(items))) => items.is_empty(),
            (Test::Empty, Some(Value::Object(fields))) => fields.is_empty(),
            (Test::Empty, Some(Value::String(text))) => text.is_empty(),
            (Test::Empty, Some(Value::Null) | None) => true,
            (Test::Matches(pattern), Some(Value::String(text))) => pattern.0.is_match(text),
            _ => false,
        }
    }
}

/// Whether what the path leads to holds. Through a list it leads to each of its items, one of which must: `Checks.Status
/// != passing` finds who has a check that does not pass.
fn somewhere(
    value: Option<&Value>,
    path: &[String],
    holds: &impl Fn(Option<&Value>) -> bool,
) -> bool {
    match (path, value) {
        ([], _) => holds(value),
        (_, Some(Value::Array(items))) => {
            items.iter().any(|item| somewhere(Some(item), path, holds))
        }
        ([field, rest @ ..], _) => somewhere(value.and_then(|value| value.get(field)), rest, holds),
    }
}

fn is(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(text) => text == wanted,
        Value::Bool(flag) => wanted.parse() == Ok(*flag),
        Value::Number(number) => wanted
            .parse::<f64>()
            .is_ok_and(|wanted| number.as_f64() == Some(wanted)),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// A bare word: keyword, selector or value.
    Word(String),
    /// In quotes: a value, or the key in `Meta["key"]`.
    Quoted(String),
    Mark(&'static str),
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Word(text) | Token::Quoted(text) => write!(f, "{text:?}"),
            Token::Mark(mark) => write!(f, "{mark:?}"),
        }
    }
}

/// What is wrong, and where: line and column from 1, bytes before it.
fn wrong_at(text: &str, offset: usize, reason: &str) -> String {
    format!("{} ({offset}): {reason}", At::offset(text, offset))
}

/// The tokens, each with how many bytes are before it.
fn tokens(text: &str) -> Result<Vec<(usize, Token)>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let offset = text.len() - rest.len();
        let marks = ["==", "!=", "(", ")", "[", "]"];
        if let Some(mark) = marks.into_iter().find(|mark| rest.starts_with(mark)) {
            tokens.push((offset, Token::Mark(mark)));
            rest = &rest[mark.len()..];
        } else if first == '"' || first == '`' {
            let (value, length) =
                quoted(rest, first).map_err(|reason| wrong_at(text, offset, reason))?;
            tokens.push((offset, Token::Quoted(value)));
            rest = &rest[length..];
        } else {
            let fits = |c: char| c.is_alphanumeric() || "_-./:".contains(c);
            let end = rest.find(|c| !fits(c)).unwrap_or(rest.len());
            if end == 0 {
                let reason = format!("{first:?} is not expected there");
                return Err(wrong_at(text, offset, &reason));
            }
            tokens.push((offset, Token::Word(rest[..end].to_owned())));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    Ok(tokens)
}

/// The value in quotes that `text` begins with, and how long it is with them.
fn quoted(text: &str, quote: char) -> Result<(String, usize), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if quote == '"' => {
                let (_, escaped) = chars.next().ok_or("a quote is not closed")?;
                value.push(escaped);
            }
            c if c == quote => return Ok((value, at + 1)),
            c => value.push(c),
        }
    }
    Err("a quote is not closed")
}

struct Parser<'f> {
    text: &'f str,
    tokens: Vec<(usize, Token)>,
    at: usize,
    fields: &'f [&'f str],
}

impl Parser<'_> {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).map(|(_, token)| token.clone());
        self.at += 1;
        token
    }

    /// What is wrong with a token, or with the end.
    fn wrong(&self, at: usize, reason: &str) -> String {
        let offset = self
            .tokens
            .get(at)
            .map_or(self.text.len(), |(offset, _)| *offset);
        wrong_at(self.text, offset, reason)
    }

    /// Takes a keyword or mark if it is next.
    fn takes(&mut self, wanted: &str) -> bool {
        let found = match self.tokens.get(self.at) {
            Some((_, Token::Word(word))) => word == wanted,
            Some((_, Token::Mark(mark))) => *mark == wanted,
            Some((_, Token::Quoted(_))) | None => false,
        };
        self.at += usize::from(found);
        found
    }

    fn or(&mut self, depth: usize) -> Result<Expression, String> {
        let mut left = self.and(depth)?;
        while self.takes("or") {
            left = Expression::Or(Box::new(left), Box::new(self.and(depth)?));
        }
        Ok(left)
    }

    fn and(&mut self, depth: usize) -> Result<Expression, String> {
        let mut left = self.not(depth)?;
        while self.takes("and") {
            left = Expression::And(Box::new(left), Box::new(self.not(depth)?));
        }
        Ok(left)
    }

    fn not(&mut self, depth: usize) -> Result<Expression, String> {
        if depth > DEPTH_MAX {
            let reason = format!("deeper than {DEPTH_MAX} levels");
            return Err(self.wrong(self.at, &reason));
        }
        if self.takes("not") {
            return Ok(Expression::Not(Box::new(self.not(depth + 1)?)));
        }
        if self.takes("(") {
            let inner = self.or(depth + 1)?;
            return match self.takes(")") {
                true => Ok(inner),
                false => Err(self.wrong(self.at, "\")\" is missing")),
            };
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expression, String> {
        let begin = self.at;
        let first = self.next();
        if let Some(Token::Quoted(value) | Token::Word(value)) = first {
            let negated = self.takes("not");
            if self.takes("in") {
                let test = Test::Contains(value);
                return Ok(Expression::Compare(self.selector()?, negated, test));
            }
        }
        self.at = begin;
        let path = self.selector()?;
        for (mark, negated) in [("==", false), ("!=", true)] {
            if self.takes(mark) {
                let test = Test::Equal(self.value()?);
                return Ok(Expression::Compare(path, negated, test));
            }
        }
        if self.takes("is") {
            let negated = self.takes("not");
            return match self.takes("empty") {
                true => Ok(Expression::Compare(path, negated, Test::Empty)),
                false => Err(self.wrong(self.at, "\"empty\" is missing after \"is\"")),
            };
        }
        let negated = self.takes("not");
        if self.takes("contains") {
            let test = Test::Contains(self.value()?);
            return Ok(Expression::Compare(path, negated, test));
        }
        if self.takes("matches") {
            let pattern = RegexBuilder::new(&self.value()?)
                .size_limit(PATTERN_MAX)
                .build()
                .map_err(|error| format!("a pattern is not one: {error}"))?;
            let test = Test::Matches(Pattern(pattern));
            return Ok(Expression::Compare(path, negated, test));
        }
        let reason = match self.next() {
            Some(token) => format!("{token} is no operator"),
            None => "an operator is missing".to_owned(),
        };
        Err(self.wrong(self.at - 1, &reason))
    }

    fn selector(&mut self) -> Result<Vec<String>, String> {
        let Some(Token::Word(word)) = self.next() else {
            return Err(self.wrong(self.at - 1, "a selector is missing"));
        };
        let mut path: Vec<String> = word.split('.').map(str::to_owned).collect();
        if !self.fields.contains(&path[0].as_str()) {
            return Err(format!("Selector {word:?} is not valid"));
        }
        while self.takes("[") {
            let Some(Token::Quoted(key)) = self.next() else {
                let reason = "a key in quotes is missing after \"[\"";
                return Err(self.wrong(self.at - 1, reason));
            };
            path.push(key);
            if !self.takes("]") {
                return Err(self.wrong(self.at, "\"]\" is missing"));
            }
        }
        Ok(path)
    }

    fn value(&mut self) -> Result<String, String> {
        match self.next() {
            Some(Token::Word(value) | Token::Quoted(value)) => Ok(value),
            Some(Token::Mark(mark)) => {
                Err(self.wrong(self.at - 1, &format!("{mark:?} is no value")))
            }
            None => Err(self.wrong(self.at - 1, "a value is missing")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FIELDS: &[&str] = &["Service", "Tags", "Meta", "Port", "Flag", "Checks", "None"];

    fn keeps(text: &str) -> bool {
        let entry = json!({
            "Service": "web", "Tags": ["v1", "primary"], "Meta": {"team": "a b", "x.y": "z"},
            "Port": 8001, "Flag": true, "None": [],
            "Checks": [
                { "Status": "passing", "ServiceTags": ["v1"] },
                { "Status": "critical", "Output": "full", "ServiceTags": [] },
            ],
        });
        let filter = Filter::parse(text, FIELDS).unwrap_or_else(|e| panic!("{text}: {e}"));
        filter.keeps(&entry)
    }

    #[test]
    fn expressions_decide_as_in_consul() {
        for yes in [
            "Service == web",
            "Service == \"web\" and \"v1\" in Tags",
            "v1 in Tags",
            "Tags contains `primary`",
            "Service contains eb",
            "team in Meta",
            "Meta.team == \"a b\"",
            "Meta[\"x.y\"] == z",
            "Port == 8001 and Flag == true",
            "Service != db",
            "Meta.none != x",
            "Meta.none is empty and Tags is not empty",
            "not (Service == db or Port == 1)",
            "Service == db and Port == 1 or Flag == true",
            "v2 not in Tags and Tags not contains v3",
            "not not Service==web",
            "Service matches \"^w.b$\"",
            "Service not matches \"^x\" and Meta.team matches `a.b`",
            "Checks.Status == critical and Checks.Status != critical",
            "Checks.Output matches `^fu` and Checks.Output not matches `^fu`",
            "v1 in Checks.ServiceTags and v1 not in Checks.ServiceTags",
            "Checks.Status != unknown and not None.Status == passing",
        ] {
            assert!(keeps(yes), "{yes}");
        }
        for no in [
            "Service == WEB",
            "Service == db or Port == 8002",
            "Flag == true and (Service == db or Port == 1)",
            "Meta.none == x",
            "Tags is empty",
            "not Service == web",
            "Service matches \"^e\"",
            "Tags matches v1",
            "Checks.Status == warning",
            "not Checks.Status == passing",
            "None.Status != passing",
        ] {
            assert!(!keeps(no), "{no}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused_with_a_reason() {
        let deep = format!("{}Service == a", "not ".repeat(100));
        let long = format!("Service == {}", "a".repeat(5000));
        for (bad, reason) in [
            ("Service ==", "1:11 (10): a value is missing"),
            ("((", "1:3 (2): a selector is missing"),
            ("(Service == a", "1:14 (13): \")\" is missing"),
            ("Nope == web", "Selector \"Nope\" is not valid"),
            ("Service = web", "1:9 (8): '=' is not expected there"),
            ("Service == a b", "1:14 (13): \"b\" is not expected there"),
            ("Service == \"a", "1:12 (11): a quote is not closed"),
            (
                "Meta[team] == a",
                "1:6 (5): a key in quotes is missing after \"[\"",
            ),
            ("Tags is full", "1:9 (8): \"empty\" is missing after \"is\""),
            ("Service", "1:8 (7): an operator is missing"),
            ("Service matches", "1:16 (15): a value is missing"),
            (
                "Service == \"é\"\nor Tags is",
                "2:11 (26): \"empty\" is missing after \"is\"",
            ),
            (&deep, "1:133 (132): deeper than 32 levels"),
            (&long, "longer than 4096 bytes"),
        ] {
            assert_eq!(
                Filter::parse(bad, FIELDS).err().as_deref(),
                Some(reason),
                "{bad}"
            );
        }
    }
}
