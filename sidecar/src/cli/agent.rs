//! `mesh agent`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use http::Method;

use super::{Exit, Failure, Global, output};
use crate::{
    agent::{Agent, AgentError, Ended, Extras, Reread, logging},
    config::{Config, ConfigErrors, Sources},
};

/// Run this host's agent: membership, catalog, health checks, DNS, Consul-compatible HTTP.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Command {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    flags: ConfigFlags,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Have this host's agent (or server) restart in place: its services stay in all answers meanwhile.
    ///
    /// It tells the mesh that it is back within 15 seconds, ends what it does, and starts the program anew with the same
    /// arguments: an upgraded one, if the file was replaced.
    Restart,
}

impl Command {
    /// Runs until TERM or INT.
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        if let Some(What::Restart) = self.what {
            return super::once(restart(global));
        }
        let program = std::env::current_exe();
        let config = self.flags.load()?;
        logging::init(&config.log);
        let runtime = runtime()?;
        let ended = runtime.block_on(async {
            let agent = Agent::start(config, Extras::default()).await;
            let agent = agent.map_err(failure)?;
            agent.run(|| self.flags.reload()).await.map_err(failure)
        });
        match ended? {
            Ended::Left | Ended::Restarting => Ok(()),
            Ended::Again => {
                drop(runtime);
                Err(start_again(program))
            }
            Ended::AtOnce => Err(Failure::failed(
                "stopped by a second signal before the drain ended",
            )),
        }
    }
}

async fn restart(global: &Global) -> Result<(), Failure> {
    let client = global.addresses.socket();
    let what = "cannot restart the agent";
    let path = "/v1/mesh/restart";
    client.call(what, Method::POST, path, None).await?;
    output::line(&format!("restarting: {}", client.target()))
}

/// Becomes the program that is at this one's path by now, in the same process; returns only why it cannot.
pub fn start_again(program: std::io::Result<PathBuf>) -> Failure {
    use std::os::unix::process::CommandExt;
    let error = match program {
        Ok(program) => {
            let mut args = std::env::args_os();
            let mut command = std::process::Command::new(program);
            if let Some(name) = args.next() {
                command.arg0(name);
            }
            command.args(args).exec()
        }
        Err(error) => error,
    };
    Failure::failed(format!(
        "ended for a restart, but cannot start again: {error}"
    ))
}

/// The runtime of a node: the control plane needs little, and few threads keep it small.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    allow_open_files();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("mesh")
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))
}

/// Shells and units hand down a limit of 1,024 open files, which is less than the clients of a port that is within all its
/// own limits. Programs of checks inherit what is set here, so it is not all that the system would give.
fn allow_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const WANTED: u64 = 1 << 16;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(now, most)| match now < WANTED {
        true => setrlimit(Resource::RLIMIT_NOFILE, most.min(WANTED), most),
        false => Ok(()),
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the number of open files stays as it is");
    }
}

/// An agent that did not start, as exit code and message with its causes.
pub fn failure(error: AgentError) -> Failure {
    let exit = match error.is_temporary() {
        true => Exit::Later,
        false => Exit::Failed,
    };
    Failure::new(exit, format!("{:#}", anyhow::Error::from(error)))
}

/// Flags of every command that reads the configuration of a node.
#[derive(Debug, Clone, Args)]
pub struct ConfigFlags {
    /// File or directory; repeatable, later ones win. Default: /etc/mesh.d
    #[arg(long, value_name = "FILE|DIR")]
    config: Vec<PathBuf>,
    /// Configuration of Consul's own (JSON or HCL), file or directory; repeatable. --config wins over it.
    #[arg(long, value_name = "FILE|DIR")]
    consul_config: Vec<PathBuf>,
    /// This node's name (node.name).
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Where state is kept (node.data_dir).
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Address to listen on for other nodes (node.bind).
    #[arg(long, value_name = "IP")]
    bind: Option<String>,
    /// Address others reach this node at (node.advertise).
    #[arg(long, value_name = "IP")]
    advertise: Option<String>,
    /// Node to join, HOST or HOST:PORT; repeatable (join.seeds).
    #[arg(long = "join", value_name = "ADDRESS")]
    seeds: Vec<String>,
    /// File with a join token, for the first start (join.token_file).
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<String>,
    /// error, warn, info, debug or trace (log.level).
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl ConfigFlags {
    /// Reads the configuration: files, then environment, then these flags.
    pub fn load(&self) -> Result<Config, Failure> {
        self.read().map_err(|errors| {
            eprintln!("{errors}");
            Failure::failed("the configuration is not valid").next("mesh config validate")
        })
    }

    /// The same for a running process: what is wrong is logged, and nothing changes.
    pub fn reload(&self) -> Reread {
        match self.read() {
            Ok(config) => Ok(Some(config)),
            Err(errors) => {
                for problem in &errors.0 {
                    tracing::error!(place = %problem.place, "{}", problem.message);
                }
                tracing::error!("the configuration is not valid and was not reloaded");
                Err(errors.to_string())
            }
        }
    }

    fn read(&self) -> Result<Config, ConfigErrors> {
        let mut sources = Sources::new(&self.config)
            .over_consul(&self.consul_config)
            .with_env(std::env::vars());
        let seeds = (!self.seeds.is_empty()).then(|| self.seeds.join(","));
        for (flag, section, key, value) in [
            ("--node-name", "node", "name", &self.node_name),
            ("--data-dir", "node", "data_dir", &self.data_dir),
            ("--bind", "node", "bind", &self.bind),
            ("--advertise", "node", "advertise", &self.advertise),
            ("--join", "join", "seeds", &seeds),
            (
                "--join-token-file",
                "join",
                "token_file",
                &self.join_token_file,
            ),
            ("--log-level", "log", "level", &self.log_level),
        ] {
            if let Some(value) = value {
                sources = sources.with_flag(flag, section, key, value);
            }
        }
        Config::load(&sources)
    }
}
