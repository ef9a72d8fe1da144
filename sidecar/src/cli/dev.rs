//! `mesh dev`

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde_json::json;
use vault_kv::InitOptions;
use zeroize::Zeroizing;

use super::{
    Failure,
    agent::runtime,
    server::{harden, server_failure, stopped},
};
use crate::{
    agent::logging,
    config::{Config, Sources},
    ports,
    server::{Openness, RunningServer, Server},
};

/// Run everything in one process for development: loopback, usual ports, nothing to set up, nothing denied.
#[derive(Debug, Args)]
pub struct Command {
    /// Keep the state here; without it, in a temporary directory that goes with the process.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Take any free ports instead of the usual ones.
    #[arg(long)]
    free_ports: bool,
    /// Write addresses and root token to this new file (JSON, mode 0600) when everything is up.
    #[arg(long, value_name = "FILE")]
    addresses: Option<PathBuf>,
    /// Restore another system's own defaults, for drop-in tests.
    #[arg(long, value_enum)]
    compat: Option<Compat>,
    /// error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log_level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compat {
    /// DNS with TTL 0, no TC bit, three answers.
    Consul,
}

impl Command {
    /// Runs until TERM or INT.
    pub fn run(self) -> Result<(), Failure> {
        let cannot =
            |what: &str, error: std::io::Error| Failure::failed(format!("{what}: {error}"));
        let temporary = match &self.data_dir {
            Some(_) => None,
            None => {
                let dir = tempfile::Builder::new().prefix("mesh-dev-").tempdir();
                Some(dir.map_err(|error| cannot("cannot make a temporary directory", error))?)
            }
        };
        let dir = match (&self.data_dir, &temporary) {
            (Some(dir), _) => dir.clone(),
            (None, Some(dir)) => dir.path().to_owned(),
            (None, None) => unreachable!("there is a directory in either case"),
        };
        let config = self
            .configure(&dir)
            .map_err(|error| cannot("cannot set up", error))?;
        let config = Config::load(&config).map_err(|errors| Failure::failed(errors.to_string()))?;
        logging::init(&config.log);
        harden();
        let openness = Openness {
            consul: true,
            attach: Some(nix::unistd::getuid().as_raw()),
            like_consul: self.compat == Some(Compat::Consul),
        };
        let ended = runtime()?.block_on(async {
            let server = Server::open(config, openness)
                .await
                .map_err(server_failure)?;
            let token = root_token(&server).await?;
            let running = tokio::select! {
                running = server.start(openness) => running.map_err(server_failure)?,
                signal = stopped() => return signal,
            };
            self.tell(&running, &dir, &token)?;
            running.run(|| Ok(None)).await.map_err(server_failure)?;
            Ok(())
        });
        if let Some(dir) = temporary {
            dir.close()
                .map_err(|error| cannot("cannot remove the temporary directory", error))?;
        }
        ended
    }

    fn configure(&self, dir: &Path) -> std::io::Result<Sources> {
        fs::create_dir_all(dir)?;
        let key_file = dir.join("unseal.key");
        if !key_file.exists() {
            let key: [u8; 32] = rand::random();
            let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            write_private(&key_file, &key)?;
        }
        let ports = if self.free_ports {
            let ports: [SocketAddr; 4] = ports::free()?;
            let [gossip, http, dns, vault] = ports.map(|addr| addr.port());
            format!("[ports]\ngossip = {gossip}\nhttp = {http}\ndns = {dns}\nvault = {vault}\n")
        } else if self.compat == Some(Compat::Consul) {
            // Where Consul's servers take calls, and say that they do.
            "[ports]\ngossip = 8300\n".to_owned()
        } else {
            String::new()
        };
        let (data, key) = (dir.display(), key_file.display());
        let text = format!(
            "[node]\nname = \"dev\"\ndata_dir = \"{data}\"\nbind = \"127.0.0.1\"\n{ports}\
             [intentions]\ndefault = \"allow\"\n[log]\nlevel = \"{}\"\n\
             [server.seal]\ntype = \"static\"\nkey_file = \"{key}\"\n",
            self.log_level
        );
        let file = dir.join("dev.toml");
        fs::write(&file, text)?;
        Ok(Sources::new(&[file]))
    }

    fn tell(&self, running: &RunningServer, dir: &Path, token: &str) -> Result<(), Failure> {
        let agent = running.agent();
        let shown =
            |addr: Option<SocketAddr>| addr.map(|addr| addr.to_string()).unwrap_or_default();
        let http = shown(agent.addresses().http);
        let dns = shown(agent.addresses().dns);
        let vault = shown(running.vault_addr());
        let socket = dir.join("mesh.sock");
        println!(
            "mesh dev: everything in this process, for development only.\n\
             \n  OPEN: every call is allowed, the Consul interface asks for no token, every process of this user\n  \
             may be any service, and the unseal key lies beside the store.\n\
             \n  Consul API   http://{http}\n  Vault API    http://{vault}\n  DNS          {dns} (UDP and TCP)\n  \
             socket       {}\n  data         {}\n  unseal key   {}\n  root token   {token}\n\
             \n  export MESH_HTTP_ADDR=http://{http} MESH_VAULT_ADDR=http://{vault} MESH_TOKEN={token}",
            socket.display(),
            dir.display(),
            dir.join("unseal.key").display(),
        );
        if let Some(file) = &self.addresses {
            let addresses = json!({
                "http": format!("http://{http}"),
                "vault": format!("http://{vault}"),
                "dns": dns,
                "socket": socket,
                "root_token": token,
            });
            write_private(file, &addresses.to_string()).map_err(|error| {
                Failure::failed(format!("cannot write {}: {error}", file.display()))
            })?;
        }
        Ok(())
    }
}

/// Initialises a new store. The token of a store that is there already was printed when it was made.
async fn root_token(server: &Server) -> Result<Zeroizing<String>, Failure> {
    let failed = |error: vault_kv::VaultError| Failure::failed(error.to_string());
    if server.vault().seal_status().map_err(failed)?.initialized {
        return Ok(Zeroizing::new(
            "<the one printed at the first start>".to_owned(),
        ));
    }
    let options = InitOptions {
        shares: 1,
        threshold: 1,
    };
    let outcome = server.vault().init(options).await.map_err(failed)?;
    Ok(outcome.root_token)
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    fs::File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}
