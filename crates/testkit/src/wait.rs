//! Waiting for a condition with a deadline, instead of sleeping and hoping.

use std::fmt::Display;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How long to rest before the next look: a tenth of what was waited already, or half as long as the last look took. A look
/// may be a program or some, which take the processor from what is waited for.
fn rest(waited: Duration, look: Duration) -> Duration {
    (waited / 10).max(look / 2).clamp(PAUSE, LONGEST_PAUSE)
}

/// What a condition says: done, or why not yet.
pub trait Verdict {
    /// `Err` holds the reason to show if the deadline passes.
    fn verdict(self) -> Result<(), String>;
}

impl Verdict for bool {
    fn verdict(self) -> Result<(), String> {
        if self {
            Ok(())
        } else {
            Err("the condition is still false".into())
        }
    }
}

impl<T, E: Display> Verdict for Result<T, E> {
    fn verdict(self) -> Result<(), String> {
        self.map(drop).map_err(|error| format!("{error:#}"))
    }
}

/// Blocks until `condition` holds.
///
/// # Panics
/// After `timeout`, naming what was awaited and the condition's last answer.
#[track_caller]
pub fn wait_for<V: Verdict>(what: &str, timeout: Duration, mut condition: impl FnMut() -> V) {
    let start = Instant::now();
    let mut look = start;
    while let Err(reason) = condition().verdict() {
        let waited = start.elapsed();
        if waited >= timeout {
            panic!("gave up after {timeout:?} waiting for {what}: {reason}");
        }
        pause_for(rest(waited, look.elapsed()));
        look = Instant::now();
    }
}

/// The same for asynchronous conditions; the runtime stays free meanwhile. A condition that never answers counts as
/// not holding.
///
/// # Panics
/// After `timeout`, naming what was awaited and the condition's last answer.
pub async fn eventually<V: Verdict>(what: &str, timeout: Duration, mut condition: impl AsyncFnMut() -> V) {
    let mut reason = String::from("no answer yet");
    let start = Instant::now();
    let wait = async {
        loop {
            let look = Instant::now();
            match condition().await.verdict() {
                Ok(()) => break,
                Err(why) => reason = why,
            }
            tokio::time::sleep(rest(start.elapsed(), look.elapsed())).await;
        }
    };
    if tokio::time::timeout(timeout, wait).await.is_err() {
        panic!("gave up after {timeout:?} waiting for {what}: {reason}");
    }
}

/// The breath between two looks at something that is looked at quickly.
pub(crate) fn pause() {
    pause_for(PAUSE);
}

#[allow(
    clippy::disallowed_methods,
    reason = "the one place that polls outside a runtime; callers have a deadline"
)]
fn pause_for(length: Duration) {
    std::thread::sleep(length);
}
