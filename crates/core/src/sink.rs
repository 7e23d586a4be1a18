//! Where rows go.

use crate::change::{Event, RawFormat};
use crate::error::{Error, Result, code};
use crate::ledger::Applied;
use crate::plan::{Plan, Publish};
use crate::progress::{Advance, Checkpoint, PartitionId};
use crate::schema::{Carrier, Column, TableId, TableSchema};
use crate::source::{Finding, Source};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a destination promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Position and data are one transaction.
    ExactlyOnce,
    /// Written again after a crash, but only once visible (derived names, labels, keys).
    EffectivelyOnce,
}

/// What the engine must know about a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkTraits {
    /// How many sinks may write at the same time.
    pub writers: usize,
    /// What it promises.
    pub guarantee: Guarantee,
    /// Whether the changes of a log can be applied directly.
    pub applies_changes: bool,
    /// Whether the table is one file, which wants one partition.
    pub single_partition: bool,
}

/// How faithfully a column arrives.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "class", content = "note")]
pub enum Fidelity {
    /// Every value arrives as it was, in the same kind of type.
    Exact,
    /// Every value arrives as it was, in a wider type.
    Widened(String),
    /// Values arrive in another, documented form.
    Normalised(String),
    /// Some or all values cannot be stored; such a row stops the run (or is rejected), never altered.
    Refused(String),
}

/// How a column is stored at a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAs {
    /// The destination's type, as its DDL writes it.
    pub type_name: String,
    /// How values should travel there.
    pub carrier: Carrier,
    /// How faithfully they arrive.
    pub fidelity: Fidelity,
}

/// The plan a destination holds for a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredPlan {
    /// The plan.
    pub plan: Plan,
    /// Whether it was published.
    pub finished: bool,
}

/// What publishing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Published {
    /// Row accounts at the destination table; `written` is the number of rows loaded.
    pub applied: Applied,
}

/// A datastore that rows are written to: knows its tables, keeps the plan and the checkpoint, opens sinks.
///
/// A run has three steps here. `prepare` (once) raises the generation and stores the plan; any number of sinks write
/// partitions; then `seal` (build keys) and `publish` (swap or merge, fold) finish it. Each step may be killed and
/// called again.
#[async_trait]
pub trait Destination: Send + Sync {
    /// The engine's name.
    fn engine(&self) -> &'static str;

    /// What the engine must know.
    fn traits(&self) -> SinkTraits;

    /// How a source column would be stored here, by type; `Refused` for one that cannot be.
    fn store_as(&self, source_engine: &str, column: &Column) -> StoredAs;

    /// The columns and key of a table, or `None` if there is no such table.
    async fn describe(&self, table: &TableId) -> Result<Option<TableSchema>>;

    /// Whether the table holds any row.
    async fn is_empty(&self, table: &TableId) -> Result<bool>;

    /// Whether an earlier run of ours made the table, so that replacing it takes nothing from anybody.
    async fn made_here(&self, table: &TableId) -> Result<bool> {
        let _ = table;
        Ok(false)
    }

    /// The statement that gives a column of an existing table the wider type of `wanted`, so that it keeps every value it has
    /// and takes every one of `wanted`; `None` where it would not become wider, or cannot. An error names what stands in
    /// the way of a statement that would do it ([`not_widened`]).
    async fn widen(&self, table: &TableId, there: &Column, wanted: &Column) -> Result<Option<String>> {
        let _ = (table, there, wanted);
        Ok(None)
    }

    /// The type of the column that is `there`, where values of the same logical type that would be stored as `type_name` are
    /// to be written as that: it keeps fewer digits, and by it whoever writes refuses what would be rounded. `None` where
    /// nothing is rounded; an error where some values would be, and nobody could see it.
    fn narrowed(&self, there: &Column, type_name: &str) -> Result<Option<String>> {
        let _ = (there, type_name);
        Ok(None)
    }

    /// Why an existing table cannot be swapped without losing something (incoming foreign keys, user triggers, row
    /// security, extra columns); empty if it can.
    async fn swap_obstacles(&self, table: &TableId, wanted: &TableSchema) -> Result<Vec<String>>;

    /// Whether rows in this wire format can be written undecoded into columns stored like this.
    fn accepts_raw(&self, format: &RawFormat, columns: &[(String, Column)]) -> bool {
        let _ = (format, columns);
        false
    }

    /// The statements that prepare and publish would run, for `plan`; nothing is changed.
    async fn preview(&self, plan: &Plan) -> Result<Vec<String>>;

    /// The newest plan stored for a pipeline.
    async fn stored_plan(&self, pipeline: &str) -> Result<Option<StoredPlan>>;

    /// Raises the pipeline's generation, stores the plan under it and makes the tables to load into; load tables of
    /// older generations go. One transaction where the engine allows it. Returns the plan with its generation.
    async fn prepare(&self, plan: Plan) -> Result<Plan>;

    /// Where all partitions of a plan stand.
    async fn checkpoint(&self, plan: &Plan) -> Result<Checkpoint>;

    /// Bytes that each writer may keep to itself until it commits (encoded, but not written). The run takes them from
    /// its memory budget.
    fn held_per_writer(&self) -> usize {
        0
    }

    /// Opens a writer for a prepared plan.
    async fn open_sink(&self, plan: &Plan) -> Result<Box<dyn Sink>>;

    /// Builds keys on the loaded tables. Repeatable.
    async fn seal(&self, plan: &Plan) -> Result<()>;

    /// A source that reads the stored rows back, and the table to read, for verifying load `index`; `None` where
    /// nothing can be read back.
    fn read_back(&self, plan: &Plan, index: usize) -> Option<(Arc<dyn Source>, TableId)>;

    /// The datastore as a source, for reading and hashing destination tables: a reader sees what is committed when it
    /// is opened. `None` where nothing can be read back.
    fn as_source(&self) -> Option<Arc<dyn Source>> {
        None
    }

    /// What is remembered for a pipeline ([`Plan::remember`] of its published plans, newest wins, and
    /// [`Destination::remember`]).
    async fn remembered(&self, pipeline: &str) -> Result<BTreeMap<String, String>> {
        let _ = pipeline;
        Ok(BTreeMap::new())
    }

    /// Adds to what is remembered for a pipeline, apart from any plan.
    async fn remember(&self, pipeline: &str, facts: &BTreeMap<String, String>) -> Result<()> {
        let _ = (pipeline, facts);
        Err(Error::new(
            code::UNSUPPORTED,
            format!("{} remembers nothing between runs", self.engine()),
        ))
    }

    /// Swaps or merges the loaded tables into place, marks the plan finished and folds its partitions, all guarded by
    /// the generation. Repeatable: publishing a finished plan returns what it did then.
    async fn publish(&self, plan: &Plan) -> Result<Published>;

    /// Forgets plan, checkpoint, load tables and what is remembered of a pipeline (`state reset`). The generation stays raised.
    async fn forget(&self, pipeline: &str) -> Result<()>;

    /// Looks at every prerequisite, privilege and setting that writing these tables needs.
    async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        let _ = tables;
        Vec::new()
    }
}

/// Writes partitions. One writer, usually one connection.
///
/// Contract, held by the conformance suite and the crash matrix:
/// - `recover` takes the next epoch of the partitions, which fences and ends their older writers, and says where they stand.
/// - Nothing written is visible before `commit`; `commit` makes data and positions durable together or not at all.
/// - `commit` is refused ([`crate::error::code::FENCED`]) unless every partition stands at `from`, its epoch is mine
///   and the plan's generation is the newest; that check is the last thing before the transaction ends.
/// - After any failed call the sink is useless: drop it, open another and `recover`. Dropping it rolls back.
/// - In a plan that publishes at the end, rows go to the load table; in a `Direct` plan, to the table itself, by op.
///   Several partitions may be written between two commits; they are committed together. Rows do not say their
///   partition, so each counts for exactly one of these ([`shares`]): what the partitions of a plan were credited with
///   adds up to what was applied.
#[async_trait]
pub trait Sink: Send {
    /// Takes over these partitions.
    async fn recover(&mut self, partitions: &[PartitionId]) -> Result<Checkpoint>;

    /// Takes one event. Boundaries are the engine's and never come here.
    async fn write(&mut self, event: Event) -> Result<()>;

    /// Makes everything written since the last commit durable together with the advances, and says what was done. What
    /// was done to a table is booked on the first of the advanced partitions that is of this table, and where none is
    /// (a log has all tables in one partition) on the first of all ([`shares`]).
    async fn commit(&mut self, advances: &[Advance]) -> Result<Applied>;

    /// Where the partitions of this sink durably stand: behind `commit` where the datastore flushes later.
    async fn durable(&mut self) -> Result<Checkpoint>;

    /// Has everything flushed that was committed, and says where the partitions stand now.
    async fn settle(&mut self) -> Result<Checkpoint> {
        self.durable().await
    }

    /// Lets go of partitions, so that another writer need not end this one first.
    async fn release(&mut self, partitions: &[PartitionId]) -> Result<()>;
}

/// Says what stands in the way of a statement that would widen a column.
pub fn not_widened(table: &TableId, there: &Column, obstacles: &[String], statement: &str) -> Error {
    let has = there.source_type.clone().unwrap_or_else(|| there.ty.to_string());
    Error::new(
        code::SCHEMA_MISMATCH,
        format!(
            "column {} of {table} is {has} and has to become wider, but {}",
            there.name,
            obstacles.join("; ")
        ),
    )
    .hint(format!("remove that, run `{statement}`, and make it again"))
}

/// What each advanced partition is credited with, of what was done per table (by its place in the plan). Rows of a load
/// table need a partition of their table: publishing counts them by it.
pub fn shares(plan: &Plan, advances: &[Advance], done: &BTreeMap<usize, Applied>) -> Result<Vec<Applied>> {
    let tables: Vec<Option<usize>> = advances
        .iter()
        .map(|a| plan.partitions().find(|p| p.id == a.partition).map(|p| p.table))
        .collect();
    let mut shares = vec![Applied::default(); advances.len()];
    for (table, applied) in done.iter().filter(|(_, a)| **a != Applied::default()) {
        let own = tables.iter().position(|t| *t == Some(*table));
        let direct = plan.tables.get(*table).is_some_and(|t| t.publish == Publish::Direct);
        let ours = plan.tables.get(*table).is_some_and(|t| t.own);
        match own.or_else(|| (direct && !shares.is_empty()).then_some(0)) {
            Some(at) if ours => shares[at] += applied.as_own(),
            Some(at) => shares[at] += *applied,
            None => return Err(Error::bug("rows of a table none of whose partitions is committed")),
        }
    }
    Ok(shares)
}
