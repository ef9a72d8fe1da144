//! The `mesh` binary: hands the command line to the library and its exit code to the system.

fn main() -> std::process::ExitCode {
    sidecar::cli::main()
}
