//! What the binary and the parts behind it do, seen from outside.

mod agent;
mod cli;
mod crash;
mod netns;
mod node;
mod server;
