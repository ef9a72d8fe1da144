//! `mesh config validate`

use std::path::PathBuf;

use clap::Subcommand;

use super::{Failure, output};
use crate::config::{Config, Sources};

/// Check configuration.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read the configuration as `mesh agent` would and report everything that is wrong with it.
    Validate {
        /// File or directory; repeatable. Default: /etc/mesh.d
        #[arg(long, value_name = "FILE|DIR")]
        config: Vec<PathBuf>,
        /// Consul's own configuration, file or directory; repeatable.
        #[arg(long, value_name = "FILE|DIR")]
        consul_config: Vec<PathBuf>,
        /// Files or directories, as with --config.
        #[arg(value_name = "FILE|DIR")]
        paths: Vec<PathBuf>,
    },
}

impl Command {
    /// Runs the command.
    pub fn run(self) -> Result<(), Failure> {
        let Command::Validate {
            mut config,
            consul_config,
            paths,
        } = self;
        config.extend(paths);
        let sources = Sources::new(&config)
            .over_consul(&consul_config)
            .with_env(std::env::vars());
        let (consul, files) = sources
            .list()
            .map_err(|error| Failure::failed(format!("cannot list the configuration: {error}")))?;
        let config = Config::load(&sources).map_err(|errors| {
            eprintln!("{errors}");
            let count = errors.0.len();
            let plural = if count == 1 { "" } else { "s" };
            Failure::failed(format!("{count} error{plural} in the configuration"))
        })?;
        if !config.consul.meaningless.is_empty() {
            let keys = config.consul.meaningless.join(", ");
            eprintln!("these keys of Consul's configuration mean nothing here: {keys}");
        }
        let files: Vec<_> = consul
            .iter()
            .chain(&files)
            .map(|file| file.display().to_string())
            .collect();
        output::line(&match files.is_empty() {
            true => "valid (no files: defaults and environment only)".to_owned(),
            false => format!("valid: {}", files.join(", ")),
        })
    }
}
