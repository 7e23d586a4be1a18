//! The `synctool` program.

use anyhow::Context;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> anyhow::Result<ExitCode> {
    // Every TLS connection of the process uses the same provider, whatever other crates would choose.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider was installed first"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the async runtime cannot be started")?;
    let exit = runtime.block_on(synctool::cli::main(std::env::args_os().collect()));
    // Work that is still blocked somewhere is not waited for: everything that counts is written.
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(ExitCode::from(exit))
}
