//! `mesh completions`

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure, output};

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "For example: mesh completions bash > /etc/bash_completion.d/mesh")]
pub struct Command {
    /// Which shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Command {
    /// Runs the command.
    pub fn run(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "mesh", &mut script);
        output::bytes(&script)
    }
}
