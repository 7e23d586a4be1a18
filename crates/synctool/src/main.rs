//! The `synctool` program.

use anyhow::Context;
use std::process::ExitCode;
use std::time::Duration;

/// Large blocks go back to the system as soon as they are free. Left alone, glibc keeps ever larger ones in its heaps:
/// a log's backlog took half as much memory again.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "there is no safe way to it")]
fn give_memory_back() {
    // SAFETY: it sets a number of the allocator, before there is another thread.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 512 << 10) };
}

fn main() -> anyhow::Result<ExitCode> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    give_memory_back();
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
