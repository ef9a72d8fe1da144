//! Prepared queries: questions about a service that are kept under a name, as Consul has them.
//!
//! A query is found by its id, by its name, or, when it is a template, by the longest beginning of the name that was asked
//! for; a template's service and tags may use parts of that name. What a query then leaves out is decided here, for DNS
//! (`pq.query.mesh`) and for whoever else executes it. There is one datacenter: failover to others finds nobody.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use libmesh::catalog::{InstanceView, ServiceView};
use libmesh::model::{Health, Liveness};
use parking_lot::RwLock;
use regex::{Captures, Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

/// How large a compiled expression of a template may be, in bytes.
const REGEX_SIZE: usize = 1 << 18;

/// One query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreparedQuery {
    /// Its id; not interpreted.
    pub id: String,
    /// Its name; letter case does not count. Empty: it is found by its id only.
    pub name: String,
    /// Set for a template: its name is the beginning of those that it is for.
    pub template: Option<QueryTemplate>,
    /// The service.
    pub service: String,
    /// Tags or versions that an instance must have, or with `!` before them must not.
    pub tags: Vec<String>,
    /// Leave out instances with a warning.
    pub only_passing: bool,
    /// Checks that do not count.
    pub ignore_checks: Vec<String>,
    /// `_agent`: the nearest first.
    pub near: String,
    /// What the node's metadata must be.
    pub node_meta: BTreeMap<String, String>,
    /// What the instance's metadata must be.
    pub service_meta: BTreeMap<String, String>,
    /// How long DNS answers may be kept; `None`: as other answers about the service.
    pub ttl: Option<Duration>,
    /// When it was made and last changed, by the index of whoever keeps it.
    pub indexes: (u64, u64),
}

/// What makes a query a template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueryTemplate {
    /// Names must fit it; its groups are `${match(N)}`. Empty: any name does.
    pub regexp: String,
    /// Leave out tags that are empty once they are filled in.
    pub remove_empty_tags: bool,
}

/// Why a query cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The template's expression.
    #[error("regexp: {0}")]
    Regexp(String),
    /// Something in `${}` that templates do not know.
    #[error(
        "unknown variable {0:?} (known: name.full, name.prefix, name.suffix, match(N), agent.segment)"
    )]
    Variable(String),
    /// A `${` that does not end.
    #[error("{0:?} has a ${{ without a }}")]
    Open(String),
}

/// The queries there are; clones are the same table.
#[derive(Clone, Debug, Default)]
pub struct Queries(Arc<RwLock<Arc<Table>>>);

#[derive(Debug, Default)]
struct Table {
    /// How new it is, by whoever gives tables.
    index: u64,
    by_id: HashMap<String, Arc<PreparedQuery>>,
    by_name: HashMap<String, Arc<PreparedQuery>>,
    /// The longest names first.
    templates: Vec<(String, Option<Regex>, Arc<PreparedQuery>)>,
}

impl PreparedQuery {
    /// Checks what templates use.
    ///
    /// # Errors
    /// [`QueryError`] names it.
    pub fn validate(&self) -> Result<(), QueryError> {
        if let Some(template) = &self.template {
            template.compiled()?;
            let texts = std::iter::once(&self.service).chain(&self.tags);
            for text in texts {
                fill(text, &mut |name| {
                    variable(name, "", "", None).map(|_| String::new())
                })?;
            }
        }
        Ok(())
    }

    /// Whether an instance is in the answer.
    pub fn admits(&self, instance: &InstanceView) -> bool {
        self.leaves_out(instance).is_none()
    }

    /// Why an instance is not in the answer.
    pub fn leaves_out(&self, instance: &InstanceView) -> Option<String> {
        let counted = instance.checks.iter();
        let counted =
            counted.filter(|check| !self.ignore_checks.iter().any(|id| **id == *check.id));
        let worst = counted.map(|check| check.status).max();
        let health = worst.unwrap_or(Health::Passing);
        let fit = match self.only_passing {
            true => health == Health::Passing,
            false => health.is_usable(),
        };
        if !fit {
            return Some(health.as_str().to_owned());
        }
        for tag in &self.tags {
            let (wanted, tag) = match tag.strip_prefix('!') {
                Some(tag) => (false, tag),
                None => (true, tag.as_str()),
            };
            if instance.instance.matches(tag) != wanted {
                let has = if wanted { "does not have" } else { "has" };
                return Some(format!("it {has} the tag {tag}"));
            }
        }
        let node = &instance.node.record.meta;
        let node = self
            .node_meta
            .iter()
            .find(|(key, value)| node.get(key.as_str()).is_none_or(|has| **has != ***value));
        let service = &instance.instance.meta;
        let service = self.service_meta.iter().find(|(key, value)| {
            service
                .get(key.as_str())
                .is_none_or(|has| **has != ***value)
        });
        let (key, value) = node.or(service)?;
        Some(format!("its metadata is not {key} = {value}"))
    }

    /// The instances in the answer. Those whose node does not answer lately are used when nothing better is there.
    pub fn choose<'v>(&self, view: &'v ServiceView) -> Vec<&'v Arc<InstanceView>> {
        let mut chosen: Vec<_> = view.instances.iter().filter(|it| self.admits(it)).collect();
        let good = |it: &&Arc<InstanceView>| it.node.liveness == Liveness::Alive && !it.stale;
        if chosen.iter().any(good) {
            chosen.retain(good);
        }
        chosen
    }

    /// A template's query for one name.
    fn rendered(&self, asked: &str, prefix: &str, found: Option<&Captures<'_>>) -> Self {
        let fill = |text: &String| {
            let filled = fill(text, &mut |name| variable(name, asked, prefix, found));
            // It was checked when it was made.
            filled.unwrap_or_default()
        };
        let remove_empty = self
            .template
            .as_ref()
            .is_some_and(|it| it.remove_empty_tags);
        let mut tags: Vec<_> = self.tags.iter().map(fill).collect();
        tags.retain(|tag| !remove_empty || !tag.is_empty());
        Self {
            service: fill(&self.service).to_ascii_lowercase(),
            tags,
            ..self.clone()
        }
    }
}

impl QueryTemplate {
    fn compiled(&self) -> Result<Option<Regex>, QueryError> {
        if self.regexp.is_empty() {
            return Ok(None);
        }
        let compiled = RegexBuilder::new(&self.regexp)
            .size_limit(REGEX_SIZE)
            .build();
        compiled
            .map(Some)
            .map_err(|error| QueryError::Regexp(error.to_string()))
    }
}

impl Table {
    fn of(index: u64, all: impl IntoIterator<Item = PreparedQuery>) -> Table {
        let mut table = Table {
            index,
            ..Table::default()
        };
        for query in all {
            let query = Arc::new(query);
            table.by_id.insert(query.id.clone(), Arc::clone(&query));
            let name = query.name.to_ascii_lowercase();
            match &query.template {
                Some(template) => {
                    if let Ok(regex) = template.compiled() {
                        table.templates.push((name, regex, query));
                    }
                }
                None if !name.is_empty() => {
                    table.by_name.insert(name, query);
                }
                None => {}
            }
        }
        table
            .templates
            .sort_by_key(|(name, ..)| std::cmp::Reverse(name.len()));
        table
    }
}

impl Queries {
    /// Replaces the table. A template whose expression is not one is left out.
    pub fn set(&self, all: impl IntoIterator<Item = PreparedQuery>) {
        *self.0.write() = Arc::new(Table::of(0, all));
    }

    /// The same, unless the table that stands is of this index or a later one.
    pub fn advance(&self, index: u64, all: impl FnOnce() -> Vec<PreparedQuery>) {
        if self.0.read().index >= index {
            return;
        }
        let table = Table::of(index, all());
        let mut held = self.0.write();
        if held.index < index {
            *held = Arc::new(table);
        }
    }

    /// The query of an id or a name; a template's with the name filled in. Its second half is the query as it is kept.
    pub fn find(&self, asked: &str) -> Option<(PreparedQuery, Arc<PreparedQuery>)> {
        let table = Arc::clone(&self.0.read());
        let name = asked.to_ascii_lowercase();
        let known = table.by_id.get(asked).or_else(|| table.by_name.get(&name));
        if let Some(query) = known {
            return Some((PreparedQuery::clone(query), Arc::clone(query)));
        }
        table.templates.iter().find_map(|(prefix, regex, query)| {
            let fits = name.starts_with(prefix.as_str());
            if !fits {
                return None;
            }
            match regex {
                None => Some((query.rendered(&name, prefix, None), Arc::clone(query))),
                Some(regex) => {
                    let found = regex.captures(&name)?;
                    let rendered = query.rendered(&name, prefix, Some(&found));
                    Some((rendered, Arc::clone(query)))
                }
            }
        })
    }
}

/// Fills in what is in `${}`.
fn fill(
    text: &str,
    value: &mut dyn FnMut(&str) -> Result<String, QueryError>,
) -> Result<String, QueryError> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, behind)) = after.split_once('}') else {
            return Err(QueryError::Open(text.to_owned()));
        };
        filled.push_str(before);
        filled.push_str(&value(name.trim())?);
        rest = behind;
    }
    filled.push_str(rest);
    Ok(filled)
}

fn variable(
    name: &str,
    asked: &str,
    prefix: &str,
    found: Option<&Captures<'_>>,
) -> Result<String, QueryError> {
    let unknown = || QueryError::Variable(name.to_owned());
    Ok(match name {
        "name.full" => asked.to_owned(),
        "name.prefix" => prefix.to_owned(),
        "name.suffix" => asked.strip_prefix(prefix).unwrap_or_default().to_owned(),
        "agent.segment" => String::new(),
        _ => {
            let number = name
                .strip_prefix("match(")
                .and_then(|rest| rest.strip_suffix(')'));
            let number: usize = number
                .and_then(|n| n.trim().parse().ok())
                .ok_or_else(unknown)?;
            let group = found.and_then(|found| found.get(number));
            group.map_or("", |group| group.as_str()).to_owned()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, service: &str) -> PreparedQuery {
        PreparedQuery {
            id: format!("id-of-{name}"),
            name: name.to_owned(),
            service: service.to_owned(),
            ..PreparedQuery::default()
        }
    }

    fn template(name: &str, service: &str, regexp: &str) -> PreparedQuery {
        PreparedQuery {
            template: Some(QueryTemplate {
                regexp: regexp.to_owned(),
                remove_empty_tags: true,
            }),
            ..query(name, service)
        }
    }

    #[test]
    fn an_older_table_does_not_come_back() {
        let queries = Queries::default();
        queries.advance(2, || vec![query("new", "web")]);
        queries.advance(1, || vec![query("old", "web")]);
        queries.advance(2, || unreachable!("it is there"));
        assert!(queries.find("new").is_some() && queries.find("old").is_none());
        queries.advance(3, Vec::new);
        assert!(queries.find("new").is_none());
    }

    #[test]
    fn the_most_exact_query_answers() {
        let queries = Queries::default();
        let mut geo = template("geo-", "${match(1)}", "^geo-(.*?)-([^-]+)$");
        geo.tags = vec!["${match(2)}".to_owned(), "${match(9)}".to_owned()];
        queries.set([
            query("geo-exact", "exact"),
            template("", "any-${name.full}", ""),
            template("geo-db-", "db-${name.suffix}-${name.prefix}", ""),
            geo,
        ]);
        let service = |asked: &str| queries.find(asked).map(|(query, _)| query.service);
        for (asked, expected) in [
            ("geo-exact", "exact"),
            ("GEO-Exact", "exact"),
            ("id-of-geo-exact", "exact"),
            ("geo-db-eu", "db-eu-geo-db-"),
            ("geo-web-v2", "web"),
            ("geo-web", "any-geo-web"),
            ("other", "any-other"),
        ] {
            assert_eq!(service(asked).as_deref(), Some(expected), "{asked}");
        }
        let (found, kept) = queries.find("geo-web-v2").unwrap();
        assert_eq!(found.tags, ["v2"], "an empty one is left out");
        assert_eq!(kept.service, "${match(1)}");
        queries.set([]);
        assert!(queries.find("geo-exact").is_none());
    }

    #[test]
    fn what_templates_cannot_use_is_refused() {
        for (bad, part) in [
            (template("x", "${name.middle}", ""), "name.middle"),
            (template("x", "${name.full", ""), "without a }"),
            (template("x", "${match(x)}", ""), "match(x)"),
            (template("x", "y", "(["), "regexp"),
            (template("x", "y", &"(a{999}){999}".repeat(9)), "regexp"),
        ] {
            let error = bad.validate().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        // Only templates have variables.
        assert_eq!(query("x", "${odd}").validate(), Ok(()));
    }
}
