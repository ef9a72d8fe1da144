//! `mesh demo`, and the service it runs.

use std::net::SocketAddr;

use clap::Args;

use super::{Failure, agent::runtime};
use crate::demo;

/// Start a whole mesh on this machine and walk through what it does, step by step.
#[derive(Debug, Args)]
pub struct Command {
    /// End after the last step instead of staying up; the exit code says whether every step held.
    #[arg(long)]
    once: bool,
}

impl Command {
    /// Runs the demo.
    pub fn run(self) -> Result<(), Failure> {
        runtime()?
            .block_on(demo::run(self.once))
            .map_err(|error| Failure::failed(format!("the demo failed: {error:#}")))
    }
}

/// The demo's HTTP service.
#[derive(Debug, Args)]
pub struct App {
    /// Where it listens.
    #[arg(long)]
    listen: SocketAddr,
    /// What it says it is.
    #[arg(long)]
    app_version: String,
}

impl App {
    /// Serves until the process ends.
    pub fn run(self) -> Result<(), Failure> {
        runtime()?
            .block_on(demo::run_app(self.listen, self.app_version))
            .map_err(|error| Failure::failed(format!("the demo's service failed: {error:#}")))
    }
}
