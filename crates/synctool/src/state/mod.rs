//! What the program remembers between runs: runs, their partitions, and who is running what.
//!
//! The destination's checkpoint is the truth about progress; this is memory for people and for the next run. It lives in
//! one SQLite file per host ([`SqliteStore`]), or in PostgreSQL for many ([`PostgresStore`]). The JSON files beside it
//! ([`Outputs`]) are mirrors of it.
//!
//! The order of a run: [`Store::lock`] before anything else, then [`RunRecorder::start`] with that lock; the recorder is
//! the engine's observer; then [`RunRecorder::finish`] with the engine's result.

pub mod documents;
mod file_lock;
mod log;
mod model;
mod names;
mod outputs;
mod postgres;
mod recorder;
mod sql;
mod sqlite;

pub use documents::{MetricsDocument, PipelineMetrics, StateDocument, StrategyDocument};
pub use log::{Level, LogLine, LogReader};
pub(crate) use model::redacted;
pub use model::{
    Holder, PartitionCounts, PartitionRecord, Proof, RowCounts, Run, RunError, RunStatus, Time, new_run_id, now,
    rfc3339,
};
pub use names::file_name;
pub use outputs::Outputs;
pub use postgres::PostgresStore;
pub use recorder::{Recorded, RunInfo, RunRecorder, Summary};
pub use sqlite::SqliteStore;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use synctool_core::error::{Error, Result, code};
use tokio_util::sync::CancellationToken;

/// The program's memory.
#[async_trait]
pub trait Store: Send + Sync {
    /// Where it is, for messages: a file, or a server without its password.
    fn place(&self) -> &str;

    /// The right to run a pipeline, for as long as the lock lives. Fails with `ST-TXN-003` naming the holder.
    async fn lock(&self, pipeline: &str) -> Result<RunLock>;

    /// Who runs a pipeline now.
    async fn holder(&self, pipeline: &str) -> Result<Option<Holder>>;

    /// Writes down a new run of the locked pipeline. Runs still called running can only be dead: they become interrupted.
    async fn begin_run(&self, lock: &RunLock, run: &Run) -> Result<()>;

    /// The run as it is now and those of its partitions that changed, in one step. Refused (`ST-TXN-002`) once the run is
    /// over or was taken for dead.
    async fn save_run(&self, run: &Run, changed: &[PartitionRecord]) -> Result<()>;

    /// A run by its id.
    async fn run(&self, run_id: &str) -> Result<Run>;

    /// Runs, the newest first: of one pipeline, or of all.
    async fn runs(&self, pipeline: Option<&str>, limit: usize) -> Result<Vec<Run>>;

    /// The partitions of a run that were at least begun, in that order.
    async fn partitions(&self, run_id: &str) -> Result<Vec<PartitionRecord>>;

    /// The pipelines it knows, by name.
    async fn pipelines(&self) -> Result<Vec<String>>;

    /// A pipeline's state: its newest run since the last reset, and the newest of each strategy.
    async fn state(&self, pipeline: &str) -> Result<Option<PipelineMemory>>;

    /// Forgets a pipeline's state (or that of one strategy) and, with the whole of it, its private areas; the history of
    /// runs stays. Needs the pipeline's lock, so that nobody is running it.
    async fn reset(&self, lock: &RunLock, strategy: Option<&str>) -> Result<()>;

    /// Forgets old runs, but never the newest of a strategy or one that is going on. Returns them. See [`cleanup`], which
    /// removes their files too.
    async fn forget_runs(&self, retention: &Retention) -> Result<Vec<Run>>;

    /// Reads from a private area.
    async fn area_get(&self, area: &Area, key: &str) -> Result<Option<Vec<u8>>>;

    /// Changes a private area in one step: `None` deletes.
    async fn area_put(&self, area: &Area, changes: &[(String, Option<Vec<u8>>)]) -> Result<()>;

    /// Entries of a private area in the byte order of their keys: those after `after`, at most `limit`.
    async fn area_scan(&self, area: &Area, after: Option<&str>, limit: usize) -> Result<Vec<(String, Vec<u8>)>>;
}

/// Which runs are too old: those that ended before a time, or that have too many newer ones of their strategy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retention {
    /// Of this pipeline; `None`: of all.
    pub pipeline: Option<String>,
    /// Runs that ended before this are forgotten.
    pub ended_before: Option<Time>,
    /// So many runs of a strategy stay.
    pub per_strategy: Option<usize>,
}

/// Forgets old runs, their logs and their figures. Returns them.
pub async fn cleanup(store: &dyn Store, outputs: &Outputs, retention: &Retention) -> Result<Vec<Run>> {
    let runs = store.forget_runs(retention).await?;
    outputs.forget(&runs)?;
    Ok(runs)
}

/// Forgets the state of a pipeline, or of one of its strategies; the history of runs stays. The destination's checkpoint
/// is the caller's to clear.
pub async fn reset(store: &dyn Store, outputs: &Outputs, lock: &RunLock, strategy: Option<&str>) -> Result<()> {
    store.reset(lock, strategy).await?;
    let memory = store.state(lock.pipeline()).await?;
    outputs.write_state(lock.pipeline(), memory.as_ref(), outputs::Lasting::PowerCut)
}

/// A private area of a source: it alone knows what the bytes mean. Gone when the pipeline is reset.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Area {
    /// The pipeline.
    pub pipeline: String,
    /// The area's name in it.
    pub name: String,
}

/// What a pipeline's state is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipelineMemory {
    /// Its newest run.
    pub run: Run,
    /// The partition finished last in it.
    pub last_partition: Option<PartitionRecord>,
    /// The newest run of each strategy, the newest first, each with the failures since the last success.
    pub strategies: Vec<(Run, u64)>,
}

/// The right to run a pipeline.
pub struct RunLock {
    pipeline: String,
    holder: Holder,
    lost: CancellationToken,
    held: Box<dyn Held>,
}

impl RunLock {
    /// The pipeline.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// This process, as others see it.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Cancelled when the lock was lost (its server went away): the run should stop.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Gives the lock back. Dropping it does so too, but perhaps a moment later.
    pub async fn release(self) {
        self.held.release().await;
    }
}

impl std::fmt::Debug for RunLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RunLock({} by {})", self.pipeline, self.holder)
    }
}

/// Whatever keeps a lock.
#[async_trait]
trait Held: Send + Sync {
    async fn release(self: Box<Self>);
}

fn locked(pipeline: &str, holder: Option<&Holder>) -> Error {
    let by = holder.map_or_else(|| "another process".to_string(), Holder::to_string);
    Error::new(code::LOCKED, format!("the pipeline is already running: {by}"))
        .at("pipeline", pipeline)
        .hint("wait until it ends, or stop that process; its lock ends with it")
}
