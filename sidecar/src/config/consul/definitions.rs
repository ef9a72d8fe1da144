//! Definitions of services and checks: kept as they were written and read by what reads registrations over HTTP.

use libmesh::{
    health::Check,
    model::{Instance, InstanceId},
};
use serde_json::{Map, Value as Json, json};

use super::ConsulConfig;
use crate::{
    config::{
        ExecChecks,
        tree::{Place, Problem},
    },
    consul::definitions::{self, Scripts},
};

/// One service or check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Unique on the node.
    pub id: String,
    /// Where it was written, for messages.
    pub place: Place,
    body: Json,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Service,
    Check,
}

/// One as the document has it.
#[derive(Debug)]
pub struct Raw {
    pub what: What,
    pub place: Place,
    pub body: Map<String, Json>,
}

impl Definition {
    /// Whether both say the same, wherever they were written.
    pub fn same(&self, other: &Definition) -> bool {
        self.id == other.id && self.body == other.body
    }

    /// The instance and its checks.
    ///
    /// # Errors
    /// What is wrong, in Consul's words.
    pub fn service(&self, exec: ExecChecks) -> Result<(Instance, Vec<Check>), String> {
        let made = definitions::service(self.body.clone(), scripts(exec));
        made.map_err(|refused| refused.to_string())
    }

    /// The check. It may be of an instance that is not there.
    ///
    /// # Errors
    /// What is wrong, in Consul's words.
    pub fn check(&self, exec: ExecChecks) -> Result<(Check, Option<InstanceId>), String> {
        let made = definitions::check(self.body.clone(), scripts(exec));
        made.map_err(|refused| refused.to_string())
    }
}

fn scripts(exec: ExecChecks) -> Scripts {
    match exec {
        ExecChecks::Off => Scripts::Off,
        ExecChecks::Config | ExecChecks::Api => Scripts::Run,
    }
}

/// Gives every definition its id.
pub fn sort(found: Vec<Raw>, problems: &mut Vec<Problem>) -> ConsulConfig {
    let mut sorted = ConsulConfig::default();
    for Raw { what, place, body } in found {
        let text = |key: &str| body.get(key).and_then(Json::as_str).unwrap_or_default();
        let Some(id) = [text("id"), text("name")]
            .into_iter()
            .find(|id| !id.is_empty())
        else {
            problems.push(Problem {
                place,
                message: "needs a `name`".to_owned(),
            });
            continue;
        };
        let id = id.to_owned();
        let list = match what {
            What::Service => &mut sorted.services,
            What::Check => &mut sorted.checks,
        };
        if let Some(first) = list.iter().find(|other| other.id == id) {
            problems.push(Problem {
                place,
                message: format!("the id {id:?} is already used at {}", first.place),
            });
            continue;
        }
        let body = Json::Object(body);
        list.push(Definition { id, place, body });
    }
    sorted
}

impl ConsulConfig {
    /// Tries every definition, so that what is wrong comes out before anything is registered: of a service what is
    /// wrong with itself, and of each of its checks.
    pub fn check(&self, exec: ExecChecks, problems: &mut Vec<Problem>) {
        // Of what is known to be wrong, more would only repeat it.
        let known: Vec<_> = problems.iter().map(|it| it.place.to_string()).collect();
        let sound = |definition: &&Definition| {
            let own = definition.place.to_string();
            !known.iter().any(|place| within(place, &own))
        };
        for service in self.services.iter().filter(sound) {
            for message in service.wrong(exec) {
                let place = service.place.clone();
                problems.push(Problem { place, message });
            }
        }
        for check in self.checks.iter().filter(sound) {
            if let Err(message) = check.check(exec) {
                let place = check.place.clone();
                problems.push(Problem { place, message });
            }
        }
    }
}

fn within(place: &str, outer: &str) -> bool {
    let inner = place.strip_prefix(outer);
    inner.is_some_and(|inner| inner.is_empty() || inner.starts_with(['.', '[']))
}

impl Definition {
    fn wrong(&self, exec: ExecChecks) -> Vec<String> {
        let Json::Object(mut fields) = self.body.clone() else {
            return Vec::new();
        };
        let mut checks = Vec::new();
        if let Some(check) = fields.remove("check") {
            checks.push(("check".to_owned(), check));
        }
        if let Some(Json::Array(listed)) = fields.remove("checks") {
            let numbered = listed.into_iter().enumerate();
            checks.extend(numbered.map(|(at, check)| (format!("checks[{at}]"), check)));
        }
        let reads = |body: Json| definitions::service(body, scripts(exec)).err();
        let own = reads(Json::Object(fields)).map(|refused| refused.to_string());
        let of_checks = checks.into_iter().filter_map(|(name, check)| {
            let refused = reads(json!({ "name": "any", "check": check }))?;
            Some(format!("{name}: {refused}"))
        });
        let mut wrong: Vec<_> = own.into_iter().chain(of_checks).collect();
        if wrong.is_empty() {
            // Something that only the whole shows.
            wrong.extend(self.service(exec).err());
        }
        wrong
    }
}
