//! Takes a [`Table`] apart key by key, collecting everything that is wrong with it.
//!
//! A key that nobody asked for is unknown; the message names the nearest one that was asked for.

use std::{
    cell::RefCell, collections::BTreeMap, fmt::Display, net::IpAddr, path::PathBuf, str::FromStr,
    time::Duration,
};

use nix::unistd::{Group, User};

use super::tree::{Kind, Place, Problem, Table, Value};

/// Reads one table. Every `take` method leaves the default when the key is absent, and reports and leaves
/// it when the value is wrong.
pub struct Reader<'p> {
    /// Dotted path of the table, for messages.
    path: String,
    table: Table,
    asked: Vec<&'static str>,
    problems: &'p RefCell<Vec<Problem>>,
    place: Place,
}

impl<'p> Reader<'p> {
    /// A reader of the table at `path` (empty for the top).
    pub fn new(
        path: &str,
        place: Place,
        table: Table,
        problems: &'p RefCell<Vec<Problem>>,
    ) -> Reader<'p> {
        Reader {
            path: path.to_owned(),
            table,
            asked: Vec::new(),
            problems,
            place,
        }
    }

    /// Where the table itself was written.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether a key was written; ask before taking it.
    pub fn has(&self, key: &str) -> bool {
        self.table.0.contains_key(key)
    }

    /// The dotted name of a key of this table.
    pub fn name(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    /// Adds a problem.
    pub fn report(&self, place: &Place, message: impl Into<String>) {
        self.problems.borrow_mut().push(Problem {
            place: place.clone(),
            message: message.into(),
        });
    }

    /// The raw value of a key.
    pub fn take(&mut self, key: &'static str) -> Option<Value> {
        self.asked.push(key);
        self.table.0.remove(key).map(|(_, value)| value)
    }

    fn wrong(&self, key: &str, value: &Value, wanted: &str) {
        let (name, got) = (self.name(key), value.kind.name());
        self.report(
            &value.place,
            format!("`{name}` must be {wanted}, this is {got}"),
        );
    }

    /// A string that `parse` understands; `wanted` says what that is.
    pub fn parsed<T, E: Display>(
        &mut self,
        key: &'static str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let (Kind::Text(text) | Kind::Loose(text)) = &value.kind else {
            self.wrong(key, &value, wanted);
            return None;
        };
        match parse(text) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                let name = self.name(key);
                self.report(
                    &value.place,
                    format!("`{name}` must be {wanted}; {text:?}: {error}"),
                );
                None
            }
        }
    }

    /// A string.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        self.parsed(key, "a string", |text| Ok::<_, String>(text.to_owned()))
    }

    /// A path.
    pub fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.parsed(key, "a path", |text| match text.is_empty() {
            true => Err("it is empty"),
            false => Ok(PathBuf::from(text)),
        })
    }

    /// An IP address.
    pub fn ip(&mut self, key: &'static str) -> Option<IpAddr> {
        self.parsed(key, "an IP address", IpAddr::from_str)
    }

    /// One IP address, or a list of them.
    pub fn ips(&mut self, key: &'static str) -> Option<Vec<IpAddr>> {
        if let Some((_, value)) = self.table.0.get_mut(key)
            && let Kind::Text(text) = &mut value.kind
        {
            // The same as from the environment.
            value.kind = Kind::Loose(std::mem::take(text));
        }
        let place = self.table.0.get(key).map(|(place, _)| place.clone())?;
        let listed = self.list(key, "an IP address", IpAddr::from_str)?;
        if listed.is_empty() {
            let name = self.name(key);
            self.report(&place, format!("`{name}` must name at least one address"));
        }
        (!listed.is_empty()).then_some(listed)
    }

    /// A user of this host, by id or name.
    pub fn user(&mut self, key: &'static str) -> Option<u32> {
        self.owner(key, "user", |name| {
            Some(User::from_name(name).ok()??.uid.as_raw())
        })
    }

    /// A group of this host, by id or name.
    pub fn group(&mut self, key: &'static str) -> Option<u32> {
        self.owner(key, "group", |name| {
            Some(Group::from_name(name).ok()??.gid.as_raw())
        })
    }

    fn owner(
        &mut self,
        key: &'static str,
        what: &str,
        named: impl Fn(&str) -> Option<u32>,
    ) -> Option<u32> {
        let value = self.take(key)?;
        match &value.kind {
            Kind::Integer(id) => u32::try_from(*id).ok().or_else(|| {
                self.report(&value.place, format!("{id} is no {what} id"));
                None
            }),
            Kind::Text(name) | Kind::Loose(name) => {
                let id = name.parse().ok().or_else(|| named(name));
                if id.is_none() {
                    self.report(&value.place, format!("there is no {what} {name:?} here"));
                }
                id
            }
            _ => {
                self.wrong(key, &value, &format!("a {what}'s id or name"));
                None
            }
        }
    }

    /// A duration such as `"10s"` or `"1h 30m"`; never a bare number, and not zero.
    pub fn duration(&mut self, key: &'static str) -> Option<Duration> {
        self.parsed(key, "a duration such as \"10s\"", parse_duration)
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        let flag = match &value.kind {
            Kind::Flag(flag) => Some(*flag),
            Kind::Loose(text) => text.parse().ok(),
            _ => None,
        };
        if flag.is_none() {
            self.wrong(key, &value, "true or false");
        }
        flag
    }

    /// A whole number within bounds.
    pub fn integer(&mut self, key: &'static str, low: i64, high: i64) -> Option<i64> {
        let value = self.take(key)?;
        let wanted = format!("a whole number from {low} to {high}");
        let number = match &value.kind {
            Kind::Integer(number) => Some(*number),
            Kind::Loose(text) => text.parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if (low..=high).contains(&number) => Some(number),
            Some(number) => {
                let name = self.name(key);
                self.report(
                    &value.place,
                    format!("`{name}` must be {wanted}, this is {number}"),
                );
                None
            }
            None => {
                self.wrong(key, &value, &wanted);
                None
            }
        }
    }

    /// A port: 1–65535, 0 for any free one, or `false` for none.
    pub fn port(&mut self, key: &'static str) -> Option<Option<u16>> {
        let off = matches!(
            self.table.0.get(key).map(|(_, value)| &value.kind),
            Some(Kind::Flag(false))
        ) || matches!(
            self.table.0.get(key).map(|(_, value)| &value.kind),
            Some(Kind::Loose(text)) if text == "false"
        );
        if off {
            self.take(key);
            return Some(None);
        }
        let port = self.integer(key, 0, i64::from(u16::MAX))?;
        u16::try_from(port).ok().map(Some)
    }

    /// A list of strings, each understood by `parse`. From the environment: separated by commas.
    pub fn list<T, E: Display>(
        &mut self,
        key: &'static str,
        wanted: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let value = self.take(key)?;
        let items = match value.kind {
            Kind::List(items) => items,
            Kind::Loose(text) => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Value {
                    place: value.place.clone(),
                    kind: Kind::Text(item.to_owned()),
                })
                .collect(),
            _ => {
                self.wrong(key, &value, &format!("a list, each item {wanted}"));
                return None;
            }
        };
        let mut list = Vec::with_capacity(items.len());
        for item in items {
            let name = self.name(key);
            match &item.kind {
                Kind::Text(text) => match parse(text) {
                    Ok(parsed) => list.push(parsed),
                    Err(error) => self.report(
                        &item.place,
                        format!("items of `{name}` must be {wanted}; {text:?}: {error}"),
                    ),
                },
                other => self.report(
                    &item.place,
                    format!(
                        "items of `{name}` must be {wanted}, this is {}",
                        other.name()
                    ),
                ),
            }
        }
        Some(list)
    }

    /// A table of strings.
    pub fn pairs(&mut self, key: &'static str) -> Option<BTreeMap<String, String>> {
        let value = self.take(key)?;
        let Kind::Table(table) = value.kind else {
            self.wrong(key, &value, "a table of strings");
            return None;
        };
        let mut pairs = BTreeMap::new();
        for (inner, (_, value)) in table.0 {
            match value.kind {
                Kind::Text(text) => {
                    pairs.insert(inner, text);
                }
                other => self.report(
                    &value.place,
                    format!(
                        "`{}.{inner}` must be a string, this is {}",
                        self.name(key),
                        other.name()
                    ),
                ),
            }
        }
        Some(pairs)
    }

    /// A table as a reader of its own.
    pub fn section(&mut self, key: &'static str) -> Option<Reader<'p>> {
        let value = self.take(key)?;
        self.sub(key, value)
    }

    /// A list of tables, each as a reader of its own.
    pub fn sections(&mut self, key: &'static str) -> Vec<Reader<'p>> {
        let Some(value) = self.take(key) else {
            return Vec::new();
        };
        let Kind::List(items) = value.kind else {
            let name = self.name(key);
            self.report(
                &value.place,
                format!("`{name}` must be a list of tables: write [[{name}]]"),
            );
            return Vec::new();
        };
        items
            .into_iter()
            .filter_map(|item| self.sub(key, item))
            .collect()
    }

    fn sub(&self, key: &str, value: Value) -> Option<Reader<'p>> {
        match value.kind {
            Kind::Table(table) => Some(Reader::new(
                &self.name(key),
                value.place,
                table,
                self.problems,
            )),
            _ => {
                self.wrong(key, &value, "a table");
                None
            }
        }
    }

    /// Reports every key that was not asked for.
    pub fn finish(self) {
        for (key, (place, _)) in &self.table.0 {
            let inside = match self.path.as_str() {
                "" => String::new(),
                path => format!(" in [{path}]"),
            };
            let hint = match nearest(key, &self.asked) {
                Some(known) => format!("; did you mean `{known}`?"),
                None => format!("; known keys: {}", self.asked.join(", ")),
            };
            self.report(place, format!("unknown key `{key}`{inside}{hint}"));
        }
    }
}

/// The known word that `word` was probably meant to be.
pub fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// `"10s"`, `"1h 30m"`: a unit is needed, and zero is not a duration.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text.trim().bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("a unit is missing, write \"{text}s\" for seconds"));
    }
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

/// How long others may keep something: a duration, or `"0s"`.
pub fn parse_ttl(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Ok(Duration::ZERO),
        _ => parse_duration(text),
    }
}
