//! What each key of a Consul configuration may hold, and what becomes of it here; checks a document against that.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use super::{
    definitions::{Raw, What},
    keys,
};
use crate::{
    config::{
        reader::nearest,
        tree::{Kind, Place, Problem, Table, Value},
    },
    consul::decode::go_duration,
};

/// One key.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub shape: Shape,
    pub becomes: Becomes,
}

/// What a key holds.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    Text,
    Flag,
    Integer,
    Number,
    /// As Go writes them.
    Duration,
    /// A list of strings.
    Texts,
    /// A table of strings.
    Pairs,
    /// A table of lists of strings.
    Lists,
    /// One table.
    Table(&'static [Key]),
    /// Tables, or one alone.
    Tables(&'static [Key]),
    /// Looked at elsewhere, or by nobody.
    Free,
}

/// What a key does here.
#[derive(Debug, Clone, Copy)]
pub enum Becomes {
    /// It is taken over.
    Taken,
    /// It means nothing here and is named once.
    Nothing,
    /// Leaving it out would be dangerous: the reason.
    Refused(&'static str),
}

/// What documents said that is not for sections of ours.
#[derive(Debug, Default)]
pub struct Found {
    pub definitions: Vec<Raw>,
    pub meaningless: BTreeSet<String>,
}

impl Found {
    /// Checks the document of `file` and lays what it says over `all`.
    pub fn document(
        &mut self,
        file: &str,
        fields: Map<String, Json>,
        all: &mut Table,
        problems: &mut Vec<Problem>,
    ) {
        let mut check = Check {
            file,
            meaningless: &mut self.meaningless,
            problems,
        };
        let mut known = check.table("", fields, keys::TOP);
        for (key, what) in [
            ("service", What::Service),
            ("services", What::Service),
            ("check", What::Check),
            ("checks", What::Check),
        ] {
            let listed = known.remove(key).map(listed).unwrap_or_default();
            let one = listed.len() == 1 && matches!(key, "service" | "check");
            for (at, body) in listed.into_iter().enumerate() {
                let Json::Object(body) = body else { continue };
                let path = match one {
                    true => key.to_owned(),
                    false => format!("{key}[{at}]"),
                };
                let place = check.place(&path);
                self.definitions.push(Raw { what, place, body });
            }
        }
        join(all, placed(file, "", known));
    }
}

struct Check<'c> {
    file: &'c str,
    meaningless: &'c mut BTreeSet<String>,
    problems: &'c mut Vec<Problem>,
}

impl Check<'_> {
    fn place(&self, path: &str) -> Place {
        place(self.file, path)
    }

    fn report(&mut self, path: &str, message: String) {
        let place = self.place(path);
        self.problems.push(Problem { place, message });
    }

    /// What is taken of a table, under Consul's own names.
    fn table(
        &mut self,
        path: &str,
        fields: Map<String, Json>,
        keys: &'static [Key],
    ) -> Map<String, Json> {
        let mut taken = Map::new();
        let mut seen = BTreeSet::new();
        for (given, value) in fields {
            let Some(key) = keys.iter().find(|key| same(key.name, &given)) else {
                let names: Vec<_> = keys.iter().map(|key| key.name).collect();
                let hint = nearest(&given, &names)
                    .map_or(String::new(), |known| format!("; did you mean `{known}`?"));
                self.report(&under(path, &given), format!("unknown key{hint}"));
                continue;
            };
            let path = under(path, key.name);
            if !seen.insert(key.name) {
                self.report(&path, "is given twice".to_owned());
            }
            if value.is_null() {
                continue;
            }
            let asks = !matches!(&value, Json::Bool(false))
                && value.as_str() != Some("")
                && value.as_array().is_none_or(|items| !items.is_empty())
                && value.as_object().is_none_or(|fields| !fields.is_empty());
            match key.becomes {
                Becomes::Taken => {
                    if let Some(value) = self.value(&path, value, key.shape) {
                        taken.insert(key.name.to_owned(), value);
                    }
                }
                Becomes::Nothing => {
                    // What is inside is named with it.
                    let mut inner = Check {
                        file: self.file,
                        meaningless: &mut BTreeSet::new(),
                        problems: self.problems,
                    };
                    inner.value(&path, value, key.shape);
                    self.meaningless.insert(unnumbered(&path));
                }
                Becomes::Refused(why) if asks => self.report(&path, format!("is refused: {why}")),
                Becomes::Refused(_) => {}
            }
        }
        taken
    }

    fn value(&mut self, path: &str, value: Json, shape: Shape) -> Option<Json> {
        let fits = match (shape, &value) {
            (Shape::Free, _)
            | (Shape::Text, Json::String(_))
            | (Shape::Flag, Json::Bool(_))
            | (Shape::Number, Json::Number(_)) => true,
            (Shape::Integer, Json::Number(number)) => number.is_i64(),
            (Shape::Duration, Json::String(text)) => go_duration(text).is_ok(),
            (Shape::Texts, Json::Array(items)) => items.iter().all(Json::is_string),
            (Shape::Pairs, Json::Object(fields)) => fields.values().all(Json::is_string),
            (Shape::Lists, Json::Object(fields)) => fields.values().all(is_texts),
            (Shape::Table(_) | Shape::Tables(_), Json::Object(_) | Json::Array(_)) => true,
            _ => false,
        };
        if !fits {
            let message = format!("must be {}, this is {}", wanted(shape), named(&value));
            self.report(path, message);
            return None;
        }
        match shape {
            Shape::Table(keys) => {
                let mut tables = listed(value);
                match (tables.pop(), tables.is_empty()) {
                    (Some(Json::Object(fields)), true) => {
                        Some(Json::Object(self.table(path, fields, keys)))
                    }
                    (None, _) => None,
                    (Some(_), _) => {
                        self.report(path, "must be one table".to_owned());
                        None
                    }
                }
            }
            Shape::Tables(keys) => {
                let alone = value.is_object();
                let mut taken = Vec::new();
                for (at, item) in listed(value).into_iter().enumerate() {
                    let path = match alone {
                        true => path.to_owned(),
                        false => format!("{path}[{at}]"),
                    };
                    match item {
                        Json::Object(fields) => {
                            taken.push(Json::Object(self.table(&path, fields, keys)));
                        }
                        other => {
                            let message = format!("must be a table, this is {}", named(&other));
                            self.report(&path, message);
                        }
                    }
                }
                Some(Json::Array(taken))
            }
            _ => Some(value),
        }
    }
}

fn is_texts(value: &Json) -> bool {
    let items = value.as_array();
    items.is_some_and(|items| items.iter().all(Json::is_string))
}

fn listed(value: Json) -> Vec<Json> {
    match value {
        Json::Array(items) => items,
        one => vec![one],
    }
}

/// Consul takes keys in any case, and most with or without underscores.
fn same(known: &str, given: &str) -> bool {
    let plain = |name: &str| name.replace('_', "").to_ascii_lowercase();
    known == given || plain(known) == plain(given)
}

fn under(path: &str, key: &str) -> String {
    // A key of somebody's own may be anything.
    let key: String = key.chars().filter(|c| !c.is_control()).take(64).collect();
    match path {
        "" => key,
        path => format!("{path}.{key}"),
    }
}

fn place(file: &str, path: &str) -> Place {
    Place::named(&format!("{file}: {path}"))
}

/// `services[3].token` as `services.token`.
fn unnumbered(path: &str) -> String {
    let mut inside = false;
    let keeps = |c: &char| {
        inside = (inside || *c == '[') && *c != ']';
        !inside && *c != ']'
    };
    path.chars().filter(keeps).collect()
}

fn wanted(shape: Shape) -> &'static str {
    match shape {
        Shape::Text => "a string",
        Shape::Flag => "true or false",
        Shape::Integer => "a whole number",
        Shape::Number => "a number",
        Shape::Duration => "a duration such as \"10s\"",
        Shape::Texts => "a list of strings",
        Shape::Pairs => "a table of strings",
        Shape::Lists => "a table of lists of strings",
        Shape::Table(_) => "a table",
        Shape::Tables(_) => "a list of tables",
        Shape::Free => "anything",
    }
}

/// What a value is; never the value.
fn named(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "true or false",
        Json::Number(number) if number.is_i64() => "a number",
        Json::Number(_) => "a fraction, or out of range",
        Json::String(_) => "another string",
        Json::Array(_) => "a list",
        Json::Object(_) => "a table",
    }
}

/// The same as a tree whose values know where they were written.
fn placed(file: &str, path: &str, fields: Map<String, Json>) -> Table {
    let entries = fields.into_iter().map(|(key, value)| {
        let path = under(path, &key);
        let value = placed_value(file, &path, value);
        (key, (value.place.clone(), value))
    });
    Table(entries.collect())
}

fn placed_value(file: &str, path: &str, value: Json) -> Value {
    let kind = match value {
        Json::String(text) => Kind::Text(text),
        Json::Bool(flag) => Kind::Flag(flag),
        Json::Number(number) => number
            .as_i64()
            .map_or(Kind::Other("a fraction"), Kind::Integer),
        Json::Array(items) => Kind::List(
            items
                .into_iter()
                .enumerate()
                .map(|(at, item)| placed_value(file, &format!("{path}[{at}]"), item))
                .collect(),
        ),
        Json::Object(fields) => Kind::Table(placed(file, path, fields)),
        Json::Null => Kind::Other("null"),
    };
    Value {
        place: place(file, path),
        kind,
    }
}

/// Lays `later` over `all` as Consul does: tables merge, lists join, of everything else the later one wins.
fn join(all: &mut Table, later: Table) {
    for (key, (at, value)) in later.0 {
        match (
            all.0.get_mut(&key).map(|(_, own)| &mut own.kind),
            value.kind,
        ) {
            (Some(Kind::Table(own)), Kind::Table(later)) => join(own, later),
            (Some(Kind::List(own)), Kind::List(later)) => own.extend(later),
            (_, kind) => {
                let place = value.place;
                all.0.insert(key, (at, Value { place, kind }));
            }
        }
    }
}
