//! The JSON forms of runs and states, as the original's users know them. The same types are the CLI's and the API's
//! output.

use super::model::{RunStatus, Time, opt_time_text, partition_status, rfc3339, time_text};
use super::{PartitionRecord, PipelineMemory, Proof, Run, RunError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use synctool_core::engine::PartitionStatus;
use synctool_core::plan::Strategy;

/// `<pipeline>_state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateDocument {
    /// The pipeline.
    pub pipeline_id: String,
    /// The strategy of its newest run.
    pub strategy: String,
    /// Its newest run.
    pub run_id: String,
    /// How that stands.
    pub status: RunStatus,
    /// When it began.
    #[serde(with = "time_text")]
    pub started_at: Time,
    /// When it ended.
    #[serde(with = "opt_time_text", default)]
    pub completed_at: Option<Time>,
    /// The partition it finished last.
    pub last_completed_partition: Option<LastPartition>,
    /// How far it is.
    pub progress: ProgressDocument,
    /// When the pipeline last ran: the same as `started_at`.
    #[serde(with = "time_text")]
    pub last_run: Time,
    /// `host-pid` of its process.
    pub worker: String,
    /// One sentence for people.
    pub message: String,
    /// When it was last heard of.
    #[serde(with = "time_text")]
    pub updated_at: Time,
    /// The run that began the plan this one went on with.
    pub resumed_from: Option<String>,
    /// Why it did not complete.
    pub error: Option<RunError>,
    /// Each strategy's newest run.
    pub strategies: BTreeMap<String, StrategyDocument>,
}

/// The partition finished last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastPartition {
    /// Which.
    pub partition_id: String,
    /// When.
    #[serde(with = "opt_time_text")]
    pub completed_at: Option<Time>,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProgressDocument {
    /// Partitions in all.
    pub total_partitions: u64,
    /// Finished ones, those of earlier runs included.
    pub completed_partitions: u64,
    /// Given up.
    pub failed_partitions: u64,
    /// Rows read.
    pub rows_processed: u64,
}

/// A strategy's newest run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StrategyDocument {
    /// Its name.
    pub strategy: String,
    /// Its kind.
    #[serde(rename = "type")]
    pub strategy_type: Strategy,
    /// How that run stands.
    pub status: RunStatus,
    /// When it began.
    #[serde(with = "time_text")]
    pub last_run: Time,
    /// Its id.
    pub run_id: String,
    /// `host-pid` of its process.
    pub worker: String,
    /// One sentence for people.
    pub message: String,
    /// When it was last heard of.
    #[serde(with = "time_text")]
    pub updated_at: Time,
    /// Failed runs since the last completed one.
    pub retry_count: u64,
    /// Why it did not complete.
    pub error: Option<RunError>,
}

impl StateDocument {
    /// The document of what the store knows.
    pub fn new(memory: &PipelineMemory) -> Self {
        let run = &memory.run;
        let strategies = memory.strategies.iter().map(|(run, failures)| {
            let document = StrategyDocument {
                strategy: run.strategy.clone(),
                strategy_type: run.strategy_type,
                status: run.status,
                last_run: run.started_at,
                run_id: run.run_id.clone(),
                worker: run.worker.clone(),
                message: message(run),
                updated_at: run.updated_at,
                retry_count: *failures,
                error: run.error.clone(),
            };
            (run.strategy.clone(), document)
        });
        StateDocument {
            pipeline_id: run.pipeline.clone(),
            strategy: run.strategy.clone(),
            run_id: run.run_id.clone(),
            status: run.status,
            started_at: run.started_at,
            completed_at: run.completed_at,
            last_completed_partition: memory.last_partition.as_ref().map(|p| LastPartition {
                partition_id: p.id.clone(),
                completed_at: p.completed_at,
            }),
            progress: ProgressDocument {
                total_partitions: run.partitions.total,
                completed_partitions: run.partitions.completed,
                failed_partitions: run.partitions.failed,
                rows_processed: run.rows.processed,
            },
            last_run: run.started_at,
            worker: run.worker.clone(),
            message: message(run),
            updated_at: run.updated_at,
            resumed_from: run.resumed_from.clone(),
            error: run.error.clone(),
            strategies: strategies.collect(),
        }
    }

    /// The document of one strategy alone, if it has run.
    pub fn strategy(memory: &PipelineMemory, strategy: &str) -> Option<StrategyDocument> {
        Self::new(memory).strategies.remove(strategy)
    }
}

/// A run in one sentence.
pub fn message(run: &Run) -> String {
    match (run.status, &run.error) {
        (RunStatus::Completed, _) => format!("{} rows in {:.1} s", run.rows.processed, run.seconds()),
        (_, Some(e)) => format!("{} [{}]", e.message, e.code),
        (RunStatus::Running, None) if run.partitions.total == 0 => "planning".into(),
        (_, None) => format!(
            "{} of {} partitions, {} rows",
            run.partitions.completed, run.partitions.total, run.rows.processed
        ),
    }
}

impl fmt::Display for StateDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &str| writeln!(f, "{name:<16}{value}");
        line("pipeline", &self.pipeline_id)?;
        line("status", &format!("{}: {}", self.status, self.message))?;
        line("run", &format!("{} ({})", self.run_id, self.strategy))?;
        line("started", &rfc3339(&self.started_at))?;
        if let Some(t) = &self.completed_at {
            line("ended", &rfc3339(t))?;
        }
        line("worker", &self.worker)?;
        if let Some(run) = &self.resumed_from {
            line("resumed from", run)?;
        }
        let p = &self.progress;
        line(
            "partitions",
            &format!(
                "{} of {} done, {} failed",
                p.completed_partitions, p.total_partitions, p.failed_partitions
            ),
        )?;
        if let Some(last) = &self.last_completed_partition {
            let at = last.completed_at.as_ref().map(rfc3339).unwrap_or_default();
            line("last partition", &format!("{} {at}", last.partition_id))?;
        }
        line("rows", &p.rows_processed.to_string())?;
        if let Some(hint) = self.error.as_ref().and_then(|e| e.hint.as_deref()) {
            line("next", hint)?;
        }
        for s in self.strategies.values() {
            let failures = match s.retry_count {
                0 => String::new(),
                n => format!(", {n} failed since the last success"),
            };
            line(
                &format!("  {}", s.strategy),
                &format!("{} {} {}{failures}", s.status, rfc3339(&s.last_run), s.run_id),
            )?;
        }
        Ok(())
    }
}

/// `metrics/<pipeline>/<run_id>.json` and `latest_run.json`. A resumed run's rows are those of the whole plan, as the
/// ledger has them; `partitions_processed` are those that this run finished.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricsDocument {
    /// The run.
    pub run_id: String,
    /// The pipeline.
    pub pipeline: String,
    /// The strategy's name.
    pub strategy: String,
    /// How the run stands.
    pub status: RunStatus,
    /// When it began.
    #[serde(with = "time_text")]
    pub started_at: Time,
    /// When it ended.
    #[serde(with = "opt_time_text")]
    pub completed_at: Option<Time>,
    /// How long it took.
    #[serde(serialize_with = "seconds")]
    pub duration_seconds: f64,
    /// Rows read.
    pub rows_processed: u64,
    /// New at the destination.
    pub rows_inserted: u64,
    /// Changed there.
    pub rows_updated: u64,
    /// Gone from there.
    pub rows_deleted: u64,
    /// Already right.
    pub rows_unchanged: u64,
    /// Put aside with a reason.
    pub rows_rejected: u64,
    /// Partitions that this run finished.
    pub partitions_processed: u64,
    /// Partitions that an earlier run had finished.
    pub partitions_skipped: u64,
    /// Partitions given up.
    pub partitions_failed: u64,
    /// Failures: partitions given up, or the run itself.
    pub errors: u64,
    /// How often something was tried again.
    pub retries: u64,
    /// Bytes read.
    pub bytes: u64,
    /// How the stored rows were proved.
    pub verified: Option<Proof>,
    /// Rows per commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_sizes: Option<BatchSizes>,
    /// The run that began the plan this one went on with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed_from: Option<String>,
    /// Why it did not complete.
    pub error: Option<RunError>,
    /// Each partition that was begun, the slowest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partition_times: Vec<PartitionTime>,
}

/// Rows per commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BatchSizes {
    /// Commits.
    pub commits: u64,
    /// The fewest rows of one.
    pub min: u64,
    /// The most.
    pub max: u64,
    /// The mean.
    pub mean: u64,
    /// All of them together.
    #[serde(skip)]
    pub total: u64,
}

impl BatchSizes {
    pub(super) fn add(&mut self, rows: u64) {
        self.min = if self.commits == 0 { rows } else { self.min.min(rows) };
        self.max = self.max.max(rows);
        self.commits += 1;
        self.total += rows;
        self.mean = self.total / self.commits;
    }
}

/// How long a partition took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartitionTime {
    /// Which.
    pub partition_id: String,
    /// Where it is.
    #[serde(with = "partition_status")]
    pub status: PartitionStatus,
    /// How long this run worked on it.
    #[serde(serialize_with = "seconds")]
    pub seconds: f64,
    /// Rows read.
    pub rows: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// Whole numbers as such, as the original writes them.
fn seconds<S: serde::Serializer>(x: &f64, s: S) -> Result<S::Ok, S::Error> {
    let rounded = (x * 1000.0).round() / 1000.0;
    if rounded.fract() == 0.0 {
        s.serialize_u64(rounded as u64)
    } else {
        s.serialize_f64(rounded)
    }
}

impl MetricsDocument {
    /// The figures of a run.
    pub fn new(run: &Run, partitions: &[PartitionRecord], batches: Option<BatchSizes>) -> Self {
        let mut partition_times: Vec<PartitionTime> = partitions
            .iter()
            .filter(|p| p.status != PartitionStatus::Skipped)
            .map(|p| PartitionTime {
                partition_id: p.id.clone(),
                status: p.status,
                seconds: p.seconds,
                rows: p.rows,
                bytes: p.bytes,
            })
            .collect();
        partition_times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        MetricsDocument {
            run_id: run.run_id.clone(),
            pipeline: run.pipeline.clone(),
            strategy: run.strategy.clone(),
            status: run.status,
            started_at: run.started_at,
            completed_at: run.completed_at,
            duration_seconds: run.seconds(),
            rows_processed: run.rows.processed,
            rows_inserted: run.rows.inserted,
            rows_updated: run.rows.updated,
            rows_deleted: run.rows.deleted,
            rows_unchanged: run.rows.unchanged,
            rows_rejected: run.rows.rejected,
            partitions_processed: run.partitions.completed.saturating_sub(run.partitions.skipped),
            partitions_skipped: run.partitions.skipped,
            partitions_failed: run.partitions.failed,
            errors: run.errors(),
            retries: run.retries,
            bytes: run.bytes,
            verified: run.verified,
            batch_sizes: batches.filter(|b| b.commits > 0),
            resumed_from: run.resumed_from.clone(),
            error: run.error.clone(),
            partition_times,
        }
    }
}

/// `<pipeline>_metrics.json`: figures over the runs that are kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PipelineMetrics {
    /// The pipeline.
    pub pipeline: String,
    /// When it was last heard of.
    #[serde(with = "opt_time_text")]
    pub updated_at: Option<Time>,
    /// Runs that are kept.
    pub runs: u64,
    /// Those that completed.
    pub completed: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that were interrupted.
    pub interrupted: u64,
    /// The share of completed ones among those that ended by themselves.
    pub success_rate: Option<f64>,
    /// The mean duration of completed runs.
    pub average_duration_seconds: Option<f64>,
    /// Rows read by completed runs.
    pub rows_processed: u64,
    /// New at the destination.
    pub rows_inserted: u64,
    /// Changed there.
    pub rows_updated: u64,
    /// Gone from there.
    pub rows_deleted: u64,
    /// The newest run.
    pub latest_run: Option<MetricsDocument>,
}

impl PipelineMetrics {
    /// Figures over runs, the newest first.
    pub fn new(pipeline: &str, runs: &[Run]) -> Self {
        let count = |status| runs.iter().filter(|r| r.status == status).count() as u64;
        let (completed, failed) = (count(RunStatus::Completed), count(RunStatus::Failed));
        let good = || runs.iter().filter(|r| r.status == RunStatus::Completed);
        let rounded = |x: f64| (x * 1000.0).round() / 1000.0;
        PipelineMetrics {
            pipeline: pipeline.into(),
            updated_at: runs.first().map(|r| r.updated_at),
            runs: runs.len() as u64,
            completed,
            failed,
            interrupted: count(RunStatus::Interrupted),
            success_rate: (completed + failed > 0).then(|| rounded(completed as f64 / (completed + failed) as f64)),
            average_duration_seconds: (completed > 0)
                .then(|| rounded(good().map(Run::seconds).sum::<f64>() / completed as f64)),
            rows_processed: good().map(|r| r.rows.processed).sum(),
            rows_inserted: good().map(|r| r.rows.inserted).sum(),
            rows_updated: good().map(|r| r.rows.updated).sum(),
            rows_deleted: good().map(|r| r.rows.deleted).sum(),
            latest_run: runs.first().map(|r| MetricsDocument::new(r, &[], None)),
        }
    }
}

/// `<pipeline>_history.json` and the API's history: a bare list, the newest run first, without the partitions.
pub fn history(runs: &[Run]) -> Vec<MetricsDocument> {
    runs.iter().map(|r| MetricsDocument::new(r, &[], None)).collect()
}
