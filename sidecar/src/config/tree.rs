//! Configuration before it means anything: a tree of values, each knowing where it was written.
//!
//! Files, environment and flags all become such trees and are laid over each other, so that every later
//! message can name the place a user has to change.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

use toml::de::{DeTable, DeValue};

/// Where a value was written: `file:line:column`, a variable's or a flag's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    name: Arc<str>,
    /// Line and column, from 1, when the name is a file's.
    position: Option<(usize, usize)>,
}

impl Place {
    /// A place known by name only.
    pub fn named(name: &str) -> Place {
        Place {
            name: name.into(),
            position: None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some((line, column)) => write!(f, "{}:{line}:{column}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it was written.
    pub place: Place,
    /// What is wrong and, where known, what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// A value and its place.
#[derive(Debug, Clone)]
pub struct Value {
    /// Where it was written.
    pub place: Place,
    /// What was written.
    pub kind: Kind,
}

/// What a value is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A string.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// `true` or `false`.
    Flag(bool),
    /// A list.
    List(Vec<Value>),
    /// A table.
    Table(Table),
    /// A value from the environment: text that may stand for any scalar.
    Loose(String),
    /// A type that no key of ours takes.
    Other(&'static str),
}

/// A table: each entry has the place of its key and the value.
#[derive(Debug, Clone, Default)]
pub struct Table(pub BTreeMap<String, (Place, Value)>);

impl Kind {
    /// What to call it in a message.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Text(_) | Kind::Loose(_) => "a string",
            Kind::Integer(_) => "a number",
            Kind::Flag(_) => "true or false",
            Kind::List(_) => "a list",
            Kind::Table(_) => "a table",
            Kind::Other(name) => name,
        }
    }
}

impl Table {
    /// Lays `other` over this table: tables merge, lists of tables are joined, everything else is replaced.
    pub fn merge(&mut self, other: Table) {
        for (key, (place, value)) in other.0 {
            let Some((_, own)) = self.0.get_mut(&key) else {
                self.0.insert(key, (place, value));
                continue;
            };
            match (&mut own.kind, value.kind) {
                (Kind::Table(own), Kind::Table(other)) => own.merge(other),
                (Kind::List(own), Kind::List(other)) if of_tables(own) && of_tables(&other) => {
                    own.extend(other);
                }
                (_, kind) => {
                    let value = Value {
                        place: value.place,
                        kind,
                    };
                    self.0.insert(key, (place, value));
                }
            }
        }
    }

    /// Sets `section.key`, replacing what files said.
    pub fn set(&mut self, section: &str, key: &str, place: &Place, kind: Kind) {
        let value = Value {
            place: place.clone(),
            kind,
        };
        let leaf = Table(BTreeMap::from([(key.to_owned(), (place.clone(), value))]));
        let section_value = Value {
            place: place.clone(),
            kind: Kind::Table(leaf),
        };
        self.merge(Table(BTreeMap::from([(
            section.to_owned(),
            (place.clone(), section_value),
        )])));
    }
}

fn of_tables(list: &[Value]) -> bool {
    !list.is_empty() && list.iter().all(|v| matches!(v.kind, Kind::Table(_)))
}

/// Parses one file's text. Syntax errors go to `problems`; what could be read is returned all the same.
pub fn parse(file: &Path, text: &str, problems: &mut Vec<Problem>) -> Table {
    let source = Source {
        file: file.display().to_string().into(),
        text,
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    problems.extend(errors.iter().map(|error| Problem {
        place: source.place(error.span().map_or(0, |span| span.start)),
        message: error.message().trim().replace('\n', ", "),
    }));
    source.table(table.get_ref())
}

struct Source<'a> {
    file: Arc<str>,
    text: &'a str,
}

impl Source<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = &self.text[..self.text.floor_char_boundary(offset)];
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before[start..].chars().count() + 1;
        Place {
            name: Arc::clone(&self.file),
            position: Some((line, column)),
        }
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let entries = table.iter().map(|(key, value)| {
            let place = self.place(key.span().start);
            let value = self.value(value.span().start, value.get_ref());
            (key.get_ref().to_string(), (place, value))
        });
        Table(entries.collect())
    }

    fn value(&self, offset: usize, value: &DeValue<'_>) -> Value {
        let kind = match value {
            DeValue::String(text) => Kind::Text(text.to_string()),
            DeValue::Integer(number) => {
                match i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()) {
                    Ok(number) => Kind::Integer(number),
                    Err(_) => Kind::Other("a number out of range"),
                }
            }
            DeValue::Boolean(flag) => Kind::Flag(*flag),
            DeValue::Array(items) => Kind::List(
                items
                    .iter()
                    .map(|item| self.value(item.span().start, item.get_ref()))
                    .collect(),
            ),
            DeValue::Table(table) => Kind::Table(self.table(table)),
            DeValue::Float(_) => Kind::Other("a fraction"),
            DeValue::Datetime(_) => Kind::Other("a date"),
        };
        Value {
            place: self.place(offset),
            kind,
        }
    }
}
