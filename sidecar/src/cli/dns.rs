//! `mesh dns`

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use clap::{Args, Subcommand};
use dns::client;
use serde::{Deserialize, Serialize};

use super::{Failure, Global, output};
use crate::http::query::encode;

/// How long DNS may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ask the agent's DNS, and why it answers so.
#[derive(Debug, Subcommand)]
pub enum Command {
    Query(Query),
}

/// Ask for a name as an application would, and show which instances are in the answer and why others are not.
#[derive(Debug, Args)]
pub struct Query {
    /// The name, for example web.service.mesh.
    name: String,
    /// The record type: A, AAAA, SRV, TXT, PTR, ANY, …
    #[arg(default_value = "A", value_name = "TYPE")]
    kind: String,
    /// Ask this server instead of the agent's.
    #[arg(long, value_name = "ADDRESS:PORT")]
    server: Option<SocketAddr>,
}

#[derive(Deserialize)]
struct Explained {
    server: SocketAddr,
    reading: String,
    instances: Vec<Instance>,
}

#[derive(Deserialize, Serialize)]
struct Instance {
    node: String,
    id: String,
    address: String,
    port: u16,
    shown: bool,
    why: String,
}

#[derive(Serialize)]
struct Answer<'a> {
    name: &'a str,
    r#type: &'a str,
    server: SocketAddr,
    code: String,
    truncated: bool,
    stale: bool,
    answer: &'a [String],
    reading: &'a str,
    instances: &'a [Instance],
}

impl Instance {
    /// Address and port.
    fn place(&self) -> String {
        match self.address.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, self.port).to_string(),
            Err(_) => format!("{}:{}", self.address, self.port),
        }
    }
}

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let Command::Query(query) = self;
        query.run(global).await
    }
}

impl Query {
    async fn run(self, global: &Global) -> Result<(), Failure> {
        let agent = global.addresses.agent()?;
        let path = format!(
            "/v1/mesh/dns/explain?name={}&type={}",
            encode(&self.name),
            encode(&self.kind)
        );
        let what = format!("cannot ask about {:?}", self.name);
        let explained: Explained = agent.get(&what, &path).await?;
        let server = self.server.unwrap_or_else(|| reachable(explained.server));
        let answer = client::query(server, &self.name, &self.kind, PATIENCE).await;
        let answer = answer.map_err(|error| Failure::failed(error.to_string()))?;
        let value = Answer {
            name: &self.name,
            r#type: &self.kind,
            server,
            code: answer.code_name(),
            truncated: answer.truncated,
            stale: answer.stale,
            answer: &answer.lines,
            reading: &explained.reading,
            instances: &explained.instances,
        };
        if global.output == output::Format::Json {
            return output::json(&value);
        }
        output::line(&format!("{}: {}", value.code, value.reading))?;
        for record in value.answer {
            output::line(&format!("  {record}"))?;
        }
        if value.truncated {
            output::line(
                "  … and more: it did not fit into a datagram, applications ask again over TCP",
            )?;
        }
        if value.stale {
            output::line("  (the last that was known: much of the mesh went down at once)")?;
        }
        if value.instances.is_empty() {
            return Ok(());
        }
        output::line("")?;
        let rows = value.instances.iter().map(|one| {
            vec![
                if one.shown { "yes" } else { "no" }.to_owned(),
                one.node.clone(),
                one.id.clone(),
                one.place(),
                one.why.clone(),
            ]
        });
        let header = ["SHOWN", "NODE", "INSTANCE", "ADDRESS", "WHY"];
        output::rows(global.output, &header, rows.collect(), value.instances)
    }
}

/// A server that listens everywhere listens on loopback, too.
fn reachable(server: SocketAddr) -> SocketAddr {
    match server {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            (std::net::Ipv6Addr::LOCALHOST, v6.port()).into()
        }
        other => other,
    }
}
