//! One byte budget per process: memory for rows is reserved before they are decoded and given back when dropped.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits are counted in KiB, because a semaphore counts to 2^29 on 32-bit machines and 2^61 here, but one
/// acquisition is a u32.
const UNIT: usize = 1024;

/// The process's byte budget. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Budget {
    permits: Arc<Semaphore>,
    units: usize,
}

impl Budget {
    /// A budget of so many bytes (at least 1 MiB).
    pub fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT).max(1024);
        Budget {
            permits: Arc::new(Semaphore::new(units)),
            units,
        }
    }

    /// The whole budget in bytes.
    pub fn total(&self) -> usize {
        self.units * UNIT
    }

    /// The bytes nobody holds at the moment.
    pub fn free(&self) -> usize {
        self.permits.available_permits() * UNIT
    }

    /// Waits until `bytes` are free and holds them. More than the whole budget waits for all of it: one row larger
    /// than the budget still passes, alone.
    pub async fn reserve(&self, bytes: usize) -> Hold {
        let units = bytes.div_ceil(UNIT).clamp(1, self.units) as u32;
        let permit = self
            .permits
            .clone()
            .acquire_many_owned(units)
            .await
            .expect("the budget is never closed");
        Hold(Some(Arc::new(permit)))
    }
}

/// Memory that is held until the last clone of this is dropped.
#[derive(Debug, Clone, Default)]
pub struct Hold(#[allow(dead_code, reason = "held for its drop")] Option<Arc<OwnedSemaphorePermit>>);

impl Hold {
    /// Holds nothing.
    pub fn none() -> Self {
        Hold(None)
    }

    /// Holds a permit.
    pub fn of(permit: OwnedSemaphorePermit) -> Self {
        Hold(Some(Arc::new(permit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_comes_back_when_dropped_and_a_giant_passes_alone() {
        let b = Budget::new(2 << 20);
        let a = b.reserve(1 << 20).await;
        let c = a.clone();
        drop(a);
        assert_eq!(b.free(), 1 << 20);
        drop(c);
        assert_eq!(b.free(), b.total());
        let giant = b.reserve(1 << 30).await;
        assert_eq!(b.free(), 0);
        drop(giant);
        assert_eq!(b.free(), b.total());
    }
}
