//! `mesh server`

use clap::Args;

use super::{
    Failure,
    agent::{ConfigFlags, failure, runtime, start_again},
};
use crate::{
    agent::{Ended, logging},
    server::{Openness, Server, ServerError},
};

/// Run a server: an agent with the sealed store, the certificate authority and the Vault port.
#[derive(Debug, Args)]
pub struct Command {
    #[command(flatten)]
    flags: ConfigFlags,
}

impl Command {
    /// Runs until TERM or INT.
    pub fn run(self) -> Result<(), Failure> {
        let program = std::env::current_exe();
        let config = self.flags.load()?;
        logging::init(&config.log);
        harden();
        let runtime = runtime()?;
        let ended = runtime.block_on(async {
            let server = Server::open(config, Openness::default())
                .await
                .map_err(server_failure)?;
            let starting = server.start(Openness::default());
            let running = tokio::select! {
                running = starting => running.map_err(server_failure)?,
                signal = stopped() => {
                    signal?;
                    tracing::info!("stopped before this server became a node");
                    return Ok(Ended::Left);
                }
            };
            let reload = || self.flags.reload();
            running.run(reload).await.map_err(server_failure)
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

/// Keeps key memory out of core dumps and other processes' reach, and has freed memory cleared.
pub fn harden() {
    vault_kv::clear_freed_memory();
    if let Err(error) = vault_kv::harden_process() {
        tracing::warn!(%error, "this process cannot be kept out of core dumps");
    }
}

/// TERM or INT, for as long as no agent listens for them.
pub async fn stopped() -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let cannot = |error| Failure::failed(format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// A server that did not start, as exit code and message with its causes.
pub fn server_failure(error: ServerError) -> Failure {
    match error {
        ServerError::Agent(error) => failure(error),
        error => Failure::failed(format!("{:#}", anyhow::Error::from(error))),
    }
}
