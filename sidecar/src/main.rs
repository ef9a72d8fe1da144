//! The `mesh` binary: hands the command line to the library and its exit code to the system.

/// Roles that have secrets have freed memory cleared.
#[global_allocator]
static ALLOCATOR: vault_kv::ClearingAllocator = vault_kv::ClearingAllocator;

fn main() -> std::process::ExitCode {
    sidecar::cli::main()
}
