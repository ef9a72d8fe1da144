//! The command line: one file per command.
//!
//! Every command returns a [`Failure`] instead of exiting, so that there is one place that prints and one
//! that decides the exit code. Answers go to stdout, everything else to stderr; logs never to stdout.
//! Secrets come from stdin, files or a prompt and never stand among the arguments.

pub mod client;
pub mod failure;
pub mod input;
pub mod output;

pub mod agent;
mod audit;
mod auth;
mod completions;
mod config;
mod demo;
mod dev;
mod dns;
mod intention;
mod join_token;
mod kv;
mod lease;
mod maintenance;
mod members;
mod operator;
mod policy;
mod secret;
mod server;
mod services;
mod sidecar;
mod token;
mod version;

use std::{ffi::OsString, process::ExitCode};

use clap::{Args, Parser, Subcommand, error::ErrorKind};

pub use failure::{Exit, Failure};

/// Mesh finds services, connects them over mutual TLS, and hands them short-lived secrets.
#[derive(Debug, Parser)]
#[command(name = "mesh", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 ok, 1 failed, 2 remote unreachable or refused by it \
    (operator status: 2 = sealed), 64 usage, 75 try later, 77 denied."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// How to print answers.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: output::Format,
    #[command(flatten)]
    addresses: client::Addresses,
    /// End when standard input does: for a parent that must not leave children behind.
    #[arg(long, global = true, hide = true)]
    end_with_parent: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::Command),
    Server(server::Command),
    Dev(dev::Command),
    Demo(demo::Command),
    #[command(hide = true)]
    DemoApp(demo::App),
    Members(members::Command),
    Services(services::Command),
    #[command(subcommand)]
    Dns(dns::Command),
    #[command(subcommand)]
    Maintenance(maintenance::Command),
    Sidecar(sidecar::Command),
    #[command(subcommand)]
    Intention(intention::Command),
    #[command(subcommand)]
    Kv(kv::Command),
    #[command(subcommand)]
    Secret(secret::Command),
    #[command(subcommand)]
    Token(token::Command),
    #[command(subcommand)]
    Policy(policy::Command),
    #[command(subcommand)]
    Auth(auth::Command),
    #[command(subcommand)]
    Lease(lease::Command),
    #[command(subcommand)]
    Audit(audit::Command),
    #[command(subcommand)]
    Operator(operator::Command),
    #[command(subcommand)]
    JoinToken(join_token::Command),
    #[command(subcommand)]
    Config(config::Command),
    Completions(completions::Command),
    Version(version::Command),
}

/// Runs the process's command line and says how it ended.
pub fn main() -> ExitCode {
    match run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            failure.exit.into()
        }
    }
}

fn run(args: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let cli = match Cli::try_parse_from(as_asked(args)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let global = cli.global;
    if global.end_with_parent {
        crate::demo::end_with_parent();
    }
    match cli.command {
        // Long-running commands build the runtime they want.
        Command::Agent(command) => command.run(&global),
        Command::Server(command) => command.run(),
        Command::Dev(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::DemoApp(command) => command.run(),
        Command::Config(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Version(command) => command.run(&global),
        Command::Sidecar(command) => command.run(&global),
        Command::Members(command) => once(command.run(&global)),
        Command::Services(command) => once(command.run(&global)),
        Command::Dns(command) => once(command.run(&global)),
        Command::Maintenance(command) => once(command.run(&global)),
        Command::Intention(command) => once(command.run(&global)),
        Command::Kv(command) => once(command.run(&global)),
        Command::Secret(command) => once(command.run(&global)),
        Command::Token(command) => once(command.run(&global)),
        Command::Policy(command) => once(command.run(&global)),
        Command::Auth(command) => once(command.run(&global)),
        Command::Lease(command) => once(command.run(&global)),
        Command::Audit(command) => once(command.run(&global)),
        Command::Operator(command) => once(command.run(&global)),
        Command::JoinToken(command) => once(command.run(&global)),
    }
}

/// Tools ask `version -format=json`, with one dash, as Go's flags are written.
fn as_asked(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<_> = args.into_iter().collect();
    if args.get(1).is_some_and(|command| command == "version") {
        for arg in args.iter_mut().skip(2) {
            if let Some(rest) = arg.to_str().and_then(|arg| arg.strip_prefix("-format")) {
                *arg = format!("--format{rest}").into();
            }
        }
    }
    args
}

/// Help and version are answers; everything else that clap objects to is a usage error.
fn usage(error: &clap::Error) -> Result<(), Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            print_help(error);
            Ok(())
        }
        _ => {
            print_help(error);
            Err(Failure::silent(Exit::Usage))
        }
    }
}

fn print_help(error: &clap::Error) {
    // The reader of stdout or stderr may have closed it; there is nobody left to tell.
    let _ = error.print();
}

/// Runs a short command on a runtime of its own.
fn once(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }
}
