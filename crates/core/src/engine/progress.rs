//! What a run is doing right now, as values anybody may read while it goes on.

use crate::error::Error;
use crate::ledger::{Applied, Ledger};
use crate::plan::Plan;
use crate::progress::PartitionId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

/// What a run is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Looking at both ends and making the plan.
    Planning,
    /// Writing partitions.
    Partitions,
    /// Building keys.
    Sealing,
    /// Proving what was stored.
    Verifying,
    /// Putting it in place.
    Publishing,
    /// Nothing any more.
    Finished,
}

/// Where a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartitionStatus {
    /// Not begun in this run.
    Waiting,
    /// Being written.
    Running,
    /// Waiting to be tried again.
    Retrying,
    /// Finished by an earlier run.
    Skipped,
    /// Finished.
    Done,
    /// Given up.
    Failed,
}

/// Something worth telling, in order.
#[derive(Debug)]
pub enum RunEvent<'a> {
    /// The plan stands; `resumed` tells that an earlier run made it.
    Planned {
        /// The plan.
        plan: &'a Plan,
        /// Whether it was loaded.
        resumed: bool,
    },
    /// A partition begins, or begins again.
    PartitionStarted {
        /// Which.
        partition: &'a PartitionId,
    },
    /// A commit was made durable.
    Committed {
        /// Which partition.
        partition: &'a PartitionId,
        /// What the sink did.
        applied: Applied,
    },
    /// Stages put rows aside. After a retry or a resumed run the same rows may be told again.
    Rejected {
        /// Which partition.
        partition: &'a PartitionId,
        /// The rows.
        rejects: &'a [crate::stage::Reject],
    },
    /// A partition is done.
    PartitionDone {
        /// Which.
        partition: &'a PartitionId,
        /// Rows it read in all.
        rows: u64,
        /// How long this run worked on it.
        took: Duration,
        /// Whether an earlier run had finished it.
        skipped: bool,
    },
    /// Something failed and will be tried again.
    Retrying {
        /// Which partition.
        partition: &'a PartitionId,
        /// Why.
        error: &'a Error,
        /// How long the wait is.
        delay: Duration,
    },
    /// The next step begins.
    Step(Step),
    /// The run is over; the ledger balances.
    Finished {
        /// Its accounts.
        ledger: &'a Ledger,
    },
}

/// Takes what a run tells. Called from many tasks; must not block.
pub trait Observer: Send + Sync {
    /// One event.
    fn event(&self, event: &RunEvent<'_>);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: &RunEvent<'_>) {}
}

#[derive(Debug)]
struct Entry {
    id: PartitionId,
    phase: String,
    status: Mutex<PartitionStatus>,
    rows: AtomicU64,
    bytes: AtomicU64,
    expected_rows: u64,
    expected_bytes: u64,
}

/// A picture of one partition.
#[derive(Debug, Clone, serde::Serialize)]
pub struct PartitionView {
    /// Which.
    pub id: PartitionId,
    /// Its phase.
    pub phase: String,
    /// Where it is.
    pub status: PartitionStatus,
    /// Rows read so far.
    pub rows: u64,
    /// Bytes read so far.
    pub bytes: u64,
    /// Rows the plan expected.
    pub expected_rows: u64,
    /// Bytes the plan expected.
    pub expected_bytes: u64,
}

/// The live picture of a run.
#[derive(Debug)]
pub struct Progress {
    step: Mutex<Step>,
    entries: RwLock<(Vec<Entry>, HashMap<PartitionId, usize>)>,
    retries: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Progress {
            step: Mutex::new(Step::Planning),
            entries: RwLock::default(),
            retries: AtomicU64::new(0),
        }
    }
}

impl Progress {
    pub(crate) fn planned(&self, plan: &Plan) {
        let mut entries = Vec::new();
        for phase in plan.phases.iter() {
            for p in &phase.partitions {
                entries.push(Entry {
                    id: p.id.clone(),
                    phase: phase.name.clone(),
                    status: Mutex::new(PartitionStatus::Waiting),
                    rows: AtomicU64::new(0),
                    bytes: AtomicU64::new(0),
                    expected_rows: p.estimated_rows,
                    expected_bytes: p.estimated_bytes,
                });
            }
        }
        let index = entries.iter().enumerate().map(|(i, e)| (e.id.clone(), i)).collect();
        *self.entries.write().expect("not poisoned") = (entries, index);
    }

    fn with(&self, id: &PartitionId, f: impl FnOnce(&Entry)) {
        let guard = self.entries.read().expect("not poisoned");
        if let Some(i) = guard.1.get(id) {
            f(&guard.0[*i]);
        }
    }

    pub(crate) fn set_step(&self, step: Step) {
        *self.step.lock().expect("not poisoned") = step;
    }

    pub(crate) fn set_status(&self, id: &PartitionId, status: PartitionStatus) {
        if status == PartitionStatus::Retrying {
            self.retries.fetch_add(1, Ordering::Relaxed);
        }
        self.with(id, |e| *e.status.lock().expect("not poisoned") = status);
    }

    pub(crate) fn set_read(&self, id: &PartitionId, rows: u64, bytes: u64) {
        self.with(id, |e| {
            e.rows.store(rows, Ordering::Relaxed);
            e.bytes.store(bytes, Ordering::Relaxed);
        });
    }

    /// What the run is at.
    pub fn step(&self) -> Step {
        *self.step.lock().expect("not poisoned")
    }

    /// How often something was tried again.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Every partition as it is now.
    pub fn partitions(&self) -> Vec<PartitionView> {
        let guard = self.entries.read().expect("not poisoned");
        let view = |e: &Entry| PartitionView {
            id: e.id.clone(),
            phase: e.phase.clone(),
            status: *e.status.lock().expect("not poisoned"),
            rows: e.rows.load(Ordering::Relaxed),
            bytes: e.bytes.load(Ordering::Relaxed),
            expected_rows: e.expected_rows,
            expected_bytes: e.expected_bytes,
        };
        guard.0.iter().map(view).collect()
    }
}
