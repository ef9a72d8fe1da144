//! `mesh services`

use std::collections::BTreeMap;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Failure, Global, output};
use crate::http::query::encode;

/// List services, or the instances of one.
#[derive(Debug, Args)]
pub struct Command {
    /// Show the instances of this service.
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Vec<Check>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    node: String,
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    address: String,
    port: u16,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    status: String,
}

#[derive(Serialize)]
struct Summary {
    name: String,
    instances: usize,
    passing: usize,
    tags: Vec<String>,
}

#[derive(Serialize)]
struct Instance {
    id: String,
    node: String,
    address: String,
    port: u16,
    status: &'static str,
    tags: Vec<String>,
    meta: BTreeMap<String, String>,
}

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.addresses.agent()?;
        let entries = async |name: &str| {
            let path = format!("/v1/health/service/{}", encode(name));
            let what = format!("cannot look up service {name:?}");
            client.get::<Vec<Entry>>(&what, &path).await
        };
        let Some(name) = self.name else {
            let names: BTreeMap<String, Vec<String>> = client
                .get("cannot list services", "/v1/catalog/services")
                .await?;
            let mut list = Vec::with_capacity(names.len());
            for (name, mut tags) in names {
                tags.sort();
                let entries = entries(&name).await?;
                list.push(Summary {
                    instances: entries.len(),
                    passing: entries.iter().filter(|e| e.health() == "passing").count(),
                    name,
                    tags,
                });
            }
            let rows = list.iter().map(|s| {
                let count = |n: usize| n.to_string();
                vec![
                    s.name.clone(),
                    count(s.instances),
                    count(s.passing),
                    s.tags.join(","),
                ]
            });
            let header = ["SERVICE", "INSTANCES", "PASSING", "TAGS"];
            return output::rows(global.output, &header, rows.collect(), &list);
        };
        let list: Vec<Instance> = entries(&name).await?.into_iter().map(Entry::into).collect();
        if list.is_empty() {
            return Err(
                Failure::failed(format!("no instance of service {name:?} is known"))
                    .next("mesh services"),
            );
        }
        let rows = list.iter().map(|i| {
            vec![
                i.id.clone(),
                i.node.clone(),
                format!("{}:{}", i.address, i.port),
                i.status.to_owned(),
                i.tags.join(","),
            ]
        });
        let header = ["INSTANCE", "NODE", "ADDRESS", "STATUS", "TAGS"];
        output::rows(global.output, &header, rows.collect(), &list)
    }
}

impl Entry {
    /// The worst of its checks.
    fn health(&self) -> &'static str {
        let any = |status| self.checks.iter().any(|check| check.status == status);
        match () {
            () if any("critical") => "critical",
            () if any("warning") => "warning",
            () => "passing",
        }
    }
}

impl From<Entry> for Instance {
    fn from(entry: Entry) -> Instance {
        Instance {
            status: entry.health(),
            id: entry.service.id,
            address: match entry.service.address.as_str() {
                "" => entry.node.address,
                address => address.to_owned(),
            },
            node: entry.node.node,
            port: entry.service.port,
            tags: entry.service.tags,
            meta: entry.service.meta.unwrap_or_default(),
        }
    }
}
