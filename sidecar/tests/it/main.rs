//! What the binary and the parts behind it do, seen from outside.

mod agent;
mod cli;
mod crash;
mod node;
mod server;
