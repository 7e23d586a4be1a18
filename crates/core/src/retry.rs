//! When to try again, and how long to wait before.

use rand::Rng;
use std::time::Duration;

/// Exponential backoff with full jitter, so that many workers do not come back at the same moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Tries in all, for one piece of work without progress in between.
    pub attempts: u32,
    /// The longest first wait.
    pub initial: Duration,
    /// What each further wait grows by.
    pub factor: f64,
    /// No wait is longer.
    pub max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            attempts: 8,
            initial: Duration::from_millis(200),
            factor: 2.0,
            max: Duration::from_secs(30),
        }
    }
}

impl RetryPolicy {
    /// Never try again.
    pub fn never() -> Self {
        RetryPolicy {
            attempts: 1,
            ..RetryPolicy::default()
        }
    }

    /// The wait after the `failed`th failure (from 1): between half of the growing bound and all of it.
    pub fn delay(&self, failed: u32) -> Duration {
        let bound = self.initial.as_secs_f64() * self.factor.powi(failed.saturating_sub(1).min(64) as i32);
        let bound = bound.min(self.max.as_secs_f64());
        Duration::from_secs_f64(rand::rng().random_range(bound / 2.0..=bound))
    }
}

/// How long to pause between two looks at something that is looked at `every` so often, and oftener at first, as long as
/// somebody sets it up: `since` is how long it goes on already.
pub fn oftener_at_first(every: Duration, since: Duration) -> Duration {
    every.min(since / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound() {
        let p = RetryPolicy::default();
        for n in 1..100 {
            let d = p.delay(n).as_secs_f64();
            let bound = (0.2 * 2f64.powi(n as i32 - 1)).min(30.0);
            assert!(d >= bound / 2.0 && d <= bound, "{n}: {d}");
        }
    }
}
