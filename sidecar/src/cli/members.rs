//! `mesh members`

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Failure, Global, output};

/// List the nodes of the mesh as the local agent sees them.
#[derive(Debug, Args)]
pub struct Command {}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Member {
    name: String,
    addr: String,
    port: u16,
    status: u8,
    #[serde(default)]
    tags: Tags,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Tags {
    role: String,
    dc: String,
    build: String,
    id: String,
}

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.addresses.agent()?;
        let mut members: Vec<Member> = client
            .get("cannot list members", "/v1/agent/members")
            .await?;
        members.sort_by(|a, b| a.name.cmp(&b.name));
        // An agent of an older version knows no such question.
        let problems = client
            .get::<Vec<String>>("cannot list problems", "/v1/mesh/problems")
            .await;
        for problem in problems.unwrap_or_default() {
            eprintln!("warning: {problem}");
        }
        let rows = members.iter().map(|member| {
            vec![
                member.name.clone(),
                match member.addr.contains(':') {
                    true => format!("[{}]:{}", member.addr, member.port),
                    false => format!("{}:{}", member.addr, member.port),
                },
                status(member.status).to_owned(),
                match member.tags.role.as_str() {
                    "consul" => "server".to_owned(),
                    _ => "agent".to_owned(),
                },
                member.tags.dc.clone(),
                member.tags.build.clone(),
            ]
        });
        let header = ["NODE", "ADDRESS", "STATUS", "ROLE", "DC", "VERSION"];
        output::rows(global.output, &header, rows.collect(), &members)
    }
}

/// Serf's numbers, as Consul's API has them.
fn status(number: u8) -> &'static str {
    match number {
        1 => "alive",
        2 => "leaving",
        3 => "left",
        4 => "failed",
        _ => "unknown",
    }
}
