//! `mesh version`

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Failure, Global, output};
use crate::consul::COMPATIBLE;

/// Show the version of this program, and of Consul that its interface behaves as.
///
/// `-format=json` is taken, too, and answers in the form of `consul version -format=json`: tools look there for what
/// they may use, so `Version` is the version of Consul that clients are told.
#[derive(Debug, Args)]
pub struct Command {
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Pretty,
    Json,
}

impl Command {
    /// Prints it.
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        let own = env!("CARGO_PKG_VERSION");
        if self.format == Format::Json || global.output == output::Format::Json {
            return output::json(&json!({
                "Version": COMPATIBLE,
                "Revision": "",
                "Prerelease": "",
                "BuildDate": "1970-01-01T00:00:01Z",
                "RPC": { "Default": 2, "Min": 2, "Max": 3 },
                "Mesh": own,
            }));
        }
        output::line(&format!("mesh {own}, which answers as Consul {COMPATIBLE}"))
    }
}
