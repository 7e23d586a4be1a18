//! Ctrl-C and SIGTERM: the first asks, the second does not.

use super::out;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_util::sync::CancellationToken;

/// What a command learns of signals.
#[derive(Clone, Default)]
pub(super) struct Interrupt {
    token: CancellationToken,
    graceful: Arc<AtomicBool>,
}

impl Interrupt {
    /// A token that the first signal cancels. Without this call the first signal ends the process.
    pub(super) fn token(&self) -> CancellationToken {
        self.graceful.store(true, Ordering::SeqCst);
        self.token.clone()
    }
}

/// Listens from now on.
pub(super) fn listen() -> Interrupt {
    let interrupt = Interrupt::default();
    let heard = interrupt.clone();
    tokio::spawn(async move {
        signal().await;
        if heard.graceful.load(Ordering::SeqCst) {
            out::to_stderr("stopping at the next boundary; what is committed stays (again to stop at once)");
            heard.token.cancel();
            signal().await;
        }
        // Nothing is lost: what is not committed is rolled back by the destination.
        std::process::exit(130);
    });
    interrupt
}

#[cfg(unix)]
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

#[cfg(not(unix))]
async fn signal() {
    let _ = tokio::signal::ctrl_c().await;
}
