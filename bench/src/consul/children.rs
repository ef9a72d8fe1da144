//! The server that is measured: everything in one process, as `mesh dev` has it.

use std::path::Path;

use anyhow::{Context, Result};
use libmesh::mesh::Credentials;
use libmesh::model::NodeName;
use sidecar::agent::{Agent, Extras};
use sidecar::config::{Config, Sources};
use sidecar::server::{Openness, Server};
use vault_kv::InitOptions;

use crate::storm::agents::{Authority, together};

/// A server: its folder. Prints where its HTTP interface is.
pub fn server(arguments: &[String]) -> Result<()> {
    let dir = Path::new(arguments.first().context("which folder?")?);
    // As the program does.
    vault_kv::clear_freed_memory();
    let runtime = runtime()?;
    let openness = Openness {
        consul: true,
        ..Openness::default()
    };
    let running = runtime.block_on(async {
        let server = Server::open(config(dir, "server", true)?, openness).await?;
        let one = InitOptions {
            shares: 1,
            threshold: 1,
        };
        server.vault().init(one).await?;
        anyhow::Ok(Box::pin(server.start(openness)).await?)
    })?;
    let addr = running.agent().addresses().http.context("no HTTP port")?;
    println!("{addr}");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// As the program's.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().build()?)
}

/// The configuration of a node on loopback, with HTTP on a free port.
pub fn config(dir: &Path, name: &str, server: bool) -> Result<Config> {
    std::fs::create_dir_all(dir)?;
    let key = dir.join("unseal.key");
    let mut text = format!(
        "[node]\nname = {name:?}\ndata_dir = {dir:?}\nbind = \"127.0.0.1\"\n\
         [ports]\ngossip = 0\nhttp = 0\n{}\n[intentions]\ndefault = \"allow\"\n",
        if server { "vault = 0" } else { "" }
    );
    if server {
        std::fs::write(&key, "07".repeat(32))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&key, mode)?;
        text += &format!("[server.seal]\ntype = \"static\"\nkey_file = {key:?}\n");
    }
    let file = dir.join("node.toml");
    std::fs::write(&file, text)?;
    let sources = Sources::new(&[file]).with_flag("bench", "ports", "dns", "0");
    Ok(Config::load(&sources)?)
}

/// Two agents that know each other: their folder. Prints where their HTTP interfaces are.
pub fn pair(arguments: &[String]) -> Result<()> {
    let dir = Path::new(arguments.first().context("which folder?")?);
    let runtime = runtime()?;
    let agents = runtime.block_on(async {
        let authority = Authority::new()?;
        let mut agents: Vec<Agent> = Vec::new();
        for name in ["one", "two"] {
            let seeds = agents.first().map(|agent| agent.mesh().addr());
            let name = NodeName::parse(name)?;
            let credentials = authority.credentials(&name, seeds.into_iter().collect())?;
            let extras = Extras {
                credentials: Some(Credentials::Given(Box::new(credentials))),
                ..Extras::default()
            };
            let config = config(&dir.join(name.as_str()), name.as_str(), false)?;
            agents.push(Agent::start(config, extras).await?);
        }
        together(agents.iter().map(Agent::mesh)).await?;
        anyhow::Ok(agents)
    })?;
    let addr = |agent: &Agent| agent.addresses().http.context("no HTTP port");
    println!("{} {}", addr(&agents[0])?, addr(&agents[1])?);
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
