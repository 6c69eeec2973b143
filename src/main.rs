//! Parses arguments, calls the library, prints the error chain.

use std::process::ExitCode;

use clap::Parser;
use offhook::cli::Cli;

// Calls come and go for weeks: mimalloc keeps the heap small and fast under that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(code) = cli.run_bare() {
        return code;
    }
    // One provider of cryptography for every TLS client, chosen once. Fails only when a library chose one before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("offhook: the runtime could not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli.run(std::env::current_exe().ok())) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("offhook: {error:#}");
            ExitCode::FAILURE
        }
    }
}
