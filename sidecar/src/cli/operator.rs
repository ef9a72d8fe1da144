//! `mesh operator`

use clap::Subcommand;
use serde_json::{Map, Value};

use super::{Failure, Global, output};

mod keyring;
mod ledger;
mod seal;
mod shares;
mod snapshot;

/// Run the sealed store: keys, seal, history. Shares, keys and passwords come from stdin, files or a prompt.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Exit codes: 0 done; 1 failed, or a damaged ledger or snapshot; 2 sealed or not initialised (status), \
    unreachable, refused; 64 usage; 75 not now (sealed, no audit log takes it): try later; 77 not allowed."
)]
pub enum Command {
    /// Make the store, its unseal key shares and the root token. Once, on the server's own host.
    Init(seal::Init),
    /// Give one share of the unseal key; when enough were given the store opens.
    Unseal(seal::Unseal),
    /// Close the store: keys leave memory, secrets and new certificates stop, discovery and calls go on.
    Seal,
    /// Show whether the store is initialised and open. Exit code 2: sealed.
    Status,
    /// Make new unseal key shares.
    #[command(subcommand)]
    Rekey(shares::Rekey),
    /// Seal with a new key from here on; old records stay readable.
    Rotate {
        /// Only show which key seals, since when and how often.
        #[arg(long)]
        status: bool,
    },
    /// Make a root token, by a threshold of shares.
    #[command(subcommand)]
    GenerateRoot(shares::GenerateRoot),
    /// Check the hash chain of the whole ledger.
    Verify(ledger::Verify),
    /// Take out of the disk what nobody needs: values that were destroyed, and those overwritten longer than
    /// `server.history_retention` ago. Who changed what stays. The server does it by itself as well; reads and writes go on.
    /// Needs the right `update` on `mesh/ledger`.
    Compact,
    /// Save the whole store in one file, look into such a file, make a store of it.
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    /// Rotate the keys that seal membership datagrams: install a new one, use it, remove the old one.
    #[command(subcommand)]
    Keyring(keyring::Keyring),
    /// List changes, the latest first: who, what, when.
    History(ledger::History),
}

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        vault_kv::clear_freed_memory();
        let client = || global.addresses.vault();
        match self {
            Command::Init(init) => init.run(&client()?).await,
            Command::Unseal(unseal) => unseal.run(global, &client()?).await,
            Command::Seal => seal::seal(&client()?).await,
            Command::Status => seal::status(global, &client()?).await,
            Command::Rekey(rekey) => rekey.run(global, &client()?).await,
            Command::Rotate { status } => seal::rotate(global, &client()?, status).await,
            Command::GenerateRoot(root) => root.run(global, &client()?).await,
            Command::Verify(verify) => verify.run(global).await,
            Command::Compact => ledger::compact(global).await,
            Command::Snapshot(snapshot) => snapshot.run(global).await,
            Command::Keyring(step) => step.run(global).await,
            Command::History(history) => history.run(global).await,
        }
    }
}

/// What is to be said of one thing: a table with a row each, or a JSON object.
fn facts(global: &Global, title: &str, facts: Vec<(&'static str, Value)>) -> Result<(), Failure> {
    let rows = facts.iter().map(|(name, value)| {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        vec![name.replace('_', " "), value]
    });
    let rows = rows.collect();
    let object: Map<_, _> = facts
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    output::rows(global.output, &[title, ""], rows, &object)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
