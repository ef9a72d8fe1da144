//! What the binary and the parts behind it do, seen from outside.

mod accounts;
mod acl;
mod agent;
mod cli;
mod configured;
mod consul_agents;
mod consul_config;
mod consul_golden;
mod consul_server;
mod crash;
mod events;
mod external;
mod hardening;
mod host;
mod linear;
#[cfg(target_os = "linux")]
mod memory;
mod netns;
mod node;
mod operations;
mod server;
mod sessions;
mod strangers;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: vault_kv::ClearingAllocator = vault_kv::ClearingAllocator;
